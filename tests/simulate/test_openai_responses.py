"""OpenAI's Responses."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.simulate.caller import Simulator

ASKED: dict[str, Any] = {"model": "gpt-4o", "input": "hi"}
TOOL = {"type": "function", "name": "get_weather", "parameters": {"properties": {"city": {"type": "string"}}}}


class ResponsesTests(SynchronousTestCase):
    """Whole, streamed, stored, in the background."""

    def setUp(self) -> None:
        self.simulator = Simulator()

    def _create(self, simulate: str = "", **more: Any) -> Any:
        return self.simulator.ask("POST /v1/responses", ASKED | more, simulate=simulate)

    def test_whole(self) -> None:
        """One object with its items and its usage."""
        made = self._create().json()
        self.assertEqual(
            (made["object"], made["status"], made["model"]), ("response", "completed", "gpt-4o-2024-08-06")
        )
        self.assertEqual(made["output"][0]["content"][0]["type"], "output_text")
        usage = made["usage"]
        self.assertEqual(usage["total_tokens"], usage["input_tokens"] + usage["output_tokens"])
        self.assertEqual(usage["input_tokens_details"], {"cached_tokens": 0, "cache_write_tokens": 0})
        self.assertEqual(usage["output_tokens_details"], {"reasoning_tokens": 0})

    def test_stream(self) -> None:
        """Events in their order, numbered, named as their type; usage in the terminal event alone; no [DONE]."""
        whole = self._create().json()
        events = self._create(stream=True).events()
        types = [data["type"] for _, data in events]
        self.assertEqual([name for name, _ in events], types)
        self.assertEqual([data["sequence_number"] for _, data in events], list(range(len(events))))
        self.assertEqual(types[:4], ["response.created", "response.in_progress", "response.output_item.added",
                                     "response.content_part.added"])  # fmt: skip
        self.assertEqual(types[-4:], ["response.output_text.done", "response.content_part.done",
                                      "response.output_item.done", "response.completed"])  # fmt: skip
        self.assertEqual(set(types[4:-4]), {"response.output_text.delta"})
        text = "".join(data["delta"] for _, data in events[4:-4])
        self.assertEqual(text, whole["output"][0]["content"][0]["text"])
        self.assertIsNone(events[0][1]["response"]["usage"])
        self.assertEqual(events[-1][1]["response"]["usage"], whole["usage"])
        self.assertEqual(events[-1][1]["response"]["output"][0]["content"], whole["output"][0]["content"])

    def test_tool_call(self) -> None:
        """Argument deltas make the arguments of the item."""
        events = self._create(stream=True, input="weather?", tools=[TOOL]).events()
        pieces = [d["delta"] for name, d in events if name == "response.function_call_arguments.delta"]
        item = events[-1][1]["response"]["output"][0]
        self.assertEqual((item["type"], item["name"]), ("function_call", "get_weather"))
        self.assertEqual("".join(pieces), item["arguments"])

    def test_reasoning(self) -> None:
        """A reasoning model has a reasoning item, with a summary when asked for one."""
        made = self._create(model="gpt-5", reasoning={"summary": "auto"}).json()
        self.assertEqual([item["type"] for item in made["output"]], ["reasoning", "message"])
        self.assertTrue(made["output"][0]["summary"][0]["text"])
        self.assertEqual(made["usage"]["output_tokens_details"]["reasoning_tokens"], 16)
        self.assertEqual(self._create(model="gpt-5").json()["output"][0]["summary"], [])

    def test_incomplete(self) -> None:
        """A limit that cuts ends in response.incomplete, with usage."""
        last = self._create(stream=True, max_output_tokens=2).data()[-1]
        self.assertEqual(last["type"], "response.incomplete")
        self.assertEqual(last["response"]["incomplete_details"], {"reason": "max_output_tokens"})
        self.assertEqual(last["response"]["usage"]["output_tokens"], 2)

    def test_stored(self) -> None:
        """A response can be fetched, streamed again from a place, and deleted; `store: false` is not kept."""
        events = self._create(stream=True).events()
        name = events[0][1]["response"]["id"]
        self.assertEqual(self.simulator.ask(f"GET /v1/responses/{name}").json()["usage"],
                         events[-1][1]["response"]["usage"])  # fmt: skip
        again = self.simulator.ask(f"GET /v1/responses/{name}?stream=true&starting_after=4").events()
        self.assertEqual([d["sequence_number"] for _, d in again], list(range(5, len(events))))
        self.assertEqual([n for n, _ in again], [n for n, _ in events[5:]])
        self.assertTrue(self.simulator.ask(f"DELETE /v1/responses/{name}").json()["deleted"])
        self.assertEqual(self.simulator.ask(f"GET /v1/responses/{name}").status, 404)
        unkept = self._create(store=False).json()["id"]
        self.assertEqual(self.simulator.ask(f"GET /v1/responses/{unkept}").status, 404)

    def test_background(self) -> None:
        """Queued without usage, in progress, then completed with usage; each poll says the same."""
        made = self._create(background=True).json()
        self.assertEqual((made["status"], made["usage"]), ("queued", None))
        path = f"GET /v1/responses/{made['id']}"
        self.assertEqual(self.simulator.ask(path).json()["status"], "in_progress")
        self.simulator.clock.advance(5)
        done = self.simulator.ask(path).json()
        self.assertEqual(done["status"], "completed")
        self.assertEqual(self.simulator.ask(path).json()["usage"], done["usage"])

    def test_cancel(self) -> None:
        """A background response is cancelled once, and only while it runs; another kind cannot be."""
        made = self._create(background=True).json()
        cancelled = self.simulator.ask(f"POST /v1/responses/{made['id']}/cancel").json()
        self.assertEqual((cancelled["status"], cancelled["usage"]), ("cancelled", None))
        plain = self._create().json()
        self.assertEqual(self.simulator.ask(f"POST /v1/responses/{plain['id']}/cancel").status, 400)

    def test_error_event(self) -> None:
        """The stream's own error event has its number."""
        name, data = self._create("error_event=3", stream=True).events()[-1]
        self.assertEqual((name, data["type"], data["sequence_number"]), ("error", "error", 3))

    def test_groq_has_them_too(self) -> None:
        """The same under Groq's path, with Groq's head."""
        answer = self.simulator.ask("POST /openai/v1/responses", ASKED)
        self.assertEqual(answer.json()["object"], "response")
        self.assertEqual(answer.field("x-groq-region"), "simulated")
