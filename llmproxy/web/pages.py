"""The proxy's own pages: health for machines, a short text for people.

They touch nothing outside this process and answer in well under a millisecond, so that a probe can never hang on a
provider.
"""

from __future__ import annotations

import html

import msgspec
from twisted.web.resource import IResource, Resource
from twisted.web.server import NOT_DONE_YET

from llmproxy.core import errors
from llmproxy.core.errors import ProxyError
from llmproxy.observe.redact import text_without_keys
from llmproxy.web import uploads
from llmproxy.web.context import Context
from llmproxy.web.site import ProxyRequest


class NoRoute(Resource):
    """The 404 for any path that leads nowhere."""

    isLeaf = True

    def render(self, request: ProxyRequest) -> int:
        """Name the prefixes that there are."""
        request.exchange.fail(unknown_route(request.exchange.context))
        return NOT_DONE_YET


def unknown_route(context: Context, remark: str = "") -> ProxyError:
    """The 404, with the prefixes that would have led somewhere; ``remark`` is a sentence to put before them."""
    prefixes = ", ".join(f"/{name}/" for name in context.routes)
    ways = f"Paths begin with one of {prefixes} (or /meta/{{user}}/ before it); /health tells the state."
    return ProxyError(errors.UNKNOWN_ROUTE, detail=f"{remark} {ways}" if remark else ways)


def _answer(request: ProxyRequest, content_type: bytes, body: bytes) -> bytes | int:
    """``body`` for GET and HEAD; the 405 for the rest."""
    if request.method not in (b"GET", b"HEAD"):
        request.exchange.fail(ProxyError(errors.METHOD_NOT_ALLOWED), [(b"Allow", b"GET, HEAD")])
        return NOT_DONE_YET
    request.setHeader(b"content-type", content_type)
    request.setHeader(b"cache-control", b"no-store")
    return body


class Health(Resource):
    """``/health`` and, below it, ``live``, ``ready`` and ``accounting``."""

    def __init__(self) -> None:
        super().__init__()
        self.putChild(b"live", State("live"))
        self.putChild(b"ready", State("ready"))
        self.putChild(b"accounting", AccountingState())

    def getChild(self, path: bytes, request: ProxyRequest) -> IResource:
        """``/health/`` is ``/health``; anything else below is the 404."""
        return self if not path and not request.postpath else NoRoute()

    def render(self, request: ProxyRequest) -> bytes | int:
        """The state of the proxy and what is configured for each provider; no provider is asked."""
        exchange = request.exchange
        exchange.route_name = "health"
        context = exchange.context
        report: dict[str, object] = {
            "status": "healthy",
            "timestamp": int(context.wall_time()),
            "providers": {name: route.provider.health_report() for name, route in context.routes.items()},
            "features": {
                "cost_tracking": context.books is not None,
                "rate_limiting": context.config.features.rate_limiting.enabled,
            },
        }
        if context.books is not None:
            report["accounting"] = {"unpriced": context.books.unpriced}
        if context.ledger_state is not None:
            report["ledger"] = context.ledger_state()
        return _answer(request, b"application/json", msgspec.json.encode(report))


class State(Resource):
    """``/health/live``: this process answers. ``/health/ready``: it takes requests."""

    isLeaf = True

    def __init__(self, state: str) -> None:
        super().__init__()
        self._state = state

    def render(self, request: ProxyRequest) -> bytes | int:
        """One word. What distributes requests is told to send no more before the proxy stops to take them."""
        request.exchange.route_name = "health"
        state = self._state
        if state == "ready" and request.site.draining:
            request.setResponseCode(503, b"Service Unavailable")
            state = "draining"
        return _answer(request, b"application/json", msgspec.json.encode({"status": state}))


class AccountingState(Resource):
    """``/health/accounting``: what was learned of each model, for estimates, and how near they were."""

    isLeaf = True

    def render(self, request: ProxyRequest) -> bytes | int:
        """By provider and model. A caller may have written its key where the model belongs, so names are masked."""
        exchange = request.exchange
        exchange.route_name = "health"
        books = exchange.context.books
        learned = books.calibration.export() if books is not None else {}
        estimates = {
            provider: {text_without_keys(model): figures for model, figures in models.items()}
            for provider, models in learned.items()
        }
        report = {"unpriced": books.unpriced if books is not None else 0, "estimates": estimates}
        return _answer(request, b"application/json", msgspec.json.encode(report))


class Index(Resource):
    """``/``: what this is, and the base URL of every provider."""

    def getChild(self, path: bytes, request: ProxyRequest) -> IResource:
        """``//anything`` is below an empty segment, and leads nowhere."""
        return NoRoute()

    def render(self, request: ProxyRequest) -> bytes | int:
        """Plain text; HTML for a browser."""
        exchange = request.exchange
        exchange.route_name = "index"
        here = uploads.public_base(request, exchange.context.config.server, request.caller.peer_host).decode("latin-1")
        routes = exchange.context.routes.values()
        lines = [(route.provider.title, here + route.provider.sdk_path) for route in routes]
        if b"text/html" in (request.index.get(b"accept") or b""):
            rows = "".join(
                f"<tr><th>{html.escape(title)}</th><td><code>{html.escape(url)}</code></td></tr>"
                for title, url in lines
            )
            page = (
                '<!doctype html><html lang="en"><meta charset="utf-8"><title>llmproxy</title>'
                "<style>body{font:16px/1.5 system-ui,sans-serif;max-width:48em;margin:3em auto;padding:0 1em}"
                "th{text-align:left;padding-right:2em}</style>"
                "<h1>llmproxy</h1><p>A reverse proxy for LLM providers. Point your SDK's base URL here, and change "
                f"nothing else:</p><table>{rows}</table>"
                '<p>State: <a href="/health">/health</a></p></html>\n'
            )
            request.setHeader(b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'")
            return _answer(request, b"text/html; charset=utf-8", page.encode())
        width = max((len(title) for title, _ in lines), default=0)
        text = (
            "llmproxy: a reverse proxy for LLM providers. Point your SDK's base_url here, and change nothing else.\n\n"
        )
        text += "".join(f"  {title:<{width}}  {url}\n" for title, url in lines)
        return _answer(request, b"text/plain; charset=utf-8", (text + "\nState: /health\n").encode())
