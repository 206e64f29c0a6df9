"""Which limits hold for whom."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.core.limits.policy import (
    GLOBAL,
    INPUT_TOKENS,
    KEY,
    KINDS,
    METRICS,
    MODEL,
    NO_LIMITS,
    NO_RULES,
    PROVIDER,
    TOKENS,
    UNLIMITED,
    USER,
    Limits,
    Policy,
    ScopeRules,
)

FIELDS = tuple(field for field in Limits.__struct_fields__ if field != "shadow")


def told(rules: ScopeRules) -> dict[str, int]:
    """The limits, by field."""
    return {rule.field: rule.limit for rule in rules.every()}


class LevelTests(SynchronousTestCase):
    """Limits, defaults and overrides."""

    def test_no_limits(self) -> None:
        """Where nothing is said, nothing is limited."""
        policy = Policy()
        for kind in KINDS:
            self.assertEqual(policy.rules(kind, "x"), NO_RULES)
            self.assertFalse(policy.rules(kind, "x").counts)
        self.assertFalse(policy.counts or policy.counts_tokens or policy.counts_money or policy.counts_concurrency)

    def test_base(self) -> None:
        """What is said for all holds for each: all requests, and every provider, model, key and user by itself."""
        policy = Policy(Limits(requests_per_minute=5, concurrent_requests=2))
        for kind in KINDS:
            self.assertEqual(told(policy.rules(kind, "x")), {"requests_per_minute": 5, "concurrent_requests": 2})
            self.assertEqual({rule.kind for rule in policy.rules(kind, "x").every()}, {kind})

    def test_field_by_field(self) -> None:
        """The most particular level that says anything of a limit holds: the name, the kind, all."""
        policy = Policy(
            Limits(requests_per_minute=1, tokens_per_minute=1, requests_per_day=1),
            {USER: Limits(tokens_per_minute=2, requests_per_day=2)},
            {USER: {"alice": Limits(requests_per_day=3)}},
        )
        self.assertEqual(
            told(policy.rules(USER, "alice")),
            {"requests_per_minute": 1, "tokens_per_minute": 2, "requests_per_day": 3},
        )
        self.assertEqual(policy.rules(USER, "alice").name, "alice")
        self.assertEqual(
            told(policy.rules(USER, "bob")), {"requests_per_minute": 1, "tokens_per_minute": 2, "requests_per_day": 2}
        )
        self.assertEqual(policy.rules(USER, "bob").name, "")
        self.assertEqual(told(policy.rules(KEY, "alice")), dict.fromkeys(told(policy.rules(USER, "bob")), 1))

    def test_unlimited(self) -> None:
        """Unlimited takes a limit away that a level below says; 0 leaves it as it is."""
        policy = Policy(
            Limits(requests_per_minute=1, tokens_per_day=1),
            {USER: Limits(requests_per_minute=UNLIMITED)},
            {USER: {"alice": Limits(requests_per_minute=7), "bob": Limits(tokens_per_day=UNLIMITED)}},
        )
        self.assertEqual(told(policy.rules(USER, "carol")), {"tokens_per_day": 1})
        self.assertEqual(told(policy.rules(USER, "alice")), {"requests_per_minute": 7, "tokens_per_day": 1})
        self.assertEqual(told(policy.rules(USER, "bob")), {})

    def test_shadow(self) -> None:
        """Each limit is in the shadow or not as the level says that it comes from; else as all of them."""
        for whole in (True, False):
            policy = Policy(
                Limits(requests_per_minute=1, requests_per_day=1, tokens_per_day=1),
                {USER: Limits(requests_per_day=2, shadow=not whole)},
                {USER: {"alice": Limits(tokens_per_day=3)}},
                shadow=whole,
            )
            self.assertEqual(
                {rule.field: rule.shadow for rule in policy.rules(USER, "alice").every()},
                {"requests_per_minute": whole, "requests_per_day": not whole, "tokens_per_day": whole},
            )

    _LIMITS = st.builds(Limits, **{field: st.sampled_from((0, 0, 3, UNLIMITED)) for field in FIELDS})

    @settings(max_examples=100, deadline=None)
    @given(_LIMITS, _LIMITS, _LIMITS, st.sampled_from(KINDS))
    def test_any_levels(self, base: Limits, default: Limits, override: Limits, kind: str) -> None:
        """Whatever the levels say, each field is what the first of them says that says anything."""
        policy = Policy(base, {kind: default}, {kind: {"x": override}})
        expected: dict[str, int] = {}
        for field in FIELDS:
            said = [getattr(level, field) for level in (override, default, base) if getattr(level, field)]
            if said and said[0] != UNLIMITED:
                expected[field] = said[0]
        rules = policy.rules(kind, "x")
        self.assertEqual(told(rules), expected)
        self.assertEqual(rules.counts, bool(set(expected) - {"concurrent_requests"}))


class NameTests(SynchronousTestCase):
    """Who has limits of its own."""

    def limit(self, policy: Policy, kind: str, name: str) -> int | None:
        """How many requests a minute."""
        return told(policy.rules(kind, name)).get("requests_per_minute")

    def test_patterns(self) -> None:
        """Of several patterns of models the one with the most letters holds, and a name before all patterns."""
        patterns = ("*", "gpt-*", "gpt-5*", "*-mini", "gpt-5-mini", "a.b*")
        overrides = {name: Limits(requests_per_minute=number) for number, name in enumerate(patterns, 1)}
        policy = Policy(overrides={MODEL: overrides})
        for _ in range(2):
            for model, limit in (
                *(("o5", 1), ("", 1), ("gpt-4", 2), ("gpt-", 2), ("gpt-5", 3), ("gpt-5-large", 3)),
                *(("o5-mini", 4), ("gpt-5-mini", 5), ("gpt-5.1-mini", 3), ("my-gpt-5", 1), ("gpt-4\nx", 2)),
                *(("a.b", 6), ("a.b*", 6), ("axb", 1), ("GPT-4", 1)),
            ):
                self.assertEqual(self.limit(policy, MODEL, model), limit, model)
        self.assertEqual(policy.rules(MODEL, "gpt-4").name, "gpt-*")

    def test_only_models_have_patterns(self) -> None:
        """A star in the name of a user is a star."""
        policy = Policy(overrides={USER: {"a*": Limits(requests_per_minute=1)}})
        self.assertEqual(self.limit(policy, USER, "a*"), 1)
        self.assertIsNone(self.limit(policy, USER, "ab"))

    def test_keys(self) -> None:
        """A key is named by its whole id or by the short one that is printed; the whole one goes before."""
        whole, short = "0123456789ab" + "c" * 52, "0123456789ab"
        policy = Policy(
            overrides={KEY: {whole: Limits(requests_per_minute=1), short: Limits(requests_per_minute=2)}},
        )
        self.assertEqual(self.limit(policy, KEY, whole), 1)
        self.assertEqual(self.limit(policy, KEY, short + "d" * 52), 2)
        self.assertIsNone(self.limit(policy, KEY, "1" + whole))
        self.assertIsNone(self.limit(policy, USER, short + "d" * 52))

    def test_made_up_models(self) -> None:
        """However many models are named, their limits are right, and what is remembered of them is bounded."""
        policy = Policy(overrides={MODEL: {"gpt*": Limits(requests_per_minute=1)}})
        for number in range(10_000):
            self.assertEqual(self.limit(policy, MODEL, f"gpt{number}"), 1)
            self.assertIsNone(self.limit(policy, MODEL, f"o{number}"))
        self.assertLessEqual(len(policy._matched), 4_096)


class RuleTests(SynchronousTestCase):
    """What a limit counts."""

    def test_order(self) -> None:
        """Limits are told by window, requests before tokens, money last; those of requests at a time come after."""
        rules = Policy(replace(NO_LIMITS, **dict.fromkeys(FIELDS, 1))).rules(USER, "x")
        self.assertEqual(
            [(rule.window, rule.metric_name) for rule in rules.every()],
            [
                *(("minute", metric) for metric in ("requests", "tokens", "input_tokens", "output_tokens")),
                *(("day", metric) for metric in ("requests", "tokens", "usd")),
                ("month", "usd"),
                ("", "concurrent_requests"),
            ],
        )
        for checks, window in ((rules.minute, "minute"), (rules.day, "day"), (rules.month, "month")):
            for metric, limit, rule in checks:
                self.assertEqual((metric, limit, window), (rule.metric, rule.limit, rule.window))

    def test_input_alone(self) -> None:
        """Where output does not count, a limit of tokens is told as such and counts the input."""
        for count_output, metric in ((True, TOKENS), (False, INPUT_TOKENS)):
            policy = Policy(Limits(tokens_per_minute=5, tokens_per_day=6), count_output=count_output)
            rules = policy.rules(GLOBAL, "")
            self.assertEqual([check[:2] for check in rules.minute + rules.day], [(metric, 5), (metric, 6)])
            self.assertEqual({rule.metric_name for rule in rules.every()}, {"tokens"})

    def test_what_has_to_be_known(self) -> None:
        """Whether tokens, money or requests at a time have to be counted at all is known beforehand."""
        for field in FIELDS:
            for where in range(3):
                limits = replace(NO_LIMITS, **{field: 1})
                policy = (
                    Policy(limits),
                    Policy(defaults={PROVIDER: limits}),
                    Policy(overrides={MODEL: {"gpt*": limits}}),
                )[where]
                self.assertEqual(policy.counts_tokens, "tokens" in field)
                self.assertEqual(policy.counts_money, "usd" in field)
                self.assertEqual(policy.counts_concurrency, "concurrent" in field)
                self.assertEqual(policy.counts, "concurrent" not in field)
        self.assertFalse(Policy(Limits(requests_per_day=UNLIMITED)).counts)
        self.assertEqual(len(METRICS), 6)
