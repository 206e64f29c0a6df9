"""What is asked of the limits, and what they say."""

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.core.limits.decision import Refusal, Standing, scope_name, scopes_of
from llmproxy.core.limits.policy import CONCURRENT, KINDS, MINUTE, REQUESTS, USER, Rule

RULE = Rule(USER, "requests_per_minute", REQUESTS, MINUTE, 10, False)


class ScopeTests(SynchronousTestCase):
    """Whose limits concern a request."""

    def test_scopes(self) -> None:
        """All requests, the provider, the model, the key, the user: in this order, and who is not known is left out."""
        self.assertEqual(
            scopes_of("openai", "gpt-5", "k" * 64, "alice"),
            (("global", ""), ("provider", "openai"), ("model", "gpt-5"), ("key", "k" * 64), ("user", "alice")),
        )
        for nothing in (None, ""):
            self.assertEqual(
                scopes_of("openai", nothing, nothing, nothing),
                (("global", ""), ("provider", "openai"), ("model", "unknown")),
            )

    @given(*[st.none() | st.text(max_size=3)] * 3)
    def test_always_in_order(self, model: str | None, key: str | None, user: str | None) -> None:
        """Whoever asks, the scopes of a request are in the order in which they are told, each one once."""
        kinds = [KINDS.index(kind) for kind, _ in scopes_of("groq", model, key, user)]
        self.assertEqual(kinds, sorted(set(kinds)))
        self.assertEqual(kinds[:3], [0, 1, 2])

    def test_names(self) -> None:
        """A scope is told by its kind and its name; a key by the short form of its id."""
        self.assertEqual(
            [scope_name(scope) for scope in scopes_of("openai", "gpt-5", "0123456789abcdef" * 4, "alice")],
            ["global", "provider:openai", "model:gpt-5", "key:0123456789ab", "user:alice"],
        )


class StandingTests(SynchronousTestCase):
    """How one rule stands."""

    def test_remaining(self) -> None:
        """What is left is never less than nothing, however much was used."""
        for used, remaining in ((0, 10), (10, 0), (11, 0), (10**9, 0)):
            self.assertEqual(Standing((USER, "a"), RULE, used, 1, 5.0).remaining, remaining)

    def test_passes(self) -> None:
        """A request passes a rule that it does not have to wait for."""
        for waits_s, passes in ((0.0, True), (0.1, False), (None, False)):
            self.assertEqual(Standing((USER, "a"), RULE, 1, 1, 5.0, waits_s).passes, passes)

    def test_too_many_at_a_time(self) -> None:
        """A refusal says whether there are too many requests at the same time, or in some time."""
        concurrent = Rule(USER, "concurrent_requests", CONCURRENT, "", 10, False)
        for rule, is_over, name in ((RULE, False, "requests"), (concurrent, True, "concurrent_requests")):
            refusal = Refusal(Standing((USER, "a"), rule, 10, 1, 1.0, 1.0), 1.0)
            self.assertEqual((refusal.is_over_concurrency, rule.metric_name), (is_over, name))
