"""How somebody else reads the same bytes: h11, strict, at the far end of either side.

Two parsers that read one message differently are how requests are smuggled. The proxy's is llhttp with rules of its
own; h11 was written by other people from the RFC alone, so what both agree on is what the message says.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field

import h11

Pairs = list[tuple[bytes, bytes]]

MAX_HEAD_BYTES = 1024 * 1024


@dataclass
class Message:
    """One request as it was read: `fields` and `trailers` in order and in their own case, values without white space
    around them."""

    method: bytes
    target: bytes
    fields: Pairs
    body: bytes = b""
    trailers: Pairs = field(default_factory=list)


@dataclass
class Answer:
    """One final answer as it was read. `whole` is False if the connection ended before the answer did."""

    status: int
    reason: bytes
    fields: Pairs
    body: bytes = b""
    trailers: Pairs = field(default_factory=list)
    whole: bool = False

    def get(self, name: bytes) -> bytes | None:
        """The first value of the field with this lower-case name."""
        return next((value for key, value in self.fields if key.lower() == name), None)


def answer_to(message: Message) -> bytes:
    """The content that :class:`RequestReader` answers with: it depends on the request and on nothing else."""
    what = b"%b %b %r %b %r" % (message.method, message.target, message.fields, message.body, message.trailers)
    return b"%d bytes, %08x" % (len(message.body), zlib.crc32(what))


class RequestReader:
    """An HTTP/1.1 server that reads strictly and answers each request when it has all of it.

    :ivar requests: the complete ones.
    :ivar begun: the head of one that is not complete.
    :ivar error: why it reads no further.
    """

    def __init__(self) -> None:
        self._connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
        self.requests: list[Message] = []
        self.begun: Message | None = None
        self.error: str | None = None

    def read(self, data: bytes) -> bytes:
        """Take what came; returns what to answer."""
        if self.error is not None:
            return b""
        out = b""
        try:
            if data:
                self._connection.receive_data(data)
            while True:
                event = self._connection.next_event()
                if isinstance(event, h11.Request):
                    self.begun = Message(event.method, event.target, _pairs(event.headers))
                elif isinstance(event, h11.Data) and self.begun is not None:
                    self.begun.body += bytes(event.data)
                elif isinstance(event, h11.EndOfMessage) and self.begun is not None:
                    self.begun.trailers = _pairs(event.headers)
                    out += self._answer()
                else:
                    return out
        except h11.RemoteProtocolError as error:
            self.error = str(error)
            return out

    def _answer(self) -> bytes:
        message = self.begun
        assert message is not None
        self.requests.append(message)
        self.begun = None
        if message.method == b"CONNECT":
            self.error = "what follows is no HTTP"
            return b""
        content = answer_to(message)
        connection = self._connection
        head = h11.Response(status_code=200, headers=[("Content-Length", str(len(content)))], reason=b"OK")
        out = connection.send(head) or b""
        if message.method != b"HEAD":
            out += connection.send(h11.Data(data=content)) or b""
        out += connection.send(h11.EndOfMessage()) or b""
        if _goes_on(connection):
            connection.start_next_cycle()
        else:
            self.error = "the connection ends after this request"
        return out


def read_requests(data: bytes) -> RequestReader:
    """What h11 makes of `data`."""
    reader = RequestReader()
    reader.read(data)
    return reader


def read_answers(data: bytes, methods: list[bytes], closed: bool) -> tuple[list[Answer], str | None]:
    """The answers to requests with these methods, and why `data` cannot be read further, if it cannot.

    :param closed: whether the connection has ended, in peace.
    """
    answers: list[Answer] = []
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_BYTES)
    connection.receive_data(data)
    if closed:
        connection.receive_data(b"")
    try:
        for method in methods:
            if connection.states != {h11.CLIENT: h11.IDLE, h11.SERVER: h11.IDLE}:
                break
            request = h11.Request(method=method, target=b"/", headers=[("Host", "x")])
            connection.send(request)
            connection.send(h11.EndOfMessage())
            if not _read_answer(connection, answers):
                break
            if _goes_on(connection):
                connection.start_next_cycle()
    except h11.RemoteProtocolError as error:
        return answers, str(error)
    rest = connection.trailing_data[0]
    return answers, f"{len(rest)} bytes more than the answers" if rest else None


def _read_answer(connection: h11.Connection, answers: list[Answer]) -> bool:
    while True:
        event = connection.next_event()
        if isinstance(event, h11.Response):
            answers.append(Answer(event.status_code, event.reason, _pairs(event.headers)))
        elif isinstance(event, h11.Data):
            answers[-1].body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            answers[-1].trailers = _pairs(event.headers)
            answers[-1].whole = True
            return True
        elif not isinstance(event, h11.InformationalResponse):
            return False


def _goes_on(connection: h11.Connection) -> bool:
    return connection.our_state is h11.DONE and connection.their_state is h11.DONE


def _pairs(headers: object) -> Pairs:
    raw_items = getattr(headers, "raw_items", None)
    return list(raw_items()) if raw_items is not None else [(bytes(n), bytes(v)) for n, v in headers]  # type: ignore[attr-defined]


def lines_are_clean(heard: bytes) -> bool:
    """Whether no line of an answer's head, and of the interim ones before it, holds a NUL, a bare CR or a bare LF."""
    head, _, rest = heard.partition(b"\r\n\r\n")
    clean = not any(byte in line for line in head.split(b"\r\n") for byte in (b"\0", b"\r", b"\n"))
    return clean and (not head.startswith(b"HTTP/1.1 1") or lines_are_clean(rest))
