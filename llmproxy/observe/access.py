"""The access event: one record for every request, whatever became of it. Its fields are named here, once."""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from llmproxy.observe.redact import without_keys

_PATH_CHARACTERS_MAX: Final = 1024
_SDK_CHARACTERS_MAX: Final = 64


class AccessRecord(msgspec.Struct, gc=False):
    """One line of the access log. A field that does not apply is None, null in the line.

    Sizes are bytes of the body as on the wire, times are milliseconds. It is made for each request, so by position: a
    dictionary costs five times as much to make, and four times the memory while it waits to be written.
    """

    time: str
    """When the request ended: RFC 3339, UTC, milliseconds. Filled in by the observer if it is not there."""
    event: str
    """Always "access"."""
    request_id: str
    """Ours, as in `X-LLM-Proxy-Request-ID`."""
    upstream_request_id: str | None
    """The provider's, from `x-request-id` or `request-id`."""
    user: str
    credential_id: str | None
    """The keyed hash of the caller's key; null if there was no key."""
    provider: str | None
    route: str | None
    """What the path led to: the provider's name, `meta/` and the name, or a page of the proxy's own."""
    method: str
    path: str
    """See `path_of`."""
    model: str | None
    stream_requested: bool | None
    streamed: bool
    """Whether the answer was an event stream."""
    status: int | None
    """What the caller got; null if it left before."""
    request_bytes: int
    response_bytes: int
    chunks: int
    """Pieces of the answer, as they came from the upstream."""
    ttfb_ms: float | None
    """From the request's head to the head of the upstream's answer."""
    connect_ms: float | None
    """Until there was an upstream connection: in line for one and opening it; null if a kept one served at once."""
    overhead_ms: float | None
    """Spent in the proxy itself: before the request went out, and between the answer's head that came and the one that
    was written."""
    duration_ms: float
    end_reason: str
    """One of core.end.EndReason."""
    phase: str
    """How far it came."""
    sdk: str
    """See `sdk_of`."""
    retries: int
    """How often the proxy sent the request again on a fresh connection."""
    error_class: str | None
    """The class of our own error, if the answer was one."""
    error_detail: str | None
    """What was wrong in particular, where more is known than the class and the end reason say."""
    client: str
    """The caller's address, without a port."""
    usage_source: str
    """How the tokens are known: exact, partial, estimated; none where nothing is charged. See core.usage.Source."""
    usage_reason: str | None
    """Why they are not exact, in a word."""
    input_tokens: int
    """All that went in, cached or not."""
    output_tokens: int
    """All that came out, thoughts included."""
    cache_read_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    cost_nano_usd: int | None
    """In nano-dollars: 1_000_000_000 are a dollar. null where nothing is charged, or there is no price."""
    unpriced: bool
    """Whether there were tokens to charge, and no price for them."""
    response_model: str | None
    """The model as the answer names it."""
    finish_reason: str | None
    include_usage: str | None
    """Of a stream that may lack its usage: "added" when the proxy asked for it, or why it did not."""


ACCESS_FIELDS: Final = AccessRecord.__struct_fields__
"""The names, in the order in which they are written."""


def as_mapping(record: AccessRecord) -> dict[str, Any]:
    """The record by its names."""
    return msgspec.structs.asdict(record)


def path_of(target: bytes) -> str:
    """The path of a request-target as it may be logged: no query, keys masked, at most 1024 characters."""
    path = without_keys(target.partition(b"?")[0])
    return path.decode("utf-8", "backslashreplace")[:_PATH_CHARACTERS_MAX]


# "OpenAI/Python 3.54.0", "AsyncAnthropic/Python 2.12.0", "Groq/JS 1.6.0"
_STAINLESS = re.compile(r"(?:Async)?(\w{1,24})/(Python|JS|Go|Java|Ruby|Kotlin|PHP)[ /]v?([\w.+-]{1,24})", re.ASCII)
# "google-genai-sdk/3.4.0 gl-python/3.11.7", "google-genai-sdk/3.1.0 gl-node/v22.1.0"
_GOOGLE = re.compile(r"google-genai-sdk/([\w.+-]{1,24}) gl-(\w{1,12})", re.ASCII)
# The first product of any user agent (RFC 9110 section 10.1.5): "curl/8.5.0", "claude-cli/2.1.330 (external,
# cli)"
_PRODUCT = re.compile(r"[\w.+@-]{1,40}(?:/[\w.+-]{1,23})?", re.ASCII)


def sdk_of(user_agent: bytes | None) -> str:
    """A short name for the caller's software: "openai-python/3.54.0", "google-genai-node/3.1.0",
    "curl/8.5.0".

    "" if the User-Agent says nothing usable. At most 64 characters of a safe alphabet.
    """
    if not user_agent:
        return ""
    text = user_agent[:200].decode("latin-1")
    if match := _STAINLESS.match(text):
        return f"{match[1].lower()}-{match[2].lower()}/{match[3]}"
    if match := _GOOGLE.match(text):
        return f"google-genai-{match[2]}/{match[1]}"
    match = _PRODUCT.match(text)
    return match[0][:_SDK_CHARACTERS_MAX] if match else ""
