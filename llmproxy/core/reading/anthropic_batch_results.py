"""The results of a batch of Anthropic's: JSON lines, each the answer to one request of the batch, or why there is none.

The rules, from the Claude API reference ("Message Batches", "Retrieve Message Batch results"): only a result that
succeeded is billed; one that errored, was cancelled or expired is not. All of it has the price of a batch. The results
can be fetched as often as one likes, so their usage counts once, and only a transfer that is whole tells it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from llmproxy.core.reading.anthropic import usage_of
from llmproxy.core.reading.shape import Members, Path
from llmproxy.core.reading.values import add, as_object, object_at, object_of, word
from llmproxy.core.usage import Counters, ModelUsage, Reading, Usage

MODELS_MAX: Final = 64
ONCE: Final = "batch_results"
"""`Reading.once` says that it counts once. Whose results they are only the path tells: the caller puts its id there."""


class AnthropicBatchResults:
    """One download of results. A `Shape`."""

    __slots__ = ("_by_model", "_lost")

    name = "anthropic-batch-results"
    watched: frozenset[Path] = frozenset(
        (("result", "type"), ("result", "message", "model"), ("result", "message", "usage"))
    )

    def __init__(self) -> None:
        self._by_model: dict[str, Usage] = {}
        self._lost = False  # a line that could not be read

    @classmethod
    def recognises(cls, keys: Mapping[str, bytes]) -> bool:
        """OpenAI's lines have a custom_id too, but a response."""
        return "custom_id" in keys and "result" in keys

    def take_body(self, body: bytes) -> None:
        """A batch with one result."""
        self._take(object_at(body))

    def take_events(self, events: Sequence[bytes]) -> None:
        """Some lines."""
        for line in events:
            self._take(object_at(line))

    def take_large(self, members: Members, skipped_bytes: int) -> None:
        """A line with a long answer."""
        self._take(object_of(members))

    def reading(self, whole: bool) -> Reading:
        """What is known so far. The model of the first result is the main one, the others are parts."""
        if not whole or self._lost:
            return Reading(shape=self.name, counters=Counters.FREE, reason="batch_incomplete", batch=True, once=ONCE)
        models = list(self._by_model.items())
        if not models:
            return Reading(shape=self.name, counters=Counters.FREE, reason="no_results", batch=True, once=ONCE)
        (model, usage), *others = models
        parts = tuple(ModelUsage(name, its_usage) for name, its_usage in others)
        return Reading(
            shape=self.name,
            usage=msgspec.structs.replace(usage, parts=usage.parts + parts),
            counters=Counters.FINAL,
            model=model or None,
            batch=True,
            once=ONCE,
        )

    def _take(self, line: dict[str, Any] | None) -> None:
        result = as_object((line or {}).get("result"))
        kind = result.get("type")
        if kind != "succeeded":
            self._lost = self._lost or type(kind) is not str
            return
        message = as_object(result.get("message"))
        model = word(message.get("model")) or ""
        usage = usage_of(as_object(message.get("usage")), model)
        self._put(model, msgspec.structs.replace(usage, parts=()))
        for part in usage.parts:
            self._put(part.model, part.usage)

    def _put(self, model: str, usage: Usage) -> None:
        """Add it up by model; of more than MODELS_MAX the last one takes the rest."""
        known = self._by_model
        if model not in known and len(known) >= MODELS_MAX:
            model = next(reversed(known))
        known[model] = add(known[model], usage) if model in known else usage
