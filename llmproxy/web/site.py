"""The proxy's Site and Request: every answer gets what the proxy adds, and every request gets its Exchange.

This is the outermost layer, around the resource tree: CORS fields and the request id are put on here, so that no
answer can miss them, and each request's end is told to its exchange from here, so that none can be forgotten.
"""

from __future__ import annotations

from typing import Any, cast

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure
from twisted.web.resource import IResource

from llmproxy.core.end import EndReason
from llmproxy.core.fields import Fields
from llmproxy.core.framing import FramingError
from llmproxy.web import failures
from llmproxy.web.caller import Caller
from llmproxy.web.context import Context
from llmproxy.web.exchange import Exchange
from llmproxy.web.plan import Plan
from llmproxy.web.times import server_timing
from llmproxy.wire.channel import Channel
from llmproxy.wire.request import Request
from llmproxy.wire.server import Site


class ProxyChannel(Channel):
    """A connection with its caller."""

    __slots__ = ("caller",)
    caller: Caller

    def connectionMade(self) -> None:
        """An IPv4 caller of an IPv6 socket has an address of both kinds; the usual one is told."""
        super().connectionMade()
        self.caller = Caller(str(getattr(self.getPeer(), "host", "unix")).removeprefix("::ffff:"))


class ProxyRequest(Request):
    """A request with its exchange.

    :ivar exchange: made when the request is processed or refused.
    :ivar caller: who holds the connection; set at the same time.
    """

    __slots__ = ("caller", "exchange")

    exchange: Exchange
    caller: Caller
    site: ProxySite  # type: ignore[assignment]

    def _admit(self) -> Exchange:
        channel: Any = self.channel  # a ProxyChannel, whose site is a ProxySite
        site = self.site = channel.site
        self.caller = channel.caller
        self.exchange = Exchange(self, site.context)
        return self.exchange

    def process(self) -> None:
        """Begin the exchange; answer a browser's preflight here, before anything else."""
        exchange = self._admit()
        cors = exchange.context.cors
        if cors.is_preflight(self.method, self.index):
            exchange.route_name = "preflight"
            self.write_head(204, b"No Content", cors.preflight_fields(self.index))
            self.finish()
            return
        repeat = self.repeat
        plan: Plan | None = repeat.plan if repeat is not None else None
        if plan is None or plan.context is not exchange.context:
            super().process()
            return
        try:
            exchange.forward_again(plan)
        except Exception:  # noqa: BLE001 - as the parent: whatever is raised is one request's end
            self.processingFailed(Failure())

    def refuse(self, error: FramingError) -> None:
        """The head is not acceptable: say so in the dialect of the route, where the path still shows one."""
        exchange = self._admit()
        exchange.guess_route()
        exchange.fail(failures.refused(error))

    def processingFailed(self, reason: Failure) -> Failure:
        """A resource raised: an error of ours, in the caller's dialect."""
        self.exchange.broke(reason)
        return reason

    def write_head(self, status: int, reason: bytes, fields: Fields) -> None:
        """Begin the answer, with what the proxy adds to every one."""
        exchange = self.exchange
        context = exchange.context
        fields += context.cors.answer_fields(self.index)
        if context.config.fidelity.server_timing:
            fields.append((b"Server-Timing", server_timing(exchange)))
        if context.config.fidelity.request_id:
            fields.append((b"X-LLM-Proxy-Request-ID", exchange.request_id.encode("ascii")))
        Request.write_head(self, status, reason, fields)

    def completed(self) -> None:
        """The answer is out; the exchange is told."""
        exchange = self.exchange
        del self.exchange  # nothing asks for it after a proper end, and the two would keep each other alive
        exchange.finished()

    def not_taken(self) -> None:
        """The caller reads nothing of its answer: the exchange ends with that."""
        (getattr(self, "exchange", None) or self._admit()).not_taken()

    def end_by_drain(self) -> None:
        """The proxy stops; a pipelined request that was never begun gets its event too."""
        (getattr(self, "exchange", None) or self._admit()).drained()

    def connectionLost(self, reason: Failure) -> None:
        """The caller has left; the exchange is told. A pipelined request that was never begun gets its event too."""
        if self.finished:
            return  # it has had its end
        begun = hasattr(self, "exchange")
        exchange = self.exchange if begun else self._admit()
        super().connectionLost(reason)
        if not begun and self.site.draining:
            exchange.settle(EndReason.DRAIN)  # it was we who closed, behind the answer before it
        else:
            exchange.client_gone()


class ProxySite(Site):
    """The site of one proxy.

    :ivar context: what new exchanges are given.
    :ivar in_flight: how many exchanges with a provider have begun and not ended.
    """

    requestFactory = ProxyRequest
    channelFactory = ProxyChannel
    # A full proxy is not a sick one: a probe that is refused would have it started anew, and cut all that it serves.
    always_served = frozenset((b"/health", b"/health/live", b"/health/ready"))

    def __init__(self, resource: IResource, context: Context, reactor: IReactorTime) -> None:
        super().__init__(resource, reactor, context.config.server)
        self.context = context
        self.in_flight = 0
        self._read_on: set[Exchange] = set()

    def read_on(self, exchange: Exchange, most_s: float) -> object:
        """Remember an exchange whose answer is read to its end without its caller, for ``most_s`` seconds if not 0.

        Returns what :meth:`reads_no_more` has to be given.
        """
        self._read_on.add(exchange)
        return self.reactor.callLater(most_s, exchange.read_no_more) if most_s else exchange.request_id

    def reads_no_more(self, exchange: Exchange, told: object) -> None:
        """It has ended."""
        self._read_on.discard(exchange)
        if IDelayedCall.providedBy(told) and told.active():
            told.cancel()

    def replace(self, resource: IResource, context: Context) -> None:
        """A new configuration, for the requests that begin from now on."""
        self.resource = resource
        self.context = context
        self.limits = context.config.server
        self._look_at_writes_at = 0.0  # by the new time
        for channel in self.channels:
            channel.limits_changed()

    def stop(self) -> None:
        """End every exchange and connection now."""
        self.draining = self.closing = True
        for exchange in list(self._read_on):
            exchange.read_no_more()
        for channel in list(self.channels):
            for request in channel.requests():
                cast(ProxyRequest, request).end_by_drain()
        super().stop()
