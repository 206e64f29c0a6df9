"""The server side of HTTP/1.1: ``Site`` and ``Channel`` on llhttp.

They stand where twisted.web's stand: ``Site`` -> channel -> :class:`~llmproxy.wire.request.Request` ->
``Resource.render``. Back-pressure goes both ways: the channel pauses the answer's producer when the caller does not
read, and reading stops when nobody takes the body.

The rule: requests of one connection are answered strictly one after the other. A second request that arrives
early waits, unrendered, and the connection is not read meanwhile; so what can pile up is one read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, cast

import httptools
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
from twisted.web.resource import IResource
from zope.interface import implementer

from llmproxy.core import fields as f
from llmproxy.core import framing
from llmproxy.core.fields import Fields, Index
from llmproxy.core.framing import FramingError
from llmproxy.wire.body import Discard
from llmproxy.wire.direct import Writer, has_left, writer_for
from llmproxy.wire.request import Request

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


@implementer(IPushProducer, IConsumer)
class Channel(Protocol):
    """One connection from a caller.

    States: reading a head; reading a body; answering; lingering before a close. ``_current`` is the request being
    answered, ``_arriving`` the one whose body the parser is in; they differ while a pipelined request arrives.
    """

    _log = Logger()
    _writer: Writer
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
        self._writer = writer_for(transport)
        self._send = self._writer.write
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
        self._head_bytes = self._empty_bytes = 0
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
            self._linger = self.site.reactor.callLater(LINGER_S, self._discarded_enough)
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

    def _discarded_enough(self) -> None:
        """The caller still sends a body that has its answer: nothing more is served on this connection."""
        self._linger = None
        self._close_soon(linger=True)

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
            self._writer.flush()
            transport.unregisterProducer()
            transport.loseWriteConnection()
        if self._linger is None:
            self._linger = self.site.reactor.callLater(LINGER_S, self._linger_over)

    def loseConnection(self) -> None:
        """Close the connection after what was written has been sent."""
        self._closing = self._ending = True
        self._deaf = True
        self._writer.flush()
        transport: Any = self.transport
        transport.unregisterProducer()
        transport.loseConnection()

    def abortConnection(self) -> None:
        """Reset the connection."""
        self._closing = self._ending = True
        self._deaf = True
        self._writer.flush()
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
