"""The results of a batch of Anthropic's."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from llmproxy.core.reading.anthropic_batch_results import AnthropicBatchResults
from llmproxy.core.usage import Counters, ModelUsage, Usage
from tests.core.reading.recorded_anthropic import as_json


def line(kind: str, model: str = "", **usage: Any) -> bytes:
    """A line, as the Claude API documentation shows it ("Message Batches", "Retrieve Message Batch results")."""
    message = {"message": {"type": "message", "model": model, "usage": usage}} if model else {}
    return as_json({"custom_id": "a", "result": {"type": kind} | message})


class BatchResultsTests(SynchronousTestCase):
    """One download."""

    def test_sum_by_model(self) -> None:
        """Results are added up by model, at the price of a batch; those that failed or expired bill nothing."""
        shape = AnthropicBatchResults()
        shape.take_events([line("succeeded", "m1", input_tokens=10, output_tokens=5), line("errored"), line("expired")])
        shape.take_events([line("succeeded", "m2", input_tokens=7, output_tokens=1)])
        shape.take_body(line("succeeded", "m1", cache_creation_input_tokens=3, output_tokens=2))
        reading = shape.reading(True)
        part = ModelUsage("m2", Usage(input_tokens=7, output_tokens=1))
        self.assertEqual(reading.usage, Usage(input_tokens=10, cache_write_5m_tokens=3, output_tokens=7, parts=(part,)))
        self.assertEqual((reading.counters, reading.model), (Counters.FINAL, "m1"))
        self.assertEqual((reading.batch, reading.once), (True, "batch_results"))

    def test_cut(self) -> None:
        """A download that was cut counts nothing, for it will be fetched again."""
        shape = AnthropicBatchResults()
        shape.take_events([line("succeeded", "m1", input_tokens=10, output_tokens=5)])
        self.assertEqual(shape.reading(False).reason, "batch_incomplete")
        self.assertEqual(shape.reading(False).counters, Counters.FREE)
        shape.take_events([b'{"custom_id":'])
        self.assertEqual(shape.reading(True).reason, "batch_incomplete")

    def test_many_models(self) -> None:
        """However many models are named, what is kept is bounded and no token is lost."""
        shape = AnthropicBatchResults()
        shape.take_events([line("succeeded", f"m{number}", output_tokens=1) for number in range(100)])
        usage = shape.reading(True).usage
        self.assertEqual((usage.total_output, len(usage.parts)), (100, 63))
