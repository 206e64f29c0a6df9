"""OpenAI's batches of chat completions: made from a file of requests, done when they are asked for the second time.

Shapes: https://platform.openai.com/docs/api-reference/batch and /docs/guides/batch. The rule kept here: the
usage is that of all its requests together, is told when the batch is done, and from then on each time again; the record
has it once.
"""

from dataclasses import dataclass
from typing import Any

import msgspec

from llmproxy.simulate.answer import answer_to, dumps
from llmproxy.simulate.ask import Ask, House, Refusal, Reply, new_id
from llmproxy.simulate.openai_chat import choices_of, frame_of, question_of, served_of, whole_of
from llmproxy.simulate.served import Served

_ENDPOINT = "/v1/chat/completions"


@dataclass(slots=True, kw_only=True)
class Batch:
    """A batch: as it is shown, the answers' lines, how many there are, what they used, how often it was asked for."""

    shown: dict[str, Any]
    output: bytes
    counts: dict[str, int]
    served: Served
    usage: dict[str, Any] | None
    asked: int = 0


def create(ask: Ask, house: House) -> Reply:
    """`POST batches`. The requests are answered at once, but that is not shown yet."""
    body = ask.json()
    if body.get("endpoint") != _ENDPOINT:
        raise Refusal(400, f"Only {_ENDPOINT} is simulated in a batch.", param="endpoint")
    held: tuple[dict[str, Any], bytes] | None = house.files.get(str(body.get("input_file_id")))
    if held is None:
        raise Refusal(400, f"Invalid 'input_file_id': no such File object: {body.get('input_file_id')}")
    batch_id = new_id("batch_", 32)
    answered = [_answer(ask, line) for line in held[1].splitlines() if line.strip()]
    ask.read_wishes()  # those of the batch, not of its last request
    used = [served for _, served in answered if served is not None]
    served = Served(
        provider=ask.provider,
        model=used[0].model if used else "",
        response_id=batch_id,
        input_tokens=sum(one.input_tokens for one in used),
        output_tokens=sum(one.output_tokens for one in used),
        cache_read_tokens=sum(one.cache_read_tokens for one in used),
        reasoning_tokens=sum(one.reasoning_tokens for one in used),
        told=not ask.wishes.without_usage,
    )
    usage = {
        "input_tokens": served.input_tokens,
        "input_tokens_details": {"cached_tokens": served.cache_read_tokens},
        "output_tokens": served.output_tokens,
        "output_tokens_details": {"reasoning_tokens": served.reasoning_tokens},
        "total_tokens": served.input_tokens + served.output_tokens,
    }
    shown = {
        "id": batch_id,
        "object": "batch",
        "endpoint": _ENDPOINT,
        "model": served.model or None,
        "errors": None,
        "input_file_id": body["input_file_id"],
        "completion_window": body.get("completion_window", "24h"),
        "status": "validating",
        "output_file_id": None,
        "error_file_id": None,
        "created_at": ask.created,
        "in_progress_at": None,
        "expires_at": ask.created + 86_400,
        "completed_at": None,
        "request_counts": {"total": len(answered), "completed": 0, "failed": 0},
        "metadata": body.get("metadata"),
    }
    house.batches[batch_id] = Batch(
        shown=shown,
        output=b"".join(dumps(line) + b"\n" for line, _ in answered),
        counts={"total": len(answered), "completed": len(used), "failed": len(answered) - len(used)},
        served=served,
        usage=None if ask.wishes.without_usage else usage,
    )
    return Reply(body=dumps(shown))


def _answer(ask: Ask, line: bytes) -> tuple[dict[str, Any], Served | None]:
    """The line that answers a line, and what that used; nothing where it was refused."""
    custom_id = None
    try:
        asked = msgspec.json.decode(line)
        custom_id, body = asked["custom_id"], asked["body"]
        model = ask.model(body.get("model"))
        answer = answer_to(question_of(ask, body, model), ask.wishes)
        frame = frame_of(ask, body, model, "chat.completion")
        status, made = 200, whole_of(ask, body, frame, answer)
        served: Served | None = served_of(ask, frame, answer, choices_of(body))
    except (Refusal, msgspec.MsgspecError, AttributeError, KeyError, TypeError) as problem:
        status = problem.status if isinstance(problem, Refusal) else 400
        made, served = {"error": {"message": str(problem), "type": "invalid_request_error"}}, None
    response = {"status_code": status, "request_id": new_id("req_", 32), "body": made}
    return {"id": new_id("batch_req_", 32), "custom_id": custom_id, "response": response, "error": None}, served


def fetch(ask: Ask, house: House) -> Reply:
    """`GET batches/{id}`: in progress the first time, completed from the second time on."""
    batch: Batch | None = house.batches.get(ask.found["id"])
    if not isinstance(batch, Batch):
        raise Refusal(404, f"No batch found with id '{ask.found['id']}'.")
    batch.asked += 1
    if batch.asked == 1:
        batch.shown |= {"status": "in_progress", "in_progress_at": ask.created}
        return Reply(body=dumps(batch.shown))
    if batch.asked > 2:
        return Reply(body=dumps(batch.shown))
    output_id = new_id("file-", 22)
    described = {
        "id": output_id,
        "object": "file",
        "bytes": len(batch.output),
        "created_at": ask.created,
        "expires_at": None,
        "filename": f"{ask.found['id']}_output.jsonl",
        "purpose": "batch_output",
        "status": "processed",
        "status_details": None,
    }
    house.files[output_id] = (described, batch.output)
    batch.shown |= {
        "status": "completed",
        "completed_at": ask.created,
        "output_file_id": output_id,
        "request_counts": batch.counts,
        "usage": batch.usage,
    }
    return Reply(body=dumps(batch.shown), served=batch.served)
