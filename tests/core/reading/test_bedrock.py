"""Bedrock's Converse and the frames of InvokeModelWithResponseStream."""

from __future__ import annotations

import base64
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from llmproxy.core.reading.bedrock import BedrockConverse, BedrockInvoke
from llmproxy.core.usage import Counters, Reading, Usage
from tests.core.reading.recorded_anthropic import STREAM, as_json

# Amazon Bedrock API reference, TokenUsage and CacheDetail.
TOKENS = {
    "inputTokens": 30,
    "outputTokens": 628,
    "totalTokens": 758,
    "cacheReadInputTokens": 40,
    "cacheWriteInputTokens": 60,
    "cacheDetails": [{"ttl": "1h", "inputTokens": 50}, {"ttl": "5m", "inputTokens": 10}],
}
USAGE = Usage(
    input_tokens=30, cache_read_tokens=40, cache_write_5m_tokens=10, cache_write_1h_tokens=50, output_tokens=628
)
FRAMES: tuple[dict[str, Any], ...] = (
    {"messageStart": {"role": "assistant"}},
    {"contentBlockDelta": {"contentBlockIndex": 0, "delta": {"reasoningContent": {"text": "Hm"}}}},
    {"contentBlockDelta": {"contentBlockIndex": 0, "delta": {"text": "Hello"}}},
    {"contentBlockDelta": {"contentBlockIndex": 1, "delta": {"toolUse": {"input": '{"a"'}}}},
    {"messageStop": {"stopReason": "end_turn"}},
    {"metadata": {"usage": TOKENS, "metrics": {"latencyMs": 1275}}},
)


def converse(*frames: dict[str, Any], whole: bool = True) -> Reading:
    """What these frames say."""
    shape = BedrockConverse()
    shape.take_events([as_json(frame) for frame in frames])
    return shape.reading(whole)


def invoke(*inner: bytes, whole: bool = True) -> Reading:
    """What frames with these events in them say."""
    shape = BedrockInvoke()
    shape.take_events([as_json({"chunk": {"bytes": base64.b64encode(text).decode()}}) for text in inner])
    return shape.reading(whole)


class ConverseTests(SynchronousTestCase):
    """Converse and ConverseStream."""

    def test_streamed(self) -> None:
        """A stream is final with its metadata."""
        reading = converse(*FRAMES)
        self.assertEqual((reading.usage, reading.counters), (USAGE, Counters.FINAL))
        self.assertEqual((reading.finish_reason, reading.text_characters, reading.text_events), ("end_turn", 11, 3))

    def test_cut(self) -> None:
        """A stream that was cut before its metadata has no counters, and its text is to be estimated."""
        for number, characters in enumerate((0, 0, 2, 7, 11, 11)):
            reading = converse(*FRAMES[:number], whole=False)
            self.assertEqual((reading.counters, reading.reason), (Counters.ABSENT, "stream_cut"))
            self.assertEqual(reading.text_characters, characters)

    def test_exception(self) -> None:
        """An exception in the stream is told by its type."""
        reading = converse(FRAMES[0], {"exception": {"type": "throttlingException"}})
        self.assertEqual((reading.error, reading.reason), ("throttlingException", "error"))

    def test_whole(self) -> None:
        """A whole answer is final."""
        shape = BedrockConverse()
        message = {"role": "assistant", "content": [{"text": "Hi"}]}
        shape.take_body(as_json({"output": {"message": message}, "stopReason": "end_turn", "usage": TOKENS}))
        self.assertEqual((shape.reading(True).usage, shape.reading(True).text_characters), (USAGE, 2))

    def test_nonsense(self) -> None:
        """Values of other types are passed over."""
        reading = converse({"contentBlockDelta": 3}, {"metadata": {"usage": [1]}}, {"metadata": {"usage": {"x": -1}}})
        self.assertEqual((reading.usage, reading.counters, reading.reason), (Usage(), Counters.ABSENT, "no_usage"))


class InvokeTests(SynchronousTestCase):
    """The frames of InvokeModelWithResponseStream."""

    def test_anthropic(self) -> None:
        """The model's own events are read as such, and the metrics win field by field."""
        metrics = {"inputTokenCount": 26, "outputTokenCount": 90, "invocationLatency": 5}
        last = as_json({"type": "message_stop", "amazon-bedrock-invocationMetrics": metrics})
        reading = invoke(*STREAM[:-1], last)
        # 25 -> 26 and 89 -> 90 by the metrics; the rest as Anthropic's events told.
        expected = Usage(
            input_tokens=26,
            cache_read_tokens=1800,
            cache_write_5m_tokens=356,
            cache_write_1h_tokens=100,
            output_tokens=90,
            reasoning_tokens=40,
        )
        self.assertEqual((reading.usage, reading.counters, reading.shape), (expected, Counters.FINAL, "bedrock-invoke"))
        self.assertEqual((reading.text_characters, reading.finish_reason), (23, "tool_use"))

    def test_cut(self) -> None:
        """A stream that was cut is counted as the model's own would be."""
        reading = invoke(*STREAM[:8], whole=False)
        self.assertEqual((reading.counters, reading.usage.input_tokens), (Counters.RUNNING, 25))
        self.assertEqual(reading.text_characters_after, 11)

    def test_other_model(self) -> None:
        """A model of another shape is counted by the metrics."""
        metrics = {"inputTokenCount": 5, "outputTokenCount": 2, "cacheWriteInputTokenCount": 3}
        first = as_json({"generation": "Hey", "stop_reason": None})
        self.assertEqual(invoke(first, whole=False).counters, Counters.ABSENT)
        reading = invoke(first, as_json({"stop_reason": "stop", "amazon-bedrock-invocationMetrics": metrics}))
        self.assertEqual(reading.usage, Usage(input_tokens=5, cache_write_5m_tokens=3, output_tokens=2))
        self.assertEqual((reading.text_characters, reading.finish_reason), (3, "stop"))

    def test_nonsense(self) -> None:
        """What is no base64, or no JSON in it, is passed over."""
        shape = BedrockInvoke()
        shape.take_events([b'{"chunk":{"bytes":"%"}}', b'{"chunk":{"bytes":7}}', b'{"chunk":[]}', b"x"])
        self.assertEqual(shape.reading(True).counters, Counters.ABSENT)
        self.assertEqual(invoke(b"[]", b"{").reason, "no_usage")
