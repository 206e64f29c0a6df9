"""Where a message ends, and which heads are refused: the framing rules of HTTP/1.1, one place for both sides.

llhttp has already refused what it can see while it parses: two lengths, a length beside a transfer coding, a
coding that does not end in chunked, line folding, bare LF, bad field names. What it lets through is judged here,
from the parsed head alone, before a body byte is read. An ambiguous message is refused, never interpreted: two
readers that disagree about where it ends are how requests are smuggled.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from llmproxy.core import fields as f
from llmproxy.core.fields import Fields
from llmproxy.core.target import is_origin_form

NONE: Final = "none"
LENGTH: Final = "length"
CHUNKED: Final = "chunked"
UNTIL_CLOSE: Final = "until_close"

_HOST: Final = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9\-._~%!$&'()*+,;=]*)(:[0-9]{0,5})?\Z")
_DIGITS: Final = re.compile(rb"[0-9]{1,19}\Z")


class FramingError(Exception):
    """A head that must not be acted on.

    ``status`` is the status code to answer with when it came from a caller; the text is one sentence for people
    and holds nothing that the peer sent.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True, slots=True)
class BodyFraming:
    """How the end of a body is known: ``kind`` is NONE, LENGTH, CHUNKED or UNTIL_CLOSE; ``length_bytes`` goes with LENGTH."""

    kind: str
    length_bytes: int = 0


NO_BODY: Final = BodyFraming(NONE)
CHUNKED_BODY: Final = BodyFraming(CHUNKED)
UNTIL_CLOSE_BODY: Final = BodyFraming(UNTIL_CLOSE)


def _length(values: list[bytes]) -> int:
    # RFC 9110 8.6: Content-Length = 1*DIGIT. int() would take "+5", "1_0" and non-ASCII digits.
    if len(values) != 1 or _DIGITS.match(values[0]) is None:
        raise FramingError(400, "Content-Length is not one plain number")
    return int(values[0])


def _codings_and_lengths(fields: Fields) -> tuple[list[bytes], list[bytes]]:
    codings: list[bytes] = []
    lengths: list[bytes] = []
    for name, value in fields:
        size = len(name)
        if size == 14 and name.lower() == b"content-length":
            lengths.append(value.strip(b" \t"))
        elif size == 17 and name.lower() == b"transfer-encoding":
            codings.append(value.strip(b" \t").lower())
    return codings, lengths


def request_body(version: bytes, fields: Fields) -> BodyFraming:
    """How the body of a request with these fields ends (RFC 9112 section 6.3).

    :param version: ``b"1.1"`` or ``b"1.0"``.
    :raises FramingError: when the length is ambiguous.
    """
    codings, lengths = _codings_and_lengths(fields)
    if codings:
        if version != b"1.1":
            # RFC 9112 6.1: "A client MUST NOT send a request containing Transfer-Encoding unless it knows the
            # server will handle HTTP/1.1 requests".
            raise FramingError(400, "Transfer-Encoding needs HTTP/1.1")
        if lengths:
            # RFC 9112 6.1: such a message "ought to be handled as an error".
            raise FramingError(400, "a message has either a Content-Length or a Transfer-Encoding")
        if codings != [b"chunked"]:
            # RFC 9112 6.1: "A server that receives a request message with a transfer coding it does not
            # understand SHOULD respond with 501 (Not Implemented)."
            raise FramingError(501, "the only transfer coding understood here is chunked")
        return CHUNKED_BODY
    if lengths:
        length = _length(lengths)
        return BodyFraming(LENGTH, length)
    return NO_BODY


def response_body(method: bytes, status: int, fields: Fields) -> BodyFraming:
    """How the body of an answer to ``method`` ends (RFC 9112 section 6.3).

    :raises FramingError: when the answer cannot be trusted to end where it says.
    """
    codings, lengths = _codings_and_lengths(fields)
    if len(lengths) > 1 or (lengths and _DIGITS.match(lengths[0]) is None):
        raise FramingError(502, "the answer's Content-Length is not one plain number")
    # "Any response to a HEAD request and any response with a 1xx, 204, or 304 status code is always terminated by
    # the first empty line after the header fields, regardless of the header fields present in the message".
    if method == b"HEAD" or status in (204, 304) or status < 200:
        return NO_BODY
    if codings:
        if lengths:
            raise FramingError(502, "the answer has both a Content-Length and a Transfer-Encoding")
        if codings != [b"chunked"]:
            raise FramingError(502, "the answer uses a transfer coding other than chunked")
        return CHUNKED_BODY
    if lengths:
        return BodyFraming(LENGTH, int(lengths[0]))
    return UNTIL_CLOSE_BODY


def judge_request(method: bytes, target: bytes, version: bytes, fields: Fields) -> BodyFraming:
    """Accept the head of a request, or refuse it; the answer is how its body ends.

    :raises FramingError: with the status to answer.
    """
    if version not in (b"1.1", b"1.0"):
        raise FramingError(505, "only HTTP/1.1 and HTTP/1.0 are served here")
    hosts = [value for name, value in fields if len(name) == 4 and name.lower() == b"host"]
    # RFC 9112 3.2: "A server MUST respond with a 400 (Bad Request) status code to any HTTP/1.1 request message
    # that lacks a Host header field and to any request message that contains more than one Host header field line
    # or a Host header field with an invalid field value."
    if len(hosts) > 1 or (not hosts and version == b"1.1"):
        raise FramingError(400, "a request has exactly one Host field")
    if hosts and _HOST.match(hosts[0].strip(b" \t")) is None:
        raise FramingError(400, "the Host field is not a host with an optional port")
    if method == b"CONNECT":
        raise FramingError(501, "this is a gateway to LLM providers, not a forward proxy")
    if not is_origin_form(target) and not (method == b"OPTIONS" and target == b"*"):
        # Stricter than RFC 9112 3.2.2, which has a server accept the absolute form: the host in it must never
        # choose where a request goes.
        raise FramingError(400, "the request target must be a path")
    return request_body(version, fields)


def wants_close(version: bytes, fields: Fields) -> bool:
    """Whether the sender of this head ends the connection after the message (RFC 9112 section 9.3).

    HTTP/1.0 connections are always ended: its keep-alive is an extension that gateways get wrong.
    """
    if version != b"1.1":
        return True
    return b"close" in f.tokens(fields, b"connection")
