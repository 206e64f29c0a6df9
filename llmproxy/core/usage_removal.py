r"""Taking out of an OpenAI-shaped stream what is in it because the proxy asked for its usage: `UsageRemoval`.

With `include_usage` a stream has one more chunk, with empty `choices` and the usage, and every other chunk has one more
member, `"usage": null`. The rule: the caller gets, byte for byte, what the provider would have sent without; whatever
is in doubt stays. So this stays in:

* a usage object in a chunk that has choices: some providers (xAI among them) send it asked or not, and it cannot be
  told which. A caller that gets too much passes over it; one that gets too little would miss what it had before.
* empty choices without a usage object, as Azure's first chunk has: only its `"usage": null` goes.
* an empty chunk that carries an error, and what is no JSON.

How it works. There is a quick way, which is proved, and an exact one for everything else. An event that is one line
`data: {...}` ends with the brace that closes its object. Read backwards from there, `,"usage":null` directly before
that brace, or with nothing in between but members that are strings without a quote or a backslash inside, can only be
a member of this object: no quote on the way is an escaped one, so each begins or ends a string. The exact way asks
msgspec what the chunk says and finds the member's place (core/json_places.py).

Sources: https://platform.openai.com/docs/api-reference/chat/create (stream_options);
https://learn.microsoft.com/azure/ai-services/openai/concepts/content-streaming for Azure's first chunk; the HTML
standard, section 9.2.6, for events: lines end in LF, CR or CRLF, and an empty line ends an event.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from llmproxy.core.json_places import has_escaped_letters, key_of, places, readable, span

EVENT_BYTES_MAX: Final = 256 * 1024
"""An event that is not complete is held up to here. The chunk with the usage has some hundred bytes."""

TAIL_BYTES: Final = 1024
"""How much of the end of a larger event is held: there is its `"usage":null`, if it is where OpenAI writes it."""

_USAGE: Final = key_of("usage")
_BOM: Final = b"\xef\xbb\xbf"
# A CR at the very end may be the first half of a CRLF, so it ends nothing yet.
_EVENT_END: Final = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n|\n|\r(?=[^\n]))")
_REPEATED_MAX: Final = 8  # each costs a copy of the event
_REACH_BYTES: Final = 3  # how much of the end of one piece may belong to an end of an event that the next one completes
_DATA_LINE: Final = re.compile(rb"(?:\A|(?<=[\r\n]))data(?::\x20?+([^\r\n]*+))?(?=[\r\n]|\Z)")
_LINE: Final = re.compile(rb"[^\r\n]*+(?:\r\n|\n|\r)")

# What an event with a chunk may begin with; comments and empty lines may be before it.
_BEGINNINGS: Final = (b"data", b"event", b"id", b"retry", b":", b"\n", b"\r", _BOM)
_NO_OBJECT: Final = re.compile(rb"data:\x20?+[^{\s]")

# A byte is looked for as a number: in CPython 3.11 `b"\r" in data` is four times as slow.
_LF: Final = 10
_CR: Final = 13
_DONE: Final = b"data: [DONE]\n\n"
_BEGIN: Final = b"data: {"
_END: Final = b"}\n\n"
_NULL_MEMBER: Final = b',"usage":null'
_NULL_END: Final = b',"usage":null}\n\n'
_BETWEEN: Final = b"}\n\ndata: {"
_NULL_BETWEEN: Final = _NULL_MEMBER + _BETWEEN
_PADDING: Final = b',"obfuscation":"'
_PADDING_END: Final = b'"}\n\n'
_NULL_AND_PADDING: Final = _NULL_MEMBER + _PADDING
_TAIL_FORM: Final = rb'(?:,"[^"\\\r\n]*+":"[^"\\\r\n]*+")*+\}'
_tail = re.compile(_TAIL_FORM + rb"\n\n").match
_LARGE_TAIL: Final = re.compile(rb',"usage":null(' + _TAIL_FORM + rb"[\r\n]*)\Z")


class _Chunk(msgspec.Struct, gc=False):
    usage: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    choices: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    error: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_CHUNK: Final = msgspec.json.Decoder(_Chunk)


class UsageRemoval:
    """Takes the body of one stream, without content coding and transfer coding, in any pieces.

    removed: how many chunks were taken out.
    trouble: None, or the first thing that kept something in which should have been taken out: "large_event" (more than
        EVENT_BYTES_MAX, and its usage is not near its end), "repeated_key", "usage_across_lines" (the member is split
        over two lines of data).
    """

    __slots__ = ("_begun", "_held", "_large", "_other", "removed", "trouble")

    def __init__(self) -> None:
        self.removed = 0
        self.trouble: str | None = None
        self._begun = False  # past the first event, which may have a byte order mark before it
        self._held = bytearray()  # of an event whose end has not come
        self._large = False  # the beginning of that event has been given away, because it is too large
        self._other = False  # likewise, because it shows that the event is no chunk: all of it passes

    def feed(self, data: bytes) -> bytes:
        """The next piece. Returns what the caller is to get now; b"" is nothing yet."""
        if self._held or self._other:
            return self._exactly(data)
        # Most pieces are one event of one line, with the member at the end, or before the padding.
        if data[-16:] == _NULL_END:
            rest = data[:-16]
            if rest[:7] == _BEGIN and _CR not in rest:
                if _LF not in rest:
                    self._begun = True
                    return rest + _END
                events = rest.split(_NULL_BETWEEN)
                if _LF not in b"".join(events):
                    self._begun = True
                    return _BETWEEN.join(events) + _END
        else:
            rest, _, padding = data.rpartition(_NULL_AND_PADDING)
            if (
                rest[:7] == _BEGIN
                and _LF not in rest
                and _CR not in rest
                and padding[-4:] == _PADDING_END
                and padding[:-4].isalnum()
            ):
                self._begun = True
                return rest + _PADDING + padding
        quick = _quickly(data)
        if quick is None:
            return self._exactly(data)
        self._begun = True
        return quick

    def finish(self) -> bytes:
        """The stream has ended, or was cut. Returns what was held; an event that is whole is still looked at."""
        event = bytes(self._held)
        if not self._other:
            event = self._end_of_large(event) if self._large else self._event(event)
        self._held.clear()
        return event

    def give_up(self) -> bytes:
        """What is held, as it came: where `feed` or `finish` failed, it is what came before that call."""
        held = bytes(self._held)
        self._held.clear()
        return held

    def _exactly(self, data: bytes) -> bytes:
        held = self._held
        held_before = len(held)
        look_from = max(0, held_before - _REACH_BYTES)
        held += data
        ends = [match.end() for match in _EVENT_END.finditer(held, look_from)]
        if not ends:
            return self._give_unended()
        last = ends[-1]
        whole = bytes(held[:last])
        del held[:last]
        try:
            given = self._given(whole, ends, len(whole) == len(data))
        except Exception:
            held[:0] = whole
            del held[held_before:]
            raise
        self._begun = True
        if held:
            given.append(self._give_unended())
        return b"".join(given)

    def _given(self, whole: bytes, ends: list[int], was_tried: bool) -> list[bytes]:
        """What stays of events that end there. was_tried: they came as one piece, for which the quick way was tried."""
        begin = 0
        given = []
        if self._large or self._other:
            begin = ends.pop(0)
            given.append(self._end_of_large(whole[:begin]) if self._large else whole[:begin])
            self._other = False
            self._begun = True
        quick = b"" if not ends else None if was_tried else _quickly(whole[begin:])
        if quick is not None:
            given.append(quick)
        else:
            for end in ends:
                given.append(self._event(whole[begin:end]))
                begin = end
                self._begun = True  # so that a byte order mark before the next one is none, as if it came by itself
        return given

    # -- one event

    def _event(self, event: bytes) -> bytes:
        """What stays of an event, its blank line included."""
        if b"usage" not in event and not has_escaped_letters(event):
            return event
        if not event.startswith(_BEGINNINGS):
            return event  # as it would have passed if it had come in pieces
        mark = 0 if self._begun or not event.startswith(_BOM) else len(_BOM)
        is_one_line = event[:7] == _BEGIN and event[-3:] == _END and _LF not in event[:-2] and _CR not in event
        if is_one_line:
            lines = [(6, event[6:-2])]
        else:
            lines = [(mark + found.start(1), found[1] or b"") for found in _DATA_LINE.finditer(event[mark:])]
        text = b"\n".join([line for _, line in lines])
        chunk = _chunk(text)
        if chunk is None or chunk.usage is msgspec.UNSET:
            return event
        usage = bytes(chunk.usage)
        if usage == b"null":
            return self._without_null(event, lines, text)
        if usage.startswith(b"{") and _is_empty(chunk.choices) and _is_null(chunk.error):
            self.removed += 1
            return b"" if is_one_line else event[:mark] + _beside(event[mark:])
        return event

    def _without_null(self, event: bytes, lines: list[tuple[int, bytes]], text: bytes) -> bytes:
        found = places(text, _USAGE)
        if len(found) > _REPEATED_MAX or any(not text.startswith(b"null", place.value) for place in found):
            self._note("repeated_key")
            return event
        for place in reversed(found):
            begin, end = span(text, place.key, place.value + 4)
            at = 0  # where in the text this line begins
            for index, (position, line) in enumerate(lines):
                if at <= begin and end <= at + len(line):
                    cut = position + begin - at
                    event = event[:cut] + event[cut + end - begin :]
                    lines[index] = (position, line[: begin - at] + line[end - at :])
                    text = text[:begin] + text[end:]
                    break
                at += len(line) + 1
            else:
                self._note("usage_across_lines")
        return event

    # -- an event that is not held

    def _give_unended(self) -> bytes:
        """What need not be held of an event whose end has not come."""
        held = self._held
        if self._large:
            return self._give_large()
        if not self._other and not _is_none_of_ours(held):
            return self._give_large() if len(held) > EVENT_BYTES_MAX else b""
        # Of its end so much stays as may belong to the empty line that ends it.
        self._other = True
        cut = len(held.rstrip(b"\r\n"))
        given = bytes(held[:cut])
        del held[:cut]
        return given

    def _give_large(self) -> bytes:
        """Give away all but the tail of an event that goes on."""
        held = self._held
        self._large = True
        cut = max(0, len(held) - TAIL_BYTES)
        given = bytes(held[:cut])
        del held[:cut]
        if _USAGE.literal in given:
            self._note("large_event")
        return given

    def _end_of_large(self, tail: bytes) -> bytes:
        """The end of an event whose beginning has been given away, with its blank line unless the stream was cut."""
        self._large = False
        found = _LARGE_TAIL.search(tail)
        if found is not None:
            return tail[: found.start()] + found[1]
        if _USAGE.literal in tail:
            self._note("large_event")
        return tail

    def _note(self, trouble: str) -> None:
        if self.trouble is None:
            self.trouble = trouble


def _is_none_of_ours(held: bytearray) -> bool:
    """Whether the beginning of an event shows that it is no chunk: it need not be held."""
    start = bytes(held[:8])
    if start.startswith(b"data:") and len(start) == 8:
        return _NO_OBJECT.match(start) is not None
    return not any(start.startswith(word) or word.startswith(start) for word in _BEGINNINGS)


def _quickly(data: bytes) -> bytes | None:
    """What stays of whole events that are all of the usual form; None: some are not."""
    if data[:7] != _BEGIN or _CR in data:
        return data if data == _DONE else None
    if data.find(_LF) == len(data) - 2 and data.endswith(_END):
        # Of a repeated key it is the last one that goes.
        begin = data.rfind(_NULL_MEMBER)
        if begin >= 0:
            end = begin + len(_NULL_MEMBER)
            return data[:begin] + data[end:] if _tail(data, end) else None
    elif not data.endswith(_END) or data.count(b"\n") != 2 * data.count(_BETWEEN) + 2:
        return None
    parts = data.split(_NULL_MEMBER)
    members = len(parts) - 1
    if data.count(b'"usage"') != members:
        return None
    # Where each event has its member there is none left that could be spelled with escapes.
    if 2 * members != data.count(b"\n") and has_escaped_letters(data):
        return None
    if len(parts) == 1:
        return data
    return b"".join(parts) if all(map(_tail, parts[1:])) else None


def _beside(event: bytes) -> bytes:
    """The lines of an event that is taken out which are not of it: comments, and empty lines before it."""
    lines = _LINE.findall(event)
    if lines and not lines[-1].strip(b"\r\n"):
        del lines[-1]  # the one that ends it
    return b"".join(line for line in lines if line[0] in b":\r\n")


def _chunk(text: bytes) -> _Chunk | None:
    try:
        try:
            return _CHUNK.decode(text)
        except (msgspec.DecodeError, ValueError):
            return _CHUNK.decode(readable(text))
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def _is_null(value: msgspec.Raw | msgspec.UnsetType) -> bool:
    return value is msgspec.UNSET or bytes(value) == b"null"


def _is_empty(choices: msgspec.Raw | msgspec.UnsetType) -> bool:
    if choices is msgspec.UNSET:
        return False
    text = bytes(choices)
    return text.startswith(b"[") and not text[1:-1].strip()
