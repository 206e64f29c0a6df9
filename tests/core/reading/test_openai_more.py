"""OpenAI's smaller answers: each is counted by what its documentation says, and what is free says why."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.core.reading.openai_chat import OpenAIChat
from llmproxy.core.reading.openai_more import (
    OpenAIBatch,
    OpenAIEmbeddings,
    OpenAIFree,
    OpenAIImages,
    OpenAITranscription,
)
from llmproxy.core.reading.openai_responses import OpenAIResponses
from llmproxy.core.usage import NO_USAGE, Counters, ModelUsage, Reading, Usage
from tests.core.reading.recorded_openai import CHAT, RESPONSE, as_json, keys_of, read_body, read_events

SHAPES = (
    OpenAIChat,
    OpenAIResponses,
    OpenAIEmbeddings,
    OpenAIImages,
    OpenAITranscription,
    OpenAIBatch,
    OpenAIFree,
)

EMBEDDINGS = {
    "object": "list",
    "data": [{"object": "embedding", "index": 0, "embedding": [0.0023, -0.009]}],
    "model": "text-embedding-3-small",
    "usage": {"prompt_tokens": 8, "total_tokens": 8},
}
IMAGES = {
    "created": 1713833628,
    "data": [{"b64_json": "AAAA"}],
    "usage": {
        "total_tokens": 100,
        "input_tokens": 50,
        "output_tokens": 50,
        "input_tokens_details": {"text_tokens": 10, "image_tokens": 40},
    },
}
TRANSCRIPTION = {
    "text": "Imagine",
    "usage": {
        "type": "tokens",
        "input_tokens": 14,
        "input_token_details": {"text_tokens": 4, "audio_tokens": 10},
        "output_tokens": 45,
        "total_tokens": 59,
    },
}
BATCH = {
    "id": "batch_abc",
    "object": "batch",
    "model": "gpt-5.4",
    "status": "completed",
    "usage": {
        "input_tokens": 1000,
        "input_tokens_details": {"cached_tokens": 600},
        "output_tokens": 500,
        "output_tokens_details": {"reasoning_tokens": 100},
        "total_tokens": 1500,
    },
}


class EmbeddingsTests(SynchronousTestCase):
    """Embeddings."""

    def test_embeddings(self) -> None:
        """All that embeddings use is input."""
        reading = read_body(OpenAIEmbeddings(), EMBEDDINGS)
        self.assertEqual(
            reading,
            Reading(
                shape="openai-embeddings",
                usage=Usage(input_tokens=8),
                counters=Counters.FINAL,
                model="text-embedding-3-small",
            ),
        )

    def test_embeddings_that_are_too_large_to_keep(self) -> None:
        """The usage at the end of megabytes of numbers is found."""
        shape = OpenAIEmbeddings()
        shape.take_large({("usage",): as_json(EMBEDDINGS["usage"]), ("model",): b'"m"'}, 5_000_000)
        self.assertEqual(shape.reading(whole=True).usage, Usage(input_tokens=8))

    def test_embeddings_that_were_cut(self) -> None:
        """Cut before their usage, embeddings are not taken for a free list."""
        keys = {"object": b'"list"', "data": b""}
        self.assertTrue(OpenAIFree.recognises(keys))
        shape = OpenAIFree()
        shape.take_large({("object",): b'"list"'}, 300_000)
        self.assertEqual(shape.reading(whole=False).counters, Counters.ABSENT)


class ImagesTests(SynchronousTestCase):
    """Images."""

    def test_images(self) -> None:
        """The output of an image model is image; the prompt may be both."""
        expected = Usage(input_tokens=50, input_image_tokens=40, output_tokens=50, output_image_tokens=50)
        self.assertEqual(read_body(OpenAIImages(), IMAGES).usage, expected)

    def test_output_that_is_not_all_image(self) -> None:
        """Where details of the output are told, they decide."""
        usage = {**IMAGES["usage"], "output_tokens_details": {"image_tokens": 45, "text_tokens": 5}}  # type: ignore[dict-item]
        self.assertEqual(read_body(OpenAIImages(), {**IMAGES, "usage": usage}).usage.output_image_tokens, 45)

    def test_an_svg(self) -> None:
        """The model that wrote an SVG is priced as itself."""
        svg = {"model": "gpt-5.4", "input_tokens": 7, "output_tokens": 30, "reasoning_tokens": 10, "total_tokens": 37}
        usage = read_body(OpenAIImages(), {**IMAGES, "svg_usage": svg}).usage
        part = ModelUsage("gpt-5.4", Usage(input_tokens=7, output_tokens=30, reasoning_tokens=10))
        self.assertEqual((usage.parts, usage.total_input), ((part,), 57))

    def test_images_without_usage(self) -> None:
        """dall-e tells no usage: unknown, not free."""
        body = {"created": 1, "data": [{"url": "https://"}]}
        self.assertTrue(OpenAIImages.recognises(keys_of(body)))
        reading = read_body(OpenAIImages(), body)
        self.assertEqual((reading.counters, reading.reason), (Counters.ABSENT, "no_usage"))

    def test_a_stream_of_images(self) -> None:
        """The last event has the usage; a stream that is cut before has none."""
        events: list[Any] = [
            {"type": "image_generation.partial_image", "partial_image_index": 0, "b64_json": "AA"},
            {"type": "image_generation.completed", "b64_json": "AA", "usage": IMAGES["usage"]},
        ]
        self.assertEqual(read_events(OpenAIImages(), events).usage.output_image_tokens, 50)
        cut = read_events(OpenAIImages(), events[:1], whole=False)
        self.assertEqual((cut.counters, cut.reason), (Counters.ABSENT, "stream_cut"))
        shape = OpenAIImages()
        shape.take_large({("type",): b'"image_edit.completed"', ("usage",): as_json(IMAGES["usage"])}, 2_000_000)
        self.assertEqual(shape.reading(whole=True).usage.total_input, 50)


class AudioTests(SynchronousTestCase):
    """Transcripts, translations and speech."""

    def test_a_transcript_billed_by_tokens(self) -> None:
        """Sound is part of the input."""
        reading = read_body(OpenAITranscription(), TRANSCRIPTION)
        self.assertEqual(reading.usage, Usage(input_tokens=14, input_audio_tokens=10, output_tokens=45))
        self.assertEqual((reading.text_characters, reading.counters), (7, Counters.FINAL))

    def test_a_transcript_billed_by_its_length(self) -> None:
        """Seconds are counted in milliseconds, from the usage or from a verbose answer's duration."""
        by_usage = {"text": "a", "usage": {"type": "duration", "seconds": 9.4}}
        self.assertEqual(read_body(OpenAITranscription(), by_usage).usage, Usage(audio_ms=9400))
        verbose = {"task": "transcribe", "language": "english", "duration": 8.47, "text": "a"}
        self.assertEqual(read_body(OpenAITranscription(), verbose).usage, Usage(audio_ms=8470))
        self.assertEqual(read_body(OpenAITranscription(), {**verbose, "duration": "8.47"}).usage.audio_ms, 8470)
        nonsense: tuple[Any, ...] = ("x", "nan", True, -1, None, [], "1e999")
        for strange in nonsense:
            reading = read_body(OpenAITranscription(), {**verbose, "duration": strange})
            self.assertEqual((reading.counters, reading.usage), (Counters.ABSENT, NO_USAGE), strange)

    def test_groqs_transcript(self) -> None:
        """A transcript that tells no usage is unknown, not free, and its text is known."""
        body = {"text": "hello", "x_groq": {"id": "req_1"}}
        self.assertTrue(OpenAITranscription.recognises(keys_of(body)))
        reading = read_body(OpenAITranscription(), body)
        self.assertEqual((reading.counters, reading.reason), (Counters.ABSENT, "no_usage"))
        self.assertEqual(reading.text_characters, 5)

    def test_a_stream_of_a_transcript(self) -> None:
        """The text is counted from the deltas, the usage from the end."""
        events = [
            {"type": "transcript.text.delta", "delta": "Ima"},
            {"type": "transcript.text.delta", "delta": "gine"},
            {"type": "transcript.text.done", **TRANSCRIPTION},
        ]
        reading = read_events(OpenAITranscription(), events)
        self.assertEqual(reading.usage, Usage(input_tokens=14, input_audio_tokens=10, output_tokens=45))
        self.assertEqual((reading.text_characters, reading.text_events), (7, 2))
        cut = read_events(OpenAITranscription(), events[:2], whole=False)
        self.assertEqual((cut.counters, cut.text_characters), (Counters.ABSENT, 7))

    def test_a_stream_of_speech(self) -> None:
        """What is spoken is output of sound, and its base64 is no text."""
        usage = {"input_tokens": 14, "output_tokens": 101, "total_tokens": 115}
        events = [{"type": "speech.audio.delta", "audio": "AAAA"}, {"type": "speech.audio.done", "usage": usage}]
        reading = read_events(OpenAITranscription(), events)
        self.assertEqual(reading.usage, Usage(input_tokens=14, output_tokens=101, output_audio_tokens=101))
        self.assertEqual(reading.text_characters, 0)


class BatchTests(SynchronousTestCase):
    """Batches."""

    def test_a_batch_that_has_ended(self) -> None:
        """However often a batch is asked for, it is counted once, and at the price of a batch."""
        for status in ("completed", "expired", "cancelled"):
            reading = read_body(OpenAIBatch(), {**BATCH, "status": status})
            self.assertEqual(
                reading,
                Reading(
                    shape="openai-batch",
                    usage=Usage(input_tokens=400, cache_read_tokens=600, output_tokens=500, reasoning_tokens=100),
                    counters=Counters.FINAL,
                    model="gpt-5.4",
                    response_id="batch_abc",
                    batch=True,
                    once="batch_abc",
                ),
            )

    def test_a_batch_under_way(self) -> None:
        """Until it has ended a batch is free, whatever it has counted so far."""
        for status in ("validating", "in_progress", "finalizing", "cancelling"):
            reading = read_body(OpenAIBatch(), {**BATCH, "status": status})
            self.assertEqual((reading.counters, reading.reason), (Counters.FREE, "batch_pending"))
            self.assertEqual((reading.usage, reading.once), (NO_USAGE, None))

    def test_a_batch_without_usage(self) -> None:
        """A batch that tells no usage (Groq's, old ones) says so."""
        reading = read_body(OpenAIBatch(), {**BATCH, "usage": None})
        self.assertEqual((reading.counters, reading.reason), (Counters.FREE, "batch_without_usage"))


FREE: tuple[tuple[dict[str, Any], str], ...] = (
    ({"object": "list", "data": [{"id": "gpt-5.4", "object": "model"}]}, "list"),
    ({"object": "list", "data": [CHAT]}, "list"),
    ({"id": "gpt-5.4", "object": "model", "created": 1, "owned_by": "openai"}, "model"),
    ({"id": "file-1", "object": "file", "bytes": 3}, "file"),
    ({"id": "file-1", "object": "file", "deleted": True}, "deleted"),
    ({"id": "chatcmpl-1", "object": "chat.completion.deleted", "deleted": True}, "deleted"),
    ({"id": "resp_1", "object": "response.deleted"}, "deleted"),
    ({"object": "response.input_tokens", "input_tokens": 11}, "token_count"),
    ({"id": "modr-1", "model": "omni-moderation-latest", "results": []}, "moderation"),
    ({"id": "ftjob-1", "object": "fine_tuning.job", "model": "m"}, "fine_tuning_job"),
    ({"id": "vs_1", "object": "vector_store", "usage_bytes": 3}, "vector_store"),
    ({"id": "conv_1", "object": "conversation"}, "conversation"),
    ({"id": "upload_1", "object": "upload"}, "upload"),
    ({"id": "cntr_1", "object": "container"}, "container"),
    ({"id": "eval_1", "object": "eval"}, "eval"),
)


class FreeTests(SynchronousTestCase):
    """What bills nothing."""

    def test_what_is_free(self) -> None:
        """Each kind that costs nothing is told by its name."""
        for body, reason in FREE:
            self.assertTrue(OpenAIFree.recognises(keys_of(body)), body)
            reading = read_body(OpenAIFree(), body)
            self.assertEqual((reading.counters, reading.reason, reading.usage), (Counters.FREE, reason, NO_USAGE))

    def test_each_answer_has_one_shape(self) -> None:
        """In whatever order the shapes are asked, an answer is counted in the same way."""
        known: list[tuple[type, dict[str, Any]]] = [
            (OpenAIChat, dict(CHAT)),
            (OpenAIResponses, dict(RESPONSE)),
            (OpenAIEmbeddings, EMBEDDINGS),
            (OpenAIImages, IMAGES),
            (OpenAITranscription, TRANSCRIPTION),
            (OpenAIBatch, BATCH),
            *((OpenAIFree, body) for body, _ in FREE),
        ]
        for shape, body in known:
            self.assertEqual([each for each in SHAPES if each.recognises(keys_of(body))], [shape], body)

    def test_what_is_not_known_to_be_free(self) -> None:
        """An object of an unknown kind is left to be reported as unknown; a video is billed by the second."""
        video = {"object": "video", "status": "queued", "created": 1, "data": []}
        for body in (video, {"object": "new.thing"}, {"id": "x"}, {}):
            self.assertEqual([each for each in SHAPES if each.recognises(keys_of(body))], [], body)


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["input_tokens", "a"]), inner),
    max_leaves=6,
)


class AnythingTests(SynchronousTestCase):
    """No answer, however strange, raises."""

    @settings(max_examples=200, deadline=None)
    @given(
        st.sampled_from([EMBEDDINGS, IMAGES, TRANSCRIPTION, BATCH, *(body for body, _ in FREE)]),
        st.sampled_from(
            "object type id model status usage svg_usage text delta duration deleted error created data".split()
        ),
        _values,
    )
    def test_a_member_that_is_replaced(self, body: dict[str, Any], name: str, value: object) -> None:
        """A documented answer with one value replaced by any other never raises, for any shape."""
        changed = {**body, name: value}
        for shape in SHAPES:
            shape.recognises(keys_of(changed))
            read_body(shape(), changed)
            read_events(shape(), [changed, body])

    @settings(max_examples=100, deadline=None)
    @given(st.binary(max_size=40))
    def test_any_bytes(self, text: bytes) -> None:
        """What is no JSON at all is passed over, and is no known shape."""
        for shape in SHAPES[2:]:
            one = shape()
            one.take_body(text)
            one.take_events([text, b"{}"])
            one.take_large({("usage",): text, ("error", "type"): text, ("type",): text}, 7)
            one.reading(whole=True)
