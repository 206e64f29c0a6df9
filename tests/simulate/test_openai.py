"""OpenAI's endpoints, and what Groq and Gemini's compat endpoint make of them."""

from __future__ import annotations

import base64
import struct
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.simulate.caller import OPENAI, Simulator
from tests.simulate.test_multipart import form

CHAT = "POST /v1/chat/completions"
HI: dict[str, Any] = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}]}
TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}}}]  # fmt: skip


def text_of(chunks: list[Any]) -> str:
    """The text that the deltas of choice 0 make."""
    return "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"])


class ChatTests(SynchronousTestCase):
    """Chat completions."""

    def setUp(self) -> None:
        self.simulator = Simulator()

    def test_whole(self) -> None:
        """An answer that is not streamed: one object with a length, usage with its details, the dated model."""
        answer = self.simulator.ask(CHAT, HI)
        self.assertEqual((answer.status, answer.field("content-type")), (200, "application/json"))
        self.assertEqual(answer.field("content-length"), str(len(answer.body)))
        made = answer.json()
        self.assertEqual((made["object"], made["model"]), ("chat.completion", "gpt-4o-2024-08-06"))
        self.assertTrue(made["id"].startswith("chatcmpl-"))
        self.assertEqual(made["choices"][0]["finish_reason"], "stop")
        usage = made["usage"]
        self.assertEqual(usage["total_tokens"], usage["prompt_tokens"] + usage["completion_tokens"])
        self.assertEqual(usage["prompt_tokens_details"], {"cached_tokens": 0, "audio_tokens": 0})
        self.assertEqual(usage["completion_tokens_details"]["reasoning_tokens"], 0)

    def test_head(self) -> None:
        """The head has what clients read: request id, rate limits, and two cookies of the edge."""
        answer = self.simulator.ask(CHAT, HI)
        self.assertRegex(answer.field("x-request-id") or "", r"^req_[0-9a-f]{32}$")
        self.assertEqual(answer.field("x-ratelimit-remaining-requests"), "9999")
        self.assertEqual(len([1 for name, _ in answer.fields if name == "set-cookie"]), 2)

    def test_stream_says_the_same(self) -> None:
        """The stream's text and usage are those of the whole answer, and it ends with [DONE]."""
        whole = self.simulator.ask(CHAT, HI).json()
        answer = self.simulator.ask(CHAT, HI | {"stream": True, "stream_options": {"include_usage": True}})
        self.assertEqual(answer.field("content-type"), "text/event-stream; charset=utf-8")
        self.assertEqual(answer.field("transfer-encoding"), "chunked")
        self.assertEqual(answer.events()[-1], ("", "[DONE]"))
        chunks = answer.data()
        self.assertEqual(text_of(chunks), whole["choices"][0]["message"]["content"])
        self.assertEqual(chunks[-1]["choices"], [])
        self.assertEqual(chunks[-1]["usage"], whole["usage"])
        self.assertTrue(all(chunk["usage"] is None for chunk in chunks[:-1]))
        self.assertEqual({chunk["id"] for chunk in chunks}, {chunks[0]["id"]})
        self.assertEqual(chunks[0]["choices"][0]["delta"], {"role": "assistant", "content": "", "refusal": None})
        self.assertEqual(len(answer.pieces), len(answer.events()))

    def test_stream_without_usage(self) -> None:
        """Without include_usage a stream has no usage at all; "stream": "true" is no stream."""
        answer = self.simulator.ask(CHAT, HI | {"stream": True})
        self.assertFalse(any("usage" in chunk for chunk in answer.data()))
        self.assertEqual(self.simulator.ask(CHAT, HI | {"stream": "true"}).json()["object"], "chat.completion")

    def test_tool_call(self) -> None:
        """The arguments come in pieces that make JSON, and the whole answer has the same."""
        asked = HI | {"messages": [{"role": "user", "content": "weather?"}], "tools": TOOLS}
        whole = self.simulator.ask(CHAT, asked).json()
        call = whole["choices"][0]["message"]["tool_calls"][0]
        self.assertEqual(whole["choices"][0]["finish_reason"], "tool_calls")
        self.assertEqual(call["function"], {"name": "get_weather", "arguments": '{"city":"river","days":7}'})
        chunks = self.simulator.ask(CHAT, asked | {"stream": True}).data()
        deltas = [chunk["choices"][0]["delta"].get("tool_calls", [{}])[0] for chunk in chunks]
        self.assertEqual([d["function"]["name"] for d in deltas if "id" in d], ["get_weather"])
        pieces = [d["function"]["arguments"] for d in deltas if "function" in d]
        self.assertEqual("".join(pieces), call["function"]["arguments"])
        self.assertGreater(len(pieces), 2)
        self.assertEqual(chunks[-1]["choices"][0]["finish_reason"], "tool_calls")

    def test_reasoning_models(self) -> None:
        """A reasoning model's thoughts are inside its completion tokens."""
        usage = self.simulator.ask(CHAT, HI | {"model": "o3"}, simulate="events=5,reasoning=11").json()["usage"]
        self.assertEqual(usage["completion_tokens"], 16)
        self.assertEqual(usage["completion_tokens_details"]["reasoning_tokens"], 11)

    def test_several_choices(self) -> None:
        """`n` choices cost n times, in the stream as in the whole."""
        whole = self.simulator.ask(CHAT, HI | {"n": 3}, simulate="events=4").json()
        self.assertEqual([c["index"] for c in whole["choices"]], [0, 1, 2])
        self.assertEqual(whole["usage"]["completion_tokens"], 12)
        chunks = self.simulator.ask(CHAT, HI | {"n": 3, "stream": True}, simulate="events=4").data()
        self.assertEqual({c["choices"][0]["index"] for c in chunks}, {0, 1, 2})

    def test_limits_and_tiers(self) -> None:
        """max_tokens cuts with `length`; the tier `fast` is answered `priority`."""
        made = self.simulator.ask(CHAT, HI | {"max_tokens": 3, "service_tier": "fast"}).json()
        self.assertEqual(made["choices"][0]["finish_reason"], "length")
        self.assertEqual(made["usage"]["completion_tokens"], 3)
        self.assertEqual(made["service_tier"], "priority")

    def test_completions(self) -> None:
        """The older endpoint: text_completion, the same streamed."""
        asked = {"model": "gpt-3.5-turbo-instruct", "prompt": "once"}
        whole = self.simulator.ask("POST /v1/completions", asked).json()
        self.assertEqual(whole["object"], "text_completion")
        streamed = asked | {"stream": True, "stream_options": {"include_usage": True}}
        chunks = self.simulator.ask("POST /v1/completions", streamed).data()
        text = "".join(c["choices"][0]["text"] for c in chunks if c["choices"])
        self.assertEqual(text, whole["choices"][0]["text"])
        self.assertEqual(chunks[-1]["usage"], whole["usage"])


class ErrorTests(SynchronousTestCase):
    """OpenAI says no."""

    def setUp(self) -> None:
        self.simulator = Simulator()

    def _error(self, body: object, headers: dict[str, str] | None = None, simulate: str = "") -> tuple[int, Any]:
        answer = self.simulator.ask(CHAT, body, headers, simulate)
        return answer.status, answer.json()["error"]

    def test_keys(self) -> None:
        """No key, and a key that is not accepted."""
        for headers, code in (({}, "missing_api_key"), ({"Authorization": "Bearer invalid"}, "invalid_api_key")):
            status, error = self._error(HI, headers)
            self.assertEqual((status, error["code"], error["type"]), (401, code, "invalid_request_error"))
        self.assertEqual(self.simulator.ask(CHAT, HI, {"api-key": "azure"}).status, 200)

    def test_models(self) -> None:
        """A name that begins with missing- does not exist; any other does; none at all is a mistake."""
        self.assertEqual(self._error(HI | {"model": "missing-1"})[1]["code"], "model_not_found")
        self.assertEqual(self.simulator.ask(CHAT, HI | {"model": "anything"}).json()["model"], "anything")
        self.assertEqual(self._error({"messages": HI["messages"]})[1]["param"], "model")

    def test_bodies(self) -> None:
        """Not JSON, no object, no messages, a value of the wrong kind: 400 each, never a failure."""
        wrong: list[object] = [b"{", b"[]", {"model": "x"}, HI | {"tools": [{"function": 3}]}, HI | {"messages": ["x"]}]
        for body in wrong:
            self.assertEqual(self._error(body)[0], 400, body)
        self.flushLoggedErrors()

    def test_statuses(self) -> None:
        """`status=` answers any status in OpenAI's words, before the stream begins, with Retry-After when asked."""
        for status, kind, code in (
            (400, "invalid_request_error", None), (429, "requests", "rate_limit_exceeded"),
            (500, "server_error", None), (503, "server_error", None),
        ):  # fmt: skip
            got, error = self._error(HI | {"stream": True}, simulate=f"status={status}")
            self.assertEqual((got, error["type"], error["code"]), (status, kind, code))
            self.assertTrue(error["message"])
            self.assertEqual(set(error), {"message", "type", "param", "code"})
        answer = self.simulator.ask(CHAT, HI | {"model": "gpt-4o+status=429+retry_after=2.5"})
        self.assertEqual((answer.status, answer.field("retry-after")), (429, "2.5"))

    def test_a_malformed_wish(self) -> None:
        """What is not understood is refused and named, in the field and behind the model."""
        for body, simulate in ((HI, "nope=1"), (HI | {"model": "gpt-4o+nope=1"}, "")):
            status, error = self._error(body, simulate=simulate)
            self.assertEqual((status, error["param"]), (400, "X-Simulate"))
            self.assertIn("'nope' is not known", error["message"])

    def test_paths_and_methods(self) -> None:
        """An unknown path is 404, a known one with another method 405."""
        self.assertEqual(self.simulator.ask("POST /v1/nothing", {}).status, 404)
        self.assertEqual(self.simulator.ask("PATCH /v1/embeddings", {}).status, 405)
        self.assertEqual(self.simulator.ask("GET /v1/chat/completions").status, 405)

    def test_error_in_mid_stream(self) -> None:
        """After two events comes the provider's own error event, and the stream ends properly without [DONE]."""
        answer = self.simulator.ask(CHAT, HI | {"stream": True}, simulate="error_event=2")
        self.assertTrue(answer.complete)
        self.assertEqual(len(answer.events()), 3)
        self.assertEqual(answer.data()[-1]["error"]["type"], "server_error")


class MoreTests(SynchronousTestCase):
    """Embeddings, models, files, speech, moderations."""

    def setUp(self) -> None:
        self.simulator = Simulator()

    def test_embeddings(self) -> None:
        """Base64 and floats are the same numbers; the same text has the same vector; tokens are counted."""
        asked = {"model": "text-embedding-3-small", "input": ["abcd", "abcdefgh"], "dimensions": 8}
        floats = self.simulator.ask("POST /v1/embeddings", asked).json()
        coded = self.simulator.ask("POST /v1/embeddings", asked | {"encoding_format": "base64"}).json()
        self.assertEqual(floats["usage"], {"prompt_tokens": 3, "total_tokens": 3})
        for one, two in zip(floats["data"], coded["data"], strict=True):
            numbers = struct.unpack("<8f", base64.b64decode(two["embedding"]))
            self.assertTrue(all(abs(a - b) < 1e-6 for a, b in zip(one["embedding"], numbers, strict=True)))
        self.assertNotEqual(floats["data"][0]["embedding"], floats["data"][1]["embedding"])
        tokens = self.simulator.ask("POST /v1/embeddings", asked | {"input": [1, 2, 3]}).json()
        self.assertEqual((len(tokens["data"]), tokens["usage"]["total_tokens"]), (1, 3))

    def test_models(self) -> None:
        """The list has the usual names; one by name, percent-encoded or not."""
        names = [m["id"] for m in self.simulator.ask("GET /v1/models").json()["data"]]
        self.assertTrue({"gpt-4o", "gpt-4o-mini", "gpt-5", "o3", "text-embedding-3-small"} <= set(names))
        self.assertEqual(self.simulator.ask("GET /v1/models/ft:gpt%2Fx%20y").json()["id"], "ft:gpt/x y")
        self.assertEqual(self.simulator.ask("GET /v1/models/missing-x").status, 404)

    def test_files(self) -> None:
        """A file goes up, is listed, comes down byte for byte, and is gone after DELETE."""
        content = bytes(range(256)) * 4
        headers = OPENAI | {"Content-Type": "multipart/form-data; boundary=bound-7f3"}
        made = self.simulator.ask("POST /v1/files", form(content), headers).json()
        self.assertEqual((made["bytes"], made["purpose"], made["filename"]), (1024, "batch", "a.bin"))
        self.assertEqual(self.simulator.ask("GET /v1/files").json()["data"], [made])
        self.assertEqual(self.simulator.ask(f"GET /v1/files/{made['id']}").json(), made)
        self.assertEqual(self.simulator.ask(f"GET /v1/files/{made['id']}/content").body, content)
        self.assertTrue(self.simulator.ask(f"DELETE /v1/files/{made['id']}").json()["deleted"])
        self.assertEqual(self.simulator.ask(f"GET /v1/files/{made['id']}").status, 404)

    def test_speech_is_binary(self) -> None:
        """Speech is as many bytes as asked, chunked, of an audio type."""
        answer = self.simulator.ask("POST /v1/audio/speech", {"model": "tts-1", "input": "x"}, simulate="bytes=5000")
        self.assertEqual((len(answer.body), answer.field("content-type")), (5000, "audio/mpeg"))

    def test_moderations(self) -> None:
        """One result for each input."""
        made = self.simulator.ask("POST /v1/moderations", {"input": ["a", "b"]}).json()
        self.assertEqual([r["flagged"] for r in made["results"]], [False, False])


class GroqTests(SynchronousTestCase):
    """The same under /openai/v1, in Groq's manner."""

    def setUp(self) -> None:
        self.simulator = Simulator()
        self.asked = HI | {"model": "llama-3.3-70b-versatile"}

    def test_usage_in_x_groq(self) -> None:
        """Usage is in the last choice-bearing chunk's x_groq, unasked; times are there; ids are x_groq's."""
        whole = self.simulator.ask("POST /openai/v1/chat/completions", self.asked).json()
        chunks = self.simulator.ask("POST /openai/v1/chat/completions", self.asked | {"stream": True}).data()
        self.assertEqual(text_of(chunks), whole["choices"][0]["message"]["content"])
        self.assertEqual(chunks[-1]["x_groq"]["usage"], whole["usage"])
        self.assertEqual(chunks[0]["x_groq"]["id"], chunks[-1]["x_groq"]["id"])
        self.assertTrue({"queue_time", "prompt_time", "completion_time", "total_time"} <= set(whole["usage"]))
        self.assertTrue(whole["x_groq"]["id"].startswith("req_"))

    def test_include_usage_too(self) -> None:
        """With include_usage the OpenAI way comes on top."""
        asked = self.asked | {"stream": True, "stream_options": {"include_usage": True}}
        chunks = self.simulator.ask("POST /openai/v1/chat/completions", asked).data()
        self.assertEqual(chunks[-1]["usage"], chunks[-2]["x_groq"]["usage"])
        self.assertEqual(chunks[-1]["choices"], [])

    def test_reasoning_is_shown(self) -> None:
        """A reasoning model's thoughts come as `reasoning`."""
        asked = self.asked | {"model": "openai/gpt-oss-20b"}
        whole = self.simulator.ask("POST /openai/v1/chat/completions", asked).json()
        chunks = self.simulator.ask("POST /openai/v1/chat/completions", asked | {"stream": True}).data()
        thoughts = "".join(c["choices"][0]["delta"].get("reasoning", "") for c in chunks)
        self.assertEqual(thoughts, whole["choices"][0]["message"]["reasoning"])

    def test_head_and_models(self) -> None:
        """Groq's own rate limits and models."""
        answer = self.simulator.ask("GET /openai/v1/models")
        self.assertEqual(answer.field("x-ratelimit-reset-requests"), "2m59.56s")
        self.assertIn("llama-3.3-70b-versatile", [m["id"] for m in answer.json()["data"]])


class CompatTests(SynchronousTestCase):
    """Gemini's OpenAI-compatible endpoint."""

    def test_shapes(self) -> None:
        """Answers are OpenAI's, errors Google's in a list."""
        simulator = Simulator()
        asked = HI | {"model": "gemini-2.5-flash"}
        made = simulator.ask("POST /v1beta/openai/chat/completions", asked).json()
        self.assertEqual(made["object"], "chat.completion")
        self.assertEqual(made["model"], "gemini-2.5-flash")
        wrong = simulator.ask("POST /v1beta/openai/chat/completions", asked, simulate="status=429").json()
        self.assertEqual(wrong[0]["error"]["status"], "RESOURCE_EXHAUSTED")
