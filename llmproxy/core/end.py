"""How an exchange can end. One reason each, all of them here; the access event carries it as `end_reason`."""

from __future__ import annotations

from enum import StrEnum


class EndReason(StrEnum):
    """Why an exchange ended. The value is the word in the log."""

    OK = "ok"
    """The answer was delivered whole, whatever its status: a provider's own 429 is an answer too."""

    CLIENT_GONE = "client_gone"
    """The caller closed its connection before the answer was complete."""

    UPSTREAM_RESET = "upstream_reset"
    """The upstream's connection died before the head of an answer."""

    UPSTREAM_TRUNCATED = "upstream_truncated"
    """The upstream's connection died within the answer's body; the caller got a visibly cut answer."""

    UPSTREAM_INVALID = "upstream_invalid"
    """The upstream sent what is no HTTP answer."""

    UPSTREAM_BUSY = "upstream_busy"
    """The upstream has `upstream.max_connections` connections, and none became free in time."""

    CONNECT_FAILED = "connect_failed"
    """No connection to the upstream: its name, its address, its TLS."""

    CONNECT_TIMEOUT = "connect_timeout"
    """No connection to the upstream in `upstream.connect_timeout_s`."""

    UPLOAD_TIMEOUT = "upload_timeout"
    """The upstream took nothing of the request's body for `upstream.idle_timeout_s`."""

    FIRST_BYTE_TIMEOUT = "first_byte_timeout"
    """The request was sent, and the upstream did not begin to answer in `upstream.first_byte_timeout_s`."""

    IDLE_TIMEOUT = "idle_timeout"
    """An answer began, then nothing came for `upstream.idle_timeout_s`."""

    BAD_REQUEST = "bad_request"
    """The request was refused as it is: not HTTP, no such route, an unknown protocol."""

    HEADER_TOO_LARGE = "header_too_large"
    """The request's head was larger than `server.max_header_bytes`, or had more fields than `server.max_headers`."""

    HEADER_TIMEOUT = "header_timeout"
    """The request's head was not complete in `server.header_timeout_s`."""

    BODY_TOO_LARGE = "body_too_large"
    """The request's body was larger than `server.max_body_bytes`."""

    BODY_IDLE_TIMEOUT = "body_idle_timeout"
    """Nothing came of the request's body for `server.body_idle_timeout_s`."""

    WRITE_IDLE_TIMEOUT = "write_idle_timeout"
    """The caller took nothing of its answer for `server.write_idle_timeout_s`."""

    OVERLOADED = "overloaded"
    """There were `server.max_requests` requests in flight already."""

    DRAIN = "drain"
    """The proxy was stopping."""

    PROXY_ERROR = "proxy_error"
    """A fault of the proxy. There is a traceback in the log."""
