"""Header fields, as they travel through the proxy: an ordered list of raw ``(name, value)`` pairs.

The list is the truth and is never rebuilt from a dictionary: names keep their case, fields keep their order and
their repetition. What a proxy must take out (RFC 9110 section 7.6.1) is taken out here, in one pass, and nothing
else is. The functions return new lists; they never change the one they are given.
"""

from __future__ import annotations

import re
from typing import Final

Fields = list[tuple[bytes, bytes]]
"""Raw header fields in the order, case and number in which they were received."""

Index = dict[bytes, bytes]
"""Values by lower-case name, without surrounding white space; repeated fields are combined (RFC 9110 5.3)."""

HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""Fields for one connection only. RFC 9110 7.6.1 names Connection, Proxy-Connection, Keep-Alive, TE,
Transfer-Encoding and Upgrade; the two Proxy-Auth fields are for the proxy nearest to the sender (11.7.1, 11.7.2)."""

NEVER_NAMED: Final = frozenset({b"content-length", b"host", b"content-type", b"date"})
"""Fields that Connection cannot take away: the message would mean something else without them. RFC 9110 7.6.1:
"A sender MUST NOT send a connection option corresponding to a field that is intended for all recipients"."""

_CONNECTION_WORDS: Final = frozenset({b"close"})

TRAILER_FORBIDDEN: Final = HOP_BY_HOP | {
    b"api-key",
    b"authorization",
    b"cookie",
    b"content-encoding",
    b"content-length",
    b"content-range",
    b"content-type",
    b"expect",
    b"host",
    b"max-forwards",
    b"set-cookie",
    b"trailer",
    b"x-api-key",
    b"x-goog-api-key",
}
"""RFC 9110 6.5.1: a trailer must not carry framing, routing, authentication or the meaning of the content."""

CONTROL_PREFIX: Final = b"x-llm-proxy-"
"""Request fields with this prefix are words to the proxy, not to the provider."""

OWN_PREFIX: Final = b"x-llm-"
"""Fields of answers with this prefix are the proxy's own: from a provider they would pass for our word."""

_TOKEN: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z")


def get(fields: Fields, name: bytes) -> bytes | None:
    """The first value of ``name`` (given in lower case), without surrounding white space; None if there is none."""
    for key, value in fields:
        if key.lower() == name:
            return value.strip(b" \t")
    return None


def get_all(fields: Fields, name: bytes) -> list[bytes]:
    """Every value of ``name`` (given in lower case), in order, without surrounding white space."""
    return [value.strip(b" \t") for key, value in fields if key.lower() == name]


def add_to_index(table: Index, name: bytes, value: bytes) -> None:
    """Add one field to a look-up table.

    RFC 9110 5.3: repeated fields are one list, "by appending each subsequent field line value to the combined field
    value in order, separated by a comma".
    """
    lower = name.lower()
    if lower in table:
        table[lower] += b", " + value.strip(b" \t")
    else:
        table[lower] = value.strip(b" \t")


def index(fields: Fields) -> Index:
    """A look-up table of ``fields``: see :data:`Index`."""
    table: Index = {}
    for name, value in fields:
        add_to_index(table, name, value)
    return table


def tokens(value: bytes | None) -> set[bytes]:
    """The comma-separated members of a field's (combined) value, in lower case (RFC 9110 5.6.1)."""
    if not value:
        return set()
    members = {member.strip(b" \t") for member in value.lower().split(b",")}
    members.discard(b"")
    return members


def end_to_end(
    fields: Fields,
    drop: frozenset[bytes] = HOP_BY_HOP,
    prefixes: tuple[bytes, ...] = (),
    host: bytes | None = None,
) -> Fields:
    """The fields that are meant for the other side, in their order.

    Left out: the lower-case names in ``drop`` (which holds :data:`HOP_BY_HOP`), those that begin with one of the
    lower-case ``prefixes``, and those that Connection names. ``host`` takes the place of Host's value. RFC 9110
    7.6.1: "Intermediaries MUST parse a received Connection header field before a message is forwarded and, for
    each connection-option in this field, remove any header or trailer field(s) from the message with the same
    name as the connection-option".
    """
    kept: Fields = []
    connection: bytes | None = None
    for pair in fields:
        lower = pair[0].lower()
        if lower in drop:
            if lower == b"connection":
                connection = pair[1] if connection is None else connection + b"," + pair[1]
        elif host is not None and lower == b"host":
            kept.append((pair[0], host))
        elif not prefixes or not lower.startswith(prefixes):
            kept.append(pair)
    if connection is not None:
        options = tokens(connection) - HOP_BY_HOP - NEVER_NAMED - _CONNECTION_WORDS
        if options:
            kept = [pair for pair in kept if pair[0].lower() not in options]
    return kept


def trailers(fields: Fields, drop: frozenset[bytes] = frozenset(), prefixes: tuple[bytes, ...] = ()) -> Fields:
    """The trailer fields that may be passed on (RFC 9110 6.5.1 and 6.5.2).

    :param drop: lower-case names that may not, besides :data:`TRAILER_FORBIDDEN`.
    :param prefixes: beginnings of lower-case names that may not.
    """
    if not fields:
        return fields
    kept: Fields = []
    for pair in fields:
        lower = pair[0].lower()
        if lower not in TRAILER_FORBIDDEN and lower not in drop and not lower.startswith(prefixes):
            kept.append(pair)
    return kept


def is_token(name: bytes) -> bool:
    """Whether ``name`` is a token, as a method or a field name must be (RFC 9110 5.6.2)."""
    return _TOKEN.match(name) is not None


def size_bytes(fields: Fields) -> int:
    """How many bytes these fields take in a head, line ends included."""
    return sum(len(name) + len(value) + 4 for name, value in fields)


def serialize(start_line: bytes, fields: Fields) -> bytes:
    """A message head: the start line (without CRLF), the fields, the empty line (RFC 9112 2.1)."""
    return b"\r\n".join((start_line, *map(b": ".join, fields), b"\r\n"))


def serialize_trailers(fields: Fields) -> bytes:
    """The last chunk of a chunked body with its trailer section (RFC 9112 7.1)."""
    if not fields:
        return b"0\r\n\r\n"
    return serialize(b"0", fields)


def is_one_head(head: bytes, field_count: int) -> bool:
    """Whether a serialized head has the lines it should have, and no NUL.

    A line break inside of a field would make two of one (CVE-2019-12387): whoever writes a head counts. Lines end in
    CR LF, or in either alone for a reader that takes it for an end.
    """
    return len(head.splitlines()) == field_count + 2 and b"\0" not in head
