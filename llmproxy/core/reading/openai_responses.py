"""Responses: whole, streamed, in the background and stored; and what is told in the same words: Realtime's responses,
compactions, decisions.

The rules: only the event that ends a response has its usage. The text is counted from the deltas; what is done repeats
it. A response in the background is polled: until it ends it is free, and when it has ended it is counted once, by its
id. Tools that the provider runs are told from the output of the last event, or, where that is too large or empty,
from the items that came before; what the provider itself counts of them goes before both.

How it is quick: as in openai_chat.py, nearly all events are a delta and nothing else, and `_PlainEvent` is just that.

Sources: OpenAI API reference, "Responses" (the response object, streaming events, compact), "Realtime" (server events,
response.done); OpenAI guides "Background mode" and "Prompt caching".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, Literal, TypeVar

import msgspec
from msgspec.structs import replace

from llmproxy.core.reading.events import FEW_EVENTS, plain_part
from llmproxy.core.reading.openai_usage import (
    LARGE_CHARACTERS_MAX,
    count,
    drawing_usage_of,
    error_kind,
    is_counted,
    svg_part,
    tools_usage,
    usage_of,
)
from llmproxy.core.reading.shape import Members, Path
from llmproxy.core.reading.values import as_object, object_at, object_of, word
from llmproxy.core.usage import NO_USAGE, Counters, ModelUsage, Reading, Usage


class _PlainEvent(msgspec.Struct, gc=False):
    """A piece of text, and nothing else that matters."""

    type: Literal[
        "response.output_text.delta",
        "response.reasoning_summary_text.delta",
        "response.reasoning_text.delta",
        "response.refusal.delta",
        "response.function_call_arguments.delta",
        "response.custom_tool_call_input.delta",
        "response.mcp_call_arguments.delta",
        "response.code_interpreter_call_code.delta",
        "response.output_audio_transcript.delta",
    ]
    delta: str
    response: None = None
    item: None = None
    error: None = None


class _Item(msgspec.Struct):
    """An item of the output. What is Any may be of any type, so that decoding does not fail for it."""

    type: Any = None
    role: Any = None
    name: Any = None
    arguments: Any = None
    input: Any = None
    code: Any = None
    content: Any = None
    summary: Any = None
    action: Any = None
    svg_usage: Any = None


class _Tool(msgspec.Struct):
    type: Any = None
    model: Any = None


class _Response(msgspec.Struct):
    id: Any = None
    object: Any = None
    model: Any = None
    status: Any = None
    usage: Any = None
    service_tier: Any = None
    background: Any = None
    error: Any = None
    incomplete_details: Any = None
    tool_usage: Any = None
    output: list[_Item] | None = None
    tools: list[_Tool] | None = None


class _Event(msgspec.Struct):
    type: Any = None
    delta: Any = None
    response: _Response | None = None
    item: _Item | None = None
    code: Any = None
    error: Any = None


_PLAIN: Final = msgspec.json.Decoder(list[_PlainEvent])
_FULL: Final = msgspec.json.Decoder(list[_Event])
_ONE_PLAIN: Final = msgspec.json.Decoder(_PlainEvent)
_ONE: Final = msgspec.json.Decoder(_Event)
_BODY: Final = msgspec.json.Decoder(_Response)
_REFUSED: Final = (msgspec.MsgspecError, ValueError, RecursionError)
_Struct = TypeVar("_Struct", bound=msgspec.Struct)

_OBJECTS: Final = frozenset({b'"response"', b'"response.compaction"', b'"realtime.response"'})
# "done" is Realtime's.
_ENDS: Final = frozenset(f"response.{how}" for how in ("completed", "incomplete", "failed", "cancelled", "done"))
_PENDING: Final = frozenset({"queued", "in_progress"})
_ENDED: Final = frozenset({"completed", "incomplete", "failed", "cancelled"})
# Sound is base64, and what a shell printed the model did not write.
_NOT_TEXT: Final = frozenset(
    {"response.audio.delta", "response.output_audio.delta", "response.shell_call_output_content.delta"}
)
_DRAWING: Final = "image_generation"
_SERVER_TOOLS: Final = MappingProxyType(
    {
        "web_search_call": "web_search",
        "file_search_call": "file_search",
        "code_interpreter_call": "code_execution",
        "image_generation_call": _DRAWING,
        "mcp_call": "mcp",
    }
)
_PARTS_MAX: Final = 64

_OF_RESPONSE: Final = _Response.__struct_fields__


class OpenAIResponses:
    """One response. A `Shape`."""

    __slots__ = (
        "_background",
        "_body",
        "_characters",
        "_characters_then",
        "_drawn",
        "_error",
        "_events",
        "_events_then",
        "_incomplete_reason",
        "_model",
        "_response_id",
        "_searches",
        "_service_tier",
        "_status",
        "_svg",
        "_tools",
        "_usage",
    )

    name = "openai-responses"
    watched: frozenset[Path] = frozenset(
        {("type",), ("delta",), ("code",), ("item", "type"), ("item", "action"), ("item", "svg_usage"), ("answers",)}
        | {(name,) for name in _OF_RESPONSE}
        | {("response", name) for name in _OF_RESPONSE}
    )

    def __init__(self) -> None:
        self._response_id: str | None = None
        self._model: str | None = None
        self._status: str | None = None
        self._incomplete_reason: str | None = None
        self._service_tier: str | None = None
        self._error: str | None = None
        self._usage: Usage | None = None
        self._background = self._body = False
        self._tools: dict[str, int] = {}
        self._searches: int | None = None
        self._svg: list[ModelUsage] = []
        self._drawn: ModelUsage | None = None
        self._characters = self._characters_then = 0
        self._events = self._events_then = 0

    @classmethod
    def recognises(cls, keys: Mapping[str, bytes]) -> bool:
        """An event of a response, a response, a compaction, or a decision (which has answers in place of an output)."""
        if "object" in keys:
            return keys["object"] in _OBJECTS
        kind = keys.get("type", b"")
        if kind.startswith(b'"response.') or (kind == b'"error"' and "sequence_number" in keys):
            return True
        return "answers" in keys and "usage" in keys

    def take_body(self, body: bytes) -> None:
        """A whole response."""
        try:
            response = _BODY.decode(body)
        except _REFUSED:
            found = object_at(body)
            if found is None:
                return
            response = _response(found)
        self._take_body(response)

    def take_array(self, text: bytes, count: int) -> bool:
        """The events of a stream, as the text of a JSON array of so many; False if nothing of it was taken."""
        try:
            plain = _PLAIN.decode(text)
        except _REFUSED:
            return count <= FEW_EVENTS and self._take_full(text, count)
        if len(plain) != count:
            return False
        pieces = [event.delta for event in plain]
        self._characters += len("".join(pieces))
        self._events += count - pieces.count("")
        return True

    def take_events(self, events: Sequence[bytes]) -> None:
        """The events of a stream, each its JSON text."""
        begin, end = plain_part(events, _ONE_PLAIN)
        if begin:
            self._take_each(events[:begin])
        middle = events[begin:end]
        text = b"[%b]" % b",".join(middle)
        if middle and not (self.take_array(text, len(middle)) or self._take_full(text, len(middle))):
            self._take_each(middle)
        if end < len(events):
            self._take_each(events[end:])

    def _take_full(self, text: bytes, count: int) -> bool:
        try:
            events = _FULL.decode(text)
        except _REFUSED:
            return False
        if len(events) != count:
            return False
        for event in events:
            self._take_event(event)
        return True

    def _take_each(self, events: Sequence[bytes]) -> None:
        for text in events:
            try:
                event = _ONE.decode(text)
            except _REFUSED:
                found = object_at(text)
                if found is None:
                    continue
                event = _event(found)
            self._take_event(event)

    def take_large(self, members: Members, skipped_bytes: int) -> None:
        """An event or a response that was too large to keep."""
        found = object_of(members)
        if type(found.get("type")) is not str:
            response = _response(found)
            if response.output is None and ("answers",) not in members:  # it is what was so large
                self._add_text(min(skipped_bytes, LARGE_CHARACTERS_MAX))
            self._take_body(response)
            return
        event = _event(found)
        if event.delta is None and _is_text(event.type):
            self._add_text(min(skipped_bytes, LARGE_CHARACTERS_MAX))
        self._take_event(event)

    def reading(self, whole: bool) -> Reading:
        """What is known so far."""
        counters = Counters.ABSENT
        reason: str | None = "no_usage" if whole else "stream_cut"
        if self._usage is not None:
            counters, reason = Counters.FINAL, None
        elif self._status in _PENDING and (self._background or self._body):
            # Even after an event of an error: it ends the stream, and the response is fetched later.
            counters, reason = Counters.FREE, "background_pending"
        elif self._error is not None:
            reason = "error"
        finish_reason = self._status if self._status in _ENDED else None
        if finish_reason == "incomplete":
            finish_reason = self._incomplete_reason or finish_reason
        return Reading(
            shape=self.name,
            usage=self._counted(),
            counters=counters,
            reason=reason,
            model=self._model,
            response_id=self._response_id,
            finish_reason=finish_reason,
            service_tier=self._service_tier,
            text_characters=self._characters,
            text_events=self._events,
            text_characters_after=0 if self._usage is None else self._characters - self._characters_then,
            text_events_after=0 if self._usage is None else self._events - self._events_then,
            error=self._error,
            once=self._response_id if self._background and counters is Counters.FINAL else None,
        )

    def _counted(self) -> Usage:
        tools = self._tools if self._searches is None else self._tools | {"web_search": self._searches}
        if self._drawn is not None and _DRAWING in tools:  # its part is what is billed
            tools = {name: number for name, number in tools.items() if name != _DRAWING}
        usage = tools_usage(self._usage or NO_USAGE, tools)
        parts = (*self._svg, self._drawn) if self._drawn is not None else tuple(self._svg)
        return replace(usage, parts=parts) if parts else usage

    def _take_event(self, event: _Event) -> None:
        kind = event.type
        if type(kind) is not str:
            self._error = error_kind(event.error) or self._error
        elif event.response is not None:
            self._take_response(event.response, kind in _ENDS)
        elif event.delta is not None:
            if type(event.delta) is str and event.delta and _is_text(kind):
                self._add_text(len(event.delta))
        elif event.item is not None:
            if kind == "response.output_item.added":
                self._add_text(len(event.item.name) if type(event.item.name) is str else 0)
            elif kind == "response.output_item.done":
                self._take_item(event.item)
        elif kind == "error":
            self._error = word(event.code) or error_kind(event.error) or "error"

    def _take_body(self, response: _Response) -> None:
        self._body = True
        if response.output:
            self._add_text(sum(map(_text_characters, response.output)))
        self._take_response(response, True)

    def _take_response(self, response: _Response, end: bool) -> None:
        self._response_id = word(response.id) or self._response_id
        self._model = word(response.model) or self._model
        self._status = word(response.status) or self._status
        self._service_tier = word(response.service_tier) or self._service_tier
        if response.background is True:
            self._background = True
        if not end:
            return
        self._incomplete_reason = word(as_object(response.incomplete_details).get("reason"))
        self._error = error_kind(response.error) or self._error
        if is_counted(response.usage):
            self._usage = usage_of(response.usage)
            self._characters_then, self._events_then = self._characters, self._events
        if response.output:
            self._tools, self._svg = {}, []
            for item in response.output:
                self._take_item(item)
        if response.tool_usage is not None:
            self._take_tool_usage(as_object(response.tool_usage), response.tools or ())

    def _take_item(self, item: _Item) -> None:
        tool = _SERVER_TOOLS.get(item.type) if type(item.type) is str else None
        if tool is None:
            return
        part = svg_part(item.svg_usage) if item.svg_usage is not None else None
        if part is not None and len(self._svg) < _PARTS_MAX:
            self._svg.append(part)
            if tool == _DRAWING:  # its part is what is billed
                return
        # Opening a page that was found, or looking for words in it, is no search that is billed.
        if tool != "web_search" or as_object(item.action).get("type", "search") == "search":
            self._tools[tool] = self._tools.get(tool, 0) + 1

    def _take_tool_usage(self, tool_usage: dict[str, Any], tools: Sequence[_Tool]) -> None:
        searches = as_object(tool_usage.get("web_search"))
        if type(searches.get("num_requests")) is int:
            self._searches = count(searches, "num_requests")
        drawing = as_object(tool_usage.get("image_gen"))
        usage = drawing_usage_of(drawing) if is_counted(drawing) else NO_USAGE
        if usage.total_input or usage.total_output:
            model = next((word(tool.model) for tool in tools if tool.type == "image_generation"), None)
            self._drawn = ModelUsage(model or "image_generation", usage)

    def _add_text(self, characters: int) -> None:
        if characters:
            self._characters += characters
            self._events += 1


def _is_text(kind: str) -> bool:
    return kind.endswith(".delta") and kind.startswith("response.") and kind not in _NOT_TEXT


def _text_characters(item: _Item) -> int:
    if item.role == "user":  # a compaction repeats what the user said
        return 0
    written = [item.name, item.arguments, item.input, item.code]
    for pieces in (item.content, item.summary):
        for piece in pieces if isinstance(pieces, list) else ():
            found = as_object(piece)
            written += (found.get("text"), found.get("refusal"), found.get("transcript"))
    return sum(len(text) for text in written if type(text) is str)


def _event(found: dict[str, Any]) -> _Event:
    """The object as an event, without what is of another form than it should have."""
    response = found.get("response")
    item = found.get("item")
    return msgspec.convert(
        {
            **found,
            "response": _response(response) if isinstance(response, dict) else None,
            "item": msgspec.convert(item, _Item) if isinstance(item, dict) else None,
        },
        _Event,
    )


def _response(found: dict[str, Any]) -> _Response:
    return msgspec.convert(
        {**found, "output": _objects(found, "output", _Item), "tools": _objects(found, "tools", _Tool)}, _Response
    )


def _objects(found: dict[str, Any], name: str, kind: type[_Struct]) -> list[_Struct] | None:
    values = found.get(name)
    if not isinstance(values, list):
        return None
    return [msgspec.convert(value, kind) for value in values if isinstance(value, dict)]
