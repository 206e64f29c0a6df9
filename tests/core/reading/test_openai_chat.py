"""Chat completions: what is read is what the provider's documentation says was used."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.core.reading.openai_chat import OpenAIChat
from llmproxy.core.usage import Counters, ModelUsage, Reading, Usage
from tests.core.reading.recorded_openai import (
    CHAT,
    CHAT_STREAM,
    CHAT_USAGE,
    as_json,
    chunk,
    keys_of,
    read_body,
    read_events,
)

# 2006 of the prompt, 1920 of them cached; 300 of the completion, 128 of them reasoning.
EXPECTED = Usage(input_tokens=86, cache_read_tokens=1920, output_tokens=300, reasoning_tokens=128)


def _read(*events: Any, whole: bool = True) -> Reading:
    return read_events(OpenAIChat(), list(events), whole)


class WholeAnswerTests(SynchronousTestCase):
    """Answers that are one JSON object."""

    def test_a_whole_answer(self) -> None:
        """A plain call is counted to the token, with what decides its price."""
        self.assertEqual(
            read_body(OpenAIChat(), CHAT),
            Reading(
                shape="openai-chat",
                usage=EXPECTED,
                counters=Counters.FINAL,
                model="gpt-5.4",
                response_id="chatcmpl-B9MBs8CjcvOU2jLn4n570S5qMJKcT",
                finish_reason="stop",
                service_tier="default",
                text_characters=6,
                text_events=1,
            ),
        )

    def test_all_that_is_text_counts(self) -> None:
        """Calls of tools, refusals, reasoning, spoken words and the choices after the first are all billed."""
        message = {
            "content": "ab",
            "refusal": "c",
            "reasoning_content": "def",
            "tool_calls": [
                {"function": {"name": "f", "arguments": "{}"}},
                {"custom": {"name": "g", "input": "xyz"}},
            ],
            "function_call": {"name": "h", "arguments": "1"},
            "audio": {"data": "AAAA", "transcript": "hey"},
        }
        choices = [
            {"index": 0, "message": message, "finish_reason": "tool_calls"},
            {"index": 1, "message": {"content": "four"}, "finish_reason": "length"},
        ]
        reading = read_body(OpenAIChat(), {**CHAT, "choices": choices})
        # 2 + 1 + 3, 1 + 2, 1 + 3, 1 + 1, 3, and 4
        self.assertEqual((reading.text_characters, reading.text_events), (22, 1))
        self.assertEqual(reading.finish_reason, "tool_calls")

    def test_reasoning_under_two_names_is_counted_once(self) -> None:
        """A server that writes its reasoning twice does not make an estimate double."""
        message = {"content": None, "reasoning": "think", "reasoning_content": "think"}
        reading = read_body(OpenAIChat(), {"choices": [{"index": 0, "message": message}]})
        self.assertEqual(reading.text_characters, 5)

    def test_the_older_completions(self) -> None:
        """text_completion has its text in the choice itself."""
        body = {
            "id": "cmpl-1",
            "object": "text_completion",
            "model": "gpt-3.5-turbo-instruct",
            "choices": [{"text": "This is", "index": 0, "logprobs": None, "finish_reason": "length"}],
            "usage": {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12},
        }
        reading = read_body(OpenAIChat(), body)
        self.assertEqual(reading.usage, Usage(input_tokens=5, output_tokens=7))
        self.assertEqual((reading.text_characters, reading.finish_reason), (7, "length"))

    def test_an_answer_without_usage(self) -> None:
        """An answer that tells no usage is not taken for a free one."""
        reading = read_body(OpenAIChat(), {**CHAT, "usage": None})
        self.assertEqual((reading.counters, reading.reason), (Counters.ABSENT, "no_usage"))

    def test_groqs_cache_hits_are_no_counters(self) -> None:
        """x_groq.usage of a whole answer tells hits of a cache; the usage beside it counts."""
        body = {**CHAT, "x_groq": {"id": "req_1", "usage": {"dram_cached_tokens": 5, "sram_cached_tokens": 6}}}
        self.assertEqual(read_body(OpenAIChat(), body).usage, EXPECTED)
        without = read_body(OpenAIChat(), {**body, "usage": None})
        self.assertEqual(without.counters, Counters.ABSENT)

    def test_groqs_compound_systems(self) -> None:
        """What other models used is priced as theirs, and nothing is counted twice."""
        body = {
            **CHAT,
            "model": "groq/compound",
            "usage": {"prompt_tokens": 900, "completion_tokens": 200, "total_tokens": 1100},
            "usage_breakdown": {
                "models": [
                    {"model": "m1", "usage": {"prompt_tokens": 300, "completion_tokens": 150, "total_tokens": 450}},
                    {"model": "m2", "usage": {"prompt_tokens": 500, "completion_tokens": 50, "total_tokens": 550}},
                ]
            },
        }
        usage = read_body(OpenAIChat(), body).usage
        self.assertEqual(
            usage.parts,
            (
                ModelUsage("m1", Usage(input_tokens=300, output_tokens=150)),
                ModelUsage("m2", Usage(input_tokens=500, output_tokens=50)),
            ),
        )
        self.assertEqual((usage.input_tokens, usage.output_tokens), (100, 0))
        self.assertEqual((usage.total_input, usage.total_output), (900, 200))

    def test_half_a_surrogate_pair(self) -> None:
        """An answer with a broken emoji in it is counted none the less."""
        body = json.dumps({**CHAT, "choices": [{"index": 0, "message": {"content": "a\ud83d"}}]}).encode()
        shape = OpenAIChat()
        shape.take_body(body)
        reading = shape.reading(whole=True)
        self.assertEqual((reading.usage, reading.text_characters), (EXPECTED, 2))

    def test_an_answer_that_is_too_large_to_keep(self) -> None:
        """Of a huge answer the usage is known, and its text as a bounded estimate."""
        shape = OpenAIChat()
        members: dict[tuple[str, ...], bytes] = {
            ("model",): b'"m"',
            ("usage",): as_json(CHAT_USAGE),
            ("object",): b'"chat.completion"',
        }
        shape.take_large(members, 10_000_000)
        reading = shape.reading(whole=False)
        self.assertEqual((reading.usage, reading.counters, reading.model), (EXPECTED, Counters.FINAL, "m"))
        self.assertEqual((reading.text_characters, reading.text_characters_after), (65536, 0))


class StreamTests(SynchronousTestCase):
    """Answers that come as chunks."""

    def test_a_stream(self) -> None:
        """A stream that was asked for its usage is counted to the token."""
        reading = _read(*CHAT_STREAM)
        self.assertEqual((reading.usage, reading.counters, reading.reason), (EXPECTED, Counters.FINAL, None))
        self.assertEqual((reading.model, reading.response_id), ("gpt-5.4-mini", "chatcmpl-123"))
        self.assertEqual((reading.finish_reason, reading.service_tier), ("stop", "default"))
        self.assertEqual((reading.text_characters, reading.text_events), (11, 3))
        self.assertEqual((reading.text_characters_after, reading.text_events_after), (0, 0))

    def test_the_stream_in_any_runs(self) -> None:
        """However the chunks are gathered, the same is read, and the quick way is what reads the text."""
        events = [as_json(event) for event in CHAT_STREAM]
        for cut in range(len(events) + 1):
            shape = OpenAIChat()
            for run in filter(None, (events[:cut], events[cut:])):
                self.assertTrue(shape.take_array(b"[" + b",".join(run) + b"]", len(run)))
            self.assertEqual(shape.reading(whole=True), _read(*CHAT_STREAM), cut)

    def test_a_run_of_pieces(self) -> None:
        """The quick way counts what the other one counts, a chunk without text as none."""
        run = [as_json(chunk({"content": piece})) for piece in ("ab", "", "ü")]
        quick, slow = OpenAIChat(), OpenAIChat()
        for shape in (quick, slow):
            shape.take_events([as_json(CHAT_STREAM[0])])
        self.assertTrue(quick.take_array(b"[" + b",".join(run) + b"]", 3))
        slow.take_events([*run, b'{"choices":[{"delta":{"refusal":""}}]}'])
        self.assertEqual(quick.reading(whole=False), slow.reading(whole=False))
        reading = quick.reading(whole=False)
        self.assertEqual((reading.text_characters, reading.text_events), (3, 2))

    def test_a_stream_that_is_cut(self) -> None:
        """Wherever a stream is cut before its usage, what was delivered is known; after it, all is."""
        delivered = [0, 3, 6, 11, 11]
        for at, characters in enumerate(delivered, 1):
            reading = _read(*CHAT_STREAM[:at], whole=False)
            self.assertEqual((reading.counters, reading.reason), (Counters.ABSENT, "stream_cut"))
            self.assertEqual(reading.text_characters, characters)
        self.assertEqual(_read(*CHAT_STREAM, whole=False).counters, Counters.FINAL)

    def test_a_stream_that_was_not_asked_for_its_usage(self) -> None:
        """It came to its end without a counter: to be estimated, not free."""
        reading = _read(*CHAT_STREAM[:-1])
        self.assertEqual((reading.counters, reading.reason), (Counters.ABSENT, "no_usage"))

    def test_usage_in_each_chunk(self) -> None:
        """Where the usage counts up with the text, the last one counts, and a cut shows what came after it."""
        counted = [{"prompt_tokens": 10, "completion_tokens": n, "total_tokens": 10 + n} for n in (1, 2)]
        events = (
            chunk({"content": "ab"}, usage=counted[0]),
            chunk({"content": "cd"}, usage=counted[1]),
            chunk({"content": "efg"}),
        )
        cut = _read(*events, whole=False)
        self.assertEqual((cut.counters, cut.reason), (Counters.RUNNING, "stream_cut"))
        self.assertEqual(cut.usage, Usage(input_tokens=10, output_tokens=2))
        self.assertEqual((cut.text_characters, cut.text_characters_after, cut.text_events_after), (7, 3, 1))
        self.assertEqual(_read(*events).counters, Counters.FINAL)

    def test_text_after_the_counters(self) -> None:
        """Counters that came before the text are not the whole of it, if the stream was cut."""
        usage = {"prompt_tokens": 10, "completion_tokens": 0, "total_tokens": 10}
        counted = {"id": "c", "object": "chat.completion.chunk", "model": "m", "choices": [], "usage": usage}
        text = {"id": "c", "model": "m", "choices": [{"index": 0, "delta": {"content": "hello"}}]}
        for texts in ([text], [text] * 50):
            cut = _read(counted, *texts, whole=False)
            self.assertEqual((cut.counters, cut.reason), (Counters.RUNNING, "stream_cut"))
            self.assertEqual((cut.text_characters_after, cut.text_events_after), (5 * len(texts), len(texts)))
            self.assertEqual(_read(counted, *texts).counters, Counters.FINAL)
        self.assertEqual(_read(counted, whole=False).counters, Counters.FINAL)

    def test_what_is_told_late_in_any_runs(self) -> None:
        """The tier that decides the price is the same however the network cuts the stream."""
        first, late, end = (
            {"model": "m", "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]},
            {"id": "c", "service_tier": "priority", "choices": [{"index": 0, "delta": {"content": "a"}}]},
            {"service_tier": "flex", "choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}},
        )
        stop = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
        for events, tier in (([first, late, late, stop], None), ([late | first, *[late] * 30, stop, end], "flex")):
            read = []
            for size in (1, 3, 40):
                shape = OpenAIChat()
                for at in range(0, len(events), size):
                    shape.take_events([as_json(event) for event in events[at : at + size]])
                read.append(shape.reading(True))
            self.assertEqual(read[1:], read[:-1])
            self.assertEqual(read[0].service_tier, tier)

    def test_a_breakdown_in_any_runs(self) -> None:
        """Which models answered is the same however the network cuts the stream."""
        own = {"prompt_tokens": 100, "completion_tokens": 50}
        other = {"models": [{"model": "big", "usage": {"prompt_tokens": 60, "completion_tokens": 20}}]}
        piece = {"model": "m", "choices": [{"index": 0, "delta": {"content": "a"}}]}
        events = [piece, piece | {"usage": own}, piece | {"usage_breakdown": other}, piece]
        read = []
        for size in (1, 2, 4):
            shape = OpenAIChat()
            for at in range(0, len(events), size):
                shape.take_events([as_json(event) for event in events[at : at + size]])
            read.append(shape.reading(True).usage)
        self.assertEqual(read[1:], read[:-1])
        self.assertEqual([part.model for part in read[0].parts], ["big"])

    def test_groqs_tier(self) -> None:
        """The tier that Groq's last chunk tells is the one of the call."""
        usage = {"prompt_tokens": 20, "completion_tokens": 5, "total_tokens": 25}
        last = chunk({}, "stop", x_groq={"id": "req_1", "usage": usage}, service_tier="flex")
        self.assertEqual(_read(chunk({"content": "Hello"}), last).service_tier, "flex")

    def test_groqs_stream(self) -> None:
        """Groq tells the usage in x_groq of the last chunk with a choice, unasked."""
        usage = {"prompt_tokens": 20, "completion_tokens": 5, "total_tokens": 25, "queue_time": 0.01}
        events = (
            chunk({"role": "assistant", "content": ""}, x_groq={"id": "req_1"}),
            chunk({"content": "Hello"}),
            chunk({}, "stop", x_groq={"id": "req_1", "usage": usage}),
        )
        reading = _read(*events, whole=False)
        self.assertEqual((reading.counters, reading.usage), (Counters.FINAL, Usage(input_tokens=20, output_tokens=5)))
        self.assertEqual(_read(*events[:2], whole=False).counters, Counters.ABSENT)

    def test_groq_stops_a_stream(self) -> None:
        """Groq's error inside a chunk is told."""
        reading = _read(chunk({"content": "a"}), chunk({}, x_groq={"id": "r", "error": "over capacity"}))
        self.assertEqual((reading.error, reading.counters, reading.reason), ("error", Counters.ABSENT, "error"))

    def test_geminis_thoughts(self) -> None:
        """Gemini's compat answers leave thoughts out of the completion: they are the rest of the total."""
        usage = {"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 130}
        reading = _read(chunk({"content": "x"}, "stop", usage=usage))
        self.assertEqual(reading.usage, Usage(input_tokens=10, output_tokens=120, reasoning_tokens=100))

    def test_azures_first_chunk(self) -> None:
        """A first chunk without choices and without a model is neither usage nor the model's name."""
        first = {"choices": [], "created": 0, "id": "", "model": "", "object": "", "prompt_filter_results": []}
        self.assertTrue(OpenAIChat.recognises(keys_of(first)))
        self.assertEqual(_read(first, whole=False).counters, Counters.ABSENT)
        reading = _read(first, *CHAT_STREAM)
        self.assertEqual((reading.model, reading.usage), ("gpt-5.4-mini", EXPECTED))

    def test_an_error_in_the_middle(self) -> None:
        """An error that came after some text is told with its kind, and the text is known."""
        error = {"error": {"message": "The server had an error", "type": "server_error", "param": None, "code": None}}
        reading = _read(*CHAT_STREAM[:2], error, whole=False)
        self.assertEqual((reading.error, reading.text_characters), ("server_error", 3))
        self.assertEqual(_read({"error": {"type": None, "code": "boom"}}).error, "boom")
        self.assertEqual(_read({"error": {"code": 503, "status": "UNAVAILABLE"}}).error, "UNAVAILABLE")

    def test_tools_in_a_stream(self) -> None:
        """The arguments of a call are output: an estimate counts them."""
        reading = _read(
            chunk({"tool_calls": [{"index": 0, "id": "c", "function": {"name": "add", "arguments": ""}}]}),
            chunk({"tool_calls": [{"index": 0, "function": {"arguments": '{"a":1}'}}]}),
            chunk({}, "tool_calls"),
        )
        self.assertEqual((reading.text_characters, reading.text_events), (10, 2))

    def test_a_second_choice(self) -> None:
        """With several choices the first one's end is the end that is told, and the text of all counts."""
        second = chunk({"content": "xy"}, "length")
        second["choices"][0]["index"] = 1
        reading = _read(chunk({"content": "a"}), chunk({}, "stop"), second)
        self.assertEqual((reading.finish_reason, reading.text_characters), ("stop", 3))

    def test_a_broken_chunk_does_not_lose_the_others(self) -> None:
        """A chunk that is no JSON, or of a strange form, is passed over alone."""
        texts = [as_json(event) for event in CHAT_STREAM]
        strange = [b"{", b"[]", b"3", b'{"choices":7}', b'{"choices":[{"delta":"a"},5]}', b'{"a":' + b"[" * 5000]
        shape = OpenAIChat()
        self.assertFalse(shape.take_array(b"[" + b",".join([*texts, strange[0]]) + b"]", 7))
        self.assertEqual(shape.reading(whole=False), OpenAIChat().reading(whole=False))
        shape.take_events([*strange[:3], *texts[:3], *strange[3:], *texts[3:]])
        self.assertEqual(shape.reading(whole=True), _read(*CHAT_STREAM))

    def test_a_count_that_does_not_fit_takes_nothing(self) -> None:
        """An event that only looks like one of a list is never counted as another."""
        shape = OpenAIChat()
        text = b"[" + b",".join([as_json(chunk({"content": "a"}))] * 2) + b"]"
        shape.take_events([as_json(CHAT_STREAM[0])])
        before = shape.reading(whole=False)
        self.assertFalse(shape.take_array(text, 3))
        self.assertEqual(shape.reading(whole=False), before)

    def test_a_chunk_that_is_too_large_to_keep(self) -> None:
        """One huge chunk in a stream counts as text that is bounded."""
        shape = OpenAIChat()
        shape.take_events([as_json(CHAT_STREAM[1])])
        shape.take_large({("object",): b'"chat.completion.chunk"', ("model",): b'"gpt-5.4-mini"'}, 70_000)
        reading = shape.reading(whole=False)
        self.assertEqual((reading.text_characters, reading.text_events), (3 + 65536, 2))


class RecognitionTests(SynchronousTestCase):
    """Which answers are taken for chat completions."""

    def test_what_is_a_chat_completion(self) -> None:
        """The answer tells, not the path: OpenAI's, Groq's, Gemini's and Anthropic's alike."""
        older: dict[str, Any] = {"object": "text_completion"}
        bare: dict[str, Any] = {"choices": []}
        for answer in (CHAT, CHAT_STREAM[0], CHAT_STREAM[-1], older, bare):
            self.assertTrue(OpenAIChat.recognises(keys_of(answer)), answer)

    def test_what_is_none(self) -> None:
        """Lists of stored completions, deleted ones and other shapes are none."""
        others: list[dict[str, Any]] = [
            {"object": "list", "data": []},
            {"object": "chat.completion.deleted"},
            {"type": "message"},
            {},
        ]
        for answer in others:
            self.assertFalse(OpenAIChat.recognises(keys_of(answer)), answer)


_scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)
_names = st.sampled_from(
    "choices usage x_groq error model id delta message content index finish_reason tool_calls function audio "
    "prompt_tokens completion_tokens total_tokens prompt_tokens_details completion_tokens_details cached_tokens "
    "cache_write_tokens reasoning_tokens audio_tokens image_tokens usage_breakdown models".split()
)
_values = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_names, inner, max_size=5),
    max_leaves=20,
)


class AnythingTests(SynchronousTestCase):
    """No answer, however strange, raises or counts what is not there."""

    @settings(max_examples=200, deadline=None)
    @given(st.lists(st.dictionaries(_names, _values, max_size=6), max_size=4), st.booleans())
    def test_any_object(self, events: list[dict[str, Any]], whole: bool) -> None:
        """Members of any type are passed over, and every class stays at 0 or above."""
        reading = read_events(OpenAIChat(), events, whole)
        for name in Usage.__struct_fields__[:11]:
            self.assertGreaterEqual(getattr(reading.usage, name), 0)
        for event in events:
            read_body(OpenAIChat(), event)

    @settings(max_examples=200, deadline=None)
    @given(st.data())
    def test_a_member_that_is_replaced(self, data: st.DataObject) -> None:
        """A documented stream with one value in it replaced by any other never raises."""
        events = json.loads(json.dumps(CHAT_STREAM))
        at: Any = data.draw(st.sampled_from(events))
        while True:
            key = data.draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at))))
            if not at[key] or not isinstance(at[key], dict | list) or data.draw(st.booleans()):
                break
            at = at[key]
        at[key] = data.draw(_values)
        read_events(OpenAIChat(), events)

    @settings(max_examples=100, deadline=None)
    @given(st.binary(max_size=40) | st.sampled_from([b"NaN", b"\xff", b'{"usage":1e999}', b'"\\ud800"']))
    def test_any_bytes(self, text: bytes) -> None:
        """What is no JSON at all is passed over."""
        shape = OpenAIChat()
        shape.take_events([text])
        shape.take_body(text)
        shape.take_array(text, 1)
        shape.take_large({("usage",): text, ("choices",): text, ("x_groq", "usage"): text}, len(text))
        shape.reading(whole=True)
