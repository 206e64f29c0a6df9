"""Values of JSON that may be of any type, taken as what they should be: counts, names, objects, lists.

The rule: what is of another type than it should have, is negative or is longer than any name counts as absent; nothing
here raises. Shapes read with these what their decoders leave open.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, TypeGuard

import msgspec

from llmproxy.core.reading.shape import Members
from llmproxy.core.usage import Usage

COUNT_MAX: Final = 2**53 - 1
"""A count that is larger is no count: beyond it a JSON number is not exact (RFC 8259, section 6)."""

WORD_CHARACTERS_MAX: Final = 256
_HALF_PAIR: Final = re.compile("[\ud800-\udfff]")

REFUSED: Final = (msgspec.MsgspecError, ValueError, RecursionError)
"""What msgspec raises for a text or a value that it does not take."""


def count(value: object) -> int:
    """A count; 0 where it is none."""
    return value if type(value) is int and 0 <= value <= COUNT_MAX else 0


def is_count(value: object) -> TypeGuard[int]:
    """Whether it is a count."""
    return type(value) is int and 0 <= value <= COUNT_MAX


def word(value: object) -> str | None:
    """A name or an id as it may be kept; None where it is no text, empty, or longer than any name.

    Half a surrogate pair is no text: it could not be written to a log.
    """
    if type(value) is not str or not 0 < len(value) <= WORD_CHARACTERS_MAX:
        return None
    return value if value.isascii() or _HALF_PAIR.search(value) is None else None


def as_object(value: object) -> dict[str, Any]:
    """The value, if it is a JSON object; else an empty one."""
    return value if isinstance(value, dict) else {}


def objects(value: object) -> list[dict[str, Any]]:
    """The objects of a JSON array; none if it is no array."""
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def length(value: object) -> int:
    """The length of a text in characters; 0 where it is none."""
    return len(value) if type(value) is str else 0


def json_length(value: object) -> int:
    """The length of the arguments of a tool, in characters of compact JSON; 0 where there are none."""
    if not value:
        return 0
    try:
        return len(msgspec.json.encode(value).decode())
    except REFUSED:
        return 0


def named_counts(value: object, suffix: str) -> dict[str, int]:
    """The members of an object whose name ends so and that count something, by the name without it."""
    found = as_object(value)
    return {
        name.removesuffix(suffix): number
        for name, number in found.items()
        if name.endswith(suffix) and word(name) and is_count(number) and number
    }


def tools(counts: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    """As `Usage.server_tools` wants them."""
    return tuple(sorted((name, number) for name, number in counts.items() if number))


def add(one: Usage, other: Usage) -> Usage:
    """The sum of two usages, class by class. Their parts stand next to one another."""
    counts = dict(one.server_tools)
    for name, number in other.server_tools:
        counts[name] = counts.get(name, 0) + number
    summed = {name: getattr(one, name) + getattr(other, name) for name in _NUMBERS}
    return Usage(**summed, server_tools=tools(counts), parts=one.parts + other.parts)


def subtract(one: Usage, others: Iterable[Usage]) -> Usage:
    """What is left of a usage without these tokens, which are among it. Tools and parts are left.

    What the others have more of a class than it has is taken off its other classes, of the input or of the output: so
    the sum of what is left and of the others is what it was.
    """
    over = {name: getattr(one, name) for name in _NUMBERS}
    for other in others:
        over = {name: number - getattr(other, name) for name, number in over.items()}
    left = {name: max(0, number) for name, number in over.items()}
    rest = max(0, sum(over[name] for name in _INPUT))
    for name in _INPUT[:-1]:  # the fresh input comes last: what is missing is missing there first
        left[name] = min(left[name], rest)
        rest -= left[name]
    left["input_tokens"] = rest
    left["input_audio_tokens"] = min(left["input_audio_tokens"], rest)
    left["input_image_tokens"] = min(left["input_image_tokens"], rest - left["input_audio_tokens"])
    rest = left["output_tokens"]
    for name in ("output_audio_tokens", "output_image_tokens", "reasoning_tokens"):
        left[name] = min(left[name], rest)
        rest -= left[name]
    return msgspec.structs.replace(one, **left)


_NUMBERS: Final = tuple(
    field.name for field in msgspec.structs.fields(Usage) if field.name not in ("server_tools", "parts")
)
_INPUT: Final = (
    "cache_read_tokens",
    "cache_write_1h_tokens",
    "cache_write_5m_tokens",
    "tool_use_tokens",
    "input_tokens",
)


def object_at(text: bytes) -> dict[str, Any] | None:
    """The JSON object of this text; None if it is none.

    Half a surrogate pair ("\\ud83d", an emoji that was cut in two) and bytes that are no UTF-8 are taken as a
    character, which the decoders of msgspec refuse.
    """
    found = _value(text)
    return found if isinstance(found, dict) else None


def object_of(members: Members) -> dict[str, Any]:
    """The object that these watched members were in, as far as they tell it."""
    found: dict[str, Any] = {}
    for path in sorted(members):
        value = _value(members[path])
        inner = found
        for name in path[:-1]:
            inner = inner.setdefault(name, {})
            if not isinstance(inner, dict):
                break
        else:
            if value is not None:
                inner[path[-1]] = value
    return found


def _value(text: bytes) -> Any:
    try:
        return json.loads(text.decode("utf-8", "replace"), object_pairs_hook=_members)
    except (ValueError, RecursionError):
        return None


def _members(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """An object without the members whose name has half a surrogate pair: nobody asks for them, and msgspec raises
    UnicodeEncodeError for them."""
    return {name: value for name, value in pairs if name.isascii() or _HALF_PAIR.search(name) is None}
