"""Counts what passes, for every identity that has a limit, and says whether more may pass.

The rules: a request is counted in all of its scopes, or in none. It is settled once, in the windows where it was
reserved; whatever it comes to, no number goes below zero. What is kept is bounded: identities of which nothing counts
any more go first, and where there are too many that count, new ones are counted together and not instead of others:
those that share an override by its name, which for a single one is its own, all the rest as one of each kind.

Nothing here waits, and nothing looks at a clock: `now` goes forward, `wall_s` is the time of day. A time of day that
is set back over midnight must not give the same day twice: the calendar follows it only if it is by more than a day.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec

from llmproxy.core.limits.decision import OTHERS, Ask, Refusal, Scope, Standing
from llmproxy.core.limits.policy import (
    DAY_S,
    KINDS,
    MINUTE_S,
    MONTH_S,
    NANO_USD,
    OUTPUT_TOKENS,
    REQUESTS,
    TOKENS,
    Check,
    Checks,
    Policy,
    ScopeRules,
)
from llmproxy.core.limits.windows import CalendarWindow, Entry, SlidingWindow, Used, Window

_TRIED: Final = 4
"""So many identities are looked at for each new one, whether they can go."""

_Found = tuple[Scope, Window, Check, int]
"""A rule that was looked at: whose, in which window, the check, and what had been used."""


class Counters(msgspec.Struct, gc=False):
    """What one identity used: one window of each length that it has rules for."""

    rules: ScopeRules
    minute: SlidingWindow | None = None
    day: Window | None = None
    month: Window | None = None


class Reservation(msgspec.Struct, gc=False):
    """What has been admitted, until it is settled.

    now, wall_s: when. over_shadow: what would have refused it, if it were enforced.
    """

    entry: Entry
    windows: list[Window]
    now: float
    wall_s: float
    fewest_requests: _Found | None = None
    fewest_tokens: _Found | None = None
    over_shadow: list[Standing] | None = None

    def tightest(self) -> tuple[Standing | None, Standing | None]:
        """The rules with the least room left when this had been admitted: of requests, of tokens."""
        entry = self.entry
        tokens = entry.input_tokens + entry.output_tokens
        asked = (1, tokens, entry.input_tokens, entry.output_tokens, entry.nano_usd)
        return self._after(self.fewest_requests, asked), self._after(self.fewest_tokens, asked)

    def _after(self, found: _Found | None, asked: Used) -> Standing | None:
        if found is None:
            return None
        scope, window, (metric, _, rule), used = found
        return Standing(scope, rule, used + asked[metric], 0, window.resets_s(self.now, self.wall_s))

    def settle(self, input_tokens: int, output_tokens: int, nano_usd: int) -> None:
        """It came to this. The first call counts; a second one changes nothing."""
        self._becomes(1, input_tokens, output_tokens, nano_usd)

    def give_back(self) -> None:
        """It was not served: as if it had never been admitted."""
        self._becomes(0, 0, 0, 0)

    def _becomes(self, requests: int, input_tokens: int, output_tokens: int, nano_usd: int) -> None:
        entry = self.entry
        if not entry.open:
            return
        by_requests = requests - entry.requests
        by_input, by_output = input_tokens - entry.input_tokens, output_tokens - entry.output_tokens
        by_money = nano_usd - entry.nano_usd
        if by_requests or by_input or by_output or by_money:
            for window in self.windows:
                window.adjust(entry.at, by_requests, by_input, by_output, by_money)
            entry.requests, entry.nano_usd = requests, nano_usd
            entry.input_tokens, entry.output_tokens = input_tokens, output_tokens
        entry.open = False
        self.windows = []
        self.fewest_requests = self.fewest_tokens = None


class MemoryCounters:
    """All counters of one process.

    :param max_identities: so many are kept apart, of all kinds together; besides them, one for each kind and each
        override.
    """

    def __init__(self, policy: Policy, max_identities: int = 100_000) -> None:
        self._policy = policy
        self._max_identities = max_identities
        self._of: dict[str, dict[str, Counters]] = {kind: {} for kind in KINDS}
        self._now = 0.0
        self._midnight_s = 0.0  # when the day began that it is by the calendar
        self.counted_together = 0  # how often there were too many identities

    def __len__(self) -> int:
        return sum(map(len, self._of.values()))

    @property
    def policy(self) -> Policy:
        """The limits that hold."""
        return self._policy

    def replace(self, policy: Policy) -> None:
        """Go by these limits from now on. What counted, counts: by identity, and not by rule."""
        self._policy = policy
        for kind, known in self._of.items():
            for identity, counters in list(known.items()):
                counters.rules = policy.rules(kind, "" if identity == OTHERS else identity)
                if counters.rules.counts:
                    self._fit(counters)
                else:
                    del known[identity]

    def admit(self, ask: Ask, now: float, wall_s: float) -> Reservation | Refusal:
        """Reserve what is asked for in all scopes, or say why not, and count nothing."""
        if now < self._now:
            now = self._now
        else:
            self._now = now
        calendar_s = self._calendar_s(wall_s)
        asked = _asked(ask)
        optimistic = self._policy.optimistic
        refusing: list[_Found] = []
        shadow: list[_Found] = []
        fewest_requests: _Found | None = None
        fewest_tokens: _Found | None = None
        left_requests = left_tokens = 0
        windows: list[Window] = []
        for scope, window, checks in self._concerned(ask, now, calendar_s):
            windows.append(window)
            used = window.look(now, calendar_s)
            for check in checks:
                metric, limit, rule = check
                left = limit - used[metric] - asked[metric]
                if left < 0:
                    # A first request passes whatever its estimate.
                    if not (optimistic and TOKENS <= metric <= OUTPUT_TOKENS and not used[metric]):
                        (shadow if rule.shadow else refusing).append((scope, window, check, used[metric]))
                        continue
                    left = 0
                if metric == REQUESTS:
                    if fewest_requests is None or left < left_requests:
                        left_requests, fewest_requests = left, (scope, window, check, used[metric])
                elif metric != NANO_USD and (fewest_tokens is None or left < left_tokens):
                    left_tokens, fewest_tokens = left, (scope, window, check, used[metric])
        if refusing:
            return _refusal([self._standing(found, asked, now, wall_s) for found in refusing])
        entry = Entry(now, 1, ask.input_tokens, ask.output_tokens, ask.nano_usd)
        for window in windows:
            window.add(entry)
        over = [self._standing(found, asked, now, wall_s) for found in shadow] if shadow else None
        return Reservation(entry, windows, now, wall_s, fewest_requests, fewest_tokens, over)

    def look(self, ask: Ask, now: float, wall_s: float) -> list[Standing]:
        """How each rule stands for a request, without counting it."""
        now = max(now, self._now)
        calendar_s = self._calendar_s(wall_s)
        asked = _asked(ask)
        standings: list[Standing] = []
        for scope in ask.scopes:
            counters = self._of[scope[0]].get(scope[1]) or self._new(self._policy.rules(*scope))
            for window, checks in _windows(counters):
                used = window.look(now, calendar_s)
                standings.extend(
                    self._standing((scope, window, check, used[check[0]]), asked, now, wall_s) for check in checks
                )
        return standings

    def in_use(self, now: float, wall_s: float) -> Iterator[Standing]:
        """How each rule stands for each identity of which something counts."""
        for kind, known in self._of.items():
            for identity in list(known):
                yield from (each for each in self.look(Ask(((kind, identity),)), now, wall_s) if each.used)

    def reserved(self) -> int:
        """How many reservations of the last minute are not settled: for tests, and for whoever looks for a leak."""
        minutes = (counters.minute for known in self._of.values() for counters in known.values())
        return len({id(entry) for minute in minutes if minute is not None for entry in minute.entries if entry.open})

    def _calendar_s(self, wall_s: float) -> float:
        """The time of the day that it is by the calendar."""
        midnight_s = self._midnight_s
        if midnight_s <= wall_s < midnight_s + DAY_S:
            return wall_s
        if midnight_s - DAY_S <= wall_s < midnight_s:
            return midnight_s
        self._midnight_s = wall_s // DAY_S * DAY_S
        return wall_s

    def _standing(self, found: _Found, asked: Used, now: float, wall_s: float) -> Standing:
        scope, window, (metric, limit, rule), used = found
        too_much = used + asked[metric] - limit
        waits_s: float | None = 0.0
        first = self._policy.optimistic and TOKENS <= metric <= OUTPUT_TOKENS
        if too_much > 0 and (used or not first):
            if too_much <= used:
                waits_s = window.waits_s(metric, too_much, now, wall_s)
            else:
                # It does not fit into an empty window: it waits until it is the first one there, or for ever.
                waits_s = window.waits_s(metric, used, now, wall_s) if first else None
        return Standing(scope, rule, used, asked[metric], window.resets_s(now, wall_s), waits_s)

    # -- identities --------------------------------------------------------------------------------------------

    def _concerned(self, ask: Ask, now: float, calendar_s: float) -> list[tuple[Scope, Window, Checks]]:
        concerned: list[tuple[Scope, Window, Checks]] = []
        for scope in ask.scopes:
            kind, identity = scope
            counters = self._of[kind].get(identity)
            if counters is None:
                rules = self._policy.rules(kind, identity)
                if not rules.counts:
                    continue
                scope, counters = self._introduced(scope, rules, now, calendar_s)
            if counters.minute is not None:
                concerned.append((scope, counters.minute, counters.rules.minute))
            if counters.day is not None:
                concerned.append((scope, counters.day, counters.rules.day))
            if counters.month is not None:
                concerned.append((scope, counters.month, counters.rules.month))
        return concerned

    def _introduced(self, scope: Scope, rules: ScopeRules, now: float, calendar_s: float) -> tuple[Scope, Counters]:
        kind, identity = scope
        known = self._of[kind]
        _make_room(known, now, calendar_s)
        if len(self) >= self._max_identities:
            for others in self._of.values():
                _make_room(others, now, calendar_s)
        if len(self) >= self._max_identities:
            together = rules.name or OTHERS
            if together != identity:
                self.counted_together += 1
                identity, scope = together, (kind, together)
        counters = known.get(identity)
        if counters is None:
            counters = known[identity] = self._new(rules)
        return scope, counters

    def _new(self, rules: ScopeRules) -> Counters:
        counters = Counters(rules)
        self._fit(counters)
        return counters

    def _fit(self, counters: Counters) -> None:
        """Give it the windows that its rules need, and keep those that it has."""
        rules, policy = counters.rules, self._policy
        if rules.minute and counters.minute is None:
            counters.minute = SlidingWindow(MINUTE_S, [])
        counters.day = _fitting(counters.day, rules.day, policy.sliding_days, DAY_S, False)
        counters.month = _fitting(counters.month, rules.month, policy.sliding_months, MONTH_S, True)


def _make_room(known: dict[str, Counters], now: float, calendar_s: float) -> None:
    """Look at the ones that were looked at the longest ago: what counts goes to the end, the rest goes."""
    for _ in range(min(_TRIED, len(known))):
        oldest = next(iter(known))
        counters = known.pop(oldest)
        if not all(window.is_empty(now, calendar_s) for window, _ in _windows(counters)):
            known[oldest] = counters


def _windows(counters: Counters) -> list[tuple[Window, Checks]]:
    rules = counters.rules
    found = ((counters.minute, rules.minute), (counters.day, rules.day), (counters.month, rules.month))
    return [(window, checks) for window, checks in found if window is not None]


def _fitting(window: Window | None, checks: Checks, sliding: bool, length_s: float, monthly: bool) -> Window | None:
    if not checks:
        return window
    if sliding:
        return window if isinstance(window, SlidingWindow) else SlidingWindow(length_s, [])
    return window if isinstance(window, CalendarWindow) else CalendarWindow(monthly)


def _asked(ask: Ask) -> Used:
    tokens = ask.input_tokens + ask.output_tokens
    return 1, tokens, ask.input_tokens, ask.output_tokens, ask.nano_usd


def _refusal(standings: list[Standing]) -> Refusal:
    """The first rule that never lets it pass, else the first one; and the longest time of all."""
    waits = [standing.waits_s for standing in standings if standing.waits_s is not None]
    if len(waits) < len(standings):
        return Refusal(next(each for each in standings if each.waits_s is None), None)
    return Refusal(standings[0], max(waits))
