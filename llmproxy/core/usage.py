"""What a call used, in classes that mean the same for every provider: `Usage`, and `Reading`, what an answer said.

The rule: each token is in exactly one of the classes that are summed, so that a sum counts nothing twice and a price
can be put on each class. A provider's own fields are mapped to them in one place (core/reading/), and
docs/accounting.md has the table.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Source(StrEnum):
    """How a usage is known. The value is the word in the log and in the ledger."""

    EXACT = "exact"
    """The provider's own final counters."""

    PARTIAL = "partial"
    """The counters of a stream that was cut, plus an estimate for what was delivered after them."""

    ESTIMATED = "estimated"
    """No counter was seen: an estimate from the text that went either way."""

    NONE = "none"
    """Nothing that is billed: an error, a count, a list, a file, an answer that was counted before."""


class Usage(msgspec.Struct, frozen=True, gc=False):
    """Tokens, by class. All are at least 0.

    input_tokens, cache_read_tokens, cache_write_5m_tokens, cache_write_1h_tokens, tool_use_tokens: the input, each
        token in one of them. input_tokens is what was neither read from a cache nor written to one, and was no result
        of a tool that the provider runs (tool_use_tokens: Gemini alone tells those apart). A cache that is kept for up
        to half an hour is "5m", one that is kept longer "1h".
    output_tokens: the output, reasoning included.
    reasoning_tokens: part of output_tokens.
    input_audio_tokens, input_image_tokens: part of input_tokens. output_audio_tokens, output_image_tokens: part of
        output_tokens.
    server_tools: requests of tools that the provider runs and bills by use, as (name, count), sorted by name:
        web_search, web_fetch, code_execution, file_search and whatever else it names.
    audio_ms: audio that is billed by its length, in milliseconds.
    parts: what the same call used on other models, which have prices of their own. It is counted in the totals.
    """

    input_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_5m_tokens: int = 0
    cache_write_1h_tokens: int = 0
    tool_use_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    input_audio_tokens: int = 0
    input_image_tokens: int = 0
    output_audio_tokens: int = 0
    output_image_tokens: int = 0
    server_tools: tuple[tuple[str, int], ...] = ()
    audio_ms: int = 0
    parts: tuple[ModelUsage, ...] = ()

    @property
    def total_input(self) -> int:
        """Every token that went in, cached or not, of all parts."""
        own = (
            self.input_tokens
            + self.cache_read_tokens
            + self.cache_write_5m_tokens
            + self.cache_write_1h_tokens
            + self.tool_use_tokens
        )
        return own + sum(part.usage.total_input for part in self.parts) if self.parts else own

    @property
    def total_output(self) -> int:
        """Every token that came out, reasoning included, of all parts."""
        if self.parts:
            return self.output_tokens + sum(part.usage.total_output for part in self.parts)
        return self.output_tokens

    @property
    def cache_write_tokens(self) -> int:
        """Written to a cache, however long it is kept, of all parts."""
        own = self.cache_write_5m_tokens + self.cache_write_1h_tokens
        return own + sum(part.usage.cache_write_tokens for part in self.parts) if self.parts else own


class ModelUsage(msgspec.Struct, frozen=True, gc=False):
    """What a call used on one more model than the one that answers."""

    model: str
    usage: Usage


NO_USAGE = Usage()


class Counters(StrEnum):
    """How far the provider's counters go that an answer carried."""

    FINAL = "final"
    """They are the whole of it."""

    RUNNING = "running"
    """Some were seen, but not the last ones: the answer was cut, or is of a kind that counts as it goes."""

    ABSENT = "absent"
    """There were none, where there could have been."""

    FREE = "free"
    """The answer is of a kind that bills nothing; `Reading.reason` says which."""


class Reading(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What an answer said about itself.

    shape: whose shape it had: "openai-chat", "openai-responses", "anthropic-messages", "gemini" and so on; "" unknown.
    counters: how far `usage` goes. reason: why, in a word or two with underscores, where counters is not FINAL.
    model, response_id, finish_reason: as answered. response_id is the provider's id of the answer, not of the request.
    service_tier, speed, inference_geo: what of them the provider says it gave, which decides the price.
    batch: priced as part of a batch.
    text_characters, text_events: the text that was delivered (thoughts and arguments of tools too), in characters, and
        how many events of a stream brought it; a whole answer is one event. text_characters_after and
        text_events_after: what of it came after the counters of `usage` had been seen.
    error: the kind of an error that the answer carried (an event of a stream, an error object); None if there was none.
    once: where the same usage is answered again and again (a background response that is polled, the results of a
        batch), the id under which it is counted once. None: counted whenever it is seen.
    """

    shape: str = ""
    usage: Usage = NO_USAGE
    counters: Counters = Counters.ABSENT
    reason: str | None = None
    model: str | None = None
    response_id: str | None = None
    finish_reason: str | None = None
    service_tier: str | None = None
    speed: str | None = None
    inference_geo: str | None = None
    batch: bool = False
    text_characters: int = 0
    text_events: int = 0
    text_characters_after: int = 0
    text_events_after: int = 0
    error: str | None = None
    once: str | None = None
