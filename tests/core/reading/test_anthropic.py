"""Anthropic's messages: what is counted, when it is final, and what is free."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.core.reading.anthropic import AnthropicMessages, AnthropicResource
from llmproxy.core.usage import Counters, ModelUsage, Reading, Usage
from tests.core.reading.recorded_anthropic import OVERLOADED, STREAM, as_json, delta, end, start

# From the counters of STREAM, by hand.
WHOLE = Usage(
    input_tokens=25,
    cache_read_tokens=1800,
    cache_write_5m_tokens=356,
    cache_write_1h_tokens=100,
    output_tokens=89,
    reasoning_tokens=40,
)
COUNTS = ("output_tokens", "input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
STARTED = Usage(input_tokens=25, cache_read_tokens=1800, cache_write_5m_tokens=356, cache_write_1h_tokens=100)


def streamed(*events: bytes, whole: bool = True) -> Reading:
    """What a stream of these says."""
    shape = AnthropicMessages()
    shape.take_events(events)
    return shape.reading(whole)


def body(**message: Any) -> Reading:
    """What a whole message says."""
    shape = AnthropicMessages()
    shape.take_body(as_json({"type": "message", "id": "msg_1", "model": "claude-opus-5"} | message))
    return shape.reading(True)


class StreamTests(SynchronousTestCase):
    """Messages that come as events."""

    def test_whole(self) -> None:
        """A stream that ends properly has the provider's own final counters, and all that decides the price."""
        self.assertEqual(
            streamed(*STREAM),
            Reading(
                shape="anthropic-messages",
                usage=WHOLE,
                counters=Counters.FINAL,
                model="claude-opus-5",
                response_id="msg_01",
                finish_reason="tool_use",
                service_tier="standard",
                speed="fast",
                inference_geo="us",
                text_characters=23,
                text_events=4,
            ),
        )

    def test_cut_after_each_event(self) -> None:
        """A client that leaves pays for the input, and for the text that came, wherever it leaves."""
        text = [0, 0, 0, 0, 5, 5, 5, 10, 11, 11, 23]
        for number, characters in enumerate(text):
            reading = streamed(*STREAM[:number], whole=False)
            expected = Counters.RUNNING if number else Counters.ABSENT
            self.assertEqual((reading.counters, reading.reason), (expected, "stream_cut"), number)
            self.assertEqual(reading.usage, STARTED if number else Usage(), number)
            self.assertEqual(reading.text_characters_after, characters, number)
        self.assertEqual(streamed(*STREAM[:11], whole=False).counters, Counters.FINAL)

    def test_cumulative(self) -> None:
        """The counters of message_delta replace those of message_start, field by field, and are never added."""
        events = (start(input_tokens=10, cache_read_input_tokens=7), end(None, input_tokens=30, output_tokens=5), end())
        reading = streamed(*map(as_json, events))
        self.assertEqual(reading.usage, Usage(input_tokens=30, cache_read_tokens=7, output_tokens=5))
        self.assertEqual(reading.counters, Counters.FINAL)

    def test_cache_write_changes(self) -> None:
        """If more or less was written to a cache than was said first, the hour's part is at most what was said."""
        split = {"ephemeral_5m_input_tokens": 20, "ephemeral_1h_input_tokens": 80}
        for told, short, hour in ((150, 70, 80), (50, 0, 50), (100, 20, 80)):
            events = (
                start(cache_creation_input_tokens=100, cache_creation=split),
                end(cache_creation_input_tokens=told, output_tokens=1),
            )
            usage = streamed(*map(as_json, events)).usage
            self.assertEqual((usage.cache_write_5m_tokens, usage.cache_write_1h_tokens), (short, hour))

    def test_error_in_mid_stream(self) -> None:
        """An error event is told by its type, and the text before it is counted."""
        reading = streamed(STREAM[0], as_json(delta(text="Hi")), OVERLOADED)
        self.assertEqual((reading.error, reading.reason), ("overloaded_error", "error"))
        self.assertEqual((reading.counters, reading.text_characters_after), (Counters.RUNNING, 2))

    def test_one_bad_event_loses_no_other(self) -> None:
        """An event that is no JSON, or has a value of another type, is passed over and the others are counted."""
        for bad in (b"{", b'{"type":"content_block_delta","delta":7}', b"[]", b"null", b'"x"'):
            reading = streamed(*STREAM[:7], bad, *STREAM[7:])
            self.assertEqual((reading.usage, reading.text_characters), (WHOLE, 23), bad)

    def test_half_a_character(self) -> None:
        """An emoji that is cut in two by the provider does not lose the event it is in."""
        half = b'{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"ab\\ud83d"}}'
        self.assertEqual(streamed(STREAM[0], half).text_characters, 3)

    @given(st.lists(st.integers(1, len(STREAM) - 1), unique=True))
    def test_any_runs(self, cuts: list[int]) -> None:
        """It is the same in whatever runs the events come."""
        shape = AnthropicMessages()
        edges = [0, *sorted(cuts), len(STREAM)]
        for begin, stop in pairwise(edges):
            run = STREAM[begin:stop]
            self.assertTrue(shape.take_array(b"[" + b",".join(run) + b"]", len(run)))
        self.assertEqual(shape.reading(True), streamed(*STREAM))

    @settings(max_examples=60, deadline=None)
    @given(st.integers(0, len(STREAM) - 1), st.data())
    def test_no_mutation_raises(self, at: int, data: st.DataObject) -> None:
        """Whatever becomes of a value, nothing raises and no count is negative."""
        event = json.loads(STREAM[at])
        holder: Any = event
        while True:
            name = data.draw(st.sampled_from(sorted(holder)))
            if isinstance(holder[name], dict) and holder[name] and data.draw(st.booleans()):
                holder = holder[name]
                continue
            values: list[Any] = [None, -5, 1.5, True, "x", [], {}, [7], {"type": 3}, 10**30]
            holder[name] = data.draw(st.sampled_from(values))
            break
        usage = streamed(*STREAM[:at], as_json(event), *STREAM[at + 1 :]).usage
        self.assertGreaterEqual(min(usage.input_tokens, usage.cache_write_5m_tokens, usage.cache_write_1h_tokens), 0)
        self.assertLessEqual(usage.reasoning_tokens, usage.output_tokens)


class WholeTests(SynchronousTestCase):
    """Messages that come as one object."""

    def test_plain(self) -> None:
        """A whole message is final; searches and fetches are counted by their name."""
        reading = body(
            stop_reason="end_turn",
            content=[{"type": "text", "text": "Hi!"}, {"type": "tool_use", "name": "f", "input": {"a": 1}}],
            usage={
                "input_tokens": 2095,
                "output_tokens": 503,
                "server_tool_use": {"web_search_requests": 2, "web_fetch_requests": 0},
                "service_tier": "batch",
            },
        )
        usage = Usage(input_tokens=2095, output_tokens=503, server_tools=(("web_search", 2),))
        self.assertEqual((reading.usage, reading.counters, reading.batch), (usage, Counters.FINAL, True))
        self.assertEqual((reading.text_characters, reading.text_events), (3 + 7, 1))

    def test_no_split_is_five_minutes(self) -> None:
        """What is written to a cache is kept for five minutes, unless the answer says otherwise."""
        usage = body(usage={"cache_creation_input_tokens": 9, "output_tokens": 1}).usage
        self.assertEqual(usage, Usage(cache_write_5m_tokens=9, output_tokens=1))

    def test_compaction_and_advisor(self) -> None:
        """A compaction is added to the sums that leave it out; an advisor is a part, at its own model's price."""
        own = {"input_tokens": 23000, "output_tokens": 1000}
        reading = body(
            usage=own
            | {
                "iterations": [
                    {"type": "compaction", "input_tokens": 180000, "output_tokens": 3500},
                    {"type": "message"} | own,
                    {"type": "advisor_message", "model": "claude-fable-5", "input_tokens": 823, "output_tokens": 1612},
                ]
            }
        )
        part = ModelUsage("claude-fable-5", Usage(input_tokens=823, output_tokens=1612))
        self.assertEqual(reading.usage, Usage(input_tokens=203000, output_tokens=4500, parts=(part,)))

    def test_fallback(self) -> None:
        """An attempt on another model is priced there, once, whether or not the sums have it."""
        iterations = [
            {"type": "message", "model": "claude-fable-5", "input_tokens": 100, "output_tokens": 10},
            {"type": "fallback_message", "model": "claude-opus-5", "input_tokens": 200, "output_tokens": 20},
        ]
        part = ModelUsage("claude-fable-5", Usage(input_tokens=100, output_tokens=10))
        expected = Usage(input_tokens=200, output_tokens=20, parts=(part,))
        for sums in ({"input_tokens": 200, "output_tokens": 20}, {"input_tokens": 300, "output_tokens": 30}):
            self.assertEqual(body(usage={**sums, "iterations": iterations}).usage, expected)

    def test_too_large(self) -> None:
        """An answer that was too large to keep is counted by its usage."""
        shape = AnthropicMessages()
        shape.take_large({("type",): b'"message"', ("usage",): b'{"input_tokens":3,"output_tokens":4}'}, 900_000)
        reading = shape.reading(True)
        self.assertEqual((reading.usage, reading.counters), (Usage(input_tokens=3, output_tokens=4), Counters.FINAL))

    def test_what_a_tool_found_is_not_what_was_written(self) -> None:
        """A large result of a search in a stream that is cut is not charged as output; a large piece of text is."""
        for kind, characters in ((b'"content_block_start"', 0), (b'"content_block_delta"', 70_000)):
            shape = AnthropicMessages()
            shape.take_events(STREAM[:1])
            shape.take_large({("type",): kind}, 70_000)
            self.assertEqual(shape.reading(False).text_characters_after, characters)

    def test_parts_are_not_more_than_the_whole(self) -> None:
        """What another model used is taken off the sums, even if they have it in another class; no token is added."""
        other = {"type": "message", "model": "claude-fable-5"}
        usage = body(
            usage={
                "cache_read_input_tokens": 1000,
                "output_tokens": 50,
                "iterations": [other | {"input_tokens": 900, "output_tokens": 20}],
            }
        ).usage
        part = ModelUsage("claude-fable-5", Usage(input_tokens=900, output_tokens=20))
        self.assertEqual(usage, Usage(cache_read_tokens=100, output_tokens=30, parts=(part,)))
        self.assertEqual((usage.total_input, usage.total_output), (1000, 50))
        usage = body(
            usage={
                "input_tokens": 100,
                "output_tokens": 5,
                "output_tokens_details": {"thinking_tokens": 5},
                "iterations": [other | {"input_tokens": 7, "output_tokens": 2}],
            }
        ).usage
        self.assertEqual((usage.output_tokens, usage.reasoning_tokens, usage.total_output), (3, 3, 5))

    @given(
        st.dictionaries(st.sampled_from(COUNTS), st.integers(0, 30)),
        st.lists(st.dictionaries(st.sampled_from(COUNTS), st.integers(0, 30)), max_size=3),
        st.integers(0, 30),
    )
    def test_any_parts(self, sums: dict[str, int], iterations: list[dict[str, int]], thinking: int) -> None:
        """However the tokens of attempts on another model lie, the totals are the provider's or those and the parts."""
        usage = body(
            usage={
                **sums,
                "output_tokens_details": {"thinking_tokens": thinking},
                "iterations": [{"type": "message", "model": "claude-fable-5", **each} for each in iterations],
            }
        ).usage
        told = (sum(sums.get(name, 0) for name in COUNTS[1:]), sums.get("output_tokens", 0))
        others = (
            sum(each.get(name, 0) for each in iterations for name in COUNTS[1:]),
            sum(each.get("output_tokens", 0) for each in iterations),
        )
        within = others[0] <= told[0] and others[1] <= told[1]
        expected = told if within else (told[0] + others[0], told[1] + others[1])
        self.assertEqual((usage.total_input, usage.total_output), expected)
        self.assertLessEqual(usage.reasoning_tokens, usage.output_tokens)


class FreeTests(SynchronousTestCase):
    """What bills nothing."""

    def test_kinds(self) -> None:
        """Counting tokens, listing and looking at things is free, and the reason is told."""
        for found, reason in (
            ({"input_tokens": 14}, "token_count"),
            ({"type": "model", "id": "claude-opus-5"}, "model"),
            ({"type": "message_batch", "id": "msgbatch_1"}, "message_batch"),
            ({"data": [], "has_more": False}, "list"),
        ):
            keys = {name: as_json(value) for name, value in found.items()}
            self.assertTrue(AnthropicResource.recognises(keys))
            self.assertFalse(AnthropicMessages.recognises(keys))
            shape = AnthropicResource()
            shape.take_body(as_json(found))
            self.assertEqual((shape.reading(True).counters, shape.reading(True).reason), (Counters.FREE, reason))
