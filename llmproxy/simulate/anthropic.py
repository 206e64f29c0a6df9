"""Anthropic's messages: whole and streamed, thinking, tool calls, cache; count_tokens; models.

Shapes: https://docs.anthropic.com/en/api/messages and /en/docs/build-with-claude/streaming. The rules kept
here: `message_start` has the input counts and about one output token, `message_delta` has the cumulative
usage; `input_tokens` leaves out what was read from or written to the cache; every event has a name.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from llmproxy.simulate import catalog
from llmproxy.simulate.answer import Answer, Call, Question, Tool, answer_to, dumps, seed_of, tokens_of
from llmproxy.simulate.ask import Ask, House, Refusal, Reply, new_id
from llmproxy.simulate.openai_chat import SSE, text_of, whole_number

_STOPS = {"stop": "end_turn", "length": "max_tokens", "tool": "tool_use"}


def _tool_result(turn: Mapping[str, Any]) -> bool:
    content = turn.get("content")
    return isinstance(content, list) and any(
        isinstance(part, Mapping) and part.get("type") == "tool_result" for part in content
    )


def _thinks(body: Mapping[str, Any]) -> bool:
    thinking = body.get("thinking")
    return isinstance(thinking, Mapping) and thinking.get("type") in ("enabled", "adaptive")


def _question(body: Mapping[str, Any]) -> Question:
    messages = body.get("messages")
    if not isinstance(messages, list) or not all(isinstance(turn, dict) for turn in messages):
        raise Refusal(400, "messages: Field required")
    if not messages:
        raise Refusal(400, "messages: at least one message is required")
    contents = [text_of(turn.get("content")) for turn in messages]
    system, _ = text_of(body.get("system"))
    choice = body.get("tool_choice") or {}
    kinds = {"any": "required", "none": "none", "tool": f"={choice.get('name', '')}"}
    form = (body.get("output_config") or {}).get("format") or body.get("output_format") or {}
    return Question(
        texts=([system] if system else []) + [text for text, _ in contents],
        asked=contents[-1][0],
        attachments=sum(others for _, others in contents),
        after_tool=_tool_result(messages[-1]),
        tools=[
            Tool(name=tool["name"], schema=tool["input_schema"])
            for tool in body.get("tools") or []
            if isinstance(tool, Mapping) and isinstance(tool.get("input_schema"), Mapping) and tool.get("name")
        ],
        tool_choice=kinds.get(str(choice.get("type")), "auto"),
        max_tokens=whole_number(body.get("max_tokens")),
        schema=form.get("schema") if form.get("type") == "json_schema" else None,
        thinks=_thinks(body),
    )


def _marked(body: Mapping[str, Any]) -> tuple[int, bool]:
    """Tokens of the prompt up to the last `cache_control`, and whether that one lives an hour."""
    so_far = marked = 0
    hour = False
    blocks: list[Any] = list(body.get("tools") or [])
    blocks += body["system"] if isinstance(body.get("system"), list) else [body.get("system")]
    for turn in body.get("messages") or []:
        content = turn.get("content")
        blocks += content if isinstance(content, list) else [content]
    for block in blocks:
        if isinstance(block, Mapping):
            so_far += tokens_of(text_of([block])[0]) + 3
            if isinstance(block.get("cache_control"), Mapping):
                marked, hour = so_far, block["cache_control"].get("ttl") == "1h"
        elif isinstance(block, str):
            so_far += tokens_of(block) + 3
    return marked, hour


def _usage(body: Mapping[str, Any], answer: Answer, asked_cached: int | None) -> dict[str, Any]:
    marked, hour = _marked(body)
    read = asked_cached or 0
    written = min(max(0, marked - read), answer.prompt_tokens - read) if marked else 0
    return {
        "input_tokens": max(0, answer.prompt_tokens - read - written),
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": read,
        "cache_creation": {
            "ephemeral_5m_input_tokens": 0 if hour else written,
            "ephemeral_1h_input_tokens": written if hour else 0,
        },
        "output_tokens": answer.output_tokens,
        "service_tier": "standard",
        "inference_geo": "global",
    }


def _event(value: dict[str, Any]) -> bytes:
    return b"event: " + str(value["type"]).encode() + b"\ndata: " + dumps(value) + b"\n\n"


def _signature(answer: Answer) -> str:
    return f"EqQBCkYIBRgCSimulated{seed_of(str(answer.seed)):016x}=="


def messages(ask: Ask, house: House) -> Reply:
    """`POST /v1/messages`."""
    body = ask.json()
    model = ask.model(body.get("model"))
    if not whole_number(body.get("max_tokens")):
        raise Refusal(400, "max_tokens: Field required")
    answer = answer_to(_question(body), ask.wishes)
    usage = _usage(body, answer, ask.wishes.cached_tokens)
    message: dict[str, Any] = {
        "id": new_id("msg_01", 24),
        "type": "message",
        "role": "assistant",
        "model": catalog.ANTHROPIC_ALIASES.get(model, model),
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage,
    }
    shown = _thinks(body)
    if body.get("stream") is True:
        return Reply(events=_stream(message, answer, shown=shown), content_type=SSE)
    ask.must_fit()
    content: list[dict[str, Any]] = []
    if shown:
        content.append({"type": "thinking", "thinking": "".join(answer.thoughts()), "signature": _signature(answer)})
    if answer.call:
        content.append(_tool_block(answer.call, msgspec.json.decode(answer.call.arguments)))
    else:
        content.append({"type": "text", "text": answer.text()})
    usage["output_tokens_details"] = {"thinking_tokens": answer.thought_tokens}
    return Reply(body=dumps(message | {"content": content, "stop_reason": _STOPS[answer.stop]}))


def _tool_block(call: Call, arguments: object) -> dict[str, Any]:
    return {"type": "tool_use", "id": new_id("toolu_01", 24), "name": call.name, "input": arguments}


def _block(index: int, begun: dict[str, Any], deltas: Iterator[dict[str, Any]], *, ping: bool) -> Iterator[bytes]:
    yield _event({"type": "content_block_start", "index": index, "content_block": begun})
    if ping:
        yield _event({"type": "ping"})
    for delta in deltas:
        yield _event({"type": "content_block_delta", "index": index, "delta": delta})
    yield _event({"type": "content_block_stop", "index": index})


def _thinking_deltas(answer: Answer) -> Iterator[dict[str, Any]]:
    yield from ({"type": "thinking_delta", "thinking": thought} for thought in answer.thoughts())
    yield {"type": "signature_delta", "signature": _signature(answer)}


def _tool_deltas(call: Call) -> Iterator[dict[str, Any]]:
    # The first delta is empty, as the provider sends it.
    for piece in ("", *call.pieces()):
        yield {"type": "input_json_delta", "partial_json": piece}


def _stream(message: dict[str, Any], answer: Answer, *, shown: bool) -> Iterator[bytes]:
    usage = message["usage"]
    yield _event({"type": "message_start", "message": message | {"usage": usage | {"output_tokens": 1}}})
    index = 0
    if shown:
        begun = {"type": "thinking", "thinking": "", "signature": ""}
        yield from _block(0, begun, _thinking_deltas(answer), ping=True)
        index = 1
    if answer.call:
        block = _tool_block(answer.call, {})
        yield from _block(index, block, _tool_deltas(answer.call), ping=index == 0)
    else:
        deltas = ({"type": "text_delta", "text": piece} for piece in answer.pieces())
        yield from _block(index, {"type": "text", "text": ""}, deltas, ping=index == 0)
    inputs = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens", "output_tokens")
    final = {name: usage[name] for name in inputs}
    final["output_tokens_details"] = {"thinking_tokens": answer.thought_tokens}
    ended = {"stop_reason": _STOPS[answer.stop], "stop_sequence": None}
    yield _event({"type": "message_delta", "delta": ended, "usage": final})
    yield _event({"type": "message_stop"})


def count_tokens(ask: Ask, house: House) -> Reply:
    """`POST /v1/messages/count_tokens`: the same count that `messages` gives."""
    body = ask.json()
    ask.model(body.get("model"))
    return Reply(body=dumps({"input_tokens": _question(body).prompt_tokens}))


def _model(model: catalog.Model) -> dict[str, Any]:
    day = model.name[-8:]
    made = f"{day[:4]}-{day[4:6]}-{day[6:]}T00:00:00Z" if day.isdigit() else "2025-01-01T00:00:00Z"
    return {
        "type": "model",
        "id": model.name,
        "display_name": model.title or model.name,
        "created_at": made,
        "lifecycle": "active",
        "max_input_tokens": model.input_limit,
        "max_tokens": model.output_limit,
    }


def models(ask: Ask, house: House) -> Reply:
    """`GET /v1/models`."""
    listed = [_model(model) for model in catalog.ANTHROPIC]
    ends = {"first_id": listed[0]["id"], "last_id": listed[-1]["id"]}
    return Reply(body=dumps({"data": listed, "has_more": False} | ends))


def model(ask: Ask, house: House) -> Reply:
    """`GET /v1/models/{model}`."""
    name = ask.model(ask.found["model"])
    name = catalog.ANTHROPIC_ALIASES.get(name, name)
    known = {model.name: model for model in catalog.ANTHROPIC}
    return Reply(body=dumps(_model(known.get(name, catalog.Model(name=name)))))


def hello(ask: Ask, house: House) -> Reply:
    """`HEAD /api/hello`: Claude Code's first request, to see whether there is anybody."""
    return Reply(body=dumps({"message": "hello"}))
