"""OpenAI's Responses: whole, streamed, in the background, and stored.

Shapes: https://platform.openai.com/docs/api-reference/responses and /responses-streaming. The rules kept
here: the stream and the whole object come from the same list of items; usage is null until the terminal
event, which alone carries it; a background response has its usage only when it is fetched after its end, and then
each time again: the record has it once.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from llmproxy.simulate import catalog
from llmproxy.simulate.answer import Answer, Question, Tool, answer_to, dumps
from llmproxy.simulate.ask import Ask, House, Refusal, Reply, new_id
from llmproxy.simulate.openai_chat import SSE, service_tier, text_of, whole_number
from llmproxy.simulate.served import Served

Event = dict[str, Any]
_BACKGROUND_S: Final = 0.5
"""How long a background response is `in_progress` at least; longer where its events would take longer."""
_STORED_PIECES: Final = 4096
"""A streamed response of more pieces than this is not stored: it would be held in memory whole."""


@dataclass(slots=True, kw_only=True)
class Stored:
    """A response that can be fetched, cancelled and deleted. `counted`: an answer has told its usage."""

    frame: dict[str, Any]
    items: list[dict[str, Any]]
    answer: Answer
    ready_s: float = 0.0
    cancelled: bool = False
    counted: bool = False
    without_usage: bool = False

    def usage(self) -> dict[str, Any] | None:
        """What it tells of its usage at its end."""
        return None if self.without_usage else usage_of(self.answer)

    def at(self, now_s: float) -> dict[str, Any]:
        """The response object as it is now."""
        if self.cancelled:
            return self.frame | {"status": "cancelled"}
        if now_s < self.ready_s:
            return self.frame | {"status": "in_progress"}
        return finished(self.frame, self.items, self.answer, now_s, self.usage())


def _turns(body: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    asked = body.get("input")
    if isinstance(asked, str):
        return [{"role": "user", "content": asked}]
    return [turn for turn in asked if isinstance(turn, Mapping)] if isinstance(asked, list) else []


def _question(body: Mapping[str, Any], model: str) -> Question:
    turns = _turns(body)
    contents = [text_of(turn.get("content", turn.get("output"))) for turn in turns]
    texts = [text for text, _ in contents]
    if isinstance(body.get("instructions"), str):
        texts.insert(0, body["instructions"])
    choice = body.get("tool_choice")
    named = choice.get("name") if isinstance(choice, Mapping) else None
    form = (body.get("text") or {}).get("format") or {}
    json_object = {"properties": {"answer": {"type": "string"}}}
    return Question(
        texts=texts,
        asked=contents[-1][0] if contents else "",
        attachments=sum(others for _, others in contents),
        after_tool=bool(turns) and turns[-1].get("type") == "function_call_output",
        tools=[
            Tool(name=tool["name"], schema=tool.get("parameters") or {})
            for tool in body.get("tools") or []
            if isinstance(tool, Mapping) and tool.get("type") == "function" and isinstance(tool.get("name"), str)
        ],
        tool_choice=f"={named}" if named else choice if isinstance(choice, str) else "auto",
        max_tokens=whole_number(body.get("max_output_tokens")),
        schema={"json_schema": form.get("schema"), "json_object": json_object}.get(str(form.get("type"))),
        thinks=catalog.thinks(catalog.OPENAI + catalog.GROQ, model),
    )


def _frame(ask: Ask, body: Mapping[str, Any], model: str) -> dict[str, Any]:
    reasoning = body.get("reasoning") or {}
    text = body.get("text") or {}
    return {
        "id": new_id("resp_", 50),
        "object": "response",
        "created_at": ask.created,
        "status": "in_progress",
        "background": body.get("background") is True,
        "completed_at": None,
        "error": None,
        "incomplete_details": None,
        "instructions": body.get("instructions"),
        "max_output_tokens": body.get("max_output_tokens"),
        "max_tool_calls": body.get("max_tool_calls"),
        "model": catalog.dated(catalog.OPENAI, model),
        "output": [],
        "parallel_tool_calls": body.get("parallel_tool_calls", True),
        "previous_response_id": body.get("previous_response_id"),
        "prompt_cache_key": body.get("prompt_cache_key"),
        "reasoning": {"effort": reasoning.get("effort"), "summary": reasoning.get("summary")},
        "safety_identifier": body.get("safety_identifier"),
        "service_tier": service_tier(body),
        "store": body.get("store", True),
        "temperature": body.get("temperature", 1.0),
        "text": {
            "format": text.get("format") or {"type": "text"},
            "verbosity": text.get("verbosity", "medium"),
        },
        "tool_choice": body.get("tool_choice", "auto"),
        "tools": body.get("tools") or [],
        "top_logprobs": 0,
        "top_p": body.get("top_p", 1.0),
        "truncation": body.get("truncation", "disabled"),
        "usage": None,
        "user": body.get("user"),
        "metadata": body.get("metadata") or {},
    }


def _items(body: Mapping[str, Any], answer: Answer, *, thinks: bool) -> list[dict[str, Any]]:
    """The output items, without the text: a stream makes it piece by piece."""
    items: list[dict[str, Any]] = []
    if thinks:
        items.append({"id": new_id("rs_", 50), "type": "reasoning", "summary": []})
    if answer.call is not None:
        call = {"id": new_id("fc_", 50), "type": "function_call", "status": "completed", "arguments": ""}
        items.append(call | {"call_id": new_id("call_"), "name": answer.call.name})
    else:
        message = {"id": new_id("msg_", 50), "type": "message", "status": "completed", "content": []}
        items.append(message | {"role": "assistant"})
    return items


def usage_of(answer: Answer) -> dict[str, Any]:
    """The usage object of a response."""
    return {
        "input_tokens": answer.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": answer.cached_tokens,
            "cache_write_tokens": answer.written_tokens,
        },
        "output_tokens": answer.output_tokens,
        "output_tokens_details": {"reasoning_tokens": answer.thought_tokens},
        "total_tokens": answer.prompt_tokens + answer.output_tokens,
    }


def _text_part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "annotations": [], "logprobs": [], "text": text}


def _filled(item: dict[str, Any], body: Mapping[str, Any], answer: Answer, text: str) -> dict[str, Any]:
    """An item as it is at its end."""
    match item["type"]:
        case "reasoning":
            if not (body.get("reasoning") or {}).get("summary"):
                return item
            return item | {"summary": [{"type": "summary_text", "text": "".join(answer.thoughts())}]}
        case "function_call":
            return item | {"arguments": answer.call.arguments if answer.call else ""}
        case _:
            status = "incomplete" if answer.stop == "length" else "completed"
            return item | {"status": status, "content": [_text_part(text)]}


def finished(
    frame: dict[str, Any],
    items: list[dict[str, Any]],
    answer: Answer,
    now_s: float,
    usage: dict[str, Any] | None,
) -> dict[str, Any]:
    """The response object at its end."""
    cut = answer.stop == "length"
    return frame | {
        "status": "incomplete" if cut else "completed",
        "completed_at": None if cut else int(now_s),
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "output": items,
        "usage": usage,
    }


def served_of(ask: Ask, frame: Mapping[str, Any], answer: Answer, *, told: bool) -> Served:
    """What a response uses."""
    return Served(
        provider=ask.provider,
        model=frame["model"],
        response_id=frame["id"],
        input_tokens=answer.prompt_tokens,
        output_tokens=answer.output_tokens,
        cache_read_tokens=answer.cached_tokens,
        cache_write_5m_tokens=answer.written_tokens,
        reasoning_tokens=answer.thought_tokens,
        told=told,
    )


def _item_events(
    item: dict[str, Any], at: int, body: Mapping[str, Any], answer: Answer, served: Served
) -> Iterator[Event]:
    """The events of one item between its `added` and its `done`."""
    where: Event = {"item_id": item["id"], "output_index": at}
    if answer.call is not None and item["type"] == "function_call":
        for piece, tokens in answer.call.counted_pieces():
            served.made(tokens)
            yield {"type": "response.function_call_arguments.delta", **where, "delta": piece}
        ended = {"arguments": answer.call.arguments, "name": answer.call.name}
        yield {"type": "response.function_call_arguments.done", **where, **ended}
    elif item["type"] == "message":
        where["content_index"] = 0
        yield {"type": "response.content_part.added", **where, "part": _text_part("")}
        for piece, tokens in answer.counted_pieces():
            served.made(tokens)
            yield {"type": "response.output_text.delta", **where, "delta": piece, "logprobs": []}
        text = answer.text()
        yield {"type": "response.output_text.done", **where, "text": text, "logprobs": []}
        yield {"type": "response.content_part.done", **where, "part": _text_part(text)}
    elif (body.get("reasoning") or {}).get("summary"):
        where["summary_index"] = 0
        part = {"type": "summary_text", "text": ""}
        yield {"type": "response.reasoning_summary_part.added", **where, "part": part}
        for piece in answer.thoughts():
            served.made(1)
            yield {"type": "response.reasoning_summary_text.delta", **where, "delta": piece}
        text = "".join(answer.thoughts())
        yield {"type": "response.reasoning_summary_text.done", **where, "text": text}
        yield {"type": "response.reasoning_summary_part.done", **where, "part": part | {"text": text}}


def _events(
    stored: Stored, items: list[dict[str, Any]], body: Mapping[str, Any], now_s: float, served: Served
) -> Iterator[Event]:
    """The events of a response whose items are these, still without their text."""
    frame, answer = stored.frame, stored.answer
    yield {"type": "response.created", "response": frame}
    yield {"type": "response.in_progress", "response": frame}
    ended = []
    for at, item in enumerate(items):
        begun = item if item["type"] == "reasoning" else item | {"status": "in_progress"}
        if answer.call is not None and item["type"] == "function_call":
            served.made(answer.call.name_tokens)
        yield {"type": "response.output_item.added", "output_index": at, "item": begun}
        yield from _item_events(item, at, body, answer, served)
        full = _filled(item, body, answer, answer.text())
        ended.append(full)
        yield {"type": "response.output_item.done", "output_index": at, "item": full}
    whole = finished(frame, ended, answer, now_s, stored.usage())
    if not stored.without_usage:
        served.told()
        stored.counted = True
    yield {"type": f"response.{whole['status']}", "response": whole}


def _stream(events: Iterator[Event], after: int = -1) -> Iterator[bytes]:
    for number, event in enumerate(events):
        if number > after:
            numbered = {"type": event["type"], "sequence_number": number} | event
            yield b"event: " + event["type"].encode() + b"\ndata: " + dumps(numbered) + b"\n\n"


def create(ask: Ask, house: House) -> Reply:
    """`POST responses`."""
    body = ask.json()
    model = ask.model(body.get("model"))
    if "input" not in body and "prompt" not in body and "previous_response_id" not in body:
        raise Refusal(400, "Missing required parameter: 'input'.", param="input")
    question = _question(body, model)
    answer = answer_to(question, ask.wishes)
    frame = _frame(ask, body, model)
    bare = _items(body, answer, thinks=question.thinks or answer.thought_tokens > 0)
    streamed = body.get("stream") is True
    background = frame["background"]
    stored = Stored(frame=frame, items=[], answer=answer, without_usage=ask.wishes.without_usage)
    # A streamed answer keeps nothing whole but what the shape itself repeats in its `done` events.
    if not streamed or background:
        ask.must_fit()
    if background:
        stored.ready_s = ask.now_s + ask.wishes.delay_s + max(_BACKGROUND_S, answer.count * ask.wishes.pause_s)
        frame["status"] = "queued"
    if not streamed or background or (frame["store"] and answer.count <= _STORED_PIECES):
        text = answer.text()
        stored.items = [_filled(item, body, answer, text) for item in bare]
        if frame["store"] or background:
            house.responses[frame["id"]] = stored
    if streamed:
        served = served_of(ask, frame, answer, told=False)
        return Reply(events=_stream(_events(stored, bare, body, ask.now_s, served)), content_type=SSE, served=served)
    if background:
        return Reply(body=dumps(frame))
    return Reply(body=dumps(stored.at(ask.now_s)), served=_told(ask, stored))


def _told(ask: Ask, stored: Stored) -> Served | None:
    """What a whole answer serves: the usage, where it has ended and none was told before."""
    if stored.counted or stored.cancelled or ask.now_s < stored.ready_s:
        return None
    stored.counted = True
    return served_of(ask, stored.frame, stored.answer, told=not stored.without_usage)


def _known(ask: Ask, house: House) -> Stored:
    stored: Stored | None = house.responses.get(ask.found["id"])
    if stored is None:
        raise Refusal(404, f"Response with id '{ask.found['id']}' not found.")
    return stored


def fetch(ask: Ask, house: House) -> Reply:
    """`GET responses/{id}`, and with `?stream=true&starting_after=N` its events again from there."""
    stored = _known(ask, house)
    # What was not made in the background was billed when it was made, however that ended.
    counted = stored.counted or not stored.frame["background"]
    if ask.query.get("stream") != "true":
        return Reply(body=dumps(stored.at(ask.now_s)), served=None if counted else _told(ask, stored))
    after = ask.query.get("starting_after", "-1")
    bare = [item | {"content": []} if item["type"] == "message" else item for item in stored.items]
    served = served_of(ask, stored.frame, stored.answer, told=False)
    events = _stream(_events(stored, bare, stored.frame, ask.now_s, served), int(after) if after.isdigit() else -1)
    return Reply(events=events, content_type=SSE, served=None if counted else served)


def delete(ask: Ask, house: House) -> Reply:
    """`DELETE responses/{id}`."""
    _known(ask, house)
    del house.responses[ask.found["id"]]
    return Reply(body=dumps({"id": ask.found["id"], "object": "response", "deleted": True}))


def cancel(ask: Ask, house: House) -> Reply:
    """`POST responses/{id}/cancel`: of a background response only."""
    stored = _known(ask, house)
    if not stored.frame["background"]:
        raise Refusal(400, "Cannot cancel a synchronous response.")
    if ask.now_s < stored.ready_s:
        stored.cancelled = True
    return Reply(body=dumps(stored.at(ask.now_s)))
