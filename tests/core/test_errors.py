"""The proxy's own errors, read back as the SDKs read them."""

from __future__ import annotations

import json
import re
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from llmproxy.core.end import EndReason
from llmproxy.core.errors import (
    DIALECTS,
    ERROR_CLASSES,
    UNKNOWN_ROUTE,
    UPSTREAM_CONNECT_FAILED,
    ProxyError,
    error_body,
    error_fields,
)

_REQUEST_ID = "req_0123"

# What each status must say, per dialect: OpenAI "type", Anthropic "error.type", google.rpc.Code.
_WORDS = {
    400: ("invalid_request_error", "invalid_request_error", "INVALID_ARGUMENT"),
    404: ("invalid_request_error", "not_found_error", "NOT_FOUND"),
    405: ("invalid_request_error", "invalid_request_error", "INVALID_ARGUMENT"),
    408: ("invalid_request_error", "timeout_error", "DEADLINE_EXCEEDED"),
    413: ("invalid_request_error", "request_too_large", "INVALID_ARGUMENT"),
    414: ("invalid_request_error", "invalid_request_error", "INVALID_ARGUMENT"),
    417: ("invalid_request_error", "invalid_request_error", "FAILED_PRECONDITION"),
    426: ("invalid_request_error", "invalid_request_error", "FAILED_PRECONDITION"),
    431: ("invalid_request_error", "invalid_request_error", "INVALID_ARGUMENT"),
    500: ("server_error", "api_error", "INTERNAL"),
    501: ("server_error", "api_error", "UNIMPLEMENTED"),
    502: ("server_error", "api_error", "UNAVAILABLE"),
    503: ("server_error", "api_error", "UNAVAILABLE"),
    504: ("server_error", "timeout_error", "DEADLINE_EXCEEDED"),
    505: ("server_error", "api_error", "UNIMPLEMENTED"),
}


def _body(dialect: str, error: ProxyError) -> Any:
    return json.loads(error_body(dialect, error, _REQUEST_ID))


class Bodies(SynchronousTestCase):
    """One error, three shapes."""

    def test_openai(self) -> None:
        """OpenAI and Groq SDKs find message, type, param and code, and nothing else."""
        for each in ERROR_CLASSES.values():
            error = ProxyError(each, upstream="Groq")
            self.assertEqual(
                _body("openai", error),
                {
                    "error": {
                        "message": error.message,
                        "type": _WORDS[each.status][0],
                        "param": None,
                        "code": each.name,
                    }
                },
            )

    def test_anthropic(self) -> None:
        """Anthropic SDKs find the type, the message and the request id."""
        for each in ERROR_CLASSES.values():
            error = ProxyError(each, upstream="Anthropic")
            self.assertEqual(
                _body("anthropic", error),
                {
                    "type": "error",
                    "error": {"type": _WORDS[each.status][1], "message": error.message},
                    "request_id": _REQUEST_ID,
                },
            )

    def test_gemini(self) -> None:
        """Google's SDKs find code, message and status; the details name the error and the request id."""
        for each in ERROR_CLASSES.values():
            error = ProxyError(each, upstream="Gemini")
            body = _body("gemini", error)
            self.assertEqual(set(body), {"error"})
            details = body["error"].pop("details")
            self.assertEqual(
                body["error"],
                {"code": each.status, "message": error.message, "status": _WORDS[each.status][2]},
            )
            self.assertEqual(details[0]["@type"], "type.googleapis.com/google.rpc.ErrorInfo")
            self.assertEqual(details[0]["metadata"], {"request_id": _REQUEST_ID})

    def test_gemini_retry_delay(self) -> None:
        """Google's clients look for the delay in the body."""
        details = _body("gemini", ProxyError(UPSTREAM_CONNECT_FAILED, retry_after_s=22))["error"]["details"]
        self.assertEqual(details[1], {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "22s"})

    def test_no_provider(self) -> None:
        """A route without a provider is answered in OpenAI's shape, which most clients can read."""
        error = ProxyError(UNKNOWN_ROUTE)
        self.assertEqual(error_body("", error, _REQUEST_ID), error_body("openai", error, _REQUEST_ID))

    def test_any_text_is_json(self) -> None:
        """Quotes, line ends and other scripts in a message come out as they went in."""
        text = 'a "quoted"\nline \\ \u2028 \U0001f600'
        for dialect in DIALECTS:
            self.assertEqual(_body(dialect, ProxyError(UNKNOWN_ROUTE, text))["error"]["message"], text)


class HeaderFields(SynchronousTestCase):
    """What is beside the body."""

    def test_fields(self) -> None:
        """A caller can tell who refused, and why, without reading the body."""
        for dialect in DIALECTS:
            self.assertEqual(
                error_fields(ProxyError(UPSTREAM_CONNECT_FAILED, retry_after_s=3), dialect),
                [
                    (b"Content-Type", b"application/json"),
                    (b"X-LLM-Proxy-Error-Source", b"upstream"),
                    (b"X-LLM-Proxy-Error-Class", b"upstream_connect_failed"),
                    (b"Retry-After", b"3"),
                ],
            )

    def test_no_retry_after(self) -> None:
        """Without a delay no Retry-After is sent: SDKs have a better default than a made-up number."""
        names = [name for name, _ in error_fields(ProxyError(UNKNOWN_ROUTE), "openai")]
        self.assertNotIn(b"Retry-After", names)


class Messages(SynchronousTestCase):
    """The sentence."""

    def test_says_who_and_what_to_do(self) -> None:
        """Every message is one or more whole sentences that name the proxy or the provider."""
        for each in ERROR_CLASSES.values():
            message = ProxyError(each, upstream="Anthropic").message
            self.assertIn("Anthropic" if each.source == "upstream" else "he proxy", message, each.name)
            self.assertRegex(message, r"^[A-Z{].*\.$")
            self.assertNotIn("{", message)

    def test_sent_nowhere_or_perhaps_begun(self) -> None:
        """Whoever thinks of sending again is told whether the provider can have the request already."""
        for name in ("upstream_busy", "overloaded", "upstream_connect_timeout", "upstream_connect_failed"):
            self.assertRegex(
                ERROR_CLASSES[name].message, "othing was sent|sent this one nowhere|nothing was sent", name
            )
        for name in ("upstream_upload_timeout", "upstream_reset", "draining"):
            self.assertIn("may have begun to work on", ERROR_CLASSES[name].message, name)

    def test_statuses(self) -> None:
        """Each limit has the status that RFC 9110 and RFC 6585 have for it: SDKs and balancers act on it."""
        for name, status, end in (
            ("header_timeout", 408, EndReason.HEADER_TIMEOUT),
            ("body_idle_timeout", 408, EndReason.BODY_IDLE_TIMEOUT),
            ("body_too_large", 413, EndReason.BODY_TOO_LARGE),
            ("uri_too_long", 414, EndReason.HEADER_TOO_LARGE),
            ("header_fields_too_large", 431, EndReason.HEADER_TOO_LARGE),
            ("overloaded", 503, EndReason.OVERLOADED),
            ("draining", 503, EndReason.DRAIN),
            ("upstream_busy", 503, EndReason.UPSTREAM_BUSY),
            ("upstream_connect_timeout", 504, EndReason.CONNECT_TIMEOUT),
            ("upstream_upload_timeout", 504, EndReason.UPLOAD_TIMEOUT),
        ):
            each = ERROR_CLASSES[name]
            self.assertEqual((each.status, each.end_reason), (status, end), name)

    def test_no_numbers_of_ours(self) -> None:
        """Limits are configured, so no sentence about one names a number that may be another by now."""
        for each in ERROR_CLASSES.values():
            if each.status in (408, 413, 414, 431, 503, 504):
                self.assertNotRegex(each.message, r"\d", each.name)

    def test_detail(self) -> None:
        """A detail, such as the routes that there are, follows as a further sentence."""
        error = ProxyError(UNKNOWN_ROUTE, detail="Known prefixes: /openai/, /groq/.")
        self.assertTrue(error.message.endswith("client. Known prefixes: /openai/, /groq/."))
        self.assertEqual(str(error), error.message)

    def test_braces_in_a_title(self) -> None:
        """A provider may be named anything; its name is never taken for a placeholder."""
        self.assertIn("{0} could not be reached", ProxyError(UPSTREAM_CONNECT_FAILED, upstream="{0}").message)

    def test_classes_are_words(self) -> None:
        """Names are safe as a header value and a metric label; end reasons are those of the log."""
        for each in ERROR_CLASSES.values():
            self.assertTrue(re.fullmatch(r"[a-z_]+", each.name))
            self.assertIn(each.source, ("proxy", "upstream"))
            self.assertIsNot(each.end_reason, EndReason.OK)
