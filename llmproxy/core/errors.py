"""The errors that the proxy answers itself: which there are, whose fault each is, and their form for each
SDK.

The rule: an SDK chooses its exception class by the status alone, but takes the message from the body, in its
own provider's shape only. So an error has one status and one sentence, and one body for each dialect. The
sentence says whose fault it is and what to do; it holds no address and no key. An upstream's own error is
never made here: it passes through untouched.

Shapes: OpenAI "Error codes", Anthropic "Errors", Google AIP-193 and google.rpc.Code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import msgspec

from llmproxy.core.end import EndReason
from llmproxy.core.fields import Fields

OPENAI: Final = "openai"
ANTHROPIC: Final = "anthropic"
GEMINI: Final = "gemini"
DIALECTS: Final = (OPENAI, ANTHROPIC, GEMINI)
"""The shapes of an error body. A route that has no provider gets OpenAI's."""

PROXY: Final = "proxy"
UPSTREAM: Final = "upstream"


@dataclass(frozen=True, slots=True)
class ErrorClass:
    """One kind of error.

    name: what `X-LLM-Proxy-Error-Class` says. status: of the answer.
    source: "proxy" if it was decided here (the caller's fault or ours), "upstream" if the provider let us
        down.
    end_reason: how the exchange ends, if nothing more is known.
    message: the sentence. `{upstream}` in it stands for the provider's title.
    """

    name: str
    status: int
    source: str
    end_reason: EndReason
    message: str


_ALL = (
    ErrorClass(
        "unknown_route",
        404,
        PROXY,
        EndReason.BAD_REQUEST,
        "The proxy has no route for this path. Check the base URL of your client.",
    ),
    ErrorClass(
        "bad_request",
        400,
        PROXY,
        EndReason.BAD_REQUEST,
        "The proxy could not read this request as HTTP/1.1 and did not send it on. Check what your client sends.",
    ),
    ErrorClass(
        "header_fields_too_large",
        431,
        PROXY,
        EndReason.HEADER_TOO_LARGE,
        "The proxy takes no header as large as this request's. Send fewer or smaller fields.",
    ),
    ErrorClass(
        "uri_too_long",
        414,
        PROXY,
        EndReason.HEADER_TOO_LARGE,
        "The proxy takes no request target as long as this one. Send what is long in the body.",
    ),
    ErrorClass(
        "body_too_large",
        413,
        PROXY,
        EndReason.BODY_TOO_LARGE,
        "The proxy takes no body as large as this one. Send less, or have the operator of the proxy raise "
        "server.max_body_bytes.",
    ),
    ErrorClass(
        "header_timeout",
        408,
        PROXY,
        EndReason.HEADER_TIMEOUT,
        "The proxy did not get the whole header in time. Try again; if it stays so, check the network between you and "
        "the proxy.",
    ),
    ErrorClass(
        "body_idle_timeout",
        408,
        PROXY,
        EndReason.BODY_IDLE_TIMEOUT,
        "The proxy waited too long for the rest of the body and gave up. Send it without long pauses.",
    ),
    ErrorClass(
        "overloaded",
        503,
        PROXY,
        EndReason.OVERLOADED,
        "The proxy has as many requests in flight as it may have, and sent this one nowhere. Try again soon.",
    ),
    ErrorClass(
        "too_many_connections",
        503,
        PROXY,
        EndReason.OVERLOADED,
        "The proxy has as many connections as it may have, and served nothing on this one. Close idle ones, or try "
        "again soon.",
    ),
    ErrorClass(
        "draining",
        503,
        PROXY,
        EndReason.DRAIN,
        "The proxy is stopping, and gave this request up. The provider may have begun to work on it, so the proxy did "
        "not send it again; you may.",
    ),
    ErrorClass(
        "expectation_failed",
        417,
        PROXY,
        EndReason.BAD_REQUEST,
        "The proxy knows no expectation but 100-continue. Leave the Expect field out.",
    ),
    ErrorClass(
        "upgrade_required",
        426,
        PROXY,
        EndReason.BAD_REQUEST,
        "The proxy does not relay WebSocket connections. Use plain HTTP requests with this endpoint.",
    ),
    ErrorClass(
        "not_implemented",
        501,
        PROXY,
        EndReason.BAD_REQUEST,
        "The proxy does not serve this kind of request and did not send it on. Check what your client sends.",
    ),
    ErrorClass(
        "method_not_allowed",
        405,
        PROXY,
        EndReason.BAD_REQUEST,
        "This page of the proxy answers GET and HEAD only.",
    ),
    ErrorClass(
        "version_not_supported",
        505,
        PROXY,
        EndReason.BAD_REQUEST,
        "The proxy speaks HTTP/1.1 and HTTP/1.0. Use one of them.",
    ),
    ErrorClass(
        "upstream_name_failed",
        502,
        UPSTREAM,
        EndReason.CONNECT_FAILED,
        "The host name of {upstream} could not be resolved, and nothing was sent. Try again; if it "
        "stays so, have the operator of the proxy check its DNS and the provider's base_url.",
    ),
    ErrorClass(
        "upstream_connect_failed",
        502,
        UPSTREAM,
        EndReason.CONNECT_FAILED,
        "{upstream} could not be reached from the proxy, and nothing was sent. Try again; if it stays "
        "so, have the operator of the proxy check its network and the provider's base_url.",
    ),
    ErrorClass(
        "upstream_connect_timeout",
        504,
        UPSTREAM,
        EndReason.CONNECT_TIMEOUT,
        "{upstream} did not accept a connection in time, and nothing was sent. Try again later.",
    ),
    ErrorClass(
        "upstream_tls_failed",
        502,
        UPSTREAM,
        EndReason.CONNECT_FAILED,
        "No trusted TLS connection to {upstream} could be made, and nothing was sent. Have the operator "
        "of the proxy check the certificate, upstream.ca_file and the clock.",
    ),
    ErrorClass(
        "upstream_busy",
        503,
        PROXY,
        EndReason.UPSTREAM_BUSY,
        "The proxy has as many connections to {upstream} as it may have, and none is free for this request. Nothing "
        "was sent. Try again soon.",
    ),
    ErrorClass(
        "upstream_upload_timeout",
        504,
        UPSTREAM,
        EndReason.UPLOAD_TIMEOUT,
        "{upstream} stopped taking the body of the request. It may have begun to work on it, so the proxy did not "
        "send it again; you may.",
    ),
    ErrorClass(
        "upstream_reset",
        502,
        UPSTREAM,
        EndReason.UPSTREAM_RESET,
        "{upstream} closed the connection before it answered. It may have begun to work on the request, "
        "so the proxy did not send it again; you may.",
    ),
    ErrorClass(
        "upstream_invalid_answer",
        502,
        UPSTREAM,
        EndReason.UPSTREAM_INVALID,
        "{upstream} sent an answer that is no valid HTTP. Try again; if it stays so, have the operator "
        "of the proxy check the provider's base_url.",
    ),
    ErrorClass(
        "upstream_first_byte_timeout",
        504,
        UPSTREAM,
        EndReason.FIRST_BYTE_TIMEOUT,
        "{upstream} did not begin to answer in time. It may still work on the request, and charge for "
        "it. Ask for less, or for a stream.",
    ),
    ErrorClass(
        "proxy_error",
        500,
        PROXY,
        EndReason.PROXY_ERROR,
        "The proxy failed while it served this request: a fault of the proxy, not of yours or the "
        "provider's. Give its operator the request id.",
    ),
)

ERROR_CLASSES: Mapping[str, ErrorClass] = MappingProxyType({each.name: each for each in _ALL})
"""All of them, by name."""

UNKNOWN_ROUTE: Final = ERROR_CLASSES["unknown_route"]
BAD_REQUEST: Final = ERROR_CLASSES["bad_request"]
HEADER_FIELDS_TOO_LARGE: Final = ERROR_CLASSES["header_fields_too_large"]
URI_TOO_LONG: Final = ERROR_CLASSES["uri_too_long"]
BODY_TOO_LARGE: Final = ERROR_CLASSES["body_too_large"]
HEADER_TIMEOUT: Final = ERROR_CLASSES["header_timeout"]
BODY_IDLE_TIMEOUT: Final = ERROR_CLASSES["body_idle_timeout"]
OVERLOADED: Final = ERROR_CLASSES["overloaded"]
DRAINING: Final = ERROR_CLASSES["draining"]
UPSTREAM_BUSY: Final = ERROR_CLASSES["upstream_busy"]
UPSTREAM_UPLOAD_TIMEOUT: Final = ERROR_CLASSES["upstream_upload_timeout"]
EXPECTATION_FAILED: Final = ERROR_CLASSES["expectation_failed"]
UPGRADE_REQUIRED: Final = ERROR_CLASSES["upgrade_required"]
NOT_IMPLEMENTED: Final = ERROR_CLASSES["not_implemented"]
METHOD_NOT_ALLOWED: Final = ERROR_CLASSES["method_not_allowed"]
VERSION_NOT_SUPPORTED: Final = ERROR_CLASSES["version_not_supported"]
UPSTREAM_NAME_FAILED: Final = ERROR_CLASSES["upstream_name_failed"]
UPSTREAM_CONNECT_FAILED: Final = ERROR_CLASSES["upstream_connect_failed"]
UPSTREAM_CONNECT_TIMEOUT: Final = ERROR_CLASSES["upstream_connect_timeout"]
UPSTREAM_TLS_FAILED: Final = ERROR_CLASSES["upstream_tls_failed"]
UPSTREAM_RESET: Final = ERROR_CLASSES["upstream_reset"]
UPSTREAM_INVALID_ANSWER: Final = ERROR_CLASSES["upstream_invalid_answer"]
UPSTREAM_FIRST_BYTE_TIMEOUT: Final = ERROR_CLASSES["upstream_first_byte_timeout"]
PROXY_ERROR: Final = ERROR_CLASSES["proxy_error"]


class ProxyError(Exception):
    """An answer of our own.

    error_class: one of ERROR_CLASSES.
    message: the sentence for the caller; by default that of the class, with `upstream` (a provider's title)
        in it.
    detail: a further sentence, such as the routes that there are.
    retry_after_s: seconds after which it is worth to try again; None says nothing.
    """

    def __init__(
        self,
        error_class: ErrorClass,
        message: str | None = None,
        *,
        upstream: str = "The provider",
        detail: str = "",
        retry_after_s: int | None = None,
    ) -> None:
        sentence = error_class.message.replace("{upstream}", upstream) if message is None else message
        self.message = f"{sentence} {detail}" if detail else sentence
        self.detail = detail
        self.error_class = error_class
        self.retry_after_s = retry_after_s
        super().__init__(self.message)


def error_fields(error: ProxyError, dialect: str) -> Fields:
    """The header fields that belong to `error_body`; Content-Length is left to who writes the answer.

    `dialect` is not asked today: every provider sends its errors as application/json.
    """
    fields = [
        (b"Content-Type", b"application/json"),
        (b"X-LLM-Proxy-Error-Source", error.error_class.source.encode("ascii")),
        (b"X-LLM-Proxy-Error-Class", error.error_class.name.encode("ascii")),
    ]
    if error.retry_after_s is not None:
        fields.append((b"Retry-After", b"%d" % error.retry_after_s))  # RFC 9110 section 10.2.3: delay-seconds
    return fields


def error_body(dialect: str, error: ProxyError, request_id: str) -> bytes:
    """The body as JSON, in the shape that the SDKs of this dialect read.

    dialect: one of DIALECTS. request_id: the proxy's own; the OpenAI shape has no place for it.
    """
    if dialect == ANTHROPIC:
        return msgspec.json.encode(_anthropic(error, request_id))
    if dialect == GEMINI:
        return msgspec.json.encode(_gemini(error, request_id))
    return msgspec.json.encode(_openai(error))


def _openai(error: ProxyError) -> dict[str, object]:
    kind = "invalid_request_error" if error.error_class.status < 500 else "server_error"
    # OpenAI's own `code` says more exactly what is wrong than the status; ours does too.
    return {
        "error": {"message": error.message, "type": kind, "param": None, "code": error.error_class.name},
    }


# "error.type" where it is not invalid_request_error (4xx) or api_error (5xx).
_ANTHROPIC_TYPES = MappingProxyType(
    {404: "not_found_error", 408: "timeout_error", 413: "request_too_large", 504: "timeout_error"}
)


def _anthropic(error: ProxyError, request_id: str) -> dict[str, object]:
    status = error.error_class.status
    kind = _ANTHROPIC_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": error.message}, "request_id": request_id}


# google.rpc.Code, by HTTP status, where it is not INVALID_ARGUMENT (4xx) or INTERNAL (5xx).
_GEMINI_STATUSES = MappingProxyType(
    {
        404: "NOT_FOUND",
        408: "DEADLINE_EXCEEDED",
        417: "FAILED_PRECONDITION",
        426: "FAILED_PRECONDITION",
        501: "UNIMPLEMENTED",
        502: "UNAVAILABLE",
        503: "UNAVAILABLE",
        504: "DEADLINE_EXCEEDED",
        505: "UNIMPLEMENTED",
    }
)


def _gemini(error: ProxyError, request_id: str) -> dict[str, object]:
    status = error.error_class.status
    details: list[dict[str, object]] = [
        {
            "@type": "type.googleapis.com/google.rpc.ErrorInfo",
            "reason": error.error_class.name.upper(),
            "domain": "llmproxy",
            "metadata": {"request_id": request_id},
        }
    ]
    if error.retry_after_s is not None:
        # Google's clients read the delay here, not in Retry-After.
        details.append({"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": f"{error.retry_after_s}s"})
    name = _GEMINI_STATUSES.get(status, "INVALID_ARGUMENT" if status < 500 else "INTERNAL")
    return {"error": {"code": status, "message": error.message, "status": name, "details": details}}
