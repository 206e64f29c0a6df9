"""The frames of an AWS event stream (application/vnd.amazon.eventstream), from a body that arrives in pieces.

A frame, numbers big-endian: 4 bytes total length, 4 bytes length of the headers, CRC-32 of these 8; the headers; the
payload; CRC-32 of all before. A header: 1 byte length of the name, the name, 1 byte type, the value. Source: "Event
stream encoding" of the Amazon Transcribe developer guide, and the specification application/vnd.amazon.eventstream of
Smithy 2.0.

The rule: a frame whose checksums are not right ends the reading, because nothing after it can be told apart. A frame
longer than FRAME_BYTES_MAX is passed over by its length, not kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from struct import Struct, error
from types import MappingProxyType
from typing import Final, NamedTuple
from zlib import crc32

import msgspec

from llmproxy.core.reading.events import Item, LargeEvent, run_of

FRAME_BYTES_MAX: Final = 1024 * 1024
PRELUDE_BYTES: Final = 12
_CHECKSUM_BYTES: Final = 4

_PRELUDE: Final = Struct(">III")
_CHECKSUM: Final = Struct(">I")
_LENGTH: Final = Struct(">H")

_STRING: Final = 7
_BYTES: Final = 6
_FIXED_BYTES: Final[Mapping[int, int]] = MappingProxyType({0: 0, 1: 0, 2: 1, 3: 2, 4: 4, 5: 8, 8: 8, 9: 16})
"""The length of a value by its type: true, false, byte, short, integer, long, timestamp, UUID."""

BAD_CHECKSUM: Final = "bad_checksum"
BAD_FRAME: Final = "bad_frame"
CUT_FRAME: Final = "cut_frame"


class Frame(NamedTuple):
    """headers: those whose value is a string. payload: None if the frame was too long to keep. size_bytes: its own."""

    headers: Mapping[str, str]
    payload: bytes | None
    size_bytes: int


def is_prelude(data: bytes) -> bool:
    """Whether these bytes begin as a frame does: with two lengths and their checksum. Needs PRELUDE_BYTES."""
    return len(data) >= PRELUDE_BYTES and _CHECKSUM.unpack_from(data, 8)[0] == crc32(data[:8])


class FrameReader:
    """Takes frames apart. Never raises.

    trouble: why no more is read, BAD_CHECKSUM or BAD_FRAME; None while all is well.
    between_frames: no frame has begun that did not end.
    """

    __slots__ = ("_kept", "_skip_bytes", "trouble")

    def __init__(self) -> None:
        self.trouble: str | None = None
        self._kept = bytearray()  # of the frame that has begun
        self._skip_bytes = 0  # of a frame that is too long to keep

    @property
    def between_frames(self) -> bool:
        return not self._kept and not self._skip_bytes

    def feed(self, data: bytes) -> list[Frame]:
        """The next piece of the body. Returns the frames that it completes, in order."""
        if self.trouble is not None:
            return []
        kept, frames, at = self._kept, list[Frame](), 0
        if self._skip_bytes:
            at = min(self._skip_bytes, len(data))
            self._skip_bytes -= at
            data, at = data[at:], 0
        kept += data
        while len(kept) - at >= PRELUDE_BYTES:
            total, headers_bytes, checksum = _PRELUDE.unpack_from(kept, at)
            if checksum != crc32(kept[at : at + 8]):
                self.trouble = BAD_CHECKSUM
                break
            if total < PRELUDE_BYTES + headers_bytes + _CHECKSUM_BYTES:
                self.trouble = BAD_FRAME
                break
            if total > FRAME_BYTES_MAX:
                frames.append(Frame({}, None, total))
                here = min(total, len(kept) - at)
                at += here
                self._skip_bytes = total - here
                continue
            if len(kept) - at < total:
                break
            frame = self._frame(bytes(kept[at : at + total]), headers_bytes)
            if frame is None:
                break
            frames.append(frame)
            at += total
        if self.trouble is not None:
            kept.clear()
        else:
            del kept[:at]
        return frames

    def _frame(self, data: bytes, headers_bytes: int) -> Frame | None:
        body_end = len(data) - _CHECKSUM_BYTES
        if _CHECKSUM.unpack_from(data, body_end)[0] != crc32(data[:body_end]):
            self.trouble = BAD_CHECKSUM
            return None
        headers_end = PRELUDE_BYTES + headers_bytes
        headers = _headers(data[PRELUDE_BYTES:headers_end])
        if headers is None:
            self.trouble = BAD_FRAME
            return None
        return Frame(headers, data[headers_end:body_end], len(data))


def _headers(data: bytes) -> dict[str, str] | None:
    """The headers whose value is a string; None if they are not as they must be."""
    found: dict[str, str] = {}
    at = 0
    try:
        while at < len(data):
            name_end = at + 1 + data[at]
            name, kind = data[at + 1 : name_end], data[name_end]
            at = name_end + 1
            if kind in (_STRING, _BYTES):
                value_end = at + 2 + _LENGTH.unpack_from(data, at)[0]
                if kind == _STRING:
                    found[name.decode()] = data[at + 2 : value_end].decode()
                at = value_end
            else:
                at += _FIXED_BYTES[kind]
    except (IndexError, KeyError, ValueError, error):
        return None
    return found if at == len(data) else None


class AWSEventStream:
    """The container: gives each frame as one JSON object, whose only member has the event's type as its name.

    So `{"metadata": {...}}` for an event, `{"exception": {"type": "throttlingException"}}` for an exception or error.
    Source: "Event stream encoding", `:message-type` and its companions.
    """

    __slots__ = ("_frames", "trouble")

    done = False

    def __init__(self) -> None:
        self._frames = FrameReader()
        self.trouble: str | None = None

    def feed(self, data: bytes) -> list[Item]:
        """The next piece of the body. Returns the events of the frames that it completes."""
        items: list[Item] = []
        texts: list[bytes] = []
        for headers, payload, size_bytes in self._frames.feed(data):
            if payload is not None:
                texts.append(_event(headers, payload))
                continue
            if texts:
                items.append(run_of(texts))
                texts = []
            items.append(LargeEvent({}, {}, size_bytes))
        if texts:
            items.append(run_of(texts))
        self.trouble = self._frames.trouble
        return items

    def finish(self) -> list[Item]:
        """The body is over."""
        if self.trouble is None and not self._frames.between_frames:
            self.trouble = CUT_FRAME
        return []


def _event(headers: Mapping[str, str], payload: bytes) -> bytes:
    kind = headers.get(":message-type", "event")
    if kind == "event":
        return b"{%b:%b}" % (msgspec.json.encode(headers.get(":event-type", "")), payload.strip() or b"null")
    name = headers.get(":exception-type") or headers.get(":error-code") or kind
    return msgspec.json.encode({"exception": {"type": name}})
