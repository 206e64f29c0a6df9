"""What the simulator tells about what it has seen."""

from __future__ import annotations

import hashlib
import json

from twisted.trial.unittest import SynchronousTestCase

from llmproxy.simulate.record import KEPT
from tests.simulate.caller import Simulator

_KEYS = ("sk-canary-1", "sk-canary-2", "sk-canary-3", "sk-canary-4", "sk-canary-5", "sk-canary-6")


class RecordTests(SynchronousTestCase):
    """`/_simulator/requests` and `/_simulator/connections`."""

    def setUp(self) -> None:
        self.simulator = Simulator()

    def test_a_request_as_it_came(self) -> None:
        """Method, target, fields in order and case, and the body's size and hash."""
        body = b'{"model": "m",   "input": "x"}'
        headers = {"authorization": "Bearer k", "X-B": "1", "x-a": "2"}
        self.simulator.ask("POST /v1/embeddings?a=%20b&c", body, headers)
        seen = self.simulator.shown("requests")["requests"][0]
        self.assertEqual((seen["method"], seen["target"]), ("POST", "/v1/embeddings?a=%20b&c"))
        names = [name for name, _ in seen["fields"]]
        self.assertEqual(names, ["Host", "authorization", "X-B", "x-a", "Content-Length"])
        self.assertEqual((seen["body_bytes"], seen["body_sha256"]), (len(body), hashlib.sha256(body).hexdigest()))
        self.assertEqual((seen["status"], seen["body_complete"], seen["aborted"]), (200, True, False))

    def test_no_key_is_shown(self) -> None:
        """Keys in fields and in the query are masked; two different keys look different, the same look the same."""
        one, two, three, four, five, six = _KEYS
        headers = {"Authorization": f"Bearer {one}", "x-api-key": two, "api-key": three, "x-goog-api-key": four}
        for _ in range(2):
            self.simulator.ask(f"GET /v1/models?key={five}&access_token={six}&alt=sse", headers=headers)
        text = json.dumps(self.simulator.shown("requests"))
        for key in _KEYS:
            self.assertNotIn(key, text)
        first, again = self.simulator.shown("requests")["requests"]
        self.assertEqual(first["fields"], again["fields"])
        shown = [value for _, value in first["fields"] if "sha256" in value]
        self.assertEqual(len(set(shown)), 4)
        self.assertTrue(shown[0].startswith("Bearer <11 characters, sha256 "))
        self.assertTrue(first["target"].endswith("&alt=sse"))

    def test_only_so_many(self) -> None:
        """The last ones are kept, the oldest first; `last` gives fewer; DELETE forgets."""
        for number in range(KEPT + 5):
            self.simulator.ask(f"GET /v1/nothing/{number}", simulate="delay=0")
        seen = self.simulator.shown(f"requests?last={KEPT * 2}")["requests"]
        self.assertEqual((len(seen), seen[0]["target"]), (KEPT, "/v1/nothing/5"))
        self.assertEqual([one["target"] for one in self.simulator.shown("requests?last=1")["requests"]],
                         [f"/v1/nothing/{KEPT + 4}"])  # fmt: skip
        self.simulator.ask("DELETE /_simulator/requests")
        self.assertEqual(self.simulator.shown("requests")["requests"], [])

    def test_counters(self) -> None:
        """Answered, aborted and being answered are told apart; looking is not counted."""
        self.simulator.ask("GET /v1/models")
        left = self.simulator.begin("GET /v1/models", headers={"Authorization": "Bearer k"})
        left.leave()
        self.simulator.begin("GET /v1/models", None, {"Authorization": "Bearer k", "X-Simulate": "silence=head"})
        self.simulator.run()
        seen = self.simulator.shown("connections")
        self.assertEqual({name: seen[name] for name in ("used", "requests", "answering", "answered", "aborted")},
                         {"used": 3, "requests": 3, "answering": 1, "answered": 1, "aborted": 1})  # fmt: skip
        self.assertEqual(seen["open"], len(self.simulator.site.channels))

    def test_an_unknown_page(self) -> None:
        """Another name says which there are."""
        answer = self.simulator.ask("GET /_simulator/x", headers={})
        self.assertEqual(answer.status, 404)
        self.assertIn("/_simulator/requests", answer.json()["error"])
