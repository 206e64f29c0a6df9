r"""Events of a stream that are the same but for their text, counted without taking each apart: `Repetition`.

Most providers write all the pieces of an answer in one way: hundreds of events that differ in nothing but a text, and
perhaps a padding after it (OpenAI's "obfuscation"). The form is learned from two of them. A run of such events is then
cut at the line ends, and put together again to see whether it was one: both are one call for all.

The rule: what is counted is what the shape would have counted of each event. Why it is:

* What differs is the inside of one string or two, which are values of members. With any other strings in their place
  the text is JSON with the same members.
* The shape itself has said, of an event with marks in those places, that the first is its text, and that the event is
  nothing else that the shape looks at.
* A run is taken only if all of it is that form with such strings: no quote in them, no control character, and no
  backslash but of an escape that is valid.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, Literal, NamedTuple, TypeAlias

PlainText: TypeAlias = Callable[[bytes], str | None]
"""Tells of the JSON text of an event its piece of text, if it is one and nothing else that the shape looks at."""

_HEAD: Final = re.compile(rb"(?:event: [^\r\n]*+\r?\n)?data: (?=\{)")
_MARK: Final = b"~text~"
_PADDING: Final = b"~padding~"
_CUT_BYTES: Final = 6  # so much of the beginning of an event is looked for
_LAST_EVENTS: Final = 5
_NEAR_BYTES: Final = 4096
_LF: Final = 10
_CR: Final = 13
_BACKSLASH: Final = 92
# Not half a surrogate pair, which is no character.
_ESCAPE: Final = re.compile(
    rb'\\(?:["\\/bfnrt]|u(?![dD][89a-fA-F])[0-9a-fA-F]{4}|u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})'
)
# All but quotes, backslashes and control characters.
_ORDINARY: Final = bytes(set(range(32, 256)) - set(b'"\\'))
_ONE: Final = b"\x00"  # ends an event
_TWO: Final = b"\x01\x00"  # and stands before its padding


class TextRun(NamedTuple):
    """Events that are plain text. characters: of all of them. brought: how many had any."""

    characters: int
    brought: int


class Repetition(NamedTuple):
    """A form of events. begin, end: the bytes before and after what differs, with the line ends; across: both, from one
    event to the next. between: the bytes between text and padding; empty where there is none. line_ends: those that
    end an event."""

    begin: bytes
    between: bytes
    end: bytes
    across: bytes
    line_ends: bytes

    def take(self, data: bytes) -> tuple[TextRun, int] | None:
        """Count the events that `data` begins with, and tell how many bytes they are; None if they are not all so.

        Where a piece is so short that it may not have an event, there may be 0 of them.
        """
        begin, end, line_ends = self.begin, self.end, self.line_ends
        stop = data.rfind(end)
        if stop < 0 and len(data) < _NEAR_BYTES:
            return TextRun(0, 0), 0
        if stop < len(begin) or not data.startswith(begin):
            return None
        size = stop + len(end)
        # A short separator is quicker to find than `across`.
        events = data[_CUT_BYTES : size - len(line_ends)].split(line_ends + begin[:_CUT_BYTES])
        first, last = len(begin) - _CUT_BYTES, len(line_ends) - len(end)
        texts = [event[first:last] for event in events]
        if self.across.join(texts) != data[len(begin) : stop]:
            return None
        joined = b"\x00".join(texts)
        marks = _ONE
        if self.between:
            if b"\x01" in joined:
                return None
            joined, marks = joined.replace(self.between, b"\x01"), _TWO
        if _BACKSLASH in joined:
            joined = _ESCAPE.sub(b"?", joined)  # what is escaped is one character
        if joined.translate(None, _ORDINARY) + _ONE != marks * len(texts):
            return None
        try:
            characters = len(joined.decode()) - len(texts) + 1
            if self.between:
                texts = joined.replace(b"\x01", b"\x00").split(b"\x00")[::2]
                characters = len(b"".join(texts).decode())
        except UnicodeDecodeError:
            return None
        return TextRun(characters, len(texts) - texts.count(b"")), size


def learned(data: bytes, plain_text: PlainText) -> Repetition | None:
    """The form of two of the last whole events in a piece of a stream; None if it cannot be told from them."""
    line_ends = b"\r\n\r\n" if _CR in data else b"\n\n"
    events = [event for event in data.rsplit(line_ends, _LAST_EVENTS)[1:-1] if _BACKSLASH not in event]
    if len(events) < 2:
        return None
    one, other = events[-2], events[-1]
    head = _HEAD.match(one)
    length = min(len(one), len(other))
    begin = one[: _common(one[:length], other[:length], "big")]
    begin = begin[: begin.rfind(b'"') + 1]
    end = one[len(one) - _common(one[-length:], other[-length:], "little") :]
    end = end[end.find(b'"') :]
    if head is None or begin[:-1].rstrip(b" ")[-1:] != b":" or end[:1] != b'"':
        return None
    between, its = _inside(one[len(begin) : -len(end)]), _inside(other[len(begin) : -len(end)])
    if between is None or between != its:
        return None
    text = begin[head.end() :] + _MARK + (between and between + _PADDING) + end
    if plain_text(text) != _MARK.decode() or _MARK in one or _LF in text or _CR in text:
        return None
    end += line_ends
    return Repetition(begin, between, end, end + begin, line_ends)


def _inside(text: bytes) -> bytes | None:
    """What lies between the two strings that this ends and begins with; empty if it is one; None if it is more."""
    _, quote, rest = text.partition(b'"')
    if not quote:
        return b""
    inside, quote, _ = rest.rpartition(b'"')
    return b'"' + inside + quote if inside.rstrip(b" ")[-1:] == b":" else None


def _common(one: bytes, other: bytes, order: Literal["big", "little"]) -> int:
    """How many bytes of these, which are of one length, both begin with ("big") or end with ("little")."""
    difference = int.from_bytes(one, order) ^ int.from_bytes(other, order)
    return len(one) - (difference.bit_length() + 7) // 8
