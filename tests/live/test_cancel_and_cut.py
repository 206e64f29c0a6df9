"""What happens when one of the two ends goes away: looked at from both ends.

A caller that leaves costs money until the upstream is told. An answer that was cut must never look like a whole one.
"""

from __future__ import annotations

import json
import threading
import time

import pytest

from tests.live.conversation import END, OK, STREAM, STREAM_HEAD, Stage, get, id_of, post, request
from tests.live.wire import Wire, chunk

MIB = 1 << 20
CLOSED_WITHIN_S = 1.0

LEAVE = {"close": Wire.close, "reset": Wire.reset}
"""How a connection ends: with a FIN, or with a reset."""


# -- the caller leaves -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", LEAVE)
def test_caller_leaves_before_the_head(either_stage: Stage, how: str) -> None:
    """A caller that does not wait for the answer ends the provider's work on it within a second."""
    caller, upstream = either_stage.sends(STREAM)
    upstream.read_message()
    LEAVE[how](caller)
    assert upstream.is_closed_within(CLOSED_WITHIN_S)


@pytest.mark.parametrize("how", LEAVE)
def test_caller_leaves_a_silent_stream(either_stage: Stage, how: str) -> None:
    """The same when the provider is silent in the middle of a stream, and so cannot notice by itself."""
    caller, upstream = either_stage.sends(STREAM)
    upstream.read_message()
    upstream.send(STREAM_HEAD, chunk(b"data: 1\n\n"))
    caller.read_head()
    caller.read_chunk()
    LEAVE[how](caller)
    assert upstream.is_closed_within(CLOSED_WITHIN_S)


@pytest.mark.parametrize("how", LEAVE)
def test_caller_leaves_a_busy_stream(stage: Stage, how: str) -> None:
    """The same when events come all the time; the log says who left, and what the caller got before."""
    caller, upstream = stage.sends(STREAM)
    upstream.read_message()
    upstream.send(STREAM_HEAD)
    head = caller.read_head()
    stop = threading.Event()
    busy = threading.Thread(target=_stream_until, args=(upstream, stop))
    busy.start()
    try:
        for _ in range(5):
            caller.read_chunk()
        left_at_s = time.monotonic()
        LEAVE[how](caller)
        busy.join(CLOSED_WITHIN_S)
        assert not busy.is_alive()
        assert time.monotonic() - left_at_s < CLOSED_WITHIN_S
    finally:
        stop.set()
    event = stage.proxy.access_event(request_id=id_of(head))
    assert (event["end_reason"], event["phase"], event["status"]) == ("client_gone", "relaying", 200)
    assert event["chunks"] >= 5


def _stream_until(upstream: Wire, stop: threading.Event) -> None:
    try:
        while not stop.wait(0.005):
            upstream.send_chunk(b"data: x\n\n")
    except ConnectionError:
        pass


@pytest.mark.parametrize("how", LEAVE)
@pytest.mark.parametrize("framing", [b"Content-Length: 100", b"Transfer-Encoding: chunked"])
def test_caller_leaves_its_upload(stage: Stage, how: str, framing: bytes) -> None:
    """A caller that leaves in the middle of its upload leaves the provider with a visibly broken one."""
    caller, upstream = stage.sends(request(b"POST", b"/openai/v1/files", framing), chunk(b"a part of it"))
    upstream.read_head()
    LEAVE[how](caller)
    with pytest.raises((ConnectionError, EOFError)):
        upstream.read_until(END)
    assert upstream.ended or upstream.is_closed_within(CLOSED_WITHIN_S)


def test_caller_leaves_before_its_body_is_known(stage: Stage) -> None:
    """One that leaves while its JSON is still looked at was never heard of by the provider."""
    caller = stage.caller()
    caller.send(request(b"POST", b"/openai/v1/x", b"Content-Length: 100"), b'{"model":')
    caller.close()
    assert stage.upstream.is_untouched()
    assert stage.is_served()


@pytest.mark.parametrize("how", LEAVE)
def test_caller_leaves_while_it_is_not_read(stage: Stage, how: str) -> None:
    """Also a caller that is not read at the moment (its next request has come already) is seen leaving."""
    caller, upstream = stage.sends(STREAM + get())
    upstream.read_message()
    upstream.send(STREAM_HEAD)
    caller.read_head()
    LEAVE[how](caller)
    assert upstream.is_closed_within(CLOSED_WITHIN_S)


def test_caller_leaves_an_upload_that_nobody_reads(stage: Stage) -> None:
    """And one whose upload is held back because the provider does not read."""
    caller, upstream = stage.sends(request(b"POST", b"/openai/v1/x", b"Content-Length: %d" % (1 << 31)), b"x")
    upstream.read_head()
    caller.fill(b"x" * MIB, for_s=0.2)
    caller.reset()
    started_s = time.monotonic()
    assert upstream.is_closed_within(2 * CLOSED_WITHIN_S)
    assert time.monotonic() - started_s < 2 * CLOSED_WITHIN_S


def test_others_go_on(stage: Stage) -> None:
    """Whoever leaves, the streams of others are not touched."""
    kept, kept_upstream = stage.sends(STREAM)
    kept_upstream.read_message()
    kept_upstream.send(STREAM_HEAD)
    kept.read_head()
    for number in range(20):
        caller, upstream = stage.sends(STREAM)
        upstream.read_message()
        if number % 2:
            upstream.send(STREAM_HEAD)
        caller.reset()
        kept_upstream.send_chunk(b"%d" % number)
        assert kept.read_chunk() == b"%d" % number
        assert upstream.is_closed_within(CLOSED_WITHIN_S)


# -- the upstream ends -------------------------------------------------------------------------------------------------

BEFORE_THE_HEAD = {"nothing": b"", "half a line": b"HTTP/1.1 2", "half a head": b"HTTP/1.1 200 OK\r\nContent-Le"}
DIALECTS = {
    "openai": b"/openai/v1/chat/completions",
    "anthropic": b"/anthropic/v1/messages",
    "gemini": b"/gemini/v1beta/models/m:generateContent",
    "groq": b"/groq/openai/v1/chat/completions",
}


@pytest.mark.parametrize("how", LEAVE)
@pytest.mark.parametrize("sent", BEFORE_THE_HEAD.values(), ids=BEFORE_THE_HEAD)
def test_upstream_ends_before_the_head(stage: Stage, how: str, sent: bytes) -> None:
    """The caller gets a 502 that says so, and its connection goes on."""
    caller, upstream = stage.sends(STREAM)
    upstream.read_message()
    upstream.send(sent)
    stage.upstream.connections.remove(upstream)
    LEAVE[how](upstream)
    returned = caller.read_message()
    assert (returned.status, returned.value("x-llm-proxy-error-class")) == (502, b"upstream_reset")
    assert returned.value("x-llm-proxy-error-source") == b"upstream"
    assert stage.upstream.is_untouched(0.05)
    caller.send(get())
    again = stage.upstream.receive()
    again.read_message()
    again.send(OK)
    assert caller.read_message().body == b"ok"


@pytest.mark.parametrize("dialect", DIALECTS)
def test_errors_in_dialect(stage: Stage, dialect: str) -> None:
    """The error is in the shape that the route's SDK reads, and tells no address."""
    caller, upstream = stage.sends(post(b"{}", DIALECTS[dialect]))
    upstream.read_message()
    stage.upstream.forget(upstream)
    returned = caller.read_message()
    error = json.loads(returned.body)
    assert returned.value("content-type") == b"application/json"
    if dialect == "anthropic":
        assert (error["type"], error["error"]["type"]) == ("error", "api_error")
        assert error["request_id"] == id_of(returned)
    elif dialect == "gemini":
        assert (error["error"]["code"], error["error"]["status"]) == (502, "UNAVAILABLE")
    else:
        assert (error["error"]["type"], error["error"]["code"]) == ("server_error", "upstream_reset")
    assert dialect in error["error"]["message"].lower()
    assert b"127.0.0.1" not in returned.body


BODIES = {
    "a length": (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n", b"part of it", 100),
    "chunks, between two": (STREAM_HEAD, chunk(b"data: 1\n\n"), 0),
    "chunks, within one": (STREAM_HEAD, b"40\r\ndata: 1\n\n", 0),
    "chunks, within a size": (STREAM_HEAD, chunk(b"data: 1\n\n") + b"4", 0),
    "chunks, before the last CRLF": (STREAM_HEAD, chunk(b"data: 1\n\n") + b"0\r\n", 0),
    "chunks, within a trailer": (STREAM_HEAD, chunk(b"data: 1\n\n") + b"0\r\nX-Su", 0),
    "chunks that are none": (STREAM_HEAD, chunk(b"data: 1\n\n") + b"xyz\r\n", 0),
}


@pytest.mark.parametrize("how", LEAVE)
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_upstream_ends_within_the_body(either_stage: Stage, how: str, body: tuple[bytes, bytes, int]) -> None:
    """A cut answer looks cut: bytes are missing, or the last chunk; nothing is added, and the connection ends."""
    head, part, length = body
    caller, upstream = either_stage.sends(STREAM)
    upstream.read_message()
    upstream.send(head, part)
    returned = caller.read_head()
    got = caller.read_some()
    either_stage.upstream.connections.remove(upstream)
    LEAVE[how](upstream)
    got += _read_what_is_left(caller)
    if length:
        # The proxy asked for the usage, and may have to take it out: so it cannot say how long the stream will be.
        assert got == chunk(part)
    else:
        assert got.startswith((chunk(b"data: 1\n\n"), b"40\r\ndata: 1\n\n"))
        assert b"\r\n0\r\n" not in got
        assert not got.endswith(END)
    event = either_stage.proxy.access_event(request_id=id_of(returned))
    assert event["end_reason"] in ("upstream_truncated", "upstream_invalid")


def test_upstream_resets_a_body_that_ends_by_close(stage: Stage) -> None:
    """Without length or chunks a reset is the only sign of a cut, and it is passed on: no last chunk."""
    caller, upstream = stage.sends(STREAM)
    upstream.read_message()
    upstream.send(b"HTTP/1.1 200 OK\r\n\r\n", b"part")
    caller.read_head()
    assert caller.read_chunk() == b"part"
    stage.upstream.connections.remove(upstream)
    upstream.reset()
    assert END not in _read_what_is_left(caller)


def test_upstream_cut_over_tls_without_the_closing_alert(tls_stage: Stage) -> None:
    """Over TLS, an end without the closing alert is a cut too (RFC 8446 section 6.1)."""
    caller, upstream = tls_stage.sends(STREAM)
    upstream.read_message()
    upstream.send(b"HTTP/1.1 200 OK\r\n\r\n", b"part")
    caller.read_head()
    assert caller.read_chunk() == b"part"
    tls_stage.upstream.forget(upstream)
    assert END not in _read_what_is_left(caller)


def test_upstream_cut_for_http_1_0(stage: Stage) -> None:
    """An HTTP/1.0 caller has no chunks: its connection is reset, which is all that can tell a cut from an end."""
    caller, upstream = stage.sends(b"GET /openai/v1/x HTTP/1.0\r\n\r\n")
    upstream.read_message()
    upstream.send(STREAM_HEAD, chunk(b"data: 1\n\n"))
    caller.read_head()
    assert caller.read_some() == b"data: 1\n\n"
    stage.upstream.forget(upstream)
    with pytest.raises(ConnectionResetError):
        caller.read_to_end()


def test_upstream_that_speaks_no_http(stage: Stage) -> None:
    """What is no answer becomes a 502 of ours, and its connection is not used again."""
    for garbage in (
        b"SSH-2.0-OpenSSH_9\r\n",
        b"HTTP/1.1 99 No\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"\x16\x03\x01\x02\x00",
    ):
        caller, upstream = stage.sends(STREAM)
        upstream.read_message()
        upstream.send(garbage)
        returned = caller.read_message()
        assert (returned.status, returned.value("x-llm-proxy-error-class")) == (502, b"upstream_invalid_answer")
        assert garbage.strip() not in returned.body
        assert upstream.is_closed_within(CLOSED_WITHIN_S)


def _read_what_is_left(caller: Wire) -> bytes:
    """All that still comes until the connection ends, one way or another."""
    got = b""
    try:
        while (data := caller.read_some()) != b"":
            got += data
    except OSError:  # a reset; over TLS a missing alert
        pass
    return got
