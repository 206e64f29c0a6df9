"""Random traffic against whatever counts it, beside a model that keeps every request for ever and adds up.

A backend passes if it decides as the model does, says who is over which limit as the model does, and lets a refused
request pass at the very moment that it told. To run it over a backend of your own::

    class MyCountingTests(SynchronousTestCase):
        @settings(max_examples=50, deadline=None)
        @given(scripts(steps_back=False))
        def test_it_counts_as_a_model_does(self, script: Script) -> None:
            '''...'''
            replay(script, make, self.successResultOf, reads_sums=False, tick_s=0.001)

``make(policy, max_identities)`` makes an empty backend with ``admit(ask, now, wall_s)`` and ``replace(policy)``; what
`admit` gives is a Refusal, or has ``over_shadow``, ``settle(input, output, nano_usd)`` and ``give_back()``. Whatever
those return goes through ``wait``, if it is not None, which makes a result of it: of a Deferred, what it was called
with. Without ``look`` there is nothing to read: ``reads_sums=False``.

Times are multiples of 1/8 s, so that adding them is exact and two that are equal are equal; but for a moment after a
refusal, when the clock is ``tick_s`` later than what was told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import ceil
from random import Random
from typing import Any, Final, Protocol

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from llmproxy.core.limits.decision import Ask, Refusal, Scope, scopes_of
from llmproxy.core.limits.policy import (
    DAY_S,
    GLOBAL,
    INPUT_TOKENS,
    KEY,
    KINDS,
    MINUTE_S,
    MODEL,
    MONTH_S,
    OUTPUT_TOKENS,
    PROVIDER,
    TOKENS,
    USER,
    Limits,
    Policy,
    Rule,
)
from llmproxy.core.limits.windows import ENTRIES_MAX

STARTS: Final = tuple(
    datetime.fromisoformat(f"{date}+00:00").timestamp() - before_s
    for date in ("2026-03-14 15:00", "2026-03-15 00:00", "2026-03-01 00:00", "2024-03-01 00:00", "2027-01-01 00:00")
    for before_s in (0.0, 30.0)
)
"""When scripts begin: in the middle of a day, and around the ends of a day, of a month, of a year."""

_FIELDS: Final = (
    "requests_per_minute",
    "tokens_per_minute",
    "input_tokens_per_minute",
    "output_tokens_per_minute",
    "requests_per_day",
    "tokens_per_day",
    "nano_usd_per_day",
    "nano_usd_per_month",
)

_NAMES: Final = {MODEL: ("small", "lar*"), KEY: ("k" * 64, "q" * 12), USER: ("alice",)}
"""Who may have limits of its own."""


# -- what happens --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Arrive:
    """So many requests come, one every ``apart_s`` seconds."""

    scopes: tuple[Scope, ...]
    input_tokens: int
    output_tokens: int
    nano_usd: int
    times: int = 1
    apart_s: float = 0.0


@dataclass(frozen=True)
class Pass:
    """Time passes."""

    seconds: float


@dataclass(frozen=True)
class Step:
    """The clock on the wall is set to so much later, or earlier."""

    seconds: float


@dataclass(frozen=True)
class Settle:
    """A request that was admitted comes to its end. ``which``: counted round those that are under way."""

    which: int
    input_tokens: int
    output_tokens: int
    nano_usd: int
    twice: bool = False


@dataclass(frozen=True)
class GiveBack:
    """A request that was admitted was not served."""

    which: int
    twice: bool = False


@dataclass(frozen=True)
class ComeBack:
    """What was refused last, if nothing came since, is tried again when it may pass."""


@dataclass(frozen=True)
class Replace:
    """The other limits hold from now on."""


Action = Arrive | Pass | Step | Settle | GiveBack | ComeBack | Replace


@dataclass(frozen=True)
class Script:
    """One run. policies: the first one holds, until it is replaced by the other, and so on in turn."""

    policies: tuple[Policy, Policy]
    wall_s: float
    actions: list[Action]
    told: str
    """How the policies were made, for whoever reads a failure."""

    def __repr__(self) -> str:
        return f"Script({self.told}, wall_s={self.wall_s}, actions={self.actions})"


def _policies(chance: Random, most: int) -> tuple[tuple[Policy, Policy], str]:
    """Two policies of one shape: the same windows, with limits of other heights."""

    def fields(*sizes: int) -> list[str]:
        return chance.sample(_FIELDS, chance.choice(sizes))

    kinds = chance.sample(KINDS, chance.choice((0, 1, 1, 2, 3)))
    shape = {kind: fields(1, 2, 3) for kind in kinds}
    base = fields(0, 0, 1, 2, 3) if kinds else fields(1, 2, 3)
    own = {
        kind: {name: fields(0, 1, 2) for name in names}
        for kind, names in _NAMES.items()
        if chance.choice((True, False))
    }
    ways = {
        "optimistic": chance.choice((True, False)),
        "count_output": chance.choice((True, True, False)),
        "sliding_days": chance.choice((True, False, False)),
        "sliding_months": chance.choice((True, False)),
        "shadow": chance.choice((True, False, False, False)),
    }

    def limits(names: list[str]) -> Limits:
        numbers = {name: chance.randint(1, most if "requests" in name else 5 * most) for name in names}
        return Limits(**numbers, shadow=chance.choice((None, None, True, False)))

    made: list[Policy] = []
    told: list[str] = []
    for _ in range(2):
        defaults = {kind: limits(names) for kind, names in shape.items()}
        overrides = {kind: {name: limits(names) for name, names in some.items()} for kind, some in own.items()}
        made.append(Policy(limits(base), defaults, overrides, **ways))
        rules = {
            scope: [f"{rule.field}: {rule.limit}{' in the shadow' * rule.shadow}" for rule in found]
            for scope in _EVERY_SCOPE
            if (found := list(made[-1].rules(*scope).every()))
        }
        told.append(f"{rules}")
    return (made[0], made[1]), f"policies of {ways}: {told[0]}, then {told[1]}"


def _scopes(chance: Random) -> tuple[Scope, ...]:
    return scopes_of(
        chance.choice(("openai", "openai", "groq")),
        chance.choice(("small", "large", "larger", None)),
        chance.choice((None, "k" * 64, "q" * 64, "z" * 64)),
        chance.choice((None, "alice", "alice", "bob", "carol")),
    )


_EVERY_SCOPE: Final = (
    *((GLOBAL, ""), (PROVIDER, "openai"), (PROVIDER, "groq")),
    *((MODEL, name) for name in ("small", "large", "larger", "unknown")),
    *((KEY, letter * 64) for letter in "kqz"),
    *((USER, name) for name in ("alice", "bob", "carol")),
)


def _amounts_of(chance: Random, most: int = 12) -> tuple[int, int, int]:
    return (
        chance.choice((0, chance.randint(0, most))),
        chance.choice((0, chance.randint(0, most))),
        chance.randint(0, most),
    )


_PASSES: Final = (0.125, 1.0, 15.0, 29.875, 45.0, 59.875, 60.0, 3_600.0, DAY_S / 2, DAY_S - 60.0, DAY_S, MONTH_S)
_STEPS: Final = (0.125, 30.0, 3_600.0, DAY_S, 3 * DAY_S, 40 * DAY_S)
_STEPS_BACK: Final = (*2 * (-0.125, -1.0, -60.0, -3_600.0, -DAY_S / 2, -DAY_S), -2 * DAY_S, -40 * DAY_S)


def _action(chance: Random, steps_back: bool, many: bool) -> Action:
    what = chance.choices(
        ("arrive", "pass", "settle", "give back", "come back", "step", "replace"), (9, 4, 3, 2, 3, 1, 1)
    )
    match what[0]:
        case "arrive" if many and chance.random() < 0.5:
            times = chance.randint(50, 2 * ENTRIES_MAX)
            return Arrive(_scopes(chance), *_amounts_of(chance, 1), times, chance.choice((0.0, 0.125, 0.25)))
        case "arrive":
            return Arrive(_scopes(chance), *_amounts_of(chance))
        case "pass":
            return Pass(chance.choice(_PASSES))
        case "settle":
            return Settle(chance.randint(0, 9), *_amounts_of(chance), chance.choice((True, False)))
        case "give back":
            return GiveBack(chance.randint(0, 9), chance.choice((True, False)))
        case "come back":
            return ComeBack()
        case "step":
            return Step(chance.choice(_STEPS_BACK if steps_back and chance.random() < 0.7 else _STEPS))
        case _:
            return Replace()


def scripts(steps_back: bool = True, many: bool = False) -> SearchStrategy[Script]:
    """Random traffic.

    :param steps_back: whether the clock on the wall may go backwards.
    :param many: whether so many requests may come that a window no longer knows them one by one.
    """

    # One number for each action, since it is much quicker than to draw its parts, and a script still gets shorter.
    def script(start: int, actions: list[int]) -> Script:
        chance = Random(start)
        pair, told = _policies(chance, 3 * ENTRIES_MAX if many else 8)
        wall_s = chance.choice(STARTS)
        return Script(pair, wall_s, [_action(Random(number), steps_back, many) for number in actions], told)

    numbers = st.integers(0, 2**32)
    return st.builds(script, numbers, st.lists(numbers, min_size=6 if many else 20, max_size=12 if many else 60))


# -- the model -----------------------------------------------------------------------------------------------------


@dataclass
class Event:
    """One admitted request. day, month: of the calendar. gone: it was given back."""

    scopes: tuple[Scope, ...]
    at: float
    day: tuple[int, int]
    month: tuple[int, int, int]
    amounts: tuple[int, int, int, int, int]
    gone: bool = False


Found = tuple[Scope, Rule]


@dataclass
class Verdict:
    """What the model says. never: those of ``refusing`` that will not let it pass however long it waits."""

    refusing: list[Found] = field(default_factory=list)
    shadow: list[Found] = field(default_factory=list)
    never: list[Found] = field(default_factory=list)


class Model:
    """Keeps every request for ever, and adds up those that count.

    The day goes back only if the clock does so by more than a day; then nothing of the calendar counts any more.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.events: list[Event] = []
        self.day = 0
        self.setbacks = 0
        self.is_coarse = False

    def see(self, wall_s: float) -> None:
        """It is this day."""
        day = int(wall_s // DAY_S)
        if day < self.day - 1:
            self.setbacks += 1
        if day > self.day or day < self.day - 1:
            self.day = day

    @property
    def today(self) -> tuple[int, int]:
        """The day of the calendar."""
        return self.setbacks, self.day

    @property
    def month(self) -> tuple[int, int, int]:
        """The month of the calendar."""
        date = datetime.fromtimestamp(self.day * DAY_S, UTC)
        return self.setbacks, date.year, date.month

    def counted(self, scope: Scope, window: str, now: float) -> Iterator[Event]:
        """Those that count for a scope in a window."""
        policy = self.policy
        today, month = self.today, self.month
        length_s = {"minute": MINUTE_S, "day": DAY_S, "month": MONTH_S}[window]
        sliding = window == "minute" or (policy.sliding_days if window == "day" else policy.sliding_months)
        for event in self.events:
            if scope not in event.scopes:
                continue
            if (
                event.at + length_s > now
                if sliding
                else (event.day == today if window == "day" else event.month == month)
            ):
                yield event

    def used(self, scope: Scope, rule: Rule, metric: int, now: float) -> int:
        """How much of a rule is used."""
        return sum(event.amounts[metric] for event in self.counted(scope, rule.window, now) if not event.gone)

    def rules(self, scope: Scope) -> Iterator[tuple[Rule, int]]:
        """The rules of a scope in the order in which they are told, with what they count."""
        rules = self.policy.rules(*scope)
        for checks in (rules.minute, rules.day, rules.month):
            yield from ((rule, metric) for metric, _, rule in checks)

    def judge(self, ask: Ask, now: float) -> Verdict:
        """Who would refuse it."""
        verdict = Verdict()
        amounts = _amounts(1, ask.input_tokens, ask.output_tokens, ask.nano_usd)
        for scope in ask.scopes:
            for rule, metric in self.rules(scope):
                used = self.used(scope, rule, metric, now)
                first = self.policy.optimistic and metric in (TOKENS, INPUT_TOKENS, OUTPUT_TOKENS)
                if used + amounts[metric] <= rule.limit or (first and not used):
                    continue
                (verdict.shadow if rule.shadow else verdict.refusing).append((scope, rule))
                if not rule.shadow and not first and amounts[metric] > rule.limit:
                    verdict.never.append((scope, rule))
        return verdict

    def admitted(self, ask: Ask, now: float) -> Event:
        """It passes."""
        amounts = _amounts(1, ask.input_tokens, ask.output_tokens, ask.nano_usd)
        event = Event(ask.scopes, now, self.today, self.month, amounts)
        self.events.append(event)
        for scope in ask.scopes:
            for window in ("minute", "day", "month"):
                self.is_coarse |= sum(1 for _ in self.counted(scope, window, now)) > ENTRIES_MAX
        return event

    @property
    def is_exact(self) -> bool:
        """Whether a backend has to let pass whatever the model does."""
        return not self.is_coarse and not self.setbacks


def _amounts(requests: int, input_tokens: int, output_tokens: int, nano_usd: int) -> tuple[int, int, int, int, int]:
    return requests, input_tokens + output_tokens, input_tokens, output_tokens, nano_usd


# -- both of them --------------------------------------------------------------------------------------------------


class Backend(Protocol):
    """What counts."""

    def admit(self, ask: Ask, now: float, wall_s: float) -> Any:
        """A reservation, or a Refusal."""

    def replace(self, policy: Policy) -> Any:
        """Other limits."""


Make = Callable[[Policy, int], Any]
Wait = Callable[[Any], Any]


def replay(script: Script, make: Make, wait: Wait, *, reads_sums: bool = True, tick_s: float = 1e-6) -> None:
    """Play a script to a backend, and compare it with the model after each action.

    :param reads_sums: whether the backend has ``look``, which is compared too.
    :param tick_s: the shortest time that makes a difference to the backend.
    """
    _Run(script, make, wait, reads_sums, tick_s).play()


class _Run:
    def __init__(self, script: Script, make: Make, wait: Wait, reads_sums: bool, tick_s: float) -> None:
        self.script = script
        self.wait: Wait = lambda result: None if result is None else wait(result)
        self.reads_sums = reads_sums
        self.tick_s = tick_s
        self.policies = script.policies
        self.model = Model(self.policies[0])
        self.backend = make(self.policies[0], 1_000)
        self.now = 1_000.0
        self.wall_s = script.wall_s
        self.open: list[tuple[Any, Event]] = []
        self.refused: tuple[Ask, float] | None = None  # with the time on `now` at which it may pass
        self.scopes: set[Scope] = set()

    def play(self) -> None:
        for action in self.script.actions:
            self.do(action)
            self.compare_sums()

    def do(self, action: Action) -> None:
        match action:
            case Arrive():
                ask = Ask(action.scopes, action.input_tokens, action.output_tokens, action.nano_usd)
                for _ in range(action.times):
                    self.arrive(ask)
                    self.passes(action.apart_s)
                return
            case Pass(seconds):
                self.passes(seconds)
                return
            case ComeBack():
                if self.refused is not None:
                    self.come_back(*self.refused)
            case Step(seconds):
                self.wall_s += seconds
                self.passes(0.125)  # nobody sets a clock in no time
            case Settle(which, input_tokens, output_tokens, nano_usd, twice) if self.open:
                reservation, event = self.open.pop(which % len(self.open))
                self.wait(reservation.settle(input_tokens, output_tokens, nano_usd))
                event.amounts = _amounts(1, input_tokens, output_tokens, nano_usd)
                if twice:
                    self.wait(reservation.give_back())
            case GiveBack(which, twice) if self.open:
                reservation, event = self.open.pop(which % len(self.open))
                self.wait(reservation.give_back())
                event.gone = True
                if twice:
                    self.wait(reservation.settle(7, 7, 7))
            case Replace():
                self.policies = (self.policies[1], self.policies[0])
                self.model.policy = self.policies[0]
                self.wait(self.backend.replace(self.policies[0]))
        self.refused = None

    def passes(self, seconds: float) -> None:
        self.now += seconds
        self.wall_s += seconds

    def arrive(self, ask: Ask) -> bool:
        """Let a request come, to both; returns whether it was admitted."""
        model = self.model
        model.see(self.wall_s)
        self.scopes.update(ask.scopes)
        verdict = model.judge(ask, self.now)
        result = self.wait(self.backend.admit(ask, self.now, self.wall_s))
        if not isinstance(result, Refusal):
            assert not verdict.refusing, f"{ask} was admitted in spite of {verdict.refusing}"
            self.open.append((result, model.admitted(ask, self.now)))
            self.refused = None
            if model.is_exact:
                over = [(standing.scope, standing.rule) for standing in result.over_shadow or ()]
                assert over == verdict.shadow, f"over in the shadow are {verdict.shadow}, not {over}"
            return True
        self.refused = None if result.waits_s is None else (ask, self.now + result.waits_s)
        because = (result.because.scope, result.because.rule)
        if model.is_exact:
            assert verdict.refusing, f"{ask} was refused, because of {result}"
            assert because == (verdict.never or verdict.refusing)[0], f"{verdict}, but {because} is told"
            assert (result.waits_s is None) == bool(verdict.never), f"{verdict}, but {result.waits_s} is told"
        else:
            assert not because[1].shadow, f"{because} refused"
        return False

    def come_back(self, ask: Ask, may_pass: float) -> None:
        """A little too early, and in time. Nobody else comes in between."""
        waits_s = max(0.0, may_pass - self.now)
        began = self.now, self.wall_s
        if waits_s > 0.0625:
            self.passes(waits_s - 0.0625)
            assert not self.arrive(ask), f"{ask} could have passed before {waits_s} s"
        self.now, self.wall_s = began
        self.passes(waits_s + self.tick_s)
        assert self.arrive(ask), f"{ask} did not pass after {waits_s} s"
        self.now, self.wall_s = began
        self.passes(ceil((waits_s + self.tick_s) * 8) / 8)

    def compare_sums(self) -> None:
        if not self.reads_sums or not self.scopes:
            return
        model = self.model
        model.see(self.wall_s)
        for scope in self.scopes:
            standings = self.backend.look(Ask((scope,)), self.now, self.wall_s)
            told = [(standing.rule, standing.used) for standing in standings]
            known = [(rule, model.used(scope, rule, metric, self.now)) for rule, metric in model.rules(scope)]
            assert [rule for rule, _ in told] == [rule for rule, _ in known]
            if model.is_exact:
                assert told == known, f"of {scope} {known} is used, not {told}"
            for (rule, used), (_, at_least) in zip(told, known, strict=True):
                assert used >= at_least, f"of {scope} {at_least} of {rule} is used, not {used}"
