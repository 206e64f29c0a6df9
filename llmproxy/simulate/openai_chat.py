"""OpenAI's chat completions and older completions, and what Groq and Gemini's compat endpoint make of them.

Shapes: https://platform.openai.com/docs/api-reference/chat and /chat/streaming. The rule kept here: usage
comes in a stream only when `stream_options.include_usage` asked, in one last chunk without choices, and
every other chunk then says `"usage": null`; Groq adds its own in `x_groq`, and names the models of a compound system
(https://console.groq.com/docs/compound). Gemini's `completion_tokens` leave out the thoughts that its `total_tokens`
have (https://ai.google.dev/gemini-api/docs/openai); Anthropic's details are empty
(https://docs.anthropic.com/en/api/openai-sdk).
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from llmproxy.simulate import catalog
from llmproxy.simulate.answer import Answer, Call, Question, Tool, answer_to, dumps
from llmproxy.simulate.ask import Ask, House, Refusal, Reply, new_id
from llmproxy.simulate.served import Served

SSE: Final = b"text/event-stream; charset=utf-8"
_STOPS: Final = {"stop": "stop", "length": "length", "tool": "tool_calls"}
_DONE: Final = b"data: [DONE]\n\n"


def data_event(value: object) -> bytes:
    """One server-sent event without a name."""
    return b"data: " + dumps(value) + b"\n\n"


def text_of(content: object) -> tuple[str, int]:
    """The text of a message's content, and how many of its parts are not text."""
    if isinstance(content, str):
        return content, 0
    texts: list[str] = []
    others = 0
    for part in content if isinstance(content, list) else []:
        text = part.get("text") if isinstance(part, Mapping) else part
        if isinstance(text, str):
            texts.append(text)
        else:
            others += 1
    return "\n".join(texts), others


def whole_number(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _tools(body: Mapping[str, Any]) -> list[Tool]:
    offered = [tool.get("function", tool) for tool in body.get("tools") or [] if isinstance(tool, Mapping)]
    return [Tool(name=f["name"], schema=f.get("parameters") or {}) for f in offered if isinstance(f.get("name"), str)]


def _choice(value: object) -> str:
    if isinstance(value, Mapping):
        name = value.get("name") or (value.get("function") or {}).get("name")
        return f"={name}" if name else "auto"
    return value if isinstance(value, str) else "auto"


def _schema(body: Mapping[str, Any]) -> Mapping[str, Any] | None:
    wanted = body.get("response_format") or {}
    if wanted.get("type") == "json_schema":
        return dict((wanted.get("json_schema") or {}).get("schema") or {})
    return {"properties": {"answer": {"type": "string"}}} if wanted.get("type") == "json_object" else None


def models_of(ask: Ask) -> tuple[catalog.Model, ...]:
    """The models of the provider that is spoken to."""
    known = {"groq": catalog.GROQ, "gemini": catalog.GEMINI, "anthropic": catalog.ANTHROPIC}
    return known.get(ask.provider, catalog.OPENAI)


def question_of(ask: Ask, body: Mapping[str, Any], model: str) -> Question:
    """What a body of `chat/completions` asks. Raises `Refusal`."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
        raise Refusal(400, "Missing required parameter: 'messages'.", param="messages")
    contents = [text_of(message.get("content")) for message in messages]
    return Question(
        texts=[text for text, _ in contents],
        asked=contents[-1][0],
        attachments=sum(others for _, others in contents),
        after_tool=messages[-1].get("role") == "tool",
        tools=_tools(body),
        tool_choice=_choice(body.get("tool_choice")),
        max_tokens=whole_number(body.get("max_completion_tokens") or body.get("max_tokens")),
        schema=_schema(body),
        thinks=catalog.thinks(models_of(ask), model) and body.get("reasoning_effort") != "none",
    )


def chat(ask: Ask, house: House) -> Reply:
    """`POST chat/completions`."""
    body = ask.json()
    model = ask.model(body.get("model"))
    answer = answer_to(question_of(ask, body, model), ask.wishes)
    streamed = body.get("stream") is True
    frame = frame_of(ask, body, model, "chat.completion.chunk" if streamed else "chat.completion")
    served = served_of(ask, frame, answer, choices_of(body), streamed=streamed)
    if streamed:
        events = _chat_stream(ask, body, frame, answer, served)
        return Reply(events=events, content_type=SSE, served=served)
    ask.must_fit()
    made = dumps(whole_of(ask, body, frame, answer))
    if body.get("store") is True:
        house.chats[frame["id"]] = made
    return Reply(body=made, served=served)


def stored_chat(ask: Ask, house: House) -> Reply:
    """`GET chat/completions/{id}`: an answer again that `store` kept. It is not billed again."""
    made: bytes | None = house.chats.get(ask.found["id"])
    if made is None:
        raise Refusal(404, f"Chat completion with id '{ask.found['id']}' not found.")
    return Reply(body=made)


def served_of(
    ask: Ask, frame: Mapping[str, Any], answer: Answer, choices: int = 1, *, streamed: bool = False
) -> Served:
    """What an answer uses. A stream tells it in a chunk of its own; a whole answer does, unless asked not to."""
    compound = ask.provider == "groq" and "/compound" in frame["model"]
    return Served(
        provider=ask.provider,
        model=frame["model"],
        response_id=frame["id"],
        input_tokens=answer.prompt_tokens,
        output_tokens=answer.output_tokens * choices,
        cache_read_tokens=answer.cached_tokens if ask.provider in ("openai", "groq") else 0,
        cache_write_5m_tokens=answer.written_tokens if ask.provider == "openai" else 0,
        reasoning_tokens=0 if ask.provider == "anthropic" else answer.thought_tokens * choices,
        other_models=catalog.GROQ_COMPOUND_PARTS if compound else (),
        told=not streamed and not ask.wishes.without_usage,
    )


def usage_of(ask: Ask, answer: Answer, choices: int = 1) -> dict[str, Any]:
    """The usage object, with the details that the provider gives."""
    output = answer.output_tokens * choices
    usage: dict[str, Any] = {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": output,
        "total_tokens": answer.prompt_tokens + output,
    }
    match ask.dialect.name:
        case "gemini-openai":
            usage["completion_tokens"] = answer.text_tokens * choices
        case "anthropic-openai":
            usage |= {"prompt_tokens_details": None, "completion_tokens_details": None}
        case "groq":
            timed = {"queue_time": 0.012, "prompt_time": 0.003, "completion_time": output / 500}
            usage |= timed | {"total_time": timed["prompt_time"] + timed["completion_time"]}
            if answer.thought_tokens:
                usage["completion_tokens_details"] = {"reasoning_tokens": answer.thought_tokens * choices}
            if answer.cached_tokens:
                usage["prompt_tokens_details"] = {"cached_tokens": answer.cached_tokens}
        case "openai":
            usage["prompt_tokens_details"] = {
                "cached_tokens": answer.cached_tokens,
                "audio_tokens": answer.audio_tokens,
            }
            if answer.image_tokens:
                usage["prompt_tokens_details"]["image_tokens"] = answer.image_tokens
            if answer.written_tokens:
                usage["prompt_tokens_details"]["cache_write_tokens"] = answer.written_tokens
            usage["completion_tokens_details"] = {
                "reasoning_tokens": answer.thought_tokens * choices,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            }
    return usage


def _breakdown(model: str, usage: Mapping[str, Any]) -> dict[str, Any] | None:
    """What each model of a compound system used; together it is the usage. None for a plain model."""
    if "/compound" not in model:
        return None
    planner, writer = catalog.GROQ_COMPOUND_PARTS
    names = ("prompt_tokens", "completion_tokens", "total_tokens")
    planned = {"prompt_tokens": usage["prompt_tokens"] // 3, "completion_tokens": usage["completion_tokens"] // 4}
    planned["total_tokens"] = sum(planned.values())
    written = {name: usage[name] - planned[name] for name in names}
    times = {name: usage[name] for name in ("queue_time", "prompt_time", "completion_time", "total_time")}
    return {"models": [{"model": planner, "usage": planned | times}, {"model": writer, "usage": written | times}]}


def service_tier(body: Mapping[str, Any]) -> str:
    """The tier that serves a request: `auto` becomes default, `fast` is answered `priority`."""
    asked = body.get("service_tier")
    return {"fast": "priority", "auto": "default"}.get(asked, asked) if isinstance(asked, str) else "default"


def frame_of(ask: Ask, body: Mapping[str, Any], model: str, kind: str) -> dict[str, Any]:
    """What is the same in every chunk, and in the whole object."""
    frame: dict[str, Any] = {
        "id": new_id("chatcmpl-", 29),
        "object": kind,
        "created": ask.created,
        "model": catalog.dated(models_of(ask), model),
    }
    if ask.dialect.name == "openai":
        frame |= {"service_tier": service_tier(body), "system_fingerprint": "fp_simulated0"}
    elif ask.dialect.name == "groq":
        tier = body.get("service_tier")
        frame |= {
            "service_tier": tier if isinstance(tier, str) else "on_demand",
            "system_fingerprint": "fp_simulated0",
        }
    return frame


def choices_of(body: Mapping[str, Any]) -> int:
    """How many answers are asked for at once."""
    return min(whole_number(body.get("n")) or 1, 128)


def _tool_calls(call: Call) -> list[dict[str, Any]]:
    function = {"name": call.name, "arguments": call.arguments}
    return [{"id": new_id("call_"), "type": "function", "function": function}]


def whole_of(ask: Ask, body: Mapping[str, Any], frame: Mapping[str, Any], answer: Answer) -> dict[str, Any]:
    """The answer as one object."""
    message: dict[str, Any] = {"role": "assistant", "content": None if answer.call else answer.text()}
    if ask.dialect.name == "openai":
        message |= {"refusal": None, "annotations": []}
    elif ask.dialect.name == "groq" and answer.thought_tokens:
        message["reasoning"] = "".join(answer.thoughts())
    if answer.call:
        message["tool_calls"] = _tool_calls(answer.call)
    count = choices_of(body)
    finish = _STOPS[answer.stop]
    usage = usage_of(ask, answer, count)
    whole = dict(frame)
    whole["choices"] = [
        {"index": i, "message": message, "logprobs": None, "finish_reason": finish} for i in range(count)
    ]
    if not ask.wishes.without_usage:
        whole["usage"] = usage
    if ask.dialect.name == "groq":
        breakdown = None if ask.wishes.without_usage else _breakdown(frame["model"], usage)
        whole |= {"usage_breakdown": breakdown, "x_groq": {"id": new_id("req_", 26)}}
    return whole


def _deltas(ask: Ask, answer: Answer) -> Iterator[tuple[dict[str, Any], int]]:
    """The pieces of an answer, each with its tokens. Thoughts that are not shown have no piece."""
    if ask.dialect.name == "groq":
        yield from (({"reasoning": thought}, 1) for thought in answer.thoughts())
    if answer.call is None:
        yield from (({"content": piece}, tokens) for piece, tokens in answer.counted_pieces())
        return
    first: dict[str, Any] = {"index": 0, "id": new_id("call_"), "type": "function"}
    first["function"] = {"name": answer.call.name, "arguments": ""}
    yield {"tool_calls": [first]}, answer.call.name_tokens
    for piece, tokens in answer.call.counted_pieces():
        yield {"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}, tokens


def _chat_stream(
    ask: Ask, body: Mapping[str, Any], frame: dict[str, Any], answer: Answer, served: Served
) -> Iterator[bytes]:
    options = body.get("stream_options") or {}
    counted = options.get("include_usage") is True and not ask.wishes.without_usage
    padded = ask.dialect.name == "openai" and options.get("include_obfuscation") is not False
    groq = ask.dialect.name == "groq"
    request_id = new_id("req_", 26)
    count = choices_of(body)

    def chunk(index: int, delta: dict[str, Any], finish: str | None = None, **more: Any) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
        event = frame | {"choices": [choice]} | more
        if counted:
            event["usage"] = None
        if padded:
            # Random-looking padding that hides the length of a token from whoever counts encrypted bytes.
            event["obfuscation"] = "simulated"[: 9 - len(str(delta)) % 8]
        return data_event(event)

    role: dict[str, Any] = {"role": "assistant", "content": None if answer.call else ""}
    if ask.dialect.name == "openai":
        role["refusal"] = None
    first: dict[str, Any] = {"x_groq": {"id": request_id}} if groq else {}
    for index in range(count):
        yield chunk(index, role, **first)
    for delta, tokens in _deltas(ask, answer):
        for index in range(count):
            served.made(tokens)
            yield chunk(index, delta)
    usage = usage_of(ask, answer, count)
    for index in range(count):
        last: dict[str, Any] = {}
        if groq and index == count - 1 and not ask.wishes.without_usage:
            breakdown = _breakdown(frame["model"], usage)
            last["x_groq"] = {"id": request_id, "usage": usage}
            if breakdown is not None:
                last["x_groq"]["usage_breakdown"] = breakdown
            served.told()
        yield chunk(index, {}, _STOPS[answer.stop], **last)
    if counted:
        served.told()
        yield data_event(frame | {"choices": [], "usage": usage})
    yield _DONE


def completions(ask: Ask, house: House) -> Reply:
    """`POST completions`, the older endpoint."""
    body = ask.json()
    model = ask.model(body.get("model"))
    prompt = body.get("prompt", "")
    prompts = prompt if isinstance(prompt, list) else [prompt]
    texts = [text if isinstance(text, str) else str(text) for text in prompts]
    answer = answer_to(Question(texts=texts, max_tokens=whole_number(body.get("max_tokens"))), ask.wishes)
    frame = {
        "id": new_id("cmpl-", 29),
        "object": "text_completion",
        "created": ask.created,
        "model": catalog.dated(models_of(ask), model),
    }

    def part(text: str, finish: str | None) -> dict[str, Any]:
        return frame | {"choices": [{"text": text, "index": 0, "logprobs": None, "finish_reason": finish}]}

    streamed = body.get("stream") is True
    usage = usage_of(ask, answer)
    served = served_of(ask, frame, answer, streamed=streamed)
    if not streamed:
        ask.must_fit()
        told = {} if ask.wishes.without_usage else {"usage": usage}
        return Reply(body=dumps(part(answer.text(), _STOPS[answer.stop]) | told), served=served)
    counted = (body.get("stream_options") or {}).get("include_usage") is True and not ask.wishes.without_usage
    null: dict[str, Any] = {"usage": None} if counted else {}

    def stream() -> Iterator[bytes]:
        for piece, tokens in answer.counted_pieces():
            served.made(tokens)
            yield data_event(part(piece, None) | null)
        yield data_event(part("", _STOPS[answer.stop]) | null)
        if counted:
            served.told()
            yield data_event(frame | {"choices": [], "usage": usage})
        yield _DONE

    return Reply(events=stream(), content_type=SSE, served=served)
