"""Anthropic's messages, whole and streamed, and its answers that bill nothing: counts, lists, files, batches.

The rules, from the Claude API reference ("Messages", "Streaming messages", "Prompt caching"):

* input_tokens is without what was read from a cache or written to one.
* The usage of message_delta is cumulative: each field that it has replaces the one of message_start. Only message_start
  tells how much of what was written to a cache is kept for an hour.
* The output_tokens of message_start is a placeholder (about 1), and no output at all is counted until message_delta.
* usage.iterations: a "compaction" is not in the sums of the top level, and is added. An "advisor_message" is not
  either, and has a model of its own: a part. A "message" or "fallback_message" is in them if it is of the model that
  answered. Whether one of another model (an attempt that was declined, before a fallback) is in them too is not
  documented: it is if the top level is large enough for all of them, and is then taken out of it. It is a part either
  way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from llmproxy.core.reading.anthropic_plain import PLAIN_MESSAGE, PlainMessage, plain_usage
from llmproxy.core.reading.repetition import TextRun
from llmproxy.core.reading.shape import Members, Path
from llmproxy.core.reading.values import (
    REFUSED,
    add,
    as_object,
    count,
    is_count,
    json_length,
    length,
    named_counts,
    object_at,
    object_of,
    objects,
    subtract,
    tools,
    word,
)
from llmproxy.core.usage import NO_USAGE, Counters, ModelUsage, Reading, Usage

LARGE_CHARACTERS_MAX: Final = 512 * 1024
"""What was too large to keep is counted as so much text at most: no model writes more than 128,000 tokens."""

PARTS_MAX: Final = 64

_EVENTS: Final = frozenset(
    f'"{kind}"'.encode()
    for kind in (
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    )
)


class _Delta(msgspec.Struct):
    text: Any = None
    thinking: Any = None
    partial_json: Any = None
    content: Any = None  # of a compaction
    stop_reason: Any = None


class _Event(msgspec.Struct):
    """Any event of a stream, in one: a tagged union is not faster, and refuses an event that is new."""

    type: Any = None
    delta: _Delta | None = None
    usage: Any = None
    message: Any = None
    error: Any = None


_EVENT_LIST: Final = msgspec.json.Decoder(list[_Event])
_EVENT: Final = msgspec.json.Decoder(_Event)


# A member of an enumeration is slow to get from its class.
_FINAL: Final = Counters.FINAL
_RUNNING: Final = Counters.RUNNING
_ABSENT: Final = Counters.ABSENT


class AnthropicMessages:
    """One answer of /v1/messages. A `Shape`."""

    __slots__ = (
        "_characters",
        "_characters_then",
        "_counted",
        "_error",
        "_events",
        "_events_then",
        "_finish_reason",
        "_model",
        "_response_id",
        "_stopped",
        "_usage",
        "_usage_read",
    )

    name = "anthropic-messages"
    watched: frozenset[Path] = frozenset(
        {
            *((key,) for key in ("type", "id", "model", "stop_reason", "usage", "error")),
            *(("message", key) for key in ("id", "model", "usage")),
            ("delta", "stop_reason"),
        }
    )

    def __init__(self) -> None:
        self._model: str | None = None
        self._response_id: str | None = None
        self._finish_reason: str | None = None
        self._error: str | None = None
        self._usage: dict[str, Any] = {}  # as written, the last of each field
        self._usage_read: Usage | None = None  # the same, where it is known already
        self._counted = False  # the output was counted too
        self._stopped = False
        self._characters = self._characters_then = 0
        self._events = self._events_then = 0

    @classmethod
    def recognises(cls, keys: Mapping[str, bytes]) -> bool:
        """A ping and an error come from other providers too, and tell nothing."""
        kind = keys.get("type")
        return kind in _EVENTS or (kind == b'"message"' and ("usage" in keys or "content" in keys))

    def take_body(self, body: bytes) -> None:
        """A whole message. (One event of a stream comes so where a stream is JSON lines.)"""
        if not self._usage:
            try:
                plain = PLAIN_MESSAGE.decode(body)
            except REFUSED:
                pass
            else:
                self._take_plain(plain)
                return
        found = object_at(body)
        if found is not None:
            self._take_object(found)

    def take_array(self, text: bytes, count: int) -> bool:
        """The events of a stream, as the text of a JSON array of so many; False if nothing of it was taken."""
        try:
            events = _EVENT_LIST.decode(text)
        except REFUSED:
            return False
        if len(events) != count:
            return False
        self._take(events)
        return True

    def plain_text(self, event: bytes) -> str | None:
        """The piece of text that an event is, if it is nothing else; see core/reading/repetition.py."""
        try:
            found = _EVENT.decode(event)
        except REFUSED:
            return None
        delta = found.delta
        if delta is None or found.type != "content_block_delta":
            return None
        for text in (delta.text, delta.thinking, delta.partial_json):
            if type(text) is str:
                return text
        return None

    def take_text(self, run: TextRun) -> None:
        """Events that are such pieces."""
        self._characters += run.characters
        self._events += run.brought

    def take_events(self, events: Sequence[bytes]) -> None:
        """The events of a stream, each its JSON text."""
        if not self.take_array(b"[%b]" % b",".join(events), len(events)):
            self._take([event for event in map(_event, events) if event is not None])

    def take_large(self, members: Members, skipped_bytes: int) -> None:
        """An event or a message that was too large to keep. What was so large is text, most likely; not where a block
        begins, for then it is what a tool of the provider has found."""
        found = object_of(members)
        if found.get("type") in ("message", "content_block_delta"):
            self._add_text(min(skipped_bytes, LARGE_CHARACTERS_MAX))
        self._take_object(found)

    def reading(self, whole: bool) -> Reading:
        """What is known so far."""
        counters, reason = _RUNNING, "stream_cut"
        if self._error is not None:
            reason = "error"
        elif whole:
            reason = "no_final_usage"
        if not self._usage:
            counters = _ABSENT
            reason = "no_usage" if reason == "no_final_usage" else reason
        final = self._counted and self._stopped
        written = self._usage
        tier = word(written.get("service_tier"))
        return Reading(
            shape=self.name,
            usage=self._usage_so_far() if written else NO_USAGE,
            counters=_FINAL if final else counters,
            reason=None if final else reason,
            model=self._model,
            response_id=self._response_id,
            finish_reason=self._finish_reason,
            service_tier=tier,
            speed=word(written.get("speed")),
            inference_geo=word(written.get("inference_geo")),
            batch=tier == "batch",
            text_characters=self._characters,
            text_events=self._events,
            text_characters_after=self._characters - self._characters_then if written else 0,
            text_events_after=self._events - self._events_then if written else 0,
            error=self._error,
        )

    # -- taking

    def _take(self, events: Sequence[_Event]) -> None:
        characters = brought = 0
        for event in events:
            delta = event.delta
            if delta is not None:
                if type(delta.text) is str:
                    now = len(delta.text)
                elif type(delta.thinking) is str:
                    now = len(delta.thinking)
                elif type(delta.partial_json) is str:
                    now = len(delta.partial_json)
                else:
                    now = length(delta.content)
                if now:
                    characters += now
                    brought += 1
            if event.type == "content_block_delta":
                continue
            self._characters += characters
            self._events += brought
            characters = brought = 0
            self._take_other(event)
        self._characters += characters
        self._events += brought

    def _take_other(self, event: _Event) -> None:
        """An event that is no piece of a block."""
        kind = event.type
        if kind == "message_start":
            message = as_object(event.message)
            self._model = word(message.get("model")) or self._model
            self._response_id = word(message.get("id")) or self._response_id
            usage = as_object(message.get("usage"))
            # What it says of the output is a placeholder.
            self._usage = {name: usage[name] for name in _KEPT if name in usage and name != "output_tokens"}
            self._usage_read = None
        elif kind == "message_delta":
            if event.delta is not None and event.delta.stop_reason is not None:
                self._finish_reason = word(event.delta.stop_reason) or self._finish_reason
                self._stopped = True
            self._take_counters(as_object(event.usage))
        elif kind == "message_stop":
            self._stopped = True
        elif kind == "error" or (kind is None and event.error is not None):
            self._error = word(as_object(event.error).get("type")) or "error"

    def _take_counters(self, usage: Mapping[str, Any]) -> None:
        found = {name: usage[name] for name in _KEPT if usage.get(name) is not None}
        for name in _COUNTS:
            if name in found and not is_count(found[name]):
                del found[name]  # the one that was told before is better than nothing
        self._usage.update(found)
        self._usage_read = None
        if "output_tokens" in found:
            self._counted = True
            self._characters_then, self._events_then = self._characters, self._events

    def _take_plain(self, message: PlainMessage) -> None:
        """As `_take_object`."""
        self._model = word(message.model)
        self._response_id = word(message.id)
        self._finish_reason = word(message.stop_reason)
        characters = 0
        for block in message.content:
            if block.text is not None:
                characters += len(block.text)
            if block.thinking is not None:
                characters += len(block.thinking)
            if block.input is not None:
                characters += json_length(block.input)
        self._add_text(characters)
        self._stopped = self._counted = True
        self._characters_then, self._events_then = self._characters, self._events
        self._usage = msgspec.structs.asdict(message.usage)
        self._usage_read = plain_usage(message.usage)

    def _take_object(self, found: dict[str, Any]) -> None:
        if found.get("type") != "message":
            event = _converted(found)
            if event is not None:
                self._take((event,))
            return
        self._model = word(found.get("model"))
        self._response_id = word(found.get("id"))
        self._finish_reason = word(found.get("stop_reason"))
        self._add_text(sum(_block_characters(block) for block in objects(found.get("content"))))
        self._stopped = True
        self._take_counters(as_object(found.get("usage")))

    def _add_text(self, characters: int) -> None:
        if characters:
            self._characters += characters
            self._events += 1

    # -- telling

    def _usage_so_far(self) -> Usage:
        return self._usage_read or usage_of(self._usage, self._model)


_COUNTS: Final = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens", "output_tokens")
_KEPT: Final = (
    *_COUNTS,
    "cache_creation",
    "output_tokens_details",
    "server_tool_use",
    "iterations",
    "service_tier",
    "speed",
    "inference_geo",
)


def usage_of(written: Mapping[str, Any], model: str | None) -> Usage:
    """The usage that this object writes, of any types. model: the one that answered; parts are of others."""
    usage = msgspec.structs.replace(
        _tokens(written), server_tools=tools(named_counts(written.get("server_tool_use"), "_requests"))
    )
    iterations = objects(written.get("iterations"))
    if not iterations:
        return usage
    parts: dict[str, Usage] = {}
    others: list[Usage] = []  # of models that did not answer, but may be in the sums
    own = NO_USAGE
    for each in iterations:
        kind, its_model, its_usage = each.get("type"), word(each.get("model")) or model or "", _tokens(each)
        if kind == "compaction":
            usage = add(usage, its_usage)
            own = add(own, its_usage)
        elif kind == "advisor_message":
            _put(parts, its_model, its_usage)
        elif kind in ("message", "fallback_message"):
            if its_model == (model or its_model):
                own = add(own, its_usage)
            else:
                others.append(its_usage)
                _put(parts, its_model, its_usage)
    if others and _holds(usage, [own, *others]):
        usage = subtract(usage, others)
    return msgspec.structs.replace(
        usage, parts=tuple(ModelUsage(its_model, its_usage) for its_model, its_usage in parts.items())
    )


def _tokens(written: Mapping[str, Any]) -> Usage:
    """The tokens alone, of the top level or of an iteration."""
    split = as_object(written.get("cache_creation"))
    hour = count(split.get("ephemeral_1h_input_tokens"))
    cached = written.get("cache_creation_input_tokens")
    if not is_count(cached):
        cached = hour + count(split.get("ephemeral_5m_input_tokens"))
    hour = min(hour, cached)
    output = count(written.get("output_tokens"))
    thinking = count(as_object(written.get("output_tokens_details")).get("thinking_tokens"))
    return Usage(
        input_tokens=count(written.get("input_tokens")),
        cache_read_tokens=count(written.get("cache_read_input_tokens")),
        cache_write_5m_tokens=cached - hour,
        cache_write_1h_tokens=hour,
        output_tokens=output,
        reasoning_tokens=min(thinking, output),
    )


def _holds(usage: Usage, parts: Sequence[Usage]) -> bool:
    """Whether a usage is large enough for all of these."""
    return usage.total_input >= sum(part.total_input for part in parts) and usage.total_output >= sum(
        part.total_output for part in parts
    )


def _put(parts: dict[str, Usage], model: str, usage: Usage) -> None:
    """Add to a part; of more than PARTS_MAX models the last one takes the rest."""
    if model not in parts and len(parts) >= PARTS_MAX:
        model = next(reversed(parts))
    parts[model] = add(parts[model], usage) if model in parts else usage


def _block_characters(block: Mapping[str, Any]) -> int:
    text = length(block.get("text")) + length(block.get("thinking"))
    return text + json_length(block.get("input")) if "input" in block else text


def _event(text: bytes) -> _Event | None:
    try:
        return _EVENT.decode(text)
    except REFUSED:
        found = object_at(text)
        return None if found is None else _converted(found)


def _converted(found: dict[str, Any]) -> _Event | None:
    try:
        return msgspec.convert({**found, "delta": as_object(found.get("delta")) or None}, _Event)
    except REFUSED:
        return None


# The objects that are no message: how each is told, and why it bills nothing. Source: the Claude API reference, "Count
# tokens", "Models", "Files", "Message Batches".
_KINDS: Final = frozenset((b'"model"', b'"file"', b'"file_deleted"', b'"message_batch"', b'"message_batch_deleted"'))


class AnthropicResource:
    """An answer that bills nothing: a count of tokens, a list, a model, a file, a batch. A `Shape`."""

    __slots__ = ("_reason",)

    name = "anthropic-resource"
    watched: frozenset[Path] = frozenset((("type",), ("input_tokens",), ("has_more",)))

    def __init__(self) -> None:
        self._reason = "list"

    @classmethod
    def recognises(cls, keys: Mapping[str, bytes]) -> bool:
        """A count has input_tokens and next to nothing else; a list has data and has_more."""
        if keys.get("type") in _KINDS:
            return True
        if "input_tokens" in keys:
            return keys.keys() <= {"input_tokens", "context_management"}
        return "has_more" in keys and "data" in keys and "object" not in keys

    def take_body(self, body: bytes) -> None:
        """The object."""
        self._take(object_at(body) or {})

    def take_events(self, events: Sequence[bytes]) -> None:
        """There are none."""

    def take_large(self, members: Members, skipped_bytes: int) -> None:
        """A long list."""
        self._take(object_of(members))

    def _take(self, found: Mapping[str, Any]) -> None:
        kind = found.get("type")
        if "input_tokens" in found:
            self._reason = "token_count"
        elif type(kind) is str and f'"{kind}"'.encode() in _KINDS:
            self._reason = kind

    def reading(self, whole: bool) -> Reading:
        """Nothing is billed, whether or not it is all here."""
        return Reading(shape=self.name, counters=Counters.FREE, reason=self._reason)
