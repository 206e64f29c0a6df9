"""Who is asking: the credential, its id, the address, the user.

The rule: a raw key is looked at and never kept. Its id is a keyed hash, so that it can be logged, counted and
compared without telling the key, and without letting anyone who has the log try guesses.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final
from urllib.parse import unquote_to_bytes

from llmproxy.core.fields import Fields, get, get_all

SHORT_CHARACTERS: Final = 12
_USER_CHARACTERS_MAX: Final = 256

_KEY_FIELDS: Final = (b"authorization", b"x-api-key", b"api-key", b"x-goog-api-key")
_WEBSOCKET_FIELD: Final = b"sec-websocket-protocol"
_FIELD_SIZES: Final = frozenset(map(len, (*_KEY_FIELDS, _WEBSOCKET_FIELD)))
_KEY_PARAMETERS: Final = (b"key", b"access_token")
_WEBSOCKET_KEY: Final = b"openai-insecure-api-key."

# What a log line or a terminal could stumble over: C0 and C1 controls, the other line ends, what turns the
# direction of writing, and halves of surrogate pairs, which no encoder takes.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

_PORT = re.compile(r"(?:\[([^\]]*)\]|([^:]*))(?::\d*)?\Z")


def credential_of(fields: Fields, query: bytes) -> bytes | None:
    """The caller's credential, from the first of these places that has one; None if none has.

    1. `Authorization`: what follows the scheme (Bearer, Basic, any). 2. `x-api-key`. 3. `api-key`.
    4. `x-goog-api-key`. 5. `key=`, then `access_token=` in the query. 6. `Sec-WebSocket-Protocol:
    openai-insecure-api-key.<key>`, as browsers send it.

    `Authorization` is first because every provider reads it: a made-up key in a field that the provider
    ignores must not hide the real one. query: without the question mark.
    """
    found: dict[bytes, bytes] = {}
    for name, value in fields:
        # Nearly every field is ruled out by its length, before a lower-case copy of it is made.
        if len(name) in _FIELD_SIZES and (lower := name.lower()) not in found and (key := _key(lower, value)):
            found[lower] = key
    for name in _KEY_FIELDS:
        if name in found:
            return found[name]
    if query:
        for name in _KEY_PARAMETERS:
            if value := _parameter(query, name):
                return value
    return found.get(_WEBSOCKET_FIELD)


def _key(name: bytes, value: bytes) -> bytes:
    """The credential in the value of a field; b"" if there is none. name: in lower case."""
    value = value.strip(b" \t")
    if name == b"authorization":
        token = value.partition(b" ")[2].strip() or value
        # A scheme without a token is no credential.
        return b"" if token.lower() in (b"bearer", b"basic") else token
    if name == _WEBSOCKET_FIELD:
        for protocol in value.split(b","):
            if (key := protocol.strip()).startswith(_WEBSOCKET_KEY):
                return key[len(_WEBSOCKET_KEY) :]
        return b""
    return value if name in _KEY_FIELDS else b""


class CredentialIds:
    """Makes ids of credentials: HMAC-SHA256 (RFC 2104) under one secret. The same secret gives the same ids.

    secret: `identity.secret`, or the one kept in the state directory.
    """

    __slots__ = ("_secret",)

    def __init__(self, secret: bytes) -> None:
        if not secret:
            raise ValueError("the identity secret is empty: ids of keys would be plain hashes")
        self._secret = secret

    def credential_id(self, key: bytes) -> str:
        """The id of a credential: 64 hexadecimal characters, none of which tells a character of the key."""
        return hmac.digest(self._secret, key, "sha256").hex()

    def __repr__(self) -> str:
        return "<CredentialIds>"


def short_credential_id(credential_id: str) -> str:
    """The form for people: the first 12 characters."""
    return credential_id[:SHORT_CHARACTERS]


def client_address(peer_host: str, fields: Fields, trusted: Sequence[IPv4Network | IPv6Network]) -> str:
    """The caller's address, without a port.

    peer_host: who holds the connection. `X-Forwarded-For` counts only as far as trusted proxies wrote it:
    they append the peer that they saw, so it is read from the right, and the first address that is not
    trusted is the caller's. What stands left of that one could have been made up by anybody.
    """
    if not trusted and ":" not in peer_host:
        return _safe(peer_host)  # the usual case: the socket's own IPv4 address
    peer = _address(peer_host)
    if peer is None:
        return _safe(peer_host)  # a Unix socket
    if not trusted:
        return str(peer)
    hops = [hop for value in get_all(fields, b"x-forwarded-for") for hop in value.split(b",")]
    while hops and any(peer in network for network in trusted):
        hop = _address(hops.pop().strip().decode("latin-1"))
        if hop is None:
            # "unknown", a name, or garbage: the last address that is certain is the one that wrote it.
            break
        peer = hop
    return str(peer)


def user_of(
    *,
    meta_user: str | None,
    fields: Fields,
    body_user: str | None,
    query: bytes,
    credential_id: str | None,
    address: str,
) -> str:
    """The user that a request is counted for: the first of these that is not empty.

    1. `/meta/{user}/` in the path. 2. `X-User-ID`. 3. The user in the body. 4. `llm_user_id=` in the query.
    5. `token:` and the short credential id. 6. `ip:` and the caller's address.

    Control characters become `?`, and it is cut at 256 characters: it is made to be logged.
    query: without the question mark.
    """
    user = _safe(meta_user) if meta_user else ""
    if not user and (value := get(fields, b"x-user-id")):
        user = _safe(value.decode("utf-8", "replace"))
    if not user and body_user:
        user = _safe(body_user)
    if not user and b"llm_user_id" in query and (parameter := _parameter(query, b"llm_user_id")):
        user = _safe(parameter.decode("utf-8", "replace"))
    if user:
        return user
    if credential_id is not None:
        return f"token:{short_credential_id(credential_id)}"
    return f"ip:{address}"


def _parameter(query: bytes, name: bytes) -> bytes:
    """The first value of `name` in a query that is not empty, percent-decoded; b"" if there is none."""
    for pair in query.split(b"&"):
        key, _, value = pair.partition(b"=")
        if value and unquote_to_bytes(key) == name:
            # In a query a plus is a space (WHATWG URL, application/x-www-form-urlencoded).
            return unquote_to_bytes(value.replace(b"+", b" "))
    return b""


def _safe(text: str) -> str:
    return _UNSAFE.sub("?", text.strip()[:_USER_CHARACTERS_MAX])


def _address(text: str) -> IPv4Address | IPv6Address | None:
    """An address, also as `1.2.3.4:80` or `[::1]:443`. An IPv4 address inside IPv6 is the IPv4 address."""
    try:
        address = ip_address(text)
    except ValueError:
        match = _PORT.match(text)
        if match is None:
            return None
        try:
            address = ip_address(match[1] or match[2] or "")
        except ValueError:
            return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address
