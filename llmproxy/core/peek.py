r"""A look at a JSON request body while it passes: model, stream, user, max_tokens. The body itself is never
changed.

The rule: every byte is looked at once, whatever pieces the body comes in, and what is kept is bounded. So a
    body of
any shape costs time in proportion to its length and a few KiB: nesting is a counter, not a recursion, and the
text of long strings is jumped over with `bytes.find`.

How it works: `BodyPeek` is a state machine. Its state is the method that reads on at the next byte. It
follows only the objects on a watched path (the top level, `metadata` where `metadata.user_id` is wanted); all
other values are skipped by counting brackets outside strings. Each piece is first blinded: `\\` and `\"`
become other characters of the same length, so that a quote that is left opens or closes a string. Names and
values of interest are taken from the piece as it came, and JSON-decoded, so that escapes mean what they mean.
Grammar: RFC 8259.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Mapping
from itertools import accumulate, islice
from types import MappingProxyType
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec

Path: TypeAlias = tuple[str, ...]
_State: TypeAlias = Callable[["BodyPeek", bytes, int], int]

_MODEL: Path = ("model",)
_STREAM: Path = ("stream",)
# Chat completions (old, new), Responses, Gemini. The first that is there counts.
_MAX_TOKENS: tuple[Path, ...] = (
    ("max_tokens",),
    ("max_completion_tokens",),
    ("max_output_tokens",),
    ("generationConfig", "maxOutputTokens"),
)
_TYPES = MappingProxyType({_STREAM: bool, **dict.fromkeys(_MAX_TOKENS, int)})
"""What a value must be to count; the rest are strings."""

_WATCHED = frozenset({_MODEL, _STREAM, *_MAX_TOKENS})
_ENTERED = frozenset({("generationConfig",)})

_MODEL_CHARACTERS_MAX = 256
_USER_CHARACTERS_MAX = 512
_TOKENS_MAX = 2**63 - 1
# A character is at most twelve bytes of JSON: a surrogate pair, each half written as \uXXXX. What is longer
# than this is longer than any name or value of interest, and is not held.
_HELD_BYTES_MAX = 12 * _USER_CHARACTERS_MAX
# An object with more members than this is no request to an LLM; reading on would cost more than it can tell.
_MEMBERS_MAX = 1024
# In a value of many short strings (a list of words) it is faster to count brackets for a whole block at once.
_MANY_STRINGS = 16
_BLOCK_BYTES = 16384
# Up to here a body that is whole in the first piece is decoded in one go, which is faster.
_ONE_GO_BYTES_MAX = 65536

_QUOTE, _COMMA, _COLON = b'",:'
_OPEN, _CLOSE, _OPEN_ARRAY = b"{}["
_SPACE = re.compile(rb"[ \t\r\n]*+")
_SCALAR = re.compile(rb"[-+.0-9A-Za-z]*+")
_BRACKET = re.compile(rb"[\[\]{}]")
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
# What a bracket adds to the depth, as a signed byte.
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")


_NO_FIELD_NAME = re.compile('[\x00-\x1f"\\\\\ud800-\udfff]')


class Seen(NamedTuple):
    """What a body says, as far as it is asked for: see :class:`BodyPeek`."""

    model: str | None
    stream: bool | None
    user: str | None
    max_tokens: int | None
    complete: bool


def look_at_whole(data: bytes, limit_bytes: int, user_path: Path = ("user",)) -> Seen:
    """What a body says that is all here. The same as a BodyPeek would see; a small one is decoded straight away."""
    decoder = _PLAIN.get(user_path)
    if decoder is not None and len(data) <= min(limit_bytes, _ONE_GO_BYTES_MAX):
        try:
            found: Any = decoder.decode(data)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            found = None  # no JSON, or another type than it should have: each value is looked at by itself
        if found is not None and found.entered is msgspec.UNSET and found.generationConfig is msgspec.UNSET:
            model = found.model
            user = None if user_path[1:] else found.user
            return Seen(
                model if model is None or len(model) <= _MODEL_CHARACTERS_MAX else None,
                found.stream,
                user if user is None or len(user) <= _USER_CHARACTERS_MAX else None,
                next(filter(_is_count, (found.max_tokens, found.max_completion_tokens, found.max_output_tokens)), None),
                True,
            )
    peek = BodyPeek(limit_bytes, user_path)
    peek.feed(data)
    return Seen(peek.model, peek.stream, peek.user, peek.max_tokens, peek.complete)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= _TOKENS_MAX


def _plain(user_path: Path) -> msgspec.json.Decoder[msgspec.Struct]:
    """Takes the members of a body that are looked for, unless one of them is an object that has to be entered."""
    fields: list[tuple[str, Any, Any]] = [
        ("model", str | None, None),
        ("stream", bool | None, None),
        *((name, int | None, None) for name in ("max_tokens", "max_completion_tokens", "max_output_tokens")),
        ("user", str | None, None),
        ("generationConfig", msgspec.Raw | msgspec.UnsetType, msgspec.UNSET),
        ("entered", msgspec.Raw | msgspec.UnsetType, msgspec.UNSET),
    ]
    other = "user" if user_path[1:] else "entered"  # the one that this path has not
    names = {"user": user_path[0], "entered": user_path[0], other: "(no member)"}
    return msgspec.json.Decoder(msgspec.defstruct("_Plain", fields, rename=names, gc=False))


class _Watch(NamedTuple):
    """What is looked for: the paths whose values are kept, those of the objects that are entered for them, and for
    each such object (the whole body is ``()``) two decoders that take only the members of interest: one that takes
    values of the right type only, and one that leaves every value as it is."""

    leaves: frozenset[Path]
    inner: frozenset[Path]
    typed: Mapping[Path, tuple[msgspec.json.Decoder[msgspec.Struct], tuple[Path, ...]]]
    decoders: Mapping[Path, msgspec.json.Decoder[msgspec.Struct]]


def _watch(user_path: Path) -> _Watch:
    leaves = _WATCHED | {user_path} if user_path else _WATCHED
    inner = _ENTERED.union(user_path[:end] for end in range(1, len(user_path)))
    typed: dict[Path, tuple[msgspec.json.Decoder[msgspec.Struct], tuple[Path, ...]]] = {}
    decoders: dict[Path, msgspec.json.Decoder[msgspec.Struct]] = {}
    if any(_NO_FIELD_NAME.search(name) for name in user_path):
        return _Watch(leaves, inner, typed, decoders)  # msgspec takes no such name: the scan does
    for prefix in ((), *inner):
        below = {path[len(prefix)] for path in leaves | inner if path[: len(prefix)] == prefix and path != prefix}
        names = {f"member_{number}": name for number, name in enumerate(sorted(below))}
        types = {
            attribute: msgspec.Raw if (*prefix, name) in inner else _TYPES.get((*prefix, name), str)
            for attribute, name in names.items()
        }
        # Raw is any value already; with `| None` it would take nothing but null.
        decoder = _decoder(
            names,
            {attribute: kind if kind is msgspec.Raw else kind | None for attribute, kind in types.items()},
        )
        typed[prefix] = decoder, tuple((*prefix, name) for name in names.values())
        decoders[prefix] = _decoder(names, dict.fromkeys(names, msgspec.Raw))
    return _Watch(leaves, inner, MappingProxyType(typed), MappingProxyType(decoders))


def _decoder(names: Mapping[str, str], types: Mapping[str, Any]) -> msgspec.json.Decoder[msgspec.Struct]:
    fields = [(attribute, types[attribute] | msgspec.UnsetType, msgspec.UNSET) for attribute in names]
    return msgspec.json.Decoder(msgspec.defstruct("_Members", fields, rename=names, gc=False))


_WATCH: Final[Mapping[Path, _Watch]] = MappingProxyType(
    {path: _watch(path) for path in ((), ("user",), ("metadata", "user_id"))}
)
"""Worked out once for the paths that the built-in providers have."""
_PLAIN: Final = MappingProxyType({path: _plain(path) for path in _WATCH if path})


class BodyPeek:
    """Looks for a few fields of a JSON object in a body that arrives in pieces.

    limit_bytes: look at no more than this many bytes.
    user_path: the keys that lead to the user's id, as `Provider.user_path`; () for none.

    After each `feed`:
    done: nothing more to look at: the object ended, the limit is reached, or it is not JSON that we
    understand (or has over a thousand members).
    complete: the end of the object was seen, so that a field not found is not there.
    model, stream, user, max_tokens: what was found so far. Of a repeated key the last one counts, as in most
    JSON readers. Never raises.
    """

    __slots__ = (
        "_decoders",
        "_depth",
        "_escaped",
        "_held",
        "_in_text",
        "_inner",
        "_leaves",
        "_left",
        "_members_left",
        "_path",
        "_piece",
        "_prefix",
        "_state",
        "_typed",
        "_user_path",
        "_values",
        "complete",
        "done",
    )

    def __init__(self, limit_bytes: int, user_path: Path = ("user",)) -> None:
        self.done = limit_bytes <= 0
        self.complete = False
        self._user_path = user_path
        self._leaves, self._inner, self._typed, self._decoders = _WATCH.get(user_path) or _watch(user_path)
        self._left = limit_bytes
        self._members_left = _MEMBERS_MAX
        self._values: dict[Path, object] = {}
        self._prefix: Path = ()  # the watched object that we are in
        self._path: Path = ()  # of the member that we are at
        self._held: bytearray | None = None  # the key or value being read; None: too long, or of no interest
        self._depth = 0  # open brackets of the value being skipped
        self._in_text = False  # inside a string of the value being skipped
        self._escaped = False  # the last piece ended with a backslash that escapes the next byte
        self._piece = b""  # as it came, while it is looked at
        self._state: _State = BodyPeek._start  # a function, not a bound method: no cycle for the collector

    @property
    def model(self) -> str | None:
        """The model; None if not found, no string, or longer than 256 characters."""
        return self._string(_MODEL, _MODEL_CHARACTERS_MAX)

    @property
    def stream(self) -> bool | None:
        """True or False as asked; None if not found or no JSON boolean ("true" is not one)."""
        value = self._values.get(_STREAM)
        return value if isinstance(value, bool) else None

    @property
    def user(self) -> str | None:
        """The user's id at `user_path`; None if not found, no string, or longer than 512 characters."""
        return self._string(self._user_path, _USER_CHARACTERS_MAX)

    @property
    def max_tokens(self) -> int | None:
        """The bound on the answer's tokens, under any of its names; None if none is a whole number."""
        for path in _MAX_TOKENS:
            value = self._values.get(path)
            if type(value) is int and 0 <= value <= _TOKENS_MAX:
                return value
        return None

    def feed(self, data: bytes) -> bool:
        """Look at the next piece of the body. Returns `done`."""
        if self.done or not data:
            return self.done
        if self._state is BodyPeek._start and len(data) <= min(self._left, _ONE_GO_BYTES_MAX) and self._in_one_go(data):
            self.done = self.complete = True
            return True
        if self._in_text and self._is_text_alone(data):
            self._left -= len(data)
            return False
        self._piece = data[: self._left]
        self._left -= len(self._piece)
        blinded = self._blinded(self._piece)
        position = 0
        while position < len(blinded) and not self.done:
            position = self._state(self, blinded, position)
        self._piece = b""
        if self._left <= 0:
            self.done = True
        return self.done

    def _is_text_alone(self, data: bytes) -> bool:
        """Amid a long string, as an image or a document is one: two searches, and no more, for each piece of it."""
        return (
            self._state is BodyPeek._skip
            and len(data) < self._left
            and not self._escaped
            and b'"' not in data
            and b"\\" not in data
        )

    def finish(self) -> None:
        """The body has ended; what is not complete now never will be."""
        self.done = True

    # -- the fast way: a small body in one piece

    def _in_one_go(self, data: bytes) -> bool:
        if not self._decoders or not data[-4:].rstrip().endswith(b"}"):
            return False
        try:
            try:
                self._take_typed(data, ())
            except msgspec.ValidationError:
                # A value of another type than it should have: look at each by itself.
                self._values.clear()
                self._take_members(data, ())
        except (msgspec.MsgspecError, ValueError, RecursionError):
            # Cut, nested too deep for the decoder, or not JSON: the scan below decides what can be known.
            self._values.clear()
            return False
        return True

    def _take_typed(self, data: bytes | msgspec.Raw, prefix: Path) -> None:
        # The decoder skips at the speed of C what has no name here: a conversation is never made into objects.
        decoder, paths = self._typed[prefix]
        for path, value in zip(paths, msgspec.structs.astuple(decoder.decode(data)), strict=True):
            if value is msgspec.UNSET:
                continue
            if type(value) is not msgspec.Raw:
                self._values[path] = value
            elif bytes(value).lstrip()[:1] == b"{":
                self._take_typed(value, path)

    def _take_members(self, data: bytes, prefix: Path) -> None:
        found = self._decoders[prefix].decode(data)
        for attribute, name in zip(found.__struct_fields__, found.__struct_encode_fields__, strict=True):
            raw = getattr(found, attribute)
            if raw is msgspec.UNSET:
                continue
            path = (*prefix, name)
            value = bytes(raw).strip()
            if value[0] == _OPEN:
                if path in self._inner:
                    self._take_members(value, path)
            elif value[0] != _OPEN_ARRAY and path in self._leaves:
                self._keep(path, value)

    # -- the states: each reads the blinded piece from `at` and returns where the next one reads on

    def _start(self, data: bytes, at: int) -> int:
        at = _after_space(data, at)
        if at < len(data):
            self._expect(data[at] == _OPEN, BodyPeek._first_key)
        return at + 1

    def _first_key(self, data: bytes, at: int) -> int:
        at = _after_space(data, at)
        if at < len(data) and data[at] == _CLOSE:
            self._leave_object()
            return at + 1
        return self._next_key(data, at)

    def _next_key(self, data: bytes, at: int) -> int:
        at = _after_space(data, at)
        if at < len(data):
            self._held = bytearray()
            self._members_left -= 1
            self._expect(data[at] == _QUOTE and self._members_left >= 0, BodyPeek._key)
        return at + 1

    def _key(self, data: bytes, at: int) -> int:
        end = self._hold_string(data, at)
        if end < len(data):
            name = self._held_text()
            self._path = (*self._prefix, name) if isinstance(name, str) else ()
            if self._path in self._leaves or self._path in self._inner:
                self._forget(self._path)  # a repeated key: what came before no longer counts
            self._state = BodyPeek._colon
        return end + 1

    def _colon(self, data: bytes, at: int) -> int:
        at = _after_space(data, at)
        if at < len(data):
            self._expect(data[at] == _COLON, BodyPeek._value)
        return at + 1

    def _value(self, data: bytes, at: int) -> int:
        at = _after_space(data, at)
        if at == len(data):
            return at
        first = data[at]
        self._held = bytearray() if self._path in self._leaves else None
        if first == _QUOTE:
            self._state = BodyPeek._string_value
            return at + 1
        if first == _OPEN and self._path in self._inner:
            self._prefix = self._path
            self._state = BodyPeek._first_key
            return at + 1
        if first in b"{[":
            self._depth, self._in_text = 1, False
            self._state = BodyPeek._skip
            return at + 1
        self._expect(first in b"-0123456789tfn", BodyPeek._scalar)
        return at

    def _string_value(self, data: bytes, at: int) -> int:
        end = self._hold_string(data, at)
        if end < len(data):
            self._keep_held(b'"%b"')
            self._state = BodyPeek._after_value
        return end + 1

    def _scalar(self, data: bytes, at: int) -> int:
        match = _SCALAR.match(data, at)
        end = match.end() if match else at
        self._hold(at, end)
        if end < len(data):
            self._keep_held(b"%b")
            self._state = BodyPeek._after_value
        return end

    def _skip(self, data: bytes, at: int) -> int:
        """Go to the end of an array or object that is of no interest."""
        strings = exactly_until = 0
        while at < len(data):
            if self._in_text:
                end = data.find(b'"', at)
                if end < 0:
                    return len(data)
                self._in_text = False
                at = end + 1
            elif strings >= _MANY_STRINGS and at >= exactly_until:
                block = data[at : at + _BLOCK_BYTES]
                texts = block.split(b'"')
                if self._count_brackets(b"".join(texts[::2])) is None:
                    self._in_text = len(texts) % 2 == 0
                    at += len(block)
                else:
                    exactly_until = at + len(block)
            else:
                quote = data.find(b'"', at)
                end = len(data) if quote < 0 else quote
                closed_at = self._count_brackets(data[at:end])
                if closed_at is not None:
                    self._state = BodyPeek._after_value
                    return at + closed_at + 1
                self._in_text = quote >= 0
                strings += 1
                at = end + 1
        return at

    def _after_value(self, data: bytes, at: int) -> int:
        at = _after_space(data, at)
        if at < len(data):
            if data[at] == _CLOSE:
                self._leave_object()
            else:
                self._expect(data[at] == _COMMA, BodyPeek._next_key)
        return at + 1

    # -- what the states share

    def _blinded(self, piece: bytes) -> bytes:
        """The piece without escaped backslashes and quotes: each is overwritten, so that positions stay."""
        if self._escaped:
            piece = b"_" + piece[1:]
            self._escaped = False
        if b"\\" in piece:
            piece = piece.replace(b"\\\\", b"__").replace(b'\\"', b"__")
            self._escaped = piece.endswith(b"\\")
        return piece

    def _expect(self, as_expected: bool, state: _State) -> None:
        """Go on with `state`, or give up: this is not JSON as we know it."""
        if as_expected:
            self._state = state
        else:
            self.done = True

    def _leave_object(self) -> None:
        if self._prefix:
            self._prefix = self._prefix[:-1]
            self._state = BodyPeek._after_value
        else:
            self.done = self.complete = True

    def _count_brackets(self, text: bytes) -> int | None:
        """Follow the depth through text without strings; where in it the skipped value ends, or None."""
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

    def _hold_string(self, data: bytes, at: int) -> int:
        """Hold what this piece has of a string; returns where its closing quote is, len(data) if not here."""
        quote = data.find(b'"', at)
        end = len(data) if quote < 0 else quote
        self._hold(at, end)
        return end

    def _hold(self, at: int, end: int) -> None:
        if self._held is not None:
            if len(self._held) + end - at > _HELD_BYTES_MAX:
                self._held = None
            else:
                self._held += self._piece[at:end]

    def _held_text(self) -> object:
        """The key just read, its escapes resolved; None if it is none that we look for."""
        if self._held is None:
            return None
        if b"\\" not in self._held:
            return self._held.decode("utf-8", "replace")
        return _decoded(b'"%b"' % bytes(self._held))

    def _keep_held(self, form: bytes) -> None:
        if self._held is not None:
            self._keep(self._path, form % bytes(self._held))

    def _keep(self, path: Path, text: bytes) -> None:
        if len(text) <= _HELD_BYTES_MAX + 2:
            self._values[path] = _decoded(text)

    def _forget(self, path: Path) -> None:
        for known in [each for each in self._values if each[: len(path)] == path]:
            del self._values[known]

    def _string(self, path: Path, characters_max: int) -> str | None:
        value = self._values.get(path)
        return value if isinstance(value, str) and len(value) <= characters_max else None


def _after_space(data: bytes, at: int) -> int:
    match = _SPACE.match(data, at)
    return match.end() if match else at


def _decoded(text: bytes) -> object:
    """The JSON value of a string or scalar; None if it has none: bad UTF-8, a lone surrogate, no number."""
    try:
        return msgspec.json.decode(text)
    except (msgspec.MsgspecError, ValueError):
        return None
