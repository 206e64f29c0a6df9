"""The catalog: every kind of answer goes to the shape that knows it."""

from __future__ import annotations

import json
from types import MappingProxyType
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.core.reading.catalog import PLAIN_SHAPES, SHAPES
from llmproxy.core.reading.reader import UsageReader, read_whole
from llmproxy.core.usage import Counters, Reading

# After the examples in the providers' API references; what does not tell the shape is left out.
BODIES = MappingProxyType(
    {
        "openai-chat": (
            b'{"id":"chatcmpl-1","object":"chat.completion","choices":[],"usage":{"prompt_tokens":1}}',
            b'{"id":"chatcmpl-1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"a"}}]}',
            b'{"id":"cmpl-1","object":"text_completion","choices":[{"text":"a"}],"model":"gpt-3.5-turbo-instruct"}',
        ),
        "anthropic-messages": (
            b'{"id":"msg_1","type":"message","role":"assistant","content":[],"usage":{"input_tokens":1}}',
            b'{"type":"message_start","message":{"id":"msg_1","type":"message","usage":{"input_tokens":1}}}',
        ),
        "gemini": (
            b'{"candidates":[{"content":{"parts":[{"text":"a"}]}}],"usageMetadata":{"promptTokenCount":1}}',
            b'{"promptFeedback":{"blockReason":"SAFETY"},"modelVersion":"gemini-2.5-flash"}',
        ),
        "openai-responses": (
            b'{"id":"resp_1","object":"response","status":"completed","output":[],"error":null}',
            b'{"type":"response.created","response":{"id":"resp_1","object":"response"}}',
        ),
        "bedrock-converse": (
            b'{"output":{"message":{"role":"assistant"}},"stopReason":"end_turn","usage":{"inputTokens":1}}',
            b'{"messageStart":{"role":"assistant"}}',
        ),
        "bedrock-invoke": (b'{"chunk":{"bytes":"e30="}}',),
        "gemini-interactions": (
            b'{"id":"i","object":"interaction","status":"completed","usage":{"total_input_tokens":1}}',
            b'{"event_type":"interaction.created","interaction":{"id":"i"}}',
        ),
        "openai-embeddings": (
            b'{"object":"list","data":[{"object":"embedding","embedding":[0.1]}],"model":"m","usage":{"prompt_tokens":1}}',
        ),
        "gemini-embedding": (b'{"embedding":{"values":[0.1]}}', b'{"embeddings":[{"values":[0.1]}]}'),
        "openai-images": (
            b'{"created":1,"data":[{"b64_json":"AA=="}],"usage":{"input_tokens":1,"output_tokens":2}}',
            b'{"type":"image_generation.completed","b64_json":"AA==","usage":{"input_tokens":1}}',
        ),
        "openai-batch": (b'{"id":"batch_1","object":"batch","status":"in_progress"}',),
        "anthropic-batch-results": (b'{"custom_id":"a","result":{"type":"errored","error":{}}}',),
        "openai-audio": (
            b'{"text":"a","usage":{"type":"duration","seconds":3}}',
            b'{"type":"transcript.text.delta","delta":"a"}',
        ),
    }
)
FREE = (
    b'{"object":"list","data":[{"id":"gpt-4o","object":"model"}]}',
    b'{"id":"file-1","object":"file","bytes":1}',
    b'{"id":"modr-1","model":"omni-moderation-latest","results":[]}',
    b'{"id":"resp_1","object":"response.deleted","deleted":true}',
    b'{"input_tokens":14}',
    b'{"data":[],"has_more":false,"first_id":null,"last_id":null}',
    b'{"type":"model","id":"claude-sonnet-4-20250514"}',
    b'{"id":"msgbatch_1","type":"message_batch","processing_status":"ended"}',
    b'{"totalTokens":10}',
    b'{"models":[{"name":"models/gemini-2.5-flash"}],"nextPageToken":"x"}',
    b'{"name":"cachedContents/x","usageMetadata":{"totalTokenCount":5}}',
)
SCRAPS = (b"", b"\n\n", b"\r", b"{", b"}", b'"', b"\\", b"null", b"[1]", b"-1", b"1e400", b"\xff", b"9" * 25, b"[DONE]")


def read(body: bytes, size: int, whole: bool) -> Reading:
    reader = UsageReader(SHAPES)
    for at in range(0, len(body), size):
        reader.feed(body[at : at + size])
    return reader.finish(whole)


class CatalogTests(SynchronousTestCase):
    """Which shape takes which answer."""

    def test_every_shape_has_answers_of_its_own(self) -> None:
        """Each kind of answer is read by the shape that was made for it, plain and as an event of a stream."""
        for name, bodies in BODIES.items():
            for body in bodies:
                self.assertEqual(read_whole(body, SHAPES).shape, name, body)
                reader = UsageReader(SHAPES)
                reader.feed(b"data: %b\n\n" % body)
                self.assertEqual(reader.finish(True).shape, name, body)

    def test_what_bills_nothing(self) -> None:
        """Lists, files, counts and the like are known to be free."""
        for body in FREE:
            self.assertEqual(read_whole(body, SHAPES).counters, Counters.FREE, body)

    def test_each_shape_has_a_name_of_its_own(self) -> None:
        """A name in the log means one shape."""
        names = [shape_class().name for shape_class in SHAPES]
        self.assertEqual(len(set(names)), len(names))

    def test_what_nobody_knows(self) -> None:
        """An error, a ping and an empty object are of no shape."""
        for body in (b"{}", b'{"type":"ping"}', b'{"error":{"type":"x"}}', b'{"type":"error","error":{"type":"x"}}'):
            self.assertEqual(read_whole(body, SHAPES).shape, "", body)

    @given(
        st.sampled_from(sorted(BODIES)),
        st.lists(st.tuples(st.integers(0, 300), st.integers(0, 5), st.sampled_from(SCRAPS)), max_size=4),
        st.integers(1, 60),
        st.booleans(),
    )
    def test_damaged_answers(self, name: str, changes: list[tuple[int, int, bytes]], size: int, whole: bool) -> None:
        """Whatever a provider writes into an answer, no shape raises, and the reading is the same in any split."""
        events = b"".join(b"data: %b\n\n" % body for body in BODIES[name] * 3)
        for body in (events, b"\n".join(BODIES[name]), BODIES[name][0]):
            for at, removed, added in changes:
                body = body[:at] + added + body[at + removed :]
            self.assertEqual(read(body, size, whole), read(body, len(body) or 1, whole))
            self.assertEqual(read_whole(body, SHAPES), read(body, size, True))


class HalfSurrogatePairTests(SynchronousTestCase):
    """An emoji that the model's tokens cut in two: `"\\ud83d"` by itself."""

    def test_whole_answers(self) -> None:
        """An answer with half an emoji is read like any other: its usage, and the length of its text."""
        text = "hi\ud83d"
        answers: list[tuple[dict[str, object], int, int]] = [
            (
                {
                    "candidates": [{"content": {"parts": [{"text": text}]}, "finishReason": "STOP"}],
                    "usageMetadata": {"promptTokenCount": 5, "candidatesTokenCount": 6},
                },
                5,
                6,
            ),
            (
                {
                    "type": "message",
                    "content": [{"type": "text", "text": text}],
                    "usage": {"input_tokens": 5, "output_tokens": 2},
                },
                5,
                2,
            ),
            (
                {
                    "object": "chat.completion",
                    "choices": [{"index": 0, "message": {"content": text}, "finish_reason": "stop"}],
                    "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
                },
                5,
                2,
            ),
            (
                {
                    "object": "interaction",
                    "status": "completed",
                    "steps": [{"content": [{"text": text}]}],
                    "usage": {"total_input_tokens": 5, "total_output_tokens": 2},
                },
                5,
                2,
            ),
        ]
        for answer, total_input, total_output in answers:
            reading = read_whole(json.dumps(answer).encode(), SHAPES, PLAIN_SHAPES)
            self.assertEqual(reading.counters, Counters.FINAL, answer)
            self.assertEqual((reading.usage.total_input, reading.usage.total_output), (total_input, total_output))
            self.assertEqual(reading.text_characters, 3)

    def test_in_the_name_of_a_member(self) -> None:
        """A member whose name has half an emoji is one that nobody asks for; it takes nothing else with it."""
        half = {"\ud83d": 1, "service\ud83dtier": "flex"}
        usage = {"prompt_tokens": 100, "completion_tokens": 5}
        said = {"role": "assistant", "content": "hi", **half}
        counted = {"input_tokens": 100, "output_tokens": 5}
        answers: tuple[dict[str, Any], ...] = (
            {
                "object": "chat.completion",
                **half,
                "choices": [{"index": 0, "message": said, **half}],
                "usage": usage | half,
            },
            {"object": "response", **half, "output": [{"type": "message", **half}], "usage": counted | half},
            {"created": 1, **half, "data": [{"b64_json": "AA", **half}], "usage": counted | {"total_tokens": 105}},
            {"type": "message", **half, "content": [{"type": "text", "text": "hi", **half}], "usage": counted},
        )
        for answer in answers:
            reading = read_whole(json.dumps(answer).encode(), SHAPES, PLAIN_SHAPES)
            self.assertEqual(reading.counters, Counters.FINAL, answer)
            self.assertEqual((reading.usage.total_input, reading.usage.total_output), (100, 5), answer)

    def test_the_results_of_a_batch(self) -> None:
        """Half an emoji in one result of a batch loses neither that one nor the others."""
        for number in (1, 3, 500):
            lines = [
                json.dumps(
                    {
                        "custom_id": f"a{at}",
                        "result": {
                            "type": "succeeded",
                            "message": {
                                "model": "m",
                                "content": [{"text": "hi" if at else "hi\ud83d"}],
                                "usage": {"input_tokens": 5, "output_tokens": 2},
                            },
                        },
                    }
                )
                for at in range(number)
            ]
            reading = read_whole("\n".join(lines).encode(), SHAPES, PLAIN_SHAPES)
            self.assertEqual((reading.shape, reading.counters), ("anthropic-batch-results", Counters.FINAL))
            self.assertEqual((reading.usage.total_input, reading.usage.total_output), (5 * number, 2 * number))
