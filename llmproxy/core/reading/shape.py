"""What every shape of an answer can do: say whether it is one, and take its values one after the other.

A shape is one provider's way of writing an answer (chat completions, Responses, messages, generateContent, ...). The
containers (JSON, server-sent events, a JSON array, JSON lines, AWS event streams) are taken apart before: a shape gets
whole JSON texts, or, where one is too large to be kept, only those members of it that it watches.

The rules: a shape is chosen by what the answer says, never by the path. It never raises for what a provider may write:
a value of another type than it should have is passed over. It keeps a bounded amount, whatever it is given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeAlias

from llmproxy.core.usage import Reading

Path: TypeAlias = tuple[str, ...]
"""The keys that lead to a member of a JSON object: ("response", "usage")."""

Members: TypeAlias = Mapping[Path, bytes]
"""Members of a JSON object that was too large to keep, as their raw JSON text, each at most MEMBER_BYTES_MAX."""

MEMBER_BYTES_MAX = 32 * 1024
"""A usage object is some hundred bytes; what is longer than this is text, and is not kept."""


class Shape(Protocol):
    """Takes one answer.

    name: as in Reading.shape. watched: the members that it wants of a value that is too large to keep.
    """

    name: str
    watched: frozenset[Path]

    def take_body(self, body: bytes) -> None:
        """A whole JSON answer: the text of one JSON object."""

    def take_events(self, events: Sequence[bytes]) -> None:
        """Some events of a stream, in order: the JSON text of each. `[DONE]` is not among them.

        Many at once, because decoding a list of them is cheaper than decoding each. What is no JSON is passed over.
        """

    def take_large(self, members: Members, skipped_bytes: int) -> None:
        """A value that was too large to keep, an event or a whole answer: what was watched, and its size."""

    def reading(self, whole: bool) -> Reading:
        """What is known so far. May be asked at any time. whole: the answer came to its proper end."""
