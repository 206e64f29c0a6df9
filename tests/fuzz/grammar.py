"""What is said to the proxy: requests and answers as RFC 9112 writes them, and what can go wrong with them.

A generated message comes with what it says, so that a test can compare. Its mutations say nothing certain any more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hypothesis import strategies as st

from tests.fuzz.readers import Pairs

Draw = Callable[..., object]

HOST = (b"Host", b"proxy.test")
SMUGGLED = b"GET /openai/v1/smuggled HTTP/1.1\r\nHost: proxy.test\r\n\r\n"
JSON = b'{"model":"gpt-4o","stream":true,"messages":[{"role":"user","content":"hello"}]}'
"""Its `model` and `stream` come first, so the proxy has seen enough before it has seen all."""

_TCHAR = b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_NAMES = [b"X-A", b"x-b", b"Authorization", b"User-Agent", b"Accept", b"anthropic-beta", b"Cookie", b"X-User-ID"]
_NAMES += [b"Forwarded", b"X-Forwarded-Host", b"Via", b"Range", b"Idempotency-Key", b"!#$%&'*+-.^_`|~9"]
_BODIES = [
    b"",
    b"{}",
    b"x",
    JSON,
    SMUGGLED,
    b"0\r\n\r\n" + SMUGGLED,
    b"\r\n\r\n",
    b"\0" * 9,
    bytes(range(256)),
    b"y" * 9000,
]


@dataclass(frozen=True)
class Said:
    """One request: its bytes, and what they say. `trailers` are those that may be passed on."""

    raw: bytes
    method: bytes
    target: bytes
    body: bytes
    trailers: Pairs


def _some(alphabet: bytes) -> st.SearchStrategy[bytes]:
    """Up to sixteen of these. No st.text or st.binary is used here: hypothesis would compare them with each other."""
    return st.lists(st.sampled_from(alphabet), max_size=16).map(bytes)


_names = st.sampled_from(_NAMES) | _some(_TCHAR).map(lambda name: b"X-" + name)
_values = st.sampled_from([b"", b"1", b"a b", b"a\tb", b"\xe9", b"a, b,,c", b'"q"; x="y\\""', b"Bearer sk-1"]) | _some(
    bytes(set(range(0x20, 0x100)) - {0x7F})
).map(bytes.strip)
_fields = st.lists(st.tuples(_names, _values), max_size=4)
bodies = st.sampled_from(_BODIES) | _some(bytes(range(256)))
_padding = st.sampled_from([b" ", b"", b"\t", b"  "])


def _lines(fields: Pairs, padding: bytes) -> bytes:
    return b"".join(name + b":" + padding + value + b"\r\n" for name, value in fields)


@st.composite
def _chunked(draw: st.DrawFn, body: bytes, trailers: Pairs) -> bytes:
    """`body` in chunks, with extensions, sizes in either case and with leading zeros."""
    out, rest = b"", body
    while rest:
        size = draw(st.integers(1, min(len(rest), 5000)))
        piece, rest = rest[:size], rest[size:]
        form = draw(st.sampled_from([b"%x", b"%X", b"00%x"]))
        extension = draw(st.sampled_from([b"", b"", b";a", b";a=b", b';a="b c"', b";a=b;c=d"]))
        out += form % size + extension + b"\r\n" + piece + b"\r\n"
    return out + draw(st.sampled_from([b"0", b"000", b"0;last"])) + b"\r\n" + _lines(trailers, b" ") + b"\r\n"


TARGETS = [
    b"/openai/v1/models",
    b"/openai/v1/chat/completions",
    b"/openai//v1//x",
    b"/openai/v1/%2e%2e/%2F..%00?a=%0d%0a",
    b"/openai/@evil.test/x",
    b"/openai/http://evil.test/x?y=/z",
    b"/meta/me/openai/v1/models?llm_user_id=you",
]
OWN_TARGETS = [b"/health", b"/nowhere", b"/", b"/openai"]
_random_targets = _some(bytes(set(range(0x21, 0x7F)) - {ord("#")})).map(lambda rest: b"/openai/" + rest)


@st.composite
def requests(draw: st.DrawFn, own: bool = True) -> Said:
    """One request that every HTTP/1.1 server must take.

    :param own: also those that the proxy answers itself.
    """
    method = draw(st.sampled_from([b"GET", b"POST", b"PUT", b"HEAD", b"DELETE", b"PATCH", b"OPTIONS"]))
    target = draw(st.sampled_from(TARGETS) | _random_targets | (st.sampled_from(OWN_TARGETS) if own else st.nothing()))
    fields: Pairs = [HOST, *draw(_fields)]
    kind = draw(st.sampled_from(["none", "sized", "chunked"]))
    body, trailers, framed = b"", [], b""
    if kind == "sized":
        body = framed = draw(bodies)
        fields.append((draw(st.sampled_from([b"Content-Length", b"content-length"])), b"%d" % len(body)))
    elif kind == "chunked":
        body = draw(bodies)
        trailers = draw(st.lists(st.tuples(st.sampled_from([b"X-T", b"x-checksum"]), _values), max_size=2))
        fields.append((b"Transfer-Encoding", draw(st.sampled_from([b"chunked", b"Chunked"]))))
        framed = draw(_chunked(body, trailers))
    # Where the proxy answers itself, it asks for no body, and cannot know if one comes: the connection ends there.
    if kind != "none" and target not in OWN_TARGETS and draw(st.sampled_from([False, False, False, True])):
        fields.append((b"Expect", b"100-continue"))
    if draw(st.sampled_from([False] * 7 + [True])):
        # Asking for another protocol obliges nobody (RFC 9110 7.8).
        fields += [(b"Connection", b"upgrade"), (b"Upgrade", b"h2c")]
    fields = draw(st.permutations(fields))
    head = method + b" " + target + b" HTTP/1.1\r\n" + _lines(fields, draw(_padding)) + b"\r\n"
    return Said(head + framed, method, target, body, trailers)


# -- mutations ----------------------------------------------------------------------------------------------------

_MORSELS = [
    *(bytes([byte]) for byte in b"\0\r\n \t\x0b\x0c\x7f\x80\xa0\xff:;,=\"'/\\@#?%+-0159aFx"),
    b"\r\n",
    b"\r\n\r\n",
    b"\r\n ",
    b"\r\n\t",
    b"\n\n",
    b"0\r\n\r\n",
    b"1\r\nx\r\n",
    b"5;x\r\n",
    b"FFFFFFFFFFFFFFFFF\r\n",
    b"\r\nContent-Length: 0",
    b"\r\nContent-Length: 5",
    b"\r\nContent-Length: 5\r\nContent-Length: 6",
    b"\r\nTransfer-Encoding: chunked",
    b"\r\nTransfer-Encoding: gzip",
    b"\r\nTransfer-Encoding: identity",
    b"\r\nTransfer-Encoding:\x0bchunked",
    b"\r\nTransfer-Encoding\t: chunked",
    b"\r\nTransfer_Encoding: chunked",
    b"\r\nHost: evil.test",
    b"\r\nConnection: close",
    b"\r\nConnection: Content-Length, Host",
    b"\r\nConnection: upgrade\r\nUpgrade: websocket",
    b"\r\nExpect: 100-continue",
    b"\r\nExpect: 200-ok",
    b"\r\nTrailer: Authorization",
    b"HTTP/1.0",
    b"http://evil.test",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    SMUGGLED,
]
_SWAPS = [
    (b"Content-Length:", b"Content-Length :"),
    (b"Content-Length", b"Content_Length"),
    (b"Length: ", b"Length: +"),
    (b"Length: ", b"Length: 0x"),
    (b"Length: ", b"Length: 1_"),
    (b"Length: ", b"Length: 18446744073709551616"),
    (b"Length: ", b"Length: \xa0"),
    (b"Transfer-Encoding:", b"Transfer-Encoding :"),
    (b"Transfer-Encoding", b"Content-Length: 3\r\nTransfer-Encoding"),
    (b"chunked", b"xchunked"),
    (b"chunked", b"chunked, gzip"),
    (b"chunked", b"gzip, chunked"),
    (b"chunked", b'"chunked"'),
    (b"chunked", b"chunked;q=1"),
    (b"chunked", b"chunked, chunked"),
    (b"chunked", b"\r\n chunked"),
    (b"\r\n", b"\n"),
    (b"\r\n", b"\r"),
    (b"\r\n", b"\r\r\n"),
    (b"\r\n", b" \r\n"),
    (b" HTTP/1.1", b""),
    (b" HTTP/1.1", b"  HTTP/1.1"),
    (b" HTTP/1.1", b" HTTP/1.1 "),
    (b"HTTP/1.1", b"HTTP/1.0"),
    (b"HTTP/1.1", b"HTTP/2.0"),
    (b"HTTP/1.1", b"http/1.1"),
    (b"Host: proxy.test", b"Host: a b"),
    (b"Host: proxy.test", b"Host: u@evil.test"),
    (b"Host: proxy.test\r\n", b""),
    (b"GET ", b"GET http://192.0.2.1:9002"),
    (b"GET ", b"GET\t"),
    (b"GET ", b"get "),
    (b"200 OK", b"99 X"),
    (b"200 OK", b"2000 OK"),
    (b"200 OK", b"204 OK"),
    (b"200 OK", b"304 OK"),
    (b"200 OK", b"103 OK"),
    (b"200 OK", b"101 OK"),
    (b": ", b":\0"),
    (b": ", b" : "),
]


@st.composite
def _mutated(draw: st.DrawFn, data: bytes) -> bytes:
    kind = draw(st.integers(0, 5))
    if kind == 0:
        old, new = draw(st.sampled_from(_SWAPS))
        places = data.count(old)
        if not places:
            return data
        parts = data.split(old)
        at = draw(st.integers(1, places))
        return old.join(parts[:at]) + new + old.join(parts[at:])
    if kind == 1:
        lines = data.split(b"\r\n")
        at = draw(st.integers(0, len(lines) - 1))
        lines.insert(draw(st.integers(0, len(lines))), lines[at])
        return b"\r\n".join(lines)
    at = draw(st.integers(0, len(data)))
    if kind == 2:
        return data[:at] + data[at + draw(st.integers(1, 8)) :]
    if kind == 3:
        return data[:at] + draw(_some(bytes(range(256)))) + data[at + 1 :]
    if kind == 4:
        # Where one line ends, and the next could be of the sender's choosing.
        at = data.find(b"\r\n", at)
        return data[:at] + draw(st.sampled_from(_MORSELS)) + data[at:] if at >= 0 else data
    return data[:at] + draw(st.sampled_from(_MORSELS)) + data[at:]


@st.composite
def mutated(draw: st.DrawFn, originals: st.SearchStrategy[bytes]) -> bytes:
    """One of `originals` with up to three things wrong."""
    data = draw(originals)
    for _ in range(draw(st.integers(1, 3))):
        data = draw(_mutated(data))
    return data


@st.composite
def pieces(draw: st.DrawFn, data: bytes) -> list[bytes]:
    """`data` in up to eight reads, or one for each byte."""
    if len(data) < 400 and draw(st.integers(0, 9)) == 0:
        return [data[at : at + 1] for at in range(len(data))]
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=7)))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True) if start < end]


# -- answers ------------------------------------------------------------------------------------------------------

_ANSWER_NAMES = [b"X-Request-Id", b"Set-Cookie", b"Content-Type", b"X-RateLimit-Remaining", b"Server", b"Link", b"x-e"]
_answer_fields = st.lists(st.tuples(st.sampled_from(_ANSWER_NAMES), _values), max_size=4)


@dataclass(frozen=True)
class Replied:
    """One answer: its bytes, and what they say. `until_close`: it ends with the connection."""

    raw: bytes
    status: int
    reason: bytes
    fields: Pairs
    body: bytes
    trailers: Pairs
    until_close: bool


@st.composite
def replies(draw: st.DrawFn, method: bytes) -> Replied:
    """One answer to a request with `method` that every client must take."""
    status = draw(st.sampled_from([200, 200, 200, 201, 204, 206, 304, 302, 400, 401, 413, 429, 500, 503, 529]))
    reason = draw(st.sampled_from([b"OK", b"", b"Some Reason", b"caf\xe9"]))
    interim = b"".join(
        draw(
            st.lists(
                st.sampled_from(
                    [
                        b"HTTP/1.1 100 Continue\r\n\r\n",
                        b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nLink: </b>\r\n\r\n",
                        b"HTTP/1.1 102 Processing\r\nContent-Length: 5\r\n\r\n",
                    ]
                ),
                max_size=2,
            )
        )
    )
    fields: Pairs = draw(_answer_fields)
    body, trailers, framed = b"", [], b""
    kind = draw(st.sampled_from(["sized", "chunked", "until close"]))
    bodyless = method == b"HEAD" or status in (204, 304)
    if kind == "sized":
        body = framed = draw(bodies)
        fields.append((b"Content-Length", b"%d" % len(body)))
    elif kind == "chunked":
        body = draw(bodies)
        trailers = draw(st.lists(st.tuples(st.sampled_from([b"X-T", b"x-checksum"]), _values), max_size=2))
        fields.append((b"Transfer-Encoding", b"chunked"))
        framed = draw(_chunked(body, trailers))
    elif not bodyless:
        body = framed = draw(bodies)
    if bodyless:
        body, trailers, framed = b"", [], b""
    fields = draw(st.permutations(fields))
    head = b"HTTP/1.1 %d %b\r\n" % (status, reason) + _lines(fields, draw(_padding)) + b"\r\n"
    return Replied(
        interim + head + framed, status, reason, fields, body, trailers, kind == "until close" and not bodyless
    )
