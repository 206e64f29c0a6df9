"""A caller of the simulator without a socket: it sends real HTTP and reads the answer with a real parser."""

from __future__ import annotations

import json
from typing import Any

import httptools
from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from llmproxy.simulate import SimulatorRoot
from llmproxy.wire.channel import Channel
from llmproxy.wire.server import Site

NOON = 1_795_521_600.0
OPENAI = {"Authorization": "Bearer sk-test"}
ANTHROPIC = {"x-api-key": "sk-ant-test", "anthropic-version": "2023-06-01"}
GEMINI = {"x-goog-api-key": "AIza-test"}


class Transport(StringTransport):
    """Remembers whether the connection was reset or closed, and what is paused."""

    producer: Any
    aborted = False
    room_bytes: int | None = None
    """Where the caller does not read: how much is taken before the producer is paused."""

    def write(self, data: bytes) -> None:
        """Take the bytes; pause who writes them when there is no room."""
        super().write(data)
        if self.room_bytes is not None and len(self.value()) > self.room_bytes:
            self.producer.pauseProducing()

    def abortConnection(self) -> None:
        """A reset."""
        self.aborted = True


class Answer:
    """An answer, parsed as it came."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self.fields: list[tuple[str, str]] = []
        self.pieces: list[bytes] = []
        self.complete = False
        self.error: Exception | None = None
        self.status = 0
        parser = httptools.HttpResponseParser(self)
        self._parser = parser
        try:
            parser.feed_data(raw)
        except httptools.HttpParserError as error:
            self.error = error

    def on_header(self, name: bytes, value: bytes) -> None:
        """A field."""
        self.fields.append((name.decode().lower(), value.decode()))

    def on_headers_complete(self) -> None:
        """The head is whole."""
        self.status = self._parser.get_status_code()

    def on_body(self, data: bytes) -> None:
        """A piece of the body; with chunked framing, a chunk."""
        self.pieces.append(data)

    def on_message_complete(self) -> None:
        """The framing says that the body has ended."""
        self.complete = True

    @property
    def body(self) -> bytes:
        """The body so far."""
        return b"".join(self.pieces)

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    def field(self, name: str) -> str | None:
        """The first field of this name."""
        return next((value for known, value in self.fields if known == name), None)

    def events(self, end: bytes = b"\n\n") -> list[tuple[str, Any]]:
        """The server-sent events: name and data, the data parsed where it is JSON. Fails on a torn event."""
        found = []
        *blocks, rest = self.body.split(end)
        assert rest == b"", rest
        for block in blocks:
            name, data = "", b""
            for line in block.split(end[: len(end) // 2]):
                if line.startswith(b"event: "):
                    name = line[7:].decode()
                elif line.startswith(b"data: "):
                    data = line[6:]
                else:
                    raise AssertionError(line)
            found.append((name, json.loads(data) if data[:1] in b"{[" and data != b"[DONE]" else data.decode()))
        return found

    def data(self, end: bytes = b"\n\n") -> list[Any]:
        """The data of the events, without the last `[DONE]`."""
        return [data for _, data in self.events(end) if data != "[DONE]"]


class Call:
    """One connection with one request on it; `answer` is what has come so far."""

    def __init__(self, simulator: Simulator) -> None:
        self.clock = simulator.clock
        self.transport = Transport()
        self.channel = simulator.site.buildProtocol(None)
        self.channel.makeConnection(self.transport)

    def send(self, data: bytes) -> None:
        """The caller sends bytes."""
        self.channel.dataReceived(data)

    @property
    def answer(self) -> Answer:
        """What has come so far."""
        return Answer(self.transport.value())

    def leave(self) -> None:
        """The caller closes the connection."""
        self.channel.connectionLost(Failure(ConnectionLost()))

    @property
    def closed(self) -> bool:
        """Whether the simulator has closed the connection, in order."""
        return self.transport.disconnecting and not self.transport.aborted


class Simulator:
    """A simulator, its clock, and what calls it."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.clock.advance(NOON)
        # The connections have deadlines and a clock of their own, in which no time passes.
        self.site = Site(SimulatorRoot(self.clock), Clock())

    def run(self, seconds: float = 60.0) -> None:
        """Let time pass until nothing is due any more."""
        until = self.clock.seconds() + seconds
        while self.clock.getDelayedCalls() and self.clock.seconds() < until:
            self.clock.advance(0.01)

    def begin(self, line: str, body: object = None, headers: dict[str, str] | None = None, **more: str) -> Call:
        """Send a request: `line` is method and target; a dict body is JSON. No time passes."""
        call = Call(self)
        call.send(request(line, body, headers, **more))
        return call

    def ask(self, line: str, body: object = None, headers: dict[str, str] | None = None, simulate: str = "") -> Answer:
        """Send a request and wait for the whole answer."""
        wished = {"X-Simulate": simulate} if simulate else {}
        call = self.begin(line, body, (OPENAI if headers is None else headers) | wished)
        self.run()
        return call.answer

    def shown(self, name: str) -> Any:
        """What `/_simulator/NAME` says."""
        return self.ask(f"GET /_simulator/{name}", headers={}).json()


def request(line: str, body: object = None, headers: dict[str, str] | None = None, **more: str) -> bytes:
    """The bytes of a request."""
    content = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    fields = {"Host": "simulator.test"} | (headers or {}) | more
    if content or line.startswith("POST"):
        fields["Content-Length"] = str(len(content))
    head = f"{line} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return head.encode("latin-1") + b"\r\n" + content


def channels(simulator: Simulator) -> set[Channel]:
    """The open connections."""
    return simulator.site.channels
