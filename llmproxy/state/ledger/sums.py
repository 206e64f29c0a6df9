"""Sums over rows: what all of them used and cost together, and how far that is known.

The rule: `of_row` and the triggers of the SQLite schema count the same way; the tests hold them against each other.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from llmproxy.state.ledger.row import TOKEN_CLASSES, Row

DAY_NS: Final = 86_400 * 10**9
HOUR_NS: Final = 3_600 * 10**9


class Sums(msgspec.Struct, gc=False):
    """Sums over some rows.

    errors: answered with an error, or not at all. unpriced: something is to be paid, and there was no price; the cost
    does not have it. exact, partial, estimated, none: how many rows are known in which way (core.usage.Source).
    """

    requests: int = 0
    errors: int = 0
    unpriced: int = 0
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
    total_input: int = 0
    total_output: int = 0
    audio_ms: int = 0
    cost_nano_usd: int = 0
    exact: int = 0
    partial: int = 0
    estimated: int = 0
    none: int = 0

    @property
    def tokens(self) -> int:
        """All tokens that went either way."""
        return self.total_input + self.total_output

    def add(self, values: Iterable[int], source: str) -> None:
        """Add what `SUMMED` names, in that order, all of one source."""
        before = self.requests
        for name, value in zip(SUMMED, values, strict=True):
            if value:
                setattr(self, name, getattr(self, name) + value)
        if source in SOURCES:
            setattr(self, source, getattr(self, source) + self.requests - before)

    def add_sums(self, other: Sums) -> None:
        """Add what others are together."""
        for name in Sums.__struct_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


SUMMED: Final = (
    "requests",
    "errors",
    "unpriced",
    *TOKEN_CLASSES,
    "total_input",
    "total_output",
    "audio_ms",
    "cost_nano_usd",
)
"""What is kept for each day; the rest of `Sums` follows from the source that each day's sums are kept by."""

SOURCES: Final = ("exact", "partial", "estimated", "none")


class DayKey(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What the sums of a day are kept by. A text that is not known is ""."""

    day: str
    provider: str
    model: str
    user: str
    credential_id: str
    source: str
    batch: bool


def day_key(row: Row, day: str) -> DayKey:
    """The sums that a row is part of."""
    return DayKey(
        day, row.provider, row.group_model, row.user or "", row.credential_id or "", row.source, bool(row.batch)
    )


def of_row(row: Row) -> tuple[int, ...]:
    """What a row adds to each of `SUMMED`."""
    return (
        1,
        int(row.is_error),
        int(row.is_unpriced),
        row.input_tokens,
        row.cache_read_tokens,
        row.cache_write_5m_tokens,
        row.cache_write_1h_tokens,
        row.tool_use_tokens,
        row.output_tokens,
        row.reasoning_tokens,
        row.input_audio_tokens,
        row.input_image_tokens,
        row.output_audio_tokens,
        row.output_image_tokens,
        row.total_input,
        row.total_output,
        row.audio_ms,
        row.cost_nano_usd or 0,
    )


def added(one: Iterable[int], other: Iterable[int]) -> tuple[int, ...]:
    """Two of them together."""
    return tuple(mine + theirs for mine, theirs in zip(one, other, strict=True))
