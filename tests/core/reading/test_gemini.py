"""Gemini's generateContent: what is counted, and when it is final."""

from __future__ import annotations

import json
from typing import Any
from unittest import mock

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.core.reading import gemini
from llmproxy.core.reading.gemini import Gemini
from llmproxy.core.usage import Counters, Reading, Usage
from tests.core.reading.mutated import every_change, mutated
from tests.core.reading.recorded_gemini import STREAM, as_json, chunk

# From the last counters of STREAM, by hand: 100 - 60 fresh; audio 30 - 10; image and video 15 + 5; output 12 + 31.
WHOLE = Usage(
    input_tokens=40,
    cache_read_tokens=60,
    tool_use_tokens=5,
    output_tokens=43,
    reasoning_tokens=31,
    input_audio_tokens=20,
    input_image_tokens=20,
    output_image_tokens=10,
)


def streamed(*events: bytes, whole: bool = True) -> Reading:
    """What a stream of these says."""
    shape = Gemini()
    shape.take_events(events)
    return shape.reading(whole)


class StreamTests(SynchronousTestCase):
    """Answers that come in chunks."""

    def test_whole(self) -> None:
        """The last counters are the usage; thoughts are output, cached tokens are no fresh input."""
        self.assertEqual(
            streamed(*STREAM),
            Reading(
                shape="gemini",
                usage=WHOLE,
                counters=Counters.FINAL,
                model="gemini-3-pro",
                response_id="r-1",
                finish_reason="STOP",
                service_tier="priority",
                text_characters=18,
                text_events=3,
            ),
        )

    def test_in_one_go(self) -> None:
        """A run of chunks is decoded at once, which is quick, and says the same."""
        shape = Gemini()
        self.assertTrue(shape.take_array(b"[" + b",".join(STREAM) + b"]", 3))
        self.assertEqual(shape.reading(True), streamed(*STREAM))
        self.assertFalse(shape.take_array(b'[{"candidates":7}]', 1))

    def test_cut_after_each_event(self) -> None:
        """A stream that is cut is counted up to the last chunk that came."""
        self.assertEqual(streamed(whole=False).counters, Counters.ABSENT)
        for number, output in ((1, 30), (2, 32)):
            reading = streamed(*STREAM[:number], whole=False)
            self.assertEqual((reading.counters, reading.reason), (Counters.RUNNING, "stream_cut"))
            self.assertEqual((reading.usage.output_tokens, reading.text_characters_after), (output, 0))

    def test_text_without_counters(self) -> None:
        """Text of chunks that came without counters is told apart, to be estimated."""
        reading = streamed(STREAM[0], as_json(chunk({"text": "abc"})), whole=False)
        self.assertEqual((reading.text_characters_after, reading.text_events_after), (3, 1))

    def test_blocked(self) -> None:
        """A prompt that was blocked is billed as far as it was counted."""
        found = {"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": {"promptTokenCount": 9}}
        reading = streamed(as_json(found))
        self.assertEqual((reading.counters, reading.finish_reason), (Counters.FINAL, "SAFETY"))
        self.assertEqual(reading.usage, Usage(input_tokens=9))

    def test_error(self) -> None:
        """An error in the stream is told by its status."""
        reading = streamed(STREAM[0], b'{"error":{"code":503,"status":"UNAVAILABLE"}}')
        self.assertEqual((reading.error, reading.reason, reading.counters), ("UNAVAILABLE", "error", Counters.RUNNING))

    def test_searches(self) -> None:
        """Gemini 3 bills each different query that is not empty; older models bill the prompt once."""
        grounded = chunk({"text": "x"}, finish="STOP", promptTokenCount=1)
        grounded["candidates"][0]["groundingMetadata"] = {"webSearchQueries": ["", "a", "b", "a"]}
        self.assertEqual(streamed(as_json(grounded)).usage.server_tools, (("google_search", 2),))
        older = grounded | {"modelVersion": "models/gemini-2.5-pro"}
        reading = streamed(as_json(older))
        self.assertEqual((reading.model, reading.usage.server_tools), ("gemini-2.5-pro", (("google_search", 1),)))

    def test_one_bad_event_loses_no_other(self) -> None:
        """A chunk that is no JSON or has a value of another type is passed over."""
        for bad in (b"{", b'{"candidates":7}', b'{"candidates":[{"content":{"parts":"x"}}]}', b'{"usageMetadata":3}'):
            reading = streamed(STREAM[0], bad, *STREAM[1:])
            self.assertEqual((reading.usage, reading.text_characters), (WHOLE, 18), bad)

    def test_whole_body(self) -> None:
        """A whole answer is final as it is."""
        shape = Gemini()
        shape.take_body(STREAM[2])
        self.assertEqual((shape.reading(True).usage, shape.reading(True).counters), (WHOLE, Counters.FINAL))

    def test_odd_counters_beside_an_odd_text(self) -> None:
        """A chunk with half a character in its text and a count beyond all numbers still does not raise."""
        odd = b'{"candidates":[{"content":{"parts":[{"text":"a\\ud83d"}]}}],"modelVersion":"\\ud83d","usageMetadata":'
        reading = streamed(odd + b'{"promptTokenCount":%d,"candidatesTokenCount":2,"x":"\\ud83d"}}' % (10**30))
        self.assertEqual((reading.usage, reading.text_characters), (Usage(output_tokens=2), 2))
        self.assertIsNone(reading.model)

    def test_live_names(self) -> None:
        """What Live calls response tokens is the output."""
        found = {"usageMetadata": {"promptTokenCount": 3, "responseTokenCount": 4}}
        self.assertEqual(streamed(as_json(found)).usage, Usage(input_tokens=3, output_tokens=4))

    @settings(max_examples=60, deadline=None)
    @given(st.integers(0, 2), st.data())
    def test_no_mutation_raises(self, at: int, data: st.DataObject) -> None:
        """Whatever becomes of a value, nothing raises and no count is negative or more than its whole."""
        event = json.loads(STREAM[at])
        holder: Any = event
        while True:
            names = sorted(holder) if isinstance(holder, dict) else range(len(holder))
            name = data.draw(st.sampled_from(names))
            if isinstance(holder[name], dict | list) and holder[name] and data.draw(st.booleans()):
                holder = holder[name]
                continue
            values: list[Any] = [None, -5, 1.5, True, "x", [], {}, [7], {"text": 3}, 10**30]
            holder[name] = data.draw(st.sampled_from(values))
            break
        usage = streamed(*STREAM[:at], as_json(event), *STREAM[at + 1 :]).usage
        self.assertGreaterEqual(usage.input_tokens, usage.input_audio_tokens + usage.input_image_tokens)
        self.assertGreaterEqual(usage.output_tokens, usage.output_image_tokens)
        self.assertGreaterEqual(min(usage.input_audio_tokens, usage.input_image_tokens, usage.cache_read_tokens), 0)


PIECE = st.fixed_dictionaries(
    {"text": st.sampled_from(("", "ab", "h\xe9llo"))},
    optional={"thought": st.just(True), "thoughtSignature": st.just("QUJD")},
)
PLAIN = st.builds(
    lambda piece, made: chunk(piece, promptTokenCount=4, candidatesTokenCount=made), PIECE, st.integers(1, 9)
)
OTHER = st.sampled_from(
    (
        chunk({"text": "ab"}),
        chunk({"text": "ab"}, {"text": "c", "thought": True}, promptTokenCount=4),
        chunk({"text": ""}, finish="STOP", promptTokenCount=4, candidatesTokenCount=9),
        chunk({"functionCall": {"name": "f", "args": {"a": 1}}}, promptTokenCount=4),
        {"usageMetadata": {"promptTokenCount": 4, "candidatesTokenCount": 12}, "modelVersion": "m", "responseId": "r"},
    )
)
NAMES = (
    "candidates content parts text functionCall executableCode finishReason groundingMetadata index usageMetadata "
    "promptFeedback error modelVersion responseId promptTokenCount candidatesTokenCount thoughtsTokenCount serviceTier"
).split()
VALUES: tuple[Any, ...] = (
    *(None, 0, 7, 2**53, 10**30, -5, True, 1.0, "", "x", "STOP", "\ud83d", "w" * 257, [], {}, [7], [{}]),
    {"blockReason": "SAFETY", "code": 503, "webSearchQueries": ["a"], "name": "f", "args": {}},
    {"candidatesTokenCount": 5, "x": "\ud83d"},
    [{"text": "abc"}],
    [{"text": "abc"}, {"text": 3}],
)


class PlainTests(SynchronousTestCase):
    """The quick way of most chunks, and the full one."""

    def read(self, runs: list[list[bytes]]) -> list[Reading]:
        """What is known after each of these runs, which follow a chunk that tells the model."""
        shape = Gemini()
        shape.take_events([STREAM[0]])
        readings = []
        for run in runs:
            shape.take_events(run)
            readings += [shape.reading(False), shape.reading(True)]
        return readings

    def read_in_full(self, runs: list[list[bytes]]) -> list[Reading]:
        """The same, with every chunk decoded in full."""
        with mock.patch.object(gemini, "_PLAIN", msgspec.json.Decoder(None)):
            return self.read(runs)

    @settings(max_examples=100, deadline=None)
    @given(st.lists(PLAIN, min_size=1, max_size=4))
    def test_plain_chunks(self, chunks: list[dict[str, Any]]) -> None:
        """A run of text or of thoughts goes the quick way, and is read as if it had not."""
        run = [as_json(each) for each in chunks]
        with mock.patch.object(gemini, "_CHUNKS", msgspec.json.Decoder(None)):
            shape = Gemini()
            shape.take_events([STREAM[0]])
            self.assertTrue(shape.take_array(b"[%b]" % b",".join(run), len(run)))
        self.assertEqual(shape.reading(True), self.read_in_full([run])[-1])

    @settings(max_examples=100, deadline=None)
    @given(st.lists(st.lists(mutated(PLAIN | OTHER, NAMES, VALUES), max_size=4), max_size=3))
    def test_mutations(self, runs: list[list[bytes]]) -> None:
        """Whatever comes in the chunks, in whatever runs, it is read in the same way."""
        self.assertEqual(self.read(runs), self.read_in_full(runs))

    def test_every_change(self) -> None:
        """Whatever a member becomes, and whatever is added: a chunk is read in the same way."""
        plain = chunk({"text": "ab"}, promptTokenCount=4, candidatesTokenCount=1)
        for text in every_change(plain, NAMES, VALUES):
            for run in ([as_json(plain), text], [text, as_json(plain)]):
                self.assertEqual(self.read([run]), self.read_in_full([run]), text)

    def test_the_quick_way_by_hand(self) -> None:
        """Texts and events are counted, and the last counters of the run are those that are told."""
        pieces = [
            chunk({"text": text}, promptTokenCount=4, candidatesTokenCount=at)
            for at, text in enumerate(("ab", "", "c"), 1)
        ]
        reading = self.read([[as_json(each) for each in pieces]])[0]
        # STREAM[0] brought "Thinking", 8 characters in one event.
        self.assertEqual((reading.text_characters, reading.text_events), (11, 3))
        self.assertEqual((reading.text_characters_after, reading.text_events_after), (0, 0))
        self.assertEqual((reading.usage, reading.counters), (Usage(input_tokens=4, output_tokens=3), Counters.RUNNING))

    def test_what_a_plain_chunk_may_still_change(self) -> None:
        """Text after a finish reason makes the counters running ones again, and an id that comes late is told."""
        plain = as_json(chunk({"text": "ab"}, promptTokenCount=4, candidatesTokenCount=1))
        self.assertEqual(self.read([[STREAM[2]], [plain]])[-1].counters, Counters.RUNNING)
        shape = Gemini()
        shape.take_events([b'{"candidates":[],"modelVersion":"m"}'])
        shape.take_events([plain])
        self.assertEqual(shape.reading(False).response_id, "r-1")

    def test_counters_that_cannot_be_read(self) -> None:
        """Last counters with a number of thousands of digits are passed over; those before them are kept."""
        huge = b'{"candidates":[{"content":{"parts":[{"text":"a"}]}}],"usageMetadata":{"promptTokenCount":'
        huge += b"9" * 5000 + b"}}"
        reading = self.read([[STREAM[1]], [huge]])[-1]
        self.assertEqual((reading.usage.output_tokens, reading.text_characters), (32, 11))

    def test_a_count_that_does_not_fit_takes_nothing(self) -> None:
        """An event that only looks like one of a list is never counted as another."""
        shape = Gemini()
        shape.take_events([STREAM[0]])
        before = shape.reading(False)
        self.assertFalse(shape.take_array(b"[%b,%b]" % (STREAM[1], STREAM[1]), 1))
        self.assertEqual(shape.reading(False), before)


class LargeTests(SynchronousTestCase):
    """What is cut, and only its length is known."""

    def test_an_image_that_is_cut(self) -> None:
        """An image that did not come to its end is charged about as one, not by the length of its base64."""
        # "Gemini API pricing": an image is 1,120 to 2,520 tokens of output; a token of text is about four characters.
        shape = Gemini()
        shape.take_large({}, 1_500_000)
        reading = shape.reading(False)
        self.assertEqual((reading.counters, reading.text_events), (Counters.ABSENT, 1))
        self.assertTrue(4 * 1120 <= reading.text_characters <= 4 * 2520)

    def test_a_text_that_is_cut(self) -> None:
        """An answer of an ordinary length that is cut is taken for text."""
        shape = Gemini()
        shape.take_large({}, 40_000)
        self.assertEqual(shape.reading(False).text_characters, 40_000)

    def test_an_image_that_is_counted(self) -> None:
        """An image whose tokens the provider tells is no text besides: it teaches nothing about the length of texts."""
        shape = Gemini()
        shape.take_large({("usageMetadata",): b'{"promptTokenCount":10,"candidatesTokenCount":1294}'}, 1_500_000)
        reading = shape.reading(True)
        self.assertEqual((reading.counters, reading.usage.output_tokens), (Counters.FINAL, 1294))
        self.assertEqual((reading.text_characters, reading.text_events), (0, 0))
