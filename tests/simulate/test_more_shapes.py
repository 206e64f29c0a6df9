"""Images, transcriptions, batches, Interactions, compound models, and the rarer counters of the others."""

from __future__ import annotations

import base64
import json
from typing import Any, ClassVar

from twisted.trial.unittest import SynchronousTestCase

from llmproxy.simulate.openai_media import PNG
from tests.simulate.caller import ANTHROPIC, GEMINI, OPENAI, Answer, Simulator

MESSAGE: dict[str, Any] = {
    "model": "claude-sonnet-4-20250514",
    "max_tokens": 1000,
    "messages": [{"role": "user", "content": "hi"}],
}
# A turn of "hi" is 4 tokens: one of four bytes, and three for the turn.


def form(content: bytes, **values: str) -> tuple[bytes, dict[str, str]]:
    """A multipart body with one file, and the fields of its request."""
    parts = [f'--x\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n'.encode() for k, v in values.items()]
    head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
    body = b"".join(parts) + head + content + b"\r\n--x--\r\n"
    return body, OPENAI | {"Content-Type": "multipart/form-data; boundary=x"}


class _Case(SynchronousTestCase):
    def setUp(self) -> None:
        self.simulator = Simulator()

    def served(self) -> Any:
        """What the record says of the last request."""
        return self.simulator.shown("requests?last=1")["requests"][0]["usage"]


class ImagesTests(_Case):
    """`images/generations`."""

    def _ask(self, simulate: str = "", **more: Any) -> Answer:
        asked = {"model": "gpt-image-1", "prompt": "a red cow", "quality": "low"} | more
        return self.simulator.ask("POST /v1/images/generations", asked, OPENAI, simulate)

    def test_whole(self) -> None:
        """A GPT image tells its tokens: the prompt's, and those of the image by its quality."""
        made = self._ask(n=2).json()
        # 9 bytes are 3 tokens. A square of low quality is 272: the guide "Image generation".
        self.assertEqual(
            made["usage"],
            {
                "total_tokens": 547,
                "input_tokens": 3,
                "output_tokens": 544,
                "input_tokens_details": {"text_tokens": 3, "image_tokens": 0},
            },
        )
        self.assertEqual([base64.b64decode(one["b64_json"]) for one in made["data"]], [PNG, PNG])
        self.assertEqual((self.served()["output_tokens"], self.served()["complete"]), (544, True))

    def test_stream(self) -> None:
        """Partial images come first, 100 tokens each; the last event has the usage of all."""
        answer = self._ask(stream=True, partial_images=2)
        names = [name for name, _ in answer.events()]
        self.assertEqual(names, ["image_generation.partial_image"] * 2 + ["image_generation.completed"])
        self.assertEqual(answer.data()[2]["usage"]["output_tokens"], 472)
        self.assertNotIn("usage", answer.data()[1])
        cut = len(b"\n\n".join(answer.body.split(b"\n\n")[:2])) + 2
        self._ask(f"cut={cut}", stream=True, partial_images=2)
        self.assertEqual((self.served()["sent_output_tokens"], self.served()["counted"]), (200, False))

    def test_a_large_image(self) -> None:
        """`bytes=N` is the size of the image: one line of a stream of so much and a third."""
        data = self._ask("bytes=300000", stream=True).data()
        self.assertEqual(len(base64.b64decode(data[0]["b64_json"])), 300_000)

    def test_by_the_piece(self) -> None:
        """dall-e tells no usage."""
        self.assertEqual(set(self._ask(model="dall-e-3").json()), {"created", "data"})
        self.assertEqual((self.served()["complete"], self.served()["counted"]), (True, False))


class TranscriptionsTests(_Case):
    """`audio/transcriptions`."""

    def _ask(self, simulate: str = "", **values: str) -> Answer:
        body, fields = form(b"s" * 40_000, **({"model": "gpt-4o-transcribe", "prompt": "cows"} | values))
        return self.simulator.ask("POST /v1/audio/transcriptions", body, fields, simulate)

    def test_by_tokens(self) -> None:
        """A transcription tells the tokens of sound, prompt and text; streamed, in its last event."""
        made = self._ask("events=6").json()
        # 40,000 bytes at 16,000 a second are three seconds begun; ten tokens each. "cows" is one.
        self.assertEqual(
            made["usage"],
            {
                "type": "tokens",
                "total_tokens": 37,
                "input_tokens": 31,
                "input_token_details": {"text_tokens": 1, "audio_tokens": 30},
                "output_tokens": 6,
            },
        )
        *deltas, done = self._ask("events=6", stream="true").data()
        self.assertEqual("".join(one["delta"] for one in deltas), made["text"])
        self.assertEqual(
            (done["type"], done["text"], done["usage"]), ("transcript.text.done", made["text"], made["usage"])
        )
        self.assertEqual((self.served()["input_tokens"], self.served()["sent_output_tokens"]), (31, 6))

    def test_by_length(self) -> None:
        """whisper-1 tells seconds, and does not stream."""
        made = self._ask(model="whisper-1", stream="true").json()
        self.assertEqual(made["usage"], {"type": "duration", "seconds": 3})
        self.assertEqual((self.served()["audio_s"], self.served()["output_tokens"]), (3, 0))
        self.assertEqual(self._ask(model="whisper-1", response_format="verbose_json").json()["duration"], 3.0)


class BatchesTests(_Case):
    """OpenAI's batches, and Anthropic's."""

    def test_openai(self) -> None:
        """A batch is completed when it is asked for the second time, and tells the usage of all its requests."""
        asked = {"model": "gpt-4o+events=5", "messages": [{"role": "user", "content": "hi"}]}
        lines = [
            {"custom_id": str(i), "method": "POST", "url": "/v1/chat/completions", "body": asked} for i in range(3)
        ]
        lines.append(lines[0] | {"custom_id": "bad", "body": {"model": "missing-x"}})
        body, fields = form("\n".join(map(json.dumps, lines)).encode(), purpose="batch")
        file_id = self.simulator.ask("POST /v1/files", body, fields).json()["id"]
        wanted = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        made = self.simulator.ask("POST /v1/batches", wanted).json()
        self.assertEqual((made["object"], made["status"]), ("batch", "validating"))
        polled = [self.simulator.ask(f"GET /v1/batches/{made['id']}").json() for _ in range(3)]
        self.assertEqual([one["status"] for one in polled], ["in_progress", "completed", "completed"])
        self.assertNotIn("usage", polled[0])
        self.assertEqual(polled[1]["usage"], {
            "input_tokens": 12, "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": 15, "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 27})  # fmt: skip
        self.assertEqual(polled[1]["request_counts"], {"total": 4, "completed": 3, "failed": 1})
        output = self.simulator.ask(f"GET /v1/files/{polled[1]['output_file_id']}/content").body.splitlines()
        statuses = [json.loads(line)["response"]["status_code"] for line in output]
        self.assertEqual(statuses, [200, 200, 200, 404])
        usages = [one["usage"] for one in self.simulator.shown("requests")["requests"]]
        self.assertEqual([usage is None for usage in usages], [True, True, True, False, True, True])
        self.assertEqual((usages[3]["response_id"], usages[3]["output_tokens"]), (made["id"], 15))

    def test_anthropic(self) -> None:
        """A batch has ended when it is asked for; its results are JSON lines, a message with its usage each."""
        requests = [{"custom_id": str(i), "params": MESSAGE} for i in range(2)]
        requests.append({"custom_id": "bad", "params": {"model": "claude-x"}})
        made = self.simulator.ask("POST /v1/messages/batches", {"requests": requests}, ANTHROPIC, "events=5").json()
        self.assertEqual((made["type"], made["processing_status"], made["results_url"]),
                         ("message_batch", "in_progress", None))  # fmt: skip
        ended = self.simulator.ask(f"GET /v1/messages/batches/{made['id']}", headers=ANTHROPIC).json()
        self.assertEqual((ended["processing_status"], ended["request_counts"]["errored"]), ("ended", 1))
        path = ended["results_url"].removeprefix("http://simulator.test")
        results = [self.simulator.ask(f"GET {path}", headers=ANTHROPIC).body for _ in range(2)]
        lines = [json.loads(line) for line in results[0].splitlines()]
        self.assertEqual([line["result"]["type"] for line in lines], ["succeeded", "succeeded", "errored"])
        usage = lines[0]["result"]["message"]["usage"]
        self.assertEqual((usage["input_tokens"], usage["output_tokens"], usage["service_tier"]), (4, 5, "batch"))
        first, again = [one["usage"] for one in self.simulator.shown("requests?last=2")["requests"]]
        self.assertEqual((first["input_tokens"], first["output_tokens"], first["complete"]), (8, 10, True))
        self.assertEqual((again, results[1]), (None, results[0]))


class CountersTests(_Case):
    """Counters that not every answer has."""

    def test_compound(self) -> None:
        """A compound system of Groq's tells which models it used; together they are the usage."""
        asked = {"model": "groq/compound", "messages": [{"role": "user", "content": "hi"}]}
        whole = self.simulator.ask("POST /openai/v1/chat/completions", asked, OPENAI, "events=10").json()
        parts = whole["usage_breakdown"]["models"]
        self.assertEqual([part["model"] for part in parts], ["llama-3.3-70b-versatile", "openai/gpt-oss-120b"])
        for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
            self.assertEqual(sum(part["usage"][name] for part in parts), whole["usage"][name])
        last = self.simulator.ask(
            "POST /openai/v1/chat/completions", asked | {"stream": True}, OPENAI, "events=10"
        ).data()[-1]
        self.assertEqual(last["x_groq"]["usage"], whole["usage"])
        self.assertEqual(last["x_groq"]["usage_breakdown"], whole["usage_breakdown"])
        self.assertEqual((self.served()["output_tokens"], len(self.served()["other_models"])), (10, 2))

    def test_caches_of_two_lives(self) -> None:
        """What is kept for an hour and what is kept for five minutes is told apart."""

        def block(ttl: str) -> dict[str, Any]:
            return {"type": "text", "text": "x" * 400, "cache_control": {"type": "ephemeral", "ttl": ttl}}

        asked = MESSAGE | {"system": [block("1h")], "messages": [{"role": "user", "content": [block("5m")]}]}
        usage = self.simulator.ask("POST /v1/messages", asked, ANTHROPIC, "cached=20").json()["usage"]
        # 400 bytes are 100 tokens, and 3 for the block; 20 of the first were in the cache already.
        self.assertEqual(usage["cache_creation"], {"ephemeral_5m_input_tokens": 103, "ephemeral_1h_input_tokens": 83})
        self.assertEqual((usage["cache_creation_input_tokens"], usage["cache_read_input_tokens"]), (186, 20))
        served = self.served()
        self.assertEqual((served["cache_write_5m_tokens"], served["cache_write_1h_tokens"], served["input_tokens"]),
                         (103, 83, 206))  # fmt: skip

    def test_a_web_search(self) -> None:
        """A web search that is offered is made once, and is counted by use; the query is output."""
        asked = MESSAGE | {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}
        whole = self.simulator.ask("POST /v1/messages", asked, ANTHROPIC, "events=5").json()
        self.assertEqual([block["type"] for block in whole["content"]],
                         ["server_tool_use", "web_search_tool_result", "text"])  # fmt: skip
        self.assertEqual(whole["usage"]["server_tool_use"]["web_search_requests"], 1)
        # '{"query": "river stones"}' has 25 bytes: 7 tokens.
        self.assertEqual(whole["usage"]["output_tokens"], 12)
        events = self.simulator.ask("POST /v1/messages", asked | {"stream": True}, ANTHROPIC, "events=5").events()
        self.assertNotIn("server_tool_use", events[0][1]["message"]["usage"])
        self.assertEqual(events[-2][1]["usage"]["server_tool_use"], whole["usage"]["server_tool_use"])
        self.assertEqual((self.served()["server_tools"], self.served()["sent_output_tokens"]), ({"web_search": 1}, 12))

    def test_iterations(self) -> None:
        """What a compaction or an advisor used is in the iterations alone; the record has it in its sums."""
        for kind, models in (("compaction", None), ("advisor", ["claude-opus-4-1-20250805"])):
            simulate = f"events=5,iterations={kind}"
            usage = self.simulator.ask("POST /v1/messages", MESSAGE, ANTHROPIC, simulate).json()["usage"]
            other, own = usage["iterations"]
            self.assertEqual((usage["input_tokens"], usage["output_tokens"]), (4, 5))
            self.assertEqual((own["type"], own["input_tokens"], own["output_tokens"]), ("message", 4, 5))
            self.assertEqual((other["input_tokens"], other["output_tokens"]), (19, 35))
            self.assertEqual((self.served()["input_tokens"], self.served()["output_tokens"]), (23, 40))
            self.assertEqual(self.served().get("other_models"), models)
            self.simulator.ask("POST /v1/messages", MESSAGE | {"stream": True}, ANTHROPIC, simulate)
            self.assertEqual(self.served()["sent_output_tokens"], 40)

    def test_gemini(self) -> None:
        """Tool use, cached tokens and modalities, as generateContent tells them."""
        asked = {"contents": [{"parts": [{"text": "hi"}]}]}
        simulate = "events=5,reasoning=7,tool_tokens=9,audio=11,image=13,cached=6"
        usage = self.simulator.ask(
            "POST /v1beta/models/gemini-2.5-flash:generateContent", asked, GEMINI, simulate
        ).json()["usageMetadata"]
        self.assertEqual(
            usage,
            {
                "promptTokenCount": 28,
                "candidatesTokenCount": 5,
                "totalTokenCount": 49,
                "cachedContentTokenCount": 6,
                "cacheTokensDetails": [{"modality": "TEXT", "tokenCount": 6}],
                "promptTokensDetails": [
                    {"modality": "TEXT", "tokenCount": 4},
                    {"modality": "AUDIO", "tokenCount": 11},
                    {"modality": "IMAGE", "tokenCount": 13},
                ],
                "toolUsePromptTokenCount": 9,
                "toolUsePromptTokensDetails": [{"modality": "TEXT", "tokenCount": 9}],
                "thoughtsTokenCount": 7,
            },
        )
        served = self.served()
        self.assertEqual((served["input_tokens"], served["output_tokens"], served["cache_read_tokens"]), (37, 12, 6))

    def test_openai_details(self) -> None:
        """Sound, images and what was written to a cache are parts of the prompt."""
        asked = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}]}
        usage = self.simulator.ask("POST /v1/chat/completions", asked, OPENAI, "audio=5,image=6,written=2").json()[
            "usage"
        ]
        self.assertEqual(usage["prompt_tokens"], 15)
        parts = {"cached_tokens": 0, "audio_tokens": 5, "image_tokens": 6, "cache_write_tokens": 2}
        self.assertEqual(usage["prompt_tokens_details"], parts)
        self.assertEqual(self.served()["cache_write_5m_tokens"], 2)

    def test_the_openai_shapes_of_others(self) -> None:
        """Anthropic gives no details; Gemini leaves the thoughts out of the completion, but not out of the total."""
        asked = {"model": "claude-sonnet-4-0", "messages": [{"role": "user", "content": "hi"}]}
        for headers in (ANTHROPIC, {"Authorization": "Bearer sk-ant-1"}, {"x-api-key": "k"}):
            made = self.simulator.ask("POST /v1/chat/completions", asked, headers, "events=5").json()
            self.assertEqual((made["object"], made["usage"]["total_tokens"]), ("chat.completion", 9))
            self.assertEqual(self.served()["provider"], "anthropic")
        refused = self.simulator.ask("POST /v1/chat/completions", asked, {"x-api-key": "invalid"})
        self.assertEqual((refused.status, refused.json()["error"]["type"]), (401, "authentication_error"))
        gemini = asked | {"model": "gemini-2.5-flash"}
        made = self.simulator.ask("POST /v1beta/openai/chat/completions", gemini, GEMINI, "events=5,reasoning=7").json()
        self.assertEqual(made["usage"], {"prompt_tokens": 4, "completion_tokens": 5, "total_tokens": 16})
        self.assertEqual((self.served()["output_tokens"], self.served()["reasoning_tokens"]), (12, 7))


class InteractionsTests(_Case):
    """Gemini's Interactions."""

    ASKED: ClassVar[dict[str, Any]] = {"model": "gemini-2.5-flash", "input": "hi"}

    def test_whole_and_stream(self) -> None:
        """The same text and the same usage, whole and as events that are named by their event_type."""
        simulate = "events=5,reasoning=7,tool_tokens=9,cached=2"
        whole = self.simulator.ask("POST /v1beta/interactions", self.ASKED, GEMINI, simulate).json()
        usage = {name: value for name, value in whole["usage"].items() if name.startswith("total_")}
        self.assertEqual(
            usage,
            {
                "total_input_tokens": 4,
                "total_cached_tokens": 2,
                "total_output_tokens": 5,
                "total_tool_use_tokens": 9,
                "total_thought_tokens": 7,
                "total_tokens": 25,
            },
        )
        answer = self.simulator.ask("POST /v1beta/interactions", self.ASKED | {"stream": True}, GEMINI, simulate)
        events = answer.events()
        self.assertEqual([name for name, _ in events[:2]], ["interaction.created", "interaction.status_update"])
        self.assertEqual([name for name, _ in events[-2:]], ["interaction.completed", "done"])
        text = "".join(data["delta"].get("text", "") for name, data in events if name == "step.delta")
        self.assertEqual(text, whole["steps"][-1]["content"][0]["text"])
        self.assertEqual(events[-2][1]["interaction"]["usage"], whole["usage"])
        served = self.served()
        self.assertEqual((served["input_tokens"], served["output_tokens"], served["reasoning_tokens"]), (13, 12, 7))

    def test_a_tool_call(self) -> None:
        """The arguments come in pieces of JSON; the interaction then waits for the result."""
        tool = {"type": "function", "name": "get_weather", "parameters": {"properties": {"city": {"type": "string"}}}}
        asked = {"model": "gemini-2.5-flash", "input": "weather?", "tools": [tool]}
        whole = self.simulator.ask("POST /v1beta/interactions", asked, GEMINI).json()
        self.assertEqual((whole["status"], whole["steps"][-1]["arguments"]), ("requires_action", {"city": "river"}))
        events = self.simulator.ask("POST /v1beta/interactions", asked | {"stream": True}, GEMINI).events()
        pieces = [data["delta"].get("arguments", "") for name, data in events if name == "step.delta"]
        self.assertEqual(json.loads("".join(pieces)), {"city": "river"})

    def test_background(self) -> None:
        """One in the background has its usage when it is fetched after its end, and is billed once."""
        made = self.simulator.ask("POST /v1beta/interactions", self.ASKED | {"background": True}, GEMINI).json()
        self.assertEqual((made["status"], "usage" in made), ("in_progress", False))
        self.simulator.clock.advance(2)
        for billed in (True, False):
            got = self.simulator.ask(f"GET /v1beta/interactions/{made['id']}", headers=GEMINI).json()
            self.assertEqual((got["status"], "usage" in got), ("completed", True))
            self.assertEqual(self.served() is not None, billed)

    def test_failing_in_mid_stream(self) -> None:
        """An interaction that fails says so in an error event of its own kind."""
        asked = self.ASKED | {"stream": True}
        name, data = self.simulator.ask("POST /v1beta/interactions", asked, GEMINI, "error_event=3").events()[-1]
        self.assertEqual((name, data["event_type"], data["error"]["code"]), ("error", "error", "unavailable"))
