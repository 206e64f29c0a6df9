"""Gemini's embeddings, and its answers that bill nothing: counts of tokens, lists, models, files, caches, operations.

Source: the Gemini API reference, "Embeddings", "Counting tokens", "Models", "Files", "Caching", "Batch API". What a
cache costs is billed by how long it is kept, which no answer says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from llmproxy.core.reading.gemini import usage_of
from llmproxy.core.reading.shape import Members, Path
from llmproxy.core.reading.values import as_object, object_at, object_of, word
from llmproxy.core.usage import Counters, Reading

_LISTS: Final = frozenset(
    ("models", "files", "cachedContents", "batches", "operations", "tunedModels", "permissions", "fileSearchStores")
)
_COLLECTIONS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "models": "model",
        "tunedModels": "model",
        "files": "file",
        "cachedContents": "cached_content",
        "batches": "operation",
        "fileSearchStores": "file_search_store",
    }
)


class GeminiEmbedding:
    """An answer of embedContent or batchEmbedContents. A `Shape`."""

    __slots__ = ("_usage",)

    name = "gemini-embedding"
    watched: frozenset[Path] = frozenset((("usageMetadata",),))

    def __init__(self) -> None:
        self._usage: dict[str, Any] = {}

    @classmethod
    def recognises(cls, keys: Mapping[str, bytes]) -> bool:
        """Cohere's has embeddings too, but with an id."""
        return ("embedding" in keys or "embeddings" in keys) and keys.keys() <= {
            "embedding",
            "embeddings",
            "usageMetadata",
        }

    def take_body(self, body: bytes) -> None:
        """The answer."""
        self._usage = as_object((object_at(body) or {}).get("usageMetadata"))

    def take_events(self, events: Sequence[bytes]) -> None:
        """There are none."""

    def take_large(self, members: Members, skipped_bytes: int) -> None:
        """Many vectors."""
        self._usage = as_object(object_of(members).get("usageMetadata"))

    def reading(self, whole: bool) -> Reading:
        """FINAL if it was counted, which not every version of the API does."""
        if self._usage:
            return Reading(shape=self.name, usage=usage_of(self._usage), counters=Counters.FINAL)
        return Reading(shape=self.name, reason="no_usage" if whole else "stream_cut")


class GeminiResource:
    """An answer that bills nothing by itself: a count of tokens, a list, a model, a file, a cache, an operation."""

    __slots__ = ("_reason",)

    name = "gemini-resource"
    watched: frozenset[Path] = frozenset((("name",), ("totalTokens",)))

    def __init__(self) -> None:
        self._reason = "list"

    @classmethod
    def recognises(cls, keys: Mapping[str, bytes]) -> bool:
        """countTokens; `{"models": [...]}` and the like; a resource, whose name says of which collection it is."""
        if "totalTokens" in keys:
            return "candidates" not in keys
        if keys.keys() <= {*_LISTS, "nextPageToken"} and keys:
            return True
        if keys.keys() == {"file"}:
            return True
        return _collection(keys.get("name", b"").decode("utf-8", "replace").strip('"')) is not None

    def take_body(self, body: bytes) -> None:
        """The object."""
        self._take(object_at(body) or {})

    def take_events(self, events: Sequence[bytes]) -> None:
        """There are none."""

    def take_large(self, members: Members, skipped_bytes: int) -> None:
        """A long list."""
        self._take(object_of(members))

    def _take(self, found: Mapping[str, Any]) -> None:
        if "totalTokens" in found:
            self._reason = "token_count"
        elif "file" in found:
            self._reason = "file"
        else:
            self._reason = _collection(word(found.get("name")) or "") or self._reason

    def reading(self, whole: bool) -> Reading:
        """Nothing is billed, whether or not it is all here."""
        return Reading(shape=self.name, counters=Counters.FREE, reason=self._reason)


def _collection(name: str) -> str | None:
    """What a name like "files/abc" names."""
    parts = name.split("/")
    if len(parts) < 2:
        return None
    return "operation" if "operations" in parts else _COLLECTIONS.get(parts[0])
