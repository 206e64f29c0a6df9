"""What the simulator says that it served: the truth that the books of a proxy are held against."""

from __future__ import annotations

import importlib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.simulate.served import Served
from llmproxy.simulate.steps import steps_of_body, steps_of_events
from llmproxy.simulate.wishes import wishes_of
from tests.simulate.caller import ANTHROPIC, GEMINI, OPENAI, Simulator

CHAT: dict[str, Any] = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}]}
MESSAGE: dict[str, Any] = {
    "model": "claude-sonnet-4-20250514",
    "max_tokens": 1000,
    "messages": [{"role": "user", "content": "hi"}],
}
CONTENTS: dict[str, Any] = {"contents": [{"parts": [{"text": "hi"}]}]}
COUNTED = {"stream_options": {"include_usage": True}}
# "hi" is one token of four bytes, and a turn has three more.
HI_TOKENS = 4


class RecordTests(SynchronousTestCase):
    """The `usage` of an entry of `/_simulator/requests`."""

    def setUp(self) -> None:
        self.simulator = Simulator()

    def _served(self) -> Any:
        return self.simulator.shown("requests?last=1")["requests"][0]["usage"]

    def _of(self, line: str, body: object, headers: dict[str, str], simulate: str = "", **more: Any) -> Any:
        self.simulator.ask(f"POST {line}", body | more if isinstance(body, dict) else body, headers, simulate)
        return self._served()

    def test_a_whole_answer(self) -> None:
        """An answer's tokens are recorded by class, with the model and the id that it named."""
        answer = self.simulator.ask(
            "POST /v1/chat/completions", CHAT | {"model": "gpt-5"}, OPENAI, "events=5,reasoning=7,cached=3"
        ).json()
        self.assertEqual(
            self._served(),
            {
                "provider": "openai",
                "model": "gpt-5-2025-08-07",
                "response_id": answer["id"],
                "input_tokens": HI_TOKENS,
                "output_tokens": 12,
                "cache_read_tokens": 3,
                "cache_write_5m_tokens": 0,
                "cache_write_1h_tokens": 0,
                "reasoning_tokens": 7,
                "stream": False,
                "complete": True,
                "counted": True,
                "sent_output_tokens": 12,
            },
        )

    def test_every_dialect_streams_all_of_it(self) -> None:
        """A whole stream of any dialect is complete, counted, and has sent what it costs."""
        sse = "/v1beta/models/gemini-2.5-flash:streamGenerateContent?alt=sse"
        for line, body, headers, provider in (
            ("/v1/chat/completions", CHAT | COUNTED | {"stream": True}, OPENAI, "openai"),
            ("/v1/chat/completions", CHAT | COUNTED | {"stream": True, "n": 3}, OPENAI, "openai"),
            ("/v1/completions", COUNTED | {"model": "m", "prompt": "hi", "stream": True}, OPENAI, "openai"),
            ("/openai/v1/chat/completions", CHAT | {"stream": True}, OPENAI, "groq"),
            ("/v1/responses", {"model": "gpt-5", "input": "hi", "stream": True}, OPENAI, "openai"),
            ("/v1/messages", MESSAGE | {"stream": True}, ANTHROPIC, "anthropic"),
            ("/v1/chat/completions", CHAT | COUNTED | {"stream": True}, ANTHROPIC, "anthropic"),
            (sse, CONTENTS, GEMINI, "gemini"),
            (sse.removesuffix("?alt=sse"), CONTENTS, GEMINI, "gemini"),
            ("/v1beta/openai/chat/completions", CHAT | COUNTED | {"stream": True}, GEMINI, "gemini"),
            ("/v1beta/interactions", {"model": "m", "input": "hi", "stream": True}, GEMINI, "gemini"),
        ):
            for simulate in ("events=20", "events=20,encoding=gzip,chunk=7", "events=20,crlf=1"):
                with self.subTest(line=line, simulate=simulate):
                    served = self._of(line, body, headers, simulate)
                    self.assertEqual((served["provider"], served["stream"]), (provider, True))
                    self.assertEqual((served["complete"], served["counted"]), (True, True))
                    self.assertEqual(served["sent_output_tokens"], served["output_tokens"])
                    self.assertGreaterEqual(served["output_tokens"], 20)

    def test_a_stream_that_was_cut(self) -> None:
        """After a cut, what counts is the pieces that were sent to their last byte."""
        whole = self.simulator.ask("POST /v1/messages", MESSAGE | {"stream": True}, ANTHROPIC, "events=10").body
        ends = [at + 2 for at in range(len(whole)) if whole[at : at + 2] == b"\n\n"]
        # message_start, content_block_start and ping come before the first of the ten pieces.
        for cut, sent in ((ends[6], 4), (ends[6] - 1, 3), (ends[2], 0), (ends[-2] - 1, 10), (ends[-2], 10)):
            served = self._of("/v1/messages", MESSAGE, ANTHROPIC, f"events=10,cut={cut}", stream=True)
            self.assertEqual((served["sent_output_tokens"], served["complete"]), (sent, False), cut)
            self.assertEqual(served["counted"], cut == ends[-2])
            self.assertEqual(served["output_tokens"], 10)

    def test_what_was_thought_in_secret_is_told_by_the_counters_alone(self) -> None:
        """Thoughts that are not shown count as sent once the provider's counters have told them."""
        asked = CHAT | COUNTED | {"model": "o3", "stream": True}
        whole = self.simulator.ask("POST /v1/chat/completions", asked, OPENAI, "events=4,reasoning=9").body
        self.assertEqual(self._served()["sent_output_tokens"], 13)
        cut = whole.index(b'"choices":[]') - 1
        served = self._of("/v1/chat/completions", asked, OPENAI, f"events=4,reasoning=9,cut={cut}")
        self.assertEqual((served["sent_output_tokens"], served["counted"]), (4, False))

    def test_the_caller_leaves(self) -> None:
        """While a stream runs, and after its caller has left, the record has what was sent so far."""
        fields = OPENAI | {"X-Simulate": "delay=0,interval=1,events=50"}
        call = self.simulator.begin("POST /v1/chat/completions", CHAT | {"stream": True}, fields)
        self.simulator.clock.advance(0)
        for _ in range(5):
            self.simulator.clock.advance(1)
        self.simulator.clock.advance(0)
        before = self.simulator.begin("GET /_simulator/requests?last=1").answer.json()["requests"][0]
        self.assertEqual((before["usage"]["sent_output_tokens"], before["aborted"]), (5, False))
        call.leave()
        after = self.simulator.shown("requests?last=1")["requests"][0]
        self.assertEqual((after["usage"]["sent_output_tokens"], after["aborted"]), (5, True))
        self.assertEqual((after["usage"]["complete"], after["usage"]["output_tokens"]), (False, 50))

    def test_a_tool_call_counts_by_its_pieces(self) -> None:
        """The name and the arguments of a tool call are tokens too, each piece its share."""
        tool = {"type": "function", "function": {"name": "get_weather", "parameters": {
            "type": "object", "properties": {"city": {"type": "string"}}}}}  # fmt: skip
        asked = CHAT | {"tools": [tool], "tool_choice": "required", "stream": True}
        # "get_weather" has 11 bytes and '{"city":"river"}' 16: three tokens and four.
        whole = self.simulator.ask("POST /v1/chat/completions", asked).body
        self.assertEqual(self._served()["sent_output_tokens"], 7)
        events = whole.split(b"\n\n")
        upto = len(b"\n\n".join(events[:3])) + 2  # the role, the name, half of the arguments
        self.assertEqual(self._of("/v1/chat/completions", asked, OPENAI, f"cut={upto}")["sent_output_tokens"], 5)

    def test_a_whole_answer_that_was_cut(self) -> None:
        """Of an answer that is no stream, a cut leaves its share by bytes."""
        size = len(self.simulator.ask("POST /v1/chat/completions", CHAT, OPENAI, "bytes=40000").body)
        served = self._of("/v1/chat/completions", CHAT, OPENAI, f"bytes=40000,cut={size // 2}")
        self.assertEqual((served["complete"], served["counted"], served["output_tokens"]), (False, False, 10_000))
        self.assertAlmostEqual(served["sent_output_tokens"], 5000, delta=1)

    def test_a_provider_that_fails_in_mid_stream(self) -> None:
        """A stream that ended with an error event has ended, but is not complete."""
        served = self._of("/v1/messages", MESSAGE, ANTHROPIC, "events=10,error_event=6", stream=True)
        self.assertEqual((served["complete"], served["sent_output_tokens"]), (False, 3))

    def test_what_bills_nothing(self) -> None:
        """Errors, refusals, lists and counts have no usage."""
        self._of("/v1/chat/completions", CHAT, OPENAI, "status=429")
        self._of("/v1/chat/completions", {}, OPENAI)
        self._of("/v1/chat/completions", CHAT, OPENAI, "status=302")
        self._of("/v1/messages/count_tokens", MESSAGE, ANTHROPIC)
        self._of("/v1/moderations", {"input": "x"}, OPENAI)
        self.simulator.ask("GET /v1/models")
        seen = self.simulator.shown("requests")["requests"]
        self.assertEqual([one["usage"] for one in seen], [None] * 6)
        self.assertEqual(seen[0]["status"], 429)

    def test_answers_without_usage(self) -> None:
        """`usage=none`: no answer of any dialect has a usage, and the record still has what was served."""
        for line, body, headers in (
            ("/v1/chat/completions", CHAT | COUNTED, OPENAI),
            ("/openai/v1/chat/completions", CHAT | COUNTED, OPENAI),
            ("/v1/responses", {"model": "gpt-4o", "input": "hi"}, OPENAI),
            ("/v1/messages", MESSAGE, ANTHROPIC),
            ("/v1beta/models/gemini-2.5-flash:streamGenerateContent?alt=sse", CONTENTS, GEMINI),
            ("/v1beta/models/gemini-2.5-flash:generateContent", CONTENTS, GEMINI),
            ("/v1beta/interactions", {"model": "gemini-2.5-flash", "input": "hi"}, GEMINI),
            ("/v1/embeddings", {"model": "m", "input": "hi"}, OPENAI),
        ):
            for stream in (False, True):
                with self.subTest(line=line, stream=stream):
                    asked = body | ({"stream": True} if stream else {})
                    answer = self.simulator.ask(f"POST {line}", asked, headers, "usage=none")
                    body_text = answer.body.replace(b'"usage":null', b"").replace(b"usage_breakdown", b"").lower()
                    self.assertEqual((answer.status, body_text.count(b'"usage')), (200, 0))
                    self.assertNotIn(b"usagemetadata", body_text)
                    served = self._served()
                    self.assertEqual((served["complete"], served["counted"]), (True, False))
                    self.assertGreater(served["input_tokens"], 0)

    def test_a_background_response_is_billed_once(self) -> None:
        """What was made in the background is served by the first answer that tells its usage, and by no other."""
        made = self.simulator.ask("POST /v1/responses", {"model": "gpt-5", "input": "hi", "background": True}).json()
        for _ in range(3):
            self.simulator.ask(f"GET /v1/responses/{made['id']}")
            self.simulator.clock.advance(2)
        usages = [one["usage"] for one in self.simulator.shown("requests")["requests"]]
        self.assertEqual([usage is None for usage in usages], [True, True, False, True])
        self.assertEqual((usages[2]["response_id"], usages[2]["counted"]), (made["id"], True))

    def test_a_stored_answer_is_not_billed_again(self) -> None:
        """To fetch an answer again costs nothing, whatever it says."""
        made = self.simulator.ask("POST /v1/chat/completions", CHAT | {"store": True}).json()
        self.assertEqual(self.simulator.ask(f"GET /v1/chat/completions/{made['id']}").json(), made)
        self.assertIsNone(self._served())
        made = self.simulator.ask("POST /v1/responses", {"model": "gpt-4o", "input": "hi"}).json()
        self.assertEqual(self.simulator.ask(f"GET /v1/responses/{made['id']}").json()["usage"], made["usage"])
        self.assertIsNone(self._served())


class StepsTests(SynchronousTestCase):
    """How bytes that were written become tokens."""

    @given(
        st.lists(st.tuples(st.binary(min_size=1, max_size=30), st.integers(0, 5)), min_size=1, max_size=20),
        st.sampled_from(["", "encoding=gzip", "encoding=br", "chunk=3", "encoding=zstd,chunk=2"]),
        st.integers(0, 700),
    )
    def test_an_event_counts_with_its_last_byte(self, events: list[tuple[bytes, int]], wish: str, cut: int) -> None:
        """Whatever the coding and the size of the writes, what is counted is the events that are wholly out."""
        wishes = wishes_of(wish)

        def made() -> Any:
            for event, tokens in events:
                served.made(tokens)
                yield event

        served = Served(provider="p", model="m", output_tokens=sum(tokens for _, tokens in events))
        plain = wishes_of(wish.partition(",")[0] if wish.startswith("encoding") else "")
        served_alone = Served(provider="p", model="m")
        ends, size = [], 0
        for step in steps_of_events(iter([event for event, _ in events]), plain, lambda sent: b"", served_alone):
            assert isinstance(step, bytes)
            size += len(step)
            ends.append(size)
        left = cut
        for step in steps_of_events(made(), wishes, lambda sent: b"", served):
            assert isinstance(step, bytes)
            served.sent(len(step[:left]))
            left -= len(step[:left])
        expected = sum(tokens for (_, tokens), end in zip(events, ends, strict=False) if end <= cut)
        self.assertEqual(served.sent_output_tokens, expected)

    def test_a_whole_body(self) -> None:
        """The last byte of a whole body completes it; before that it has sent its share."""
        served = Served(provider="p", model="m", output_tokens=10, told=True)
        steps = list(steps_of_body(b"x" * 100, wishes_of("chunk=60"), served))
        seen = []
        for step in steps:
            assert isinstance(step, bytes)
            served.sent(len(step))
            seen.append((served.sent_output_tokens, served.shown()["counted"]))
        self.assertEqual(seen, [(6, False), (10, True)])

    def test_coded_events_can_be_read_as_they_come(self) -> None:
        """Each event of a coded stream can be decoded when it comes, not only the first."""
        events = [b"data: %d\n\n" % number for number in range(5)]
        readers = {
            "br": importlib.import_module("brotli").Decompressor().process,
            "zstd": importlib.import_module("zstandard").ZstdDecompressor().decompressobj().decompress,
        }
        for coding, read in readers.items():
            steps = steps_of_events(iter(events), wishes_of(f"encoding={coding}"), lambda sent: b"")
            self.assertEqual([read(step) for step in steps if isinstance(step, bytes)][:5], events, coding)

    def test_lines_that_end_with_crlf(self) -> None:
        """`crlf=1` ends each line of a stream of events as Windows does, and changes nothing else."""
        simulator = Simulator()
        plain = simulator.ask("POST /v1/messages", MESSAGE | {"stream": True}, ANTHROPIC)
        made = simulator.ask("POST /v1/messages", MESSAGE | {"stream": True}, ANTHROPIC, "crlf=1")
        self.assertNotIn(b"\n", made.body.replace(b"\r\n", b""))
        texts = [
            [data["delta"]["text"] for name, data in events if name == "content_block_delta"]
            for events in (plain.events(), made.events(b"\r\n\r\n"))
        ]
        self.assertEqual(texts[0], texts[1])


class KeepTests(SynchronousTestCase):
    """How much is remembered, and how it is read."""

    def test_paging(self) -> None:
        """`after=N` gives what came after the request of that number; the numbers go on after a DELETE."""
        simulator = Simulator()
        for number in range(5):
            simulator.ask(f"GET /v1/nothing/{number}", simulate="delay=0")
        seen = simulator.shown("requests?after=2")["requests"]
        self.assertEqual([(one["number"], one["target"][-1]) for one in seen], [(3, "2"), (4, "3"), (5, "4")])
        self.assertEqual(simulator.shown("requests?after=5")["requests"], [])
        simulator.ask("DELETE /_simulator/requests", headers={})
        simulator.ask("GET /v1/nothing/5", simulate="delay=0")
        self.assertEqual([one["number"] for one in simulator.shown("requests?after=0")["requests"]], [6])

    def test_a_page_is_bounded(self) -> None:
        """A page has a thousand at most; the next begins after its last."""
        simulator = Simulator()
        self.assertEqual(simulator.ask("PUT /_simulator/requests?keep=2000", headers={}).status, 200)
        for number in range(1003):
            simulator.ask(f"GET /v1/nothing/{number}", simulate="delay=0")
        first = simulator.shown("requests?after=0")["requests"]
        second = simulator.shown(f"requests?after={first[-1]['number']}")["requests"]
        self.assertEqual((len(first), len(second), second[-1]["number"]), (1000, 3, 1003))

    def test_keep_more_or_fewer(self) -> None:
        """`keep=N` decides how many are remembered; where that is many, they are packed, and read the same."""
        simulator = Simulator()
        simulator.ask("PUT /_simulator/requests?keep=50000", headers={})
        simulator.ask("POST /v1/chat/completions", CHAT, OPENAI)
        simulator.ask("POST /v1/chat/completions", CHAT, OPENAI)
        seen = simulator.shown("requests")["requests"]
        self.assertEqual([one["usage"]["output_tokens"] for one in seen], [seen[0]["usage"]["output_tokens"]] * 2)
        self.assertEqual((seen[0]["status"], seen[0]["body_complete"]), (200, True))
        simulator.ask("PUT /_simulator/requests?keep=1", headers={})
        self.assertEqual([one["number"] for one in simulator.shown("requests")["requests"]], [2])
        simulator.ask("GET /v1/models")
        self.assertEqual([one["number"] for one in simulator.shown("requests")["requests"]], [3])
