"""Anthropic's batches of messages: they have ended when they are asked for, and their results are JSON lines.

Shapes: https://docs.anthropic.com/en/api/creating-message-batches and /en/docs/build-with-claude/batch-processing.
The rule kept here: the usage is in the results alone, one message a line, and may be fetched again and again; the
record has it once.
"""

from dataclasses import dataclass
from typing import Any

from llmproxy.simulate.answer import dumps
from llmproxy.simulate.anthropic import message_to
from llmproxy.simulate.ask import Ask, House, Refusal, Reply, new_id
from llmproxy.simulate.dialects import ANTHROPIC, rfc3339
from llmproxy.simulate.served import Served


@dataclass(slots=True, kw_only=True)
class MessageBatch:
    """A batch: as it is shown, the lines of its results, what they used, and whether they were fetched."""

    shown: dict[str, Any]
    results: bytes
    counts: dict[str, int]
    served: Served
    fetched: bool = False


def create(ask: Ask, house: House) -> Reply:
    """`POST /v1/messages/batches`. The requests are answered at once, but that is not shown yet."""
    requests = ask.json().get("requests")
    if not isinstance(requests, list) or not requests:
        raise Refusal(400, "requests: Field required")
    answered = [_answer(ask, request) for request in requests]
    ask.read_wishes()  # those of the batch, not of its last request
    batch_id = new_id("msgbatch_01", 22)
    used = [served for _, served in answered if served is not None]
    model = used[0].model if used else ""
    served = Served(
        provider="anthropic",
        model=model,
        response_id=None,
        input_tokens=sum(one.input_tokens for one in used),
        output_tokens=sum(one.output_tokens for one in used),
        cache_read_tokens=sum(one.cache_read_tokens for one in used if one.model == model),
        cache_write_5m_tokens=sum(one.cache_write_5m_tokens for one in used if one.model == model),
        cache_write_1h_tokens=sum(one.cache_write_1h_tokens for one in used if one.model == model),
        reasoning_tokens=sum(one.reasoning_tokens for one in used if one.model == model),
        other_models=tuple(sorted({one.model for one in used} - {model})),
        told=not ask.wishes.without_usage,
    )
    waiting = {"processing": len(answered), "succeeded": 0, "errored": 0, "canceled": 0, "expired": 0}
    shown = {
        "id": batch_id,
        "type": "message_batch",
        "processing_status": "in_progress",
        "request_counts": waiting,
        "ended_at": None,
        "created_at": rfc3339(ask.now_s),
        "expires_at": rfc3339(ask.now_s + 86_400),
        "archived_at": None,
        "cancel_initiated_at": None,
        "results_url": None,
    }
    house.batches[batch_id] = MessageBatch(
        shown=shown,
        results=b"".join(dumps(line) + b"\n" for line, _ in answered),
        counts=waiting | {"processing": 0, "succeeded": len(used), "errored": len(answered) - len(used)},
        served=served,
    )
    return Reply(body=dumps(shown))


def _answer(ask: Ask, request: dict[str, Any]) -> tuple[dict[str, Any], Served | None]:
    """The line of one request, and what that used; nothing where it was refused."""
    try:
        body = request["params"]
        message, served, _ = message_to(ask, body, ask.model(body.get("model")), streamed=False)
    except Refusal as refusal:
        error = {"type": "error", "error": ANTHROPIC.error(refusal)}
        return {"custom_id": request.get("custom_id"), "result": {"type": "errored", "error": error}}, None
    if "usage" in message:
        message["usage"]["service_tier"] = "batch"
    return {"custom_id": request.get("custom_id"), "result": {"type": "succeeded", "message": message}}, served


def _known(ask: Ask, house: House) -> MessageBatch:
    batch = house.batches.get(ask.found["id"])
    if not isinstance(batch, MessageBatch):
        raise Refusal(404, f"Not found: {ask.found['id']}")
    return batch


def fetch(ask: Ask, house: House) -> Reply:
    """`GET /v1/messages/batches/{id}`: it has ended, and says where the results are."""
    batch = _known(ask, house)
    batch.shown |= {
        "processing_status": "ended",
        "ended_at": batch.shown["ended_at"] or rfc3339(ask.now_s),
        "request_counts": batch.counts,
        "results_url": f"{ask.origin}/v1/messages/batches/{ask.found['id']}/results",
    }
    return Reply(body=dumps(batch.shown))


def results(ask: Ask, house: House) -> Reply:
    """`GET /v1/messages/batches/{id}/results`."""
    batch = _known(ask, house)
    served, batch.fetched = None if batch.fetched else batch.served, True
    return Reply(body=batch.results, content_type=b"application/x-jsonl", served=served)
