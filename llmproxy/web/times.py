"""How the time of an exchange is divided between the proxy and others."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmproxy.web.exchange import Exchange


def own_s(exchange: Exchange, now: float) -> float:
    """Seconds that were spent in the proxy itself: before the request went out, and since the answer was here.

    now: when the head of the answer was or is written; 0.0 if none was.
    """
    progress = exchange.progress
    if progress.sent_at is None:
        return 0.0
    before = progress.sent_at - exchange.ready_at - progress.held_s
    return before + now - exchange.answer_here_at if now and exchange.answer_here_at else before


def server_timing(exchange: Exchange) -> bytes:
    """The same for the caller, at the moment when its head is written (W3C Server Timing, section 4).

    What the caller itself took to send its body, and a connection to the provider to be opened, is neither's.
    """
    now = exchange.context.now()
    sent_at = exchange.progress.sent_at
    if sent_at is None:
        return b"proxy;dur=%.1f" % ((now - exchange.began) * 1000)
    upstream = (exchange.answer_here_at or now) - sent_at
    return b"proxy;dur=%.1f, upstream;dur=%.1f" % (max(0.0, own_s(exchange, now)) * 1000, upstream * 1000)
