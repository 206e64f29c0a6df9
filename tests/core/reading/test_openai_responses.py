"""Responses: what is read is what the provider's documentation says was used, whole, streamed and polled."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.core.reading.openai_responses import OpenAIResponses
from llmproxy.core.usage import Counters, ModelUsage, Reading, Usage
from tests.core.reading.recorded_openai import (
    RESPONSE,
    RESPONSE_STREAM,
    as_json,
    keys_of,
    read_body,
    read_events,
)

# 5000 in: 1024 from the cache, 1000 written for 30 minutes, 2000 for 12 hours, 976 neither. One search that is billed
# (to open a page is none), and one of files.
EXPECTED = Usage(
    input_tokens=976,
    cache_read_tokens=1024,
    cache_write_5m_tokens=1000,
    cache_write_1h_tokens=2000,
    output_tokens=87,
    reasoning_tokens=40,
    server_tools=(("file_search", 1), ("web_search", 1)),
)
TOOLS = (("file_search", 1), ("web_search", 1))


def _read(*events: Any, whole: bool = True) -> Reading:
    return read_events(OpenAIResponses(), list(events), whole)


def _body(**changes: Any) -> Reading:
    return read_body(OpenAIResponses(), {**RESPONSE, **changes})


class WholeResponseTests(SynchronousTestCase):
    """Responses that are one JSON object."""

    def test_a_whole_response(self) -> None:
        """A plain call is counted to the token, with what decides its price and the tools that the provider ran."""
        self.assertEqual(
            _body(),
            Reading(
                shape="openai-responses",
                usage=EXPECTED,
                counters=Counters.FINAL,
                model="gpt-5.4",
                response_id="resp_67ccd2bed1ec8190b14f964abc054267",
                finish_reason="completed",
                service_tier="priority",
                text_characters=6 + 3 + 7 + 6,  # "Think.", "add", '{"a":1}', "Hi you"
                text_events=1,
            ),
        )

    def test_a_response_in_the_background(self) -> None:
        """While it is polled it is free; when it has ended it is counted once, by its id."""
        for status in ("queued", "in_progress"):
            pending = _body(status=status, background=True, usage=None, output=[])
            self.assertEqual((pending.counters, pending.reason), (Counters.FREE, "background_pending"))
            self.assertEqual((pending.once, pending.finish_reason), (None, None))
        ended = _body(background=True)
        self.assertEqual(ended.counters, Counters.FINAL)
        self.assertEqual(ended.once, "resp_67ccd2bed1ec8190b14f964abc054267")
        self.assertEqual(_body().once, None)

    def test_an_incomplete_response(self) -> None:
        """The reason why a response ended early is its finish reason, and its usage counts."""
        reading = _body(status="incomplete", incomplete_details={"reason": "max_output_tokens"})
        self.assertEqual((reading.finish_reason, reading.usage), ("max_output_tokens", EXPECTED))

    def test_a_failed_response(self) -> None:
        """A failure is told with its code."""
        reading = _body(status="failed", usage=None, output=[], error={"code": "server_error", "message": "m"})
        self.assertEqual((reading.error, reading.finish_reason), ("server_error", "failed"))
        self.assertEqual((reading.counters, reading.reason), (Counters.ABSENT, "error"))

    def test_what_the_provider_counts_of_tools(self) -> None:
        """The provider's own count of billed searches goes before the items, and pictures are priced as their model."""
        drawing = {
            "input_tokens": 50,
            "input_tokens_details": {"image_tokens": 30, "text_tokens": 20},
            "cached_tokens": 10,
            "cached_tokens_details": {"cached_image_tokens": 10, "cached_text_tokens": 0},
            "output_tokens": 272,
            "total_tokens": 322,
        }
        reading = _body(
            tool_usage={"image_gen": drawing, "web_search": {"num_requests": 3}},
            tools=[{"type": "image_generation", "model": "gpt-image-2"}],
        )
        self.assertEqual(reading.usage.server_tools, (("file_search", 1), ("web_search", 3)))
        self.assertEqual(
            reading.usage.parts,
            (
                ModelUsage(
                    "gpt-image-2",
                    Usage(
                        input_tokens=40,
                        cache_read_tokens=10,
                        input_image_tokens=20,
                        output_tokens=272,
                        output_image_tokens=272,
                    ),
                ),
            ),
        )
        none = _body(tool_usage={"image_gen": {**drawing, **dict.fromkeys(drawing, 0)}, "web_search": {}})
        self.assertEqual(none.usage, EXPECTED)

    def test_every_tool_has_its_name(self) -> None:
        """Each call of a tool that the provider runs is counted under the name it is priced by."""
        kinds = ("web_search", "file_search", "code_interpreter", "code_interpreter", "image_generation", "mcp")
        output = [{"type": f"{kind}_call"} for kind in kinds] + [{"type": "computer_call"}, {"type": None}]
        self.assertEqual(
            _body(output=output).usage.server_tools,
            (("code_execution", 2), ("file_search", 1), ("image_generation", 1), ("mcp", 1), ("web_search", 1)),
        )

    def test_a_picture_is_billed_by_its_part_or_as_a_tool_and_never_as_both(self) -> None:
        """Where the model that drew tells its tokens, these are the price of the picture, and there is no other one."""
        drawn = {"input_tokens": 10, "output_tokens": 1000, "total_tokens": 1010}
        output = [{"type": "image_generation_call"}, {"type": "mcp_call"}]
        self.assertEqual(_body(output=output).usage.server_tools, (("image_generation", 1), ("mcp", 1)))
        usage = _body(output=output, tool_usage={"image_gen": drawn}).usage
        self.assertEqual((usage.server_tools, usage.parts[0].usage.total_output), ((("mcp", 1),), 1000))
        streamed = _read(
            *({"type": "response.output_item.done", "item": item} for item in output),
            {"type": "response.completed", "response": {**RESPONSE, "output": [], "tool_usage": {"image_gen": drawn}}},
        )
        self.assertEqual(streamed.usage.server_tools, (("mcp", 1),))
        svg = {"model": "gpt-5.4", "input_tokens": 9, "output_tokens": 8, "total_tokens": 17}
        of_both = [{"type": "image_generation_call", "svg_usage": svg}, {"type": "image_generation_call"}]
        self.assertEqual(_body(output=of_both).usage.server_tools, (("image_generation", 1),))
        # What has no part because there are so many is not free: it is a tool, and has no price.
        self.assertEqual(_body(output=of_both[:1] * 70).usage.server_tools, (("image_generation", 70 - 64),))

    def test_an_svg_is_priced_as_its_model(self) -> None:
        """The text model that wrote an SVG is a part of its own."""
        svg = {"model": "gpt-5.4", "input_tokens": 9, "output_tokens": 8, "reasoning_tokens": 3, "total_tokens": 17}
        usage = _body(output=[{"type": "image_generation_call", "svg_usage": svg}]).usage
        self.assertEqual(
            usage.parts, (ModelUsage("gpt-5.4", Usage(input_tokens=9, output_tokens=8, reasoning_tokens=3)),)
        )

    def test_a_compaction_and_a_decision(self) -> None:
        """What is told in the same words is counted in the same way; what the user said is no output."""
        said = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "long"}]}
        compaction = {"id": "c", "object": "response.compaction", "output": [said], "usage": RESPONSE["usage"]}
        self.assertTrue(OpenAIResponses.recognises(keys_of(compaction)))
        reading = read_body(OpenAIResponses(), compaction)
        self.assertEqual((reading.usage.total_input, reading.text_characters), (5000, 0))
        decision = {"answers": [], "model": "m", "usage": RESPONSE["usage"]}
        self.assertTrue(OpenAIResponses.recognises(keys_of(decision)))
        self.assertEqual(read_body(OpenAIResponses(), decision).usage.total_output, 87)

    def test_a_response_that_is_too_large_to_keep(self) -> None:
        """Of a huge response the usage is known, and its text as a bounded estimate."""
        shape = OpenAIResponses()
        members: dict[tuple[str, ...], bytes] = {
            (name,): as_json(RESPONSE[name]) for name in ("object", "id", "model", "status", "usage")
        }
        shape.take_large(members, 300_000)
        reading = shape.reading(whole=True)
        self.assertEqual((reading.usage.total_input, reading.usage.total_output), (5000, 87))
        self.assertEqual((reading.counters, reading.finish_reason), (Counters.FINAL, "completed"))
        self.assertEqual((reading.text_characters, reading.text_characters_after), (65536, 0))

    def test_half_a_surrogate_pair(self) -> None:
        """A response with a broken emoji in it is counted none the less."""
        output = [{"type": "message", "content": [{"type": "output_text", "text": "a\ud83d"}]}]
        shape = OpenAIResponses()
        shape.take_body(json.dumps({**RESPONSE, "output": output}).encode())
        reading = shape.reading(whole=True)
        self.assertEqual((reading.usage.total_input, reading.text_characters), (5000, 2))


class StreamTests(SynchronousTestCase):
    """Responses that come as events."""

    def test_a_stream_says_what_the_whole_response_says(self) -> None:
        """Streamed or not, the same response costs the same, and its text is counted once."""
        streamed, whole = _read(*RESPONSE_STREAM), _body()
        self.assertEqual(streamed.usage, EXPECTED)
        self.assertEqual((streamed.text_characters, streamed.text_events), (22, 6))
        for name in Reading.__struct_fields__:
            if name != "text_events":
                self.assertEqual(getattr(streamed, name), getattr(whole, name), name)

    def test_the_stream_in_any_runs(self) -> None:
        """However the events are gathered, the same is read."""
        events = [as_json(event) for event in RESPONSE_STREAM]
        for cut in range(len(events) + 1):
            shape = OpenAIResponses()
            for run in filter(None, (events[:cut], events[cut:])):
                self.assertTrue(shape.take_array(b"[" + b",".join(run) + b"]", len(run)))
            self.assertEqual(shape.reading(whole=True), _read(*RESPONSE_STREAM), cut)

    def test_a_run_of_deltas(self) -> None:
        """The quick way counts what the other one counts."""
        texts = [as_json({"type": "response.output_text.delta", "delta": delta}) for delta in ("ab", "", "ü")]
        quick, slow = OpenAIResponses(), OpenAIResponses()
        self.assertTrue(quick.take_array(b"[" + b",".join(texts) + b"]", 3))
        slow.take_events([*texts, b'{"type":"response.queued"}'])
        self.assertEqual(quick.reading(whole=False), slow.reading(whole=False))
        self.assertEqual(quick.reading(whole=False).text_characters, 3)
        self.assertFalse(quick.take_array(b"[" + b",".join(texts) + b"]", 2))

    def test_a_stream_that_is_cut(self) -> None:
        """Wherever a stream is cut before its last event, what was delivered is known, tools that had run too."""
        known = [(reading.text_characters, reading.usage.server_tools) for reading in self._cuts()]
        self.assertEqual(
            known,
            [(0, ())] * 3
            + [(6, ())] * 3  # the summary, its repetition, and the item of it
            + [(6, (("web_search", 1),))] * 2  # a search; opening a page
            + [(6, TOOLS)]
            + [(9, TOOLS), (14, TOOLS), (16, TOOLS), (16, TOOLS), (16, TOOLS), (16, TOOLS)]
            + [(19, TOOLS), (22, TOOLS), (22, TOOLS), (22, TOOLS)],
        )

    def _cuts(self) -> list[Reading]:
        readings = [_read(*RESPONSE_STREAM[:end], whole=False) for end in range(1, len(RESPONSE_STREAM))]
        for reading in readings:
            self.assertEqual((reading.counters, reading.reason), (Counters.ABSENT, "stream_cut"))
            self.assertEqual((reading.model, reading.finish_reason), ("gpt-5.4", None))
        return readings

    def test_a_last_event_that_is_too_large_to_keep(self) -> None:
        """A huge last event is as good as a small one."""
        shape = OpenAIResponses()
        shape.take_events([as_json(event) for event in RESPONSE_STREAM[:-1]])
        members: dict[tuple[str, ...], bytes] = {
            ("response", name): as_json(RESPONSE[name]) for name in RESPONSE if name not in ("output", "created_at")
        }
        shape.take_large({("type",): b'"response.completed"', **members}, 3_000_000)
        self.assertEqual(shape.reading(whole=True), _read(*RESPONSE_STREAM))

    def test_a_delta_that_is_too_large_to_keep(self) -> None:
        """One huge delta counts as text that is bounded; a huge picture counts as none."""
        shape = OpenAIResponses()
        shape.take_large({("type",): b'"response.output_text.delta"'}, 70_000)
        shape.take_large({("type",): b'"response.image_generation_call.partial_image"'}, 70_000)
        self.assertEqual(shape.reading(whole=False).text_characters, 65536)

    def test_a_failed_stream(self) -> None:
        """A response that fails in the middle tells why, and what had been used."""
        failed = {**RESPONSE, "status": "failed", "error": {"code": "rate_limit_exceeded", "message": "m"}}
        reading = _read(*RESPONSE_STREAM[:4], {"type": "response.failed", "response": failed})
        self.assertEqual((reading.error, reading.finish_reason), ("rate_limit_exceeded", "failed"))
        self.assertEqual((reading.counters, reading.usage), (Counters.FINAL, EXPECTED))

    def test_an_error_event(self) -> None:
        """Both forms of an error in the middle are told with their kind."""
        event = {"type": "error", "code": "ERR_SOMETHING", "message": "m", "param": None, "sequence_number": 1}
        self.assertTrue(OpenAIResponses.recognises(keys_of(event)))
        reading = _read(*RESPONSE_STREAM[:4], event, whole=False)
        self.assertEqual((reading.error, reading.counters, reading.reason), ("ERR_SOMETHING", Counters.ABSENT, "error"))
        self.assertEqual(_read({"error": {"type": "server_error"}}).error, "server_error")
        self.assertEqual(
            _read({"type": "error", "error": {"type": "invalid_request_error"}}).error, "invalid_request_error"
        )

    def test_a_stream_in_the_background(self) -> None:
        """A stream of a response in the background that is left early is counted when it is asked for again."""
        events = json.loads(json.dumps(RESPONSE_STREAM))
        for event in events:
            if "response" in event:
                event["response"]["background"] = True
        left = _read(*events[:10], whole=False)
        self.assertEqual((left.counters, left.reason), (Counters.FREE, "background_pending"))
        self.assertEqual(_read(*events).once, RESPONSE["id"])
        failed = {"type": "error", "sequence_number": 11, "code": "server_error", "message": "m"}
        broken = _read(*events[:10], failed)
        self.assertEqual((broken.counters, broken.reason), (Counters.FREE, "background_pending"))
        self.assertEqual(broken.error, "server_error")

    def test_realtime(self) -> None:
        """Realtime writes the details in the singular, and part of the sound comes from the cache."""
        usage = {
            "total_tokens": 253,
            "input_tokens": 132,
            "output_tokens": 121,
            "input_token_details": {
                "text_tokens": 119,
                "audio_tokens": 13,
                "image_tokens": 0,
                "cached_tokens": 70,
                "cached_tokens_details": {"text_tokens": 64, "audio_tokens": 6, "image_tokens": 0},
            },
            "output_token_details": {"text_tokens": 30, "audio_tokens": 91},
        }
        response = {"object": "realtime.response", "id": "resp_1", "status": "completed", "usage": usage}
        reading = _read(
            {"type": "response.output_audio.delta", "delta": "AAAA"},
            {"type": "response.output_audio_transcript.delta", "delta": "Hi"},
            {"type": "response.done", "response": response},
        )
        self.assertEqual(
            reading.usage,
            Usage(
                input_tokens=62,
                cache_read_tokens=70,
                input_audio_tokens=7,
                output_tokens=121,
                output_audio_tokens=91,
            ),
        )
        self.assertEqual((reading.text_characters, reading.counters), (2, Counters.FINAL))

    def test_a_broken_event_does_not_lose_the_others(self) -> None:
        """An event that is no JSON, or of a strange form, is passed over alone."""
        strange = [b"{", b"[]", b'{"type":5}', b'{"type":"response.completed","response":[]}', b'{"item":3,"type":"x"}']
        shape = OpenAIResponses()
        shape.take_events([*strange, *(as_json(event) for event in RESPONSE_STREAM)])
        self.assertEqual(shape.reading(whole=True), _read(*RESPONSE_STREAM))
        half = b'{"type":"response.output_text.delta","delta":"\\ud83d"}'
        shape.take_events([half])
        self.assertEqual(shape.reading(whole=True).text_characters_after, 1)


class RecognitionTests(SynchronousTestCase):
    """Which answers are taken for a response."""

    def test_what_is_a_response(self) -> None:
        """A response and each event of its stream."""
        for answer in (RESPONSE, *RESPONSE_STREAM):
            self.assertTrue(OpenAIResponses.recognises(keys_of(answer)), answer)

    def test_what_is_none(self) -> None:
        """Counts, deleted ones, and other providers' events are none."""
        for answer in (
            {"object": "response.input_tokens", "input_tokens": 3},
            {"object": "response.deleted", "id": "resp_1"},
            {"type": "message_start"},
            {"type": "error", "error": {"type": "overloaded_error"}},
            {},
        ):
            self.assertFalse(OpenAIResponses.recognises(keys_of(answer)), answer)


_scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)
_values = st.recursive(
    _scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from("type usage output tools tool_usage input_tokens image_gen web_search content".split()),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


class AnythingTests(SynchronousTestCase):
    """No answer, however strange, raises."""

    @settings(max_examples=300, deadline=None)
    @given(st.data())
    def test_a_member_that_is_replaced(self, data: st.DataObject) -> None:
        """A documented stream with one value in it replaced by any other never raises or counts below 0."""
        events = json.loads(json.dumps(RESPONSE_STREAM))
        at: Any = data.draw(st.sampled_from(events[-1:] + events))
        while True:
            key = data.draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at))))
            if not at[key] or not isinstance(at[key], dict | list) or data.draw(st.booleans()):
                break
            at = at[key]
        at[key] = data.draw(_values)
        readings = [read_events(OpenAIResponses(), events)]
        if isinstance(events[-1].get("response"), dict):
            readings.append(read_body(OpenAIResponses(), events[-1]["response"]))
        for reading in readings:
            for name in Usage.__struct_fields__[:11]:
                self.assertGreaterEqual(getattr(reading.usage, name), 0)

    @settings(max_examples=100, deadline=None)
    @given(st.binary(max_size=40) | st.sampled_from([b"NaN", b"\xff", b'{"usage":1e999}', b'{"output":[1,{}]}']))
    def test_any_bytes(self, text: bytes) -> None:
        """What is no JSON at all is passed over."""
        shape = OpenAIResponses()
        shape.take_events([text])
        shape.take_body(text)
        shape.take_array(text, 1)
        shape.take_large({("type",): text, ("response", "usage"): text, ("response",): text, ("item",): text}, 9)
        shape.take_large({("usage",): text, ("output",): text}, 9)
        shape.reading(whole=True)
