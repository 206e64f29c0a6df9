"""The helper that holds a ledger against what the simulator served."""

from __future__ import annotations

from collections import Counter
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.live.books import WARM_UP, calls, compare, read_record
from tests.simulate.caller import Simulator

USAGE: dict[str, Any] = {
    "provider": "openai",
    "model": "m",
    "response_id": "r",
    "input_tokens": 100,
    "output_tokens": 50,
    "cache_read_tokens": 10,
    "cache_write_5m_tokens": 4,
    "cache_write_1h_tokens": 5,
    "reasoning_tokens": 20,
    "stream": True,
    "complete": True,
    "counted": True,
    "sent_output_tokens": 50,
}
ROW: dict[str, Any] = {
    "user": "a",
    "source": "exact",
    "end_reason": "ok",
    "model": "m",
    "model_asked": "asked",
    "total_input": 100,
    "total_output": 50,
    "cache_read_tokens": 10,
    "cache_write_5m_tokens": 4,
    "cache_write_1h_tokens": 5,
    "reasoning_tokens": 20,
}
BROKEN: dict[str, Any] = {"complete": False, "counted": False}


def entry(**usage: Any) -> dict[str, Any]:
    """One request of the record. Without a usage: `usage=None`."""
    found = None if "usage" in usage else USAGE | usage
    fields = [["Host", "h"], ["x-books-id", "a"]]
    return {"fields": fields, "method": "POST", "target": "/x", "status": 200, "usage": found}


class CompareTests(SynchronousTestCase):
    """`compare`."""

    def _one(self, row: dict[str, Any], **usage: Any) -> str:
        found = compare([ROW | row], [entry(**usage)])
        self.assertLessEqual(len(found), 1, found)
        return found[0] if found else ""

    def test_equal(self) -> None:
        """An exact row with the same numbers is no difference; other requests are passed over."""
        self.assertEqual(compare([ROW], [entry(), {"fields": [["Host", "h"]]}]), [])

    def test_each_number_is_held_to(self) -> None:
        """An exact row that is off by one, in any class, is a difference that names it."""
        for name in ("total_input", "total_output", "cache_read_tokens", "cache_write_5m_tokens",
                     "cache_write_1h_tokens", "reasoning_tokens"):  # fmt: skip
            for by in (-1, 1):
                self.assertIn(f"a: {name} is", self._one({name: ROW[name] + by}))
        self.assertIn("a: model is 'n'", self._one({"model": "n"}))

    def test_the_model_that_was_asked(self) -> None:
        """Where the answer names no model, the one that was asked for is compared."""
        self.assertEqual(self._one({"model": None, "model_asked": "m"}), "")
        self.assertIn("model is 'asked'", self._one({"model": None}))

    def test_other_models(self) -> None:
        """Where several models took part the sums must agree, the classes need not."""
        self.assertEqual(self._one({"reasoning_tokens": 3}, other_models=["n"]), "")
        self.assertIn("total_output", self._one({"total_output": 49}, other_models=["n"]))

    def test_rows_that_are_missing_or_twice(self) -> None:
        """A request without its row is a difference, and so is one with two."""
        self.assertEqual(compare([], [entry()]), ["a: 0 rows"])
        self.assertEqual(compare([ROW, ROW], [entry()]), ["a: 2 rows"])
        self.assertEqual(compare([ROW, ROW | {"user": "b"}], [entry()]), ["b: billed, but no provider saw it"])
        unserved = {"user": "b", "source": "none"}
        self.assertEqual(compare([ROW, unserved], [entry()]), [])

    def test_what_costs_nothing(self) -> None:
        """What bills nothing needs a row that says so."""
        self.assertEqual(self._one({"source": "none", "total_input": 0, "total_output": 0}, usage=None), "")
        self.assertIn("it costs nothing", self._one({}, usage=None))
        self.assertIn("it costs nothing", self._one({"source": "none"}, usage=None))

    def test_whole_answers_are_exact(self) -> None:
        """An answer that came whole and told its usage may not be an estimate; one that told none must be."""
        self.assertIn("though the answer was whole", self._one({"source": "estimated"}))
        self.assertIn("though the answer was whole", self._one({"source": "none"}))
        self.assertEqual(self._one({"source": "partial", "end_reason": "client_gone"}), "")
        self.assertIn("no counters", self._one({}, counted=False))
        self.assertEqual(self._one({}, **BROKEN), "")
        self.assertIn("total_output", self._one({"total_output": 49}, **BROKEN))
        self.assertEqual(self._one({"source": "estimated"}, counted=False), "")

    def test_broken_streams_are_near(self) -> None:
        """The output of a stream that was cut is within 15 % of what was sent, or within 3 tokens."""
        for sent, have, near in ((100, 115, True), (100, 116, False), (100, 85, True), (100, 84, False),
                                 (4, 7, True), (4, 8, False), (4, 1, True), (4, 0, False), (0, 3, True),
                                 (0, 4, False)):  # fmt: skip
            said = self._one({"source": "estimated", "total_output": have}, **BROKEN, sent_output_tokens=sent)
            self.assertEqual(said == "", near, (sent, have, said))

    def test_nothing_that_was_sent_is_free(self) -> None:
        """A broken answer of which something came is not free, nor is its input."""
        self.assertIn("free", self._one({"source": "none"}, **BROKEN))
        self.assertIn("the input is free", self._one({"source": "partial", "total_input": 0}, **BROKEN))
        self.assertIn("free", self._one({"source": "none"}, **BROKEN, stream=False))
        self.assertEqual(self._one({"source": "none", "total_output": 0}, **BROKEN, sent_output_tokens=0), "")

    def test_a_whole_answer_that_was_cut_is_not_measured(self) -> None:
        """How much of a cut JSON body could be read is nobody's promise; only that it is not free."""
        self.assertEqual(self._one({"source": "estimated", "total_output": 1}, **BROKEN, stream=False), "")

    def test_a_request_that_was_tried_again(self) -> None:
        """The last try counts, and an earlier one that had served something is a difference."""
        first = entry(**BROKEN, sent_output_tokens=0)
        self.assertEqual(compare([ROW], [first, entry()]), [])
        self.assertEqual(compare([ROW], [entry(**BROKEN, sent_output_tokens=2), entry()]), ["a: served 2 times"])

    def test_sound_by_its_length(self) -> None:
        """Sound that is billed by its length is compared in milliseconds."""
        self.assertEqual(self._one({"audio_ms": 3000}, audio_s=3), "")
        self.assertIn("audio_ms", self._one({"audio_ms": 2999}, audio_s=3))


class CallsTests(SynchronousTestCase):
    """`calls`."""

    def test_the_same_seed(self) -> None:
        """A seed gives the same requests again, another gives others; every id is its own."""
        made = list(calls(7, 300))
        self.assertEqual(made, list(calls(7, 300)))
        self.assertNotEqual([call.body for call in made], [call.body for call in calls(8, 300)])
        self.assertEqual(len({call.headers["X-Books-Id"] for call in made}), 300)
        self.assertTrue(all(call.headers["X-User-ID"] == call.books_id for call in made))
        self.assertFalse(any(call.breaks for call in made[:WARM_UP]))

    def test_every_kind_is_understood(self) -> None:
        """The simulator understands every request, bills what it should, and every kind of end is among them."""
        simulator = Simulator()
        simulator.ask("PUT /_simulator/requests?keep=5000", headers={})
        made = list(calls(1, 700))
        for call in made:
            path = "/" + call.path.split("/", 2)[2]
            simulator.ask(f"{call.method} {path}", call.body or None, dict(call.headers))
        record = read_record(lambda target: simulator.ask(f"GET {target}", headers={}).json())
        self.assertEqual(len(record), 700)
        statuses = Counter(one["status"] for one in record)
        self.assertLessEqual(set(statuses), {200, 429, 500})
        self.assertGreater(statuses[200], 600)
        billed = [one["usage"] for one in record if one["usage"] is not None]
        self.assertEqual({usage["provider"] for usage in billed}, {"openai", "anthropic", "gemini", "groq"})
        whole = [usage for usage in billed if usage["complete"]]
        self.assertGreater(len(billed) - len(whole), 40)
        self.assertTrue(any(call.leave_after_bytes for call in made))
        self.assertEqual([usage for usage in whole if usage["counted"]
                          and usage["sent_output_tokens"] != usage["output_tokens"]], [])  # fmt: skip
