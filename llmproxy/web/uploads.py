"""Resumable uploads: the one answer whose fields are rewritten, so that the upload comes back through the proxy.

Google answers the start of an upload with the absolute URL to send the bytes to, in ``X-Goog-Upload-URL`` and
``X-Goog-Upload-Control-URL``. The SDKs send them straight there, past the proxy. So a URL that lies within the
provider's own origin is moved below the prefix that the caller used; one that points anywhere else is left alone.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING

from llmproxy.config.model import Server
from llmproxy.core.fields import Fields, Index

if TYPE_CHECKING:
    from llmproxy.web.context import Route
    from llmproxy.wire.request import Request

_FIELDS = frozenset((b"x-goog-upload-url", b"x-goog-upload-control-url"))


def concerned(index: Index) -> bool:
    """Whether an answer with these fields has any to rewrite."""
    return b"x-goog-upload-url" in index or b"x-goog-upload-control-url" in index


def rewritten(fields: Fields, route: Route, prefix: bytes) -> Fields:
    """``fields`` with upload URLs below ``prefix`` (scheme, authority and the path that leads to the provider)."""
    base = route.root + route.provider.path_prefix
    return [
        (name, prefix + value[len(base) :])
        if name.lower() in _FIELDS and value.startswith(base + b"/")
        else (name, value)
        for name, value in fields
    ]


def public_base(request: Request, config: Server, peer_host: str) -> bytes:
    """Scheme and authority under which the caller reaches the proxy, without a slash at the end.

    ``server.public_url``; else the Host that the caller used. A trusted proxy in front of us may have taken TLS
    off; then its ``X-Forwarded-Proto`` tells the scheme.
    """
    if config.public_url is not None:
        return config.public_url.encode("ascii")
    secure = request.channel is not None and request.channel.isSecure()
    scheme = b"https" if secure else b"http"
    forwarded = request.index.get(b"x-forwarded-proto")
    if forwarded in (b"http", b"https") and _is_trusted(peer_host, config):
        scheme = forwarded
    host = request.index.get(b"host") or b"localhost"
    return scheme + b"://" + host


def _is_trusted(peer_host: str, config: Server) -> bool:
    if not config.trusted_proxies:
        return False
    try:
        address = ip_address(peer_host)
    except ValueError:
        return False
    return any(address in network for network in config.trusted_proxies)
