"""Who does not read holds back who writes, and the proxy does not fill up in between."""

from __future__ import annotations

import resource
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.live.conversation import END, OK, STREAM, STREAM_HEAD, Stage, answer, get, request
from tests.live.proxy import all_providers, running_proxy
from tests.live.upstream import Upstream
from tests.live.wire import LIMIT_S, Wire, chunk, wait_until

MIB = 1 << 20
CLOSED_WITHIN_S = 1.0


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
        streams: list[Wire] = []
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
