"""The request on both sides of the proxy, byte by byte, and the differences that docs/fidelity.md lists.

Answers are in test_identity_answers.py, whatever can be switched is in test_identity_switches.py, and what hypothesis
makes up is in test_identity_any.py.
"""

from __future__ import annotations

import gzip

import pytest

from tests.live.conversation import END, OK, STREAM_HEAD, Stage, get, post, request
from tests.live.wire import Message, chunk

# -- the request line ------------------------------------------------------------------------------------------------

METHODS = (
    "GET HEAD POST PUT PATCH DELETE OPTIONS TRACE COPY LOCK UNLOCK MKCOL MOVE PROPFIND PROPPATCH SEARCH BIND REBIND "
    "UNBIND ACL REPORT MERGE CHECKOUT MKACTIVITY MKCALENDAR M-SEARCH NOTIFY SUBSCRIBE UNSUBSCRIBE PURGE LINK UNLINK "
    "SOURCE QUERY"
).split()

TARGETS = {
    "plain": b"/v1/models",
    "an encoded slash": b"/v1/models/ft:gpt%2Fx%20y%20%C3%A9",
    "encodings in both cases": b"/v1/a%2fb%2F%3a%3A%7e%7E",
    "encodings twice": b"/v1/%252e%252E%25%32%66",
    "encoded controls": b"/v1/%00%0d%0aHost:%20evil%7F",
    "not an encoding": b"/v1/100%/%zz/%",
    "double slashes": b"//v1//models//",
    "a slash alone": b"/",
    "dot segments": b"/v1/./x/../../../etc/../",
    "encoded dot segments": b"/v1/%2e%2e/%2E/..%2f",
    "parameters": b"/v1;a=1/x;b=2;;c",
    "a colon": b"/v1beta/models/gemini-pro:generateContent",
    "an empty query": b"/v1/models?",
    "two question marks": b"/v1/models??a=?&b=/c?d",
    "plus and %20": b"/v1/x?after=x+y%2Bz%26w%20v",
    "brackets": b"/v1/responses/r?include[]=a&include%5B%5D=b&[]",
    "empty items": b"/v1/x?&&a&=b&c=&&",
    "keys in the query": b"/v1/models?key=AIza-not-a-key&access_token=t",
    "an url in the path": b"/http://evil.test:1/@h:2/x",
    "an authority in the path": b"//evil.test:1/x",
    "at signs": b"/@evil.test/%40",
    "all marks": b"/-._~!$&'()*+,;=:@\"<>\\^`{|}?-._~!$&'()*+,;=:@/?\"<>\\^`{|}",
    "very long": b"/v1/x?q=" + b"0123456789" * 3000,
}


@pytest.mark.parametrize("method", METHODS)
def test_methods(stage: Stage, method: str) -> None:
    """Whatever the method, it reaches the provider as it is."""
    arrived, _ = stage.exchange((request(method.encode(), b"/openai/v1/x"),), (OK,), bodyless=method == "HEAD")
    assert arrived == Message(b"%b /v1/x HTTP/1.1" % method.encode(), [b"Host: " + stage.upstream.host])


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_targets(stage: Stage, target: bytes) -> None:
    """Behind the prefix, the target's bytes are the caller's own: nothing is decoded, joined or resolved."""
    assert stage.arrives(get(b"/openai" + target)).start == b"GET " + target + b" HTTP/1.1"


@pytest.mark.parametrize(
    ("target", "arrives"),
    [
        (b"/openai/v1/x?a", b"/v1/x?a"),
        (b"/anthropic/v1/messages?beta=true", b"/v1/messages?beta=true"),
        (b"/anthropic/api/hello", b"/api/hello"),
        (b"/gemini/v1beta/models/m:streamGenerateContent?alt=sse", b"/v1beta/models/m:streamGenerateContent?alt=sse"),
        (b"/gemini/v1alpha/x", b"/v1alpha/x"),
        (b"/gemini/upload/v1/files?uploadType=resumable", b"/upload/v1/files?uploadType=resumable"),
        (b"/groq/v1/chat/completions", b"/openai/v1/chat/completions"),
        (b"/groq/openai/v1/chat/completions", b"/openai/v1/chat/completions"),
        (b"/groq/v1%2Fx", b"/v1%2Fx"),
        (b"/meta/bob/openai/v1/x%2F//", b"/v1/x%2F//"),
        (b"/meta/a%2Fb%20c/gemini/v1beta/x", b"/v1beta/x"),
        (b"/meta/bob/groq/v1/x", b"/openai/v1/x"),
        (b"/mistral/v1/x%2f?", b"/base/Path%2F/v1/x%2f?"),
        (b"/meta/bob/mistral//x", b"/base/Path%2F//x"),
    ],
)
def test_routes(stage: Stage, target: bytes, arrives: bytes) -> None:
    """Each provider's prefix is cut off and its base URL's path put in front; the rest is the caller's."""
    assert stage.arrives(get(target)).start == b"GET " + arrives + b" HTTP/1.1"


@pytest.mark.parametrize(
    "target", [b"/openaiX/v1", b"/openai", b"/openai?/v1", b"/OPENAI/v1", b"/v1/models", b"//openai/v1"]
)
def test_no_route(stage: Stage, target: bytes) -> None:
    """A path that only looks like a provider's gets the proxy's own 404, and no provider hears of it."""
    caller = stage.caller()
    caller.send(get(target))
    returned = caller.read_message()
    assert (returned.status, returned.value("x-llm-proxy-error-class")) == (404, b"unknown_route")
    assert stage.upstream.is_untouched(0.02)


@pytest.mark.parametrize(
    "target", [b"http://evil.test/openai/v1/x", b"openai/v1/x", b"/openai/v1/\xc3\xa9", b"/openai/a#b"]
)
def test_no_target(stage: Stage, target: bytes) -> None:
    """What is not the path of a request is refused, never repaired, and never chooses where a request goes."""
    caller = stage.caller()
    caller.send(get(target))
    assert caller.read_message().status == 400
    assert caller.is_closed_within(1.0)
    assert stage.upstream.is_untouched(0.02)


# -- the fields of a request -----------------------------------------------------------------------------------------


def test_request_fields(stage: Stage) -> None:
    """Names keep their case, fields their order and repetition, values every byte; only Host is the provider's."""
    lines = [
        b"authorization: Bearer sk-live-not-a-key",
        b"X-Stainless-OS: Linux",
        b"anthropic-beta: a",
        b"ANTHROPIC-BETA: b,c",
        b"anthropic-beta: a",
        b"Accept-Encoding: gzip, deflate, br, zstd",
        b"accept: */*",
        b"Cookie: a=1",
        b"Cookie: b=2",
        b"X-Empty: ",
        b"X-High: \xe9\xff\x80",
        b"X-Tab: a\tb",
        b"X-Inner:  two spaces in front",
        b"x_underscore: 1",
        b"!#$%&'*+-.^_`|~09azAZ: token",
        b"Origin: https://app.test",
        b"Range: bytes=0-",
        b"traceparent: 00-0-0-01",
        b"X-Forwarded-For: 1.2.3.4",
        b"Forwarded: for=1.2.3.4",
        b"Via: 1.1 somebody",
        b"X-User-ID: bob",
        b"Content-Type: application/json",
    ]
    arrived = stage.arrives(post(b'{"model":"m"}', b"/openai/v1/x?llm_user_id=bob", *lines))
    expected = [line.replace(b":  ", b": ") for line in lines]
    assert arrived.lines == [b"Host: " + stage.upstream.host, *expected, b"Content-Length: 13"]
    assert arrived.start == b"POST /v1/x?llm_user_id=bob HTTP/1.1"


def test_host_keeps_its_place(stage: Stage) -> None:
    """Host has the provider's name, in the caller's place and case of it."""
    arrived = stage.arrives(b"GET /openai/v1/x HTTP/1.1\r\nA: 1\r\nhOST: proxy.test\r\nB: 2\r\n\r\n")
    assert arrived.lines == [b"A: 1", b"hOST: " + stage.upstream.host, b"B: 2"]


def test_request_hop_by_hop(stage: Stage) -> None:
    """What is said to the proxy stays there: the fields of this connection, those it names, Expect, X-LLM-Proxy-*."""
    arrived = stage.arrives(
        post(
            b"12345",
            b"/openai/v1/x",
            b"Connection: keep-alive, X-Named",
            b"connection: x-other, Host, Content-Length, Content-Type",
            b"X-Named: 1",
            b"x-other: 2",
            b"X-OTHER: 3",
            b"Keep-Alive: timeout=5",
            b"Proxy-Connection: keep-alive",
            b"Proxy-Authorization: Basic eDp5",
            b"Proxy-Authenticate: Basic",
            b"TE: trailers",
            b"X-LLM-Proxy-Anything: 1",
            b"x-llm-proxy-request-id: forged",
            b"X-Kept: 1",
            b"Content-Type: text/plain",
        )
    )
    host = b"Host: " + stage.upstream.host
    assert arrived.lines == [host, b"X-Kept: 1", b"Content-Type: text/plain", b"Content-Length: 5"]


def test_expect(stage: Stage) -> None:
    """A caller that waits for 100 Continue gets it from the proxy; the provider is not asked to wait for anything."""
    caller = stage.caller()
    caller.send(request(b"POST", b"/openai/v1/x", b"Expect: 100-continue", b"Content-Length: 5"))
    assert caller.read_head() == Message(b"HTTP/1.1 100 Continue", [])
    caller.send(b"12345")
    upstream = stage.upstream.receive()
    arrived = upstream.read_message()
    assert (arrived.lines, arrived.body) == ([b"Host: " + stage.upstream.host, b"Content-Length: 5"], b"12345")
    upstream.send(b"HTTP/1.1 100 Continue\r\n\r\n", OK)
    assert caller.read_message().status == 200


def test_expect_something_else(stage: Stage) -> None:
    """An expectation that nobody knows is refused."""
    caller = stage.caller()
    caller.send(post(b"12345", b"/openai/v1/x", b"Expect: a-miracle"))
    assert caller.read_message().status == 417
    assert stage.upstream.is_untouched(0.02)


def test_http_1_0(stage: Stage) -> None:
    """An HTTP/1.0 caller is served: the provider gets HTTP/1.1 with a Host, the caller a close at the end."""
    for line in (b"", b"Host: proxy.test\r\n"):
        caller, upstream = stage.sends(b"GET /openai/v1/x HTTP/1.0\r\n" + line + b"A: 1\r\n\r\n")
        arrived = upstream.read_message()
        assert (arrived.start, arrived.lines) == (b"GET /v1/x HTTP/1.1", [b"Host: " + stage.upstream.host, b"A: 1"])
        upstream.send(STREAM_HEAD)
        head = caller.read_head()
        assert head.values("transfer-encoding") == []
        assert head.value("connection") == b"close"
        upstream.send_chunk(b"data: 1\n\n")
        assert caller.read_some() == b"data: 1\n\n"
        upstream.send_chunk(b"data: 2\n\n")
        upstream.send(END)
        assert caller.read_to_end() == b"data: 2\n\n"


# -- the body of a request -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content_type", [b"application/json", b"application/octet-stream"])
def test_request_bodies(stage: Stage, content_type: bytes) -> None:
    """Bodies of all bytes, and bodies that look like JSON and are not, arrive as they were sent."""
    for body in (
        b"",
        b"\x00",
        bytes(range(256)) * 40,
        b'{"model":"m"}',
        b' {"model" : "m", "model":"n" , "stream":true}\r\n\r\n',
        b'{"model":"m"}{"trailing":"garbage"}\n\n',
        b'{"a":"\\ud800","b":1e999,"model":' + b"[" * 5000,
        b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n",
        b"0\r\n\r\n",
    ):
        arrived = stage.arrives(post(body, b"/openai/v1/x", b"Content-Type: " + content_type))
        assert arrived.body == body
        assert arrived.value("content-length") == b"%d" % len(body)


def test_pipelined_bodies(stage: Stage) -> None:
    """A request that came together with the one before it keeps its body, with a length and in chunks."""
    in_chunks = request(b"POST", b"/openai/v1/x", b"Transfer-Encoding: chunked") + chunk(b"345") + END
    caller = stage.caller()
    caller.send(get() + post(b"12") + in_chunks + post(b"67"))
    for body in (b"", b"12", b"345", b"67"):
        upstream = stage.upstream.receive()
        assert upstream.read_message().body == body
        upstream.send(OK)
        assert caller.read_message().body == b"ok"


def test_request_body_in_gzip(stage: Stage) -> None:
    """A compressed body is passed on as it is, with its Content-Encoding."""
    body = gzip.compress(b'{"model":"m"}')
    arrived = stage.arrives(post(body, b"/openai/v1/x", b"Content-Encoding: gzip"))
    assert (arrived.body, arrived.value("content-encoding")) == (body, b"gzip")


def test_chunked_request(stage: Stage) -> None:
    """A chunked body stays chunked; its extensions end here, its trailers pass but for those that may not."""
    arrived = stage.arrives(
        request(b"POST", b"/openai/v1/x", b"transfer-ENCODING: Chunked", b"Trailer: X-Sum"),
        b'7;ext=1\r\n{"model\r\n0006;a="b"\r\n":"m"}\r\n',
        b"000\r\nX-Sum: 1\r\nx-sum: 2\r\nTE: x\r\nHost: evil\r\nAuthorization: x\r\n\r\n",
    )
    assert arrived.body == b'{"model":"m"}'
    assert arrived.lines == [b"Host: " + stage.upstream.host, b"Trailer: X-Sum", b"Transfer-Encoding: chunked"]
    assert arrived.trailers == [b"X-Sum: 1", b"x-sum: 2"]


# -- Upgrade -----------------------------------------------------------------------------------------------------------


def test_websocket(stage: Stage) -> None:
    """A WebSocket is refused with 426, which clients understand, and nothing that follows is taken for a request."""
    lines = (b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Key: eA==", b"Sec-WebSocket-Version: 13")
    caller = stage.caller()
    caller.send(get(b"/openai/v1/responses", *lines) + get(b"/openai/v1/smuggled"))
    returned = caller.read_message()
    assert returned.status == 426
    assert returned.value("x-llm-proxy-error-class") == b"upgrade_required"
    assert b"HTTP/1.1" in returned.values("upgrade")
    assert caller.is_closed_within(3.0)
    assert stage.upstream.is_untouched(0.02)
    assert stage.is_served()


@pytest.mark.parametrize("body", [None, b"", b"12345", b"x" * 100_000], ids=["none", "empty", "small", "large"])
def test_h2c(stage: Stage, body: bytes | None) -> None:
    """An offer of HTTP/2 stays here; the request is served as it is, and so is the next one on the connection."""
    lines = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQAAP__", b"A: 1")
    caller, upstream = stage.sends(request(b"POST", b"/openai/v1/x", *lines, body=body) + get(b"/openai/v1/next"))
    arrived = upstream.read_message()
    length = [] if body is None else [b"Content-Length: %d" % len(body)]
    assert arrived.lines == [b"Host: " + stage.upstream.host, b"A: 1", *length]
    assert arrived.body == (body or b"")
    upstream.send(OK)
    assert caller.read_message().body == b"ok"
    upstream = stage.upstream.receive()
    assert upstream.read_message().start == b"GET /v1/next HTTP/1.1"
    upstream.send(OK)
    assert caller.read_message().body == b"ok"


def test_h2c_with_chunks(stage: Stage) -> None:
    """The same with a chunked body."""
    lines = (b"Connection: Upgrade", b"Upgrade: h2c", b"Transfer-Encoding: chunked")
    arrived = stage.arrives(request(b"POST", b"/openai/v1/x", *lines), chunk(b"abc"), chunk(b"de"), END)
    assert (arrived.body, arrived.values("upgrade")) == (b"abcde", [])
