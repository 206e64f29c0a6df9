"""Gemini's Interactions: whole, streamed, in the background, and stored.

Shapes: https://ai.google.dev/api/interactions-api. The rules kept here: the events are named by `event_type`; the
usage comes with `interaction.completed`, in snake_case, its output without the thoughts; what was made in the
background tells it each time that it is fetched, and the record has it once.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from llmproxy.simulate import catalog
from llmproxy.simulate.answer import Answer, Question, Tool, answer_to, dumps
from llmproxy.simulate.ask import Ask, House, Refusal, Reply, new_id
from llmproxy.simulate.dialects import rfc3339
from llmproxy.simulate.gemini import JSON, modalities, served_of
from llmproxy.simulate.openai_chat import text_of, whole_number
from llmproxy.simulate.served import Served

_BACKGROUND_S: Final = 0.5
_STORED_PIECES: Final = 4096
"""A streamed interaction of more pieces than this is not stored: it would be held in memory whole."""
_SIGNATURE: Final = "U2ltdWxhdGVkIHRob3VnaHQ="


@dataclass(slots=True, kw_only=True)
class Interaction:
    """One that can be fetched: without its end, and what is added by that."""

    begun: dict[str, Any]
    ended: dict[str, Any]
    served: Served
    ready_s: float
    counted: bool


def _texts(given: object) -> tuple[list[str], int]:
    """The texts of the input, turn by turn, and how many parts are not text."""
    if isinstance(given, str):
        return [given], 0
    turns = given if isinstance(given, list) else [given]
    read = [text_of(turn.get("content", [turn]) if isinstance(turn, Mapping) else turn) for turn in turns]
    return [text for text, _ in read], sum(others for _, others in read)


def _question(body: Mapping[str, Any], model: str) -> Question:
    texts, attachments = _texts(body["input"])
    if isinstance(body.get("system_instruction"), str):
        texts.insert(0, body["system_instruction"])
    config = body.get("generation_config") or {}
    return Question(
        texts=texts,
        asked=texts[-1] if texts else "",
        attachments=attachments,
        tools=[
            Tool(name=tool["name"], schema=tool.get("parameters") or {})
            for tool in body.get("tools") or []
            if tool.get("type") == "function" and isinstance(tool.get("name"), str)
        ],
        max_tokens=whole_number(config.get("max_output_tokens")),
        thinks=catalog.thinks(catalog.GEMINI, model),
    )


def _usage(answer: Answer, tool_use: int) -> dict[str, Any]:
    def split(counts: list[tuple[str, int]]) -> list[dict[str, Any]]:
        return [{"modality": name.lower(), "tokens": tokens} for name, tokens in counts if tokens]

    return {
        "total_input_tokens": answer.prompt_tokens,
        "input_tokens_by_modality": split(modalities(answer)),
        "total_cached_tokens": answer.cached_tokens,
        "cached_tokens_by_modality": split([("TEXT", answer.cached_tokens)]),
        "total_output_tokens": answer.text_tokens,
        "output_tokens_by_modality": split([("TEXT", answer.text_tokens)]),
        "total_tool_use_tokens": tool_use,
        "tool_use_tokens_by_modality": split([("TEXT", tool_use)]),
        "total_thought_tokens": answer.thought_tokens,
        "total_tokens": answer.prompt_tokens + tool_use + answer.output_tokens,
    }


def _call_step(answer: Answer, arguments: object) -> dict[str, Any]:
    name = answer.call.name if answer.call else ""
    return {"type": "function_call", "id": new_id("call_", 16), "name": name, "arguments": arguments}


def _steps(answer: Answer) -> list[dict[str, Any]]:
    """The steps of an answer, whole."""
    steps: list[dict[str, Any]] = [{"type": "thought", "signature": _SIGNATURE}] if answer.thought_tokens else []
    if answer.call:
        return [*steps, _call_step(answer, msgspec.json.decode(answer.call.arguments))]
    return [*steps, {"type": "model_output", "content": [{"type": "text", "text": answer.text()}]}]


def create(ask: Ask, house: House) -> Reply:
    """`POST /v1beta/interactions`."""
    body = ask.json()
    model = ask.model(body.get("model")).removeprefix("models/")
    if "input" not in body:
        raise Refusal(400, "Missing required parameter: input")
    answer = answer_to(_question(body, model), ask.wishes)
    background = body.get("background") is True
    now = rfc3339(ask.now_s)
    begun = {
        "id": new_id("v1_", 40),
        "object": "interaction",
        "model": model,
        "status": "in_progress",
        "created": now,
        "updated": now,
    }
    status = "requires_action" if answer.call else "incomplete" if answer.stop == "length" else "completed"
    told = not ask.wishes.without_usage
    ended: dict[str, Any] = {"status": status}
    if told:
        ended["usage"] = _usage(answer, ask.wishes.tool_use_tokens)
    streamed = body.get("stream") is True
    served = served_of(answer, model, str(begun["id"]), ask.wishes.tool_use_tokens, told=told and not streamed)
    if not streamed:
        ask.must_fit()
    if not streamed or answer.count <= _STORED_PIECES:
        house.interactions[str(begun["id"])] = Interaction(
            begun=begun,
            ended=ended | {"steps": _steps(answer)},
            served=served,
            ready_s=ask.now_s + ask.wishes.delay_s + _BACKGROUND_S if background else 0.0,
            # What was not made in the background was billed when it was made, however that ended.
            counted=streamed or not background,
        )
    if streamed:
        events = _stream(begun, ended, answer, served)
        return Reply(events=events, content_type=b"text/event-stream", served=served)
    ended["steps"] = _steps(answer)
    if background:
        return Reply(body=dumps(begun), content_type=JSON)
    return Reply(body=dumps(begun | ended), content_type=JSON, served=served)


def _stream(begun: dict[str, Any], ended: dict[str, Any], answer: Answer, served: Served) -> Iterator[bytes]:
    number = 0

    def event(name: str, **members: object) -> bytes:
        nonlocal number
        number += 1
        value = {"event_type": name, "event_id": f"event_{number}"} | members
        return b"event: " + name.encode() + b"\ndata: " + dumps(value) + b"\n\n"

    yield event("interaction.created", interaction=begun)
    yield event("interaction.status_update", interaction_id=begun["id"], status="in_progress")
    index = 0
    if answer.thought_tokens:
        yield event("step.start", index=index, step={"type": "thought"})
        yield event("step.delta", index=index, delta={"type": "thought_signature", "signature": _SIGNATURE})
        yield event("step.stop", index=index)
        index += 1
    if answer.call:
        served.made(answer.call.name_tokens)
        yield event("step.start", index=index, step=_call_step(answer, {}))
        for piece, tokens in answer.call.counted_pieces():
            served.made(tokens)
            yield event("step.delta", index=index, delta={"type": "arguments_delta", "arguments": piece})
    else:
        yield event("step.start", index=index, step={"type": "model_output"})
        for piece, tokens in answer.counted_pieces():
            served.made(tokens)
            yield event("step.delta", index=index, delta={"type": "text", "text": piece})
    yield event("step.stop", index=index)
    if "usage" in ended:
        served.told()
    yield event("interaction.completed", interaction=begun | ended)
    yield b"event: done\ndata: [DONE]\n\n"


def fetch(ask: Ask, house: House) -> Reply:
    """`GET /v1beta/interactions/{id}`."""
    known: Interaction | None = house.interactions.get(ask.found["id"])
    if known is None:
        raise Refusal(404, f"Interaction not found: {ask.found['id']}")
    if ask.now_s < known.ready_s:
        return Reply(body=dumps(known.begun), content_type=JSON)
    served, known.counted = None if known.counted else known.served, True
    return Reply(body=dumps(known.begun | known.ended), content_type=JSON, served=served)
