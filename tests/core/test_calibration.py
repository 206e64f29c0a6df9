"""Estimates that get better with every answer that was counted."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.core.calibration import Calibration
from llmproxy.core.estimation import RequestText


class OutputTests(SynchronousTestCase):
    """The text of answers."""

    def test_the_default_until_something_is_known(self) -> None:
        """Two answers are not enough to overrule the configuration; three are."""
        calibration = Calibration()
        for _ in range(2):
            calibration.learn_output("openai", "a", 200, 20, 100)
            self.assertEqual(calibration.estimate_output("openai", "a", 100, 10, 5), 20)
        calibration.learn_output("openai", "a", 200, 20, 100)
        self.assertEqual(calibration.estimate_output("openai", "a", 100, 10, 5), 50)
        self.assertEqual(calibration.estimate_output("openai", "b", 100, 10, 5), 20)
        self.assertEqual(calibration.estimate_output("groq", "a", 100, 10, 5), 20)

    def test_the_better_signal_is_taken(self) -> None:
        """Where an event is a token, events are counted; where events are as they fall, characters are."""
        chance = random.Random(1)
        calibration = Calibration()
        for _ in range(50):
            tokens = chance.randint(50, 500)
            calibration.learn_output("p", "by-event", tokens * chance.randint(2, 8), tokens, tokens)
            calibration.learn_output("p", "by-text", tokens * 4, chance.randint(2, 100), tokens)
        self.assertEqual(calibration.estimate_output("p", "by-event", 10_000, 70, 4), 70)
        self.assertEqual(calibration.estimate_output("p", "by-text", 400, 3, 5), 100)

    def test_one_event_says_nothing_of_events(self) -> None:
        """A whole answer is no stream of one event: its text is what counts."""
        calibration = Calibration()
        for tokens in (100, 1000, 10, 500):
            calibration.learn_output("p", "m", tokens * 4, 1, tokens)
        self.assertNotIn("output_tokens_per_event", calibration.export()["p"]["m"])
        self.assertEqual(calibration.estimate_output("p", "m", 400, 1, 2), 100)
        self.assertEqual(calibration.estimate_output("p", "m", 400, 300, 2), 100)

    def test_one_absurd_answer_does_no_lasting_harm(self) -> None:
        """A wrong counter is bounded: at most fifty characters a token, at least a fifth of one."""
        calibration = Calibration()
        for tokens in (10**15, 1):
            for model in ("m", str(tokens)):
                calibration.learn_output("p", model, 1000, 1, tokens)
        figures = calibration.export()["p"]
        self.assertEqual(figures[str(10**15)]["output_characters_per_token"], 0.2)
        self.assertEqual(figures["1"]["output_characters_per_token"], 50)
        for _ in range(500):
            calibration.learn_output("p", "m", 1000, 1, 250)
        self.assertEqual(round(calibration.export()["p"]["m"]["output_characters_per_token"], 1), 4.0)

    def test_nothing_is_nothing(self) -> None:
        """No text and no events are no tokens; nothing is learned from an answer without text or without a count."""
        calibration = Calibration()
        self.assertEqual(calibration.estimate_output("p", "m", 0, 0, 4), 0)
        calibration.learn_output("p", "m", 0, 0, 5)
        calibration.learn_output("p", "m", 5, 1, 0)
        self.assertEqual(calibration.export(), {})

    @settings(max_examples=50, deadline=None)
    @given(st.floats(0.5, 20), st.lists(st.integers(100, 3000), min_size=20, max_size=80))
    def test_it_finds_the_true_ratio(self, ratio: float, answers: list[int]) -> None:
        """Whatever a model's tokens are, estimates come to within some percent of them."""
        calibration = Calibration()
        for tokens in answers:
            calibration.learn_output("p", "m", round(tokens * ratio), 1, tokens)
        estimate = calibration.estimate_output("p", "m", round(1000 * ratio), 1, 4)
        self.assertLess(abs(estimate - 1000), 20)
        self.assertLess(calibration.export()["p"]["m"]["output_error"], 0.02)

    @settings(max_examples=100, deadline=None)
    @given(
        st.lists(st.tuples(st.integers(-5, 10**9), st.integers(-5, 10**6), st.integers(-5, 10**9)), max_size=20),
        st.integers(0, 10**9),
        st.integers(0, 10**6),
        st.floats(0, 100),
    )
    def test_never_free_and_never_negative(
        self, learned: list[tuple[int, int, int]], characters: int, events: int, default: float
    ) -> None:
        """Text that was delivered is at least one token, whatever was learned before."""
        calibration = Calibration()
        for each in learned:
            calibration.learn_output("p", "m", *each)
        estimate = calibration.estimate_output("p", "m", characters, events, default)
        self.assertEqual(estimate > 0, bool(characters or events))
        for figure in calibration.export().get("p", {}).get("m", {}).values():
            self.assertGreaterEqual(figure, 0)


class InputTests(SynchronousTestCase):
    """The text of requests."""

    def test_the_text_is_learned_without_what_is_added_to_it(self) -> None:
        """What providers add for messages and tools is not taken for text."""
        calibration = Calibration()
        text = RequestText(characters=1000, messages=2, tools=1)
        for _ in range(3):
            # 4 for each message, 12 for the tool, 3 before the answer: 500 are left for 1000 characters
            calibration.learn_input("p", "m", text, 500 + 2 * 4 + 12 + 3)
        self.assertEqual(calibration.export()["p"]["m"]["input_characters_per_token"], 2)
        self.assertEqual(calibration.estimate_input("p", "m", text, 4), 523)
        self.assertEqual(calibration.estimate_input("p", "m", RequestText(characters=100, messages=1), 4), 57)

    def test_the_default_until_something_is_known(self) -> None:
        """A model that was not seen is estimated by what is configured."""
        self.assertEqual(Calibration().estimate_input("p", "m", RequestText(characters=100, messages=1), 5), 27)

    def test_what_teaches_nothing(self) -> None:
        """Attachments, ids of tokens and bodies that could not be read do not spoil the figure for text."""
        calibration = Calibration()
        for text in (
            RequestText(characters=10, messages=1, attachments=1, images=1),
            RequestText(characters=10, messages=1, token_ids=5),
            RequestText(characters=10, messages=1, unread=True),
            RequestText(messages=1),
        ):
            calibration.learn_input("p", "m", text, 100)
        calibration.learn_input("p", "m", RequestText(characters=10, messages=1), 0)
        self.assertEqual(calibration.export(), {})


class BoundTests(SynchronousTestCase):
    """What is kept."""

    @settings(max_examples=50, deadline=None)
    @given(st.integers(1, 5), st.lists(st.integers(0, 12), max_size=60))
    def test_the_least_recently_learned_goes(self, most: int, models: list[int]) -> None:
        """However many models are named, only so many are remembered: the last ones."""
        calibration = Calibration(most)
        for model in models:
            calibration.learn_output("p", str(model), 40, 2, 10)
        last: list[str] = []
        for model in reversed(models):
            if str(model) not in last:
                last.append(str(model))
        self.assertEqual(set(calibration.export().get("p", {})), set(last[:most]))

    def test_export(self) -> None:
        """An operator sees how good the estimates are."""
        calibration = Calibration()
        calibration.learn_output("p", "m", 400, 50, 100)  # 4 characters a token
        calibration.learn_output("p", "m", 400, 50, 200)  # it would have been 100: 50 % off
        self.assertEqual(
            calibration.export(),
            # sums: 0.98 * 400 + 400 = 792 characters, 0.98 * 50 + 50 = 99 events, 0.98 * 100 + 200 = 298 tokens
            {
                "p": {
                    "m": {
                        "output_characters_per_token": round(792 / 298, 4),
                        "output_error": 0.5,
                        "output_samples": 2,
                        "output_tokens_per_event": round(298 / 99, 4),
                        "output_event_error": 0.5,
                        "output_event_samples": 2,
                    }
                }
            },
        )
