"""The client side of HTTP/1.1: one connection to an upstream, and the answer that comes over it.

A connection carries one request at a time. Its life: idle -> sending and waiting -> receiving -> idle or closed.
It goes back to idle only if both messages ended as their framing said, the upstream did not ask for a close, and
not a byte came that nobody asked for; in every other case it is closed, because what such a connection says next
could be taken for the answer to somebody else's request.

The answer is a ``twisted.web`` ``IResponse`` with the raw header fields beside it. ``deliverBody`` gives the
pieces of the body, without framing, to any protocol. A protocol that has a method ``read_done`` is told after each
read of the socket that no more comes from this one, so that it can write once for each read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, cast

import httptools
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IConsumer, IProtocol, IPushProducer, IReactorTime, ITCPTransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone, ResponseFailed
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import UNKNOWN_LENGTH, IBodyProducer, IResponse
from zope.interface import implementer

from llmproxy.core import fields as f
from llmproxy.core import framing
from llmproxy.core.fields import Fields, Index
from llmproxy.core.framing import BodyFraming, FramingError
from llmproxy.wire.direct import Writer, quiet_check, writer_for

READ_BYTES: Final = 32 * 1024
MAX_HEAD_BYTES: Final = 64 * 1024
MAX_INTERIM_ANSWERS: Final = 16
MAX_EMPTY_BYTES: Final = 128 * 1024
"""How much may come within a body that is no body: trailers and chunk extensions."""

_NOT_IN_INTERIM: Final = f.HOP_BY_HOP | {b"content-length"}
_DONE: Final = Failure(ResponseDone())
_MAYBE_DONE: Final = Failure(PotentialDataLoss())


class UpstreamError(Exception):
    """The upstream did not give a usable answer. The text is for logs: no address, nothing the upstream sent."""


class NeverAnswered(UpstreamError):
    """The connection ended before the first byte of an answer.

    :ivar sent_bytes: how many bytes of the request had been handed to the socket.
    :ivar reused: whether the connection had served a request before.
    """

    def __init__(self, sent_bytes: int, reused: bool) -> None:
        super().__init__("the connection ended before an answer began")
        self.sent_bytes = sent_bytes
        self.reused = reused


class InvalidAnswer(UpstreamError):
    """What the upstream sent is not an HTTP/1.1 answer that can be relayed."""


class AnswerCut(UpstreamError):
    """The connection ended in the middle of an answer."""


class FirstByteTimeout(UpstreamError):
    """No answer began in time."""


class IdleTimeout(UpstreamError):
    """The answer stopped coming for too long."""


@dataclass(slots=True, repr=False)
class OutgoingRequest:
    """A request as it is to be written.

    :ivar head: the whole head as it is sent, framing included. Whoever makes it has checked that it is one.
    :ivar body: None for no body; one whose ``data`` attribute is not None is written in one piece with the head.
    :ivar chunked: whether the body's pieces are framed as chunks.
    :ivar on_interim: called with ``(status, reason, fields)`` for interim answers other than 100.
    """

    method: bytes
    head: bytes
    body: IBodyProducer | None = None
    chunked: bool = False
    on_interim: Callable[[int, bytes, Fields], None] | None = None

    def __repr__(self) -> str:
        """The method only: the head holds keys."""
        return f"<OutgoingRequest {self.method!r}>"


@implementer(IResponse, IPushProducer)
class Response:
    """An answer: its head, and the body while it comes. Also the producer of that body, until it has ended.

    :ivar fields: the raw header fields in order.
    :ivar index: the same as a look-up table.
    :ivar trailers: the raw trailer fields, once the body has ended.
    :ivar body: how the body ends.
    """

    previousResponse = None
    request: Any = None
    _protocol: IProtocol | None = None
    _read_done: Callable[[], None] | None = None
    _ended: Failure | None = None

    def __init__(
        self,
        connection: ClientConnection,
        is_http_1_1: bool,
        status: int,
        reason: bytes,
        fields: Fields,
        index: Index,
        body: BodyFraming,
    ) -> None:
        self.version = (b"HTTP", 1, 1 if is_http_1_1 else 0)
        self.code = status
        self.phrase = reason
        self.fields = fields
        self.index = index
        self.body = body
        self.length: object = UNKNOWN_LENGTH
        if body.kind == framing.LENGTH:
            self.length = body.length_bytes
        elif body.kind == framing.NONE:
            self.length = 0
        self.trailers: Fields = []
        self._connection: ClientConnection | None = connection
        self._early: list[bytes] = []

    @property
    def headers(self) -> Headers:
        """The header fields as twisted.web has them; made anew at each use."""
        headers = Headers()
        for name, value in self.fields:
            headers.addRawHeader(name, value)
        return headers

    def setPreviousResponse(self, response: IResponse) -> None:
        """There is none: redirects are handed to the caller."""
        raise NotImplementedError("redirects are not followed")

    def deliverBody(self, protocol: IProtocol) -> None:
        """Give the body to ``protocol``, whose transport is this object (an IPushProducer).

        Its ``connectionLost`` gets a Failure of ``ResponseDone``, of ``PotentialDataLoss`` (the body ended with the
        connection, in peace), or of ``ResponseFailed`` with an :class:`UpstreamError` among its reasons.
        """
        self._protocol = protocol
        self._read_done = getattr(protocol, "read_done", None)
        protocol.makeConnection(self)  # type: ignore[arg-type]
        early, self._early = self._early, []
        for data in early:
            protocol.dataReceived(data)
        if self._ended is not None:
            protocol.connectionLost(self._ended)
        elif early:
            self.resumeProducing()

    # -- from the connection ---------------------------------------------------------------------------------

    def body_received(self, data: bytes) -> None:
        """A piece of the body."""
        if self._protocol is None:
            self._early.append(data)
            self.pauseProducing()
        else:
            self._protocol.dataReceived(data)

    def read_done(self) -> None:
        """All of one read has been delivered."""
        if self._read_done is not None:
            self._read_done()

    def end(self, reason: Failure) -> None:
        """Nothing more comes. From here on this producer cannot touch the connection, which may serve another."""
        self._connection = self._read_done = None
        self._ended = reason
        protocol, self._protocol = self._protocol, None
        if protocol is not None:
            protocol.connectionLost(reason)

    # -- IPushProducer ---------------------------------------------------------------------------------------

    def pauseProducing(self) -> None:
        """Stop reading from the upstream."""
        if self._connection is not None:
            self._connection.pause_reading()

    def resumeProducing(self) -> None:
        """Read on."""
        if self._connection is not None:
            self._connection.resume_reading()

    def stopProducing(self) -> None:
        """The body is not wanted any more: drop the connection now, so that the upstream stops working for us."""
        if self._connection is not None:
            self._connection.abort()

    loseConnection = abortConnection = stopProducing

    # What a protocol may ask of its transport; nothing is ever written through a response.
    def write(self, data: bytes) -> None:
        """A response cannot be written to."""
        raise TypeError("a response has no way back")


@implementer(IConsumer)
class ClientConnection(Protocol):
    """One connection to an origin.

    :param clock: for deadlines.
    :param first_byte_timeout_s: how long to wait for an answer's first byte, from the last byte of the request.
    :param idle_timeout_s: how long an answer may stop coming while it is being read.
    :param on_idle: called with the connection when it is ready for another request.
    :param on_closed: called with the connection when it is gone.
    :ivar served: requests begun on this connection.
    :ivar is_quiet: whether the connection, while idle, still looks alive to the kernel.
    :ivar deadline: when to give up waiting, on ``clock``; None while nothing is waited for.
    """

    is_quiet: Callable[[], bool]
    _writer: Writer

    def __init__(
        self,
        clock: IReactorTime,
        first_byte_timeout_s: float,
        idle_timeout_s: float,
        on_idle: Callable[[ClientConnection], None],
        on_closed: Callable[[ClientConnection], None],
    ) -> None:
        self._now = clock.seconds
        self._first_byte_timeout_s = first_byte_timeout_s
        self._idle_timeout_s = idle_timeout_s
        self._on_idle = on_idle
        self._on_closed = on_closed
        self.served = 0
        self.deadline: float | None = None
        self.idle_since = 0.0
        self.closed = False
        self._parser: Any = None
        self._outgoing: OutgoingRequest | None = None
        self._result: Deferred[Response] | None = None
        self._response: Response | None = None
        self._uploading = False
        self._sent_before = 0
        self._answer_begun = False
        self._head_bytes = 0
        self._empty_bytes = 0
        self._interim = 0
        self._in_head = True
        self._interim_head = False
        self._reason = b""
        self._fields: Fields = []
        self._index: Index = {}
        self._trailers: Fields = []
        self._keep = True
        self._complete = False
        self._read_held = False
        self._failure: UpstreamError | None = None

    # -- IProtocol -------------------------------------------------------------------------------------------

    def connectionMade(self) -> None:
        """Set the socket up as on the caller's side."""
        transport: Any = self.transport
        if ITCPTransport.providedBy(transport):
            transport.setTcpNoDelay(True)
            transport.setTcpKeepAlive(True)
        transport.bufferSize = READ_BYTES
        self._writer = writer_for(transport)
        self.is_quiet = quiet_check(transport)
        self._parser = httptools.HttpResponseParser(self)

    def dataReceived(self, data: bytes) -> None:
        """Parse what came. Bytes that nobody asked for end the connection."""
        if self.closed:
            return
        if self._outgoing is None:
            self.abort()
            return
        self._answer_begun = True
        # An interim answer starts no clock: the caller may still be sending.
        if self._idle_timeout_s and self._response is not None and not self._read_held:
            self.deadline = self._now() + self._idle_timeout_s
        if self._in_head:
            self._head_bytes += len(data)
        self._empty_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._fail(InvalidAnswer("the upstream switched protocols without being asked"))
        except httptools.HttpParserError as error:
            if self._complete:
                self._keep = False  # bytes after the end of the answer
            else:
                self._fail(_invalid(error))
        if self._failure is None and not self._complete and self._in_head and self._head_bytes > MAX_HEAD_BYTES:
            self._fail(InvalidAnswer("the answer's header fields are too large"))
        if self._failure is None and self._empty_bytes > MAX_EMPTY_BYTES and not self._in_head:
            self._fail(InvalidAnswer("the answer's trailers or chunk extensions are too large"))
        if self._failure is not None:
            self.abort()
            return
        response = self._response
        if self._complete:
            self._finish()
        elif response is not None:
            response.read_done()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The connection is gone; say what that means for the request under way."""
        self.closed = True
        self.deadline = None
        outgoing, self._outgoing = self._outgoing, None
        self._on_closed(self)
        if outgoing is None:
            return
        self._stop_upload(outgoing)
        response, result = self._response, self._result
        self._response = self._result = None
        if response is not None:
            if (
                self._failure is None
                and response.body.kind == framing.UNTIL_CLOSE
                and reason.check(ConnectionDone) is not None
            ):
                response.end(_MAYBE_DONE)
            else:
                error = self._failure or AnswerCut("the connection ended in the middle of the answer")
                response.end(Failure(ResponseFailed([Failure(error)], response)))
        elif result is not None:
            if self._failure is not None:
                error = self._failure
            elif self._answer_begun:
                error = AnswerCut("the connection ended in the middle of the answer's head")
            else:
                error = NeverAnswered(self.sent_bytes, self.served > 1)
            result.errback(Failure(error))

    # -- a request -------------------------------------------------------------------------------------------

    @property
    def sent_bytes(self) -> int:
        """Bytes of the present request that were handed to the socket."""
        return self._writer.sent_bytes - self._sent_before

    @property
    def busy(self) -> bool:
        """Whether a request is under way."""
        return self._outgoing is not None

    def request(self, outgoing: OutgoingRequest) -> Deferred[Response]:
        """Send ``outgoing``. The Deferred fires with the head of the final answer, or fails with an UpstreamError.

        Cancelling it drops the connection.
        """
        head = outgoing.head
        writer = self._writer
        self.served += 1
        self._outgoing = outgoing
        self._sent_before = writer.sent_bytes
        self._answer_begun = self._complete = False
        self._keep = True
        self._interim = 0
        self._head_bytes = self._empty_bytes = 0
        self._in_head = True
        self._failure = None
        result = self._result = Deferred(self._cancelled)
        body = outgoing.body
        if body is None:
            writer.write(head)
            self._sent()
        else:
            data = getattr(body, "data", None)
            if data is not None:
                if outgoing.chunked:
                    data = b"%x\r\n%b\r\n" % (len(data), data) if data else b""
                    data += f.serialize_trailers(getattr(body, "trailers", []))
                writer.write(head + data)
                self._sent()
            else:
                writer.write(head)
                self._uploading = True
                cast(Any, self.transport).registerProducer(body, True)
                body.startProducing(self).addCallbacks(self._upload_done, self._upload_failed)
        return result

    def _cancelled(self, _: Deferred[Response]) -> None:
        self._result = None  # cancel() fails it
        self.abort()

    def _sent(self) -> None:
        if self._first_byte_timeout_s and self._response is None:
            self.deadline = self._now() + self._first_byte_timeout_s

    def write(self, data: bytes) -> None:
        """A piece of the body, from its producer."""
        outgoing = self._outgoing
        if outgoing is None or not data or not self._uploading:
            return
        if outgoing.chunked:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        self._writer.write(data)

    def _upload_done(self, _: object) -> None:
        outgoing = self._outgoing
        if outgoing is None or not self._uploading:
            return
        self._uploading = False
        cast(Any, self.transport).unregisterProducer()
        if outgoing.chunked:
            self._writer.write(f.serialize_trailers(getattr(outgoing.body, "trailers", [])))
        self._sent()

    def _upload_failed(self, reason: Failure) -> None:
        # The caller's body broke off. The upstream must not take what it has for the whole: end the connection.
        if self._uploading:
            self._uploading = False
            self.abort()

    def _stop_upload(self, outgoing: OutgoingRequest) -> None:
        if self._uploading and outgoing.body is not None:
            self._uploading = False
            cast(Any, self.transport).unregisterProducer()
            outgoing.body.stopProducing()

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """The body's producer is registered with the transport when it is started."""

    def unregisterProducer(self) -> None:
        """See :meth:`registerProducer`."""

    # -- parsing ---------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """llhttp: the first byte of an answer."""
        if self._complete:
            self._keep = False
            return
        self._in_head = True
        self._reason = b""
        self._fields = []
        self._index = {}
        self._trailers = []

    def on_status(self, reason: bytes) -> None:
        """llhttp: a piece of the reason phrase."""
        if not self._complete:
            self._reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        """llhttp: a header field, or after the head a trailer field."""
        if self._complete:
            return
        if self._in_head:
            self._fields.append((name, value))
            lower = name.lower()
            if lower in self._index:
                f.add_to_index(self._index, name, value)
            else:  # as add_to_index does; this is called for every field of every message
                self._index[lower] = value.strip(b" \t")
        else:
            self._trailers.append((name, value))

    def on_headers_complete(self) -> None:
        """llhttp: the empty line after the header fields."""
        outgoing = self._outgoing
        if self._complete or self._failure is not None or outgoing is None:
            return
        parser = self._parser
        status = parser.get_status_code()
        self._in_head = False
        if not 100 <= status <= 599:
            self._fail(InvalidAnswer("the answer's status code is not one"))
            return
        version = parser.get_http_version()
        if version not in ("1.1", "1.0"):
            self._fail(InvalidAnswer("the answer is not HTTP/1.1 or HTTP/1.0"))
            return
        if self._head_bytes > MAX_HEAD_BYTES and f.size_bytes(self._fields) > MAX_HEAD_BYTES:
            self._fail(InvalidAnswer("the answer's header fields are too large"))
            return
        if status < 200:
            self._interim_answer(status, outgoing)
            return
        index = self._index
        try:
            body = framing.response_body(outgoing.method, status, index)
        except FramingError as error:
            self._fail(InvalidAnswer(str(error)))
            return
        self._keep = body.kind != framing.UNTIL_CLOSE and not framing.wants_close(version.encode("ascii"), index)
        response = self._response = Response(self, version == "1.1", status, self._reason, self._fields, index, body)
        result, self._result = self._result, None
        if outgoing.method == b"HEAD":
            # llhttp cannot be told that this answer has no body: it is over here, and so is this parser.
            self._complete = True
            self._parser = httptools.HttpResponseParser(self)
        if result is not None:
            result.callback(response)

    def _interim_answer(self, status: int, outgoing: OutgoingRequest) -> None:
        self._interim += 1
        self._interim_head = True
        if status == 101:
            self._fail(InvalidAnswer("the upstream switched protocols without being asked"))
        elif self._interim > MAX_INTERIM_ANSWERS:
            self._fail(InvalidAnswer("too many interim answers"))
        elif status != 100 and outgoing.on_interim is not None:
            # RFC 9110 8.6: "A server MUST NOT send a Content-Length header field in any response with a status code
            # of 1xx (Informational)".
            outgoing.on_interim(status, self._reason, f.end_to_end(self._fields, _NOT_IN_INTERIM))

    def on_body(self, data: bytes) -> None:
        """llhttp: a piece of the body, without framing."""
        self._empty_bytes = 0
        if self._complete:
            self._keep = False
        elif self._response is not None:
            self._response.body_received(data)

    def on_message_complete(self) -> None:
        """llhttp: the end of the message."""
        if self._interim_head:
            self._interim_head = False
            self._in_head = True
            return
        if self._response is not None and self._failure is None:
            self._complete = True

    # -- ends ------------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        """The answer is complete: give the connection back, or close it, and tell the reader."""
        response, self._response = self._response, None
        outgoing, self._outgoing = self._outgoing, None
        self.deadline = None
        self._complete = False
        abandoned = self._uploading or self._writer.pending
        if abandoned:
            # An early final answer. The rest of the upload is pointless, and the connection is in mid-request. It is
            # dropped: a polite close would wait for an upstream to take the rest that does not read any more.
            if outgoing is not None:
                self._stop_upload(outgoing)
            self.abort()
        if response is not None:
            response.trailers = self._trailers
        if self._keep and not self.closed:
            self.resume_reading()
            self.idle_since = self._now()
            self._on_idle(self)
        elif not abandoned:
            self.close()
        if response is not None:
            response.end(_DONE)

    def _fail(self, error: UpstreamError) -> None:
        if self._failure is None:
            self._failure = error

    def give_up_waiting(self) -> None:
        """The deadline has passed: end the request with the timeout that it means."""
        self._fail(
            FirstByteTimeout("no answer began") if self._response is None else IdleTimeout("the answer stopped coming")
        )
        self.abort()

    def close(self) -> None:
        """Close the connection, which serves no request any more."""
        self.closed = True
        self._writer.flush()
        transport: Any = self.transport
        transport.resumeProducing()
        transport.loseConnection()

    def abort(self) -> None:
        """Drop the connection at once; a request under way fails."""
        self.closed = True
        cast(Any, self.transport).abortConnection()

    def pause_reading(self) -> None:
        """The reader of the answer is behind. No deadline runs while we are the ones who do not read."""
        if not self._read_held:
            self._read_held = True
            self.deadline = None
            cast(Any, self.transport).pauseProducing()

    def resume_reading(self) -> None:
        """Read on."""
        if self._read_held:
            self._read_held = False
            if self._idle_timeout_s and self._outgoing is not None:
                self.deadline = self._now() + self._idle_timeout_s
            cast(Any, self.transport).resumeProducing()


def _invalid(error: httptools.HttpParserError) -> UpstreamError:
    if isinstance(error, httptools.HttpParserCallbackError):
        cause = error.__context__
        return InvalidAnswer(f"relaying the answer failed: {type(cause).__name__}")
    return InvalidAnswer("the answer is not well-formed HTTP/1.1")
