"""Who takes the body of a request: the shape of a receiver, one that gathers it, and one that drops it."""

from __future__ import annotations

from typing import Protocol

from twisted.internet.defer import Deferred

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


class BodyTooLarge(Exception):
    """A body was larger than the reader of it allowed."""


class Discard:
    """Takes a body that nobody wants."""

    def body_received(self, data: bytes) -> None:
        """Drop it."""

    def body_complete(self, trailers: Fields) -> None:
        """Nothing to do."""

    def body_broken(self, error: FramingError) -> None:
        """Nothing to do: the channel closes the connection."""


class Collector:
    """Gathers a body of at most ``limit_bytes`` in memory."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._size = 0
        self._pieces: list[bytes] = []
        self.result: Deferred[bytes] = Deferred()

    def body_received(self, data: bytes) -> None:
        """Keep ``data``, or fail the result with :class:`BodyTooLarge`."""
        self._size += len(data)
        if self._size > self._limit:
            self._pieces.clear()
            if not self.result.called:
                self.result.errback(BodyTooLarge(f"a body of more than {self._limit} bytes"))
            return
        self._pieces.append(data)

    def body_complete(self, trailers: Fields) -> None:
        """Fire the result with the whole body."""
        if not self.result.called:
            self.result.callback(b"".join(self._pieces))

    def body_broken(self, error: FramingError) -> None:
        """Fail the result with ``error``."""
        if not self.result.called:
            self.result.errback(error)
