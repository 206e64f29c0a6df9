"""Anthropic's messages: whole and streamed, thinking, tool calls, cache; count_tokens; models.

Shapes: https://docs.anthropic.com/en/api/messages and /en/docs/build-with-claude/streaming. The rules kept
here: `message_start` has the input counts and about one output token, `message_delta` has the cumulative
usage; `input_tokens` leaves out what was read from or written to the cache; every event has a name. A web search that
is offered is made once (/en/docs/agents-and-tools/tool-use/web-search-tool). What a compaction or an advisor used is
in `iterations`, and not in the sums (/en/docs/build-with-claude/compaction).
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import msgspec

from llmproxy.simulate import catalog
from llmproxy.simulate.answer import Answer, Call, Question, Tool, answer_to, dumps, seed_of, tokens_of
from llmproxy.simulate.ask import Ask, House, Refusal, Reply, new_id
from llmproxy.simulate.openai_chat import SSE, text_of, whole_number
from llmproxy.simulate.served import Served

_ADVISOR: Final = "claude-opus-4-1-20250805"
_SEARCH: Final = '{"query": "river stones"}'
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


def _marked(body: Mapping[str, Any]) -> tuple[int, int]:
    """Tokens of the prompt up to the last `cache_control`, and up to the last that lives an hour.

    Those of an hour come first: /en/docs/build-with-claude/prompt-caching, "Mixing different TTLs".
    """
    so_far = marked = hour = 0
    blocks: list[Any] = list(body.get("tools") or [])
    blocks += body["system"] if isinstance(body.get("system"), list) else [body.get("system")]
    for turn in body.get("messages") or []:
        content = turn.get("content")
        blocks += content if isinstance(content, list) else [content]
    for block in blocks:
        if isinstance(block, Mapping):
            so_far += tokens_of(text_of([block])[0]) + 3
            if isinstance(block.get("cache_control"), Mapping):
                marked = so_far
                hour = so_far if block["cache_control"].get("ttl") == "1h" else hour
        elif isinstance(block, str):
            so_far += tokens_of(block) + 3
    return marked, hour


def _usage(body: Mapping[str, Any], answer: Answer, asked_cached: int | None) -> dict[str, Any]:
    marked, hour = _marked(body)
    read = asked_cached or 0
    written = min(max(0, marked - read), answer.prompt_tokens - read) if marked else 0
    hour_written = min(max(0, hour - read), written)
    return {
        "input_tokens": max(0, answer.prompt_tokens - read - written),
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": read,
        "cache_creation": {
            "ephemeral_5m_input_tokens": written - hour_written,
            "ephemeral_1h_input_tokens": hour_written,
        },
        "output_tokens": answer.output_tokens + _search_tokens(body),
        "service_tier": "standard",
        "inference_geo": "global",
    }


def _search_tokens(body: Mapping[str, Any]) -> int:
    """What asking for a web search costs in output; 0 where none is offered."""
    offered = [str(tool.get("type")) for tool in body.get("tools") or [] if isinstance(tool, Mapping)]
    return tokens_of(_SEARCH) if any(kind.startswith("web_search_") for kind in offered) else 0


def _iterations(kind: str | None, model: str, usage: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The steps of the answer, the last being the message itself; empty where it is all there is."""
    if kind is None:
        return []
    names = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens", "output_tokens")
    own = {"type": "message"} | {name: usage[name] for name in names}
    used = {"input_tokens": 3 * own["input_tokens"] + 7, "output_tokens": 35}
    uncached = {"cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
    if kind == "compaction":
        return [{"type": "compaction"} | used | uncached, own]
    return [{"type": "advisor_message", "model": _ADVISOR} | used | uncached, own]


def _served(model: str, message_id: str, usage: Mapping[str, Any], answer: Answer, *, told: bool) -> Served:
    kept = usage["cache_creation"]
    served = Served(
        provider="anthropic",
        model=model,
        response_id=message_id,
        input_tokens=answer.prompt_tokens,
        output_tokens=usage["output_tokens"],
        cache_read_tokens=usage["cache_read_input_tokens"],
        cache_write_5m_tokens=kept["ephemeral_5m_input_tokens"],
        cache_write_1h_tokens=kept["ephemeral_1h_input_tokens"],
        reasoning_tokens=answer.thought_tokens,
        server_tools={"web_search": 1} if "server_tool_use" in usage else {},
        told=told,
    )
    for iteration in usage.get("iterations", ()):
        if iteration["type"] != "message":
            served.input_tokens += iteration["input_tokens"]
            served.output_tokens += iteration["output_tokens"]
        if "model" in iteration:
            served.other_models += (iteration["model"],)
    return served


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
    streamed = body.get("stream") is True
    if not streamed:
        ask.must_fit()
    message, served, answer = message_to(ask, body, model, streamed=streamed)
    if streamed:
        events = _stream(message, answer, served, shown=_thinks(body), searched=_search_tokens(body))
        return Reply(events=events, content_type=SSE, served=served)
    return Reply(body=dumps(message), served=served)


def message_to(
    ask: Ask, body: Mapping[str, Any], model: str, *, streamed: bool
) -> tuple[dict[str, Any], Served, Answer]:
    """The message that answers this body, and what it uses. Streamed: as it is at its start. Raises `Refusal`."""
    answer = answer_to(_question(body), ask.wishes)
    usage = _usage(body, answer, ask.wishes.cached_tokens)
    if _search_tokens(body):
        usage["server_tool_use"] = {"web_search_requests": 1, "web_fetch_requests": 0}
    model = catalog.ANTHROPIC_ALIASES.get(model, model)
    iterations = _iterations(ask.wishes.iterations, model, usage)
    if iterations:
        usage["iterations"] = iterations
    message: dict[str, Any] = {
        "id": new_id("msg_01", 24),
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage,
    }
    told = not streamed and not ask.wishes.without_usage
    served = _served(model, message["id"], usage, answer, told=told)
    if ask.wishes.without_usage:
        del message["usage"]
    if streamed:
        return message, served, answer
    content: list[dict[str, Any]] = []
    if _thinks(body):
        content.append({"type": "thinking", "thinking": "".join(answer.thoughts()), "signature": _signature(answer)})
    if _search_tokens(body):
        content += _search_blocks(msgspec.json.decode(_SEARCH))
    if answer.call:
        content.append(_tool_block(answer.call, msgspec.json.decode(answer.call.arguments)))
    else:
        content.append({"type": "text", "text": answer.text()})
    usage["output_tokens_details"] = {"thinking_tokens": answer.thought_tokens}
    return message | {"content": content, "stop_reason": _STOPS[answer.stop]}, served, answer


def _search_blocks(asked: object) -> list[dict[str, Any]]:
    """A web search, and what it found."""
    search_id = new_id("srvtoolu_01", 24)
    found = {
        "type": "web_search_result",
        "url": "https://simulator.invalid/stones",
        "title": "Stones",
        "encrypted_content": "U2ltdWxhdGVk",
        "page_age": None,
    }
    return [
        {"type": "server_tool_use", "id": search_id, "name": "web_search", "input": asked},
        {"type": "web_search_tool_result", "tool_use_id": search_id, "content": [found]},
    ]


def _tool_block(call: Call, arguments: object) -> dict[str, Any]:
    return {"type": "tool_use", "id": new_id("toolu_01", 24), "name": call.name, "input": arguments}


def _block(
    served: Served,
    index: int,
    begun: dict[str, Any],
    deltas: Iterable[tuple[dict[str, Any], int]],
    *,
    begun_tokens: int = 0,
) -> Iterator[bytes]:
    """The events of one block. `deltas` come with their tokens; `begun_tokens` are those of the block's begin."""
    served.made(begun_tokens)
    yield _event({"type": "content_block_start", "index": index, "content_block": begun})
    if index == 0:
        yield _event({"type": "ping"})
    for delta, tokens in deltas:
        served.made(tokens)
        yield _event({"type": "content_block_delta", "index": index, "delta": delta})
    yield _event({"type": "content_block_stop", "index": index})


def _thinking_deltas(answer: Answer) -> Iterator[tuple[dict[str, Any], int]]:
    yield from (({"type": "thinking_delta", "thinking": thought}, 1) for thought in answer.thoughts())
    yield {"type": "signature_delta", "signature": _signature(answer)}, 0


def _tool_deltas(pieces: Iterable[tuple[str, int]]) -> Iterator[tuple[dict[str, Any], int]]:
    # The first delta is empty, as the provider sends it.
    yield {"type": "input_json_delta", "partial_json": ""}, 0
    yield from (({"type": "input_json_delta", "partial_json": piece}, tokens) for piece, tokens in pieces)


def _stream(message: dict[str, Any], answer: Answer, served: Served, *, shown: bool, searched: int) -> Iterator[bytes]:
    usage = message.get("usage")
    at_start = {} if usage is None else {"usage": _usage_at_start(usage)}
    yield _event({"type": "message_start", "message": message | at_start})
    index = 0
    if shown:
        begun = {"type": "thinking", "thinking": "", "signature": ""}
        yield from _block(served, index, begun, _thinking_deltas(answer))
        index += 1
    if searched:
        search, found = _search_blocks({})
        yield from _block(served, index, search, _tool_deltas([(_SEARCH, searched)]))
        yield from _block(served, index + 1, found, ())
        index += 2
    if answer.call:
        call = answer.call
        deltas = _tool_deltas(call.counted_pieces())
        yield from _block(served, index, _tool_block(call, {}), deltas, begun_tokens=call.name_tokens)
    else:
        texts = (({"type": "text_delta", "text": piece}, tokens) for piece, tokens in answer.counted_pieces())
        yield from _block(served, index, {"type": "text", "text": ""}, texts)
    ended: dict[str, Any] = {"delta": {"stop_reason": _STOPS[answer.stop], "stop_sequence": None}}
    if usage is not None:
        served.told()
        ended["usage"] = _usage_at_end(usage, answer)
    yield _event({"type": "message_delta", **ended})
    yield _event({"type": "message_stop"})


def _usage_at_start(usage: Mapping[str, Any]) -> dict[str, Any]:
    """What `message_start` says: the input, and one token of output that stands for what will come."""
    later = ("server_tool_use", "iterations")
    return {name: value for name, value in usage.items() if name not in later} | {"output_tokens": 1}


def _usage_at_end(usage: Mapping[str, Any], answer: Answer) -> dict[str, Any]:
    """What `message_delta` says: the sums, without the split of what was written to the cache."""
    inputs = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens", "output_tokens")
    later = ("server_tool_use", "iterations")
    final = {name: usage[name] for name in (*inputs, *later) if name in usage}
    return final | {"output_tokens_details": {"thinking_tokens": answer.thought_tokens}}


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
