"""What happens when one of the two ends goes away, or stops: looked at from both ends.

A caller that leaves costs money until the upstream is told; an answer that was cut must never look like a whole one;
and who does not read must hold back who writes, without the proxy filling up in between.
"""

from __future__ import annotations

import json
import resource
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.live.conversation import END, OK, STREAM_HEAD, Stage, answer, get, post, request
from tests.live.proxy import all_providers, running_proxy
from tests.live.upstream import Upstream
from tests.live.wire import LIMIT_S, Message, Wire, chunk, wait_until

MIB = 1 << 20
CLOSED_WITHIN_S = 1.0
STREAM = post(b'{"model":"m","stream":true}')

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
    event = stage.proxy.access_event(request_id=_id_of(head))
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
    caller, upstream = stage.sends(request(b"POST", b"/openai/v1/x", b"Content-Length: %d" % (1 << 33)), b"x")
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
        assert error["request_id"] == _id_of(returned)
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
        assert got == part
    else:
        assert got.startswith((chunk(b"data: 1\n\n"), b"40\r\ndata: 1\n\n"))
        assert b"\r\n0\r\n" not in got
        assert not got.endswith(END)
    event = either_stage.proxy.access_event(request_id=_id_of(returned))
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


def _id_of(message: Message) -> str:
    return (message.value("x-llm-proxy-request-id") or b"").decode()


# -- who does not read -------------------------------------------------------------------------------------------------


def test_slow_reader(stage: Stage) -> None:
    """A caller that does not read holds the provider back; when it reads on, nothing is missing."""
    caller, upstream = stage.sends(STREAM)
    upstream.read_message()
    upstream.send(STREAM_HEAD)
    piece = chunk(b"x" * 16_384)
    with stage.proxy.memory_bounded(4 * MIB):
        taken = upstream.fill(piece, limit_bytes=256 * MIB)
    assert taken < 64 * MIB  # what the sockets of both sides hold
    stop = threading.Thread(
        target=upstream.send, args=(piece[taken % len(piece) :] if taken % len(piece) else b"", END)
    )
    stop.start()
    body = caller.read_message().body
    stop.join(LIMIT_S)
    assert len(body) == -(-taken // len(piece)) * 16_384


def test_slow_upstream(stage: Stage) -> None:
    """A provider that does not read its upload holds the caller back; when it reads on, nothing is missing."""
    size = 256 * MIB
    caller, upstream = stage.sends(request(b"PUT", b"/openai/v1/f", b"Content-Length: %d" % size), b"x")
    upstream.read_head()
    with stage.proxy.memory_bounded(4 * MIB):
        taken = caller.fill(b"x" * 65_536, limit_bytes=size // 2)
    assert taken < 64 * MIB
    upstream.read(taken + 1)
    caller.send(b"y" * 1000)
    assert upstream.read(1000) == b"y" * 1000
    assert upstream.is_quiet(0.02)


def test_slow_upstream_and_json(stage: Stage) -> None:
    """The same for a JSON body that was looked at first: at most its bound is held, not all of it."""
    size = 256 * MIB
    caller = stage.caller()
    caller.send(request(b"POST", b"/openai/v1/chat/completions", b"Content-Length: %d" % size), b'{"messages":["')
    with stage.proxy.memory_bounded(8 * MIB):
        taken = caller.fill(b"x" * 65_536, limit_bytes=size // 2)
    assert taken < 64 * MIB
    assert stage.upstream.receive().read_head().value("content-length") == b"%d" % size


def test_event_by_event_to_a_slow_upstream(stage: Stage) -> None:
    """A provider that takes its time is waited for, and nothing is lost."""
    caller, upstream = stage.sends(STREAM)
    upstream.read_message()
    time.sleep(0.4)
    for piece in (b"HTTP/1.1 2", b"00 OK\r\nContent-Le", b"ngth: 4\r\n\r", b"\nok", b"ok"):
        time.sleep(0.1)
        upstream.send(piece)
    assert caller.read_message().body == b"okok"


@pytest.mark.parametrize("framing", [b"Content-Length: 10000000", b"Transfer-Encoding: chunked"])
def test_early_answer(stage: Stage, framing: bytes) -> None:
    """A final answer in the middle of an upload reaches the caller, and nobody takes the rest for a request."""
    caller, upstream = stage.sends(request(b"POST", b"/openai/v1/files", framing), chunk(b"a part of it"))
    upstream.read_head()
    upstream.send(answer(status=b"413 Too Large", body=b"too large"))
    returned = caller.read_message()
    assert (returned.status, returned.body) == (413, b"too large")
    assert upstream.is_closed_within(CLOSED_WITHIN_S)
    assert stage.is_served()


def test_early_answer_and_the_next_request(stage: Stage) -> None:
    """A caller that sends its upload to the end all the same has its next request served on the same connection."""
    body = b"x" * 100_000
    caller, upstream = stage.sends(request(b"POST", b"/openai/v1/f", b"Content-Length: %d" % len(body)), body[:10])
    upstream.read_head()
    upstream.read(10)
    upstream.send(answer(status=b"413 Too Large", body=b"too large"))
    assert caller.read_message().status == 413
    caller.send(body[10:], get(b"/openai/v1/next"))
    upstream = stage.upstream.receive()
    assert upstream.read_message().start == b"GET /v1/next HTTP/1.1"
    upstream.send(OK)
    assert caller.read_message().body == b"ok"


def test_early_answer_with_a_close(stage: Stage) -> None:
    """A provider that answers 401 and closes without reading the upload: the caller gets the 401."""
    caller, upstream = stage.sends(request(b"POST", b"/openai/v1/f", b"Content-Length: 10000000"), b"x" * 50_000)
    upstream.read_head()
    upstream.send(answer(b"Connection: close", status=b"401 Unauthorized", body=b"who?"))
    stage.upstream.forget(upstream)
    returned = caller.read_message()
    assert (returned.status, returned.body) == (401, b"who?")


# -- very many who do not read -----------------------------------------------------------------------------------------

READERS = 1000


@pytest.fixture
def _many_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4 * READERS:
        pytest.skip(f"needs {4 * READERS} open files, the system allows {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.slow
def test_a_thousand_readers_that_stop(_many_files: None) -> None:
    """A thousand callers stop reading their streams: each costs less than 96 KiB, and others are served."""
    upstream = Upstream()
    with running_proxy({"providers": all_providers(upstream.url)}) as proxy:
        stage = Stage(proxy, upstream)
        assert stage.is_served()
        before = proxy.resident_bytes()
        streams = []
        for _ in range(READERS):
            caller = stage.caller(receive_buffer_bytes=16_384)
            caller.send(STREAM)
            wire = upstream.accept() if streams else upstream.receive()
            wire.read_message()
            wire.send(STREAM_HEAD, b"ffffffff\r\n")  # one chunk that does not end here
            wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32_768)  # the machine's memory, not the proxy's
            wire.socket.setblocking(False)
            streams.append(wire)
        idle = (proxy.resident_bytes() - before) / READERS
        taken, held_back = _flood(streams)
        stalled = (proxy.resident_bytes() - before) / READERS
        print(f"an open stream {idle / 1024:.1f} KiB, a stalled one {stalled / 1024:.1f}, {taken >> 20} MiB taken")  # noqa: T201
        assert held_back == READERS
        assert stalled < 96 * 1024
        started_s = time.monotonic()
        caller = stage.caller()
        caller.send(get(b"/health"))
        assert caller.read_message().status == 200
        assert time.monotonic() - started_s < 2.0
        for each in stage.callers:
            each.close()
        wait_until(lambda: all(_is_over(wire) for wire in streams), 8.0)
        stage.clear()
    upstream.close()


def _flood(streams: list[Wire]) -> tuple[int, int]:
    """Write to all of them until none takes any more; how many bytes were taken, and by how many a write is refused."""
    piece = b"x" * 32_000
    taken = 0
    quiet_rounds = 0
    while quiet_rounds < 3:
        taken_now = 0
        held_back = 0
        for wire in streams:
            try:
                taken_now += wire.socket.send(piece)
            except BlockingIOError:
                held_back += 1
        taken += taken_now
        assert taken < len(streams) * 16 * MIB
        quiet_rounds = 0 if taken_now else quiet_rounds + 1
        if not taken_now:
            time.sleep(0.1)
    return taken, held_back


def _is_over(wire: Wire) -> bool:
    try:
        return not wire.socket.recv(1)
    except BlockingIOError:
        return False
    except ConnectionError:
        return True
