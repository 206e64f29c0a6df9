"""How each provider authenticates, what its answers' heads carry, and how it says no.

One object per dialect; all without state. The shapes of errors, and the type, code and status names,
are those of the providers' API references. The rule kept here: an error of the simulator cannot be told
from the provider's own, by status, body or head.
"""

import json
from datetime import UTC, datetime
from typing import Final, Protocol
from urllib.parse import parse_qs

from llmproxy.simulate.answer import dumps
from llmproxy.simulate.ask import Ask, Fields, Refusal, new_id

MESSAGES: Final = {
    400: "The request was not valid.",
    401: "The key was not accepted.",
    403: "The key may not do this.",
    404: "There is no such thing here.",
    408: "The request timed out.",
    409: "The resource is being changed by another request.",
    413: "The request is too large.",
    422: "The request could not be processed.",
    429: "Rate limit reached. Please try again later.",
    500: "The server had an error while processing your request. Sorry about that!",
    502: "Bad gateway.",
    503: "The model is overloaded. Please try again later.",
    504: "The request took too long.",
    529: "Overloaded",
}


class Dialect(Protocol):
    """What one provider does in its own way."""

    name: str

    def check_key(self, ask: Ask) -> None:
        """Raises `Refusal` when the key is missing or (it holds the word `invalid`) not accepted."""

    def head(self, ask: Ask) -> Fields:
        """The fields that every answer of this provider carries, with fresh ids."""

    def error_body(self, refusal: Refusal, ask: Ask, head: Fields) -> bytes:
        """The body of an error answer."""

    def error_event(self, sent: int) -> bytes:
        """What the provider writes when it fails after `sent` events of a stream, up to the stream's end."""


def message_of(refusal: Refusal) -> str:
    return refusal.message or MESSAGES.get(refusal.status, f"The simulator was asked for status {refusal.status}.")


def rfc3339(now_s: float) -> str:
    return datetime.fromtimestamp(now_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def bearer(ask: Ask) -> str:
    scheme, _, token = ask.field(b"authorization").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def value_of(head: Fields, name: bytes) -> str:
    return next((v.decode() for n, v in head if n.lower() == name), "")


_OPENAI_TYPES: Final = {429: "requests", 500: "server_error"}
_OPENAI_CODES: Final = {401: "invalid_api_key", 429: "rate_limit_exceeded"}


class OpenAI:
    """api.openai.com: https://platform.openai.com/docs/api-reference and /docs/guides/error-codes."""

    name = "openai"

    def check_key(self, ask: Ask) -> None:
        key = bearer(ask) or ask.field(b"api-key")
        if not key:
            raise Refusal(
                401,
                "You didn't provide an API key. You need to provide your API key in an Authorization header "
                "using Bearer auth (i.e. Authorization: Bearer YOUR_KEY).",
                code="missing_api_key",
            )
        if "invalid" in key:
            raise Refusal(401, "Incorrect API key provided.", code="invalid_api_key")

    def head(self, ask: Ask) -> Fields:
        return [
            (b"openai-version", b"2020-10-01"),
            (b"openai-organization", b"simulated-org"),
            (b"openai-processing-ms", b"50"),
            (b"x-ratelimit-limit-requests", b"10000"),
            (b"x-ratelimit-limit-tokens", b"30000000"),
            (b"x-ratelimit-remaining-requests", b"9999"),
            (b"x-ratelimit-remaining-tokens", b"29999984"),
            (b"x-ratelimit-reset-requests", b"6ms"),
            (b"x-ratelimit-reset-tokens", b"1m2.5s"),
            (b"x-request-id", new_id("req_", 32).encode()),
            # Two, as the provider's edge sends: whoever keeps only the last of a name loses one.
            (b"set-cookie", b"__cf_bm=simulated; path=/; HttpOnly; Secure"),
            (b"set-cookie", b"_cfuvid=simulated; path=/; HttpOnly; Secure"),
        ]

    def error(self, refusal: Refusal) -> dict[str, object]:
        default = "server_error" if refusal.status >= 500 else "invalid_request_error"
        return {
            "message": message_of(refusal),
            "type": _OPENAI_TYPES.get(refusal.status, default),
            "param": refusal.param,
            "code": refusal.code or _OPENAI_CODES.get(refusal.status),
        }

    def error_body(self, refusal: Refusal, ask: Ask, head: Fields) -> bytes:
        return json.dumps({"error": self.error(refusal)}, indent=4).encode()

    def error_event(self, sent: int) -> bytes:
        return b"data: " + dumps({"error": self.error(Refusal(500, ""))}) + b"\n\n"


class OpenAIResponses(OpenAI):
    """The Responses endpoint, whose stream has its own error event; it is yielded by the SDK, not raised."""

    name = "openai-responses"

    def error_event(self, sent: int) -> bytes:
        event = {
            "type": "error",
            "code": "server_error",
            "message": MESSAGES[500],
            "param": None,
            "sequence_number": sent,
        }
        return b"event: error\ndata: " + dumps(event) + b"\n\n"


class Groq(OpenAI):
    """api.groq.com: https://console.groq.com/docs/errors and /docs/rate-limits."""

    name = "groq"

    def head(self, ask: Ask) -> Fields:
        return [
            (b"x-groq-region", b"simulated"),
            (b"x-ratelimit-limit-requests", b"14400"),
            (b"x-ratelimit-limit-tokens", b"18000"),
            (b"x-ratelimit-remaining-requests", b"14370"),
            (b"x-ratelimit-remaining-tokens", b"17997"),
            (b"x-ratelimit-reset-requests", b"2m59.56s"),
            (b"x-ratelimit-reset-tokens", b"7.66ms"),
            (b"x-request-id", new_id("req_", 26).encode()),
            (b"set-cookie", b"__cf_bm=simulated; path=/; HttpOnly; Secure"),
        ]


class GroqResponses(Groq, OpenAIResponses):
    """Groq's heads with the Responses' error event."""

    name = "groq-responses"
    error_event = OpenAIResponses.error_event


_ANTHROPIC_TYPES: Final = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}


class Anthropic:
    """api.anthropic.com: https://docs.anthropic.com/en/api/errors and /en/api/rate-limits."""

    name = "anthropic"

    def check_key(self, ask: Ask) -> None:
        key = ask.field(b"x-api-key") or bearer(ask)
        if not key:
            raise Refusal(401, "x-api-key header is required")
        if "invalid" in key:
            raise Refusal(401, "invalid x-api-key")
        if not ask.has(b"anthropic-version"):
            raise Refusal(400, "anthropic-version: header is required")

    def head(self, ask: Ask) -> Fields:
        reset = rfc3339(ask.now_s + 60).encode()
        fields: Fields = [(b"request-id", new_id("req_011", 21).encode())]
        for kind, limit, left in (
            (b"requests", b"4000", b"3999"),
            (b"tokens", b"480000", b"479000"),
            (b"input-tokens", b"400000", b"399000"),
            (b"output-tokens", b"80000", b"80000"),
        ):
            fields += [
                (b"anthropic-ratelimit-" + kind + b"-limit", limit),
                (b"anthropic-ratelimit-" + kind + b"-remaining", left),
                (b"anthropic-ratelimit-" + kind + b"-reset", reset),
            ]
        return [*fields, (b"anthropic-organization-id", b"00000000-0000-0000-0000-000000000000")]

    def error(self, refusal: Refusal) -> dict[str, object]:
        default = "api_error" if refusal.status >= 500 else "invalid_request_error"
        return {"type": _ANTHROPIC_TYPES.get(refusal.status, default), "message": message_of(refusal)}

    def error_body(self, refusal: Refusal, ask: Ask, head: Fields) -> bytes:
        request_id = value_of(head, b"request-id")
        return dumps({"type": "error", "error": self.error(refusal), "request_id": request_id})

    def error_event(self, sent: int) -> bytes:
        event = {"type": "error", "error": self.error(Refusal(529, "")), "request_id": new_id("req_011", 21)}
        return b"event: error\ndata: " + dumps(event) + b"\n\n"


class AnthropicCompat(Anthropic):
    """Anthropic's OpenAI-compatible endpoint: OpenAI's shapes and errors, Anthropic's heads and keys.

    https://docs.anthropic.com/en/api/openai-sdk
    """

    name = "anthropic-openai"

    def check_key(self, ask: Ask) -> None:
        if "invalid" in (ask.field(b"x-api-key") or bearer(ask)):
            raise Refusal(401, "invalid x-api-key")

    def error_body(self, refusal: Refusal, ask: Ask, head: Fields) -> bytes:
        return dumps({"error": self.error(refusal) | {"code": None, "param": refusal.param}})

    def error_event(self, sent: int) -> bytes:
        return b"data: " + dumps({"error": self.error(Refusal(529, "")) | {"code": None, "param": None}}) + b"\n\n"


_GEMINI_STATUSES: Final = {
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ABORTED",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


def gemini_key(ask: Ask) -> str:
    """The key, in the field or in the query as curl users send it."""
    return ask.field(b"x-goog-api-key") or ask.query.get("key", "") or bearer(ask) or ask.query.get("access_token", "")


class Gemini:
    """generativelanguage.googleapis.com: https://ai.google.dev/api and /gemini-api/docs/troubleshooting."""

    name = "gemini"

    def check_key(self, ask: Ask) -> None:
        key = gemini_key(ask)
        if not key:
            raise Refusal(
                403,
                "Method doesn't allow unregistered callers (callers without established identity). "
                "Please use API Key or other form of API consumer identity to call this API.",
            )
        if "invalid" in key:
            raise Refusal(400, "API key not valid. Please pass a valid API key.", code="API_KEY_INVALID")

    def head(self, ask: Ask) -> Fields:
        return [
            (b"Vary", b"Origin"),
            (b"Vary", b"X-Origin"),
            (b"Vary", b"Referer"),
            (b"X-XSS-Protection", b"0"),
            (b"X-Frame-Options", b"SAMEORIGIN"),
            (b"X-Content-Type-Options", b"nosniff"),
            (b"Server-Timing", b"gfet4t7; dur=50"),
        ]

    def error(self, refusal: Refusal, retry_after_s: float | None = None) -> dict[str, object]:
        default = "UNKNOWN" if refusal.status >= 500 else "INVALID_ARGUMENT"
        error: dict[str, object] = {
            "code": refusal.status,
            "message": message_of(refusal),
            "status": _GEMINI_STATUSES.get(refusal.status, default),
        }
        details: list[dict[str, object]] = []
        if refusal.code == "API_KEY_INVALID":
            details.append(
                {
                    "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                    "reason": "API_KEY_INVALID",
                    "domain": "googleapis.com",
                    "metadata": {"service": "generativelanguage.googleapis.com"},
                }
            )
        if refusal.status == 429:
            details.append(
                {
                    "@type": "type.googleapis.com/google.rpc.QuotaFailure",
                    "violations": [
                        {
                            "quotaMetric": "generativelanguage.googleapis.com/generate_content_requests",
                            "quotaId": "GenerateRequestsPerMinutePerProjectPerModel",
                        }
                    ],
                }
            )
        if refusal.status == 429 or retry_after_s is not None:
            # Gemini has no Retry-After field; the delay is in the body alone.
            wait = 22 if retry_after_s is None else retry_after_s
            details.append({"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": f"{wait:g}s"})
        if details:
            error["details"] = details
        return error

    def error_body(self, refusal: Refusal, ask: Ask, head: Fields) -> bytes:
        body = json.dumps({"error": self.error(refusal, ask.wishes.retry_after_s)}, indent=2).encode() + b"\n"
        # A stream that is not SSE is one JSON array, and so is its error.
        if ":streamGenerateContent" in ask.path and ask.query.get("alt") != "sse":
            return b"[" + body.rstrip() + b"\n]\n"
        return body

    def error_event(self, sent: int) -> bytes:
        return b"data: " + dumps({"error": self.error(Refusal(503, ""))}) + b"\r\n\r\n"


class GeminiArray(Gemini):
    """`:streamGenerateContent` without `alt=sse`: one JSON array, in pieces."""

    name = "gemini-array"

    def error_event(self, sent: int) -> bytes:
        return (b",\r\n" if sent else b"[") + dumps({"error": self.error(Refusal(503, ""))}) + b"\n]"


class GeminiCompat(Gemini):
    """Gemini's OpenAI-compatible endpoint: OpenAI's shapes, but the error is Google's, in a list."""

    name = "gemini-openai"

    def error_body(self, refusal: Refusal, ask: Ask, head: Fields) -> bytes:
        return json.dumps([{"error": self.error(refusal, ask.wishes.retry_after_s)}]).encode()

    def error_event(self, sent: int) -> bytes:
        return b"data: " + dumps([{"error": self.error(Refusal(503, ""))}]) + b"\n\n"


class GeminiInteractions(Gemini):
    """Gemini's Interactions, whose stream has its own error event."""

    name = "gemini-interactions"

    def error_event(self, sent: int) -> bytes:
        event = {"event_type": "error", "error": {"code": "unavailable", "message": MESSAGES[503]}}
        return b"event: error\ndata: " + dumps(event) + b"\n\n"


OPENAI: Final = OpenAI()
OPENAI_RESPONSES: Final = OpenAIResponses()
GROQ: Final = Groq()
GROQ_RESPONSES: Final = GroqResponses()
ANTHROPIC: Final = Anthropic()
ANTHROPIC_COMPAT: Final = AnthropicCompat()
GEMINI: Final = Gemini()
GEMINI_ARRAY: Final = GeminiArray()
GEMINI_COMPAT: Final = GeminiCompat()
GEMINI_INTERACTIONS: Final = GeminiInteractions()


def guess(ask: Ask) -> Dialect:
    """The dialect of a request for a path that no provider has."""
    if ask.has(b"anthropic-version"):
        return ANTHROPIC
    if ask.has(b"x-goog-api-key") or parse_qs(ask.target.decode("latin-1").partition("?")[2]).get("key"):
        return GEMINI
    return GROQ if ask.path.startswith("/openai/") else OPENAI
