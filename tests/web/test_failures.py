"""Errors of the proxy's own: in the shape that the SDK of the route reads."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.error import ConnectionRefusedError as Refused
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from llmproxy.core import errors
from llmproxy.core.framing import FramingError
from llmproxy.web import failures
from llmproxy.web.site import ProxyRequest
from tests.web.proxy_in_memory import ProxyInMemory, field, get, head_and_body, post, request


def _openai(error: Any) -> bool:
    return set(error) == {"error"} and set(error["error"]) == {"message", "type", "param", "code"}


def _anthropic(error: Any) -> bool:
    return set(error) == {"type", "error", "request_id"} and set(error["error"]) == {"type", "message"}


def _gemini(error: Any) -> bool:
    return set(error) == {"error"} and {"code", "message", "status"} <= set(error["error"])


_SHAPES = {"openai": _openai, "anthropic": _anthropic, "gemini": _gemini}


class _Fails(Resource):
    """A page that ends in an error of ours."""

    isLeaf = True

    def __init__(self, error_class: errors.ErrorClass) -> None:
        super().__init__()
        self._error_class = error_class

    def render(self, request: ProxyRequest) -> int:
        request.exchange.fail(errors.ProxyError(self._error_class))
        return NOT_DONE_YET


class Dialect(SynchronousTestCase):
    """The shape follows the route."""

    def _is(self, dialect: str, answer: bytes, status: int) -> None:
        head, body = head_and_body(answer)
        self.assertEqual(head.split(b" ")[1], b"%d" % status, head)
        self.assertEqual(field(head, b"content-type"), b"application/json")
        error = json.loads(body)
        fits = [name for name, shape in _SHAPES.items() if shape(error)]
        self.assertIn(dialect, fits, body)

    def test_by_route(self) -> None:
        """Anthropic's SDK reads Anthropic's shape, Google's Google's; the OpenAI-compatible doors of both read
        OpenAI's."""
        for path, dialect in (
            ("/openai/v1/chat/completions", "openai"),
            ("/groq/openai/v1/chat/completions", "openai"),
            ("/anthropic/v1/messages", "anthropic"),
            ("/anthropic/v1/chat/completions", "openai"),
            ("/gemini/v1/models/m:generateContent", "gemini"),
            ("/gemini/v1beta/openai/chat/completions", "openai"),
            ("/meta/bob/anthropic/v1/messages", "anthropic"),
            ("/meta/bob/gemini/v1/models", "gemini"),
        ):
            proxy = ProxyInMemory()
            for endpoint in proxy.endpoints.values():
                endpoint.error = Refused()
            self._is(dialect, proxy.ask(post(path, b"{}")), 502)

    def test_of_a_refused_head(self) -> None:
        """A head that is refused while it is read is answered in the shape of the route that it names."""
        for path, dialect in (
            ("/openai/v1/x", "openai"),
            ("/anthropic/v1/messages", "anthropic"),
            ("/gemini/v1/x", "gemini"),
            ("/meta/bob/anthropic/v1/messages", "anthropic"),
            ("/x", "openai"),
        ):
            self._is(dialect, ProxyInMemory().ask(get(path, b"Host: two")), 400)

    def test_of_a_websocket(self) -> None:
        """So is the answer to a WebSocket."""
        ask = (b"Connection: Upgrade", b"Upgrade: websocket")
        self._is("gemini", ProxyInMemory().ask(get("/gemini/ws/x", *ask)), 426)

    def test_ids(self) -> None:
        """The error names the request by the id that is in the answer's field and in the log."""
        proxy = ProxyInMemory()
        proxy.endpoints["anthropic"].error = Refused()
        head, body = head_and_body(proxy.ask(post("/anthropic/v1/messages", b"{}")))
        self.assertEqual(json.loads(body)["request_id"].encode(), field(head, b"x-llm-proxy-request-id"))
        self.assertEqual(json.loads(body)["request_id"], proxy.access[0]["request_id"])

    def test_names_the_provider(self) -> None:
        """The sentence says which provider it was, and does not tell its address."""
        proxy = ProxyInMemory()
        proxy.endpoints["groq"].error = Refused()
        body = proxy.ask(get("/groq/v1/models")).partition(b"\r\n\r\n")[2]
        self.assertIn(b"Groq could not be reached", body)
        self.assertNotIn(b"groq.test", body)


class Heads(SynchronousTestCase):
    """An error's head."""

    def test_head_has_no_body(self) -> None:
        """An error as answer to HEAD has no body, and the connection goes on."""
        proxy = ProxyInMemory()
        caller = proxy.caller()
        caller.says(request("HEAD", "/nowhere"))
        head, body = head_and_body(caller.heard())
        self.assertTrue(head.startswith(b"HTTP/1.1 404 "))
        self.assertEqual(body, b"")
        caller.says(get("/health/live"))
        self.assertTrue(caller.heard().startswith(b"HTTP/1.1 200 "))

    def test_reason_phrases(self) -> None:
        """Every error of ours can be written as a status line, and each has a status that means what it says."""
        for each in errors.ERROR_CLASSES.values():
            with self.subTest(each.name):
                proxy = ProxyInMemory()
                proxy.site.resource = _Fails(each)
                heard = proxy.ask(get("/"))
                self.assertRegex(heard.split(b"\r\n")[0], rb"\AHTTP/1\.1 %d [A-Z][A-Za-z -]+\Z" % each.status)
                self.assertEqual(field(heard, b"x-llm-proxy-error-class"), each.name.encode())

    def test_refusals(self) -> None:
        """Every status that the framing rules give has an error class of that status."""
        for status in (400, 431, 500, 501, 505):
            self.assertEqual(failures.refused(FramingError(status, "so it is")).error_class.status, status)
