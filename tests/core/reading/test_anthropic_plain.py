"""Plain messages of Anthropic: the quick way reads what the other one reads."""

from __future__ import annotations

import json
from typing import Any
from unittest import mock

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.core.reading import anthropic
from llmproxy.core.reading.anthropic import AnthropicMessages
from llmproxy.core.reading.anthropic_plain import PLAIN_MESSAGE, plain_usage
from llmproxy.core.usage import Reading, Usage
from tests.core.reading.mutated import every_change, mutated
from tests.core.reading.recorded_anthropic import STREAM, as_json

# As in the Claude API reference, "Messages", with the counters of "Prompt caching" and "Web search tool".
MESSAGE: dict[str, Any] = {
    "id": "msg_01",
    "type": "message",
    "role": "assistant",
    "model": "claude-opus-5",
    "content": [
        {"type": "thinking", "thinking": "Hm.", "signature": "QUJD"},
        {"type": "text", "text": "Hi!"},
        {"type": "tool_use", "id": "toolu_01", "name": "f", "input": {"a": 1}},
    ],
    "stop_reason": "tool_use",
    "stop_sequence": None,
    "usage": {
        "input_tokens": 25,
        "cache_creation_input_tokens": 456,
        "cache_read_input_tokens": 1800,
        "cache_creation": {"ephemeral_5m_input_tokens": 356, "ephemeral_1h_input_tokens": 100},
        "output_tokens": 89,
        "output_tokens_details": {"thinking_tokens": 40},
        "server_tool_use": {"web_search_requests": 2, "web_fetch_requests": 0},
        "service_tier": "standard",
        "inference_geo": "us",
    },
}

COUNT = st.integers(0, 3000)
MAYBE = st.none() | COUNT
TEXT = st.sampled_from((None, "", "ab", "h\xe9llo", "batch"))
USAGE = st.fixed_dictionaries(
    {"input_tokens": COUNT, "output_tokens": COUNT},
    optional={
        "cache_creation_input_tokens": MAYBE,
        "cache_read_input_tokens": MAYBE,
        "cache_creation": st.none()
        | st.fixed_dictionaries(
            {}, optional=dict.fromkeys(("ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens"), COUNT)
        ),
        "output_tokens_details": st.none() | st.fixed_dictionaries({}, optional={"thinking_tokens": COUNT}),
        "server_tool_use": st.none()
        | st.dictionaries(st.sampled_from(("web_search_requests", "web_fetch_requests", "requests", "x")), COUNT),
        "service_tier": TEXT,
        "speed": TEXT,
        "inference_geo": TEXT,
    },
)
BLOCK = st.sampled_from((*MESSAGE["content"], {}, {"type": "tool_use", "input": {}}, {"text": "h\xe9", "input": [1.5]}))
ANSWER = st.fixed_dictionaries(
    {"type": st.just("message"), "content": st.lists(BLOCK, max_size=3), "usage": USAGE},
    optional={"id": TEXT, "model": TEXT, "stop_reason": TEXT},
)
NAMES = (
    "type id model content usage stop_reason error text thinking input input_tokens output_tokens "
    "cache_creation_input_tokens cache_read_input_tokens cache_creation ephemeral_5m_input_tokens "
    "ephemeral_1h_input_tokens output_tokens_details thinking_tokens server_tool_use web_search_requests iterations "
    "service_tier speed inference_geo delta message"
).split()
VALUES: tuple[Any, ...] = (
    *(None, 0, 7, 2**53 - 1, 2**53, 10**30, -5, True, 1.0, "", "x", "\ud83d", "w" * 257, [], {}, [7]),
    *("message", "message_delta", "message_start", "error"),
    {"ephemeral_1h_input_tokens": 9, "x": None},
    {"web_search_requests": 3, "odd_requests": "x"},
    [{"type": "compaction", "input_tokens": 5, "output_tokens": 6}],
    [{"type": "advisor_message", "model": "m", "input_tokens": 5, "output_tokens": 6}],
)


def read(*bodies: bytes) -> list[Reading]:
    """What is known after each of these bodies, whole and cut, and after a stream that comes after all."""
    shape = AnthropicMessages()
    readings = []
    for body in bodies:
        shape.take_body(body)
        readings += [shape.reading(True), shape.reading(False)]
    for event in (b'{"type":"message_delta","delta":{},"usage":{"output_tokens":9}}', *STREAM):
        shape.take_events([event])
        readings.append(shape.reading(False))
    return readings


def read_without(*bodies: bytes) -> list[Reading]:
    """The same, with no message taken for a plain one."""
    with mock.patch.object(anthropic, "PLAIN_MESSAGE", msgspec.json.Decoder(None)):
        return read(*bodies)


class PlainTests(SynchronousTestCase):
    """The quick way and the other one."""

    def test_a_documented_message_is_plain(self) -> None:
        """A message as the reference shows it goes the quick way, and is counted to the token."""
        expected = Usage(
            input_tokens=25,
            cache_read_tokens=1800,
            cache_write_5m_tokens=356,
            cache_write_1h_tokens=100,
            output_tokens=89,
            reasoning_tokens=40,
            server_tools=(("web_search", 2),),
        )
        self.assertEqual(plain_usage(PLAIN_MESSAGE.decode(as_json(MESSAGE)).usage), expected)
        reading = read(as_json(MESSAGE))[0]
        self.assertEqual((reading.usage, reading.text_characters), (expected, 13))  # Hm., Hi!, {"a":1}

    def test_what_is_not_plain(self) -> None:
        """Iterations, which are counted one by one, are read the other way; so is what is no message."""
        usage = {**MESSAGE["usage"], "iterations": [{"type": "message", "input_tokens": 1, "output_tokens": 1}]}
        for other in ({"usage": usage}, {"type": "message_start"}, {"usage": {"input_tokens": 3}}):
            self.assertRaises(msgspec.ValidationError, PLAIN_MESSAGE.decode, as_json({**MESSAGE, **other}))

    @settings(max_examples=150, deadline=None)
    @given(ANSWER)
    def test_plain_messages(self, answer: dict[str, Any]) -> None:
        """Every plain message is taken for one, and read as if it were not."""
        body = json.dumps(answer).encode()
        PLAIN_MESSAGE.decode(body)
        self.assertEqual(read(body), read_without(body))

    @settings(max_examples=100, deadline=None)
    @given(mutated(ANSWER, NAMES, VALUES), mutated(st.just(MESSAGE), NAMES, VALUES))
    def test_mutations(self, one: bytes, other: bytes) -> None:
        """Whatever becomes of its values, a message is read in the same way, be it the first one or not."""
        self.assertEqual(read(one, other), read_without(one, other))

    def test_every_change(self) -> None:
        """Whatever a member becomes, and whatever is added: a message is read in the same way."""
        for body in every_change(MESSAGE, NAMES, VALUES):
            self.assertEqual(read(body), read_without(body), body)

    def test_members_that_are_written_twice(self) -> None:
        """Of a member that is written twice, the last one counts, as it did."""
        body = as_json(MESSAGE)[:-1]
        for more in (b'"usage":null', b'"usage":{"input_tokens":1,"output_tokens":2}', b'"type":"error"'):
            self.assertEqual(read(body + b"," + more + b"}"), read_without(body + b"," + more + b"}"), more)
