"""The server side of HTTP/1.1: ``Site``, ``Channel`` and ``Request`` on llhttp.

The classes stand where twisted.web's stand (``Site`` -> channel -> ``Request`` -> ``Resource.render``), and differ
from them in what a proxy needs:

* A request is rendered as soon as its **head** is in. The body arrives afterwards, through
  :meth:`Request.receive_body` or :meth:`Request.collect_body`, at the pace of whoever takes it.
* The header fields are kept as they came, in :attr:`Request.fields`. ``requestHeaders`` is a view, made when used.
* An answer can be begun with a raw head (:meth:`Request.write_head`); ``responseHeaders`` and ``setResponseCode``
  work as everywhere for resources that use them.
* Back-pressure goes both ways: the channel pauses the response's producer when the caller does not read, and
  reading stops when nobody takes the body.

The rule: requests of one connection are answered strictly one after the other. A second request that arrives
early waits, unrendered, and the connection is not read meanwhile; so what can pile up is one read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, cast
from typing import Protocol as TypingProtocol
from urllib.parse import unquote_to_bytes

import httptools
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IAddress,
    IConsumer,
    IProtocolNegotiationFactory,
    IPushProducer,
    IReactorTime,
    ISSLTransport,
    ITCPTransport,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web import server
from twisted.web.http import datetimeToString
from twisted.web.http_headers import Headers
from twisted.web.resource import IResource, getChildForRequest
from twisted.web.server import NOT_DONE_YET
from zope.interface import implementer

from llmproxy.core import fields as f
from llmproxy.core import framing
from llmproxy.core.fields import Fields, Index
from llmproxy.core.framing import BodyFraming, FramingError
from llmproxy.wire.direct import has_left, writer_for

HIGH_WATER_BYTES = 32 * 1024
"""How much one connection reads at once, and how much may wait for a caller before the upstream is held back."""

MAX_PIPELINED = 256
"""How many requests may wait on one connection behind the one that is being answered."""

MAX_EMPTY_BYTES = 128 * 1024
"""How much may come within a body that is no body: trailers and chunk extensions."""

MAX_HEAD_BYTES = 64 * 1024
"""The largest head that is read; the next one is answered 431."""

LINGER_S = 2.0
"""How long a connection that is to be closed still reads (and drops) what the caller is sending, so that the
answer is not lost to a TCP reset (RFC 9112 section 9.6)."""

WATCH_S = 0.5
"""How often connections that are not read from are looked at; a caller that leaves is noticed within a second."""

_BODYLESS = frozenset((204, 304))


class BodyReceiver(TypingProtocol):
    """What takes the body of a request."""

    def body_received(self, data: bytes) -> None:
        """The next piece of the body, without its framing."""

    def body_complete(self, trailers: Fields) -> None:
        """The body has ended as its framing said it would; ``trailers`` are those of a chunked body."""

    def body_broken(self, error: FramingError) -> None:
        """The rest of the body is not well-formed and will not come."""


class BodyTooLarge(Exception):
    """A body was larger than the reader of it allowed."""


class Discard:
    """Takes a body that nobody wants."""

    def body_received(self, data: bytes) -> None:
        """Drop it."""

    def body_complete(self, trailers: Fields) -> None:
        """Nothing to do."""

    def body_broken(self, error: FramingError) -> None:
        """Nothing to do: the channel closes the connection."""


class Collector:
    """Gathers a body of at most ``limit_bytes`` in memory."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._size = 0
        self._pieces: list[bytes] = []
        self.result: Deferred[bytes] = Deferred()

    def body_received(self, data: bytes) -> None:
        """Keep ``data``, or fail the result with :class:`BodyTooLarge`."""
        self._size += len(data)
        if self._size > self._limit:
            self._pieces.clear()
            if not self.result.called:
                self.result.errback(BodyTooLarge(f"a body of more than {self._limit} bytes"))
            return
        self._pieces.append(data)

    def body_complete(self, trailers: Fields) -> None:
        """Fire the result with the whole body."""
        if not self.result.called:
            self.result.callback(b"".join(self._pieces))

    def body_broken(self, error: FramingError) -> None:
        """Fail the result with ``error``."""
        if not self.result.called:
            self.result.errback(error)


class Request(server.Request):
    """One request, and the answer to it.

    :ivar fields: the raw header fields in order.
    :ivar index: the same as a look-up table.
    :ivar method: the method, as sent.
    :ivar uri: the request target, as sent.
    :ivar path: the target without its query.
    :ivar clientproto: ``b"HTTP/1.1"`` or ``b"HTTP/1.0"``.
    :ivar body: how the body ends (:class:`~llmproxy.core.framing.BodyFraming`).
    :ivar body_done: whether the whole body has arrived.
    :ivar sent_body_bytes: bytes of the answer's body written so far, without framing.
    """

    defaultContentType = None
    channel: Channel | None  # type: ignore[assignment]
    queued = False
    sent_body_bytes = 0
    head_written = False
    status = 0
    _receiver: BodyReceiver | None = None
    _early_error: FramingError | None = None
    _corked = False
    _suppress_body = False
    _close_delimited = False
    _continue_owed = False

    # super().__init__ is not called: it builds two Headers, and much else, that a relayed request never uses.
    def __init__(
        self,
        channel: Channel,
        method: bytes,
        target: bytes,
        version: bytes,
        fields: Fields,
        index: Index,
        body: BodyFraming,
    ) -> None:
        self.channel = channel
        self.transport = channel.transport
        self.method = method
        self.uri = target
        self.path = target.partition(b"?")[0]
        self.clientproto = b"HTTP/1.1" if version == b"1.1" else b"HTTP/1.0"
        self.fields = fields
        self.index = index
        self.body = body
        self.body_done = body is framing.NO_BODY
        self.close_after = framing.wants_close(version, index)
        self._early: list[bytes] = []
        self._early_trailers: Fields = []
        self._pending: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        """The parts that twisted.web's Request builds in its constructor, built when first used."""
        value: Any
        if name == "requestHeaders":
            value = Headers()
            for key, val in self.fields:
                value.addRawHeader(key, val)
        elif name == "responseHeaders":
            value = Headers()
        elif name in ("client", "host"):
            if self.channel is None:
                raise AttributeError(name)
            value = self.channel.getPeer() if name == "client" else self.channel.getHost()
        elif name in ("received_cookies", "_adapterCache"):
            value = {}
        elif name in ("cookies", "notifications"):
            value = []
        else:
            raise AttributeError(name)
        self.__dict__[name] = value
        return value

    def __repr__(self) -> str:
        """Names the method only: a target may hold a key."""
        return f"<Request {self.method!r} at {id(self):#x}>"

    # -- from the channel ------------------------------------------------------------------------------------

    def process(self) -> None:
        """Find the resource for the path and render it. Called once, when the head is in."""
        channel = self.channel
        if channel is None:
            return
        self.site = channel.site  # type: ignore[assignment]
        self.prepath = []
        segments = self.path[1:].split(b"/")
        self.postpath = [unquote_to_bytes(s) for s in segments] if b"%" in self.path else segments
        self._continue_owed = (
            b"expect" in self.index
            and not self.body_done
            and self.clientproto == b"HTTP/1.1"
            and b"100-continue" in f.tokens(self.index.get(b"expect"))
        )
        try:
            resource = getChildForRequest(channel.site.resource, self)
            self.render(resource)
        except Exception:  # noqa: BLE001 - whatever a resource raises is one request's end
            self.processingFailed(Failure())

    def render(self, resrc: IResource) -> None:
        """Render ``resrc``; what it returns is the whole body, unless it is ``NOT_DONE_YET``."""
        body = resrc.render(self)
        if body is NOT_DONE_YET:
            return
        self.setHeader(b"content-length", b"%d" % len(body))
        self.write(body)
        self.finish()

    def processingFailed(self, reason: Failure) -> Failure:
        """A resource raised: log it, answer 500 if nothing was answered yet, else cut the connection."""
        self._log.failure("a resource failed", failure=reason)
        if self.head_written:
            self.abort()
        else:
            self.setResponseCode(500)
            self.setHeader(b"content-length", b"0")
            self.write(b"")
            self.finish()
        return reason

    def refuse(self, error: FramingError) -> None:
        """Answer a head that could not be accepted; nothing else of it is used. The connection closes afterwards."""
        text = f"{error}\n".encode()
        self.setResponseCode(error.status)
        self.setHeader(b"content-type", b"text/plain; charset=utf-8")
        self.setHeader(b"content-length", b"%d" % len(text))
        self.write(text)
        self.finish()

    def body_arrived(self, data: bytes) -> None:
        """The parser has a piece of the body."""
        if self._receiver is None:
            self._early.append(data)
            if self.channel is not None:
                self.channel.hold_reading()
        else:
            self._receiver.body_received(data)

    def body_ended(self, trailers: Fields) -> None:
        """The parser has seen the end of the body."""
        self.body_done = True
        if self._receiver is None:
            self._early_trailers = trailers
        else:
            self._receiver.body_complete(trailers)

    def body_failed(self, error: FramingError) -> None:
        """What the parser got for a body is none; the connection cannot go on after this request."""
        self.close_after = True
        if self._receiver is None:
            self._early_error = error
        else:
            self._receiver.body_broken(error)

    def connectionLost(self, reason: Failure) -> None:
        """The connection ended before the answer did."""
        self._disconnected = True
        self.channel = None
        if isinstance(self._receiver, Collector) and not self._receiver.result.called:
            self._receiver.result.errback(reason)
        for waiting in self.__dict__.pop("notifications", ()):
            waiting.errback(reason)

    # -- the body of the request -----------------------------------------------------------------------------

    def receive_body(self, receiver: BodyReceiver) -> None:
        """Give the body to ``receiver``, beginning with what has arrived; may be called again to change it.

        This is also when a caller that waits for ``100 Continue`` gets it (RFC 9110 section 10.1.1).
        """
        if self._continue_owed and self.channel is not None:
            self._continue_owed = False
            if not self._early and not self.head_written:
                self.channel.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._receiver = receiver
        early, self._early = self._early, []
        for data in early:
            receiver.body_received(data)
        if self._early_error is not None:
            receiver.body_broken(self._early_error)
        elif self.body_done:
            receiver.body_complete(self._early_trailers)
        elif self.channel is not None:
            self.channel.resume_reading()

    def collect_body(self, limit_bytes: int) -> Deferred[bytes]:
        """The whole body, once it is there.

        The Deferred fails with :class:`BodyTooLarge`, or with the reason when the caller leaves first.
        """
        collector = Collector(limit_bytes)
        self.receive_body(collector)
        return collector.result

    def pause_body(self) -> None:
        """Stop reading the body: whoever takes it cannot take more now."""
        if self.channel is not None and not self.body_done:
            self.channel.hold_reading()

    def resume_body(self) -> None:
        """Go on reading the body."""
        if self.channel is not None:
            self.channel.resume_reading()

    # -- the answer ------------------------------------------------------------------------------------------

    def write_interim(self, status: int, reason: bytes, fields: Fields) -> None:
        """Pass on an interim (1xx) answer; HTTP/1.0 callers do not get it (RFC 9110 section 15.2)."""
        if self.channel is None or self.head_written or self.clientproto != b"HTTP/1.1":
            return
        self.channel.write(f.serialize(b"HTTP/1.1 %d %b" % (status, reason), fields))

    def write_head(self, status: int, reason: bytes, fields: Fields) -> None:
        """Begin the answer with a final status and these end-to-end fields, in this order; the list is taken over.

        The framing is added here: a ``Content-Length`` among the fields is kept and says how the body ends; without
        one the body is chunked for HTTP/1.1 and ends with the connection for HTTP/1.0 (RFC 9112 section 6.3).
        """
        self.head_written = True
        self.startedWriting = 1
        self.status = self.code = status
        if self.channel is None:
            return
        sized = False
        for name, _ in fields:
            if len(name) == 14 and name.lower() == b"content-length":
                sized = True
                break
        self._suppress_body = self.method == b"HEAD" or status in _BODYLESS
        if status == 204:
            # RFC 9110 8.6: "A server MUST NOT send a Content-Length header field in any response with a status
            # code of 1xx (Informational) or 204 (No Content)."
            fields = [pair for pair in fields if pair[0].lower() != b"content-length"]
        elif not sized and status != 304:
            if self.clientproto == b"HTTP/1.1":
                fields.append((b"Transfer-Encoding", b"chunked"))
                self.chunked = not self._suppress_body
            elif not self._suppress_body:
                self.close_after = self._close_delimited = True
        if self._continue_owed:
            # The caller may or may not send the body it announced; what follows cannot be told apart.
            self.close_after = True
        if self.close_after:
            fields.append((b"Connection", b"close"))
        self._pending.append(f.serialize(b"HTTP/1.1 %d %b" % (status, reason), fields))
        if not self._corked:
            self.flush()

    def cork(self) -> None:
        """Gather what is written until :meth:`flush`: one system call for all that one read of the upstream gave."""
        self._corked = True

    def flush(self) -> None:
        """Send what was gathered."""
        if self._pending:
            pending, self._pending = self._pending, []
            if self.channel is not None:
                self.channel.write(b"".join(pending) if len(pending) > 1 else pending[0])

    def write(self, data: bytes) -> None:
        """Write a piece of the body; the first write begins the answer with ``responseHeaders`` if nothing has."""
        if self._disconnected or self.finished:
            return
        if not self.head_written:
            self._write_own_head()
        if not data or self._suppress_body:
            return
        self.sent_body_bytes += len(data)
        if self.chunked:
            self._pending += (b"%x\r\n" % len(data), data, b"\r\n")
        else:
            self._pending.append(data)
        if not self._corked:
            self.flush()

    def _write_own_head(self) -> None:
        fields: Fields = [(name, value) for name, values in self.responseHeaders.getAllRawHeaders() for value in values]
        if not self.responseHeaders.hasHeader(b"date"):
            # RFC 9110 6.6.1: an origin server with a clock sends Date; for our own answers we are the origin.
            fields.insert(0, (b"Date", datetimeToString()))
        fields.extend((b"Set-Cookie", cookie) for cookie in self.cookies)
        self.write_head(self.code, self.code_message, fields)

    def finish(self) -> None:
        """End the answer properly; without a body begun, it is begun and ended."""
        self.finish_with([])

    def finish_with(self, trailers: Fields) -> None:
        """End the answer properly, with ``trailers`` where the body is chunked (RFC 9112 section 7.1.2)."""
        if self._disconnected or self.finished:
            return
        if not self.head_written:
            if not self.responseHeaders.hasHeader(b"content-length") and self.code not in _BODYLESS:
                self.setHeader(b"content-length", b"0")
            self.write(b"")
        if self.chunked:
            self._pending.append(f.serialize_trailers(trailers))
        self._corked = False
        self.flush()
        self.finished = 1
        if self.body_done:
            self._receiver = None
        channel, self.channel = self.channel, None
        self.completed()
        for waiting in self.__dict__.pop("notifications", ()):
            waiting.callback(None)
        if channel is not None:
            channel.answered(self)

    def completed(self) -> None:
        """The answer has been written to its end; the next request of the connection has not begun. For subclasses."""

    def abort(self) -> None:
        """End the answer visibly unfinished: the connection closes without the last chunk or the missing bytes.

        What was written before is still sent. A caller can tell such an end from a complete answer, unless its
        body was to end with the connection; then the connection is reset, which is the only sign left.
        """
        channel = self.channel
        if channel is None or self.finished:
            return
        self._corked = False
        self.flush()
        self.finished = 1
        if self._close_delimited:
            channel.abortConnection()
        else:
            channel.loseConnection()

    def registerProducer(self, producer: IPushProducer, streaming: bool) -> None:
        """Let ``producer`` be paused while the caller does not read; push producers only."""
        if not streaming:
            raise ValueError("only push producers can feed an answer here")
        self.producer = producer
        if self.channel is not None:
            self.channel.registerProducer(producer, True)

    def unregisterProducer(self) -> None:
        """``producer`` has nothing more to write."""
        self.producer = None
        if self.channel is not None:
            self.channel.unregisterProducer()

    def getClientAddress(self) -> IAddress:
        """The address of the other end of the connection."""
        return cast(IAddress, self.client)


@implementer(IPushProducer, IConsumer)
class Channel(Protocol):
    """One connection from a caller.

    States: reading a head; reading a body; answering; lingering before a close. ``_current`` is the request being
    answered, ``_arriving`` the one whose body the parser is in; they differ while a pipelined request arrives.
    """

    _log = Logger()
    _send: Callable[[bytes], None]

    def __init__(self, site: Site) -> None:
        self.site = site
        self._parser = httptools.HttpRequestParser(self)
        self._current: Request | None = None
        self._arriving: Request | None = None
        self._waiting: deque[Request] = deque()
        self._producer: IPushProducer | None = None
        self._method = b""
        self._target = b""
        self._fields: Fields = []
        self._index: Index = {}
        self._trailers: Fields = []
        self._in_head = True
        self._head_bytes = 0
        self._empty_bytes = 0
        self._advancing = False
        self._ending = False
        self._upgrade = False
        self._primed = False
        self._reading_held = False
        self._throttled = False
        self._deaf = False
        self._closing = False
        self._refusal: FramingError | None = None
        self._linger: Any = None

    # -- IProtocol -------------------------------------------------------------------------------------------

    def connectionMade(self) -> None:
        """Set the socket up: no Nagle delay, keep-alive probes, one high-water mark."""
        transport: Any = self.transport
        if ITCPTransport.providedBy(transport):
            try:
                transport.setTcpNoDelay(True)
                transport.setTcpKeepAlive(True)
            except OSError:  # a UNIX socket has neither
                pass
        transport.bufferSize = HIGH_WATER_BYTES
        transport.registerProducer(self, True)
        self._send = writer_for(transport).write
        self.site.channels.add(self)

    def dataReceived(self, data: bytes) -> None:
        """Parse what came; the callbacks below do the rest."""
        if self._deaf:
            return
        if self._in_head:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._feed_after_upgrade(data, upgrade)
        except httptools.HttpParserError as error:
            if self._refusal is None:
                self._refusal = self._refusal_for(error)
        if self._refusal is None and self._in_head and self._head_bytes > MAX_HEAD_BYTES:
            self._refusal = FramingError(431, "the header fields are too large")
        if self._arriving is not None:
            self._empty_bytes += len(data)
            if self._refusal is None and self._empty_bytes > MAX_EMPTY_BYTES:
                self._refusal = FramingError(431, "the trailers or chunk extensions are too large")
        if self._refusal is not None:
            self._refuse()
        elif self._waiting:
            self.hold_reading()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The caller is gone."""
        self.site.channels.discard(self)
        self.site.held.discard(self)
        self._deaf = True
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None
        self._producer = None
        requests = [self._current, *self._waiting]
        self._current = self._arriving = None
        self._waiting.clear()
        for request in requests:
            if request is not None:
                request.connectionLost(reason)

    # -- parsing ---------------------------------------------------------------------------------------------

    def _feed_after_upgrade(self, data: bytes, upgrade: httptools.HttpParserUpgrade) -> None:
        """llhttp has stopped at the head of a request with ``Connection: upgrade``: go on behind it.

        We are not changing protocols: a server MAY ignore Upgrade (RFC 9110 7.8), and then the body, if any, follows
        as announced.
        """
        while True:
            data = data[upgrade.args[0] :]
            self._after_upgrade()
            if not data or self._refusal is not None or self._deaf:
                return
            try:
                self._parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as another:
                upgrade = another
            except httptools.HttpParserError as error:
                self._refusal = self._refusal or self._refusal_for(error)
                return

    def _after_upgrade(self) -> None:
        self._upgrade = False
        self._parser = httptools.HttpRequestParser(self)
        request = self._arriving
        if request is None:
            return
        if request.body_done:
            self._arriving = None
            self._in_head = True
            return
        # The new parser is told how the body ends with a head of our own; its callbacks are not ours to hear.
        self._primed = True
        if request.body.kind == framing.CHUNKED:
            self._parser.feed_data(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
        else:
            self._parser.feed_data(b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % request.body.length_bytes)
        self._primed = False
        self._in_head = False

    def on_message_begin(self) -> None:
        """llhttp: the first byte of a request."""
        if self._primed:
            return
        self._method = b""
        self._target = b""
        self._fields = []
        self._index = {}
        self._trailers = []
        self._in_head = True

    def on_url(self, target: bytes) -> None:
        """llhttp: a piece of the request target."""
        if not self._primed:
            self._target += target

    def on_header(self, name: bytes, value: bytes) -> None:
        """llhttp: a header field, or after the head a trailer field."""
        if self._primed:
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
        if self._primed or self._refusal is not None or self._deaf:
            return
        parser = self._parser
        method = self._method = parser.get_method()
        version = parser.get_http_version().encode("ascii")
        index = self._index
        self._in_head = False
        too_large = (
            self._head_bytes > MAX_HEAD_BYTES and f.size_bytes(self._fields) + len(self._target) > MAX_HEAD_BYTES
        )
        self._head_bytes = 0
        try:
            if too_large:
                raise FramingError(431, "the header fields are too large")
            if len(self._waiting) >= MAX_PIPELINED:
                raise FramingError(400, "too many requests were sent before the first was answered")
            body = framing.judge_request(method, self._target, version, index)
        except FramingError as error:
            self._refusal = error
            return
        if body.kind == framing.LENGTH and body.length_bytes == 0:
            body = framing.NO_BODY
        request = self.site.requestFactory(self, method, self._target, version, self._fields, index, body)
        self._arriving = request
        self._upgrade = parser.should_upgrade()
        if self._current is None and not self._waiting:
            self._begin(request)
        else:
            self._waiting.append(request)

    def on_body(self, data: bytes) -> None:
        """llhttp: a piece of the body, without framing."""
        self._empty_bytes = 0
        if self._arriving is not None and not self._deaf:
            self._arriving.body_arrived(data)

    def on_message_complete(self) -> None:
        """llhttp: the end of the message."""
        request = self._arriving
        if request is None or self._upgrade or self._deaf:
            return
        self._in_head = True
        self._arriving = None
        if not request.body_done:
            request.body_ended(self._trailers)
        if request.finished and self._current is None:
            self._next()

    def _begin(self, request: Request) -> None:
        self._current = request
        request.process()

    def _refusal_for(self, error: httptools.HttpParserError) -> FramingError:
        if isinstance(error, httptools.HttpParserInvalidMethodError):
            return FramingError(501, "this method is not known here")
        if isinstance(error, httptools.HttpParserCallbackError):
            self._log.failure("a request failed while it was parsed")
            return FramingError(500, "the proxy failed while reading the request")
        return FramingError(400, "the request is not well-formed HTTP/1.1")

    def _refuse(self) -> None:
        """Nothing more on this connection is a request: end what is under way, then close."""
        error = self._refusal
        self._deaf = True
        if error is None:
            return
        arriving = self._arriving
        if arriving is not None and not arriving.finished:
            arriving.body_failed(error)  # at once, or when its turn comes
        elif arriving is not None:
            self._close_soon(linger=True)  # what broke is the body of a request that has its answer
        elif self._current is None:
            request = self.site.requestFactory(
                self, self._method, self._target or b"/", b"1.1", self._fields, self._index, framing.NO_BODY
            )
            request.close_after = True
            request.refuse(error)
        # Otherwise a later, pipelined head is malformed: the answers before it go out, then answered() closes.

    # -- answering -------------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Send bytes to the caller, now as far as the kernel takes them."""
        if not self._closing:
            self._send(data)

    def answered(self, request: Request) -> None:
        """``request`` has its whole answer: go on to the next one, or close."""
        self._producer = None
        if self._current is request:
            self._current = None
        if request.close_after or (self._deaf and not self._waiting):
            self._close_soon(linger=not request.body_done or self._refusal is not None)
        elif not request.body_done:
            # An early answer: the rest of the body is read and dropped, so that it is never taken for a request.
            request.receive_body(Discard())
            self.resume_reading()
            self._linger = self.site.reactor.callLater(LINGER_S, self._linger_over)
        else:
            self._next()

    def _next(self) -> None:
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None
        if self._advancing:
            return  # a request was answered on the spot: the loop below goes on
        self._advancing = True
        try:
            while self._waiting and self._current is None and not self._ending:
                self._begin(self._waiting.popleft())
        finally:
            self._advancing = False
        self.resume_reading()

    def _linger_over(self) -> None:
        self._linger = None
        self.loseConnection()

    def _close_soon(self, linger: bool) -> None:
        """Send what is written and close.

        :param linger: the caller may still be sending. RFC 9112 9.6: closing at once could reset the connection and
            take the answer out of the caller's hands, so first only our side is closed, and what comes is dropped.
        """
        self._ending = True
        if not linger:
            self.loseConnection()
            return
        if self._closing:
            return
        self._deaf = True
        transport: Any = self.transport
        if self._reading_held:
            self._reading_held = False
            self.site.held.discard(self)
            transport.resumeProducing()
        if not ISSLTransport.providedBy(transport) and hasattr(transport, "loseWriteConnection"):
            self._closing = True
            transport.unregisterProducer()
            transport.loseWriteConnection()
        if self._linger is None:
            self._linger = self.site.reactor.callLater(LINGER_S, self._linger_over)

    def loseConnection(self) -> None:
        """Close the connection after what was written has been sent."""
        self._closing = self._ending = True
        self._deaf = True
        transport: Any = self.transport
        transport.unregisterProducer()
        transport.loseConnection()

    def abortConnection(self) -> None:
        """Reset the connection."""
        self._closing = self._ending = True
        self._deaf = True
        transport: Any = self.transport
        transport.abortConnection()

    # -- flow control ----------------------------------------------------------------------------------------

    def hold_reading(self) -> None:
        """Read nothing more until :meth:`resume_reading`."""
        if not self._reading_held:
            self._reading_held = True
            cast(Any, self.transport).pauseProducing()
            self.site.watch(self)

    def resume_reading(self) -> None:
        """Read on."""
        if self._reading_held and not self._waiting:
            self._reading_held = False
            self.site.held.discard(self)
            cast(Any, self.transport).resumeProducing()

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """``producer`` writes the current answer; it is paused at once if the caller is behind."""
        self._producer = producer
        if self._throttled:
            producer.pauseProducing()

    def unregisterProducer(self) -> None:
        """The current answer has no producer any more."""
        self._producer = None

    def pauseProducing(self) -> None:
        """The caller does not take what is written (called by the transport)."""
        self._throttled = True
        if self._producer is not None:
            self._producer.pauseProducing()

    def resumeProducing(self) -> None:
        """The caller has taken what was written (called by the transport)."""
        self._throttled = False
        if self._producer is not None:
            self._producer.resumeProducing()

    def stopProducing(self) -> None:
        """The connection is lost; ``connectionLost`` follows and does the work."""

    def requests(self) -> list[Request]:
        """Those that have no complete answer yet, in order."""
        return [request for request in (self._current, *self._waiting) if request is not None]

    # -- what twisted.web asks of a channel --------------------------------------------------------------------

    def getPeer(self) -> IAddress:
        """The caller's address."""
        return cast(Any, self.transport).getPeer()  # type: ignore[no-any-return]

    def getHost(self) -> IAddress:
        """Our own address on this connection."""
        return cast(Any, self.transport).getHost()  # type: ignore[no-any-return]

    def isSecure(self) -> bool:
        """Whether the caller speaks TLS with us."""
        return ISSLTransport.providedBy(self.transport)


@implementer(IProtocolNegotiationFactory)
class Site(Factory):
    """A web site on :class:`Channel`: stands where ``twisted.web.server.Site`` stands.

    :ivar resource: the root of the resource tree.
    :ivar channels: the open connections.
    :ivar held: those that are not read from at present, and so cannot tell that the caller has left.
    """

    noisy = False
    requestFactory: Callable[..., Request] = Request
    channelFactory: Callable[[Site], Channel] = Channel

    def __init__(self, resource: IResource, reactor: IReactorTime) -> None:
        self.resource = resource
        self.reactor = reactor
        self.channels: set[Channel] = set()
        self.held: set[Channel] = set()
        self._watching: Any = None

    def buildProtocol(self, addr: IAddress | None) -> Channel:
        """A channel for one connection."""
        channel = self.channelFactory(self)
        channel.factory = self
        return channel

    def watch(self, channel: Channel) -> None:
        """``channel`` is not read from: look now and then whether its caller is still there."""
        self.held.add(channel)
        if self._watching is None:
            self._watching = self.reactor.callLater(WATCH_S, self._watch)

    def _watch(self) -> None:
        self._watching = None
        for channel in [channel for channel in self.held if has_left(channel.transport)]:
            channel.abortConnection()
        if self.held:
            self._watching = self.reactor.callLater(WATCH_S, self._watch)

    def stopFactory(self) -> None:
        """Listening has ended."""
        if self._watching is not None:
            self._watching.cancel()
            self._watching = None

    def acceptableProtocols(self) -> list[bytes]:
        """ALPN: HTTP/1.1 only."""
        return [b"http/1.1"]
