"""A proxy with what stands on both sides of it, and the words that the tests speak."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

from tests.live.proxy import Proxy
from tests.live.upstream import Upstream
from tests.live.wire import Message, Wire

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


def request(
    method: bytes, target: bytes, *lines: bytes, body: bytes | None = None, host: bytes = b"proxy.test"
) -> bytes:
    """A request's bytes; with a ``body`` its length is the last header line."""
    if body is not None:
        lines = (*lines, b"Content-Length: %d" % len(body))
    head = b"\r\n".join((b"%b %b HTTP/1.1" % (method, target), b"Host: " + host, *lines))
    return head + b"\r\n\r\n" + (body or b"")


def get(target: bytes = b"/openai/v1/models", *lines: bytes) -> bytes:
    """A GET request."""
    return request(b"GET", target, *lines)


def post(body: bytes = b"{}", target: bytes = b"/openai/v1/chat/completions", *lines: bytes) -> bytes:
    """A POST request."""
    return request(b"POST", target, *lines, body=body)


STREAM = post(b'{"model":"m","stream":true}')
"""A request for a stream of events."""


def answer(*lines: bytes, status: bytes = b"200 OK", body: bytes | None = b"ok") -> bytes:
    """An answer's bytes; with a ``body`` its length is the last header line."""
    if body is not None:
        lines = (*lines, b"Content-Length: %d" % len(body))
    return b"\r\n".join((b"HTTP/1.1 " + status, *lines)) + b"\r\n\r\n" + (body or b"")


def pieces(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    """``data`` cut at these places (modulo its length)."""
    edges = [0, *sorted({cut % (len(data) + 1) for cut in cuts}), len(data)]
    return [data[start:end] for start, end in pairwise(edges) if start < end]


@dataclass
class Stage:
    """A proxy and the upstream behind it; a test makes the callers."""

    proxy: Proxy
    upstream: Upstream
    callers: list[Wire] = field(default_factory=list)

    def caller(self, receive_buffer_bytes: int = 0) -> Wire:
        """A new connection to the proxy; it is closed when the test is over."""
        wire = self.proxy.connect(receive_buffer_bytes=receive_buffer_bytes)
        self.callers.append(wire)
        return wire

    def sends(self, *data: bytes) -> tuple[Wire, Wire]:
        """A new caller that has sent ``data``, and the upstream's connection on which it comes."""
        caller = self.caller()
        caller.send(*data)
        return caller, self.upstream.receive()

    def arrives(self, *data: bytes) -> Message:
        """What the upstream gets when a caller sends ``data``; the upstream then answers with OK."""
        return self.exchange(data, (OK,))[0]

    def returns(self, *data: bytes, ask: bytes = b"", bodyless: bool = False) -> Message:
        """What a caller gets when the upstream answers with ``data``."""
        return self.exchange((ask or get(),), data, bodyless=bodyless)[1]

    def exchange(
        self, ask: Iterable[bytes], reply: Iterable[bytes], *, bodyless: bool = False
    ) -> tuple[Message, Message]:
        """The request as it reached the upstream, and the answer as it reached the caller."""
        caller, upstream = self.sends(*ask)
        arrived = upstream.read_message()
        upstream.send(*reply)
        returned = caller.read_message(bodyless=bodyless)
        assert caller.is_quiet(0.0) or caller.ended or returned.value("connection") == b"close"
        return arrived, returned

    def is_served(self) -> bool:
        """Whether a request of another caller is answered now."""
        return self.exchange((get(),), (OK,))[1].body == b"ok"

    def clear(self) -> None:
        """End every connection on both sides."""
        for wire in self.callers:
            wire.close()
        self.callers.clear()
        self.upstream.hang_up()


ADDED = (b"Access-Control-Allow-Origin: *", b"X-LLM-Proxy-Request-ID: ", b"Server-Timing: proxy;dur=")
"""The lines that every answer gets, with their beginnings."""


def without_added(message: Message) -> list[bytes]:
    """The header lines of an answer without what the proxy adds to every one, which must be there once."""
    for start in ADDED:
        assert sum(line.startswith(start) for line in message.lines) == 1, message.lines
    return [line for line in message.lines if not line.startswith(ADDED)]


def error_of(message: Message) -> tuple[int, bytes | None, bytes | None]:
    """Status, class and source of an error of ours."""
    return message.status, message.value("x-llm-proxy-error-class"), message.value("x-llm-proxy-error-source")


def id_of(message: Message) -> str:
    """The proxy's id of an answer."""
    return (message.value("x-llm-proxy-request-id") or b"").decode()
