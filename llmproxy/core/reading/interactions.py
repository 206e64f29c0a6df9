"""Gemini's Interactions, whole and streamed.

The rules, from the Gemini API reference ("Interactions"): the usage is cumulative, and counts as that of
generateContent does: total_input_tokens includes the cached ones, total_output_tokens leaves out the thoughts. An
interaction can be fetched again and again, or its stream resumed, and each answer of one that is done repeats the
usage. It counts once, under the id of the interaction. Whether it ran in the background no answer tells ("background"
is of the request only), so that goes for all of them, and for an estimate too: where the first stream was cut, what is
fetched later is the same once more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from llmproxy.core.reading.gemini import error_kind, large_characters, tokens_of
from llmproxy.core.reading.shape import Members, Path
from llmproxy.core.reading.values import (
    as_object,
    count,
    json_length,
    length,
    object_at,
    object_of,
    objects,
    tools,
    word,
)
from llmproxy.core.usage import NO_USAGE, Counters, Reading, Usage

_RUNNING: Final = frozenset(("in_progress", "queued", "requires_continuation"))


class Interactions:
    """One interaction. A `Shape`."""

    __slots__ = (
        "_characters",
        "_characters_then",
        "_error",
        "_events",
        "_events_then",
        "_model",
        "_response_id",
        "_service_tier",
        "_settled",
        "_status",
        "_streamed",
        "_usage",
    )

    name = "gemini-interactions"
    watched: frozenset[Path] = frozenset(
        (key,) for key in ("event_type", "id", "model", "object", "service_tier", "status", "usage", "error")
    ) | frozenset(("interaction", key) for key in ("id", "model", "service_tier", "status", "usage"))

    def __init__(self) -> None:
        self._model: str | None = None
        self._response_id: str | None = None
        self._service_tier: str | None = None
        self._status: str | None = None
        self._error: str | None = None
        self._usage: dict[str, Any] | None = None
        self._settled = self._streamed = False
        self._characters = self._characters_then = 0
        self._events = self._events_then = 0

    @classmethod
    def recognises(cls, keys: Mapping[str, bytes]) -> bool:
        """Events have an event_type; an error tells nothing, for it may be of anything."""
        kind = keys.get("event_type", b"")
        return keys.get("object") == b'"interaction"' or kind.startswith((b'"interaction.', b'"step.'))

    def take_body(self, body: bytes) -> None:
        """A whole interaction, or one event of it."""
        found = object_at(body)
        if found is not None:
            self._take(found)

    def take_events(self, events: Sequence[bytes]) -> None:
        """Events of a stream."""
        for text in events:
            found = object_at(text)
            if found is not None:
                self._take(found)

    def take_large(self, members: Members, skipped_bytes: int) -> None:
        """An event or an interaction that was too large to keep."""
        found = object_of(members)
        if found.get("event_type") in (None, "step.delta", "step.start"):
            self._add_text(large_characters(skipped_bytes))
        self._take(found)

    def reading(self, whole: bool) -> Reading:
        """What is known so far."""
        counted = self._usage is not None
        counters, reason = Counters.RUNNING if counted else Counters.ABSENT, "no_usage" if whole else "stream_cut"
        if self._settled and counted:
            counters, reason = Counters.FINAL, ""
        elif self._error is not None:
            reason = "error"
        elif not self._streamed and self._status in _RUNNING:
            counters, reason = Counters.FREE, "background_pending"
        elif counted and whole:
            reason = "not_completed"
        free = counters is Counters.FREE
        return Reading(
            shape=self.name,
            usage=usage_of(self._usage) if self._usage is not None and not free else NO_USAGE,
            counters=counters,
            reason=reason or None,
            model=self._model,
            response_id=self._response_id,
            finish_reason=self._status,
            service_tier=self._service_tier,
            text_characters=self._characters,
            text_events=self._events,
            text_characters_after=self._characters - self._characters_then if counted else 0,
            text_events_after=self._events - self._events_then if counted else 0,
            error=self._error,
            once=None if free else self._response_id,
        )

    def _take(self, found: Mapping[str, Any]) -> None:
        kind = found.get("event_type")
        if kind is None:
            self._take_interaction(found)
            self._add_text(sum(_step_characters(step) for step in objects(found.get("steps") or found.get("outputs"))))
            self._count(found.get("usage"))
            self._settled = self._usage is not None and self._status not in _RUNNING
            return
        self._streamed = True
        if kind == "step.delta":
            self._add_text(_step_characters(as_object(found.get("delta"))))
            self._count(as_object(found.get("metadata")).get("total_usage"))
        elif kind == "step.stop" or kind == "interaction.status_update":
            self._count(found.get("usage"))
        elif kind == "error":
            self._error = error_kind(found.get("error"))
        interaction = as_object(found.get("interaction"))
        if interaction:
            self._take_interaction(interaction)
            self._count(interaction.get("usage"))
        if kind == "interaction.completed" and self._usage is not None:
            self._settled = True

    def _take_interaction(self, found: Mapping[str, Any]) -> None:
        self._model = word(found.get("model")) or word(found.get("agent")) or self._model
        self._response_id = word(found.get("id")) or self._response_id
        self._status = word(found.get("status")) or self._status
        self._service_tier = word(found.get("service_tier")) or self._service_tier

    def _count(self, usage: object) -> None:
        if isinstance(usage, dict) and usage:
            self._usage = {
                **(self._usage or {}),
                **{name: usage[name] for name in _KEPT if usage.get(name) is not None},
            }
            self._characters_then, self._events_then = self._characters, self._events

    def _add_text(self, characters: int) -> None:
        if characters:
            self._characters += characters
            self._events += 1


_KEPT: Final = (
    "total_input_tokens",
    "total_output_tokens",
    "total_thought_tokens",
    "total_cached_tokens",
    "total_tool_use_tokens",
    "input_tokens_by_modality",
    "cached_tokens_by_modality",
    "output_tokens_by_modality",
    "grounding_tool_count",
)


def usage_of(found: Mapping[str, Any]) -> Usage:
    """The usage that an interaction writes, of any types."""
    searches: dict[str, int] = {}
    for each in objects(found.get("grounding_tool_count")):
        kind = word(each.get("type"))
        if kind:
            searches[kind] = searches.get(kind, 0) + count(each.get("count"))
    usage = tokens_of(
        prompt=count(found.get("total_input_tokens")),
        cached=count(found.get("total_cached_tokens")),
        tool_use=count(found.get("total_tool_use_tokens")),
        answer=count(found.get("total_output_tokens")),
        thoughts=count(found.get("total_thought_tokens")),
        of_prompt=_modalities(found.get("input_tokens_by_modality")),
        of_cached=_modalities(found.get("cached_tokens_by_modality")),
        of_answer=_modalities(found.get("output_tokens_by_modality")),
    )
    return msgspec.structs.replace(usage, server_tools=tools(searches)) if searches else usage


def _modalities(details: object) -> dict[str, int]:
    found: dict[str, int] = {}
    for each in objects(details):
        modality = word(each.get("modality"))
        if modality:
            found[modality.upper()] = found.get(modality.upper(), 0) + count(each.get("tokens"))
    return found


def _step_characters(step: Mapping[str, Any]) -> int:
    """Of a step {type, content: [{text}]}, a content {text}, or a delta {text | arguments | content: {text}}."""
    content = step.get("content") or step.get("summary")
    inner = objects(content) if isinstance(content, list) else [as_object(content)]
    arguments = step.get("arguments")
    written = length(arguments) if type(arguments) is str else json_length(arguments)
    return length(step.get("text")) + written + sum(length(each.get("text")) for each in inner)
