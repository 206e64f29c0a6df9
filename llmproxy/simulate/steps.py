"""From the events of an answer to what is done on the connection: codings, sizes and faults, in order.

The steps of an answer are an iterator of bytes to write and of `Act`s. The order of the pipeline is the
meaning of the grammar: `error_event` and `silence` count events; `encoding` works on events; `cut`, `reset`
and `garbage` count bytes after the coding; `chunk` sizes the writes at last. The rule kept here: nothing is
made before it is asked for, so a body of any size costs no memory.
"""

import enum
import importlib
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from llmproxy.simulate.served import Served
from llmproxy.simulate.wishes import Wishes

GARBAGE: Final = b"\x16\x03\x01 this is not HTTP \xff\xfe\r\n\r\n"
"""What is written in place of HTTP: no status line, and no chunk size."""
WRITE_BYTES: Final = 64 * 1024
"""A whole body is written in pieces of this size, so that a slow reader can hold it back."""


class Act(enum.Enum):
    """What ends an answer before its end."""

    SILENCE = "write nothing more and keep the connection open"
    CUT = "close the connection"
    RESET = "reset the connection"
    GARBAGE = "write bytes that are not HTTP, then close"


Step = bytes | Act


class CodingUnavailable(Exception):
    """A content coding whose package is not installed here. Its text is a sentence."""


class _Coder:
    """A content coding: `code` codes a piece that can be decoded at once; `end` ends the body."""

    def __init__(self, code: Callable[[bytes], bytes], end: Callable[[], bytes]) -> None:
        self.code = code
        self.end = end


def _zlib_coder(wbits: int) -> _Coder:
    stream = zlib.compressobj(wbits=wbits)
    return _Coder(lambda data: stream.compress(data) + stream.flush(zlib.Z_SYNC_FLUSH), stream.flush)


def _package(name: str, coding: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise CodingUnavailable(f"encoding={coding} needs the Python package {name}, which is not installed.") from None


def coder_for(coding: str) -> _Coder:
    """A fresh coder for a content coding (RFC 9110 section 8.4.1). Raises `CodingUnavailable`."""
    if coding == "gzip":
        return _zlib_coder(31)
    if coding == "deflate":
        return _zlib_coder(15)  # RFC 9110 8.4.1.2: the zlib format, not bare deflate
    if coding == "br":
        brotli = _package("brotli", coding).Compressor(quality=4)
        return _Coder(lambda data: brotli.process(data) + brotli.flush(), brotli.finish)
    zstandard = _package("zstandard", coding)
    zstd = zstandard.ZstdCompressor().compressobj()
    block = zstandard.COMPRESSOBJ_FLUSH_BLOCK
    return _Coder(lambda data: zstd.compress(data) + zstd.flush(block), zstd.flush)


def whole(body: bytes, coding: str | None) -> bytes:
    """A whole body, coded. Raises `CodingUnavailable`."""
    if coding is None:
        return body
    coder = coder_for(coding)
    return coder.code(body) + coder.end()


def steps_of_events(
    events: Iterator[bytes], wishes: Wishes, error_event: Callable[[int], bytes], served: Served | None = None
) -> Iterator[Step]:
    """The steps of a streamed answer. Raises `CodingUnavailable` now, not later."""
    coder = None if wishes.encoding is None else coder_for(wishes.encoding)
    steps = _stopped(events if served is None else served.watched(events), wishes, error_event)
    if wishes.crlf:
        steps = (_crlf(step) if isinstance(step, bytes) else step for step in steps)
    steps = _coded(steps, coder)
    return _sized(_broken(steps if served is None else _marked(steps, served), wishes), wishes)


def steps_of_body(body: bytes, wishes: Wishes, served: Served | None = None) -> Iterator[Step]:
    """The steps of a body that is whole, and coded already."""
    if served is not None:
        served.whole(len(body))
    pieces: Iterable[Step] = (body[at : at + WRITE_BYTES] for at in range(0, len(body), WRITE_BYTES))
    if wishes.silence is not None:
        # The whole body is one event: silence=0 keeps it back, a larger number changes nothing.
        pieces = [Act.SILENCE] if wishes.silence == 0 else pieces
    return _sized(_broken(iter(pieces), wishes), wishes)


def _stopped(events: Iterator[bytes], wishes: Wishes, error_event: Callable[[int], bytes]) -> Iterator[Step]:
    """The events up to the one after which the provider fails or falls silent."""
    sent = 0
    while True:
        if wishes.error_event == sent:
            yield error_event(sent)
            return
        if wishes.silence == sent:
            yield Act.SILENCE
            return
        event = next(events, None)
        if event is None:
            return
        yield event
        sent += 1


def _crlf(event: bytes) -> bytes:
    """The same event, its lines ended by CRLF. JSON text has no line ends of its own that would be touched."""
    return event.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")


def _marked(steps: Iterator[Step], served: Served) -> Iterator[Step]:
    """The same steps. Each is pulled alone, so what is made by then is what ends with it."""
    end_bytes = 0
    for step in steps:
        if isinstance(step, bytes):
            end_bytes += len(step)
            served.mark(end_bytes)
        yield step


def _coded(steps: Iterator[Step], coder: _Coder | None) -> Iterator[Step]:
    if coder is None:
        yield from steps
        return
    for step in steps:
        yield coder.code(step) if isinstance(step, bytes) else step
    yield coder.end()


def _broken(steps: Iterator[Step], wishes: Wishes) -> Iterator[Step]:
    """The steps up to the body byte at which the connection breaks; the earliest fault wins."""
    faults = [(wishes.cut, Act.CUT), (wishes.reset, Act.RESET), (wishes.garbage, Act.GARBAGE)]
    places = [(place, act.name, act) for place, act in faults if place is not None and place >= 0]
    if not places:
        yield from steps
        return
    left, _, act = min(places)
    if left == 0:
        yield act
        return
    for step in steps:
        if isinstance(step, bytes) and len(step) >= left:
            yield step[:left]
            yield act
            return
        if isinstance(step, bytes):
            left -= len(step)
        yield step


def _sized(steps: Iterator[Step], wishes: Wishes) -> Iterator[Step]:
    """The same bytes in writes of `chunk` bytes each, whatever the events were."""
    size = wishes.chunk
    if size is None:
        yield from steps
        return
    held = b""
    for step in steps:
        if not isinstance(step, bytes):
            if held:
                yield held
            yield step
            return
        held += step
        at = 0
        while len(held) - at >= size:
            yield held[at : at + size]
            at += size
        held = held[at:]
    if held:
        yield held
