"""What passes and what does not, for each scope of a request and each length of time."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.core.limits.counters import MemoryCounters, Reservation
from llmproxy.core.limits.decision import OTHERS, Ask, Refusal, Scope, scope_name, scopes_of
from llmproxy.core.limits.policy import (
    DAY_S,
    GLOBAL,
    KEY,
    KINDS,
    MINUTE_S,
    MODEL,
    MONTH_S,
    NO_LIMITS,
    PROVIDER,
    UNLIMITED,
    USER,
    Limits,
    Policy,
)
from tests.core.limits.counting_machine import Script, replay, scripts

TICK_S = 1e-6
NOON = datetime(2026, 3, 14, 12, tzinfo=UTC).timestamp()
MIDNIGHT = datetime(2026, 3, 15, tzinfo=UTC).timestamp()
EVERYONE = scopes_of("openai", "gpt-5", "k" * 64, "alice")


def user(name: str) -> tuple[Scope, ...]:
    """A request that only a user's limits concern."""
    return ((USER, name),)


class Traffic:
    """Counters, and the time."""

    def __init__(self, policy: Policy, max_identities: int = 1_000, wall_s: float = NOON) -> None:
        self.counters = MemoryCounters(policy, max_identities)
        self.now = 500.0
        self.wall_s = wall_s

    def passes(self, seconds: float) -> None:
        """Time passes."""
        self.now += seconds
        self.wall_s += seconds

    def set_clock(self, wall_s: float) -> None:
        """The clock on the wall is set, which takes a moment."""
        self.wall_s = wall_s
        self.now += TICK_S

    def ask(
        self,
        scopes: tuple[Scope, ...] = EVERYONE,
        input_tokens: int = 0,
        output_tokens: int = 0,
        nano_usd: int = 0,
    ) -> Reservation | Refusal:
        """A request comes."""
        return self.counters.admit(Ask(scopes, input_tokens, output_tokens, nano_usd), self.now, self.wall_s)

    def admitted(self, *ask: Any) -> Reservation:
        """A request comes, and passes."""
        result = self.ask(*ask)
        assert isinstance(result, Reservation), result
        return result

    def refused(self, *ask: Any) -> Refusal:
        """A request comes, and does not pass."""
        result = self.ask(*ask)
        assert isinstance(result, Refusal), result
        return result

    def used(self, scopes: tuple[Scope, ...] = EVERYONE) -> dict[tuple[str, str], int]:
        """What is used, by scope and field."""
        standings = self.counters.look(Ask(scopes), self.now, self.wall_s)
        return {(scope_name(each.scope), each.rule.field): each.used for each in standings}


def because(refusal: Refusal) -> tuple[str, str, str]:
    """Whose limit refuses, in which window, of what."""
    rule = refusal.because.rule
    return scope_name(refusal.because.scope), rule.window, rule.metric_name


class MachineTests(SynchronousTestCase):
    """Random traffic, beside a model that keeps every request for ever."""

    @settings(max_examples=250, deadline=None)
    @given(scripts())
    def test_it_counts_as_a_model_does(self, script: Script) -> None:
        """Whatever comes, ends, is given back, and however the clock is set, the limits hold to the last request."""
        replay(script, MemoryCounters, lambda result: result)

    @settings(max_examples=30, deadline=None)
    @given(scripts(many=True))
    def test_it_never_admits_too_much(self, script: Script) -> None:
        """Where so many come that they are not known one by one, nobody passes who should not."""
        replay(script, MemoryCounters, lambda result: result)


class OriginalTests(SynchronousTestCase):
    """What the proxy before this one promised."""

    def test_requests_per_minute(self) -> None:
        """With two requests a minute the third one is refused, until the first has left the last sixty seconds."""
        traffic = Traffic(Policy(Limits(requests_per_minute=2)))
        traffic.admitted()
        traffic.passes(20)
        traffic.admitted()
        refusal = traffic.refused()
        self.assertEqual(because(refusal), ("global", "minute", "requests"))
        self.assertEqual((refusal.because.used, refusal.because.remaining, refusal.waits_s), (2, 0, 40))
        traffic.passes(40)
        traffic.admitted()
        traffic.refused()

    def test_tokens_per_minute(self) -> None:
        """With a hundred tokens a minute sixty pass, and fifty more do not; forty do: all may be used."""
        traffic = Traffic(Policy(Limits(tokens_per_minute=100)))
        traffic.admitted(EVERYONE, 60)
        self.assertEqual(because(traffic.refused(EVERYONE, 50)), ("global", "minute", "tokens"))
        traffic.admitted(EVERYONE, 30, 10)
        traffic.refused(EVERYONE, 1)

    def test_day(self) -> None:
        """What is used up of a day comes back at midnight, UTC, and not before."""
        traffic = Traffic(Policy(Limits(requests_per_day=2)), wall_s=MIDNIGHT - 90)
        traffic.admitted()
        traffic.passes(70)
        traffic.admitted()
        refusal = traffic.refused()
        self.assertEqual(because(refusal), ("global", "day", "requests"))
        self.assertEqual(refusal.waits_s, 20)
        traffic.passes(19.999)
        traffic.refused()
        traffic.passes(0.001)
        traffic.admitted()

    def test_overrides(self) -> None:
        """A user, a key or a model with limits of its own has these, in a minute and in a day; others have not."""
        names = {USER: "alice", KEY: "k" * 64, MODEL: "gpt-5"}
        ways: dict[str, tuple[Mapping[str, int], int, tuple[str, str]]] = {
            "requests_per_minute": ({"requests_per_minute": 1}, 0, ("minute", "requests")),
            "tokens_per_minute": ({"tokens_per_minute": 10}, 6, ("minute", "tokens")),
            "requests_per_day": ({"requests_per_day": 1}, 0, ("day", "requests")),
            "tokens_per_day": ({"tokens_per_day": 10}, 6, ("day", "tokens")),
        }
        other = scopes_of("openai", "o5", "q" * 64, "bob")
        for kind, name in names.items():
            for field, (limits, tokens, told) in ways.items():
                overrides = {kind: {name: replace(NO_LIMITS, **limits)}}
                traffic = Traffic(Policy(replace(NO_LIMITS, **{field: 1_000}), overrides=overrides))
                for _ in range(5):
                    traffic.admitted(other, tokens)
                traffic.admitted(EVERYONE, tokens)
                scope = next(scope for scope in EVERYONE if scope[0] == kind)
                self.assertEqual(because(traffic.refused(EVERYONE, tokens)), (scope_name(scope), *told))
                traffic.admitted(other, tokens)

    def test_settled_above_and_below(self) -> None:
        """What turns out to be more holds back those who come later, what turns out to be less makes room for them."""
        traffic = Traffic(Policy(Limits(tokens_per_minute=100, tokens_per_day=1_000)))
        small, large = traffic.admitted(EVERYONE, 10), traffic.admitted(EVERYONE, 80)
        small.settle(30, 60, 0)  # 170 by now
        self.assertEqual(traffic.refused(EVERYONE, 1).because.used, 170)
        large.settle(0, 0, 0)
        traffic.refused(EVERYONE, 11)
        traffic.admitted(EVERYONE, 10)
        self.assertEqual(traffic.used()["global", "tokens_per_day"], 100)

    def test_below_zero_is_nothing(self) -> None:
        """However often a request is settled or given back, it counts once, and nothing is ever less than nothing."""
        traffic = Traffic(Policy(Limits(requests_per_minute=3, tokens_per_minute=100, tokens_per_day=1_000)))
        reservation = traffic.admitted(EVERYONE, 50)
        reservation.settle(0, 0, 0)
        reservation.settle(20, 0, 0)
        reservation.give_back()
        reservation.give_back()
        self.assertEqual(traffic.used()["global", "tokens_per_minute"], 0)
        self.assertEqual(traffic.used()["global", "requests_per_minute"], 1)

    def test_given_back(self) -> None:
        """A request that is given back has taken nobody's place."""
        traffic = Traffic(Policy(Limits(requests_per_minute=1, requests_per_day=1, nano_usd_per_month=9)))
        traffic.admitted(EVERYONE, 5, 5, 5).give_back()
        self.assertEqual(set(traffic.used().values()), {0})
        traffic.admitted(EVERYONE, 5, 5, 9)
        traffic.refused()

    def test_given_back_after_its_window(self) -> None:
        """What is given back, or settled, after its minute and its day is over, changes nothing of the new ones."""
        limits = Limits(requests_per_minute=2, requests_per_day=2, tokens_per_minute=50, tokens_per_day=50)
        for end in ("give_back", "settle_above", "settle_below"):
            traffic = Traffic(Policy(limits), wall_s=MIDNIGHT - 30)
            old = traffic.admitted(EVERYONE, 20)
            traffic.passes(60)
            traffic.admitted(EVERYONE, 10)
            before = traffic.used()
            self.assertEqual(before["global", "tokens_per_day"], 10)
            if end == "give_back":
                old.give_back()
            else:
                old.settle(40 if end == "settle_above" else 0, 0, 0)
            self.assertEqual(traffic.used(), before, end)

    def test_both_over(self) -> None:
        """Where requests and tokens are used up, it is the requests that are told."""
        limits = Limits(requests_per_minute=1, tokens_per_minute=10, requests_per_day=1, tokens_per_day=10)
        traffic = Traffic(Policy(limits))
        traffic.admitted(EVERYONE, 10)
        self.assertEqual(because(traffic.refused(EVERYONE, 10)), ("global", "minute", "requests"))


class ScopeTests(SynchronousTestCase):
    """All scopes of a request."""

    def test_all_or_none(self) -> None:
        """A request that one of its limits refuses counts against none of the others."""
        policy = Policy(Limits(requests_per_minute=10, tokens_per_day=100), {USER: Limits(requests_per_minute=1)})
        traffic = Traffic(policy)
        traffic.admitted(EVERYONE, 5)
        before = traffic.used()
        for _ in range(20):
            self.assertEqual(because(traffic.refused(EVERYONE, 5))[0], "user:alice")
        self.assertEqual(traffic.used(), before)
        self.assertEqual(set(before.values()), {1, 5})

    def test_order(self) -> None:
        """The most general limit is told: of all requests, the provider, the model, the key, the user."""
        names = ["global", "provider:openai", "model:gpt-5", "key:kkkkkkkkkkkk", "user:alice"]
        for number, name in enumerate(names):
            kinds = {kind: Limits(requests_per_minute=1, requests_per_day=1) for kind in KINDS[number:]}
            traffic = Traffic(Policy(defaults=kinds))
            traffic.admitted()
            self.assertEqual(because(traffic.refused()), (name, "minute", "requests"))
            self.assertEqual(traffic.refused().because.waits_s, 60)
            self.assertEqual(traffic.refused().waits_s, DAY_S / 2)

    def test_order_of_windows(self) -> None:
        """The minute is told before the day, the day before the month."""
        for fields, told in (
            (("input_tokens_per_minute", "tokens_per_day"), ("minute", "input_tokens")),
            (("tokens_per_minute", "input_tokens_per_minute"), ("minute", "tokens")),
            (("output_tokens_per_minute", "nano_usd_per_day"), ("minute", "output_tokens")),
            (("tokens_per_day", "nano_usd_per_day"), ("day", "tokens")),
            (("nano_usd_per_day", "nano_usd_per_month"), ("day", "usd")),
            (("nano_usd_per_month",), ("month", "usd")),
        ):
            traffic = Traffic(Policy(replace(NO_LIMITS, **dict.fromkeys(fields, 1)), optimistic=False))
            self.assertEqual(because(traffic.refused(EVERYONE, 2, 2, 2))[1:], told)

    def test_what_never_passes_is_told_first(self) -> None:
        """Where one limit only takes time and another one never lets it pass, the second is told, and no time."""
        traffic = Traffic(Policy(Limits(requests_per_minute=1, nano_usd_per_day=10)))
        traffic.admitted()
        refusal = traffic.refused(EVERYONE, 0, 0, 11)
        self.assertEqual((because(refusal), refusal.waits_s), (("global", "day", "usd"), None))
        self.assertIsNone(refusal.because.waits_s)

    def test_shadow(self) -> None:
        """Limits in the shadow refuse nobody; who would be over them is told, and counts all the same."""
        policy = Policy(Limits(requests_per_minute=2), {USER: Limits(requests_per_minute=1, shadow=True)})
        traffic = Traffic(policy)
        self.assertIsNone(traffic.admitted().over_shadow)
        over = traffic.admitted().over_shadow or []
        self.assertEqual([(scope_name(each.scope), each.used, each.waits_s) for each in over], [("user:alice", 1, 60)])
        self.assertEqual(because(traffic.refused())[0], "global")
        self.assertEqual(traffic.used()["user:alice", "requests_per_minute"], 2)

    def test_no_limits(self) -> None:
        """Where nothing is limited, nothing is kept of anybody."""
        traffic = Traffic(Policy(Limits(concurrent_requests=1)))
        for number in range(50):
            traffic.admitted(user(str(number)), 10**9).settle(1, 1, 1)
        self.assertEqual(len(traffic.counters), 0)


class EstimateTests(SynchronousTestCase):
    """Requests whose size is known when they end."""

    def test_the_first_request(self) -> None:
        """A request passes a limit of tokens that none are counted against, whatever it is expected to take."""
        traffic = Traffic(Policy(Limits(tokens_per_minute=100, tokens_per_day=1_000)))
        traffic.admitted(EVERYONE, 5_000).settle(60, 0, 0)
        self.assertEqual(traffic.refused(EVERYONE, 5_000).waits_s, DAY_S / 2)
        traffic.admitted(EVERYONE, 40)

    def test_the_first_request_is_not_the_first_dollar(self) -> None:
        """Money is never spent on trust."""
        traffic = Traffic(Policy(Limits(nano_usd_per_month=100)))
        self.assertIsNone(traffic.refused(EVERYONE, 0, 0, 101).waits_s)
        traffic.admitted(EVERYONE, 0, 0, 100)

    def test_no_first_request(self) -> None:
        """Where it is so configured, what is expected to be too much never passes."""
        traffic = Traffic(Policy(Limits(tokens_per_minute=100), optimistic=False))
        self.assertIsNone(traffic.refused(EVERYONE, 101).waits_s)
        traffic.admitted(EVERYONE, 100)

    def test_a_large_one_waits_until_it_is_the_first(self) -> None:
        """What is larger than the limit passes once nothing else counts."""
        traffic = Traffic(Policy(Limits(tokens_per_minute=100)))
        traffic.admitted(EVERYONE, 1)
        traffic.passes(10)
        traffic.admitted(EVERYONE, 1)
        traffic.passes(10)
        traffic.admitted(EVERYONE)  # of no tokens: it is not in the way
        self.assertEqual(traffic.refused(EVERYONE, 101).waits_s, 50)
        traffic.passes(50)
        traffic.admitted(EVERYONE, 101)

    def test_input_alone(self) -> None:
        """Where output does not count, an answer of whatever length leaves room; a limit of output still holds."""
        policy = Policy(Limits(tokens_per_minute=100, output_tokens_per_minute=1_000), count_output=False)
        traffic = Traffic(policy)
        traffic.admitted(EVERYONE, 50, 900)
        traffic.admitted(EVERYONE, 50, 100)
        self.assertEqual(because(traffic.refused(EVERYONE, 1, 0))[1:], ("minute", "tokens"))
        self.assertEqual(because(traffic.refused(EVERYONE, 0, 1))[1:], ("minute", "output_tokens"))

    def test_tightest(self) -> None:
        """A request that passes is told the limits it came closest to, of requests and of tokens, until it ends."""
        policy = Policy(
            Limits(requests_per_minute=10, tokens_per_day=500),
            {USER: Limits(requests_per_minute=5, tokens_per_day=400), KEY: Limits(requests_per_day=5)},
        )
        traffic = Traffic(policy)
        traffic.admitted(scopes_of("openai", "gpt-5", None, "bob"), 150)
        traffic.passes(10)
        reservation = traffic.admitted(EVERYONE, 70, 30)
        requests, tokens = reservation.tightest()
        assert requests is not None and tokens is not None
        self.assertEqual((scope_name(requests.scope), requests.rule.field), ("key:kkkkkkkkkkkk", "requests_per_day"))
        self.assertEqual((requests.used, requests.remaining), (1, 4))
        self.assertEqual((scope_name(tokens.scope), tokens.rule.field), ("global", "tokens_per_day"))
        self.assertEqual((tokens.used, tokens.remaining, tokens.resets_s), (250, 250, DAY_S / 2 - 10))
        reservation.settle(1, 1, 0)
        self.assertEqual(reservation.tightest(), (None, None))
        self.assertEqual(Traffic(Policy(Limits(nano_usd_per_day=5))).admitted().tightest(), (None, None))


class TimeTests(SynchronousTestCase):
    """Windows, and the clocks they go by."""

    @settings(max_examples=100, deadline=None)
    @given(st.integers(1, 5), st.lists(st.floats(0, 30), max_size=60))
    def test_never_more_in_any_minute(self, limit: int, gaps: list[float]) -> None:
        """In whatever sixty seconds one looks at, no more requests began than the limit says."""
        traffic = Traffic(Policy(Limits(requests_per_minute=limit)))
        began: list[float] = []
        for gap in gaps:
            traffic.passes(gap)
            if isinstance(traffic.ask(), Reservation):
                began.append(traffic.now)
        for first, over in zip(began, began[limit:], strict=False):
            self.assertGreaterEqual(over, first + MINUTE_S)

    @settings(max_examples=150, deadline=None)
    @given(
        st.booleans(),
        st.lists(st.tuples(st.floats(0, 40), st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=20),
        st.integers(0, 90),
    )
    def test_it_may_come_back_when_it_is_told(
        self, optimistic: bool, before: list[tuple[float, int, int]], tokens: int
    ) -> None:
        """Who comes back at the moment that was told passes, and who comes earlier does not."""
        limits = Limits(requests_per_minute=4, tokens_per_minute=60, requests_per_day=12, nano_usd_per_month=200)
        traffic = Traffic(Policy(limits, optimistic=optimistic), wall_s=MIDNIGHT - 100)
        for gap, asked, settled in before:
            traffic.passes(gap)
            result = traffic.ask(EVERYONE, asked, 0, asked)
            if isinstance(result, Reservation):
                result.settle(settled, 0, settled)
        result = traffic.ask(EVERYONE, tokens, 0, 1)
        if isinstance(result, Reservation):
            return
        if result.waits_s is None:
            self.assertTrue(tokens > 60 and not optimistic)
            return
        self.assertGreater(result.waits_s, 0)
        traffic.passes(result.waits_s * 0.999)
        traffic.refused(EVERYONE, tokens, 0, 1)
        traffic.passes(result.waits_s * 0.001 + TICK_S)
        traffic.admitted(EVERYONE, tokens, 0, 1)

    def test_sliding_day_and_month(self) -> None:
        """Where it is so configured, a day is the last 24 hours and a month the last thirty days."""
        policy = Policy(
            Limits(requests_per_day=1, nano_usd_per_month=10), sliding_days=True, sliding_months=True, optimistic=False
        )
        traffic = Traffic(policy, wall_s=MIDNIGHT - 10)
        traffic.admitted(EVERYONE, 0, 0, 8)
        traffic.passes(20)
        self.assertEqual(traffic.refused().waits_s, DAY_S - 20)
        refusal = traffic.refused(EVERYONE, 0, 0, 3)
        self.assertEqual((because(refusal)[1], refusal.waits_s), ("day", MONTH_S - 20))
        traffic.passes(DAY_S)
        self.assertEqual(because(traffic.refused(EVERYONE, 0, 0, 3)), ("global", "month", "usd"))
        traffic.passes(MONTH_S - DAY_S - 20)
        traffic.admitted(EVERYONE, 0, 0, 3)

    def test_month_of_the_calendar(self) -> None:
        """A month's money comes back on the first, UTC; in February and at new year too."""
        for year, month, day in ((2026, 2, 28), (2024, 2, 29), (2026, 12, 31), (2026, 4, 30)):
            last = datetime(year, month, day, 23, 59, 30, tzinfo=UTC).timestamp()
            traffic = Traffic(Policy(Limits(nano_usd_per_month=10)), wall_s=last)
            traffic.admitted(EVERYONE, 0, 0, 10)
            self.assertEqual(traffic.refused(EVERYONE, 0, 0, 1).waits_s, 30)
            traffic.passes(30)
            traffic.admitted(EVERYONE, 0, 0, 1)

    def test_time_that_goes_back(self) -> None:
        """A clock that should only go forward, and does not, brings nothing back and loses nothing."""
        traffic = Traffic(Policy(Limits(requests_per_minute=1)))
        traffic.admitted()
        traffic.now -= 100
        self.assertEqual(traffic.refused().waits_s, 60)
        traffic.now += 160
        traffic.admitted()

    def test_the_same_day_is_not_given_twice(self) -> None:
        """A clock that is set back over midnight goes on with the day that had begun, for whoever comes."""
        for before in (1.0, 3_600.0, DAY_S):
            traffic = Traffic(Policy(defaults={USER: Limits(requests_per_day=1)}), wall_s=MIDNIGHT - before)
            traffic.admitted(user("alice"))
            traffic.set_clock(MIDNIGHT)
            traffic.admitted(user("bob"))  # alice goes: nothing of hers counts
            traffic.set_clock(MIDNIGHT - before)
            refusal = traffic.refused(user("bob"))
            self.assertEqual(refusal.waits_s, DAY_S + before)
            traffic.admitted(user("alice"))
            for wall_s in (MIDNIGHT - before, MIDNIGHT, MIDNIGHT + 1.0, MIDNIGHT + DAY_S - 1.0):
                traffic.set_clock(wall_s)
                traffic.refused(user("alice"))
                traffic.refused(user("bob"))
            traffic.set_clock(MIDNIGHT + DAY_S)
            traffic.admitted(user("alice"))

    def test_what_begins_while_the_clock_is_set_back_ends_well(self) -> None:
        """A request that comes after the clock was set back over midnight is settled and given back like others."""
        limits = Limits(requests_per_day=2, tokens_per_day=100, nano_usd_per_month=100)
        traffic = Traffic(Policy(limits), wall_s=datetime(2026, 4, 1, tzinfo=UTC).timestamp())
        traffic.admitted(EVERYONE, 10)
        traffic.set_clock(traffic.wall_s - 1)
        reservation = traffic.admitted(EVERYONE, 10, 0, 10)
        traffic.passes(5)
        reservation.settle(50, 0, 50)
        self.assertEqual(traffic.used()["global", "tokens_per_day"], 60)
        self.assertEqual(traffic.used()["global", "nano_usd_per_month"], 50)
        traffic.set_clock(traffic.wall_s - 5)
        self.assertEqual(traffic.refused(EVERYONE, 10).because.used, 2)

    def test_a_clock_that_was_wrong_by_days(self) -> None:
        """A clock that is corrected by days begins anew; what was admitted before then ends without being counted."""
        traffic = Traffic(Policy(Limits(requests_per_day=1, tokens_per_day=100)), wall_s=NOON)
        early = traffic.admitted(EVERYONE, 10)
        traffic.set_clock(NOON - 5 * DAY_S)
        late = traffic.admitted(EVERYONE, 10)
        traffic.set_clock(NOON)
        self.assertEqual(traffic.used()["global", "requests_per_day"], 0)
        early.give_back()
        late.settle(50, 0, 0)
        self.assertEqual(set(traffic.used().values()), {0})
        traffic.admitted(EVERYONE, 10)
        traffic.refused()


class ReplacedTests(SynchronousTestCase):
    """Limits that change while requests are counted."""

    def test_what_counted_counts(self) -> None:
        """New limits begin with what was used under the old ones."""
        traffic = Traffic(Policy(Limits(requests_per_minute=2, tokens_per_day=100)))
        reservation = traffic.admitted(EVERYONE, 50)
        traffic.admitted(EVERYONE, 20)
        traffic.refused()
        traffic.counters.replace(Policy(Limits(requests_per_minute=3, tokens_per_day=200)))
        traffic.admitted(EVERYONE, 10)
        traffic.refused()
        reservation.settle(150, 0, 0)
        self.assertEqual(traffic.used()["global", "tokens_per_day"], 180)
        traffic.counters.replace(Policy(Limits(requests_per_minute=1)))
        self.assertEqual(traffic.refused().because.used, 3)

    def test_by_identity_and_not_by_rule(self) -> None:
        """An override that comes, or goes, finds what was counted of its user before."""
        defaults = {USER: Limits(requests_per_minute=2)}
        plain, special = (
            Policy(defaults=defaults),
            Policy(defaults=defaults, overrides={USER: {"alice": Limits(requests_per_minute=3)}}),
        )
        traffic = Traffic(plain)
        traffic.admitted()
        traffic.admitted()
        traffic.counters.replace(special)
        traffic.admitted()
        traffic.refused()
        traffic.counters.replace(plain)
        self.assertEqual(traffic.refused().because.used, 3)
        self.assertIs(traffic.counters.policy, plain)

    def test_windows_come_and_go(self) -> None:
        """A limit of another window begins with nothing; one that comes back finds what is counted since."""
        minute, day = Policy(Limits(requests_per_minute=5)), Policy(Limits(requests_per_day=5))
        traffic = Traffic(minute)
        traffic.admitted()
        traffic.counters.replace(day)
        self.assertEqual(traffic.used()["global", "requests_per_day"], 0)
        traffic.admitted()
        traffic.counters.replace(minute)
        self.assertEqual(traffic.used()["global", "requests_per_minute"], 2)
        traffic.admitted()
        traffic.counters.replace(day)
        self.assertEqual(traffic.used()["global", "requests_per_day"], 2)
        traffic.counters.replace(Policy())
        self.assertEqual(len(traffic.counters), 0)

    def test_days_of_another_kind(self) -> None:
        """Days that become sliding, or cease to be, begin anew, and what is under way still ends well."""
        limits = Limits(requests_per_day=1, nano_usd_per_month=5)
        calendar, sliding = Policy(limits), Policy(limits, sliding_days=True, sliding_months=True)
        for first, then in ((calendar, sliding), (sliding, calendar)):
            traffic = Traffic(first)
            reservation = traffic.admitted()
            traffic.counters.replace(then)
            reservation.settle(1, 1, 9)
            self.assertEqual(set(traffic.used().values()), {0})
            traffic.admitted()
            traffic.refused()


class IdentityTests(SynchronousTestCase):
    """How many are kept apart."""

    def test_who_has_nothing_counted_goes_first(self) -> None:
        """Whoever was here long ago makes room, of whatever kind it was."""
        limits = Limits(requests_per_minute=1)
        traffic = Traffic(Policy(defaults={USER: limits, KEY: limits}), max_identities=10)
        for number in range(10):
            traffic.admitted(user(str(number)))
        traffic.passes(60)
        for number in range(10):
            traffic.admitted(((KEY, str(number) * 64),))
        self.assertEqual(traffic.counters.counted_together, 0)
        self.assertEqual(len(traffic.counters), 10)
        for number in range(10):
            self.assertEqual(because(traffic.refused(((KEY, str(number) * 64),)))[0], f"key:{str(number) * 12}")

    def test_too_many_are_counted_together(self) -> None:
        """Where all places are taken by those who count, new ones share one, and nobody loses what was counted."""
        traffic = Traffic(Policy(defaults={USER: Limits(requests_per_minute=2)}), max_identities=3)
        for number in range(3):
            traffic.admitted(user(str(number)))
        traffic.admitted(user("x"))
        traffic.admitted(user("y"))
        self.assertEqual(because(traffic.refused(user("z")))[0], f"user:{OTHERS}")
        self.assertEqual(traffic.counters.counted_together, 3)
        for number in range(3):
            traffic.admitted(user(str(number)))
            self.assertEqual(because(traffic.refused(user(str(number))))[0], f"user:{number}")
        traffic.passes(60)
        for _ in range(2):
            traffic.admitted(user("z"))
        self.assertEqual(because(traffic.refused(user("z")))[0], "user:z")

    def test_limits_of_its_own_hold_in_a_crowd(self) -> None:
        """However many others there are, who is named in the configuration has the limits that are said there."""
        policy = Policy(
            defaults={USER: Limits(requests_per_minute=100)},
            overrides={
                KEY: {"k" * 64: Limits(requests_per_minute=1), "q" * 12: Limits(requests_per_minute=1)},
                MODEL: {"big*": Limits(requests_per_minute=2)},
                USER: {"free": Limits(requests_per_minute=UNLIMITED), "alice": Limits(requests_per_minute=1)},
            },
        )
        traffic = Traffic(policy, max_identities=5)
        for number in range(50):
            traffic.admitted(user(str(number)))
        for scope, told in (
            ((KEY, "k" * 64), "key:kkkkkkkkkkkk"),
            ((KEY, "q" * 64), "key:qqqqqqqqqqqq"),
            ((USER, "alice"), "user:alice"),
        ):
            traffic.admitted((scope,))
            self.assertEqual(because(traffic.refused((scope,)))[0], told)
        for number in range(2):
            traffic.admitted(((MODEL, f"big-{number}"),))
        self.assertEqual(because(traffic.refused(((MODEL, "big-2"),)))[0], "model:big*")
        for _ in range(200):
            traffic.admitted(user("free"))
        self.assertLessEqual(len(traffic.counters), 5 + 5)  # besides five users: four overrides, and all other users
        traffic.counters.replace(policy)
        self.assertEqual(because(traffic.refused(((MODEL, "big-2"),)))[0], "model:big*")
        self.assertEqual(because(traffic.refused(((KEY, "k" * 64),)))[0], "key:kkkkkkkkkkkk")

    def test_those_together_have_the_limits_of_their_kind(self) -> None:
        """New limits hold for those who are counted together, too."""
        traffic = Traffic(Policy(defaults={USER: Limits(requests_per_minute=1)}), max_identities=1)
        traffic.admitted(user("a"))
        traffic.admitted(user("b"))
        traffic.refused(user("c"))
        traffic.counters.replace(Policy(defaults={USER: Limits(requests_per_minute=2)}))
        traffic.admitted(user("c"))
        self.assertEqual(because(traffic.refused(user("b")))[0], f"user:{OTHERS}")

    @settings(max_examples=60, deadline=None)
    @given(
        st.integers(1, 6),
        st.lists(
            st.tuples(
                st.sampled_from(KINDS), st.integers(0, 30), st.sampled_from((0.0, 0.0, 7.0, 61.0)), st.booleans()
            ),
            max_size=120,
        ),
    )
    def test_bounded(self, most: int, arrivals: list[tuple[str, int, float, bool]]) -> None:
        """However many come, no more are kept than there are places, and one of each kind for all others; and each of
        these has its limit."""
        traffic = Traffic(Policy(Limits(requests_per_minute=3)), max_identities=most)
        counted: dict[Scope, list[float]] = {}
        for kind, number, gap, gives_back in arrivals:
            traffic.passes(gap)
            result = traffic.ask(((kind, "" if kind == GLOBAL else str(number)),))
            self.assertLessEqual(len(traffic.counters), most + len(KINDS))
            if isinstance(result, Refusal):
                continue
            requests, _ = result.tightest()
            assert requests is not None
            if gives_back:
                result.give_back()
                continue
            result.settle(1, 1, 1)
            began = counted.setdefault(requests.scope, [])
            began.append(traffic.now)
            self.assertLessEqual(sum(at + MINUTE_S > traffic.now for at in began), 3)

    def test_what_was_refused_is_not_kept(self) -> None:
        """Made-up names that are refused take nobody's place for longer than until the next one comes."""
        limits = {GLOBAL: Limits(requests_per_minute=1), USER: Limits(requests_per_minute=1)}
        traffic = Traffic(Policy(defaults=limits))
        traffic.admitted()
        for number in range(100):
            traffic.refused(((GLOBAL, ""), (USER, str(number))))
        self.assertLessEqual(len(traffic.counters), 3)


class LookTests(SynchronousTestCase):
    """What an operator sees."""

    def test_look(self) -> None:
        """How each limit stands for a request is told without counting it."""
        traffic = Traffic(Policy(Limits(requests_per_minute=2, nano_usd_per_day=10)))
        traffic.admitted(EVERYONE, 1, 1, 8)
        traffic.passes(6)
        ask = Ask(((GLOBAL, ""), (PROVIDER, "groq")), 0, 0, 3)
        for _ in range(3):
            standings = traffic.counters.look(ask, traffic.now, traffic.wall_s)
            self.assertEqual(
                [(scope_name(each.scope), each.rule.field, each.used, each.passes) for each in standings],
                [
                    ("global", "requests_per_minute", 1, True),
                    ("global", "nano_usd_per_day", 8, False),
                    ("provider:groq", "requests_per_minute", 0, True),
                    ("provider:groq", "nano_usd_per_day", 0, True),
                ],
            )
            self.assertEqual([each.resets_s for each in standings], [54, DAY_S / 2 - 6, 0, DAY_S / 2 - 6])

    def test_in_use(self) -> None:
        """Whatever counts is listed, and nothing else."""
        traffic = Traffic(Policy(defaults={USER: Limits(requests_per_minute=2, tokens_per_day=5)}))
        traffic.admitted(user("alice"))
        traffic.admitted(user("bob"), 3)
        traffic.admitted(user("carol"), 3).give_back()

        def listed() -> list[tuple[str, str]]:
            found = traffic.counters.in_use(traffic.now, traffic.wall_s)
            return [(scope_name(each.scope), each.rule.field) for each in found]

        self.assertEqual(
            listed(),
            [
                ("user:alice", "requests_per_minute"),
                ("user:bob", "requests_per_minute"),
                ("user:bob", "tokens_per_day"),
            ],
        )
        traffic.passes(60)
        self.assertEqual(listed(), [("user:bob", "tokens_per_day")])

    def test_reserved(self) -> None:
        """A request that was never settled can be found for a minute."""
        traffic = Traffic(Policy(Limits(requests_per_minute=9)))
        settled, given_back, _ = traffic.admitted(), traffic.admitted(), traffic.admitted()
        self.assertEqual(traffic.counters.reserved(), 3)
        settled.settle(1, 1, 1)
        given_back.give_back()
        self.assertEqual(traffic.counters.reserved(), 1)
