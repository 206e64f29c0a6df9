"""CORS: what a script in a browser may ask and read."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from llmproxy.config.model import Cors
from tests.web.proxy_in_memory import ProxyInMemory, field, fields_of, get, head_and_body, ok, post, request

_ORIGIN = b"Origin: https://app.test"
_LISTED = Cors(allow_origins=("https://app.test", "https://other.test"))


def _cors(message: bytes) -> dict[bytes, bytes]:
    found = [(name.lower(), value) for name, value in fields_of(message)]
    names = [name for name, _ in found if name.startswith(b"access-control-")]
    if len(names) != len(set(names)):
        raise AssertionError(f"doubled: {names}")
    return {name: value for name, value in found if name.startswith(b"access-control-")}


class AnyOrigin(SynchronousTestCase):
    """The default: every page may use the proxy."""

    def test_on_every_answer(self) -> None:
        """Answers, pages, errors, 404s and refusals all carry the fields; a browser hides what does not."""
        proxy = ProxyInMemory()
        proxy.endpoints["groq"].error = OSError()
        answers = {
            "an answer": proxy.exchange(get("/openai/v1/models", _ORIGIN), ok())[1],
            "a provider's error": proxy.exchange(
                get("/openai/v1/x", _ORIGIN), b"HTTP/1.1 429 Slow\r\nContent-Length: 0\r\n\r\n"
            )[1],
            "an error of ours": proxy.ask(get("/groq/v1/models", _ORIGIN)),
            "404": proxy.ask(get("/nowhere", _ORIGIN)),
            "405": proxy.ask(post("/health", b"", _ORIGIN)),
            "a page": proxy.ask(get("/health", _ORIGIN)),
            "426": proxy.ask(get("/openai/v1/x", _ORIGIN, b"Connection: Upgrade", b"Upgrade: websocket")),
            "a refused head": proxy.ask(get("/openai/v1/x", _ORIGIN, b"Host: two")),
        }
        for what, answer in answers.items():
            cors = _cors(answer)
            self.assertEqual(cors.get(b"access-control-allow-origin"), b"*", what)
            self.assertIn(b"X-LLM-Proxy-Request-ID", cors.get(b"access-control-expose-headers", b""), what)
            self.assertNotIn(b"access-control-allow-credentials", cors, what)

    def test_never_with_credentials(self) -> None:
        """No page gets to use a visitor's cookies: no origin is echoed and no credentials are allowed."""
        for origin in (b"https://evil.test", b"null"):
            answer = ProxyInMemory().exchange(get("/openai/v1/models", b"Origin: " + origin), ok())[1]
            self.assertNotIn(origin, answer)
            self.assertNotIn(b"Allow-Credentials", answer)

    def test_the_providers_own_are_replaced(self) -> None:
        """A provider's CORS fields are about its own site; the caller sees ours only, once each."""
        answer = ProxyInMemory().exchange(
            get("/openai/v1/models", _ORIGIN),
            ok(
                b"hi",
                b"access-control-allow-origin: https://provider.test",
                b"Access-Control-Allow-Credentials: true",
                b"Access-Control-Expose-Headers: x",
                b"Access-Control-Max-Age: 1",
            ),
        )[1]
        self.assertEqual(sorted(_cors(answer)), [b"access-control-allow-origin", b"access-control-expose-headers"])
        self.assertNotIn(b"provider.test", answer)

    def test_preflight(self) -> None:
        """A browser's question is answered here: nobody is asked, nothing is charged, its list is echoed."""
        proxy = ProxyInMemory()
        asked = b"authorization,content-type,x-stainless-os"
        answer = proxy.ask(
            request(
                "OPTIONS",
                "/openai/v1/chat/completions",
                _ORIGIN,
                b"Access-Control-Request-Method: POST",
                b"Access-Control-Request-Headers: " + asked,
            )
        )
        head, body = head_and_body(answer)
        self.assertTrue(head.startswith(b"HTTP/1.1 204 No Content\r\n"))
        self.assertEqual(body, b"")
        cors = _cors(answer)
        self.assertEqual(cors[b"access-control-allow-origin"], b"*")
        self.assertEqual(cors[b"access-control-allow-headers"], asked)
        self.assertIn(b"POST", cors[b"access-control-allow-methods"])
        self.assertEqual(cors[b"access-control-max-age"], b"600")
        self.assertEqual(field(head, b"vary"), b"Access-Control-Request-Headers")
        self.assertEqual(proxy.connections(), 0)
        self.assertEqual([(each["route"], each["end_reason"]) for each in proxy.access], [("preflight", "ok")])

    def test_other_options_are_forwarded(self) -> None:
        """An OPTIONS that is no browser's question goes to the provider like anything else."""
        for fields in ([], [_ORIGIN], [b"Access-Control-Request-Method: POST"]):
            proxy = ProxyInMemory()
            sent, _ = proxy.exchange(request("OPTIONS", "/openai/v1/models", *fields), ok())
            self.assertTrue(sent.startswith(b"OPTIONS /v1/models "))

    def test_preflight_to_nowhere(self) -> None:
        """A preflight for a wrong path passes, so that the page can read the 404 that follows."""
        proxy = ProxyInMemory()
        answer = proxy.ask(request("OPTIONS", "/nowhere", _ORIGIN, b"Access-Control-Request-Method: GET"))
        self.assertTrue(answer.startswith(b"HTTP/1.1 204 "))


class ListedOrigins(SynchronousTestCase):
    """`cors.allow_origins` names the pages."""

    def test_listed(self) -> None:
        """A page on the list is named, and caches are told that the answer depends on it."""
        answer = ProxyInMemory(cors=_LISTED).exchange(get("/openai/v1/models", _ORIGIN), ok())[1]
        self.assertEqual(_cors(answer)[b"access-control-allow-origin"], b"https://app.test")
        self.assertIn(b"\r\nVary: Origin\r\n", answer)

    def test_not_listed(self) -> None:
        """A page that is not on the list gets nothing to go by, not even its own name; nor do near misses."""
        for origin in (b"https://evil.test", b"https://app.test.evil.test", b"http://app.test", b"null"):
            answer = ProxyInMemory(cors=_LISTED).exchange(get("/openai/v1/models", b"Origin: " + origin), ok())[1]
            self.assertEqual(_cors(answer), {}, origin)
            self.assertIn(b"\r\nVary: Origin\r\n", answer)

    def test_the_providers_vary_stays(self) -> None:
        """What a provider says about caching is kept beside ours."""
        answer = ProxyInMemory(cors=_LISTED).exchange(
            get("/openai/v1/models", _ORIGIN), ok(b"hi", b"Vary: Accept-Encoding")
        )[1]
        self.assertEqual(
            [value for name, value in fields_of(answer) if name.lower() == b"vary"], [b"Accept-Encoding", b"Origin"]
        )

    def test_preflight(self) -> None:
        """Listed field names are given to a listed page; another page is not allowed anything."""
        proxy = ProxyInMemory(cors=Cors(allow_origins=("https://app.test",), allow_headers=("X-A", "X-B")))
        ask = b"Access-Control-Request-Method: POST"
        allowed = proxy.ask(request("OPTIONS", "/openai/v1/x", _ORIGIN, ask))
        self.assertEqual(_cors(allowed)[b"access-control-allow-headers"], b"X-A, X-B")
        other = proxy.ask(request("OPTIONS", "/openai/v1/x", b"Origin: https://evil.test", ask))
        self.assertNotIn(b"access-control-allow-origin", _cors(other))


class SwitchedOff(SynchronousTestCase):
    """`cors.enabled: false`."""

    def test_nothing_is_touched(self) -> None:
        """The provider's own fields pass and a preflight is forwarded: CORS is somebody else's business."""
        proxy = ProxyInMemory(cors=Cors(enabled=False))
        sent, answer = proxy.exchange(
            request("OPTIONS", "/openai/v1/x", _ORIGIN, b"Access-Control-Request-Method: POST"),
            ok(b"", b"Access-Control-Allow-Origin: https://app.test"),
        )
        self.assertTrue(sent.startswith(b"OPTIONS /v1/x "))
        self.assertEqual(_cors(answer), {b"access-control-allow-origin": b"https://app.test"})
