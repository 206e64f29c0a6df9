"""Who takes the body of a request: the shape of a receiver, and one that drops it."""

from __future__ import annotations

from typing import Protocol

from llmproxy.core.fields import Fields
from llmproxy.core.framing import FramingError


class BodyReceiver(Protocol):
    """What takes the body of a request."""

    def body_received(self, data: bytes) -> None:
        """The next piece of the body, without its framing."""

    def body_complete(self, trailers: Fields) -> None:
        """The body has ended as its framing said it would; ``trailers`` are those of a chunked body."""

    def body_broken(self, error: FramingError) -> None:
        """The rest of the body is not well-formed and will not come."""


class Discard:
    """Takes a body that nobody wants."""

    def body_received(self, data: bytes) -> None:
        """Drop it."""

    def body_complete(self, trailers: Fields) -> None:
        """Nothing to do."""

    def body_broken(self, error: FramingError) -> None:
        """Nothing to do: the channel closes the connection."""
