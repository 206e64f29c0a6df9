"""The answer on both sides of the proxy, byte by byte, and the differences that docs/fidelity.md lists."""

from __future__ import annotations

import gzip

import pytest

from tests.live.conversation import END, OK, STREAM_HEAD, Stage, answer, get, request, without_added
from tests.live.wire import Message, chunk


@pytest.mark.parametrize(
    "status",
    [
        b"200 OK",
        b"200 ",
        b"201 Made",
        b"299 Quite Fine",
        b"202 \xfc b\xe4r",
        b"400 Bad",
        b"401 No",
        b"418 I'm a teapot",
        b"429 Too Many Requests",
        b"451 X",
        b"499 Y",
        b"500 Z",
        b"503 W",
        b"529 Overloaded",
        b"599 V",
    ],
)
def test_statuses(stage: Stage, status: bytes) -> None:
    """Status and reason are the provider's, made-up ones too, and its errors are not touched."""
    body = b'{"error":{"message":"its own"}}'
    returned = stage.returns(answer(b"Retry-After: 7", b"x-should-retry: true", status=status, body=body))
    assert returned.start == b"HTTP/1.1 " + status
    assert without_added(returned) == [b"Retry-After: 7", b"x-should-retry: true", b"Content-Length: 31"]
    assert returned.body == body


def test_status_line_without_reason(stage: Stage) -> None:
    """Not even a space behind the status: a reader that wants one is given it, and no reason is made up."""
    assert stage.returns(b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok").start == b"HTTP/1.1 200 "


def test_a_status_that_is_none(stage: Stage) -> None:
    """HTTP ends at 599 (RFC 9110 section 15): what is beyond is no answer that a caller could read."""
    returned = stage.returns(answer(status=b"600 Beyond"))
    assert (returned.status, returned.value("x-llm-proxy-error-class")) == (502, b"upstream_invalid_answer")


def test_answer_fields(stage: Stage) -> None:
    """Names keep their case, fields their order and repetition, values every byte."""
    lines = [
        b"date: Mon, 01 Jan 2024 00:00:00 GMT",
        b"Server: cloudflare",
        b"Set-Cookie: a=1; Path=/",
        b"set-cookie: b=2, c",
        b"Set-Cookie: a=1; Path=/",
        b"x-request-id: req_1",
        b"request-id: req_2",
        b"x-ratelimit-reset-tokens: 6ms",
        b"X-RateLimit-Limit-Requests: 1",
        b"Vary: Origin",
        b"vary: Accept-Encoding",
        b"Link: </a>; rel=next",
        b"Link: </b>; rel=next",
        b"X-Empty: ",
        b"X-High: \xe9\xff",
        b"Content-Type: application/json; charset=utf-8",
        b'alt-svc: h3=":443"',
        b"X-Accel-Buffering: yes",
    ]
    returned = stage.returns(answer(*lines))
    assert returned.lines[: len(lines) + 1] == [*lines, b"Content-Length: 2"]
    assert without_added(returned) == [*lines, b"Content-Length: 2"]


def test_answer_hop_by_hop(stage: Stage) -> None:
    """The provider's words to the proxy stay there, and it cannot speak in the proxy's name."""
    returned = stage.returns(
        answer(
            b"Connection: keep-alive, X-Named",
            b"Keep-Alive: timeout=5",
            b"x-named: 1",
            b"Proxy-Connection: x",
            b"Proxy-Authenticate: Basic",
            b"Upgrade: h2c",
            b"TE: x",
            b"X-LLM-Proxy-Error-Source: proxy",
            b"X-LLM-PROXY-Request-Id: forged",
            b"X-Kept: 1",
        )
    )
    assert without_added(returned) == [b"X-Kept: 1", b"Content-Length: 2"]
    assert returned.values("x-llm-proxy-request-id") != [b"forged"]


@pytest.mark.parametrize("coding", [b"gzip", b"br", b"zstd", b"made-up"])
def test_content_encoding(stage: Stage, coding: bytes) -> None:
    """A coded body is passed on as it is: neither its bytes nor what is said about them changes."""
    body = gzip.compress(b"hello " * 100)
    returned = stage.returns(answer(b"Content-Encoding: " + coding, b'ETag: "1"', body=body))
    assert (returned.body, returned.value("content-encoding")) == (body, coding)


def test_redirects(stage: Stage) -> None:
    """A redirect is the caller's to follow; nobody is asked on its behalf."""
    for status in (b"301 A", b"302 B", b"303 C", b"307 D", b"308 E"):
        returned = stage.returns(answer(b"Location: " + stage.upstream.url.encode() + b"/elsewhere", status=status))
        assert returned.value("location") == stage.upstream.url.encode() + b"/elsewhere"
        assert stage.upstream.is_untouched(0.01)


@pytest.mark.parametrize(
    ("ask", "reply", "length"),
    [
        (request(b"HEAD", b"/openai/v1/x"), answer(b"Content-Length: 900", body=None), b"900"),
        (request(b"HEAD", b"/openai/v1/x"), answer(b"Transfer-Encoding: chunked", body=None), None),
        (request(b"HEAD", b"/openai/v1/x"), answer(body=None), None),
        (get(), answer(status=b"204 No Content", body=None), None),
        (get(), answer(b"Content-Length: 900", status=b"304 Not Modified", body=None), b"900"),
        (get(), answer(b"Transfer-Encoding: chunked", status=b"304 Not Modified", body=None), None),
        (get(), answer(b"ETag: x", status=b"304 Not Modified", body=None), None),
    ],
)
def test_no_body(stage: Stage, ask: bytes, reply: bytes, length: bytes | None) -> None:
    """HEAD, 204 and 304 have no body whatever their fields say; nobody waits for one, both connections go on."""
    caller, upstream = stage.sends(ask)
    upstream.read_message()
    upstream.send(reply)
    head = caller.read_head()
    assert head.value("content-length") == length
    assert caller.is_quiet(0.05)
    caller.send(get())
    assert stage.upstream.receive() is upstream
    upstream.read_message()
    upstream.send(OK)
    assert caller.read_message().body == b"ok"


def test_interim_answers(stage: Stage) -> None:
    """103 is passed on at once, before the answer; 100 is the proxy's own to give."""
    caller, upstream = stage.sends(get())
    upstream.read_message()
    upstream.send(b"HTTP/1.1 100 Continue\r\nX: 1\r\n\r\n")
    assert caller.is_quiet(0.05)
    upstream.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nConnection: X-Hop\r\nX-Hop: 1\r\nlink: </b>\r\n\r\n")
    assert caller.read_head() == Message(b"HTTP/1.1 103 Early Hints", [b"Link: </a>", b"link: </b>"])
    upstream.send(b"HTTP/1.1 102 \r\n\r\n", OK)
    assert caller.read_head() == Message(b"HTTP/1.1 102 ", [])
    assert without_added(caller.read_message()) == [b"Content-Length: 2"]


def test_interim_answers_for_http_1_0(stage: Stage) -> None:
    """An HTTP/1.0 caller knows no interim answers, and gets none."""
    returned = stage.returns(b"HTTP/1.1 103 Early Hints\r\n\r\n" + OK, ask=b"GET /openai/v1/x HTTP/1.0\r\n\r\n")
    assert returned.status == 200


def test_answer_trailers(stage: Stage) -> None:
    """Trailers pass behind the last chunk, but for those that a trailer may not carry."""
    returned = stage.returns(
        b"HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n",
        chunk(b"ab") + b"0\r\nX-Sum: 1\r\nSet-Cookie: a=1\r\nConnection: x\r\nx-SUM: 2\r\n\r\n",
    )
    assert (returned.body, returned.trailers) == (b"ab", [b"X-Sum: 1", b"x-SUM: 2"])
    assert returned.value("trailer") == b"X-Sum"


def test_answer_that_ends_by_close(stage: Stage) -> None:
    """An answer without a length ends with its connection; the caller gets it in chunks, with a proper end."""
    for start in (b"HTTP/1.1 200 OK\r\n", b"HTTP/1.0 200 OK\r\n"):
        caller, upstream = stage.sends(get())
        upstream.read_message()
        upstream.send(start + b"Content-Type: text/plain\r\n\r\n")
        head = caller.read_head()
        assert (head.start, head.value("transfer-encoding")) == (b"HTTP/1.1 200 OK", b"chunked")
        upstream.send(b"part 1")
        assert caller.read_chunk() == b"part 1"
        upstream.send(b"part 2")
        assert caller.read_chunk() == b"part 2"
        stage.upstream.forget(upstream)
        assert (caller.read_chunk(), caller.read_trailers()) == (b"", [])


def test_chunk_pacing(stage: Stage) -> None:
    """Each chunk is on the caller's socket before the provider sends the next, one for one; extensions end here."""
    caller, upstream = stage.sends(get())
    upstream.read_message()
    upstream.send(STREAM_HEAD)
    assert caller.read_head().values("x-accel-buffering") == [b"no"]
    for number in range(20):
        event = b"data: %d\n\n" % number
        upstream.send(b"%X;ext=%d\r\n" % (len(event), number) + event + b"\r\n")
        assert caller.read_chunk() == event
        assert caller.is_quiet(0.002)
    upstream.send(b"00;last\r\n\r\n")
    assert (caller.read_chunk(), caller.read_trailers()) == (b"", [])


def test_half_a_chunk_is_not_held_back(stage: Stage) -> None:
    """Bytes go on as they arrive, also those of a chunk that is not yet whole."""
    caller, upstream = stage.sends(get())
    upstream.read_message()
    upstream.send(STREAM_HEAD)
    caller.read_head()
    upstream.send(b"a\r\n01234")
    assert caller.read_chunk() == b"01234"
    upstream.send(b"56789\r")
    assert caller.read_chunk() == b"56789"
    upstream.send(b"\n", END)
    assert caller.read_chunk() == b""


def test_request_id(stage: Stage) -> None:
    """Each answer has an id of the proxy's own, never the same twice, and the log knows the request by it."""
    ids = [stage.returns(OK).value("x-llm-proxy-request-id") for _ in range(3)]
    assert len(set(ids)) == 3
    last = (ids[-1] or b"").decode()
    event = stage.proxy.access_event(request_id=last)
    assert (event["status"], event["end_reason"], event["response_bytes"]) == (200, "ok", 2)
