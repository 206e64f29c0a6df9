"""Amazon Bedrock's Converse, whole and streamed, and the frames of InvokeModelWithResponseStream.

An event stream comes here as one JSON object for each frame, whose only member has the event's type as its name. A
frame of InvokeModel holds an event of the model's own stream, in base64; it is handed on to the shape that it is of.
Its last one has amazon-bedrock-invocationMetrics, which win, field by field. An answer of InvokeModel that is whole is
in the model's own shape, and does not come here.

The rules, from the Amazon Bedrock API reference ("TokenUsage", "CacheDetail", "InvokeModelWithResponseStream"):
inputTokens is without what was read from a cache or written to one; cacheDetails splits what was written by how long it
is kept.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from llmproxy.core.reading.anthropic import LARGE_CHARACTERS_MAX, AnthropicMessages
from llmproxy.core.reading.shape import Members, Path
from llmproxy.core.reading.values import (
    as_object,
    count,
    is_count,
    json_length,
    length,
    object_at,
    object_of,
    objects,
    word,
)
from llmproxy.core.usage import NO_USAGE, Counters, Reading, Usage

_FRAMES: Final = frozenset(
    ("messageStart", "contentBlockStart", "contentBlockDelta", "contentBlockStop", "messageStop", "metadata")
)
_METRICS: Final = "amazon-bedrock-invocationMetrics"


class BedrockConverse:
    """One answer of Converse or ConverseStream. A `Shape`."""

    __slots__ = (
        "_characters",
        "_characters_then",
        "_error",
        "_events",
        "_events_then",
        "_finish_reason",
        "_service_tier",
        "_usage",
    )

    name = "bedrock-converse"
    watched: frozenset[Path] = frozenset((("stopReason",), ("usage",), ("serviceTier",), ("metadata",)))

    def __init__(self) -> None:
        self._finish_reason: str | None = None
        self._service_tier: str | None = None
        self._error: str | None = None
        self._usage: dict[str, Any] | None = None
        self._characters = self._characters_then = 0
        self._events = self._events_then = 0

    @classmethod
    def recognises(cls, keys: Mapping[str, bytes]) -> bool:
        """A frame, or an answer with a stopReason and the metrics or usage of Converse."""
        if len(keys) == 1 and keys.keys() <= _FRAMES:
            return True
        return "stopReason" in keys and ("output" in keys or "metrics" in keys)

    def take_body(self, body: bytes) -> None:
        """A whole answer."""
        self._take(object_at(body) or {})

    def take_events(self, events: Sequence[bytes]) -> None:
        """Frames of a stream."""
        for text in events:
            self._take(object_at(text) or {})

    def take_large(self, members: Members, skipped_bytes: int) -> None:
        """A frame or an answer that was too large to keep: text, most likely."""
        self._add_text(min(skipped_bytes, LARGE_CHARACTERS_MAX))
        self._take(object_of(members))

    def reading(self, whole: bool) -> Reading:
        """What is known so far. The model is in the path alone."""
        usage = self._usage
        reason = "error" if self._error is not None else "no_usage" if whole else "stream_cut"
        return Reading(
            shape=self.name,
            usage=NO_USAGE if usage is None else usage_of(usage),
            counters=Counters.ABSENT if usage is None else Counters.FINAL,
            reason=reason if usage is None else None,
            finish_reason=self._finish_reason,
            service_tier=self._service_tier,
            text_characters=self._characters,
            text_events=self._events,
            text_characters_after=0 if usage is None else self._characters - self._characters_then,
            text_events_after=0 if usage is None else self._events - self._events_then,
            error=self._error,
        )

    def _take(self, found: Mapping[str, Any]) -> None:
        delta = as_object(as_object(found.get("contentBlockDelta")).get("delta"))
        if delta:
            self._add_text(_content_characters(delta))
        elif "exception" in found:
            self._error = word(as_object(found["exception"]).get("type")) or "error"
        message = as_object(as_object(found.get("output")).get("message"))
        self._add_text(sum(map(_content_characters, objects(message.get("content")))))
        for holder in (found, as_object(found.get("messageStop")), as_object(found.get("metadata"))):
            self._finish_reason = word(holder.get("stopReason")) or self._finish_reason
            self._service_tier = word(as_object(holder.get("serviceTier")).get("type")) or self._service_tier
            usage = holder.get("usage")
            if isinstance(usage, dict) and any(is_count(usage.get(name)) for name in _COUNTS):
                self._usage = {name: usage.get(name) for name in (*_COUNTS, "cacheDetails")}
                self._characters_then, self._events_then = self._characters, self._events

    def _add_text(self, characters: int) -> None:
        if characters:
            self._characters += characters
            self._events += 1


_COUNTS: Final = ("inputTokens", "outputTokens", "cacheReadInputTokens", "cacheWriteInputTokens")


def usage_of(found: Mapping[str, Any]) -> Usage:
    """The usage that a TokenUsage writes, of any types."""
    details = objects(found.get("cacheDetails"))
    hour = sum(count(each.get("inputTokens")) for each in details if each.get("ttl") == "1h")
    written = found.get("cacheWriteInputTokens")
    if not is_count(written):
        written = sum(count(each.get("inputTokens")) for each in details)
    hour = min(hour, written)
    return Usage(
        input_tokens=count(found.get("inputTokens")),
        cache_read_tokens=count(found.get("cacheReadInputTokens")),
        cache_write_5m_tokens=written - hour,
        cache_write_1h_tokens=hour,
        output_tokens=count(found.get("outputTokens")),
    )


def _content_characters(content: Mapping[str, Any]) -> int:
    """Of a content block, or of the delta of one: {text}, {toolUse: {input}}, {reasoningContent: {text}}."""
    called = as_object(content.get("toolUse")).get("input")
    reasoning = as_object(content.get("reasoningContent"))
    reasoned = length(reasoning.get("text")) or length(as_object(reasoning.get("reasoningText")).get("text"))
    written = length(called) if type(called) is str else json_length(called)
    return length(content.get("text")) + written + reasoned


class BedrockInvoke:
    """One stream of InvokeModelWithResponseStream. A `Shape`. Those of Anthropic's models are read as such; of others
    the text, and the metrics at the end."""

    __slots__ = ("_anthropic", "_characters", "_error", "_events", "_finish_reason", "_metrics")

    name = "bedrock-invoke"
    watched: frozenset[Path] = frozenset()

    def __init__(self) -> None:
        self._anthropic: AnthropicMessages | None = None
        self._metrics: dict[str, Any] | None = None
        self._finish_reason: str | None = None
        self._error: str | None = None
        self._characters = self._events = 0

    @classmethod
    def recognises(cls, keys: Mapping[str, bytes]) -> bool:
        """Each frame is a chunk."""
        return keys.keys() == {"chunk"}

    def take_body(self, body: bytes) -> None:
        """Never there: only frames come here."""
        self.take_events((body,))

    def take_events(self, events: Sequence[bytes]) -> None:
        """Frames of a stream. The events in them are handed on together."""
        own: list[bytes] = []
        for text in events:
            frame = object_at(text) or {}
            if "exception" in frame:
                self._error = word(as_object(frame["exception"]).get("type")) or "error"
            inner = _inner(frame)
            found = object_at(inner) if inner else None
            if found is None:
                continue
            metrics = found.get(_METRICS)
            if isinstance(metrics, dict):
                self._metrics = metrics
            if type(found.get("type")) is str:
                own.append(inner)
            else:
                self._take_other(found)
        if own:
            if self._anthropic is None:
                self._anthropic = AnthropicMessages()
            self._anthropic.take_events(own)

    def take_large(self, members: Members, skipped_bytes: int) -> None:
        """A frame that was too large to keep: text, in base64, which is longer by a third."""
        self._characters += min(skipped_bytes * 3 // 4, LARGE_CHARACTERS_MAX)
        self._events += 1

    def reading(self, whole: bool) -> Reading:
        """What is known so far."""
        reading = Reading() if self._anthropic is None else self._anthropic.reading(whole)
        metrics = self._metrics
        after = metrics is None and reading.counters is not Counters.ABSENT
        counters, reason = reading.counters, reading.reason
        if metrics is not None:
            counters, reason = Counters.FINAL, None
        elif counters is not Counters.FINAL:
            reason = "error" if self._error is not None else reason or ("no_usage" if whole else "stream_cut")
        return msgspec.structs.replace(
            reading,
            shape=self.name,
            usage=reading.usage if metrics is None else _with_metrics(reading.usage, metrics),
            counters=counters,
            reason=reason,
            finish_reason=reading.finish_reason or self._finish_reason,
            text_characters=reading.text_characters + self._characters,
            text_events=reading.text_events + self._events,
            text_characters_after=reading.text_characters_after + self._characters if after else 0,
            text_events_after=reading.text_events_after + self._events if after else 0,
            error=self._error or reading.error,
        )

    def _take_other(self, found: Mapping[str, Any]) -> None:
        """An event of another model: Nova's are those of Converse; Llama's have a generation, Titan's an outputText."""
        delta = as_object(as_object(found.get("contentBlockDelta")).get("delta"))
        characters = length(found.get("generation")) + length(found.get("outputText")) + _content_characters(delta)
        if characters:
            self._characters += characters
            self._events += 1
        for holder, name in ((found, "stop_reason"), (found, "completionReason")):
            self._finish_reason = word(holder.get(name)) or self._finish_reason
        self._finish_reason = word(as_object(found.get("messageStop")).get("stopReason")) or self._finish_reason


def _inner(frame: Mapping[str, Any]) -> bytes:
    encoded = as_object(frame.get("chunk")).get("bytes")
    try:
        return base64.b64decode(encoded) if type(encoded) is str else b""
    except (binascii.Error, ValueError):
        return b""


def _with_metrics(usage: Usage, metrics: Mapping[str, Any]) -> Usage:
    """The usage with what the metrics count in its place, field by field."""
    changes: dict[str, int] = {}
    for name, field in (
        ("inputTokenCount", "input_tokens"),
        ("outputTokenCount", "output_tokens"),
        ("cacheReadInputTokenCount", "cache_read_tokens"),
    ):
        if is_count(metrics.get(name)):
            changes[field] = metrics[name]
    written = metrics.get("cacheWriteInputTokenCount")
    if is_count(written):
        hour = min(usage.cache_write_1h_tokens, count(written))
        changes |= {"cache_write_1h_tokens": hour, "cache_write_5m_tokens": count(written) - hour}
    if "output_tokens" in changes:
        changes["reasoning_tokens"] = min(usage.reasoning_tokens, changes["output_tokens"])
    return msgspec.structs.replace(usage, **changes)
