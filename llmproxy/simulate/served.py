"""What the simulator served for one request, and how much of it has left: the truth that any books can be held against.

The rule kept here: it is reckoned from the answer itself and from the bytes that were written, never from what somebody
between has read. An endpoint says how many tokens are in each event before it hands the event on (`made`), and that the
event has the final counters (`told`); the steps say where the coded event ends (`mark`); the performance says what it
wrote (`sent`). An event counts when its last byte is written.
"""

from collections import deque
from collections.abc import Iterator
from typing import Any


class Served:
    """The usage of one answer.

    provider: "openai", "anthropic", "gemini" or "groq". model, response_id: as answered, the model as asked where the
        answer names none.
    input_tokens: all input, cached or not. output_tokens: all output, reasoning included. The others are parts of them.
    other_models: models besides the one that answers whose tokens are in the sums.
    server_tools: requests of tools that the provider runs, by name. audio_s: sound that is billed by its length.
    stream: the answer is a stream of events.
    """

    __slots__ = (
        "_all_made",
        "_finished",
        "_made_tokens",
        "_made_told",
        "_marks",
        "_sent_bytes",
        "_sent_tokens",
        "_sent_told",
        "_whole_bytes",
        "audio_s",
        "cache_read_tokens",
        "cache_write_1h_tokens",
        "cache_write_5m_tokens",
        "input_tokens",
        "model",
        "other_models",
        "output_tokens",
        "provider",
        "reasoning_tokens",
        "response_id",
        "server_tools",
        "stream",
    )

    def __init__(
        self,
        *,
        provider: str,
        model: str,
        response_id: str | None = None,
        input_tokens: int = 0,
        output_tokens: int = 0,
        cache_read_tokens: int = 0,
        cache_write_5m_tokens: int = 0,
        cache_write_1h_tokens: int = 0,
        reasoning_tokens: int = 0,
        other_models: tuple[str, ...] = (),
        server_tools: dict[str, int] | None = None,
        audio_s: float = 0.0,
        stream: bool = False,
        told: bool = False,
    ) -> None:
        self.provider = provider
        self.model = model
        self.response_id = response_id
        self.input_tokens = input_tokens
        self.output_tokens = output_tokens
        self.cache_read_tokens = cache_read_tokens
        self.cache_write_5m_tokens = cache_write_5m_tokens
        self.cache_write_1h_tokens = cache_write_1h_tokens
        self.reasoning_tokens = reasoning_tokens
        self.other_models = other_models
        self.server_tools = server_tools or {}
        self.audio_s = audio_s
        self.stream = stream
        # Where an event ends, and up to there: the tokens, and whether the final counters were told.
        self._marks: deque[tuple[int, int, bool]] = deque()
        self._made_tokens = self._sent_tokens = self._sent_bytes = self._whole_bytes = 0
        self._made_told = told
        self._all_made = self._sent_told = self._finished = False

    # What the endpoint says

    def made(self, tokens: int) -> None:
        """The next event has so many tokens of the output."""
        self._made_tokens += tokens

    def told(self) -> None:
        """The next event has the final counters, and so speaks for all of the output."""
        self._made_told = True
        self._made_tokens = self.output_tokens

    def watched(self, events: Iterator[bytes]) -> Iterator[bytes]:
        """The same events; notes when there are no more."""
        yield from events
        self._all_made = True

    # What the steps say

    def mark(self, end_bytes: int) -> None:
        """What was made so far ends at this byte of the coded body."""
        self._marks.append((end_bytes, self._made_tokens, self._made_told))

    def whole(self, body_bytes: int) -> None:
        """The answer is no stream: one body of this size, coded."""
        self._whole_bytes = body_bytes
        self._all_made = True
        self._made_tokens = self.output_tokens
        self.mark(body_bytes)

    # What the performance says

    def sent(self, size_bytes: int) -> None:
        """So many bytes more of the body were written."""
        self._sent_bytes += size_bytes
        marks = self._marks
        while marks and marks[0][0] <= self._sent_bytes:
            _, self._sent_tokens, self._sent_told = marks.popleft()

    def finished(self) -> None:
        """The answer came to its proper end on the connection."""
        self._finished = True

    # What is shown

    @property
    def sent_output_tokens(self) -> int:
        """Tokens of the output that were written. Of a whole body that was cut, its share by bytes."""
        if self._whole_bytes and self._sent_bytes < self._whole_bytes:
            return self.output_tokens * self._sent_bytes // self._whole_bytes
        return self._sent_tokens

    def shown(self) -> dict[str, Any]:
        """As JSON, as it is now."""
        shown: dict[str, Any] = {
            "provider": self.provider,
            "model": self.model,
            "response_id": self.response_id,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "cache_read_tokens": self.cache_read_tokens,
            "cache_write_5m_tokens": self.cache_write_5m_tokens,
            "cache_write_1h_tokens": self.cache_write_1h_tokens,
            "reasoning_tokens": self.reasoning_tokens,
            "stream": self.stream,
            "complete": self._finished and self._all_made,
            "counted": self._sent_told,
            "sent_output_tokens": self.sent_output_tokens,
        }
        if self.other_models:
            shown["other_models"] = list(self.other_models)
        if self.server_tools:
            shown["server_tools"] = self.server_tools
        if self.audio_s:
            shown["audio_s"] = self.audio_s
        return shown
