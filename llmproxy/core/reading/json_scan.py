r"""The members that are watched of a JSON object of any size, taken while it passes: `MemberScan`.

The rule: constant memory and time in proportion to the length, whatever the object holds. Nesting is a counter, not a
recursion; the text of a long string (an image in base64) is jumped over with `bytes.find`; a value is held only as long
as it may be one of interest.

How it works: a state machine whose state is the method that reads on at the next byte. It enters only the objects on
the way to a watched member; every other value is skipped by `ValueEnd`, which counts brackets outside strings. Each
piece is first blinded: `\\` and `\"` become other characters of the same length, so that a quote that is left opens or
closes a string. What is held is cut from the piece as it came. Grammar: RFC 8259.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable
from itertools import accumulate, islice
from typing import Final, TypeAlias

import msgspec

from llmproxy.core.reading.shape import MEMBER_BYTES_MAX, Path

_State: TypeAlias = Callable[["MemberScan", bytes, int], int]

KEY_VALUE_BYTES_MAX: Final = 1024
"""A member of the top level is given to choose a shape by; a value that is longer than this tells none."""

KEYS_MAX: Final = 64
"""Members of the top level that are remembered. No answer of a provider has as many."""

_KEY_BYTES_MAX: Final = 1024
# An object with more members than this on its watched levels is no answer of a provider.
_MEMBERS_MAX: Final = 4096
# In a value of many strings it is faster to count brackets for a whole block at once.
_MANY_STRINGS: Final = 48
_BLOCK_BYTES: Final = 16 * 1024
# Brackets are first counted so far, and then in steps twice as long: values may be short, and many in one piece.
_FIRST_STEP_BYTES: Final = 64

_QUOTE, _COMMA, _COLON = b'",:'
_OPEN, _CLOSE = b"{}"
_SPACE: Final = re.compile(rb"[ \t\r\n]*+")
_SCALAR: Final = re.compile(rb"[-+.0-9A-Za-z]*+")
_BRACKET: Final = re.compile(rb"[\[\]{}]")
_NOT_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))
# What a bracket adds to the depth, as a signed byte.
_STEPS: Final = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")


def blinded(piece: bytes, escaped: bool) -> tuple[bytes, bool]:
    r"""A piece of JSON text whose `\\` and `\"` are overwritten, so that positions stay.

    escaped: the piece before ended with a backslash that escapes the next byte. Returns the text, and whether this one
    ends so.
    """
    if escaped and piece:
        piece = b"_" + piece[1:]
        escaped = False
    if b"\\" in piece:
        piece = piece.replace(b"\\\\", b"__").replace(b'\\"', b"__")
        escaped = piece.endswith(b"\\")
    return piece, escaped


class ValueEnd:
    """Finds the end of a string, an array or an object that has begun, in blinded text, through any split."""

    __slots__ = ("_depth", "in_text")

    def __init__(self) -> None:
        self._depth = 0  # open brackets
        self.in_text = False  # inside a string

    def begin(self, first: int) -> None:
        """The value's first byte: a quote or an opening bracket."""
        self.in_text = first == _QUOTE
        self._depth = 0 if self.in_text else 1

    def find(self, data: bytes, at: int) -> int:
        """Where the first byte after the value is, looked for from `at`; -1: it does not end in this piece."""
        strings = exactly_until = 0
        step = _FIRST_STEP_BYTES
        while at < len(data):
            if self.in_text:
                end = data.find(b'"', at)
                if end < 0:
                    return -1
                self.in_text = False
                at = end + 1
                if not self._depth:
                    return at
            elif strings >= _MANY_STRINGS and at >= exactly_until:
                block = data[at : at + _BLOCK_BYTES]
                texts = block.split(b'"')
                if self._count_brackets(b"".join(texts[::2])) is None:
                    self.in_text = len(texts) % 2 == 0
                    at += len(block)
                else:
                    exactly_until = at + len(block)
            else:
                quote = data.find(b'"', at, at + step)
                end = at + step if quote < 0 else quote
                closed_at = self._count_brackets(data[at:end])
                if closed_at is not None:
                    return at + closed_at + 1
                if quote < 0:
                    at = end
                    step *= 2
                else:
                    self.in_text = True
                    strings += 1
                    at = end + 1
        return -1

    def _count_brackets(self, text: bytes) -> int | None:
        """Follow the depth through text without strings; where in it the value's last bracket is, or None."""
        brackets = text.translate(None, _NOT_BRACKETS)
        if not brackets:
            return None
        closing = brackets.count(b"]") + brackets.count(b"}")
        if closing < self._depth:
            # Too few to end the value, so their order does not matter. This is what makes `[[[[...` cheap.
            self._depth += len(brackets) - 2 * closing
            return None
        depths = list(accumulate(array("b", brackets.translate(_STEPS)), initial=self._depth))
        try:
            nth = depths.index(0)
        except ValueError:
            self._depth = depths[-1]
            return None
        return next(islice(_BRACKET.finditer(text), nth - 1, None)).start()


class _Held:
    """A value that may be of interest, while it is read. text: what earlier pieces had of it; None: it is too long."""

    __slots__ = ("begin", "bytes_max", "path", "text")

    def __init__(self, path: Path, bytes_max: int, begin: int) -> None:
        self.path = path
        self.bytes_max = bytes_max
        self.begin = begin  # where it begins in this piece
        self.text: bytearray | None = bytearray()

    def add(self, piece: bytes, end: int) -> None:
        """Hold what this piece has of the value, up to `end`."""
        if self.text is not None:
            if len(self.text) + end - self.begin > self.bytes_max:
                self.text = None
            else:
                self.text += piece[self.begin : end]
        self.begin = 0


class MemberScan:
    """Takes the watched members of a JSON object that arrives in pieces. White space before it is skipped.

    :param watched: the members to keep.

    After each `feed`:
    values: the raw JSON text of the watched members that were seen to their end. Of a repeated key the last one counts.
        A value longer than MEMBER_BYTES_MAX is passed over.
    keys: the first KEYS_MAX members of the top level; b"" where a value is longer than KEY_VALUE_BYTES_MAX or no
        end of it was seen yet.
    complete: the object came to its end. rest: what followed it in the piece it ended in; nothing is taken after that.
    broken: it is no JSON object, or has thousands of members; no more of it is read.
    size_bytes: its length so far, white space before it included.
    """

    __slots__ = (
        "_end",
        "_escaped",
        "_holding",
        "_inner",
        "_key_text",
        "_members_left",
        "_path",
        "_piece",
        "_prefix",
        "_state",
        "_watched",
        "broken",
        "complete",
        "keys",
        "rest",
        "size_bytes",
        "values",
    )

    def __init__(self, watched: frozenset[Path]) -> None:
        self.values: dict[Path, bytes] = {}
        self.keys: dict[str, bytes] = {}
        self.complete = False
        self.broken = False
        self.rest = b""
        self.size_bytes = 0
        self._watched = watched
        self._inner = frozenset(path[:end] for path in watched for end in range(1, len(path)))
        self._members_left = _MEMBERS_MAX
        self._prefix: Path = ()  # the object that we are in
        self._path: Path = ()  # of the member that we are at
        self._key_text: bytearray | None = None  # the key being read; None: too long
        self._holding: list[_Held] = []  # the values being read, the outer one first
        self._end = ValueEnd()  # of the value being skipped
        self._escaped = False  # the last piece ended with a backslash that escapes the next byte
        self._piece = b""  # as it came, while it is looked at
        self._state: _State = MemberScan._start  # a function, not a bound method: no cycle for the collector

    def feed(self, data: bytes) -> bool:
        """Take the next piece of the object. Returns `complete`."""
        if not self.complete and data:
            self.size_bytes += len(data)
            if not (self.broken or self._is_text_alone(data)):
                self._take(data)
        return self.complete

    def _take(self, data: bytes) -> None:
        self._piece = data
        text, self._escaped = blinded(data, self._escaped)
        at = 0
        while at < len(text) and not (self.complete or self.broken):
            at = self._state(self, text, at)
        for held in self._holding:
            held.add(data, len(data))
        if self.complete:
            self.rest = data[at:]
            self.size_bytes -= len(self.rest)
        self._piece = b""

    def _is_text_alone(self, data: bytes) -> bool:
        """Amid a long string that is not held, as an image is one: two searches, and no more, for each piece of it."""
        return (
            self._end.in_text
            and self._state is MemberScan._skip
            and not self._escaped
            and all(held.text is None for held in self._holding)
            and b'"' not in data
            and b"\\" not in data
        )

    # -- the states: each reads the blinded piece from `at` and returns where the next one reads on

    def _start(self, data: bytes, at: int) -> int:
        at = _after_space(data, at)
        if at < len(data):
            self._expect(data[at] == _OPEN, MemberScan._first_key)
        return at + 1

    def _first_key(self, data: bytes, at: int) -> int:
        at = _after_space(data, at)
        if at < len(data) and data[at] == _CLOSE:
            return self._leave_object(at + 1)
        return self._next_key(data, at)

    def _next_key(self, data: bytes, at: int) -> int:
        at = _after_space(data, at)
        if at < len(data):
            self._key_text = bytearray()
            self._members_left -= 1
            self._expect(data[at] == _QUOTE and self._members_left >= 0, MemberScan._key)
        return at + 1

    def _key(self, data: bytes, at: int) -> int:
        quote = data.find(b'"', at)
        end = len(data) if quote < 0 else quote
        if self._key_text is not None:
            if len(self._key_text) + end - at > _KEY_BYTES_MAX:
                self._key_text = None
            else:
                self._key_text += self._piece[at:end]
        if quote >= 0:
            name = None if self._key_text is None else _name(bytes(self._key_text))
            self._path = () if name is None else (*self._prefix, name)
            self._state = MemberScan._colon
        return end + 1

    def _colon(self, data: bytes, at: int) -> int:
        at = _after_space(data, at)
        if at < len(data):
            self._expect(data[at] == _COLON, MemberScan._value)
        return at + 1

    def _value(self, data: bytes, at: int) -> int:
        at = _after_space(data, at)
        if at == len(data):
            return at
        path, first = self._path, data[at]
        if path:
            self._begin_member(path, at)
        if first == _OPEN and path in self._inner:
            self._prefix = path
            self._state = MemberScan._first_key
            return at + 1
        if first in b'"{[':
            self._end.begin(first)
            self._state = MemberScan._skip
            return at + 1
        self._expect(first in b"-0123456789tfn", MemberScan._scalar)
        return at

    def _scalar(self, data: bytes, at: int) -> int:
        match = _SCALAR.match(data, at)
        end = match.end() if match else at
        return end if end == len(data) else self._end_member(end)

    def _skip(self, data: bytes, at: int) -> int:
        end = self._end.find(data, at)
        return len(data) if end < 0 else self._end_member(end)

    def _after_value(self, data: bytes, at: int) -> int:
        at = _after_space(data, at)
        if at < len(data):
            if data[at] == _CLOSE:
                return self._leave_object(at + 1)
            self._expect(data[at] == _COMMA, MemberScan._next_key)
        return at + 1

    # -- what the states share

    def _expect(self, as_expected: bool, state: _State) -> None:
        """Go on with `state`, or give up: this is not JSON as we know it."""
        if as_expected:
            self._state = state
        else:
            self.broken = True

    def _begin_member(self, path: Path, at: int) -> None:
        if path in self._watched or path in self._inner:
            # A repeated key: what came before no longer counts.
            for known in [each for each in self.values if each[: len(path)] == path]:
                del self.values[known]
        if not self._prefix and (path[0] in self.keys or len(self.keys) < KEYS_MAX):
            self.keys[path[0]] = b""
        if path in self._watched:
            self._holding.append(_Held(path, MEMBER_BYTES_MAX, at))
        elif not self._prefix and path[0] in self.keys:
            self._holding.append(_Held(path, KEY_VALUE_BYTES_MAX, at))

    def _end_member(self, end: int) -> int:
        """The value of the member `_path` ended before `end`; where the next state reads on."""
        path = self._path
        if self._holding and self._holding[-1].path == path:
            held = self._holding.pop()
            held.add(self._piece, end)
            if held.text is not None:
                text = bytes(held.text)
                if path in self._watched:
                    self.values[path] = text
                if len(path) == 1 and path[0] in self.keys and len(text) <= KEY_VALUE_BYTES_MAX:
                    self.keys[path[0]] = text
        self._state = MemberScan._after_value
        return end

    def _leave_object(self, end: int) -> int:
        if not self._prefix:
            self.complete = True
            return end
        self._path = self._prefix
        self._prefix = self._prefix[:-1]
        return self._end_member(end)


def _after_space(data: bytes, at: int) -> int:
    match = _SPACE.match(data, at)
    return match.end() if match else at


def _name(text: bytes) -> str | None:
    """A key, its escapes resolved; None if it has no proper text."""
    try:
        return msgspec.json.decode(b'"%b"' % text, type=str)
    except (msgspec.MsgspecError, ValueError):
        return None
