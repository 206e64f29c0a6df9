"""What was used in the last minute, the last day, the last month, or in one of the calendar."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.core.limits.policy import DAY_S, NANO_USD, REQUESTS, TOKENS
from llmproxy.core.limits.windows import (
    ENTRIES_MAX,
    NOTHING_USED,
    CalendarWindow,
    Entry,
    SlidingWindow,
    Used,
    month_begins_s,
    month_of,
)

LENGTH_S = 60.0
CELL_S = LENGTH_S / 120


class Sliding:
    """A window, and all that was ever counted in it."""

    def __init__(self) -> None:
        self.window = SlidingWindow(LENGTH_S, [])
        self.entries: list[Entry] = []
        self.now = 100.0

    def look(self) -> Used:
        """What counts."""
        return self.window.look(self.now, 0.0)

    def add(self, tokens: int = 0, is_open: bool = True, nano_usd: int = 0) -> Entry:
        """Count a request."""
        self.look()
        entry = Entry(self.now, 1, tokens, 0, nano_usd, is_open)
        self.window.add(entry)
        self.entries.append(entry)
        return entry

    def settle(self, entry: Entry, requests: int, tokens: int) -> None:
        """As a reservation does it."""
        self.window.adjust(entry.at, requests - entry.requests, tokens - entry.input_tokens, 0, -entry.nano_usd)
        entry.requests, entry.input_tokens, entry.nano_usd, entry.open = requests, tokens, 0, False

    def exactly(self, length_s: float = LENGTH_S) -> Used:
        """What counts, by adding it all up."""
        counted = [entry for entry in self.entries if entry.at + length_s > self.now]
        tokens = sum(entry.input_tokens for entry in counted)
        money = sum(entry.nano_usd for entry in counted)
        return sum(entry.requests for entry in counted), tokens, tokens, 0, money


class SlidingTests(SynchronousTestCase):
    """The last so many seconds."""

    def test_counts_for_its_length(self) -> None:
        """What was admitted counts from its moment on for just as long as the window is."""
        sliding = Sliding()
        sliding.add(7, nano_usd=3)
        self.assertEqual(sliding.look(), (1, 7, 7, 0, 3))
        sliding.now += LENGTH_S - 0.001
        self.assertEqual(sliding.look(), (1, 7, 7, 0, 3))
        self.assertFalse(sliding.window.is_empty(sliding.now, 0.0))
        sliding.now += 0.001
        self.assertEqual(sliding.look(), NOTHING_USED)
        self.assertTrue(sliding.window.is_empty(sliding.now, 0.0))

    def test_settled_later(self) -> None:
        """What it comes to takes the place of what was reserved, at the moment of its admission."""
        sliding = Sliding()
        first = sliding.add(10)
        sliding.now += 20
        second = sliding.add(5)
        sliding.now += 30
        sliding.settle(first, 1, 100)
        self.assertEqual(sliding.look(), (2, 105, 105, 0, 0))
        sliding.now += 10
        self.assertEqual(sliding.look(), (1, 5, 5, 0, 0))
        sliding.settle(second, 0, 0)
        self.assertEqual(sliding.look(), NOTHING_USED)

    def test_settled_too_late(self) -> None:
        """What has left the window changes nothing of it any more, even if others were admitted at the same moment."""
        sliding = Sliding()
        first, second = sliding.add(10), sliding.add(20)
        sliding.now += LENGTH_S
        sliding.add(1)
        sliding.settle(first, 1, 100)
        sliding.settle(second, 0, 0)
        self.assertEqual(sliding.look(), (1, 1, 1, 0, 0))

    def test_when_there_is_room(self) -> None:
        """The time until so much is free again is told by the moments of what counts, for each thing by itself."""
        sliding = Sliding()
        for tokens, nano_usd in ((10, 0), (0, 5), (20, 0)):
            sliding.add(tokens, nano_usd=nano_usd)
            sliding.now += 10
        window, now = sliding.window, sliding.now
        self.assertEqual([window.waits_s(REQUESTS, count, now, 0.0) for count in (1, 2, 3)], [30, 40, 50])
        self.assertEqual([window.waits_s(TOKENS, count, now, 0.0) for count in (1, 10, 11, 30)], [30, 30, 50, 50])
        self.assertEqual([window.waits_s(NANO_USD, count, now, 0.0) for count in (1, 5)], [40, 40])
        self.assertEqual(window.resets_s(now, 0.0), 30)
        self.assertEqual(SlidingWindow(LENGTH_S, []).resets_s(now, 0.0), 0)

    @settings(max_examples=100, deadline=None)
    @given(st.lists(st.tuples(st.integers(0, 160), st.integers(0, 9), st.integers(0, 3)), max_size=ENTRIES_MAX))
    def test_few_are_known_one_by_one(self, arrivals: list[tuple[int, int, int]]) -> None:
        """Up to so many moments the window is exact, whatever is settled or given back, and whenever."""
        sliding = Sliding()
        for gap, tokens, what in arrivals:
            sliding.now += gap / 8
            entry = sliding.add(tokens)
            if what:
                sliding.settle(sliding.entries[-what] if len(sliding.entries) > what else entry, what % 2, 3 * tokens)
            self.assertEqual(sliding.look(), sliding.exactly())

    def test_just_few_enough(self) -> None:
        """The window is exact for the last one that it knows by itself, and no longer for the one after."""
        for count, is_exact in ((ENTRIES_MAX, True), (ENTRIES_MAX + 1, False)):
            sliding = Sliding()
            for _ in range(count):
                sliding.add(1, is_open=False)
                sliding.now += CELL_S / 4
            exact: list[bool] = []
            while sliding.exactly() != NOTHING_USED:
                exact.append(sliding.look() == sliding.exactly())
                sliding.now += CELL_S / 8
            self.assertEqual(all(exact), is_exact)

    @settings(max_examples=40, deadline=None)
    @given(
        st.integers(0, 2**32),
        st.lists(
            st.tuples(
                st.sampled_from((0.0, 0.001, 0.03125, 0.125, 0.25, 1.0)),
                st.integers(1, 150),
                st.sampled_from((0, 1, 5)),
                st.sampled_from((0.0, 10.0, 59.5, 61.0)),
            ),
            min_size=1,
            max_size=12,
        ),
    )
    def test_many_are_put_together(self, start: int, runs: list[tuple[float, int, int, float]]) -> None:
        """Of more than that nothing is counted for too short a time, nothing for longer than a part in 120 more, and
        the window does not get longer with their number; what was settled meanwhile is what counts."""
        sliding = Sliding()
        sliding.now += start / 1024  # anywhere in a part
        under_way: list[Entry] = []
        for gap, count, tokens, pause in runs:
            for number in range(count):
                sliding.now += gap
                under_way.append(sliding.add(tokens))
                if len(under_way) > 5:
                    sliding.settle(under_way.pop(number % 6), number % 7 and 1, 2 * tokens)
                self.check(sliding)
            sliding.now += pause
            self.check(sliding)
        for entry in under_way:
            sliding.settle(entry, 0, 0)
        self.check(sliding)
        sliding.now += LENGTH_S + CELL_S
        self.assertEqual(sliding.look(), NOTHING_USED)
        self.assertTrue(sliding.window.is_empty(sliding.now, 0.0))

    def check(self, sliding: Sliding) -> None:
        """Between what counts and what would count a little longer."""
        for least, used, most in zip(
            sliding.exactly(), sliding.look(), sliding.exactly(LENGTH_S + CELL_S), strict=True
        ):
            self.assertTrue(0 <= least <= used <= most, (least, used, most))
        self.assertLessEqual(len(sliding.window.entries), 2 * (121 + 2 * 6))

    def test_what_is_under_way_stays_by_itself(self) -> None:
        """However many come, a request that has not ended is settled where it was admitted."""
        sliding = Sliding()
        first = sliding.add(10)
        for _ in range(3 * ENTRIES_MAX):
            sliding.now += 0.001
            sliding.add(1, is_open=False)
        sliding.settle(first, 0, 0)
        self.assertEqual(sliding.look(), (3 * ENTRIES_MAX, 3 * ENTRIES_MAX, 3 * ENTRIES_MAX, 0, 0))

    def test_shared(self) -> None:
        """A request counts in several windows; that one of them puts moments together changes none of the others."""
        busy, quiet = SlidingWindow(LENGTH_S, []), SlidingWindow(DAY_S, [])
        first = Entry(1.0, 1, 5, 0, 0, False)
        for window in (busy, quiet):
            window.add(first)
        for number in range(3 * ENTRIES_MAX):
            busy.add(Entry(1.0 + number / 10_000, 1, 5, 0, 0, False))
        self.assertEqual(first, Entry(1.0, 1, 5, 0, 0, False))
        self.assertEqual(quiet.look(1.0 + DAY_S, 0.0), NOTHING_USED)
        self.assertEqual(quiet.forgotten_to, 1.0)

    def test_exact_again(self) -> None:
        """Once the rush is over, the window knows its moments one by one again."""
        sliding = Sliding()
        for _ in range(1_000):
            sliding.now += 0.01
            sliding.add(1)
        sliding.now += 2 * LENGTH_S
        for _ in range(ENTRIES_MAX):
            sliding.add(1, is_open=False)
            sliding.now += CELL_S / 4
        while sliding.exactly() != NOTHING_USED:
            self.assertEqual(sliding.look(), sliding.exactly())
            sliding.now += CELL_S / 8


class CalendarTests(SynchronousTestCase):
    """A day, or a month."""

    def test_day(self) -> None:
        """What was used counts until midnight, UTC."""
        window = CalendarWindow(False)
        wall_s = datetime(2026, 3, 14, 23, 59, 50, tzinfo=UTC).timestamp()
        self.assertEqual(window.look(5.0, wall_s), NOTHING_USED)
        window.add(Entry(5.0, 1, 2, 3, 4))
        self.assertEqual(window.look(6.0, wall_s + 9), (1, 5, 2, 3, 4))
        self.assertEqual(window.resets_s(6.0, wall_s + 9), 1)
        self.assertEqual(window.waits_s(REQUESTS, 1, 6.0, wall_s + 9), 1)
        self.assertFalse(window.is_empty(6.0, wall_s + 9))
        self.assertTrue(window.is_empty(7.0, wall_s + 10))
        self.assertEqual(window.resets_s(7.0, wall_s + 10), DAY_S)

    def test_settled_in_another_day(self) -> None:
        """What was admitted on a day that is over, or that the clock has left, changes nothing of this one."""
        noon = datetime(2026, 3, 14, 12, tzinfo=UTC).timestamp()
        for days in ((1,), (-5,), (-5, 0), (1, 0), (40, 0)):
            window = CalendarWindow(False)
            window.look(5.0, noon)
            window.add(Entry(5.0, 1, 2, 3, 4))
            for number, day in enumerate(days):
                window.look(6.0 + number, noon + day * DAY_S)
            window.adjust(5.0, -1, -2, -3, -4)
            self.assertEqual(window.look(9.0, noon + days[-1] * DAY_S), NOTHING_USED, days)
            window.add(Entry(9.0, 1, 2, 3, 4))
            window.adjust(9.0, 0, 8, 0, 0)
            self.assertEqual(window.look(9.0, noon + days[-1] * DAY_S), (1, 13, 10, 3, 4), days)

    @given(st.integers(0, 7_258_118_400), st.booleans())
    def test_any_moment(self, wall_s: int, monthly: bool) -> None:
        """Whenever it is, the day and the month are those of the calendar."""
        moment = datetime.fromtimestamp(wall_s, UTC)
        window = CalendarWindow(monthly)
        window.look(0.0, moment.timestamp())
        begins = moment.replace(hour=0, minute=0, second=0, microsecond=0)
        if monthly:
            begins = begins.replace(day=1)
            ends = (begins + timedelta(days=31)).replace(day=1)
        else:
            ends = begins + timedelta(days=1)
        self.assertEqual((window.begins_s, window.ends_s), (begins.timestamp(), ends.timestamp()))
        self.assertTrue(window.begins_s <= moment.timestamp() < window.ends_s)

    def test_every_month(self) -> None:
        """Months have the lengths that they have, in leap years and in centuries too."""
        for year in (1970, 1999, 2000, 2023, 2024, 2100, 2399, 2400):
            for month in range(1, 13):
                begins_s = datetime(year, month, 1, tzinfo=UTC).timestamp()
                self.assertEqual(month_begins_s(12 * year + month - 1), begins_s)
                self.assertEqual(month_of(begins_s), 12 * year + month - 1)
                self.assertEqual(month_of(begins_s - 0.001), 12 * year + month - 2)
