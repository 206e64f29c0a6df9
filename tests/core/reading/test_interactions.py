"""Gemini's Interactions."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from llmproxy.core.reading.interactions import Interactions
from llmproxy.core.usage import Counters, Reading, Usage
from tests.core.reading.recorded_gemini import as_json

# Gemini API reference, "Interactions", Usage.
COUNTED = {
    "total_input_tokens": 50,
    "total_cached_tokens": 20,
    "total_output_tokens": 8,
    "total_thought_tokens": 4,
    "total_tool_use_tokens": 2,
    "input_tokens_by_modality": [{"modality": "image", "tokens": 10}],
    "grounding_tool_count": [{"type": "google_search", "count": 3}],
}
USAGE = Usage(
    input_tokens=30,
    cache_read_tokens=20,
    tool_use_tokens=2,
    output_tokens=12,
    reasoning_tokens=4,
    input_image_tokens=10,
    server_tools=(("google_search", 3),),
)


def interaction(status: str, **more: Any) -> dict[str, Any]:
    """The object."""
    return {"id": "i-1", "object": "interaction", "model": "gemini-3-pro", "status": status} | more


EVENTS = (
    {"event_type": "interaction.created", "interaction": interaction("in_progress")},
    {"event_type": "step.start", "index": 0, "step": {"type": "model_output"}},
    {"event_type": "step.delta", "index": 0, "delta": {"type": "text", "text": "Hello"}},
    {"event_type": "step.delta", "index": 0, "delta": {"type": "arguments_delta", "arguments": '{"a":'}},
    {"event_type": "interaction.completed", "interaction": interaction("completed", usage=COUNTED)},
)


def streamed(*events: dict[str, Any], whole: bool = True) -> Reading:
    """What a stream of these says."""
    shape = Interactions()
    shape.take_events([as_json(event) for event in events])
    return shape.reading(whole)


class InteractionsTests(SynchronousTestCase):
    """One interaction."""

    def test_streamed(self) -> None:
        """A stream is final with interaction.completed."""
        reading = streamed(*EVENTS)
        self.assertEqual((reading.usage, reading.counters), (USAGE, Counters.FINAL))
        self.assertEqual((reading.model, reading.finish_reason, reading.once), ("gemini-3-pro", "completed", "i-1"))
        self.assertEqual((reading.text_characters, reading.text_events, reading.text_events_after), (10, 2, 0))

    def test_cut(self) -> None:
        """A stream that was cut before has no counters, and its text is to be estimated."""
        for number in range(len(EVENTS)):
            reading = streamed(*EVENTS[:number], whole=False)
            self.assertEqual((reading.counters, reading.reason), (Counters.ABSENT, "stream_cut"))
        self.assertEqual(reading.text_characters, 10)

    def test_what_was_cut_and_is_fetched(self) -> None:
        """An interaction whose stream was cut has the id under which the same one is told when it is fetched later."""
        self.assertEqual(streamed(*EVENTS[:3], whole=False).once, "i-1")
        step = {"event_type": "step.stop", "index": 0, "usage": COUNTED}
        self.assertEqual(streamed(*EVENTS[:3], step, whole=False).once, "i-1")
        self.assertEqual(streamed(*EVENTS).once, "i-1")
        # A resumed stream has the end alone.
        self.assertEqual(streamed(EVENTS[-1]).once, "i-1")

    def test_an_image_that_is_cut(self) -> None:
        """An image that did not come to its end is charged about as one, not by the length of its base64."""
        shape = Interactions()
        shape.take_large({("event_type",): b'"step.delta"'}, 1_500_000)
        self.assertTrue(4 * 1120 <= shape.reading(False).text_characters <= 4 * 2520)

    def test_background(self) -> None:
        """A background interaction is free until it is done, and then counts once, under its id."""
        shape = Interactions()
        shape.take_body(as_json(interaction("in_progress")))
        self.assertEqual((shape.reading(True).counters, shape.reading(True).reason), ("free", "background_pending"))
        self.assertIsNone(shape.reading(True).once)
        shape = Interactions()
        shape.take_body(as_json(interaction("completed", usage=COUNTED)))
        self.assertEqual((shape.reading(True).usage, shape.reading(True).once), (USAGE, "i-1"))

    def test_running_counters(self) -> None:
        """The counters of a step are those so far; what comes after them is to be estimated."""
        step = {"event_type": "step.stop", "index": 0, "usage": COUNTED}
        reading = streamed(EVENTS[0], EVENTS[2], step, EVENTS[2], whole=False)
        self.assertEqual((reading.usage, reading.counters), (USAGE, Counters.RUNNING))
        self.assertEqual((reading.text_characters, reading.text_characters_after), (10, 5))

    def test_error_and_nonsense(self) -> None:
        """An error event is told by its code; values of other types are passed over."""
        error: dict[str, Any] = {"event_type": "error", "error": {"code": "quota", "message": "no"}}
        odd: dict[str, Any] = {"event_type": "step.delta", "delta": 5, "metadata": [1]}
        reading = streamed(EVENTS[0], odd, {"event_type": 7}, error)
        self.assertEqual((reading.error, reading.reason), ("quota", "error"))
