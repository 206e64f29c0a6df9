"""What is bounded towards callers, one proxy for each bound: what one more is told, and that everybody else goes on."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from typing import Final

import pytest

from tests.live.conversation import END, OK, STREAM, STREAM_HEAD, Stage, error_of, get, id_of, post, request
from tests.live.proxy import all_providers, running_proxy
from tests.live.upstream import Upstream
from tests.live.wire import LIMIT_S, Wire, chunk, wait_until

LIVE: Final = get(b"/health/live")
NOWHERE: Final = get(b"/nowhere")
DIALECTS: Final = {
    "openai": b"/openai/v1/chat/completions",
    "anthropic": b"/anthropic/v1/messages",
    "gemini": b"/gemini/v1beta/models/m:generateContent",
    "groq": b"/groq/openai/v1/chat/completions",
}
MAX_BODY: Final = 100_000


@contextlib.contextmanager
def bounded(**server: int) -> Iterator[Stage]:
    """A proxy with these bounds, which serves afterwards as before."""
    upstream = Upstream()
    with running_proxy({"providers": all_providers(upstream.url), "server": server}) as proxy:
        stage = Stage(proxy, upstream)
        yield stage
        stage.clear()
        wait_until(lambda: _is_served(stage), LIMIT_S)
        stage.clear()
    upstream.close()


def _is_served(stage: Stage) -> bool:
    """Whether a new caller is let in and its request goes to the provider."""
    caller = stage.caller()
    caller.send(get())
    if caller.poll(0.1):  # a refusal: what was there before is not gone yet
        return False
    upstream = stage.upstream.receive()
    upstream.read_message()
    upstream.send(OK)
    return caller.read_message().body == b"ok"


def told_in_dialect(body: bytes, dialect: str, status: int) -> bool:
    """Whether an error has the shape that the SDK of ``dialect`` reads."""
    error = json.loads(body)
    if dialect == "anthropic":
        return bool(error["type"] == "error" and error["error"]["type"] and error["error"]["message"])
    if dialect == "gemini":
        return bool(error["error"]["code"] == status and error["error"]["status"] and error["error"]["message"])
    return bool(error["error"]["type"] and error["error"]["message"] and "code" in error["error"])


# -- bodies ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def _small() -> Iterator[Stage]:
    with bounded(max_body_bytes=MAX_BODY) as stage:
        yield stage


@pytest.fixture
def small(_small: Stage) -> Iterator[Stage]:
    """A proxy that takes bodies of 100 kB."""
    yield _small
    _small.clear()


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("line", [b"Expect: 100-continue", b"X-A: b"], ids=["asks first", "just sends"])
def test_announced_body(small: Stage, line: bytes, dialect: str) -> None:
    """A body that is announced as too large is refused before a byte of it is asked for or sent on."""
    caller = small.caller()
    caller.send(request(b"POST", DIALECTS[dialect], b"Content-Length: %d" % (MAX_BODY + 1), line))
    returned = caller.read_message()
    assert error_of(returned) == (413, b"body_too_large", b"proxy")
    assert told_in_dialect(returned.body, dialect, 413)
    assert returned.value("connection") == b"close"
    assert caller.is_closed_within(1.0)
    assert small.upstream.is_untouched(0.02)
    assert small.proxy.access_event(request_id=id_of(returned))["end_reason"] == "body_too_large"


def test_as_large_as_allowed(small: Stage) -> None:
    """One of exactly that size passes, with a length and in chunks."""
    body = b"x" * MAX_BODY
    assert small.arrives(post(body, b"/openai/v1/f", b"Content-Type: a/b")).body == body
    data = request(b"POST", b"/openai/v1/f", b"Transfer-Encoding: chunked") + chunk(body[:1]) + chunk(body[1:]) + END
    assert small.arrives(data).body == body


@pytest.mark.parametrize("piece", [b"x" * 1000, b"x" * MAX_BODY, b"x" * 10], ids=["pieces", "one piece", "drops"])
def test_counted_body(small: Stage, piece: bytes) -> None:
    """A chunked body is counted: at the byte that is one too many it is refused, and my provider never gets its end."""
    data = chunk(piece) * (MAX_BODY // len(piece))
    caller, upstream = small.sends(request(b"POST", b"/openai/v1/f", b"Transfer-Encoding: chunked") + data)
    assert caller.is_quiet(0.1)
    caller.send(chunk(b"x") + END)
    returned = caller.read_message()
    assert error_of(returned) == (413, b"body_too_large", b"proxy")
    assert caller.is_closed_within(3.0)
    got = b""
    with pytest.raises((ConnectionResetError, EOFError)):
        while True:
            got += upstream.read(1)
    assert not got.endswith(END)


def test_chunk_that_is_announced_as_huge(small: Stage) -> None:
    """So is one chunk that says it is huge, while it comes and not before it is all there."""
    caller, upstream = small.sends(request(b"POST", b"/openai/v1/f", b"Transfer-Encoding: chunked") + b"7fffffff\r\nx")
    upstream.read_head()
    caller.send(b"x" * MAX_BODY)
    assert error_of(caller.read_message()) == (413, b"body_too_large", b"proxy")
    assert upstream.is_closed_within(1.0)


# -- heads -------------------------------------------------------------------------------------------------------------


def test_header_bounds_of_the_operator() -> None:
    """`server.max_headers` and `server.max_header_bytes` hold as they were set."""
    with bounded(max_headers=20, max_header_bytes=4096) as stage:
        for count, passes in ((18, True), (30, False)):
            data = get(b"/openai/v1/models", *(b"X-%d: y" % n for n in range(count)))
            assert _passes(stage, data) is passes
        for size, passes in ((3500, True), (4200, False)):
            assert _passes(stage, get(b"/openai/v1/models", b"X-A: " + b"b" * size)) is passes
        caller = stage.caller()
        caller.send(get(b"/openai/v1/models?" + b"q" * 4200))
        assert error_of(caller.read_message())[:2] == (414, b"uri_too_long")


def _passes(stage: Stage, data: bytes) -> bool:
    """Whether a request is answered by the provider; otherwise it is refused with 431."""
    caller = stage.caller()
    caller.send(data)
    if caller.poll(0.1):
        assert error_of(caller.read_message()) == (431, b"header_fields_too_large", b"proxy")
        assert caller.is_closed_within(1.0)
        return False
    upstream = stage.upstream.receive()
    upstream.read_message()
    upstream.send(OK)
    return caller.read_message().body == b"ok"


# -- connections -------------------------------------------------------------------------------------------------------


def _in_use(stage: Stage, count: int) -> list[tuple[Wire, Wire]]:
    """So many callers, each in the middle of a stream."""
    streams = []
    for _ in range(count):
        caller, upstream = stage.sends(STREAM)
        upstream.read_message()
        upstream.send(STREAM_HEAD)
        caller.read_head()
        streams.append((caller, upstream))
    return streams


def _one_more(stage: Stage, asks: bytes = LIVE) -> Wire:
    caller = stage.caller()
    caller.send(asks)
    return caller


def test_max_connections() -> None:
    """With all connections in use, one more is told so with a 503 and when to come again; streams are not touched."""
    with bounded(max_connections=5) as stage:
        streams = _in_use(stage, 5)
        for _ in range(20):
            returned = _one_more(stage, NOWHERE).read_message()
            assert (returned.status, returned.value("retry-after")) == (503, b"1")
            assert returned.value("connection") == b"close"
            assert _one_more(stage).read_message().status == 200, "a full proxy is alive"
        for number, (caller, upstream) in enumerate(streams):
            upstream.send_chunk(b"%d" % number)
            assert caller.read_chunk() == b"%d" % number
        stage.proxy.says("server.max_connections: 5 is reached")
        warned = [each for each in stage.proxy.events() if "is reached" in str(each.get("message"))]
        assert len(warned) == 1, "one line for all of them"
        streams[0][0].close()
        wait_until(lambda: _one_more(stage, NOWHERE).read_message().status == 404)


def test_the_idle_make_room() -> None:
    """If one waits for its next request, it is closed instead: a probe is answered however many are kept alive."""
    with bounded(max_connections=5) as stage:
        idle = []
        for _ in range(5):
            idle.append(_one_more(stage))
            assert idle[-1].read_message().status == 200
            time.sleep(0.02)
        for count in range(1, 4):
            assert _one_more(stage).read_message().status == 200
            assert [wire.is_closed_within(0.05) for wire in idle[:count]] == [True] * count, "the oldest first"
        assert not idle[4].is_closed_within(0.05)


def test_refusals_cost_nothing() -> None:
    """A thousand who are refused, and do not even read why, leave nothing behind, and nobody waits for them."""
    with bounded(max_connections=2) as stage:
        streams = _in_use(stage, 2)
        with stage.proxy.memory_bounded(4 << 20):
            for _ in range(20):
                crowd = [socket.create_connection(stage.proxy.address, LIMIT_S) for _ in range(50)]
                for each in crowd:
                    each.sendall(NOWHERE)
                for each in crowd:
                    each.close()
        caller, upstream = streams[0]
        upstream.send_chunk(b"x")
        assert caller.read_chunk() == b"x"


def test_max_connections_per_ip() -> None:
    """One address may have so many connections; another address is served all the same."""
    with bounded(max_connections_per_ip=3) as stage:
        _in_use(stage, 3)
        assert _one_more(stage, NOWHERE).read_message().status == 503
        other = socket.socket()
        other.bind(("127.0.0.9", 0))
        other.settimeout(LIMIT_S)
        other.connect(stage.proxy.address)
        wire = Wire(other)
        wire.send(NOWHERE)
        assert wire.read_message().status == 404
        wire.close()


# -- requests ----------------------------------------------------------------------------------------------------------


def test_max_requests() -> None:
    """One request too many in flight: 503 with Retry-After, in the shape that each SDK reads; health is still told."""
    with bounded(max_requests=3) as stage:
        streams = _in_use(stage, 3)
        for dialect, target in DIALECTS.items():
            caller = stage.caller()
            caller.send(post(b"{}", target))
            returned = caller.read_message()
            assert error_of(returned) == (503, b"overloaded", b"proxy")
            assert returned.value("retry-after") == b"1"
            assert told_in_dialect(returned.body, dialect, 503)
            assert stage.proxy.access_event(request_id=id_of(returned))["end_reason"] == "overloaded"
            caller.send(LIVE)  # on the same connection, which goes on
            assert caller.read_message().status == 200
        assert stage.upstream.is_untouched(0.02)
        caller, upstream = streams.pop()
        upstream.send(END)
        caller.read_chunk()
        assert stage.is_served()
        streams.pop()[0].reset()
        wait_until(lambda: _is_served(stage))
