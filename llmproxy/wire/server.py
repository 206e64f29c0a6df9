"""The server side of HTTP/1.1: the ``Site``, which stands where ``twisted.web.server.Site`` stands.

``Site`` -> :class:`~llmproxy.wire.channel.Channel` -> :class:`~llmproxy.wire.request.Request` -> ``Resource.render``.

It holds what concerns all connections of one listener together: how many there may be, the one clock that looks
at all their deadlines, the look at callers that are not read from, and the end of service. The rule: a deadline costs
a connection one number, not a timer of its own, and no wait is without one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IProtocolNegotiationFactory,
    IReactorTime,
)
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.web.resource import IResource
from zope.interface import implementer

from llmproxy.config.model import Server
from llmproxy.core import framing
from llmproxy.core.framing import FramingError
from llmproxy.wire.channel import Channel
from llmproxy.wire.direct import GONE, HALF_CLOSED, peer_state
from llmproxy.wire.request import Request

SWEEP_S = 1.0
"""How often the deadlines are looked at; more often where one of them is shorter than four times this."""

WATCH_S = 0.5
"""How often connections that are not read from are looked at; a caller that leaves is noticed within a second."""

RESET_S = 0.1
"""How soon after a caller was sent something to see whether it is there its reset is looked for."""

MAX_SURPLUS = 64
"""How many connections there may be that are one too many; further ones are closed without a word."""

_WARN_S = 10.0


@implementer(IProtocolNegotiationFactory)
class Site(Factory):
    """A web site on :class:`~llmproxy.wire.channel.Channel`.

    :param limits: deadlines and bounds, as the configuration has them.
    :ivar resource: the root of the resource tree.
    :ivar now: the time in seconds, on a clock that only goes forward.
    :ivar channels: the open connections.
    :ivar held: those that are not read from at present, and so cannot tell that the caller has left.
    :ivar half_closed: those whose caller sends no more, with the time at which it is asked next whether it is there.
    :cvar repeats: whether heads that are the same as the one before are recognised (wire/repeat.py).
    :cvar always_served: the paths that are served on a connection that is one too many too.
    :ivar draining: the proxy is about to stop; each answer says that its connection closes.
    """

    noisy = False
    repeats = True
    always_served: frozenset[bytes] = frozenset()
    requestFactory: Callable[..., Request] = Request
    channelFactory: Callable[[Site], Channel] = Channel

    _log = Logger()

    def __init__(self, resource: IResource, reactor: IReactorTime, limits: Server | None = None) -> None:
        self.resource = resource
        self.reactor = reactor
        self.limits = limits or Server()
        self.now: Callable[[], float] = reactor.seconds
        self.channels: set[Channel] = set()
        self.held: set[Channel] = set()
        self.half_closed: dict[Channel, tuple[float, float]] = {}
        self.draining = False
        self.closing = False
        self._per_host: Counter[str] = Counter()
        self._watching: IDelayedCall | None = None
        self._sweeping: IDelayedCall | None = None
        self._look_at_writes_at = 0.0
        self._surplus = 0
        self._untold: Counter[tuple[str, int]] = Counter()
        self._telling: IDelayedCall | None = None
        self._drained: list[Deferred[None]] = []

    # -- connections -----------------------------------------------------------------------------------------

    def buildProtocol(self, addr: IAddress | None) -> Any:
        """A channel for one connection; None where there are too many even of those that are one too many."""
        limits = self.limits
        host = getattr(addr, "host", None)
        of_host = limits.max_connections_per_ip
        surplus = None
        if of_host and host is not None and self._per_host[host] >= of_host:
            surplus = self._refused("max_connections_per_ip", of_host, "your address has")
        elif self._is_full() and not self._make_room():
            surplus = self._refused("max_connections", limits.max_connections, "it has")
        if surplus is not None and self._surplus >= MAX_SURPLUS:
            return None
        channel = self.channelFactory(self)
        channel.factory = self
        channel.host = host
        channel.surplus = surplus
        return channel

    def _is_full(self) -> bool:
        most = self.limits.max_connections
        return 0 < most <= len(self.channels) - self._surplus

    def _make_room(self) -> bool:
        """Close the connection that has waited longest for a next request; False if none waits for one."""
        idle = [channel for channel in self.channels if channel.is_kept_alive()]
        if not idle:
            return False
        min(idle, key=lambda channel: channel.deadline).loseConnection()
        return True

    def _refused(self, key: str, limit: int, whose: str) -> FramingError:
        self._untold[key, limit] += 1
        if self._telling is None:
            self._tell_refused()
        text = f"{whose} as many as it may have: {limit} (server.{key})"
        return FramingError(503, text, framing.TOO_MANY_CONNECTIONS)

    def _tell_refused(self) -> None:
        """Say at once that it has begun, and then now and then how many there were."""
        self._telling = None
        for (key, limit), count in self._untold.items():
            self._log.warn(
                "server.{key}: {limit} is reached; connections beyond it: {count}", key=key, limit=limit, count=count
            )
        if self._untold:
            self._untold.clear()
            self._telling = self.reactor.callLater(_WARN_S, self._tell_refused)

    def opened(self, channel: Channel) -> None:
        """``channel`` is connected."""
        self.channels.add(channel)
        if channel.surplus is not None:
            self._surplus += 1
        elif channel.host is not None:
            self._per_host[channel.host] += 1
        if self._sweeping is None:
            self._sweep_soon()

    def closed(self, channel: Channel) -> None:
        """``channel`` is no more."""
        self.channels.discard(channel)
        self.held.discard(channel)
        self.half_closed.pop(channel, None)
        host = channel.host
        if channel.surplus is not None:
            self._surplus -= 1
        elif host is not None:
            self._per_host[host] -= 1
            if not self._per_host[host]:
                del self._per_host[host]
        if not self.channels:
            drained, self._drained = self._drained, []
            for each in drained:
                each.callback(None)

    # -- time ------------------------------------------------------------------------------------------------

    def _sweep_soon(self) -> None:
        limits = self.limits
        times = (
            limits.header_timeout_s,
            limits.body_idle_timeout_s,
            limits.write_idle_timeout_s,
            limits.keepalive_timeout_s,
        )
        shortest = min((time_s for time_s in times if time_s), default=SWEEP_S * 4)
        self._sweeping = self.reactor.callLater(min(SWEEP_S, max(0.02, shortest / 4)), self._sweep)

    def _sweep(self) -> None:
        self._sweeping = None
        try:
            self._look_at_times(self.now())
        finally:  # whatever one connection raises, the others' time goes on
            if self.channels:
                self._sweep_soon()

    def _look_at_times(self, now: float) -> None:
        for channel in [channel for channel in self.channels if channel.deadline <= now]:
            channel.too_late()
        write_idle_s = self.limits.write_idle_timeout_s
        if write_idle_s and now >= self._look_at_writes_at:
            # Which connections have unsent bytes costs more to find out, so it is asked less often.
            self._look_at_writes_at = now + write_idle_s / 8
            for channel in list(self.channels):
                channel.look_at_writes(now, write_idle_s)
        for channel, (due, wait_s) in list(self.half_closed.items()):
            if due <= now:
                self.half_closed[channel] = (now + wait_s, wait_s * 2)
                channel.probe()

    def half_close(self, channel: Channel) -> None:
        """The caller of ``channel`` sends no more: see now, and again from time to time, whether it is there at all."""
        self.half_closed[channel] = (self.now() + 1.0, 2.0)
        channel.probe()
        self.reactor.callLater(RESET_S, self._look_at, channel)
        self._watch_soon()

    def watch(self, channel: Channel) -> None:
        """``channel`` is not read from: look now and then whether its caller is still there."""
        self.held.add(channel)
        self._watch_soon()

    def _watch_soon(self) -> None:
        if self._watching is None:
            self._watching = self.reactor.callLater(WATCH_S, self._watch)

    def _watch(self) -> None:
        """Ask the kernel about those that the reactor says nothing of, as it does not read from them."""
        self._watching = None
        try:
            for channel in self.held.union(self.half_closed):
                self._look_at(channel)
        finally:
            if self.held or self.half_closed:
                self._watch_soon()

    def _look_at(self, channel: Channel) -> None:
        state = peer_state(channel.transport)
        if state == GONE:
            channel.abortConnection()
        elif state == HALF_CLOSED and channel not in self.half_closed:
            channel.fin_is_waiting()

    # -- the end of service ----------------------------------------------------------------------------------

    def begin_drain(self) -> None:
        """From now on every answer whose head is still to be sent says that its connection closes."""
        self.draining = True

    def close_idle(self) -> None:
        """Close the connections that carry no request, and from now on each one when its last answer is out."""
        self.draining = self.closing = True
        for channel in list(self.channels):
            channel.close_if_idle()

    def when_drained(self) -> Deferred[None]:
        """Fires when no connection is left."""
        drained: Deferred[None] = Deferred()
        if self.channels:
            self._drained.append(drained)
        else:
            drained.callback(None)
        return drained

    def stopFactory(self) -> None:
        """Listening has ended. The deadlines of connections that are still open go on."""

    def stop(self) -> None:
        """Cut every connection now."""
        for channel in list(self.channels):
            if not channel.is_closing():
                channel.abortConnection()
        if self._telling is not None:
            self._telling.cancel()
            self._tell_refused()
        for call in (self._watching, self._sweeping, self._telling):
            if call is not None:
                call.cancel()
        self._watching = self._sweeping = self._telling = None

    def acceptableProtocols(self) -> list[bytes]:
        """ALPN: HTTP/1.1 only."""
        return [b"http/1.1"]
