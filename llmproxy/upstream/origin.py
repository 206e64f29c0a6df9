"""An origin: one provider's base URL with its connections.

Everything that decides where bytes go is fixed when the origin is made: host, port, TLS policy, proxy. A request
brings a target below the base URL, and nothing in it can lead elsewhere.

The rule for a connection that turns out to be dead (it was idle, and the other end closed it in the meantime): the
request is sent once more, on a new connection, if nothing of it can have been acted upon. That is so when not one
byte was handed to the socket; or when the method is idempotent and the body is still held, in which case acting
twice is the same as acting once (RFC 9110 section 9.2.2). A POST that may have been read is never repeated: it
would be paid for twice.

Where ``max_connections`` bounds the connections, a request that finds none free waits in line. The line is served
first come, first served, by whatever becomes free: a connection, or the room for one. It is as long as there may be
connections, and nobody waits in it for longer than ``connect_timeout_s``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, cast

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IProtocol, IReactorTime
from twisted.python.failure import Failure
from twisted.web.http_headers import Headers
from twisted.web.iweb import UNKNOWN_LENGTH, IAgent, IBodyProducer, IResponse
from zope.interface import implementer

from llmproxy.config.model import Upstream
from llmproxy.core import fields as f
from llmproxy.core.fields import Fields
from llmproxy.core.target import is_origin_form
from llmproxy.wire.client import ClientConnection, OutgoingRequest
from llmproxy.wire.dial import CONNECT, Dialer, DialError
from llmproxy.wire.upstream_error import InvalidAnswer, NeverAnswered, UpstreamBusy

IDEMPOTENT: Final = frozenset((b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"))
SWEEP_S: Final = 1.0


class NotWellFormed(ValueError):
    """A request that cannot be sent as it is; the text says what of it."""


@dataclass(slots=True)
class Progress:
    """What the origin tells of a request while it is under way.

    :ivar connect_s: seconds until there was a connection, in line and opening it; None when a kept one served at once.
    :ivar retries: how often the request was sent again.
    :ivar sent_at: when the request was first written, on the origin's clock.
    :ivar held_s: how much of the time before that it waited for its connection.
    :ivar on_interim: called for interim answers other than 100.
    """

    connect_s: float | None = None
    retries: int = 0
    sent_at: float | None = None
    held_s: float = 0.0
    on_interim: Callable[[int, bytes, Fields], None] | None = None


class RawHeaders(Headers):
    """Header fields that reach the wire in their own case and order, in the shape that ``IAgent`` asks for.

    They come from a message that was parsed, and are complete, with Host and, for a body of known length,
    Content-Length; only Transfer-Encoding is added.

    :ivar head: the whole head as it is written. Filled in when it has been made and checked; one that is given, as it
        was filled in for the same request before, is written as it is.
    """

    __slots__ = ("fields", "head", "progress")

    def __init__(self, fields: Fields, progress: Progress | None = None, head: bytes | None = None) -> None:
        # Headers.__init__ would sort the fields into a dictionary, which is what must not happen to them.
        self.fields = fields
        self.progress = progress
        self.head = head

    def __repr__(self) -> str:
        """Without any value: they hold keys."""
        return f"<RawHeaders, {len(self.fields)} fields>"

    def getAllRawHeaders(self) -> Any:
        """``(name, values)`` pairs, one for each field."""
        return ((name, [value]) for name, value in self.fields)


class _Sending(OutgoingRequest):
    """A request on its way to a connection: through the line, through dialling, perhaps a second time.

    :ivar asked_at: when the origin got it; for one in line, when it got there.
    :ivar dialling: the opening of a connection for it.
    :ivar first_try: how that ended, where it has been sent before.
    """

    __slots__ = ("asked_at", "dialling", "first_try", "origin", "progress")

    def __init__(
        self, origin: Origin, method: bytes, head: bytes, body: IBodyProducer | None, chunked: bool, progress: Progress
    ) -> None:
        OutgoingRequest.__init__(self, method, head, body, chunked, progress.on_interim)
        self.origin = origin
        self.progress = progress
        self.asked_at = 0.0
        self.dialling: Deferred[Any] | None = None
        self.first_try: NeverAnswered | None = None

    def _cancelled(self, result: Deferred[Any]) -> None:
        super()._cancelled(result)
        if self.dialling is not None:
            self.dialling.cancel()
        else:
            self.origin.left(self)

    def failed(self, error: Exception | Failure) -> None:
        """Fail, unless it may be sent again."""
        if isinstance(error, NeverAnswered) and self.origin.takes_again(self, error):
            return
        if self.first_try is not None and self.first_try.sent_bytes and self.connection is None:
            error = self.first_try  # that it found no connection again is not all: it may have been acted upon
        super().failed(error)


@implementer(IAgent)
class Origin:
    """The agent for one base URL.

    :param base_url: ``scheme://authority`` with an optional path prefix and no slash at its end.
    :param dialer: opens the connections.
    :param clock: for idle times and deadlines.
    :param limits: how many connections, and the times; see docs/configuration.md.
    """

    def __init__(self, base_url: bytes, dialer: Dialer, clock: IReactorTime, limits: Upstream) -> None:
        scheme, _, rest = base_url.partition(b"://")
        self.authority = rest.partition(b"/")[0]
        self._root = scheme + b"://" + self.authority
        self._dialer = dialer
        self._clock = clock
        self._now = clock.seconds
        self._limits = limits
        self._pool_size = limits.pool_size
        self._idle: list[ClientConnection] = []
        self._open: set[ClientConnection] = set()
        self._dialling: set[_Sending] = set()
        self._line: deque[_Sending] = deque()
        self._serving_line = False
        self._sweep: Any = None
        self._closed = False

    def __repr__(self) -> str:
        """The origin's own address."""
        return f"<Origin {self._root.decode('ascii')}>"

    @property
    def open_connections(self) -> int:
        """Connections that are open, or being opened or closed."""
        return len(self._open) + len(self._dialling)

    def request(
        self,
        method: bytes,
        uri: bytes,
        headers: Headers | None = None,
        bodyProducer: IBodyProducer | None = None,
    ) -> Deferred[IResponse]:
        """Send a request; see ``IAgent.request``.

        :param uri: must begin with the origin's own scheme and authority.
        :raises NotWellFormed: (in the Deferred's stead, at once) when it does not, or when the head is not well-formed.

        The Deferred fails with a :class:`~llmproxy.wire.dial.DialError` or an
        :class:`~llmproxy.wire.upstream_error.UpstreamError`. Cancelling it leaves the line, or drops the connection.
        """
        target = uri[len(self._root) :]
        if not uri.startswith(self._root) or target[:1] != b"/":
            raise NotWellFormed("the target does not lie within this origin")
        sending = self._sending(method, target, headers, bodyProducer)
        result: Deferred[IResponse] = sending.result
        connection = self._take()
        if connection is not None:
            sending.progress.sent_at = self._now()
            connection.request(sending)
        else:
            self._find_connection(sending)
        return result

    def _sending(self, method: bytes, target: bytes, headers: Headers | None, body: IBodyProducer | None) -> _Sending:
        chunked = body is not None and body.length is UNKNOWN_LENGTH
        progress = None
        if isinstance(headers, RawHeaders):
            fields = headers.fields
            progress = headers.progress
            if headers.head is not None:
                return _Sending(self, method, headers.head, body, chunked, progress or Progress())
        else:
            pairs = headers.getAllRawHeaders() if headers is not None else ()
            fields = [(name, value) for name, values in pairs for value in values]
            names = {name.lower() for name, _ in fields}
            if b"host" not in names:
                fields.insert(0, (b"Host", self.authority))
            if body is not None and not chunked and b"content-length" not in names:
                fields.append((b"Content-Length", b"%d" % body.length))
            if not f.is_token(method) or not is_origin_form(target):
                raise NotWellFormed("the method or the target is not well-formed")
        if chunked:
            fields = [*fields, (b"Transfer-Encoding", b"chunked")]
        head = f.serialize(b"%b %b HTTP/1.1" % (method, target), fields)
        if not f.is_one_head(head, len(fields)):
            raise NotWellFormed("a header field is not well-formed")
        if isinstance(headers, RawHeaders):
            headers.head = head
        return _Sending(self, method, head, body, chunked, progress or Progress())

    # -- a connection for a request ----------------------------------------------------------------------------

    def _take(self) -> ClientConnection | None:
        """The connection that was used last: it is the least likely to have been closed by the other end."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.closed and connection.is_quiet():
                return connection
            connection.abort()
        return None

    def _find_connection(self, sending: _Sending) -> None:
        """Open one; or, where there may be no more, wait in line."""
        sending.asked_at = self._now()
        if self._closed:
            sending.failed(DialError(CONNECT, "the proxy is stopping"))
        elif self._has_room() and not self._line:
            self._dial(sending)
        elif sending.first_try is not None:
            self._line.appendleft(sending)
            self._serve_line()
        elif len(self._line) < self._limits.max_connections:
            self._line.append(sending)
            self._start_sweep()
        else:
            sending.failed(UpstreamBusy("too many requests wait for a connection"))

    def _has_room(self) -> bool:
        most = self._limits.max_connections
        return not most or len(self._open) + len(self._dialling) < most

    def _serve_line(self) -> None:
        """Open connections for those in line while there may be more. What becomes free meanwhile is seen here too."""
        if self._serving_line:
            return
        self._serving_line = True
        try:
            while self._line and self._has_room():
                self._dial(self._line.popleft())
        finally:
            self._serving_line = False

    def _dial(self, sending: _Sending) -> None:
        self._dialling.add(sending)
        dialling = sending.dialling = maybeDeferred(self._dialer.dial, self._make)
        dialling.addCallbacks(self._connected, self._not_connected, callbackArgs=(sending,), errbackArgs=(sending,))

    def _make(self) -> ClientConnection:
        return ClientConnection(self._clock, self._limits, self._became_idle, self._was_closed)

    def _connected(self, protocol: IProtocol, sending: _Sending) -> None:
        connection = cast(ClientConnection, protocol)
        self._dialling.discard(sending)
        sending.dialling = None
        self._open.add(connection)
        self._start_sweep()
        if connection.spoke_first():
            # What an upstream says before it is asked would be taken for the answer, and the answer for the next one.
            connection.abort()
            sending.failed(InvalidAnswer("the upstream spoke before it was asked"))
            return
        self._begin(connection, sending)

    def _not_connected(self, reason: Failure, sending: _Sending) -> None:
        self._dialling.discard(sending)
        sending.dialling = None
        self._serve_line()
        sending.failed(reason)

    def _begin(self, connection: ClientConnection, sending: _Sending) -> None:
        """Send what had to wait for its connection."""
        progress = sending.progress
        now = self._now()
        progress.connect_s = now - sending.asked_at
        if progress.sent_at is None:
            progress.sent_at = now
            progress.held_s = progress.connect_s
        try:
            connection.request(sending)
        except Exception:  # noqa: BLE001 - a fault of ours ends this request, and not whatever made the room for it
            sending.failed(Failure())
            connection.abort()

    def takes_again(self, sending: _Sending, error: NeverAnswered) -> bool:
        """Whether a request whose connection died unanswered is sent again; then that has been seen to."""
        if not error.reused or sending.first_try is not None or sending.result is None or self._closed:
            return False
        body = sending.body
        held = body is None or getattr(body, "data", None) is not None
        if not held or (error.sent_bytes > 0 and sending.method not in IDEMPOTENT):
            return False
        sending.first_try = error
        sending.connection = None
        sending.progress.retries += 1
        self._find_connection(sending)
        return True

    def left(self, sending: _Sending) -> None:
        """The caller of a request that may stand in line has left."""
        if sending in self._line:
            self._line.remove(sending)

    # -- what connections tell -----------------------------------------------------------------------------------

    def _became_idle(self, connection: ClientConnection) -> None:
        if self._line and self._pool_size and connection.is_quiet():
            self._begin(connection, self._line.popleft())
        elif self._line and self._pool_size:
            connection.abort()  # those in line are served when it is gone
        elif len(self._idle) < self._pool_size:
            self._idle.append(connection)
        else:
            connection.close()

    def _was_closed(self, connection: ClientConnection) -> None:
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        self._serve_line()

    # -- time ------------------------------------------------------------------------------------------------------

    def _start_sweep(self) -> None:
        if self._sweep is None and not self._closed:
            self._sweep = self._clock.callLater(SWEEP_S, self._swept)

    def _swept(self) -> None:
        """Once a second: end the waits that have become too long, and the connections that idled too long."""
        self._sweep = None
        try:
            self._look_at_times(self._now())
        finally:  # whatever one connection raises, the others' time goes on
            if self._open or self._line:
                self._start_sweep()

    def _look_at_times(self, now: float) -> None:
        for connection in [c for c in self._open if c.sending or (c.deadline is not None and c.deadline <= now)]:
            connection.look(now)
        oldest = now - self._limits.pool_idle_s
        while self._idle and self._idle[0].idle_since <= oldest:
            self._idle.pop(0).close()
        longest = self._limits.connect_timeout_s
        for sending in [s for s in self._line if longest and now - s.asked_at >= longest]:
            self._line.remove(sending)
            sending.failed(UpstreamBusy("no connection became free in time"))

    # -- ends ------------------------------------------------------------------------------------------------------

    def retire(self) -> None:
        """Keep nothing idle from now on: what is in use ends in peace, and then nothing is open.

        Requests can still be made, by whoever began with this origin; each connection closes after its answer.
        """
        self._pool_size = 0
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def close(self) -> None:
        """Drop everything now: those in line, those that dial, and all connections; those that idle politely."""
        self._closed = True
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        self.retire()
        line, self._line = self._line, deque()
        for sending in [*line, *self._dialling]:
            sending.failed(DialError(CONNECT, "the proxy is stopping"))
            if sending.dialling is not None:
                sending.dialling.cancel()
        for connection in [c for c in self._open if not c.closed]:
            connection.abort()
