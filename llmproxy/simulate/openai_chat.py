"""OpenAI's chat completions and older completions, and what Groq and Gemini's compat endpoint make of them.

Shapes: https://platform.openai.com/docs/api-reference/chat and /chat/streaming. The rule kept here: usage
comes in a stream only when `stream_options.include_usage` asked, in one last chunk without choices, and
every other chunk then says `"usage": null`; Groq adds its own in `x_groq`.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from llmproxy.simulate import catalog
from llmproxy.simulate.answer import Answer, Call, Question, Tool, answer_to, dumps
from llmproxy.simulate.ask import Ask, House, Refusal, Reply, new_id

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
    return {"groq": catalog.GROQ, "gemini-openai": catalog.GEMINI}.get(ask.dialect.name, catalog.OPENAI)


def chat(ask: Ask, house: House) -> Reply:
    """`POST chat/completions`."""
    body = ask.json()
    model = ask.model(body.get("model"))
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
        raise Refusal(400, "Missing required parameter: 'messages'.", param="messages")
    contents = [text_of(message.get("content")) for message in messages]
    question = Question(
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
    answer = answer_to(question, ask.wishes)
    if body.get("stream") is True:
        return Reply(events=_chat_stream(ask, body, model, answer), content_type=SSE)
    ask.must_fit()
    return Reply(body=dumps(_chat_whole(ask, body, model, answer)))


def usage_of(ask: Ask, answer: Answer, choices: int = 1) -> dict[str, Any]:
    """The usage object, with the details that the provider gives."""
    output = answer.output_tokens * choices
    usage: dict[str, Any] = {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": output,
        "total_tokens": answer.prompt_tokens + output,
    }
    match ask.dialect.name:
        case "groq":
            timed = {"queue_time": 0.012, "prompt_time": 0.003, "completion_time": output / 500}
            usage |= timed | {"total_time": timed["prompt_time"] + timed["completion_time"]}
            if answer.thought_tokens:
                usage["completion_tokens_details"] = {"reasoning_tokens": answer.thought_tokens * choices}
            if answer.cached_tokens:
                usage["prompt_tokens_details"] = {"cached_tokens": answer.cached_tokens}
        case "openai":
            usage["prompt_tokens_details"] = {"cached_tokens": answer.cached_tokens, "audio_tokens": 0}
            usage["completion_tokens_details"] = {
                "reasoning_tokens": answer.thought_tokens * choices,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            }
    return usage


def service_tier(body: Mapping[str, Any]) -> str:
    """The tier that serves a request: `auto` becomes default, `fast` is answered `priority`."""
    asked = body.get("service_tier")
    return {"fast": "priority", "auto": "default"}.get(asked, asked) if isinstance(asked, str) else "default"


def _frame(ask: Ask, body: Mapping[str, Any], model: str, kind: str) -> dict[str, Any]:
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


def _choices(body: Mapping[str, Any]) -> int:
    return min(whole_number(body.get("n")) or 1, 128)


def _tool_calls(call: Call) -> list[dict[str, Any]]:
    function = {"name": call.name, "arguments": call.arguments}
    return [{"id": new_id("call_"), "type": "function", "function": function}]


def _chat_whole(ask: Ask, body: Mapping[str, Any], model: str, answer: Answer) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": None if answer.call else answer.text()}
    if ask.dialect.name == "openai":
        message |= {"refusal": None, "annotations": []}
    elif ask.dialect.name == "groq" and answer.thought_tokens:
        message["reasoning"] = "".join(answer.thoughts())
    if answer.call:
        message["tool_calls"] = _tool_calls(answer.call)
    count = _choices(body)
    finish = _STOPS[answer.stop]
    whole = _frame(ask, body, model, "chat.completion")
    whole["choices"] = [
        {"index": i, "message": message, "logprobs": None, "finish_reason": finish} for i in range(count)
    ]
    whole["usage"] = usage_of(ask, answer, count)
    if ask.dialect.name == "groq":
        whole |= {"usage_breakdown": None, "x_groq": {"id": new_id("req_", 26)}}
    return whole


def _deltas(ask: Ask, answer: Answer) -> Iterator[dict[str, Any]]:
    if ask.dialect.name == "groq":
        yield from ({"reasoning": thought} for thought in answer.thoughts())
    if answer.call is None:
        yield from ({"content": piece} for piece in answer.pieces())
        return
    first: dict[str, Any] = {"index": 0, "id": new_id("call_"), "type": "function"}
    first["function"] = {"name": answer.call.name, "arguments": ""}
    yield {"tool_calls": [first]}
    for piece in answer.call.pieces():
        yield {"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}


def _chat_stream(ask: Ask, body: Mapping[str, Any], model: str, answer: Answer) -> Iterator[bytes]:
    options = body.get("stream_options") or {}
    counted = options.get("include_usage") is True
    padded = ask.dialect.name == "openai" and options.get("include_obfuscation") is not False
    groq = ask.dialect.name == "groq"
    request_id = new_id("req_", 26)
    count = _choices(body)
    frame = _frame(ask, body, model, "chat.completion.chunk")

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
    for delta in _deltas(ask, answer):
        for index in range(count):
            yield chunk(index, delta)
    usage = usage_of(ask, answer, count)
    for index in range(count):
        last: dict[str, Any] = {"x_groq": {"id": request_id, "usage": usage}} if groq and index == count - 1 else {}
        yield chunk(index, {}, _STOPS[answer.stop], **last)
    if counted:
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

    usage = usage_of(ask, answer)
    if body.get("stream") is not True:
        ask.must_fit()
        return Reply(body=dumps(part(answer.text(), _STOPS[answer.stop]) | {"usage": usage}))
    counted = (body.get("stream_options") or {}).get("include_usage") is True
    null: dict[str, Any] = {"usage": None} if counted else {}

    def stream() -> Iterator[bytes]:
        yield from (data_event(part(piece, None) | null) for piece in answer.pieces())
        yield data_event(part("", _STOPS[answer.stop]) | null)
        if counted:
            yield data_event(frame | {"choices": [], "usage": usage})
        yield _DONE

    return Reply(events=stream(), content_type=SSE)
