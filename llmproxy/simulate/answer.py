"""What the simulated model says, before any provider's shape is given to it.

A `Question` is what the four dialects have in common; `answer_to` makes the `Answer`: the pieces of
text, the thoughts, the tool call, the reason to stop, and the token counts. The rule kept here: an
answer is a function of the prompt and of the wishes alone, so that the same call gives the same text
and the same usage, streamed or not, today and tomorrow. Pieces are made one at a time: an answer of a
gigabyte costs no memory.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from llmproxy.simulate.wishes import Wishes

_TEXT: Final = (
    "a river of small stones runs past the mill and keeps its own time while the miller counts sacks "
    "in a naïve but honest hand so nobody asks twice what the flour weighs or why the café closes at noon "
    "日本語 reads well here and a green lamp 🙂 says that every token arrived in order as it was sent"
)
_WORDS: Final = tuple(_TEXT.split())
_FILLER: Final = "the quick brown fox jumps over the lazy dog and the stream runs on "
_SIZED_PIECE_BYTES: Final = 4096
THOUGHT_TOKENS: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A function that the caller offers: its name and the JSON schema of its arguments."""

    name: str
    schema: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One call of a model, without its dialect.

    `texts` is all text of the prompt; `attachments` how many parts are not text; `asked` the last turn's
    text; `tool_choice` is "auto", "none", "required" or "=name"; `schema` is set when the answer must be
    JSON; `thinks` when the model thinks first.
    """

    texts: Sequence[str]
    asked: str = ""
    attachments: int = 0
    after_tool: bool = False
    tools: Sequence[Tool] = ()
    tool_choice: str = "auto"
    max_tokens: int | None = None
    schema: Mapping[str, Any] | None = None
    thinks: bool = False

    @property
    def prompt_tokens(self) -> int:
        """A calibrated guess in place of a tokenizer: four bytes of UTF-8 are a token."""
        return (
            sum(tokens_of(text) + 3 for text in self.texts)
            + 258 * self.attachments
            + sum(tokens_of(tool.name) + tokens_of(dumps(tool.schema).decode()) for tool in self.tools)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """The tool that the model wants called. `arguments` is JSON text."""

    name: str
    arguments: str

    @property
    def name_tokens(self) -> int:
        """What of the call's tokens is its name."""
        return tokens_of(self.name)

    def pieces(self) -> Iterator[str]:
        """The arguments as a stream brings them."""
        return (self.arguments[at : at + 8] for at in range(0, len(self.arguments), 8))

    def counted_pieces(self) -> Iterator[tuple[str, int]]:
        """The same, each with its tokens: those of the arguments, spread over the pieces."""
        return spread(self.pieces(), -(-len(self.arguments) // 8), tokens_of(self.arguments))


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the model says and what it costs. `stop` is "stop", "length" or "tool"."""

    seed: int
    count: int
    text_bytes: int | None
    literal: str | None
    call: Call | None
    stop: str
    prompt_tokens: int
    cached_tokens: int
    written_tokens: int
    audio_tokens: int
    image_tokens: int
    text_tokens: int
    thought_tokens: int

    @property
    def output_tokens(self) -> int:
        return self.text_tokens + self.thought_tokens

    def pieces(self) -> Iterator[str]:
        """The text, piece by piece; each is one event of a stream."""
        if self.literal is not None:
            text, count = self.literal, self.count
            return (text[len(text) * i // count : len(text) * (i + 1) // count] for i in range(count))
        if self.text_bytes is not None:
            total, count = self.text_bytes, self.count
            return (_filler(total * (i + 1) // count - total * i // count) for i in range(count))
        return (_word(self.seed, i) for i in range(self.count))

    def counted_pieces(self) -> Iterator[tuple[str, int]]:
        """The same, each with its tokens: those of the text, spread over the pieces."""
        return spread(self.pieces(), self.count, self.text_tokens)

    def text(self) -> str:
        """The whole text."""
        return "".join(self.pieces())

    def thoughts(self) -> Iterator[str]:
        """What the model thinks first, piece by piece: one piece for each thought token."""
        return (_word(self.seed + 7, i) for i in range(self.thought_tokens))


def dumps(value: object) -> bytes:
    """JSON as the providers write it: compact, keys in order, UTF-8 unescaped."""
    return msgspec.json.encode(value)


def tokens_of(text: str) -> int:
    """How many tokens a text is."""
    return -(-len(text.encode("utf-8", "surrogatepass")) // 4)


def spread(pieces: Iterator[str], count: int, tokens: int) -> Iterator[tuple[str, int]]:
    """`count` pieces, each with its share of the tokens; the shares add up."""
    return ((piece, tokens * (i + 1) // count - tokens * i // count) for i, piece in enumerate(pieces))


def seed_of(*texts: str) -> int:
    """A number that is the same for the same texts, in every process."""
    digest = hashlib.sha256("\0".join(texts).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:6], "big")


def _word(seed: int, i: int) -> str:
    word = _WORDS[(seed + i * (1 + seed % 7)) % len(_WORDS)]
    return word.capitalize() if i == 0 else " " + word


def _filler(size: int) -> str:
    return (_FILLER * (size // len(_FILLER) + 1))[:size]


def instance_of(schema: Mapping[str, Any], root: Mapping[str, Any] | None = None, depth: int = 0) -> Any:
    """A value that the JSON schema accepts, for tool arguments and structured answers.

    Knows type, enum, const, default, properties, items, anyOf/oneOf/allOf and local $ref; deeper than
    eight levels is null.
    """
    root = schema if root is None else root
    if depth > 8:
        return None
    for fixed in ("const", "default"):
        if fixed in schema:
            return schema[fixed]
    if schema.get("enum"):
        return schema["enum"][0]
    if isinstance(schema.get("$ref"), str):
        found: Any = root
        for step in schema["$ref"].lstrip("#/").split("/"):
            found = found.get(step, {}) if isinstance(found, Mapping) else {}
        return instance_of(found, root, depth + 1)
    for several in ("anyOf", "oneOf", "allOf"):
        if schema.get(several):
            return instance_of(schema[several][0], root, depth + 1)
    kind = schema.get("type", "object" if "properties" in schema else "string")
    if isinstance(kind, list):
        kind = kind[0]
    match str(kind).lower():  # Gemini writes its types in capitals
        case "object":
            properties: Mapping[str, Any] = schema.get("properties", {})
            return {name: instance_of(inner, root, depth + 1) for name, inner in properties.items()}
        case "array":
            return [instance_of(schema["items"], root, depth + 1)] if schema.get("items") else []
        case "integer":
            return int(schema.get("minimum", 7))
        case "number":
            return float(schema.get("minimum", 7.5))
        case "boolean":
            return True
        case "null":
            return None
        case _:
            return "river"


def _tool_for(question: Question) -> Tool | None:
    """The tool to call: the one that is forced, else the first that the last turn speaks of."""
    if not question.tools or question.tool_choice == "none":
        return None
    if question.tool_choice.startswith("="):
        named = [tool for tool in question.tools if tool.name == question.tool_choice[1:]]
        return named[0] if named else question.tools[0]
    if question.tool_choice == "required":
        return question.tools[0]
    if question.after_tool:
        return None  # it has its result: time to answer in words
    asked = question.asked.lower()
    for tool in question.tools:
        if any(len(word) > 3 and word in asked for word in tool.name.lower().replace("-", "_").split("_")):
            return tool
    return question.tools[0] if "tool" in asked else None


def answer_to(question: Question, wishes: Wishes) -> Answer:
    """The answer to a question. `events` and `bytes` of the wishes win over the caller's token limit."""
    seed = seed_of(*question.texts)
    prompt_tokens = question.prompt_tokens + wishes.audio_tokens + wishes.image_tokens
    tool = _tool_for(question)
    limit = question.max_tokens
    sized = wishes.events is not None or wishes.text_bytes is not None

    thoughts = wishes.reasoning_tokens
    if thoughts is None:
        thoughts = THOUGHT_TOKENS if question.thinks else 0
        if limit is not None:
            thoughts = min(thoughts, limit // 2)

    call = None
    literal = None
    stop = "stop"
    if tool is not None:
        call = Call(name=tool.name, arguments=dumps(instance_of(tool.schema)).decode())
        count, text_tokens, stop = 0, tokens_of(call.name) + tokens_of(call.arguments), "tool"
    elif question.schema is not None and not sized:
        literal = dumps(instance_of(question.schema)).decode()
        count = text_tokens = max(1, tokens_of(literal))
    elif wishes.text_bytes is not None:
        default = -(-wishes.text_bytes // _SIZED_PIECE_BYTES)
        count = default if wishes.events is None else max(1, wishes.events)
        text_tokens = -(-wishes.text_bytes // 4)
    else:
        count = text_tokens = 8 + seed % 17 if wishes.events is None else wishes.events
        if limit is not None and not sized and thoughts + count > limit:
            count = text_tokens = max(0, limit - thoughts)
            stop = "length"

    cached = wishes.cached_tokens
    if cached is None:
        # OpenAI's prompt caching guide: from 1,024 tokens on, by the prefix, in steps of 128.
        cached = prompt_tokens * 3 // 4 // 128 * 128 if prompt_tokens >= 1024 else 0
    return Answer(
        seed=seed,
        count=count,
        text_bytes=wishes.text_bytes if call is None else None,
        literal=literal,
        call=call,
        stop=stop,
        prompt_tokens=max(prompt_tokens, cached + wishes.written_tokens),
        cached_tokens=cached,
        written_tokens=wishes.written_tokens,
        audio_tokens=wishes.audio_tokens,
        image_tokens=wishes.image_tokens,
        text_tokens=text_tokens,
        thought_tokens=thoughts,
    )
