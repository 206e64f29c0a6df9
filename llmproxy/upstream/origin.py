"""An origin: one provider's base URL with its connections.

Everything that decides where bytes go is fixed when the origin is made: host, port, TLS policy, proxy. A request
brings a target below the base URL, and nothing in it can lead elsewhere.

The rule for a connection that turns out to be dead (it was idle, and the other end closed it in the meantime): the
request is sent once more, on a new connection, if nothing of it can have been acted upon. That is so when not one
byte was handed to the socket; or when the method is idempotent and the body is still held, in which case acting
twice is the same as acting once (RFC 9110 section 9.2.2). A POST that may have been read is never repeated: it
would be paid for twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure
from twisted.web.http_headers import Headers
from twisted.web.iweb import UNKNOWN_LENGTH, IAgent, IBodyProducer, IResponse
from zope.interface import implementer

from llmproxy.core import fields as f
from llmproxy.core.fields import Fields
from llmproxy.core.target import is_origin_form
from llmproxy.wire.client import ClientConnection, NeverAnswered, OutgoingRequest, Response
from llmproxy.wire.dial import CONNECT, Dialer, DialError

IDEMPOTENT: Final = frozenset((b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"))
SWEEP_S: Final = 1.0


@dataclass(slots=True)
class Progress:
    """What the origin tells of a request while it is under way.

    :ivar connect_s: seconds that opening a connection took; None when a kept one served.
    :ivar retries: how often the request was sent again.
    :ivar sent_at: when the request was first written, on the origin's clock.
    :ivar on_interim: called for interim answers other than 100.
    """

    connect_s: float | None = None
    retries: int = 0
    sent_at: float | None = None
    on_interim: Callable[[int, bytes, Fields], None] | None = None


class RawHeaders(Headers):
    """Header fields that reach the wire in their own case and order, in the shape that ``IAgent`` asks for.

    They come from a message that was parsed, and are complete, with Host and, for a body of known length,
    Content-Length; only Transfer-Encoding is added.
    """

    def __init__(self, fields: Fields, progress: Progress | None = None) -> None:
        # Headers.__init__ would sort the fields into a dictionary, which is what must not happen to them.
        self.fields = fields
        self.progress = progress

    def __repr__(self) -> str:
        """Without any value: they hold keys."""
        return f"<RawHeaders, {len(self.fields)} fields>"

    def getAllRawHeaders(self) -> Any:
        """``(name, values)`` pairs, one for each field."""
        return ((name, [value]) for name, value in self.fields)


@dataclass(frozen=True, slots=True)
class OriginLimits:
    """``pool_size`` idle connections are kept, each for ``pool_idle_s``; the timeouts are ClientConnection's."""

    pool_size: int = 256
    pool_idle_s: float = 45.0
    first_byte_timeout_s: float = 600.0
    idle_timeout_s: float = 600.0


@implementer(IAgent)
class Origin:
    """The agent for one base URL.

    :param base_url: ``scheme://authority`` with an optional path prefix and no slash at its end.
    :param dialer: opens the connections.
    :param clock: for idle times and deadlines.
    """

    def __init__(self, base_url: bytes, dialer: Dialer, clock: IReactorTime, limits: OriginLimits) -> None:
        scheme, _, rest = base_url.partition(b"://")
        self.authority = rest.partition(b"/")[0]
        self._root = scheme + b"://" + self.authority
        self._dialer = dialer
        self._clock = clock
        self._limits = limits
        self._idle: list[ClientConnection] = []
        self._busy: set[ClientConnection] = set()
        self._sweep: Any = None
        self._closed = False

    def __repr__(self) -> str:
        """The origin's own address."""
        return f"<Origin {self._root.decode('ascii')}>"

    def request(
        self,
        method: bytes,
        uri: bytes,
        headers: Headers | None = None,
        bodyProducer: IBodyProducer | None = None,
    ) -> Deferred[IResponse]:
        """Send a request; see ``IAgent.request``.

        :param uri: must begin with the origin's own scheme and authority.
        :raises ValueError: (in the Deferred's stead, at once) when it does not, or when the head is not well-formed.

        The Deferred fails with a :class:`~llmproxy.wire.dial.DialError` or an
        :class:`~llmproxy.wire.client.UpstreamError`.
        """
        target = uri[len(self._root) :]
        if not uri.startswith(self._root) or target[:1] != b"/":
            raise ValueError("the target does not lie within this origin")
        progress = headers.progress if isinstance(headers, RawHeaders) else None
        outgoing = self._outgoing(method, target, headers, bodyProducer, progress)
        connection = self._take()
        if connection is None:
            return self._on_new_connection(outgoing, progress)
        if progress is not None:
            progress.sent_at = self._clock.seconds()
        self._busy.add(connection)
        result: Deferred[Any] = connection.request(outgoing)
        return result.addErrback(self._send_again, outgoing, progress)

    def _outgoing(
        self,
        method: bytes,
        target: bytes,
        headers: Headers | None,
        body: IBodyProducer | None,
        progress: Progress | None,
    ) -> OutgoingRequest:
        chunked = body is not None and body.length is UNKNOWN_LENGTH
        if isinstance(headers, RawHeaders):
            fields = headers.fields
        else:
            pairs = headers.getAllRawHeaders() if headers is not None else ()
            fields = [(name, value) for name, values in pairs for value in values]
            names = {name.lower() for name, _ in fields}
            if b"host" not in names:
                fields.insert(0, (b"Host", self.authority))
            if body is not None and not chunked and b"content-length" not in names:
                fields.append((b"Content-Length", b"%d" % body.length))
            if not f.is_token(method) or not is_origin_form(target):
                raise ValueError("the method or the target is not well-formed")
        if chunked:
            fields = [*fields, (b"Transfer-Encoding", b"chunked")]
        head = f.serialize(b"%b %b HTTP/1.1" % (method, target), fields)
        if not f.is_one_head(head, len(fields)):
            raise ValueError("a header field is not well-formed")
        return OutgoingRequest(method, head, body, chunked, progress.on_interim if progress else None)

    # -- connections -----------------------------------------------------------------------------------------

    def _on_new_connection(self, outgoing: OutgoingRequest, progress: Progress | None) -> Deferred[Any]:
        begun = self._clock.seconds()
        dialled = self._dialer.dial(self._make)

        def connected(connection: Protocol) -> Deferred[Response]:
            now = self._clock.seconds()
            if progress is not None:
                progress.connect_s = now - begun
                progress.sent_at = now
            fresh: Any = connection
            if self._closed:
                fresh.abort()
                raise DialError(CONNECT, "the proxy is stopping")
            self._busy.add(fresh)
            self._start_sweep()
            return fresh.request(outgoing)  # type: ignore[no-any-return]

        return dialled.addCallback(connected)

    def _make(self) -> ClientConnection:
        limits = self._limits
        return ClientConnection(
            self._clock, limits.first_byte_timeout_s, limits.idle_timeout_s, self._became_idle, self._was_closed
        )

    def _send_again(self, reason: Failure, outgoing: OutgoingRequest, progress: Progress | None) -> Any:
        error = reason.value
        if not isinstance(error, NeverAnswered) or not error.reused or self._closed:
            return reason
        body = outgoing.body
        held = body is None or getattr(body, "data", None) is not None
        if not held or (error.sent_bytes > 0 and outgoing.method not in IDEMPOTENT):
            return reason
        if progress is not None:
            progress.retries += 1
        return self._on_new_connection(outgoing, progress)

    def _take(self) -> ClientConnection | None:
        """The connection that was used last: it is the least likely to have been closed by the other end."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.closed and connection.is_quiet():
                return connection
            connection.abort()
        return None

    def _became_idle(self, connection: ClientConnection) -> None:
        self._busy.discard(connection)
        if self._closed or len(self._idle) >= self._limits.pool_size:
            connection.close()
        else:
            self._idle.append(connection)

    def _was_closed(self, connection: ClientConnection) -> None:
        self._busy.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    def _start_sweep(self) -> None:
        if self._sweep is None and not self._closed:
            self._sweep = self._clock.callLater(SWEEP_S, self._swept)

    def _swept(self) -> None:
        """Once a second: end the waits that have become too long, and the connections that idled too long."""
        self._sweep = None
        now = self._clock.seconds()
        for connection in [c for c in self._busy if c.deadline is not None and c.deadline <= now]:
            connection.give_up_waiting()
        oldest = now - self._limits.pool_idle_s
        while self._idle and self._idle[0].idle_since <= oldest:
            self._idle.pop(0).close()
        if self._busy or self._idle:
            self._start_sweep()

    def close(self) -> None:
        """Close the idle connections, keep no more of them, and drop those in use."""
        self._closed = True
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()
        for connection in list(self._busy):
            connection.abort()
