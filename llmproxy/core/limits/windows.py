"""What one identity used in one window of time.

The rules: what is reserved counts from the moment of its admission, and what it comes to in the end takes its place in
the same window, at the same moment. What is counted is never below what was used: where many moments are put together
to bound the memory, the last of them holds for all. Nothing is ever negative.

Times are seconds of a clock that only goes forward, but for the periods of the calendar, which follow UTC.
"""

from __future__ import annotations

from math import inf
from typing import Final

import msgspec

from llmproxy.core.limits.policy import DAY_S

ENTRIES_MAX: Final = 128
"""So many moments a sliding window knows one by one; of more than that those are put together that are close."""

_CELLS: Final = 120
"""Into so many parts a window is divided then: half a second of a minute, 12 minutes of a day."""

Used = tuple[int, int, int, int, int]
"""Requests, tokens, input tokens, output tokens, nano-dollars: by place as the metrics of policy.py."""


class Entry(msgspec.Struct, gc=False):
    """What was admitted at one moment, shared by all windows that it counts in.

    at: the moment. open: it is reserved, and what it comes to is not known yet.
    """

    at: float
    requests: int
    input_tokens: int
    output_tokens: int
    nano_usd: int
    open: bool = True


class SlidingWindow(msgspec.Struct, gc=False):
    """The last `length_s` seconds, whenever one looks. (Nothing in it leads back to it, so the collector need not
    look.)"""

    length_s: float
    entries: list[Entry]  # by their time
    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    nano_usd: int = 0
    forgotten_to: float = -inf  # what was admitted until then is no longer in it
    most: int = ENTRIES_MAX

    def look(self, now: float, wall_s: float) -> Used:
        """What counts now."""
        entries = self.entries
        if entries and entries[0].at + self.length_s <= now:
            self._forget(now)
        input_tokens, output_tokens = self.input_tokens, self.output_tokens
        return self.requests, input_tokens + output_tokens, input_tokens, output_tokens, self.nano_usd

    def _forget(self, now: float) -> None:
        entries, length_s = self.entries, self.length_s
        count = 0
        for entry in entries:
            if entry.at + length_s > now:
                break
            self.requests -= entry.requests
            self.input_tokens -= entry.input_tokens
            self.output_tokens -= entry.output_tokens
            self.nano_usd -= entry.nano_usd
            count += 1
        self.forgotten_to = entries[count - 1].at
        del entries[:count]
        if len(entries) < ENTRIES_MAX:
            self.most = ENTRIES_MAX

    def add(self, entry: Entry) -> None:
        """Count an entry from now on; :meth:`look` was called for this moment."""
        entries = self.entries
        if len(entries) >= self.most:
            self._put_together()
            entries = self.entries
        entries.append(entry)
        self.requests += entry.requests
        self.input_tokens += entry.input_tokens
        self.output_tokens += entry.output_tokens
        self.nano_usd += entry.nano_usd

    def _put_together(self) -> None:
        cell_s = self.length_s / _CELLS
        kept: list[Entry] = []
        mine = False  # whether the last one of `kept` was made here, and is shared with no other window
        for entry in self.entries:
            last = kept[-1] if kept else None
            # What is open will change, and what changes it does not know of this window.
            if last is None or entry.open or last.open or entry.at // cell_s != last.at // cell_s:
                kept.append(entry)
                mine = False
                continue
            if not mine:
                last = kept[-1] = Entry(
                    last.at, last.requests, last.input_tokens, last.output_tokens, last.nano_usd, False
                )
                mine = True
            last.at = entry.at
            last.requests += entry.requests
            last.input_tokens += entry.input_tokens
            last.output_tokens += entry.output_tokens
            last.nano_usd += entry.nano_usd
        self.entries = kept
        self.most = max(ENTRIES_MAX, 2 * len(kept))

    def adjust(self, at: float, requests: int, input_tokens: int, output_tokens: int, nano_usd: int) -> None:
        """An entry that was added at ``at`` changes by so much; if it has left the window, nothing does."""
        if at > self.forgotten_to:
            self.requests += requests
            self.input_tokens += input_tokens
            self.output_tokens += output_tokens
            self.nano_usd += nano_usd

    def waits_s(self, metric: int, to_free: int, now: float, wall_s: float) -> float:
        """In how many seconds ``to_free`` of what counts now will have left the window, of one metric.

        :param to_free: above 0, and not more than counts.
        """
        freed = 0
        for entry in self.entries:
            freed += (
                entry.requests,
                entry.input_tokens + entry.output_tokens,
                entry.input_tokens,
                entry.output_tokens,
                entry.nano_usd,
            )[metric]
            if freed >= to_free:
                return entry.at + self.length_s - now
        return self.length_s

    def resets_s(self, now: float, wall_s: float) -> float:
        """In how many seconds there will be more room than now: when the first entry leaves."""
        return self.entries[0].at + self.length_s - now if self.entries else 0.0

    def is_empty(self, now: float, wall_s: float) -> bool:
        """Whether nothing counts."""
        return self.look(now, wall_s) == NOTHING_USED and not self.entries


class CalendarWindow(msgspec.Struct, gc=False):
    """A day, or a month, of the calendar in UTC.

    begins_s, ends_s: which one, in seconds since 1970.
    """

    monthly: bool
    begins_s: float = inf
    ends_s: float = -inf
    last_at: float = -inf  # when something was counted last
    forgotten_to: float = -inf  # what was admitted until then was counted in another one
    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    nano_usd: int = 0

    def look(self, now: float, wall_s: float) -> Used:
        """What counts now."""
        if not self.begins_s <= wall_s < self.ends_s:
            self.begins_s, self.ends_s = _month(wall_s) if self.monthly else _day(wall_s)
            self.forgotten_to = self.last_at
            self.requests = self.input_tokens = self.output_tokens = self.nano_usd = 0
            return NOTHING_USED
        input_tokens, output_tokens = self.input_tokens, self.output_tokens
        return self.requests, input_tokens + output_tokens, input_tokens, output_tokens, self.nano_usd

    def add(self, entry: Entry) -> None:
        """As of a sliding window."""
        self.last_at = entry.at
        self.requests += entry.requests
        self.input_tokens += entry.input_tokens
        self.output_tokens += entry.output_tokens
        self.nano_usd += entry.nano_usd

    def adjust(self, at: float, requests: int, input_tokens: int, output_tokens: int, nano_usd: int) -> None:
        """Likewise: what was admitted in another period changes nothing of this one."""
        if at > self.forgotten_to:
            self.requests += requests
            self.input_tokens += input_tokens
            self.output_tokens += output_tokens
            self.nano_usd += nano_usd

    def waits_s(self, metric: int, to_free: int, now: float, wall_s: float) -> float:
        """All of it is free when the next period begins."""
        return self.resets_s(now, wall_s)

    def resets_s(self, now: float, wall_s: float) -> float:
        """In how many seconds the next period begins."""
        return self.ends_s - wall_s

    def is_empty(self, now: float, wall_s: float) -> bool:
        """Whether nothing counts."""
        return self.look(now, wall_s) == NOTHING_USED


NOTHING_USED: Final[Used] = (0, 0, 0, 0, 0)

Window = SlidingWindow | CalendarWindow


def _day(wall_s: float) -> tuple[float, float]:
    begins_s = wall_s // DAY_S * DAY_S
    return begins_s, begins_s + DAY_S


def _month(wall_s: float) -> tuple[float, float]:
    month = month_of(wall_s)
    return month_begins_s(month), month_begins_s(month + 1)


def month_of(wall_s: float) -> int:
    """The number of the month of a time in seconds since 1970, UTC: 12 times the year, and the month from 0."""
    # Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", civil_from_days. The core has no calendar.
    days = int(wall_s // DAY_S) + 719_468
    era, day_of_era = divmod(days, 146_097)
    year_of_era = (day_of_era - day_of_era // 1_460 + day_of_era // 36_524 - day_of_era // 146_096) // 365
    day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    from_march = (5 * day_of_year + 2) // 153
    return (year_of_era + era * 400) * 12 + from_march + 2


def month_begins_s(month: int) -> float:
    """The seconds since 1970 at which a month of :func:`month_of` begins."""
    year, from_march = divmod(month - 2, 12)
    era, year_of_era = divmod(year, 400)
    day_of_year = (153 * from_march + 2) // 5
    day_of_era = year_of_era * 365 + year_of_era // 4 - year_of_era // 100 + day_of_year
    return (era * 146_097 + day_of_era - 719_468) * DAY_S
