"""Anthropic's messages."""

from __future__ import annotations

import json
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.simulate.caller import ANTHROPIC, Answer, Simulator

HI: dict[str, Any] = {
    "model": "claude-sonnet-4-20250514",
    "max_tokens": 1000,
    "messages": [{"role": "user", "content": "hi"}],
}
TOOLS = [{"name": "get_weather", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}]


class MessagesTests(SynchronousTestCase):
    """Whole and streamed."""

    def setUp(self) -> None:
        self.simulator = Simulator()

    def _ask(self, simulate: str = "", **more: Any) -> Answer:
        return self.simulator.ask("POST /v1/messages", HI | more, ANTHROPIC, simulate)

    def test_whole(self) -> None:
        """A message with its text and all of its usage."""
        answer = self._ask()
        made = answer.json()
        self.assertEqual((made["type"], made["role"], made["stop_reason"]), ("message", "assistant", "end_turn"))
        self.assertEqual(made["content"][0]["type"], "text")
        self.assertTrue({"input_tokens", "output_tokens", "cache_creation_input_tokens", "cache_read_input_tokens",
                         "cache_creation", "service_tier"} <= set(made["usage"]))  # fmt: skip
        self.assertTrue((answer.field("request-id") or "").startswith("req_"))
        self.assertRegex(answer.field("anthropic-ratelimit-tokens-reset") or "", r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")

    def test_stream(self) -> None:
        """Named events in their order; input counts at the start, cumulative usage at the end; the same text."""
        whole = self._ask().json()
        events = self._ask(stream=True).events()
        names = [name for name, _ in events]
        self.assertEqual(names, [data["type"] for _, data in events])
        self.assertEqual(names[:3], ["message_start", "content_block_start", "ping"])
        self.assertEqual(names[-3:], ["content_block_stop", "message_delta", "message_stop"])
        text = "".join(d["delta"]["text"] for n, d in events if n == "content_block_delta")
        self.assertEqual(text, whole["content"][0]["text"])
        start, delta = events[0][1]["message"]["usage"], events[-2][1]["usage"]
        self.assertEqual(start["output_tokens"], 1)
        self.assertIn("cache_creation", start)
        self.assertEqual(delta["output_tokens"], whole["usage"]["output_tokens"])
        self.assertEqual(delta["input_tokens"], start["input_tokens"])

    def test_thinking(self) -> None:
        """Thinking comes in a block of its own with a signature, when asked for, and is inside the output."""
        thinking = {"type": "enabled", "budget_tokens": 1024}
        whole = self._ask(thinking=thinking).json()
        self.assertEqual([block["type"] for block in whole["content"]], ["thinking", "text"])
        self.assertEqual(whole["usage"]["output_tokens_details"], {"thinking_tokens": 16})
        events = self._ask(thinking=thinking, stream=True).events()
        deltas = [d["delta"] for n, d in events if n == "content_block_delta" and d["index"] == 0]
        self.assertEqual("".join(d.get("thinking", "") for d in deltas), whole["content"][0]["thinking"])
        self.assertEqual(deltas[-1], {"type": "signature_delta", "signature": whole["content"][0]["signature"]})
        self.assertEqual(events[-2][1]["usage"]["output_tokens_details"], {"thinking_tokens": 16})
        self.assertEqual(len(self._ask().json()["content"]), 1)

    def test_tool_call(self) -> None:
        """The input comes in pieces of JSON; after the result the model answers in words."""
        asked: dict[str, Any] = {"tools": TOOLS, "messages": [{"role": "user", "content": "weather?"}]}
        whole = self._ask(**asked).json()
        self.assertEqual((whole["stop_reason"], whole["content"][0]["input"]), ("tool_use", {"city": "river"}))
        events = self._ask(**asked, stream=True).events()
        pieces = [d["delta"]["partial_json"] for n, d in events if n == "content_block_delta"]
        self.assertEqual(json.loads("".join(pieces)), {"city": "river"})
        self.assertEqual(events[1][1]["content_block"]["input"], {})
        result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "x", "content": "weather: sun"}]}
        after = self._ask(tools=TOOLS, messages=[*asked["messages"], result]).json()
        self.assertEqual(after["stop_reason"], "end_turn")
        forced = self._ask(tools=TOOLS, tool_choice={"type": "any"}).json()
        self.assertEqual(forced["stop_reason"], "tool_use")

    def test_cache(self) -> None:
        """input_tokens leaves out what is written to and read from the cache; the sum stays the prompt."""

        def content(**marked: Any) -> list[dict[str, Any]]:
            return [{"role": "user", "content": [{"type": "text", "text": "x" * 4000, **marked}]}]

        plain = self._ask(messages=content()).json()["usage"]
        self.assertEqual((plain["input_tokens"], plain["cache_creation_input_tokens"]), (1003, 0))
        marked = content(cache_control={"type": "ephemeral", "ttl": "1h"})
        usage = self._ask("cached=100", messages=marked).json()["usage"]
        self.assertEqual((usage["input_tokens"], usage["cache_creation_input_tokens"]), (0, 903))
        self.assertEqual(usage["cache_read_input_tokens"], 100)
        self.assertEqual(usage["cache_creation"], {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 903})

    def test_count_tokens(self) -> None:
        """Counting says what the message costs."""
        counted = self.simulator.ask("POST /v1/messages/count_tokens", HI, ANTHROPIC).json()
        self.assertEqual(counted, {"input_tokens": self._ask().json()["usage"]["input_tokens"]})

    def test_error_in_mid_stream(self) -> None:
        """An overloaded model says so in an error event."""
        name, data = self._ask("error_event=4", stream=True).events()[-1]
        self.assertEqual((name, data["error"]["type"]), ("error", "overloaded_error"))


class RefusalTests(SynchronousTestCase):
    """Anthropic says no."""

    def setUp(self) -> None:
        self.simulator = Simulator()

    def _error(self, body: object, headers: dict[str, str], simulate: str = "") -> tuple[int, str]:
        answer = self.simulator.ask("POST /v1/messages", body, headers, simulate)
        made = answer.json()
        self.assertEqual((made["type"], set(made["error"])), ("error", {"type", "message"}))
        self.assertEqual(made["request_id"], answer.field("request-id"))
        return answer.status, made["error"]["type"]

    def test_keys(self) -> None:
        """Both kinds of key are read; a missing and a wrong one are 401; the version is wanted."""
        version = {"anthropic-version": "2023-06-01"}
        self.assertEqual(self._error(HI, version), (401, "authentication_error"))
        self.assertEqual(self._error(HI, version | {"x-api-key": "sk-invalid"}), (401, "authentication_error"))
        self.assertEqual(self._error(HI, {"x-api-key": "k"}), (400, "invalid_request_error"))
        bearer = version | {"Authorization": "Bearer sk-ant"}
        self.assertEqual(self.simulator.ask("POST /v1/messages", HI, bearer).status, 200)

    def test_bodies_and_models(self) -> None:
        """What is missing is a 400, an unknown model a 404."""
        self.assertEqual(self._error(HI | {"model": "missing-x"}, ANTHROPIC), (404, "not_found_error"))
        for name in ("model", "messages", "max_tokens"):
            body = {key: value for key, value in HI.items() if key != name}
            self.assertEqual(self._error(body, ANTHROPIC), (400, "invalid_request_error"), name)

    def test_statuses(self) -> None:
        """Each status has its type."""
        for status, kind in ((402, "billing_error"), (403, "permission_error"), (413, "request_too_large"),
                             (429, "rate_limit_error"), (500, "api_error"), (504, "timeout_error"),
                             (529, "overloaded_error")):  # fmt: skip
            self.assertEqual(self._error(HI, ANTHROPIC, f"status={status}"), (status, kind))

    def test_models_and_hello(self) -> None:
        """/v1/models is Anthropic's when the version is sent; HEAD /api/hello wants no key and has no body."""
        made = self.simulator.ask("GET /v1/models", headers=ANTHROPIC).json()
        self.assertEqual(made["first_id"], made["data"][0]["id"])
        one = self.simulator.ask("GET /v1/models/claude-3-5-haiku-latest", headers=ANTHROPIC).json()
        self.assertEqual((one["id"], one["created_at"]), ("claude-3-5-haiku-20241022", "2024-10-22T00:00:00Z"))
        self.assertIn(b"200 OK", self.simulator.ask("HEAD /api/hello", headers={}).raw)
