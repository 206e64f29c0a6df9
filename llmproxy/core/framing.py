"""Where a message ends, and which heads are refused: the framing rules of HTTP/1.1, one place for both sides.

llhttp has already refused what it can see while it parses: two lengths, a length beside a transfer coding, a
coding that does not end in chunked, line folding, bare LF, bad field names. What it lets through is judged here,
from the parsed head alone, before a body byte is read. An ambiguous message is refused, never interpreted: two
readers that disagree about where it ends are how requests are smuggled.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from typing import Final

import msgspec

from llmproxy.core.fields import Index, tokens
from llmproxy.core.target import is_origin_form

NONE: Final = "none"
LENGTH: Final = "length"
CHUNKED: Final = "chunked"
UNTIL_CLOSE: Final = "until_close"

_HOST: Final = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9\-._~%!$&'()*+;=]*)(:[0-9]{0,5})?\Z")
"""RFC 3986 3.2.2, less the comma: no host name has one, and two Host fields combined do."""
_ABSOLUTE: Final = re.compile(rb"(https?)://([^/?#]*)(.*)\Z", re.IGNORECASE | re.DOTALL)
_DIGITS: Final = re.compile(rb"[0-9]{1,19}\Z")


HEADER_TIMEOUT: Final = "header_timeout"
BODY_IDLE_TIMEOUT: Final = "body_idle_timeout"
TOO_MANY_CONNECTIONS: Final = "too_many_connections"
"""Error classes of a message that was refused for not coming in time, or on a connection that is one too many."""


class FramingError(Exception):
    """A head that must not be acted on.

    ``status`` is the status code to answer with when it came from a caller; the text is one sentence for people
    and holds nothing that the peer sent. ``error_class`` names what is not told by the status alone, or is empty.
    """

    def __init__(self, status: int, text: str, error_class: str = "") -> None:
        super().__init__(text)
        self.status = status
        self.error_class = error_class


class BodyFraming(msgspec.Struct, frozen=True, gc=False):
    """How the end of a body is known.

    ``kind`` is NONE, LENGTH, CHUNKED or UNTIL_CLOSE; ``length_bytes`` goes with LENGTH.
    """

    kind: str
    length_bytes: int = 0


NO_BODY: Final = BodyFraming(NONE)
CHUNKED_BODY: Final = BodyFraming(CHUNKED)
UNTIL_CLOSE_BODY: Final = BodyFraming(UNTIL_CLOSE)


def request_body(version: bytes, index: Index) -> BodyFraming:
    """How the body of a request with these fields ends (RFC 9112 section 6.3).

    :param version: ``b"1.1"`` or ``b"1.0"``.
    :raises FramingError: when the length is ambiguous.
    """
    coding, length = index.get(b"transfer-encoding"), index.get(b"content-length")
    if coding is not None:
        if version != b"1.1":
            # RFC 9112 6.1: "A client MUST NOT send a request containing Transfer-Encoding unless it knows the
            # server will handle HTTP/1.1 requests".
            raise FramingError(400, "Transfer-Encoding needs HTTP/1.1")
        if length is not None:
            # RFC 9112 6.1: such a message "ought to be handled as an error".
            raise FramingError(400, "a message has either a Content-Length or a Transfer-Encoding")
        if coding.lower() != b"chunked":
            # RFC 9112 6.1: "A server that receives a request message with a transfer coding it does not
            # understand SHOULD respond with 501 (Not Implemented)."
            raise FramingError(501, "the only transfer coding understood here is chunked")
        return CHUNKED_BODY
    if length is not None:
        # RFC 9110 8.6: Content-Length = 1*DIGIT. int() would take "+5", "1_0" and non-ASCII digits. A repeated field
        # is a list here, and no number.
        if _DIGITS.match(length) is None:
            raise FramingError(400, "Content-Length is not one plain number")
        return BodyFraming(LENGTH, int(length))
    return NO_BODY


def response_body(method: bytes, status: int, index: Index) -> BodyFraming:
    """How the body of an answer to ``method`` ends (RFC 9112 section 6.3).

    :raises FramingError: when the answer cannot be trusted to end where it says.
    """
    coding, length = index.get(b"transfer-encoding"), index.get(b"content-length")
    if length is not None and _DIGITS.match(length) is None:
        raise FramingError(502, "the answer's Content-Length is not one plain number")
    # "Any response to a HEAD request and any response with a 1xx, 204, or 304 status code is always terminated by
    # the first empty line after the header fields, regardless of the header fields present in the message".
    if method == b"HEAD" or status in (204, 304) or status < 200:
        return NO_BODY
    if coding is not None:
        if length is not None:
            raise FramingError(502, "the answer has both a Content-Length and a Transfer-Encoding")
        if coding.lower() != b"chunked":
            raise FramingError(502, "the answer uses a transfer coding other than chunked")
        return CHUNKED_BODY
    if length is not None:
        return BodyFraming(LENGTH, int(length))
    return UNTIL_CLOSE_BODY


def judge_request(method: bytes, target: bytes, version: bytes, index: Index) -> BodyFraming:
    """Accept the head of a request, or refuse it; the answer is how its body ends.

    :raises FramingError: with the status to answer.
    """
    if version not in (b"1.1", b"1.0"):
        raise FramingError(505, "only HTTP/1.1 and HTTP/1.0 are served here")
    host = index.get(b"host")
    # RFC 9112 3.2: "A server MUST respond with a 400 (Bad Request) status code to any HTTP/1.1 request message
    # that lacks a Host header field and to any request message that contains more than one Host header field line
    # or a Host header field with an invalid field value."
    if host is None:
        if version == b"1.1":
            raise FramingError(400, "a request has exactly one Host field")
    elif _HOST.match(host) is None:
        raise FramingError(400, "a request has exactly one Host field, with a host and an optional port")
    if method == b"CONNECT":
        raise FramingError(501, "this is a gateway to LLM providers, not a forward proxy")
    if not is_origin_form(target) and not (method == b"OPTIONS" and target == b"*"):
        raise FramingError(400, "the request target must be a path")
    expect = index.get(b"expect")
    if expect is not None and expect.lower() != b"100-continue":
        # RFC 9110 10.1.1: a server that gets another expectation "MAY respond with a 417 (Expectation Failed)".
        raise FramingError(417, "the only expectation understood here is 100-continue")
    return request_body(version, index)


def origin_form(method: bytes, target: bytes, index: Index, own: Callable[[], Collection[bytes]]) -> bytes:
    """The origin form of a target that does not begin with a slash, where it has one that may be used.

    RFC 9112 3.2.2: "a server MUST accept the absolute-form in requests", so that of our own authority is accepted. The
    host in a target never chooses where a request goes: any other is refused, and so is one that Host contradicts.

    :param own: the lower-case authorities of this server; asked only when the target is in absolute form.
    :raises FramingError: when the target names another server.
    """
    found = _ABSOLUTE.match(target)
    if found is None or method == b"CONNECT":
        return target  # judge_request knows what it is
    authority = found[2].lower()
    if authority not in own():
        raise FramingError(400, "the request target names another server; send the path alone")
    if index.get(b"host", b"").lower() != authority:
        # RFC 9112 3.2: Host is "identical to that authority component".
        raise FramingError(400, "the request target and the Host field name two servers")
    path = found[3]
    return path if path[:1] == b"/" else b"/" + path


def wants_close(version: bytes, index: Index) -> bool:
    """Whether the sender of this head ends the connection after the message (RFC 9112 section 9.3).

    HTTP/1.0 connections are always ended: its keep-alive is an extension that gateways get wrong.
    """
    if version != b"1.1":
        return True
    connection = index.get(b"connection")
    return connection is not None and b"close" in tokens(connection)
