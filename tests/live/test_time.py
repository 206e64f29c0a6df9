"""Every wait for a caller has a deadline, and nobody who is merely slow meets one: on real sockets and clocks.

The rules are tested with a clock of their own in tests/web/test_deadlines.py. All deadlines here are short, so that
what must be cut is cut soon, and what must not be cut outlives every one of them several times.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final

import pytest

from tests.live.conversation import END, OK, STREAM, STREAM_HEAD, Stage, answer, error_of, get, id_of, post, request
from tests.live.proxy import all_providers, running_proxy
from tests.live.upstream import Upstream
from tests.live.wire import Wire, chunk

SHORT_S: Final = 0.5
KEEPALIVE_S: Final = 2.5
LATE_S: Final = 0.7
"""How much later than due a deadline may be seen here: the look that is taken at them, and a busy machine."""
UPLOAD_S: Final = 1.0

DIALECTS: Final = {
    "openai": b"/openai/v1/chat/completions",
    "anthropic": b"/anthropic/v1/messages",
    "gemini": b"/gemini/v1beta/models/m:generateContent",
}


@pytest.fixture(scope="module")
def _hurried() -> Iterator[Stage]:
    upstream = Upstream()
    config = {
        "providers": all_providers(upstream.url),
        "server": {
            "header_timeout_s": SHORT_S,
            "body_idle_timeout_s": SHORT_S,
            "write_idle_timeout_s": SHORT_S,
            "keepalive_timeout_s": KEEPALIVE_S,
        },
    }
    with running_proxy(config) as proxy:
        yield Stage(proxy, upstream)
    upstream.close()


@pytest.fixture
def hurried(_hurried: Stage) -> Iterator[Stage]:
    """A proxy that waits half a second for anything; afterwards it serves as before."""
    yield _hurried
    assert _hurried.is_served()
    _hurried.clear()


class _Took:
    """How long a block took."""

    def __enter__(self) -> _Took:
        self._began_s = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self.s = time.monotonic() - self._began_s

    def assert_about(self, due_s: float) -> None:
        """Not before it was due, and not much later."""
        assert due_s - 0.05 <= self.s < due_s + LATE_S, self.s


# -- heads -------------------------------------------------------------------------------------------------------------

DRIPS: Final = {
    "bytes": [bytes((byte,)) for byte in get(b"/openai/v1/models", b"X-A: " + b"b" * 100)],
    "lines": [
        b"GET /openai/v1/models HTTP/1.1\r\n",
        b"Host: proxy.test\r\n",
        *(b"X-%d: y\r\n" % n for n in range(100)),
    ],
    "empty lines": [b"\r\n"] * 100,
}


@pytest.mark.parametrize("pieces", DRIPS.values(), ids=DRIPS)
def test_dripping_head(hurried: Stage, pieces: list[bytes]) -> None:
    """A head that comes drop by drop is cut after `header_timeout_s` in all, however small the pauses are."""
    caller = hurried.caller()
    with _Took() as took:
        for piece in pieces:
            if caller.poll(0.1):
                break
            caller.send(piece)
        got = caller.read_to_end()
    took.assert_about(SHORT_S)
    if pieces is not DRIPS["empty lines"]:  # of which nothing is a request
        assert got.startswith(b"HTTP/1.1 408 ")
        assert b"\r\nX-LLM-Proxy-Error-Class: header_timeout\r\n" in got


def test_dripping_second_head(hurried: Stage) -> None:
    """The same for a later head of a connection; its time begins with its first byte."""
    caller = hurried.caller()
    caller.send(get(b"/health/live"))
    caller.read_message()
    time.sleep(2 * SHORT_S)
    with _Took() as took:
        caller.send(b"GET /open")
        returned = caller.read_message()
    took.assert_about(SHORT_S)
    assert error_of(returned) == (408, b"header_timeout", b"proxy")
    assert returned.value("connection") == b"close"
    assert caller.is_closed_within(1.0)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_head_in_dialect(hurried: Stage, dialect: str) -> None:
    """The 408 has the shape that the SDK of the route reads, as far as the route was told."""
    caller = hurried.caller()
    caller.send(b"POST " + DIALECTS[dialect] + b" HTTP/1.1\r\nHost: proxy.test\r\nX-A")
    returned = caller.read_message()
    assert error_of(returned) == (408, b"header_timeout", b"proxy")
    assert hurried.proxy.access_event(request_id=id_of(returned))["end_reason"] == "header_timeout"


def test_silent_connection(hurried: Stage) -> None:
    """A connection on which nothing is ever said is closed without a word, and is in no log."""
    time.sleep(0.4)  # the log is written in batches: of what was before, all is there now
    lines = len(hurried.proxy.events())
    with _Took() as took:
        assert hurried.caller().read_to_end() == b""
    took.assert_about(SHORT_S)
    time.sleep(0.4)
    assert not [each for each in hurried.proxy.events()[lines:] if each.get("event") == "access"]


def test_keepalive(hurried: Stage) -> None:
    """A connection that waits for its next request is closed in peace after `keepalive_timeout_s`."""
    caller = hurried.caller()
    caller.send(get(b"/health/live"))
    caller.read_message()
    with _Took() as took:
        assert caller.read_to_end() == b""
    took.assert_about(KEEPALIVE_S)


# -- bodies ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("framing", [b"Content-Length: 1000", b"Transfer-Encoding: chunked"])
def test_stalled_upload(hurried: Stage, framing: bytes, dialect: str) -> None:
    """An upload that stops coming: 408, and my provider gets a visibly broken one."""
    caller, upstream = hurried.sends(request(b"POST", DIALECTS[dialect], framing), chunk(b"a part of it"))
    upstream.read_head()
    with _Took() as took:
        returned = caller.read_message()
    took.assert_about(SHORT_S)
    assert error_of(returned) == (408, b"body_idle_timeout", b"proxy")
    assert caller.is_closed_within(1.0)
    with pytest.raises((ConnectionError, EOFError)):
        upstream.read_until(END)
    assert hurried.proxy.access_event(request_id=id_of(returned))["end_reason"] == "body_idle_timeout"


def test_stalled_json(hurried: Stage) -> None:
    """One that stops while it is still looked at is never heard of by the provider."""
    caller = hurried.caller()
    caller.send(request(b"POST", b"/openai/v1/x", b"Content-Length: 100"), b'{"messages":')
    assert error_of(caller.read_message()) == (408, b"body_idle_timeout", b"proxy")
    assert hurried.upstream.is_untouched(0.05)


def test_upload_that_is_asked_for(hurried: Stage) -> None:
    """A caller that waits for 100 Continue and then says nothing is let go as well."""
    caller = hurried.caller()
    caller.send(request(b"POST", b"/openai/v1/x", b"Content-Length: 100", b"Expect: 100-continue"))
    assert caller.read_head().status == 100
    assert error_of(caller.read_message()) == (408, b"body_idle_timeout", b"proxy")


# -- readers -----------------------------------------------------------------------------------------------------------


def _flood(upstream: Wire, stop: threading.Event) -> None:
    """Stream, as one chunk of which there is always more, until told to stop or until the connection ends."""
    upstream.send(b"ffffffff\r\n")
    upstream.socket.settimeout(0.1)
    while not stop.is_set():
        try:
            upstream.socket.send(b"x" * 8000)
        except TimeoutError:
            pass
        except OSError:
            return


def test_stalled_reader(hurried: Stage) -> None:
    """A caller that takes nothing of its stream is cut, and so is my provider's work for it."""
    caller = hurried.caller(receive_buffer_bytes=8192)
    caller.send(STREAM)
    upstream = hurried.upstream.receive()
    upstream.read_message()
    upstream.send(STREAM_HEAD)
    head = caller.read_head()
    with _Took() as took:
        upstream.fill(chunk(b"x" * 8000), for_s=SHORT_S / 2, limit_bytes=64 << 20)
        assert upstream.is_closed_within(2.0)
    assert SHORT_S - 0.05 <= took.s < SHORT_S + LATE_S + 1.0
    assert hurried.proxy.access_event(request_id=id_of(head))["end_reason"] == "write_idle_timeout"


def test_reader_of_a_whole_answer(hurried: Stage) -> None:
    """One that does not take the end of an answer that is complete holds its connection no longer either."""
    fds = f"/proc/{hurried.proxy.pid}/fd"
    assert hurried.is_served()
    before = len(os.listdir(fds))
    caller = hurried.caller(receive_buffer_bytes=8192)
    caller.send(get(b"/openai/v1/x", b"Connection: close"))
    upstream = hurried.upstream.receive()
    upstream.read_message()
    body = b"x" * (8 << 20)
    sender = threading.Thread(target=_send, args=(upstream, answer(body=body)))
    sender.start()
    caller.read_head()
    sender.join(5.0)
    assert not sender.is_alive()
    deadline_s = time.monotonic() + 3.0
    while len(os.listdir(fds)) > before and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert len(os.listdir(fds)) <= before


def _send(wire: Wire, data: bytes) -> None:
    try:
        wire.send(data)
    except OSError:
        pass


# -- who is slow and not stalled ---------------------------------------------------------------------------------------


def test_silent_stream(hurried: Stage) -> None:
    """A model that thinks, before its answer and within it, longer than any deadline towards callers is waited for."""
    caller, upstream = hurried.sends(STREAM)
    upstream.read_message()
    time.sleep(3 * SHORT_S)
    upstream.send(STREAM_HEAD, chunk(b"data: 1\n\n"))
    assert caller.read_head().status == 200
    assert caller.read_chunk() == b"data: 1\n\n"
    time.sleep(KEEPALIVE_S + 2 * SHORT_S)
    upstream.send(chunk(b"data: 2\n\n"), END)
    assert caller.read_chunk() == b"data: 2\n\n"
    assert caller.read_chunk() == b""


def test_think_time(hurried: Stage) -> None:
    """Two seconds between two requests of a connection are nothing."""
    caller = hurried.caller()
    for think_s in (2.0, 0.0):
        caller.send(get())
        upstream = hurried.upstream.receive()
        upstream.read_message()
        upstream.send(OK)
        assert caller.read_message().body == b"ok"
        time.sleep(think_s)


@pytest.mark.parametrize("framing", [b"Content-Length: 8", b"Transfer-Encoding: chunked"])
def test_slow_steady_upload(hurried: Stage, framing: bytes) -> None:
    """An upload that comes a little at a time may take as long as it likes."""
    wrap: Callable[[bytes], bytes] = chunk if b"chunked" in framing else bytes
    caller, upstream = hurried.sends(request(b"POST", b"/openai/v1/files", framing), wrap(b"0"))
    for number in range(1, 8):
        time.sleep(0.25)
        caller.send(wrap(b"%d" % number))
    if b"chunked" in framing:
        caller.send(END)
    assert upstream.read_message().body == b"01234567"
    upstream.send(OK)
    assert caller.read_message().body == b"ok"


def test_slow_steady_reader(hurried: Stage) -> None:
    """A caller that reads a little at a time, and lets everything wait in between, may take as long as it likes."""
    caller = hurried.caller(receive_buffer_bytes=8192)
    caller.send(STREAM)
    upstream = hurried.upstream.receive()
    upstream.read_message()
    upstream.send(STREAM_HEAD)
    head = caller.read_head()
    stop = threading.Event()
    flood = threading.Thread(target=_flood, args=(upstream, stop))
    flood.start()
    try:
        for _ in range(12):
            time.sleep(0.25)
            assert len(caller.read(20_000)) == 20_000
    finally:
        stop.set()
        flood.join()
    time.sleep(0.4)
    assert not [each for each in hurried.proxy.events() if each.get("request_id") == id_of(head)]  # it has not ended


# -- the same towards the upstream -------------------------------------------------------------------------------------


@pytest.fixture
def stuck() -> Iterator[Stage]:
    """A proxy that gives a provider a second to take something of an upload."""
    upstream = Upstream()
    config = {"providers": all_providers(upstream.url), "upstream": {"idle_timeout_s": UPLOAD_S}}
    with running_proxy(config) as proxy:
        stage = Stage(proxy, upstream)
        yield stage
        assert stage.is_served()
        stage.clear()
    upstream.close()


def test_upload_that_is_not_taken(stuck: Stage) -> None:
    """A provider that stops reading in mid-upload is given up with a 504, and the caller is told at once."""
    caller, upstream = stuck.sends(request(b"PUT", b"/openai/v1/f", b"Content-Length: %d" % (1 << 30)), b"x")
    upstream.read_head()
    caller.fill(b"x" * 65_536, for_s=0.3, limit_bytes=256 << 20)
    returned = caller.read_message()
    assert error_of(returned) == (504, b"upstream_upload_timeout", b"upstream")
    assert upstream.is_closed_within(1.0)


def test_upload_that_is_taken_slowly(stuck: Stage) -> None:
    """One that is taken a little at a time is not."""
    body = b"x" * (12 << 20)
    caller = stuck.caller()
    sender = threading.Thread(target=_send, args=(caller, post(body, b"/openai/v1/f", b"Content-Type: a/b")))
    sender.start()
    upstream = stuck.upstream.receive()
    upstream.read_head()
    for _ in range(8):
        upstream.read(1 << 20)
        time.sleep(0.4)
    upstream.read(4 << 20)
    sender.join(5.0)
    upstream.send(OK)
    assert caller.read_message().body == b"ok"
