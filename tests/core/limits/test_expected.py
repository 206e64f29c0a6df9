"""What is reserved for an answer before it is there."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.core.limits.expected import ExpectedOutput


class ExpectedTests(SynchronousTestCase):
    """How long answers are expected to be."""

    def test_what_the_caller_takes(self) -> None:
        """Where the caller says how much it takes, that is reserved, whatever answers were; but not without end."""
        expected = ExpectedOutput(1_000, 16_000)
        for _ in range(20):
            expected.learn("openai", "gpt-5", 100)
        for max_tokens, reserved in ((0, 0), (1, 1), (5_000, 5_000), (16_001, 16_000), (10**15, 16_000)):
            self.assertEqual(expected.tokens("openai", "gpt-5", max_tokens), reserved)

    def test_the_default_until_something_is_known(self) -> None:
        """Four answers are not enough to overrule the configuration; five are, for this model of this provider."""
        expected = ExpectedOutput(1_000, 16_000)
        for _ in range(4):
            expected.learn("openai", "gpt-5", 100)
            self.assertEqual(expected.tokens("openai", "gpt-5", None), 1_000)
        expected.learn("openai", "gpt-5", 100)
        self.assertEqual(expected.tokens("openai", "gpt-5", None), 101)
        self.assertEqual(expected.tokens("openai", "gpt-4", None), 1_000)
        self.assertEqual(expected.tokens("groq", "gpt-5", None), 1_000)
        self.assertEqual(ExpectedOutput(1_000, 10).tokens("openai", "gpt-5", None), 10)

    def test_most_answers_come_to_less(self) -> None:
        """At least nine answers of ten are not longer than what was reserved, which is not ten times as much."""
        for seed in range(5):
            chance = random.Random(seed)
            expected = ExpectedOutput(1_000, 16_000)
            less = 0
            for number in range(500):
                tokens = round(chance.gauss(800, 250)) if seed else chance.randint(1, 1_000)
                less += number >= 50 and expected.tokens("p", "m", None) >= tokens
                expected.learn("p", "m", max(0, tokens))
            self.assertGreaterEqual(less, 0.9 * 450)
            self.assertLess(expected.tokens("p", "m", None), 3_000)

    def test_it_follows(self) -> None:
        """A model that begins to answer at length, or in short, is expected to do so after a hundred answers."""
        expected = ExpectedOutput(1_000, 16_000)
        for tokens in (50, 5_000, 50):
            for _ in range(100):
                expected.learn("p", "m", tokens)
            self.assertLess(abs(expected.tokens("p", "m", None) - tokens), 0.2 * tokens + 400)

    @settings(max_examples=100, deadline=None)
    @given(
        st.integers(0, 10**6),
        st.integers(0, 10**6),
        st.lists(st.integers(0, 10**18), max_size=30),
        st.none() | st.integers(0, 10**18),
    )
    def test_bounded(self, default: int, most: int, answers: list[int], max_tokens: int | None) -> None:
        """Whatever is asked and however absurd an answer was: never less than nothing, never more than the bound."""
        expected = ExpectedOutput(default, most)
        for tokens in answers:
            expected.learn("p", "m", tokens)
        self.assertTrue(0 <= expected.tokens("p", "m", max_tokens) <= most)

    def test_made_up_models(self) -> None:
        """However many models are named, the ones that are in use are remembered."""
        expected = ExpectedOutput(1_000, 16_000)
        for number in range(5_000):
            expected.learn("p", "in use", 10)
            expected.learn("p", f"made up {number}", 10)
        self.assertEqual(expected.tokens("p", "in use", None), 11)
        self.assertLessEqual(len(expected._models), 1_000)
