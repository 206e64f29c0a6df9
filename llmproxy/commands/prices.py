"""What `llmproxy prices show` and `llmproxy prices import` do: tell what a model costs and why; make a price file of
LiteLLM's list.

The rules: what is shown is found as the proxy finds it, in the same lists in the same order. A price file appears whole
or not at all, and loads: a price that would not come back as it was is left out, and counted. Standard output has only
what was asked for; what is told about it is on standard error.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from llmproxy.core.pricing import Price, PriceBook, PriceList
    from llmproxy.pricing import Imported

# Its licence asks for this in every copy of a substantial part: https://github.com/BerriAI/litellm/blob/main/LICENSE
LITELLM_NOTICE: Final = (
    "Taken from LiteLLM's price list, which is under this licence. MIT License. Copyright (c) 2023 Berri AI. "
    "Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated "
    'documentation files (the "Software"), to deal in the Software without restriction, including without limitation '
    "the rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and "
    "to permit persons to whom the Software is furnished to do so, subject to the following conditions: The above "
    "copyright notice and this permission notice shall be included in all copies or substantial portions of the "
    'Software. THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT '
    "LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT "
    "SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION "
    "OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER "
    "DEALINGS IN THE SOFTWARE."
)

_STREAM: Final = "-"
_NAMED_MAX: Final = 5


def add_show_arguments(parser: argparse.ArgumentParser) -> None:
    """What `prices show` is told, besides --config and --environment."""
    parser.add_argument("model", metavar="MODEL", help="its name, as it is asked for or as answers have it")
    parser.add_argument("--provider", metavar="NAME", help="at this provider only; default: at each that has it")


def add_import_arguments(parser: argparse.ArgumentParser) -> None:
    """What `prices import` is told."""
    parser.add_argument("file", metavar="FILE", help="model_prices_and_context_window.json; -: standard input")
    parser.add_argument("--output", metavar="FILE", default=_STREAM, help="the price file; default: standard output")
    parser.add_argument("--date", type=_day, metavar="YYYY-MM-DD", help="the day of the list; default: today")
    parser.add_argument(
        "--provider", metavar="NAME", action="append", default=[], help="these only; may be there several times"
    )


def show_price(given: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Show what a model costs, and why."""
    from llmproxy.config import ConfigError, load
    from llmproxy.core.pricing import PriceBook
    from llmproxy.pricing import PricesError, lists_in_use, show

    try:
        config = load(environ=environ, cwd=os.getcwd(), config_file=given.config, environment=given.environment)
        book = PriceBook(lists_in_use(config.prices, config.pricing.file))
    except (ConfigError, PricesError) as error:
        return _failed(str(error))
    shown = show(book, given.model, given.provider)
    providers = _providers(book)
    if any(book.find(each, given.model) for each in ([given.provider] if given.provider else providers)):
        sys.stdout.write(f"{shown}\n")
        return 0
    if given.provider and given.provider not in providers:
        shown += f"\n{_unknown_provider(given.provider, providers)}"
    return _failed(shown)


def import_prices(given: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Make a price file of LiteLLM's price list."""
    import json
    from datetime import UTC, datetime

    from llmproxy.config.complaint import one_line
    from llmproxy.pricing import import_litellm, written

    def failed(words: str) -> int:
        return _failed(one_line(f"llmproxy prices import: {words}"))

    name = "standard input" if given.file == _STREAM else given.file
    try:
        content = _read(given.file)
    except OSError as error:
        return failed(f"{name} cannot be read: {error.strerror or error}")
    try:
        imported = import_litellm(content, given.date or datetime.now(UTC).date().isoformat())
    except json.JSONDecodeError as error:
        return failed(f"{name} is no JSON: {error.msg} in line {error.lineno}")
    except UnicodeDecodeError:
        return failed(f"{name} is no JSON: it is not UTF-8 text")
    except RecursionError:
        return failed(f"{name} is nested too deeply")
    except ValueError:
        return failed(f"{name} is not LiteLLM's price list")
    if not imported.taken:
        return failed(f"{name} is not LiteLLM's price list: nothing in it has a litellm_provider and a price")

    known = imported.prices.prices
    for each in given.provider:
        if each not in known:
            return failed(_unknown_provider(each, known))
    prices, left_out = _that_come_back(imported.prices, given.provider or list(known))
    if not prices.prices:
        return failed(f"{name} has no price that can be said in a price file")
    try:
        _write(given.output, _ascii(written(prices, LITELLM_NOTICE)))
    except BrokenPipeError:
        raise  # as with every command: the reader has seen enough
    except OSError as error:
        where = "standard output" if given.output == _STREAM else given.output
        return failed(f"{where} cannot be written: {error.strerror or error}")

    sys.stderr.write("".join(f"{one_line(line)}\n" for line in _told(imported, prices, left_out)))
    return 0


def _day(text: str) -> str:
    """A date as a price file has it."""
    from datetime import date

    try:
        return date.fromisoformat(text).isoformat()
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no day, as in 2026-11-24") from None


def _providers(book: PriceBook) -> dict[str, None]:
    return dict.fromkeys(name for each in book.lists for name in (*each.prices, *each.aliases, *each.same_as))


def _unknown_provider(name: str, known: Mapping[str, object]) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name, known, 1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(known))}"
    return f"no provider {name!r} has prices; {hint}"


def _that_come_back(prices: PriceList, providers: Sequence[str]) -> tuple[PriceList, list[str]]:
    """The prices of some providers that are the same once they are written and read, and the names of the others."""
    from msgspec.structs import replace

    from llmproxy.pricing import PriceFileError, written
    from llmproxy.pricing.price_file import read_prices

    def comes_back(provider: str, model: str, price: Price) -> bool:
        alone = {provider: {model: price}}
        try:
            text = written(replace(prices, prices=alone))
            return read_prices(_ascii(text).encode("ascii"), "", prices.origin).prices == alone
        except PriceFileError:
            return False

    left_out: list[str] = []
    kept: dict[str, dict[str, Price]] = {}
    for provider in dict.fromkeys(providers):
        for model, price in prices.prices[provider].items():
            if comes_back(provider, model, price):
                kept.setdefault(provider, {})[model] = price
            else:
                left_out.append(f"{provider} {model}")
    return replace(prices, prices=kept), left_out


def _told(imported: Imported, prices: PriceList, left_out: Sequence[str]) -> list[str]:
    """What became of the list, a line for each count. prices: those that were written."""
    lines = f"read: {imported}".split("\n")
    if left_out:
        named = [*left_out[:_NAMED_MAX], *(["..."] if len(left_out) > _NAMED_MAX else [])]
        lines.append(f"left out, no price file can say it: {len(left_out)} ({', '.join(named)})")
    models = sum(map(len, prices.prices.values()))
    whose = f"{len(prices.prices)} providers" if len(prices.prices) > _NAMED_MAX else ", ".join(prices.prices)
    return [*lines, f"written: {models} models of {whose}"]


def _ascii(text: str) -> str:
    """A JSON text without anything that the encoding of a locale could change, or that has none."""
    import json

    if text.isascii():
        return text
    return "".join(each if each.isascii() else json.dumps(each)[1:-1] for each in text)


def _read(file: str) -> bytes:
    if file == _STREAM:
        return sys.stdin.buffer.read()
    with open(file, "rb") as opened:
        return opened.read()


def _write(file: str, text: str) -> None:
    """Write to a file, or to standard output. A file is there whole, or as it was before.

    :raises OSError: when it cannot be written.
    """
    if file == _STREAM:
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    import errno
    import secrets
    import stat

    path = os.path.realpath(file)  # a link stays one
    try:
        status = os.stat(path)
    except FileNotFoundError:
        mode = None
    else:
        # A rename would put a file in the place of a device or a pipe.
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file")
        mode = stat.S_IMODE(status.st_mode)
    draft = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        with open(descriptor, "w", encoding="ascii") as opened:
            if mode is not None:
                os.fchmod(descriptor, mode)
            opened.write(text)
            opened.flush()
            os.fsync(descriptor)
        os.replace(draft, path)
    except BaseException:
        os.unlink(draft)
        raise


def _failed(words: str) -> int:
    sys.stderr.write(f"{words}\n")
    return 1
