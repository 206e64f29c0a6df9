"""The pages that the proxy serves itself."""

from __future__ import annotations

import json

from twisted.trial.unittest import SynchronousTestCase

from llmproxy.config.model import Server
from tests.web.proxy_in_memory import NOON, ProxyInMemory, field, get, head_and_body, ok, post, request


class Health(SynchronousTestCase):
    """`/health` and what is below it."""

    def test_report(self) -> None:
        """/health says that the proxy is up and what it knows about each provider, and asks none of them."""
        proxy = ProxyInMemory()
        for path in ("/health", "/health/", "/health?x=1"):
            head, body = head_and_body(proxy.ask(get(path)))
            self.assertTrue(head.startswith(b"HTTP/1.1 200 OK\r\n"), path)
            self.assertEqual(field(head, b"content-type"), b"application/json")
            report = json.loads(body)
            self.assertEqual(report["status"], "healthy")
            self.assertEqual(report["timestamp"], int(NOON))
            self.assertEqual(sorted(report["providers"]), ["anthropic", "gemini", "groq", "openai"])
        self.assertEqual(proxy.connections(), 0)

    def test_live_and_ready(self) -> None:
        """An orchestrator's two probes get one word each."""
        proxy = ProxyInMemory()
        self.assertEqual(head_and_body(proxy.ask(get("/health/live")))[1], b'{"status":"live"}')
        self.assertEqual(head_and_body(proxy.ask(get("/health/ready")))[1], b'{"status":"ready"}')

    def test_accounting(self) -> None:
        """/health/accounting shows what was learned of each model for estimates, and how near they are."""
        proxy = ProxyInMemory()
        usage = b'{"object":"chat.completion","model":"gpt-4o","choices":[{"message":{"content":"Hello, you!"}}],'
        usage += b'"usage":{"prompt_tokens":9,"completion_tokens":3,"total_tokens":12}}'
        for _ in range(3):
            asked = b'{"model":"gpt-4o","messages":[{"role":"user","content":"Say hello."}]}'
            proxy.exchange(post("/openai/v1/chat/completions", asked), ok(usage, b"Content-Type: application/json"))
        report = json.loads(head_and_body(proxy.ask(get("/health/accounting")))[1])
        self.assertEqual(report["unpriced"], 0)
        learned = report["estimates"]["openai"]["gpt-4o"]
        self.assertEqual((learned["output_samples"], learned["output_error"] < 1), (3, True))
        self.assertAlmostEqual(learned["output_characters_per_token"], 11 / 3, places=2)

    def test_head(self) -> None:
        """HEAD gets the same head as GET and no body, and the connection goes on."""
        proxy = ProxyInMemory()
        caller = proxy.caller()
        caller.says(request("HEAD", "/health/live"))
        head, body = head_and_body(caller.heard())
        self.assertEqual(body, b"")
        self.assertEqual(field(head, b"content-length"), b"17")
        caller.says(get("/health/live"))
        self.assertTrue(caller.heard().endswith(b'{"status":"live"}'))

    def test_other_methods(self) -> None:
        """Anything but GET and HEAD is a 405 that says so."""
        for path in ("/health", "/health/live", "/"):
            head = ProxyInMemory().ask(post(path, b"{}"))
            self.assertTrue(head.startswith(b"HTTP/1.1 405 Method Not Allowed\r\n"), head)
            self.assertEqual(field(head, b"allow"), b"GET, HEAD")

    def test_access_event(self) -> None:
        """A probe is in the log as what it is."""
        proxy = ProxyInMemory()
        proxy.ask(get("/health"))
        self.assertEqual([(each["route"], each["end_reason"]) for each in proxy.access], [("health", "ok")])


class Index(SynchronousTestCase):
    """The page at `/`."""

    def test_text(self) -> None:
        """Whoever opens the proxy's address is told the base URL of every provider, as reached by that name."""
        proxy = ProxyInMemory()
        for path in ("/", "/?x"):
            head, body = head_and_body(proxy.ask(get(path)))
            self.assertTrue(head.startswith(b"HTTP/1.1 200 OK\r\n"))
            self.assertEqual(field(head, b"content-type"), b"text/plain; charset=utf-8")
            for path in ("openai/v1", "anthropic", "gemini", "groq"):
                self.assertIn(b"http://proxy.test/" + path.encode(), body)

    def test_public_url(self) -> None:
        """Behind a balancer the page names the public address."""
        proxy = ProxyInMemory(server=Server(public_url="https://llm.example.com"))
        self.assertIn(b"https://llm.example.com/openai/v1", proxy.ask(get("/")))

    def test_html(self) -> None:
        """A browser gets HTML, and no Host value becomes markup in it."""
        proxy = ProxyInMemory()
        raw = b"GET / HTTP/1.1\r\nHost: a&b'c\r\nAccept: text/html,*/*;q=0.8\r\n\r\n"
        head, body = head_and_body(proxy.ask(raw))
        self.assertEqual(field(head, b"content-type"), b"text/html; charset=utf-8")
        self.assertIn(b"a&amp;b&#x27;c/openai/v1", body)
        self.assertNotIn(b"a&b", body)
