"""The client side of HTTP/1.1: one connection to an upstream, and the request that it carries.

A connection carries one request at a time. Its life: idle -> sending and waiting -> receiving -> idle or closed.
It goes back to idle only if both messages ended as their framing said, the upstream did not ask for a close, and
not a byte came that nobody asked for; in every other case it is closed, because what such a connection says next
could be taken for the answer to somebody else's request.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

import httptools
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IConsumer, IProtocol, IReactorTime, ITCPTransport
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web.client import ResponseFailed
from twisted.web.iweb import IBodyProducer
from zope.interface import implementer

from llmproxy.config.model import Upstream
from llmproxy.core import fields as f
from llmproxy.core import framing
from llmproxy.core.fields import Fields, Index
from llmproxy.core.framing import FramingError
from llmproxy.wire.direct import Writer, has_unread, quiet_check, writer_for
from llmproxy.wire.response import ENDED, ENDED_WITH_CONNECTION, Response
from llmproxy.wire.upstream_error import (
    AnswerCut,
    FirstByteTimeout,
    IdleTimeout,
    InvalidAnswer,
    NeverAnswered,
    UploadTimeout,
    UpstreamError,
)

READ_BYTES: Final = 32 * 1024
MAX_FIELDS: Final = 256
"""How many header fields one answer may have; the providers send some 30."""
MAX_INTERIM_ANSWERS: Final = 16
CLOSING_S: Final = 10.0
"""How long a connection that is closed may take to be gone; until then it has its place in ``max_connections``."""
MAX_EMPTY_BYTES: Final = 128 * 1024
"""How much may come within a body that is no body: trailers and chunk extensions."""

_NOT_IN_REASON: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_NOT_IN_INTERIM: Final = f.HOP_BY_HOP | {b"content-length"}


class OutgoingRequest:
    """A request as it is to be written, and the Deferred that its answer is for.

    :ivar head: the whole head as it is sent, framing included. Whoever makes it has checked that it is one.
    :ivar body: None for no body; one whose ``data`` attribute is not None is written in one piece with the head.
    :ivar chunked: whether the body's pieces are framed as chunks.
    :ivar on_interim: called with ``(status, reason, fields)`` for interim answers other than 100.
    :ivar result: fires with the head of the final answer, or fails with an UpstreamError; None once it has, or was
        cancelled, which drops the connection.
    :ivar connection: the connection that carries it.
    """

    __slots__ = ("body", "chunked", "connection", "head", "method", "on_interim", "result")

    def __init__(
        self,
        method: bytes,
        head: bytes,
        body: IBodyProducer | None = None,
        chunked: bool = False,
        on_interim: Callable[[int, bytes, Fields], None] | None = None,
    ) -> None:
        self.method = method
        self.head = head
        self.body = body
        self.chunked = chunked
        self.on_interim = on_interim
        self.connection: ClientConnection | None = None
        self.result: Any = Deferred(self._cancelled)

    def __repr__(self) -> str:
        """The method only: the head holds keys."""
        return f"<OutgoingRequest {self.method!r}>"

    def _cancelled(self, _: Deferred[Any]) -> None:
        self.result = None  # cancel() fails it
        if self.connection is not None:
            self.connection.abort()

    def failed(self, error: Exception | Failure) -> None:
        """There will be no answer."""
        self.connection = None
        result, self.result = self.result, None
        if result is not None:
            result.errback(error)


@implementer(IProtocol, IConsumer)
class ClientConnection:
    """One connection to an origin.

    :param clock: for deadlines.
    :param limits: ``first_byte_timeout_s``, how long to wait for an answer's first byte, from the last byte of the
        request; ``idle_timeout_s``, how long an answer may stop coming while it is being read, and how long the
        upstream may take no byte of a request while bytes wait for it (0: for ever); ``max_header_bytes``.
    :param on_idle: called with the connection when it is ready for another request.
    :param on_closed: called with the connection when it is gone.
    :ivar served: requests begun on this connection.
    :ivar is_quiet: whether the connection, while idle, still looks alive to the kernel.
    :ivar deadline: when to give up waiting, on ``clock``; None while nothing is waited for.
    :ivar sending: whether the request may not be out yet; whoever looks at ``deadline`` then calls :meth:`look`.
    :ivar deliver: takes the pieces of the body; None until somebody has asked for it.
    :ivar read_done: called when all of one read has been delivered.
    """

    # A stream that is idle for minutes is mostly this object: slots make it small, and are quicker than a dictionary.
    __slots__ = (
        "_answer_begun",
        "_complete",
        "_failure",
        "_feed",
        "_fields",
        "_first_byte_timeout_s",
        "_idle_timeout_s",
        "_in_head",
        "_interim",
        "_interim_head",
        "_keep",
        "_max_header_bytes",
        "_now",
        "_on_closed",
        "_on_idle",
        "_outgoing",
        "_parser",
        "_read_held",
        "_reason",
        "_response",
        "_sent_before",
        "_stalled_at",
        "_uncounted",
        "_unmoved",
        "_uploading",
        "_writer",
        "closed",
        "deadline",
        "deliver",
        "idle_since",
        "is_quiet",
        "read_done",
        "sending",
        "served",
        "transport",
    )

    is_quiet: Callable[[], bool]
    transport: Any
    _in_head: bool
    _uncounted: int
    _unmoved: tuple[int, int]
    _writer: Writer

    def __init__(
        self,
        clock: IReactorTime,
        limits: Upstream,
        on_idle: Callable[[ClientConnection], None],
        on_closed: Callable[[ClientConnection], None],
    ) -> None:
        self._now = clock.seconds
        self._first_byte_timeout_s = limits.first_byte_timeout_s
        self._idle_timeout_s = limits.idle_timeout_s
        self._max_header_bytes = limits.max_header_bytes
        self._on_idle = on_idle
        self._on_closed = on_closed
        self.served = 0
        self.deadline: float | None = None
        self.sending = False
        self.idle_since = 0.0
        self.closed = False
        self.deliver: Callable[[bytes], None] | None = None
        self.read_done: Callable[[], None] | None = None
        self._parser: Any = None
        self._feed: Any = None
        self._outgoing: OutgoingRequest | None = None
        self._response: Response | None = None
        self._failure: UpstreamError | None = None
        self._uploading = self._read_held = self._interim_head = self._complete = False

    # -- IProtocol -------------------------------------------------------------------------------------------

    def makeConnection(self, transport: Any) -> None:
        """See IProtocol."""
        self.transport = transport
        self.connectionMade()

    def connectionMade(self) -> None:
        """Set the socket up as on the caller's side."""
        transport = self.transport
        if ITCPTransport.providedBy(transport):
            transport.setTcpNoDelay(True)
            transport.setTcpKeepAlive(True)
        transport.bufferSize = READ_BYTES
        self._writer = writer_for(transport)
        self.is_quiet = quiet_check(transport)
        self._new_parser()

    def _new_parser(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._feed = self._parser.feed_data

    def dataReceived(self, data: bytes) -> None:
        """Parse what came. Bytes that nobody asked for end the connection."""
        outgoing = self._outgoing
        if outgoing is None or self.closed:
            if not self.closed:
                self.abort()
            return
        self._answer_begun = True
        self._uncounted += len(data)
        try:
            if outgoing.method == b"HEAD":
                self._feed_lines(data)
            else:
                # Out of its slot first, as elsewhere in what runs for each read: CPython looks for a method otherwise.
                feed = self._feed
                feed(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if self._complete:
                self._keep = False  # bytes after the end of the answer
            else:
                self._fail(_invalid(error))
        response = self._response
        result: Any = None
        if response is not None and outgoing.result is not None:
            # The head came with this read. It is told now, when all of the read is known: a small answer is whole.
            result, outgoing.result = outgoing.result, None
        if self._complete and self._failure is None:
            self._finish(outgoing, result)
            return
        if result is not None and response is not None and not self._head_told(result, response):
            return
        if self._uncounted > (self._max_header_bytes if self._in_head else MAX_EMPTY_BYTES):
            self._fail(InvalidAnswer("the answer's header or trailer fields or chunk extensions are too large"))
        if self._failure is not None:
            self.abort()
        elif self._response is not None:  # an interim answer starts no clock: the caller may still be sending
            if self._idle_timeout_s and not self._read_held:
                now = self._now
                self.deadline = now() + self._idle_timeout_s
            read_done = self.read_done
            if read_done is not None:
                read_done()

    def _head_told(self, result: Deferred[Any], response: Response) -> bool:
        """Give the head to whoever waits for it. Whether the connection is still there afterwards."""
        result.callback(response)
        if self.deliver is None and response.is_kept and not self.closed:
            self.pause_reading()
        return not self.closed

    def _feed_lines(self, data: bytes) -> None:
        """llhttp cannot be told that the answer to a HEAD has no body, so it is shown no byte behind the head."""
        for line in data.splitlines(keepends=True):
            if self._complete:
                self._keep = False
                return
            self._feed(line)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The connection is gone; say what that means for the request under way."""
        self.closed = True
        self.deadline = None
        self.sending = False
        outgoing, self._outgoing = self._outgoing, None
        self._parser = self._feed = self.deliver = self.read_done = None
        self._on_closed(self)
        if outgoing is None:
            return
        self._stop_upload(outgoing)
        response, self._response = self._response, None
        error: UpstreamError | None = self._failure
        if response is not None:
            if error is None and response.body.kind == framing.UNTIL_CLOSE and reason.check(ConnectionDone) is not None:
                response.end(ENDED_WITH_CONNECTION)
            else:
                error = error or AnswerCut("the connection ended in the middle of the answer")
                response.end(Failure(ResponseFailed([Failure(error)], response)))
            return
        if error is None:
            if self._answer_begun:
                error = AnswerCut("the connection ended in the middle of the answer's head")
            else:
                error = NeverAnswered(self.sent_bytes, self.served > 1)
        outgoing.failed(error)

    # -- a request -------------------------------------------------------------------------------------------

    @property
    def sent_bytes(self) -> int:
        """Bytes of the present request that were handed to the socket."""
        return self._writer.sent_bytes - self._sent_before

    def request(self, outgoing: OutgoingRequest) -> Deferred[Any]:
        """Send ``outgoing``; returns its Deferred, which gets the answer."""
        result: Deferred[Any] = outgoing.result
        writer = self._writer
        self.served += 1
        self._outgoing = outgoing
        outgoing.connection = self
        self._sent_before = writer.sent_bytes
        self._answer_begun = self._complete = False
        self._keep = self._in_head = self.sending = True
        self._interim = self._uncounted = 0
        self._stalled_at: float | None = None
        self._failure = None
        self._fields: Fields = []
        body = outgoing.body
        data = b"" if body is None else getattr(body, "data", None)
        if data is not None:
            if outgoing.chunked:
                data = b"%x\r\n%b\r\n" % (len(data), data) if data else b""
                data += f.serialize_trailers(getattr(body, "trailers", []))
            writer.write(outgoing.head + data)
            if self._first_byte_timeout_s:
                now = self._now
                self.deadline = now() + self._first_byte_timeout_s
        elif body is not None:
            writer.write(outgoing.head)
            self._uploading = True
            self.transport.registerProducer(body, True)
            body.startProducing(self).addCallbacks(self._upload_done, self._upload_failed)
        return result

    def spoke_first(self) -> bool:
        """Whether a new connection has brought bytes before it was asked anything."""
        return self.closed or has_unread(self.transport)

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
        self.transport.unregisterProducer()
        if outgoing.chunked:
            self._writer.write(f.serialize_trailers(getattr(outgoing.body, "trailers", [])))
        if self._response is not None:
            self.sending = False
            outgoing.head = b""  # it holds the key, and will not be sent again
        elif self._first_byte_timeout_s:
            self.deadline = self._now() + self._first_byte_timeout_s

    def _upload_failed(self, reason: Failure) -> None:
        # The caller's body broke off. The upstream must not take what it has for the whole: end the connection.
        if self._uploading:
            self._uploading = False
            self.abort()

    def _stop_upload(self, outgoing: OutgoingRequest) -> None:
        if self._uploading and outgoing.body is not None:
            self._uploading = False
            self.transport.unregisterProducer()
            outgoing.body.stopProducing()

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """The body's producer is registered with the transport when it is started."""

    def unregisterProducer(self) -> None:
        """See :meth:`registerProducer`."""

    # -- parsing ---------------------------------------------------------------------------------------------
    # llhttp calls these several times for each message: what can be known later is left to later.

    def on_message_begin(self) -> None:
        """llhttp: the first byte of an answer, or of something behind it."""
        if self._complete:
            self._keep = False
        self._reason = b""
        self._fields = []

    def on_status(self, reason: bytes) -> None:
        """llhttp: a piece of the reason phrase."""
        self._reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        """llhttp: a header field, or after the head a trailer field."""
        self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        """llhttp: the empty line after the header fields."""
        outgoing = self._outgoing
        if self._complete or self._failure is not None or outgoing is None:
            return
        parser = self._parser
        fields = self._fields
        status = parser.get_status_code()
        self._in_head = False
        index: Index = {name.lower(): value.strip(b" \t") for name, value in fields}
        if len(index) != len(fields):
            index = f.index(fields)
        # This answer is for HTTP/1.1 alone, as 1.0 has no connection that is kept without a word.
        is_1_1 = keep = b"connection" not in index and parser.should_keep_alive()
        if not keep:
            version = parser.get_http_version()
            is_1_1 = version == "1.1"
            if not is_1_1 and version != "1.0":
                self._fail(InvalidAnswer("the answer is not HTTP/1.1 or HTTP/1.0"))
                return
            keep = not framing.wants_close(version.encode("ascii"), index)
        if not 100 <= status <= 599:
            self._fail(InvalidAnswer("the answer's status code is not one"))
            return
        if self._reason != b"OK" and _NOT_IN_REASON.search(self._reason) is not None:
            # RFC 9112 4: reason-phrase = 1*( HTAB / SP / VCHAR / obs-text ). llhttp takes other controls as well.
            self._fail(InvalidAnswer("the answer's reason phrase holds a control character"))
            return
        if len(fields) > MAX_FIELDS:
            self._fail(InvalidAnswer("the answer has too many header fields"))
            return
        limit = self._max_header_bytes
        if self._uncounted > limit and f.size_bytes(fields) + len(self._reason) > limit:
            self._fail(InvalidAnswer("the answer's header fields are too large"))
            return
        if status < 200:
            self._interim_answer(status, outgoing)
            return
        try:
            body = framing.response_body(outgoing.method, status, index)
        except FramingError as error:
            self._fail(InvalidAnswer(str(error)))
            return
        self._keep = keep and body.kind != framing.UNTIL_CLOSE
        self._uncounted = 0
        self._fields = []  # for the trailers
        self._response = Response(self, is_1_1, status, self._reason, fields, index, body)
        if outgoing.method == b"HEAD":
            self._complete = True
            self._new_parser()
        if not self._uploading:
            # The request is out or pointless, and will not be sent again: a stream may keep us here for hours.
            self.sending = False
            outgoing.head = b""
            if outgoing.body is not None:
                outgoing.body.stopProducing()
                outgoing.body = None

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
        self._uncounted = 0
        if self._complete:
            self._keep = False
        elif (deliver := self.deliver) is not None:
            deliver(data)
        elif self._response is not None:
            self._response.keep(data)
            if self._outgoing is not None and self._outgoing.result is None:
                self.pause_reading()

    def on_message_complete(self) -> None:
        """llhttp: the end of the message."""
        if self._interim_head:
            self._interim_head = False
            self._in_head = True
        elif self._response is not None and self._failure is None:
            if not self._complete and self._fields:
                self._response.trailers = self._fields
            self._complete = True

    # -- ends ------------------------------------------------------------------------------------------------

    def _finish(self, outgoing: OutgoingRequest, result: Deferred[Any] | None) -> None:
        """The answer is complete: give the connection back, or close it, and tell the reader.

        :param result: waits for the head, if that came with this same read.
        """
        response, self._response = self._response, None
        self._outgoing = None
        self.deadline = self.deliver = self.read_done = None
        self._complete = False
        try:
            self._give_back(outgoing)
        finally:  # whatever went wrong: nothing else would ever end this request
            if response is not None:
                response.end(ENDED)
                if result is not None:
                    result.callback(response)

    def _give_back(self, outgoing: OutgoingRequest) -> None:
        abandoned = self._uploading or self._writer.pending
        if abandoned:
            # An early final answer. The rest of the upload is pointless, and the connection is in mid-request. It is
            # dropped: a polite close would wait for an upstream to take the rest that does not read any more.
            self.sending = False
            self._stop_upload(outgoing)
            self.abort()
        if self._keep and not self.closed:
            if self._read_held:
                self.resume_reading()
            self.idle_since = self._now()
            self._on_idle(self)
        elif not abandoned:
            self.close()

    def _fail(self, error: UpstreamError) -> None:
        if self._failure is None:
            self._failure = error

    def look(self, now: float) -> None:
        """Called now and then while there is a deadline or ``sending``: end the request if it has waited too long.

        An upload is timed here and not at each write: whether the upstream takes anything is a matter of seconds.
        """
        if self.sending and not self._is_moving(now):
            self._fail(UploadTimeout("the upstream takes no more of the request"))
        elif self.deadline is None or self.deadline > now:
            return
        elif self._response is None:
            self._fail(FirstByteTimeout("no answer began"))
        else:
            self._fail(IdleTimeout("the answer stopped coming"))
        self.abort()

    def _is_moving(self, now: float) -> bool:
        """Whether the request makes way, or it is not the upstream that holds it up."""
        waiting = self._writer.buffered_bytes
        if self._read_held:
            # Some take a request only as fast as their answer is read, and it is not, because the caller is slow.
            self._stalled_at = None
            return True
        if not waiting:
            # All that there is has been taken: the caller is the slow one, or the request is out.
            self._stalled_at = None
            self.sending = self._uploading
            return True
        # Over TLS a write adds more to what waits than was written, so both ways of having moved are looked for.
        unmoved = waiting - self._writer.sent_bytes
        if self._stalled_at is None or waiting < self._unmoved[0] or unmoved < self._unmoved[1]:
            self._stalled_at = now
            if self.deadline is not None and self._response is None:
                self.deadline = now + self._first_byte_timeout_s  # the request is not out yet
        self._unmoved = (waiting, unmoved)
        return not self._idle_timeout_s or now - self._stalled_at < self._idle_timeout_s

    def close(self) -> None:
        """Close the connection, which serves no request any more."""
        self.closed = True
        now = self._now
        self.deadline = now() + CLOSING_S  # over TLS there is an alert to send, and not every socket takes it
        self._writer.flush()
        self.transport.resumeProducing()
        self.transport.loseConnection()

    def abort(self) -> None:
        """Drop the connection at once; a request under way fails."""
        self.closed = True
        self.transport.abortConnection()

    def pause_reading(self) -> None:
        """The reader of the answer is behind. No deadline runs while we are the ones who do not read."""
        if not self._read_held:
            self._read_held = True
            self.deadline = None
            self.transport.pauseProducing()

    def resume_reading(self) -> None:
        """Read on."""
        if self._read_held:
            self._read_held = False
            if self._idle_timeout_s and self._outgoing is not None:
                self.deadline = self._now() + self._idle_timeout_s
            self.transport.resumeProducing()


def _invalid(error: Exception) -> UpstreamError:
    if isinstance(error, httptools.HttpParserUpgrade):
        return InvalidAnswer("the upstream switched protocols without being asked")
    if isinstance(error, httptools.HttpParserCallbackError):
        cause = error.__context__
        return InvalidAnswer(f"relaying the answer failed: {type(cause).__name__}")
    return InvalidAnswer("the answer is not well-formed HTTP/1.1")
