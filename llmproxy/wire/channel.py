"""One connection from a caller: its answers, its deadlines, its end. What it reads is for wire/request_reader.py.

Back-pressure goes both ways: the channel pauses the answer's producer when the caller does not read, and reading
stops when nobody takes the body, or the answers.

Two rules. Requests of one connection are answered strictly one after the other: a second one that arrives early
waits, unrendered, and the connection is not read meanwhile, so what can pile up is one read. And whatever is waited
for has its deadline in :attr:`Channel.deadline`, which the site looks at.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import TYPE_CHECKING, Any, Final, cast

from twisted.internet.interfaces import (
    IAddress,
    IConsumer,
    IHalfCloseableProtocol,
    IPushProducer,
    ISSLTransport,
    ITCPTransport,
)
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from llmproxy.core import framing
from llmproxy.core.framing import FramingError
from llmproxy.wire.body import Discard
from llmproxy.wire.direct import Writer, unacknowledged_bytes, writer_for
from llmproxy.wire.request import Request
from llmproxy.wire.request_reader import BODY, CLOSE, HEAD, MAX_AT_ONCE, NEXT, NOTHING, RequestReader

if TYPE_CHECKING:
    from llmproxy.wire.server import Site

HIGH_WATER_BYTES: Final = 32 * 1024
"""How much one connection reads at once, and how much may wait for a caller before the upstream is held back."""

LINGER_S: Final = 2.0
"""How long a connection that is to be closed still reads (and drops) what the caller is sending, so that the
answer is not lost to a TCP reset (RFC 9112 section 9.6)."""

SURPLUS_S: Final = 1.0
"""How long a connection that is one too many may take to say what it wants."""

CLOSING_S: Final = 10.0
"""How long a closed connection may take to be gone once the caller has taken what was written."""


@implementer(IPushProducer, IConsumer, IHalfCloseableProtocol)
class Channel(RequestReader):
    """One connection from a caller.

    States: reading a head; reading a body; answering; lingering before a close.

    :ivar host: the caller's address, as the site counts it; None where there is none.
    :ivar deadline: when to give up waiting, on the site's clock.
    """

    __slots__ = (
        "_advancing",
        "_closing",
        "_linger",
        "_producer",
        "_send",
        "_unsent_at",
        "_unsent_since",
        "_writer",
        "host",
    )

    _log = Logger()
    _writer: Writer
    _send: Callable[[bytes], None]

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.host: str | None = None
        self._producer: IPushProducer | None = None
        self._unsent_at = 0
        self._unsent_since = inf
        self._advancing = False
        self._closing = False
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
        # From here on, whatever comes or does not: a TLS handshake is part of the wait for the first head.
        self._wait(HEAD, self.site.limits.header_timeout_s if self.surplus is None else SURPLUS_S)
        self.site.opened(self)

    def readConnectionLost(self) -> None:
        """The caller sends nothing more (RFC 9112 section 9.6 and RFC 9293 3.6: it may still read).

        What it has asked for completely is answered. A request that is not complete will never be.
        """
        self._half_closed = True
        if self._closing or self._ending:
            self.loseConnection()
        elif self._arriving is not None and not self._arriving.body_done:
            if self._arriving.finished:
                self.loseConnection()  # of an early answer something may still be on its way
            else:
                self.abortConnection()
        elif self._head_begun and not self._deaf:
            self._refusal = FramingError(400, "the connection ended before the request's head did")
            self._refuse()
            if self._current is not None and not self._ending:
                self.site.half_close(self)  # an answer is under way: is there anybody who takes it?
        elif self._current is None and not self._waiting:
            self.loseConnection()
        elif self._waiting or self._current is None or self._current.can_probe():
            self.site.half_close(self)
        else:
            # Nothing can be sent that would tell a caller that reads on from one that has closed altogether, which is
            # what nearly every FIN at this point is. What the upstream still does would be for nobody, and may cost.
            self.abortConnection()

    def writeConnectionLost(self) -> None:
        """Our own half is closed; see :meth:`_close_soon`."""

    def fin_is_waiting(self) -> None:
        """The caller has closed its half, behind bytes that are not read yet: see whether it is there at all."""
        if self._waiting or self._current is None or self._current.can_probe():
            self.site.half_close(self)
        else:
            self.abortConnection()

    def probe(self) -> None:
        """See whether a caller that has closed its half reads at all; if not, this write is answered with a reset."""
        if self._current is not None and not self._closing:
            self._current.probe()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The caller is gone."""
        self._deaf = True
        self.deadline = inf
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None
        self._producer = None
        requests = self.requests()
        self._current = self._arriving = None
        self._waiting.clear()
        for request in requests:
            request.connectionLost(reason)
        self.site.closed(self)

    def limits_changed(self) -> None:
        """Other limits hold from now on: no wait is longer, and what the old ones let in is judged again."""
        self.forget_repeated()
        if self.surplus is not None:
            return  # its time is short, whatever the limits are
        limits = self.site.limits
        timeouts_s = {
            HEAD: limits.header_timeout_s,
            BODY: limits.body_idle_timeout_s,
            NEXT: limits.keepalive_timeout_s,
        }
        timeout_s = timeouts_s.get(self._waits_for)
        if timeout_s:
            self.deadline = min(self.deadline, self.site.now() + timeout_s)
        elif timeout_s is not None:
            self.deadline = inf

    # -- deadlines -------------------------------------------------------------------------------------------

    def _wait(self, for_what: str, timeout_s: float) -> None:
        self._waits_for = for_what
        if timeout_s:
            now = self.site.now
            self.deadline = now() + timeout_s
        else:
            self.deadline = inf

    def _wait_no_more(self) -> None:
        self._waits_for = NOTHING
        self.deadline = inf

    def too_late(self) -> None:
        """The deadline has passed (called by the site)."""
        waited_for = self._waits_for
        self._wait_no_more()
        if waited_for == HEAD and self._head_begun:
            self._refusal = FramingError(408, "the request's head did not come in time", framing.HEADER_TIMEOUT)
            self._refuse()
        elif waited_for == HEAD:
            # Nothing was asked, so there is nothing to answer. TLS that is not up cannot be closed politely.
            if self.isSecure():
                self.abortConnection()
            else:
                self.loseConnection()
        elif waited_for == BODY:
            self._refusal = FramingError(408, "the request's body stopped coming", framing.BODY_IDLE_TIMEOUT)
            self._refuse()
        elif waited_for == NEXT:
            self.loseConnection()
        elif waited_for == CLOSE and self._writer.buffered_bytes:
            self._wait(CLOSE, CLOSING_S)  # what it does not take has a deadline of its own
        elif waited_for == CLOSE:
            self.abortConnection()

    def look_at_writes(self, now: float, timeout_s: float) -> None:
        """Cut the connection if the caller has taken nothing for ``timeout_s`` of what waits for it."""
        unsent = self._writer.buffered_bytes
        if not unsent:
            self._unsent_since = inf
            return
        # The kernel takes more only when a third of what it holds is gone, which may be a megabyte.
        taken = self._writer.sent_bytes - unsent - unacknowledged_bytes(self.transport)
        if self._unsent_since == inf or taken > self._unsent_at:
            self._unsent_since = now
        elif now - self._unsent_since >= timeout_s:
            for request in self.requests():
                request.not_taken()
            self.abortConnection()
        self._unsent_at = taken

    def is_kept_alive(self) -> bool:
        """Whether the connection has served, and only waits for a next request."""
        return self._waits_for == NEXT

    def is_closing(self) -> bool:
        """Whether the last answer of the connection is out."""
        return self._ending

    def close_if_idle(self) -> None:
        """Close the connection unless it carries a request, or the beginning of one."""
        if self._current is None and not self._waiting and not self._head_begun and not self._closing:
            # What still comes of a body that has had its answer would turn a plain close into a reset.
            self._close_soon(linger=self._arriving is not None)

    # -- answering -------------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Send bytes to the caller, now as far as the kernel takes them."""
        if not self._closing:
            send = self._send
            send(data)

    def answered(self, request: Request) -> None:
        """``request`` has its whole answer: go on to the next one, or close."""
        self._producer = None
        self._served += 1
        if self._current is request:
            self._current = None
        elif request in self._waiting:  # answered before its turn, as when the proxy stops
            self._waiting.remove(request)
        if request.close_after or (not self._waiting and (self._deaf or self._half_closed or self.site.closing)):
            self._close_soon(linger=not self._half_closed and (not request.body_done or self._refusal is not None))
        elif not request.body_done:
            # An early answer: the rest of the body is read and dropped, so that it is never taken for a request.
            request.receive_body(Discard())
            self.resume_reading()
            self._linger = self.site.reactor.callLater(LINGER_S, self._discarded_enough)
        else:
            self._next()

    def _next(self) -> None:
        """Go on with the next request, or wait for it. Called once too often when the connection is lost meanwhile."""
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None
        if self._advancing:
            return  # a request was answered on the spot: the loop below goes on
        self._advancing = True
        try:
            while self._waiting and self._current is None and not self._ending and not self._throttled:
                if self._begun >= MAX_AT_ONCE:
                    self._go_on_later()
                    return
                self._begin(self._waiting.popleft())
        finally:
            self._advancing = False
        if self._current is None and not self._ending and self._throttled and self._linger is None:
            # Answers that nobody takes would pile up, one for each request. (Not where the rest of a body is read away:
            # that has its own end.)
            self.hold_reading()
            return
        if self._current is None and not self._ending and not self._head_begun and self._arriving is None:
            self._wait(NEXT, self.site.limits.keepalive_timeout_s)
        self.resume_reading()

    def _go_on_later(self) -> None:
        self.site.reactor.callLater(0, self._go_on)

    def _go_on(self) -> None:
        self._begun = 0
        self._next()

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
        if self._linger is not None:  # that of an early answer, which only comes back here
            self._linger.cancel()
        self._linger = self.site.reactor.callLater(LINGER_S, self._linger_over)

    def loseConnection(self) -> None:
        """Close the connection after what was written has been sent."""
        self._closing = self._ending = True
        self._deaf = True
        self._writer.flush()
        # Over TLS Twisted waits for the caller's own alert, which some never send (RFC 8446 6.1 asks for no such wait).
        self._wait(CLOSE, LINGER_S if self.site.closing else CLOSING_S)
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
            if self._waits_for in (HEAD, BODY):
                self._wait_no_more()  # it is we who do not read
            cast(Any, self.transport).pauseProducing()
            self.site.watch(self)

    def resume_reading(self) -> None:
        """Read on."""
        if self._reading_held and not self._waiting:
            self._reading_held = False
            self.site.held.discard(self)
            if self._half_closed:
                return  # to read on would only be told the same again
            if self._arriving is not None and not self._arriving.body_done:
                self._wait(BODY, self.site.limits.body_idle_timeout_s)
            elif self._head_begun:
                self._wait(HEAD, self.site.limits.header_timeout_s)
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
        elif self._current is None and self._linger is None and not self._ending:
            self._go_on()  # which waited for this

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

    def own_authorities(self) -> set[bytes]:
        """The authorities of this server, as far as it can know: its public one, and this end of the connection."""
        public_url = self.site.limits.public_url
        own = {public_url.partition("://")[2].partition("/")[0].lower().encode()} if public_url else set()
        address = self.getHost()
        host, port = getattr(address, "host", None), getattr(address, "port", None)
        if host is None or port is None:
            return own
        host = host.removeprefix("::ffff:")
        names = [f"[{host}]" if ":" in host else host]
        if host == "::1" or host.startswith("127."):
            names.append("localhost")
        for name in names:
            own.add(f"{name}:{port}".encode())
            if port == (443 if self.isSecure() else 80):
                own.add(name.encode())
        return own

    def isSecure(self) -> bool:
        """Whether the caller speaks TLS with us."""
        return ISSLTransport.providedBy(self.transport)
