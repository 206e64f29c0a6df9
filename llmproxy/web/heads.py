"""The heads that go up and down: the other side's fields, with the changes that docs/fidelity.md lists alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.web.iweb import UNKNOWN_LENGTH

from llmproxy.core import fields as f
from llmproxy.core.fields import Fields
from llmproxy.core.target import without_query_item
from llmproxy.web import uploads
from llmproxy.web.usage_request import ADDED
from llmproxy.wire.response import Response

if TYPE_CHECKING:
    from llmproxy.web.context import Route
    from llmproxy.web.exchange import Exchange

_STREAMS = (b"text/event-stream", b"application/vnd.amazon.eventstream")
_MAX_ID_CHARACTERS = 256


def upstream_rest(exchange: Exchange) -> bytes:
    if exchange.context.config.identity.strip:
        return without_query_item(exchange.rest, b"llm_user_id")
    return exchange.rest


def request_fields(exchange: Exchange, route: Route) -> Fields:
    """The caller's fields with the changes that docs/fidelity.md lists."""
    context = exchange.context
    switches = context.config.fidelity
    host = None if switches.preserve_host else route.authority
    fields = f.end_to_end(exchange.request.fields, context.request_drop, context.request_prefixes, host)
    if b"host" not in exchange.request.index:  # HTTP/1.0
        fields.insert(0, (b"Host", route.authority))
    if exchange.include_usage == ADDED:
        fields = _as_edited(exchange, fields)
    if switches.x_forwarded_for:
        fields.append((b"X-Forwarded-For", exchange.request.caller.peer_host.encode()))
    if switches.via:
        fields.append((b"Via", exchange.request.clientproto[5:] + b" llmproxy"))
    return fields


def body_length(exchange: Exchange) -> bytes | None:
    """The digits of the length of the body that is sent, as the caller wrote them where it is the caller's."""
    if exchange.include_usage == ADDED and exchange.upload is not None:
        return b"%d" % exchange.upload.length if exchange.upload.length is not UNKNOWN_LENGTH else None
    return exchange.request.index.get(b"content-length")


def _as_edited(exchange: Exchange, fields: Fields) -> Fields:
    """``fields`` for the body that was edited: its own length, and an answer that can be read without decoding."""
    length = body_length(exchange)
    return [
        (name, length)
        if length is not None and name.lower() == b"content-length"
        else (name, b"identity")
        if name.lower() == b"accept-encoding"
        else (name, value)
        for name, value in fields
    ]


def response_fields(exchange: Exchange, response: Response) -> Fields:
    """The upstream's fields with the changes that docs/fidelity.md lists."""
    config = exchange.context.config
    index = response.index
    fields = f.end_to_end(response.fields, prefixes=exchange.context.response_prefixes)
    content_type = index.get(b"content-type")
    exchange.streamed = content_type is not None and content_type.lower().startswith(_STREAMS)
    upstream_id = index.get(b"x-request-id") or index.get(b"request-id")
    if upstream_id is not None:
        exchange.upstream_request_id = upstream_id[:_MAX_ID_CHARACTERS].decode("latin-1")
    if exchange.streamed and config.fidelity.accel_buffering and b"x-accel-buffering" not in index:
        # nginx in front of us would otherwise gather events before it sends them on.
        fields.append((b"X-Accel-Buffering", b"no"))
    if config.fidelity.rewrite_upload_urls and exchange.route is not None and uploads.concerned(index):
        fields = uploads.rewritten(fields, exchange.route, _provider_url(exchange))
    if config.fidelity.via:
        fields.append((b"Via", b"1.1 llmproxy"))
    return fields


def _provider_url(exchange: Exchange) -> bytes:
    """The URL of the provider's root as this caller reaches it, for URLs that must come back through the proxy."""
    request = exchange.request
    prefix = request.uri[: len(request.uri) - len(exchange.rest)]
    return uploads.public_base(request, exchange.context.config.server, exchange.request.caller.peer_host) + prefix
