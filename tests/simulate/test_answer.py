"""What the simulated model says and what it costs."""

from __future__ import annotations

import json
from itertools import islice

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.simulate.answer import Question, Tool, answer_to, instance_of
from llmproxy.simulate.wishes import Wishes, wishes_of

_WEATHER = Tool(name="get_weather", schema={"type": "object", "properties": {"city": {"type": "string"}}})


class AnswerTests(SynchronousTestCase):
    """One question, one answer."""

    def test_the_same_prompt_gives_the_same_answer(self) -> None:
        """Text and counts depend on the prompt alone; another prompt gives another text."""
        first, second, other = (answer_to(Question(texts=[t]), Wishes()) for t in ("hi", "hi", "hello"))
        self.assertEqual(first, second)
        self.assertEqual(first.text(), second.text())
        self.assertNotEqual(first.text(), other.text())

    @given(st.integers(0, 20_000), st.none() | st.integers(0, 300))
    def test_bytes_are_exact(self, size: int, events: int | None) -> None:
        """`bytes=N` gives N bytes, in as many pieces as `events` says."""
        answer = answer_to(Question(texts=["x"]), Wishes(text_bytes=size, events=events))
        pieces = list(answer.pieces())
        self.assertEqual(len("".join(pieces).encode()), size)
        self.assertEqual(len(pieces), answer.count)
        if events:
            self.assertEqual(len(pieces), events)
        self.assertEqual(answer.text_tokens, -(-size // 4))

    def test_a_huge_answer_is_not_made_ahead(self) -> None:
        """A terabyte can be asked for: its pieces are made one by one."""
        answer = answer_to(Question(texts=["x"]), wishes_of(f"bytes={1 << 40}"))
        self.assertEqual([len(piece) for piece in islice(answer.pieces(), 3)], [4096, 4096, 4096])

    @given(st.integers(1, 60), st.booleans())
    def test_the_limit_holds(self, limit: int, thinks: bool) -> None:
        """An answer with its thoughts never costs more than the caller's limit, and says when it was cut."""
        question = Question(texts=["tell me"], thinks=thinks)
        free = answer_to(question, Wishes())
        answer = answer_to(Question(texts=["tell me"], thinks=thinks, max_tokens=limit), Wishes())
        self.assertLessEqual(answer.output_tokens, limit)
        self.assertEqual(answer.stop, "length" if answer.text_tokens < free.text_tokens else "stop")

    def test_wishes_win_over_the_limit(self) -> None:
        """Whoever asks for 50 events gets 50, whatever `max_tokens` says."""
        answer = answer_to(Question(texts=["x"], max_tokens=3), wishes_of("events=50"))
        self.assertEqual((answer.text_tokens, answer.stop), (50, "stop"))

    def test_long_prompts_are_cached(self) -> None:
        """Below 1,024 tokens nothing is cached; above, a multiple of 128; `cached` decides when asked."""
        self.assertEqual(answer_to(Question(texts=["x" * 4000]), Wishes()).cached_tokens, 0)
        long = answer_to(Question(texts=["x" * 8000]), Wishes())
        self.assertGreater(long.cached_tokens, 0)
        self.assertEqual(long.cached_tokens % 128, 0)
        self.assertEqual(answer_to(Question(texts=["x" * 8000]), wishes_of("cached=5")).cached_tokens, 5)
        self.assertEqual(answer_to(Question(texts=["x"]), wishes_of("cached=500")).prompt_tokens, 500)

    def test_literal_answers_come_back_whole(self) -> None:
        """A structured answer, put together from its pieces, is the JSON of the schema."""
        answer = answer_to(Question(texts=["x"], schema=_WEATHER.schema), Wishes())
        self.assertEqual(json.loads("".join(answer.pieces())), {"city": "river"})


class ToolTests(SynchronousTestCase):
    """When a tool is called."""

    def _called(self, asked: str, choice: str = "auto", *, after_tool: bool = False) -> bool:
        question = Question(texts=[asked], asked=asked, tools=[_WEATHER], tool_choice=choice, after_tool=after_tool)
        return answer_to(question, Wishes()).call is not None

    def test_when_the_prompt_speaks_of_it(self) -> None:
        """A prompt about the weather calls get_weather; one about something else does not."""
        self.assertTrue(self._called("How is the Weather in Turin?"))
        self.assertTrue(self._called("use a tool"))
        self.assertFalse(self._called("hello"))

    def test_when_the_choice_says_so(self) -> None:
        """`required` and a name force the call; `none` forbids it."""
        self.assertTrue(self._called("hello", "required"))
        self.assertTrue(self._called("hello", "=get_weather"))
        self.assertFalse(self._called("weather", "none"))

    def test_not_again_after_its_result(self) -> None:
        """A conversation with a tool ends: after the result the model answers in words."""
        self.assertFalse(self._called("weather: sunny", after_tool=True))

    def test_arguments_fit_the_schema(self) -> None:
        """Each kind of schema gets a value it accepts, and a recursive one ends."""
        schema = {
            "type": "object",
            "properties": {
                "unit": {"enum": ["C", "F"]}, "days": {"type": "integer", "minimum": 3}, "deep": {"type": "number"},
                "on": {"type": "boolean"}, "tags": {"type": "array", "items": {"type": "string"}},
                "maybe": {"anyOf": [{"type": "null"}, {"type": "string"}]}, "fixed": {"const": 5},
                "inner": {"$ref": "#/$defs/Inner"}, "nullable": {"type": ["string", "null"]}, "big": {"type": "STRING"},
            },
            "$defs": {"Inner": {"properties": {"again": {"$ref": "#/$defs/Inner"}}}},
        }  # fmt: skip
        made = instance_of(schema)
        inner = made.pop("inner")
        self.assertEqual(
            made,
            {"unit": "C", "days": 3, "deep": 7.5, "on": True, "tags": ["river"], "maybe": None, "fixed": 5,
             "nullable": "river", "big": "river"},
        )  # fmt: skip
        self.assertIn("again", inner)
