"""Plain chat completions: the quick way reads what the other one reads."""

from __future__ import annotations

import json
from typing import Any
from unittest import mock

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.core.reading import openai_chat
from llmproxy.core.reading.catalog import PLAIN_SHAPES, SHAPES
from llmproxy.core.reading.openai_chat import OpenAIChat
from llmproxy.core.reading.openai_chat_plain import PLAIN_ANSWER, PlainChat, plain_usage
from llmproxy.core.reading.reader import read_whole
from llmproxy.core.usage import Counters, Reading, Usage
from tests.core.reading.mutated import every_change, mutated
from tests.core.reading.recorded_openai import CHAT, CHAT_STREAM, as_json

COUNT = st.integers(0, 3000)


def _details(*names: str) -> st.SearchStrategy[dict[str, int] | None]:
    return st.none() | st.fixed_dictionaries({}, optional=dict.fromkeys(names, COUNT))


USAGE = st.fixed_dictionaries(
    {"prompt_tokens": COUNT, "completion_tokens": COUNT, "total_tokens": COUNT},
    optional={
        "prompt_tokens_details": _details("cached_tokens", "cache_write_tokens", "audio_tokens", "image_tokens"),
        "completion_tokens_details": _details("reasoning_tokens", "audio_tokens", "image_tokens"),
        "queue_time": st.just(0.01),
    },
)
TEXT = st.sampled_from((None, "", "ab", "h\xe9llo"))
CALL = {"id": "c", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}}
MESSAGE = st.fixed_dictionaries(
    {"role": st.just("assistant"), "content": TEXT},
    optional={
        "refusal": TEXT,
        "reasoning": TEXT,
        "reasoning_content": TEXT,
        "tool_calls": st.sampled_from((None, [], [CALL], [CALL, CALL])),
        "annotations": st.just([]),
    },
)
CHOICE = st.fixed_dictionaries(
    {"message": MESSAGE}, optional={"index": st.integers(0, 2), "finish_reason": TEXT, "logprobs": st.none()}
)
ANSWER = st.fixed_dictionaries(
    {"choices": st.lists(CHOICE, max_size=3), "usage": USAGE},
    optional={
        "id": TEXT,
        "model": TEXT,
        "object": st.just("chat.completion"),
        "service_tier": TEXT,
        "x_groq": st.sampled_from((None, {"id": "req_1"}, {"usage": {"dram_cached_tokens": 5}})),
    },
)
NAMES = (
    "choices usage x_groq error usage_breakdown model id service_tier delta message text content refusal reasoning "
    "tool_calls function custom name arguments input function_call audio index finish_reason prompt_tokens "
    "completion_tokens total_tokens input_tokens output_tokens cached_tokens cache_write_tokens reasoning_tokens "
    "audio_tokens image_tokens prompt_tokens_details completion_tokens_details input_tokens_details "
    "input_token_details output_tokens_details output_token_details cache_write_tokens_details cached_tokens_details"
).split()
VALUES: tuple[Any, ...] = (
    *(None, 0, 7, 2**63 - 1, 2**63, 10**30, -5, True, 1.0, "", "x", "\ud83d", "w" * 257, [], {}, [7], [{}]),
    {"content": "abc"},
    {"name": "f", "arguments": "xyz", "input": "q"},
    {"cached_tokens": 2, "audio_tokens": 1, "reasoning_tokens": 3},
    {"ttl_30m_tokens": 1, "ttl_12h_tokens": 2, "audio_tokens": 1},
    {"error": "over", "usage": {"prompt_tokens": 3}, "usage_breakdown": {"models": []}},
    {"models": [{"model": "m", "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}}]},
)


def read(*bodies: bytes) -> list[Reading]:
    """What is known after each of these bodies, whole and cut, and after a chunk that comes after all."""
    shape = OpenAIChat()
    readings = []
    for body in bodies:
        shape.take_body(body)
        readings += [shape.reading(True), shape.reading(False)]
    shape.take_events([as_json(CHAT_STREAM[1])])
    return [*readings, shape.reading(False)]


def read_without(*bodies: bytes) -> list[Reading]:
    """The same, with no answer taken for a plain one."""
    with mock.patch.object(openai_chat, "PLAIN_ANSWER", msgspec.json.Decoder(None)):
        return read(*bodies)


class PlainTests(SynchronousTestCase):
    """The quick way and the other one."""

    def test_a_documented_answer_is_plain(self) -> None:
        """The answer of OpenAI's reference goes the quick way, and so does one that calls a function."""
        # 2006 of the prompt, 1920 of them cached; 300 of the completion, 128 of them reasoning.
        expected = Usage(input_tokens=86, cache_read_tokens=1920, output_tokens=300, reasoning_tokens=128)
        call = {"index": 0, "message": {"role": "assistant", "content": None, "tool_calls": [CALL]}}
        for answer in (CHAT, {**CHAT, "choices": [call]}):
            self.assertEqual(plain_usage(PLAIN_ANSWER.decode(as_json(answer)).usage), expected)
        reading = read(as_json({**CHAT, "choices": [call]}))[0]
        self.assertEqual((reading.usage, reading.counters), (expected, Counters.FINAL))
        self.assertEqual((reading.text_characters, reading.text_events), (10, 1))  # add, {"a":1}

    def test_what_is_not_plain(self) -> None:
        """Whatever would change what is read is refused by its type."""
        for name in ("error", "usage_breakdown", "x_groq"):
            self.assertRaises(msgspec.ValidationError, PLAIN_ANSWER.decode, as_json({**CHAT, name: "x"}))
        audio: dict[str, Any] = {"index": 0, "message": {"content": None, "audio": {"transcript": "hey"}}}
        self.assertRaises(msgspec.ValidationError, PLAIN_ANSWER.decode, as_json({**CHAT, "choices": [audio]}))
        self.assertRaises(msgspec.ValidationError, PLAIN_ANSWER.decode, as_json({**CHAT, "usage": None}))

    @settings(max_examples=150, deadline=None)
    @given(ANSWER)
    def test_plain_answers(self, answer: dict[str, Any]) -> None:
        """Every plain answer is taken for one, and read as if it were not."""
        body = json.dumps(answer).encode()
        PLAIN_ANSWER.decode(body)
        self.assertEqual(read(body), read_without(body))

    @settings(max_examples=100, deadline=None)
    @given(mutated(ANSWER, NAMES, VALUES), mutated(st.just(CHAT), NAMES, VALUES))
    def test_mutations(self, one: bytes, other: bytes) -> None:
        """Whatever becomes of its values, an answer is read in the same way, be it the first one or not."""
        self.assertEqual(read(one, other), read_without(one, other))

    def test_every_change(self) -> None:
        """Whatever a member becomes, and whatever is added: an answer is read in the same way."""
        counters = {"prompt_tokens": 20, "completion_tokens": 30, "total_tokens": 55}
        given = {"cached_tokens": 4, "cache_write_tokens": 5, "audio_tokens": 6, "image_tokens": 1}
        made = {"reasoning_tokens": 9, "audio_tokens": 8, "image_tokens": 7}
        details = {"prompt_tokens_details": given, "completion_tokens_details": made}
        empty: dict[str, Any] = {"prompt_tokens_details": {}, "completion_tokens_details": {}}
        message = {"content": "ab", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
        for more in (details, empty):
            answer = {
                "id": "i",
                "model": "m",
                "service_tier": "default",
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": {**counters, **more},
                "x_groq": {"id": "r"},
            }
            for body in every_change(answer, NAMES, VALUES):
                self.assertEqual(read(body), read_without(body), body)

    def test_another_answer_without_its_tier(self) -> None:
        """What one answer told is not lost by another one that tells nothing of it."""
        bodies = as_json(CHAT), as_json({**CHAT, "service_tier": None, "choices": []})
        self.assertEqual(read(*bodies), read_without(*bodies))
        self.assertEqual(read(*bodies)[-1].service_tier, "default")

    def test_members_that_are_written_twice(self) -> None:
        """Of a member that is written twice, the last one counts, as it did."""
        body = as_json(CHAT)[:-1]
        for more in (b'"usage":null', b'"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":9}', b'"id":7'):
            self.assertEqual(read(body + b"," + more + b"}"), read_without(body + b"," + more + b"}"), more)


class Quickest(SynchronousTestCase):
    """A plain answer that is here whole is read without asking which shape it has."""

    @given(mutated(ANSWER.map(lambda answer: {"object": "chat.completion", **answer}), NAMES, VALUES))
    def test_the_same(self, body: bytes) -> None:
        """It reads as it does without the short cut, plain or not, whatever is wrong with it."""
        self.assertEqual(read_whole(body, SHAPES, PLAIN_SHAPES), read_whole(body, SHAPES))

    def test_it_is_taken(self) -> None:
        """The recorded answer of the API is one of those."""
        self.assertIsNotNone(PlainChat.read_plain(as_json(CHAT)))
        self.assertIsNone(PlainChat.read_plain(b"{"))
