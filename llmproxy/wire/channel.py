"""One connection from a caller, on llhttp.

Back-pressure goes both ways: the channel pauses the answer's producer when the caller does not read, and reading
stops when nobody takes the body. A head is judged as soon as it is in; one that is refused is answered, and nothing
behind it on the connection is ever a request.

Two rules. Requests of one connection are answered strictly one after the other: a second one that arrives early
waits, unrendered, and the connection is not read meanwhile, so what can pile up is one read. And whatever is waited
for has its deadline in :attr:`Channel.deadline`, which the site looks at.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from math import inf
from typing import TYPE_CHECKING, Any, Final, cast

import httptools
from twisted.internet.interfaces import (
    IAddress,
    IConsumer,
    IHalfCloseableProtocol,
    IPushProducer,
    ISSLTransport,
    ITCPTransport,
)
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from llmproxy.core import fields as f
from llmproxy.core import framing
from llmproxy.core.fields import Fields, Index
from llmproxy.core.framing import FramingError
from llmproxy.wire.body import Discard
from llmproxy.wire.direct import Writer, unacknowledged_bytes, writer_for
from llmproxy.wire.repeat import RepeatedHead, learn
from llmproxy.wire.request import Request

if TYPE_CHECKING:
    from llmproxy.wire.server import Site

HIGH_WATER_BYTES: Final = 32 * 1024
"""How much one connection reads at once, and how much may wait for a caller before the upstream is held back."""

MAX_PIPELINED: Final = 256
"""How many requests may wait on one connection behind the one that is being answered."""

MAX_EMPTY_BYTES: Final = 128 * 1024
"""How much may come within a body that is no body: trailers and chunk extensions."""

LINGER_S: Final = 2.0
"""How long a connection that is to be closed still reads (and drops) what the caller is sending, so that the
answer is not lost to a TCP reset (RFC 9112 section 9.6)."""

SURPLUS_S: Final = 1.0
"""How long a connection that is one too many may take to say what it wants."""

CLOSING_S: Final = 10.0
"""How long a closed connection may take to be gone once the caller has taken what was written."""

MAX_LEARNT: Final = 16
"""How many heads one connection learns. A caller whose heads are never the same shall not pay for it for ever."""

# What the deadline of a channel is for.
NOTHING: Final = "nothing"
HEAD: Final = "a head"
BODY: Final = "more of a body"
NEXT: Final = "a next request"
CLOSE: Final = "the end"


@implementer(IPushProducer, IConsumer, IHalfCloseableProtocol)
class Channel(Protocol):
    """One connection from a caller.

    States: reading a head; reading a body; answering; lingering before a close. ``_current`` is the request being
    answered, ``_arriving`` the one whose body the parser is in; they differ while a pipelined request arrives.

    :ivar host: the caller's address, as the site counts it; None where there is none.
    :ivar surplus: why nothing is served here but what is always served, where the connection is one too many.
    :ivar deadline: when to give up waiting, on the site's clock.
    """

    # More attributes than CPython shares the keys of: without slots each connection would pay for its own dictionary.
    __slots__ = (
        "_advancing",
        "_arriving",
        "_body_bytes",
        "_body_left_bytes",
        "_closing",
        "_current",
        "_deaf",
        "_empty_bytes",
        "_ending",
        "_fields",
        "_half_closed",
        "_head_begun",
        "_head_bytes",
        "_in_head",
        "_index",
        "_learning",
        "_linger",
        "_method",
        "_parser",
        "_primed",
        "_producer",
        "_reading_held",
        "_refusal",
        "_refused",
        "_repeat",
        "_send",
        "_served",
        "_target",
        "_throttled",
        "_trailers",
        "_unsent_at",
        "_unsent_since",
        "_upgrade",
        "_waiting",
        "_waits_for",
        "_writer",
        "deadline",
        "host",
        "site",
        "surplus",
    )

    _log = Logger()
    _writer: Writer
    _send: Callable[[bytes], None]

    def __init__(self, site: Site) -> None:
        self.site = site
        self.host: str | None = None
        self.surplus: FramingError | None = None
        self.deadline = inf
        self._waits_for = NOTHING
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
        self._head_begun = False
        self._head_bytes = 0
        self._body_bytes = 0
        self._body_left_bytes = 0
        self._empty_bytes = 0
        self._served = 0
        self._repeat: RepeatedHead | None = None
        self._learning = MAX_LEARNT if site.repeats else 0
        self._unsent_at = 0
        self._unsent_since = inf
        self._advancing = False
        self._ending = False
        self._upgrade = False
        self._primed = False
        self._reading_held = False
        self._throttled = False
        self._deaf = False
        self._closing = False
        self._half_closed = False
        self._refusal: FramingError | None = None
        self._refused: tuple[bytes, bytes, Fields, Index] | None = None
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

    def dataReceived(self, data: bytes) -> None:
        """Parse what came; the callbacks below do the rest."""
        if self._body_left_bytes and not self._deaf:
            try:
                data = self._count_body(data)
            except Exception as error:  # noqa: BLE001 - as the parser has it: the request ends, and is told why
                self._refusal = self._fault(error)
                self._refuse()
        if self._deaf or not data:
            return
        fresh = False
        served = self._served
        if self._in_head:
            fresh = self._is_free() and not self._head_begun
            if fresh and self._repeat is not None and self._is_repeated(data):
                return
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._feed_after_upgrade(data, upgrade)
        except httptools.HttpParserError as error:
            if self._ending or self._is_last():
                self._deaf = True
            elif self._refusal is None:
                self._refusal = self._refusal_for(error)
        if self._ending:
            return
        if self._in_head:
            if self._head_begun:
                self._check_head()
        elif self._arriving is not None:
            self._check_body(len(data))
        if self._refusal is not None:
            self._refuse()
        elif self._waiting:
            self.hold_reading()
        elif fresh and self._learning and served and self._served == served:
            self._learn(data)  # the first and only request of this read

    def _count_body(self, data: bytes) -> bytes:
        """Take what ``data`` holds of a body of known length; returns what is behind it."""
        request = self._arriving
        left = self._body_left_bytes
        if request is None:  # never: there is a rest of a body only while it arrives
            return b""
        if len(data) < left:
            self._body_left_bytes = left - len(data)
            request.body_arrived(data)
            if not self._reading_held and not self._ending:
                self._wait(BODY, self.site.limits.body_idle_timeout_s)
            return b""
        self._body_left_bytes = 0
        self._parser = httptools.HttpRequestParser(self)  # the one before it still waits for the body
        behind = data[left:]
        request.body_arrived(data[:left] if behind else data)
        self.on_message_complete()
        if self._is_last():
            self._deaf = True
        return behind

    def _is_repeated(self, data: bytes) -> bool:
        """Take ``data`` for the same request as the last one, with another body, if it is that: see wire/repeat.py."""
        repeat = cast(RepeatedHead, self._repeat)
        found = repeat.match(data)
        if found is None:
            return False
        at, digits = found
        site = self.site
        body = framing.NO_BODY
        if digits:
            body = framing.BodyFraming(framing.LENGTH, len(data) - at)
            if body.length_bytes > site.limits.max_body_bytes > 0:
                return False
        fields, index = repeat.fields(digits)
        request = site.requestFactory(self, repeat.method, repeat.target, b"1.1", fields, index, body)
        request.repeat = repeat
        if digits:
            request.body_is_here(data[at:])
        self._waits_for = NOTHING
        self.deadline = inf
        self._current = request
        request.process()
        return True

    def limits_changed(self) -> None:
        """Other limits hold from now on: no wait is longer, and what the old ones let in is judged again."""
        self._repeat = None
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

    def _learn(self, data: bytes) -> None:
        """``data`` began a request: if it holds all of it, keep its head for the next one."""
        request = self._current
        if request is None or self._arriving is not None or self._waiting or request.close_after or self._half_closed:
            return
        if len(data) - data.find(b"\r\n\r\n") - 4 != request.body.length_bytes:
            return
        self._repeat = learn(data, request.method, request.uri, request.fields, request.index)
        if self._repeat is not None:
            self._learning -= 1

    def _is_last(self) -> bool:
        """Whether what comes now is behind a request with which the connection ends, and so is nothing.

        RFC 9112 9.6: "A server that receives a "close" connection option MUST initiate closure of the connection after
        it sends the final response to the request that contained the "close" connection option. [...] The server MUST
        NOT process any further requests received on that connection."
        """
        last = self._waiting[-1] if self._waiting else self._current
        return last is not None and last.close_after and self._arriving is None and not self._head_begun

    def _check_head(self) -> None:
        """A part of a head is here, and more must come: not too much, and not too late."""
        limits = self.site.limits
        if self._refusal is None and self._head_bytes > limits.max_header_bytes:
            self._refusal = _too_large(self._fields, self._target, limits.max_header_bytes)
        elif self._refusal is None and len(self._fields) > limits.max_headers:
            self._refusal = _too_many(limits.max_headers)
        if self._waits_for != HEAD and not self._reading_held:
            self._wait(HEAD, limits.header_timeout_s)

    def _check_body(self, arrived_bytes: int) -> None:
        """A part of a body is here, and more must come.

        Of a body whose length is known the rest is only counted: a parser would copy each piece once more.
        """
        self._empty_bytes += arrived_bytes
        request = self._arriving
        if request is not None and request.body.kind == framing.LENGTH and not self._upgrade:
            self._body_left_bytes = request.body.length_bytes - self._body_bytes
        if self._refusal is None and self._empty_bytes > MAX_EMPTY_BYTES:
            self._refusal = FramingError(431, "the trailers or chunk extensions are too large")
        if not self._reading_held:
            self._wait(BODY, self.site.limits.body_idle_timeout_s)

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

    # -- deadlines -------------------------------------------------------------------------------------------

    def _wait(self, for_what: str, timeout_s: float) -> None:
        self._waits_for = for_what
        self.deadline = self.site.now() + timeout_s if timeout_s else inf

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

    # -- parsing ---------------------------------------------------------------------------------------------

    def _feed_after_upgrade(self, data: bytes, upgrade: httptools.HttpParserUpgrade) -> None:
        """llhttp has stopped at the head of a request with ``Connection: upgrade``: go on behind it.

        We are not changing protocols: a server MAY ignore Upgrade (RFC 9110 7.8), and then the body, if any, follows
        as announced.
        """
        while True:
            data = data[upgrade.args[0] :]
            self._after_upgrade()
            if self._is_last():
                self._deaf = True
            if not data or self._refusal is not None or self._deaf:
                return
            try:
                self._parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as another:
                upgrade = another
            except httptools.HttpParserError as error:
                if self._ending or self._is_last():
                    self._deaf = True
                else:
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
        head = b"POST / HTTP/1.1\r\n" + (b"Connection: close\r\n" if request.close_after else b"")
        if request.body.kind == framing.CHUNKED:
            self._parser.feed_data(head + b"Transfer-Encoding: chunked\r\n\r\n")
        else:
            self._parser.feed_data(head + b"Content-Length: %d\r\n\r\n" % request.body.length_bytes)
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
        self._head_begun = True

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
        site = self.site
        limits = site.limits
        self._in_head = self._head_begun = False
        head_bytes = self._head_bytes
        self._head_bytes = self._empty_bytes = self._body_bytes = 0
        self._waits_for = NOTHING
        self.deadline = inf
        try:
            if head_bytes > limits.max_header_bytes:  # of all that was read; that may be more than the head
                head_bytes = f.size_bytes(self._fields) + len(self._target) + 16
                if head_bytes > limits.max_header_bytes:
                    raise _too_large(self._fields, self._target, limits.max_header_bytes)
            if len(self._fields) > limits.max_headers:
                raise _too_many(limits.max_headers)
            if len(self._waiting) >= MAX_PIPELINED:
                raise FramingError(400, "too many requests were sent before the first was answered")
            if self._target[:1] != b"/":
                self._target = framing.origin_form(method, self._target, index, self._own_authorities)
            body = framing.judge_request(method, self._target, version, index)
            if self.surplus is not None and self._target.partition(b"?")[0] not in site.always_served:
                raise self.surplus
            if limits.max_body_bytes and body.length_bytes > limits.max_body_bytes:
                raise _body_too_large(limits.max_body_bytes)
        except FramingError as error:
            self._refusal = error
            self._refused = self._method, self._target, self._fields, index  # llhttp may go on to the next one
            return
        if body.kind == framing.LENGTH and body.length_bytes == 0:
            body = framing.NO_BODY
        request = site.requestFactory(self, method, self._target, version, self._fields, index, body)
        if self.surplus is not None:
            request.close_after = True
        self._arriving = request
        self._upgrade = parser.should_upgrade()
        if self._is_free():
            self._begin(request)
        else:
            self._waiting.append(request)

    def on_body(self, data: bytes) -> None:
        """llhttp: a piece of the body, without framing."""
        self._empty_bytes = 0
        request = self._arriving
        if request is None or self._deaf or self._refusal is not None:
            return
        self._body_bytes += len(data)
        if request.body is framing.CHUNKED_BODY:
            most = self.site.limits.max_body_bytes
            if most and self._body_bytes > most:
                self._refusal = _body_too_large(most)
                return
        request.body_arrived(data)

    def on_message_complete(self) -> None:
        """llhttp: the end of the message."""
        request = self._arriving
        if request is None or self._upgrade or self._deaf or self._refusal is not None:
            return
        if self._waits_for == BODY:
            self._wait_no_more()
        if not request.body_done:
            request.body_ended(self._trailers)  # if that raises, it is this request that has failed
        self._in_head = True
        self._arriving = None
        if request.finished and self._current is None:
            self._next()

    def _is_free(self) -> bool:
        """Whether a request would be the next to be answered, by a caller that takes its answers."""
        return self._current is None and not self._waiting and not self._throttled

    def _begin(self, request: Request) -> None:
        self._current = request
        if request.refusal is not None:
            request.refuse(request.refusal)
        else:
            request.process()

    def _own_authorities(self) -> set[bytes]:
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

    def _refusal_for(self, error: httptools.HttpParserError) -> FramingError:
        if isinstance(error, httptools.HttpParserInvalidMethodError):
            return FramingError(501, "this method is not known here")
        if isinstance(error, httptools.HttpParserCallbackError):
            return self._fault(error.__context__ or error)  # llhttp's own error says nothing of what was raised
        return FramingError(400, "the request is not well-formed HTTP/1.1")

    def _fault(self, error: BaseException) -> FramingError:
        """A fault of ours while a request is read."""
        self._log.failure("a request failed while it was read", failure=Failure(error))
        return FramingError(500, "the proxy failed while reading the request")

    def _refuse(self) -> None:
        """Nothing more on this connection is a request: end what is under way, then close."""
        error = self._refusal
        self._wait_no_more()
        self._deaf = True
        if error is None:
            return
        arriving = self._arriving
        if arriving is not None and not arriving.finished:
            arriving.body_failed(error)  # at once, or when its turn comes
        elif arriving is not None:
            self._close_soon(linger=True)  # what broke is the body of a request that has its answer
        else:
            # A head that is refused is a request too: it has its turn, its answer and its event.
            method, target, fields, index = self._refused or (self._method, self._target, self._fields, self._index)
            request = self.site.requestFactory(self, method, target or b"/", b"1.1", fields, index, framing.NO_BODY)
            request.close_after = True
            request.refusal = error
            if self._current is None and not self._waiting:
                self._begin(request)
            else:
                self._waiting.append(request)

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
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None
        if self._advancing:
            return  # a request was answered on the spot: the loop below goes on
        self._advancing = True
        try:
            while self._waiting and self._current is None and not self._ending and not self._throttled:
                self._begin(self._waiting.popleft())
        finally:
            self._advancing = False
        if self._current is None and not self._ending and self._throttled:
            # Answers that nobody takes would pile up, one for each request.
            self.hold_reading()
            return
        if self._current is None and not self._ending and not self._head_begun and self._arriving is None:
            self._wait(NEXT, self.site.limits.keepalive_timeout_s)
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
            self._next()  # which waited for this

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


def _too_large(fields: Fields, target: bytes, most_bytes: int) -> FramingError:
    allowed = f"a head may have {most_bytes} bytes (server.max_header_bytes)"
    if not fields or len(target) > most_bytes // 2:
        return FramingError(414, f"the request target is too long: {allowed}")
    return FramingError(431, allowed)


def _too_many(most: int) -> FramingError:
    return FramingError(431, f"a request may have {most} header fields (server.max_headers)")


def _body_too_large(most_bytes: int) -> FramingError:
    return FramingError(413, f"the body of a request may have {most_bytes} bytes")
