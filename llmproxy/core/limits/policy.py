"""Which limits hold for whom.

A request has up to five scopes: all requests, its provider, its model, its key, its user. Each scope is counted by
itself, and each has its own limits: those of `limits`, in their place those of `defaults` for each identity of a kind,
in their place those of `overrides` for one identity by name. The rule: field by field, the most particular one that
says anything holds; `unlimited` says something, 0 does not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Final

import msgspec

GLOBAL: Final = "global"
PROVIDER: Final = "provider"
MODEL: Final = "model"
KEY: Final = "key"
USER: Final = "user"

KINDS: Final = (GLOBAL, PROVIDER, MODEL, KEY, USER)
"""In the order in which limits are looked at; of several that refuse, the first one is told."""

UNKNOWN_MODEL: Final = "unknown"
"""The model of a request that names none, or whose body could not be looked at: it has limits of its own."""

UNLIMITED: Final = -1

# What is counted. The numbers are places in what a window has used and in what a request asks for.
REQUESTS, TOKENS, INPUT_TOKENS, OUTPUT_TOKENS, NANO_USD = range(5)
CONCURRENT: Final = 5
METRICS: Final = ("requests", "tokens", "input_tokens", "output_tokens", "usd", "concurrent_requests")

MINUTE: Final = "minute"
DAY: Final = "day"
MONTH: Final = "month"
MINUTE_S: Final = 60.0
DAY_S: Final = 86_400.0
MONTH_S: Final = 30 * DAY_S
"""Of a sliding one."""

_FIELDS: Final[Mapping[str, tuple[int, str]]] = MappingProxyType(
    {
        # Of one window requests come before tokens: where both are used up, that is what is told.
        "requests_per_minute": (REQUESTS, MINUTE),
        "tokens_per_minute": (TOKENS, MINUTE),
        "input_tokens_per_minute": (INPUT_TOKENS, MINUTE),
        "output_tokens_per_minute": (OUTPUT_TOKENS, MINUTE),
        "requests_per_day": (REQUESTS, DAY),
        "tokens_per_day": (TOKENS, DAY),
        "nano_usd_per_day": (NANO_USD, DAY),
        "nano_usd_per_month": (NANO_USD, MONTH),
        "concurrent_requests": (CONCURRENT, ""),
    }
)

SHORT_ID_CHARACTERS: Final = 12
_MODELS_KEPT: Final = 4_096


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What one level says. 0: nothing; UNLIMITED: there is no limit. Money is in nano-dollars.

    shadow: these limits are counted and told, and refuse nobody; None: as the whole policy.
    """

    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    input_tokens_per_minute: int = 0
    output_tokens_per_minute: int = 0
    requests_per_day: int = 0
    tokens_per_day: int = 0
    concurrent_requests: int = 0
    nano_usd_per_day: int = 0
    nano_usd_per_month: int = 0
    shadow: bool | None = None


NO_LIMITS: Final = Limits()


class Rule(msgspec.Struct, frozen=True):
    """One limit of one kind of scope.

    field: as it is called in the configuration. metric: one of METRICS, by place. window: MINUTE, DAY, MONTH, or "".
    limit: how much; above 0. shadow: it refuses nobody.
    """

    kind: str
    field: str
    metric: int
    window: str
    limit: int
    shadow: bool

    @property
    def metric_name(self) -> str:
        """What is counted, for people."""
        return METRICS[self.metric]


Check = tuple[int, int, Rule]
"""What is looked at for a rule: the place of what it counts, the limit, the rule itself."""
Checks = tuple[Check, ...]


class ScopeRules(msgspec.Struct, frozen=True):
    """All rules of one identity, by window.

    name: the name, or the pattern, of the override that they come from; "": of none.
    """

    minute: Checks = ()
    day: Checks = ()
    month: Checks = ()
    concurrent: Rule | None = None
    name: str = ""

    @property
    def counts(self) -> bool:
        """Whether there is anything to count in a window."""
        return bool(self.minute or self.day or self.month)

    def every(self) -> Iterator[Rule]:
        """Each rule."""
        for checks in (self.minute, self.day, self.month):
            for _, _, rule in checks:
                yield rule
        if self.concurrent is not None:
            yield self.concurrent


NO_RULES: Final = ScopeRules()


class Policy:
    """All limits of a configuration.

    :param base: for each scope of whatever kind. defaults: by kind. overrides: by kind, by name; names of models may
        be patterns with ``*``, of which the one with the most other characters holds; a name that is there as it is
        goes before all patterns. Names of keys are credential ids or their first SHORT_ID_CHARACTERS.
    :param shadow: what holds where a level does not say.
    :param count_output: whether `tokens_per_*` are input and output; else they are the input.
    :param optimistic: a request with tokens passes the limits of tokens where none are counted yet, whatever it asks.
    :param sliding_days: a day is the last 24 hours; else it is a day of the calendar, UTC. sliding_months: likewise.
    """

    def __init__(
        self,
        base: Limits = NO_LIMITS,
        defaults: Mapping[str, Limits] | None = None,
        overrides: Mapping[str, Mapping[str, Limits]] | None = None,
        *,
        shadow: bool = False,
        count_output: bool = True,
        optimistic: bool = True,
        sliding_days: bool = False,
        sliding_months: bool = False,
    ) -> None:
        self.optimistic = optimistic
        self.sliding_days = sliding_days
        self.sliding_months = sliding_months
        self._shadow = shadow
        self._count_output = count_output
        self._of_kind: dict[str, ScopeRules] = {}
        self._named: dict[str, dict[str, ScopeRules]] = {}
        for kind in KINDS:
            levels = ((defaults or {}).get(kind, NO_LIMITS), base)
            self._of_kind[kind] = self._rules(kind, "", levels)
            self._named[kind] = {
                name: self._rules(kind, name, (limits, *levels))
                for name, limits in (overrides or {}).get(kind, {}).items()
            }
        self._patterns = [
            (_pattern(name), self._named[MODEL].pop(name))
            for name in sorted((name for name in self._named[MODEL] if "*" in name), key=_specific, reverse=True)
        ]
        self._matched: dict[str, ScopeRules] = {}
        self._short_keys = any(len(name) == SHORT_ID_CHARACTERS for name in self._named[KEY])
        every = [
            *self._of_kind.values(),
            *(rules for named in self._named.values() for rules in named.values()),
            *(rules for _, rules in self._patterns),
        ]
        used = {rule.metric for rules in every for rule in rules.every()}
        self.counts_tokens = bool(used & {TOKENS, INPUT_TOKENS, OUTPUT_TOKENS})
        self.counts_money = NANO_USD in used
        self.counts_concurrency = CONCURRENT in used
        self.counts = bool(used - {CONCURRENT})

    def rules(self, kind: str, identity: str) -> ScopeRules:
        """What holds for one identity of a kind; NO_RULES where nothing does."""
        named = self._named[kind]
        found = named.get(identity) if named else None
        if found is None and kind == KEY and self._short_keys:
            found = named.get(identity[:SHORT_ID_CHARACTERS])
        if found is None and kind == MODEL and self._patterns:
            found = self._matching(identity)
        return self._of_kind[kind] if found is None else found

    def _matching(self, model: str) -> ScopeRules:
        found = self._matched.get(model)
        if found is None:
            found = next((rules for pattern, rules in self._patterns if pattern.fullmatch(model)), self._of_kind[MODEL])
            if len(self._matched) >= _MODELS_KEPT:
                self._matched.clear()  # made-up names must not fill the memory
            self._matched[model] = found
        return found

    def _rules(self, kind: str, name: str, levels: tuple[Limits, ...]) -> ScopeRules:
        by_window: dict[str, list[tuple[int, int, Rule]]] = {MINUTE: [], DAY: [], MONTH: []}
        concurrent: Rule | None = None
        for field, (metric, window) in _FIELDS.items():
            level = next((level for level in levels if getattr(level, field)), None)
            if level is None or (limit := getattr(level, field)) == UNLIMITED:
                continue
            shadow = self._shadow if level.shadow is None else level.shadow
            rule = Rule(kind, field, metric, window, limit, shadow)
            if metric == CONCURRENT:
                concurrent = rule
            else:
                counted = INPUT_TOKENS if metric == TOKENS and not self._count_output else metric
                by_window[window].append((counted, limit, rule))
        return ScopeRules(tuple(by_window[MINUTE]), tuple(by_window[DAY]), tuple(by_window[MONTH]), concurrent, name)


def _specific(pattern: str) -> tuple[int, str]:
    return len(pattern.replace("*", "")), pattern


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(".*".join(re.escape(part) for part in name.split("*")), re.DOTALL)
