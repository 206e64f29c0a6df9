"""How many tokens a text is, by model and kind of text: what an estimate can be built on.

Every row says who really counted: OpenAI's own tokenizer (the tiktoken package), Anthropic's count_tokens endpoint (the
anthropic package and a key), or a stand-in, which is marked as one: for a model that tiktoken does not know, its newest
encoding, and for Anthropic without a key, cl100k_base, whose figures are not Claude's. What cannot be counted at all is
named on standard error. Exit status 1 if nothing could be counted.

Lorem ipsum is what such figures are mostly taken from, and no text that anybody sends. So prose, code, JSON and Chinese
are measured beside it, apart: they differ by more than the models do, and one ratio for all of them would be wrong for
each. The texts are made up from a seed, so a run can be repeated. The text alone is counted: what a provider adds for
each message, for tools and for images is not in the figures.
"""

import argparse
import csv
import importlib
import os
import random
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import astuple, dataclass, fields
from typing import Any, Final, TextIO

SIZES: Final = "256,512,1024,2048,4096,8192"
OPENAI_MODELS: Final = "gpt-4o,gpt-4o-mini,gpt-4-turbo,gpt-5"
ANTHROPIC_MODELS: Final = "claude-3-5-sonnet-20240620,claude-3-5-haiku-20241022,claude-sonnet-4-20250514"
STAND_INS: Final = ("o200k_base", "cl100k_base")

Count = Callable[[str], int]

WORDS: Final = """
    the the the of of and and to to in a a is was it that for on with as after all answer before
    bring carry change children city could early evening every family first follow friend garden
    great harbour hold house important into keep kitchen language large letter light little long
    market measure morning mountain neighbour never nothing often other paper people quiet rather
    river second simple small something station street summer teacher through together under
    understand water weather window without
""".split()
LOREM: Final = """
    lorem ipsum dolor sit amet consectetur adipiscing elit sed do eiusmod tempor incididunt ut labore et dolore magna
    aliqua ut enim ad minim veniam quis nostrud exercitation ullamco laboris nisi ut aliquip ex ea commodo consequat
    duis aute irure dolor in reprehenderit in voluptate velit esse cillum dolore eu fugiat nulla pariatur excepteur sint
    occaecat cupidatat non proident sunt in culpa qui officia deserunt mollit anim id est laborum
""".split()
NAMES: Final = (
    "buffer",
    "index",
    "item",
    "line",
    "next_page",
    "offset",
    "result",
    "retries",
    "total",
    "user_id",
)
# Common characters; each is a word or part of one, and three bytes of UTF-8.
HAN: Final = (
    "的一是在不了有和人这中大为上个国我以要他时来用们生到作地于出就分对成会可主发年动同工也能下过子说产种面而方后多定"
)
HAN_STOPS: Final = "\u3002\uff0c\uff1f"  # full stop, comma and question mark, all of full width


def lorem(chance: random.Random) -> str:
    return " ".join(chance.choices(LOREM, k=chance.randint(6, 16))).capitalize() + ". "


def prose(chance: random.Random) -> str:
    words = chance.choices(WORDS, k=chance.randint(6, 16))
    return " ".join(words).capitalize() + chance.choice((". ", ". ", "? ", ", and ", ".\n\n"))


def code(chance: random.Random) -> str:
    first, second, third = chance.sample(NAMES, 3)
    number = chance.randint(1, 999)
    return chance.choice(
        (
            f"def {first}(self, {second}: int) -> str:\n    return self.{third}[{second}]\n\n",
            f"    if {first} is None or len({second}) > {number}:\n        raise ValueError({third!r})\n",
            f"    for {first} in range({number}):\n        {second}.append({third}({first}))\n",
        )
    )


def json_text(chance: random.Random) -> str:
    first, second, third = chance.sample(NAMES, 3)
    number, word = chance.randint(0, 10**6), chance.choice(WORDS)
    return f'{{"{first}": {number}, "{second}": "{word}", "{third}": [true, null, {number / 8}]}},\n'


def chinese(chance: random.Random) -> str:
    return "".join(chance.choices(HAN, k=chance.randint(6, 20))) + chance.choice(HAN_STOPS)


TEXTS: Final[tuple[tuple[str, Callable[[random.Random], str]], ...]] = (
    ("lorem", lorem),
    ("prose", prose),
    ("code", code),
    ("json", json_text),
    ("chinese", chinese),
)


class CannotCount(Exception):
    """Why a model's tokens cannot be counted here, and what would help."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measurement. size_label is in characters; the names are the columns of the CSV form."""

    size_label: str
    provider: str
    model: str
    num_trials: int
    mean_tokens: float
    p50_tokens: float
    p95_tokens: float
    stdev_tokens: float
    mean_tokens_per_1k_chars: float
    sample: str
    counted_by: str
    mean_bytes_per_token: float


HEADINGS: Final = (
    *("Size", "Provider", "Model", "Trials", "MeanTokens", "P50", "P95", "Stdev", "MeanTok/1kChars"),
    *("Sample", "CountedBy", "Bytes/Tok"),
)


def sample(kind: Callable[[random.Random], str], size: int, chance: random.Random) -> str:
    """Exactly ``size`` characters of one kind of text."""
    text = ""
    while len(text) < size:
        text += kind(chance)
    return text[:size]


def openai_counter(model: str, options: argparse.Namespace) -> tuple[str, Count]:
    """Who counts, and how. tiktoken fetches a model's table on first use, so it needs the network once."""
    tiktoken = package("tiktoken")
    try:
        encoding = tiktoken.encoding_for_model(model)
    except KeyError:
        return stand_in(model, *STAND_INS)
    except OSError as error:  # requests' errors are OSErrors
        raise CannotCount(f"tiktoken could not fetch its table ({type(error).__name__})") from error
    return f"tiktoken {encoding.name}", counting_with(encoding)


def anthropic_counter(model: str, options: argparse.Namespace) -> tuple[str, Count]:
    """Who counts, and how: one call for each text, free of charge but under a rate limit; a stand-in without a key.

    A call that fails ends the model: half of a row from one tokenizer and half from another would be no figure.
    """
    key = options.anthropic_api_key or os.environ.get("ANTHROPIC_API_KEY")
    if not key:
        try:
            return stand_in(model, STAND_INS[-1])
        except CannotCount as error:
            raise CannotCount(f"there is no key (--anthropic-api-key, or ANTHROPIC_API_KEY), and {error}") from error
    anthropic = package("anthropic")
    client = anthropic.Anthropic(api_key=key)

    def count(text: str) -> int:
        message = {"role": "user", "content": text}
        try:
            tokens: int = client.messages.count_tokens(model=model, messages=[message]).input_tokens
        except anthropic.AnthropicError as error:
            raise CannotCount(f"count_tokens failed ({type(error).__name__})") from error
        return tokens

    empty = count(".") - 1  # what Anthropic adds around a message is not the text's
    return "Anthropic count_tokens", lambda text: count(text) - empty


def counting_with(encoding: Any) -> Count:
    return lambda text: len(encoding.encode(text, disallowed_special=()))


def stand_in(model: str, *encodings: str) -> tuple[str, Count]:
    """Another tokenizer than the model's own: the first of these encodings that tiktoken has."""
    tiktoken = package("tiktoken")
    for name in encodings:
        try:
            encoding = tiktoken.get_encoding(name)
        except (ValueError, OSError):  # not known to this version; its table could not be fetched
            continue
        return f"tiktoken {name} (stand-in)", counting_with(encoding)
    raise CannotCount(f"tiktoken has no encoding to stand in for that of {model}")


def package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise CannotCount(f"the {name} package is not installed (pip install {name})") from error


COUNTERS: Final[tuple[tuple[str, Callable[[str, argparse.Namespace], tuple[str, Count]]], ...]] = (
    ("openai", openai_counter),
    ("anthropic", anthropic_counter),
)


def measure(provider: str, model: str, source: str, count: Count, options: argparse.Namespace) -> Iterator[Row]:
    """The rows of one model. Every model sees the same texts."""
    for kind, make in TEXTS:
        for size in options.sizes:
            chance = random.Random(f"{options.seed} {kind} {size}")
            texts = [sample(make, size, chance) for _ in range(options.trials)]
            tokens = [count(text) for text in texts]
            cuts = statistics.quantiles(tokens, n=20, method="inclusive") if len(tokens) > 1 else tokens * 19
            mean = statistics.fmean(tokens)
            yield Row(
                size_label=str(size),
                provider=provider,
                model=model,
                num_trials=len(tokens),
                mean_tokens=mean,
                p50_tokens=statistics.median(tokens),
                p95_tokens=cuts[-1],
                stdev_tokens=statistics.stdev(tokens) if len(tokens) > 1 else 0.0,
                mean_tokens_per_1k_chars=1000 * mean / size,
                sample=kind,
                counted_by=source,
                mean_bytes_per_token=sum(len(text.encode()) for text in texts) / sum(tokens),
            )


def write_csv(rows: Iterable[Row], out: TextIO) -> None:
    writer = csv.writer(out)
    writer.writerow(field.name for field in fields(Row))
    writer.writerows(map(cells, rows))


def write_table(rows: Iterable[Row], out: TextIO) -> None:
    table = [list(HEADINGS), *map(cells, rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip(), file=out)


def cells(row: Row) -> list[str]:
    return [f"{value:.2f}" if isinstance(value, float) else str(value) for value in astuple(row)]


def names(text: str) -> list[str]:
    return [each.strip() for each in text.split(",") if each.strip()]


def sizes(text: str) -> list[int]:
    return [positive(each) for each in names(text)]


def positive(text: str) -> int:
    number = int(text)
    if number <= 0:
        raise ValueError(text)
    return number


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", type=sizes, default=SIZES, help="characters, divided by commas")
    parser.add_argument("--trials", type=positive, default=5, help="texts for each kind and size")
    parser.add_argument("--seed", default="17", help="another seed, other texts")
    parser.add_argument("--openai-models", type=names, default=OPENAI_MODELS)
    parser.add_argument("--anthropic-models", type=names, default=ANTHROPIC_MODELS)
    parser.add_argument(
        "--anthropic-api-key", metavar="KEY", help="as good as ANTHROPIC_API_KEY, which nobody sees in ps"
    )
    parser.add_argument("--csv", action="store_true", help="comma-separated values instead of a table")
    options = parser.parse_args()
    rows: list[Row] = []
    for provider, counter in COUNTERS:
        for model in getattr(options, f"{provider}_models"):
            try:
                rows.extend(measure(provider, model, *counter(model, options), options))
            except CannotCount as reason:
                print(f"{provider} {model}: not counted, {reason}", file=sys.stderr)
    if not rows:
        return 1
    (write_csv if options.csv else write_table)(rows, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
