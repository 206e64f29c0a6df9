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

    CONNECT_FAILED = "connect_failed"
    """No connection to the upstream: its name, its address, its TLS, or no answer in time."""

    FIRST_BYTE_TIMEOUT = "first_byte_timeout"
    """The request was sent, and the upstream did not begin to answer in `upstream.first_byte_timeout_s`."""

    IDLE_TIMEOUT = "idle_timeout"
    """An answer began, then nothing came for `upstream.idle_timeout_s`."""

    BAD_REQUEST = "bad_request"
    """The request was refused as it is: not HTTP, too large a head, no such route, an unknown protocol."""

    DRAIN = "drain"
    """The proxy was stopping."""

    PROXY_ERROR = "proxy_error"
    """A fault of the proxy. There is a traceback in the log."""
