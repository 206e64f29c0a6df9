"""What is written of an exchange at its end: the access event, and the row of the ledger."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from twisted.logger import Logger

from llmproxy.accounting.account import Charge
from llmproxy.core.end import EndReason
from llmproxy.observe.access import AccessRecord
from llmproxy.state.ledger.row import Row, json_text
from llmproxy.web.times import own_s

_log: Final = Logger()

if TYPE_CHECKING:
    from llmproxy.web.exchange import Exchange


def said_by_head(exchange: Exchange) -> tuple[Any, ...]:
    """What follows from the head alone: credential id, user but for the body's, path, sdk, client, method."""
    plan = exchange.plan
    if plan is not None and plan.said is not None:
        return plan.said
    request = exchange.request
    context = exchange.context
    caller = request.caller
    query = request.uri.partition(b"?")[2]
    credential_id = caller.credential_id(request, query, context.credential_ids)
    client = caller.address(request.fields, context.config.server)
    said = (
        credential_id,
        caller.user(request, query, exchange.meta_user, None, client),
        caller.path(request.path),
        caller.sdk(request.index.get(b"user-agent")),
        client,
        request.method.decode("latin-1"),
    )
    if plan is not None:
        plan.said = said
    return said


def user_of(exchange: Exchange, user: str, client: str) -> str:
    """The user, where the body names one; ``user`` is who it is without the body."""
    in_body = exchange.peek.user if exchange.peek is not None else None
    if not in_body:
        return user
    request = exchange.request
    return request.caller.user(request, request.uri.partition(b"?")[2], exchange.meta_user, in_body, client)


def write_down(exchange: Exchange, end_reason: EndReason, charge: Charge) -> None:
    """Write what there is to write of an exchange that ends now."""
    context, route = exchange.context, exchange.route
    try:
        record = access_record(exchange, end_reason, charge)
    except Exception:  # noqa: BLE001 - what cannot be written ends no connection
        _log.failure("the access event of {request_id} could not be made", request_id=exchange.request_id)
        return
    write_row = context.write_row
    if write_row is not None and route is not None and route.accounting.enabled:
        try:
            write_row(ledger_row(record, exchange, charge, context.wall_time()))
        except Exception:  # noqa: BLE001 - likewise, nor the event
            _log.failure("the row of {request_id} could not be made", request_id=exchange.request_id)
    if context.config.log.access:
        write_access = context.write_access
        try:
            write_access(record)
        except Exception:  # noqa: BLE001 - likewise
            _log.failure("the access event of {request_id} could not be written", request_id=exchange.request_id)


def access_record(exchange: Exchange, end_reason: EndReason, charge: Charge) -> AccessRecord:
    """The access event of an exchange that ends now."""
    request = exchange.request
    now = exchange.context.now()
    began = exchange.began
    progress = exchange.progress
    answer_at, head_at = exchange.answer_at, exchange.head_at
    credential_id, user, path, sdk, client, method = said_by_head(exchange)
    own = own_s(exchange, head_at)
    upload = exchange.upload
    usage, reading = charge.usage, charge.reading
    return AccessRecord(
        "",  # time: for the observer to fill in
        "access",
        exchange.request_id,
        exchange.upstream_request_id or None,
        user_of(exchange, user, client),
        credential_id,
        exchange.route.provider.name if exchange.route is not None else None,
        exchange.route_name or None,
        method,
        path,
        exchange.model or ("unknown" if upload is not None else None),
        exchange.stream_requested,
        exchange.streamed,
        request.status or None,
        upload.received_bytes if upload is not None else 0,
        request.sent_body_bytes,
        request.sent_pieces if head_at else 0,
        int((answer_at - began) * 1e6) / 1000 if answer_at else None,
        int(progress.connect_s * 1e6) / 1000 if progress.connect_s is not None else None,
        int(own * 1e6) / 1000 if own > 0.0 else 0.0,
        int((now - began) * 1e6) / 1000,
        end_reason,
        exchange.phase,
        sdk,
        progress.retries,
        exchange.error_class or None,
        exchange.error_detail or None,
        client,
        charge.source,
        charge.reason,
        usage.total_input,
        usage.total_output,
        usage.cache_read_tokens,
        usage.cache_write_5m_tokens + usage.cache_write_1h_tokens,
        usage.reasoning_tokens,
        charge.cost_nano_usd,
        charge.unpriced,
        reading.model,
        reading.finish_reason,
        exchange.include_usage,
    )


def ledger_row(record: AccessRecord, exchange: Exchange, charge: Charge, wall_time_s: float) -> Row:
    """The ledger's row of an exchange: what its access event says, and all that its cost follows from.

    By position, as the event: it is made for each request.
    """
    usage, reading = charge.usage, charge.reading
    return Row(
        int(wall_time_s * 1e9),
        record.request_id,
        record.provider or "",
        record.route,
        reading.shape or None,
        record.credential_id,
        record.user,
        exchange.model,
        reading.model,
        record.streamed,
        record.status or 0,
        record.end_reason,
        record.duration_ms,
        record.ttfb_ms,
        record.upstream_request_id,
        reading.response_id,
        usage.input_tokens,
        usage.cache_read_tokens,
        usage.cache_write_5m_tokens,
        usage.cache_write_1h_tokens,
        usage.tool_use_tokens,
        usage.output_tokens,
        usage.reasoning_tokens,
        usage.input_audio_tokens,
        usage.input_image_tokens,
        usage.output_audio_tokens,
        usage.output_image_tokens,
        record.input_tokens,
        record.output_tokens,
        json_text(usage.server_tools) if usage.server_tools else None,
        usage.audio_ms,
        json_text(usage.parts) if usage.parts else None,
        charge.source,
        charge.reason,
        reading.service_tier,
        reading.speed,
        reading.inference_geo,
        reading.batch,
        reading.finish_reason,
        charge.cost_nano_usd,
        charge.price_version,
        record.request_bytes,
        record.response_bytes,
        record.error_class,
        charge.once,
    )
