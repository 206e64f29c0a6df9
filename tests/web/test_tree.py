"""Which path leads where, and what the provider then gets."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.web.proxy_in_memory import ProxyInMemory, answers, get, head_and_body, ok, post, request

_VISIBLE = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) != "#")


class ToAProvider(SynchronousTestCase):
    """Paths that lead to a provider."""

    def _target(self, path: str, name: str) -> bytes:
        proxy = ProxyInMemory()
        sent, _ = proxy.exchange(get(path), ok(), name)
        return sent.split(b" ", 2)[1]

    def test_prefixes(self) -> None:
        """The provider gets what stands behind its name in the path, and Groq's own SDK and OpenAI's both fit."""
        for path, name, target in (
            ("/openai/v1/models", "openai", b"/v1/models"),
            ("/openai/v1/models?limit=2", "openai", b"/v1/models?limit=2"),
            ("/openai/", "openai", b"/"),
            ("/openai//", "openai", b"//"),
            ("/anthropic/v1/messages", "anthropic", b"/v1/messages"),
            ("/gemini/v1beta/models/m:generateContent?alt=sse", "gemini", b"/v1beta/models/m:generateContent?alt=sse"),
            ("/gemini/upload/v1/files", "gemini", b"/upload/v1/files"),
            ("/groq/v1/chat/completions", "groq", b"/openai/v1/chat/completions"),
            ("/groq/openai/v1/chat/completions", "groq", b"/openai/v1/chat/completions"),
            ("/meta/bob/openai/v1/models", "openai", b"/v1/models"),
            ("/meta/bob/groq/v1/models", "groq", b"/openai/v1/models"),
            ("/meta//openai/v1/models", "openai", b"/v1/models"),
        ):
            self.assertEqual(self._target(path, name), target, path)

    @given(st.text(_VISIBLE, max_size=40))
    def test_every_byte_behind_the_prefix(self, rest: str) -> None:
        """Whatever stands behind the prefix reaches the provider byte for byte, and never another host."""
        proxy = ProxyInMemory()
        sent, _ = proxy.exchange(get("/openai/" + rest), ok())
        self.assertEqual(sent.split(b"\r\n")[0], b"GET /%b HTTP/1.1" % rest.encode())
        self.assertIn(b"\r\nHost: openai.test\r\n", sent)
        self.assertEqual(proxy.connections(), 1)

    def test_nothing_is_decoded_or_tidied(self) -> None:
        """Escapes, doubled slashes and dots stay as the caller wrote them, for signatures and odd model names."""
        for rest in (
            "/v1/a%2Fb",
            "/v1//x",
            "/v1/../y",
            "/v1/%2e%2e/z",
            "/v1/%zz",
            "/?",
            "/v1?",
            "/v1?a=b?c&&d",
            "/%0d%0aX:%20y",
        ):
            self.assertEqual(self._target("/openai" + rest, "openai"), rest.encode())

    def test_an_encoded_name(self) -> None:
        """`/%6Fpenai` is `/openai`, as RFC 3986 has it; what follows is still not decoded."""
        self.assertEqual(self._target("/%6Fpenai/v1/a%2Fb", "openai"), b"/v1/a%2Fb")

    def test_other_hosts_in_the_target(self) -> None:
        """No form of target leads anywhere but to the provider's own host."""
        for rest in (
            "//evil.test/",
            "/@evil.test/",
            "/http://evil.test/",
            "/\\\\evil.test",
            "/%40evil.test",
            "/..//evil.test",
        ):
            proxy = ProxyInMemory()
            sent, _ = proxy.exchange(get("/openai" + rest), ok())
            self.assertTrue(sent.startswith(b"GET " + rest.encode() + b" HTTP/1.1\r\nHost: openai.test\r\n"), sent)

    def test_any_method(self) -> None:
        """Methods that no resource of ours knows reach the provider too."""
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"):
            proxy = ProxyInMemory()
            sent, _ = proxy.exchange(request(method, "/openai/v1/x"), ok())
            self.assertTrue(sent.startswith(method.encode() + b" /v1/x "), sent)

    def test_base_url_with_a_path(self) -> None:
        """A provider that lives below a path gets that path in front."""
        from llmproxy.providers import of_kind

        mistral = of_kind("openai-compatible", name="mistral", base_url="http://mistral.test/api")
        proxy = ProxyInMemory(providers={"mistral": mistral})
        sent, _ = proxy.exchange(get("/mistral/v1/models"), ok(), "mistral")
        self.assertTrue(sent.startswith(b"GET /api/v1/models HTTP/1.1\r\nHost: mistral.test\r\n"), sent)

    def test_a_user_in_the_path(self) -> None:
        """`/meta/{user}/` names the user for the log, percent-decoded."""
        proxy = ProxyInMemory()
        proxy.exchange(get("/meta/J%C3%BCrgen%2Fx/openai/v1/models"), ok())
        self.assertEqual(proxy.access[0]["user"], "Jürgen/x")
        self.assertEqual(proxy.access[0]["route"], "meta/openai")


class NoRoute(SynchronousTestCase):
    """Paths that lead nowhere."""

    def test_404(self) -> None:
        """A wrong path is a 404 that lists the right ones, before any connection is opened."""
        for path in (
            "/x",
            "/openai",
            "/openai?a=/b",
            "/openaiX/v1",
            "/openaiX",
            "/OpenAI/v1",
            "/openai%2Fv1/models",
            "/v1/models",
            "/health/x",
            "/healthy",
            "/meta",
            "/meta/",
            "/meta/bob",
            "/meta/bob/",
            "/meta/bob/openai",
            "/meta/bob/nobody/v1",
            "/meta/openai/v1/models",
            "//",
            "//openai/v1/models",
            "//evil.test/",
            "/.",
            "/%00",
        ):
            proxy = ProxyInMemory()
            head, body = head_and_body(proxy.ask(get(path)))
            self.assertTrue(head.startswith(b"HTTP/1.1 404 Not Found\r\n"), (path, head))
            error = json.loads(body)["error"]
            self.assertEqual(error["code"], "unknown_route")
            for prefix in ("/openai/", "/anthropic/", "/gemini/", "/groq/"):
                self.assertIn(prefix, error["message"])
            self.assertEqual(proxy.connections(), 0)
            self.assertEqual([each["end_reason"] for each in proxy.access], ["bad_request"], path)
            self.assertEqual(proxy.access[0]["status"], 404)

    def test_body_is_no_request(self) -> None:
        """The body of a request that leads nowhere is never taken for the next request."""
        proxy = ProxyInMemory()
        caller = proxy.caller()
        caller.says(post("/nowhere", get("/openai/v1/models")))
        caller.says(get("/openai/v1/files"))
        self.assertEqual(answers(caller.heard()), 1)
        self.assertTrue(proxy.provider().heard().startswith(b"GET /v1/files "))

    def test_disabled(self) -> None:
        """A provider that is not enabled has no route and is not named."""
        from llmproxy.providers import CATALOG

        proxy = ProxyInMemory(providers={"openai": CATALOG["openai"]})
        answer = proxy.ask(get("/anthropic/v1/messages"))
        self.assertTrue(answer.startswith(b"HTTP/1.1 404 "))
        self.assertNotIn(b"/anthropic/", answer.partition(b"\r\n\r\n")[2])
