"""The pool at close quarters: which connection is taken, and things that happen in the very same moment.

A proxy that is stopped (SIGSTOP) finds two things at once when it goes on: what came on an idle connection, and the
request that would be sent on it. So what is otherwise a race of microseconds happens each time.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.live.conversation import OK, Stage, answer, get, post
from tests.live.proxy import Proxy, running_proxy
from tests.live.upstream import HOST, Upstream
from tests.live.wire import Wire, wait_until

TIMED_OUT = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 4\r\nConnection: close\r\n\r\nEVIL"


@contextlib.contextmanager
def stopped(proxy: Proxy) -> Iterator[None]:
    """The proxy does not run while this block does."""
    pid = proxy._process.pid
    status = Path(f"/proc/{pid}/stat")
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: status.read_text().rpartition(")")[2].split()[0] == "T")
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def under_way(stage: Stage, count: int) -> list[tuple[Wire, Wire]]:
    """So many requests at once, each with its caller and its connection to the upstream, which has read it."""
    pairs = []
    for _ in range(count):
        caller, upstream = stage.sends(get())
        upstream.read_message()
        pairs.append((caller, upstream))
    return pairs


def is_answered(caller: Wire, upstream: Wire) -> bool:
    """Answer a request there, and see the answer here."""
    upstream.send(OK)
    return caller.read_message().body == b"ok"


def served(stage: Stage, data: bytes) -> Wire:
    """One request that is answered; the upstream's connection that it came on."""
    caller, upstream = stage.sends(data)
    upstream.read_message()
    assert is_answered(caller, upstream)
    return upstream


def test_the_last_used_is_the_next(stage: Stage) -> None:
    """Of several idle connections the one is taken that was used last: it is the least likely to be dead."""
    pairs = under_way(stage, 3)
    one, two, three = (upstream for _, upstream in pairs)
    for place in (0, 2, 1):
        assert is_answered(*pairs[place])
    again = under_way(stage, 3)
    assert [upstream for _, upstream in again] == [two, three, one]
    for pair in again:
        assert is_answered(*pair)
    assert served(stage, get()) is one


def ends(wire: Wire) -> None:
    """Close in peace; the stopped proxy cannot answer TLS's closing alert, so that is not waited for."""
    wire.socket.settimeout(0.05)
    wire.end()


def times_out(wire: Wire) -> None:
    """Say so, and close."""
    wire.send(TIMED_OUT)
    ends(wire)


LEAVINGS: dict[str, Callable[[Wire], None]] = {
    "a late 408": lambda wire: wire.send(TIMED_OUT),
    "a late 408 and a close": times_out,
    "garbage": lambda wire: wire.send(b"\x00\xff garbage"),
    "an empty line": lambda wire: wire.send(b"\r\n"),
    "a close": ends,
    "a reset": Wire.reset,
}


@pytest.mark.parametrize("first", ["upstream", "caller"])
@pytest.mark.parametrize("leaves", LEAVINGS.values(), ids=LEAVINGS)
def test_in_the_same_moment(either_stage: Stage, leaves: Callable[[Wire], None], first: str) -> None:
    """A POST that comes together with the end of the connection just works: on a new one, and sent once."""
    stage = either_stage
    upstream = served(stage, get())
    caller = stage.caller()
    with stopped(stage.proxy):
        if first == "caller":
            caller.send(post(b"once"))
        leaves(upstream)
        if first == "upstream":
            caller.send(post(b"once"))
    stage.upstream.connections.remove(upstream)
    again = stage.upstream.receive()
    assert again.read_message().body == b"once"
    again.send(answer(body=b"mine"))
    returned = caller.read_message()
    assert (returned.status, returned.body) == (200, b"mine")
    assert stage.upstream.is_untouched(0.05)
    with contextlib.suppress(OSError):  # it is closed already, with TLS or without
        upstream.close()


def test_many_at_the_same_moment(stage: Stage) -> None:
    """Ten idle connections that all end at once cost ten requests nothing."""
    callers = under_way(stage, 10)
    for pair in callers:
        assert is_answered(*pair)
    with stopped(stage.proxy):
        for caller, _ in callers:
            caller.send(post(b"once"))
        for _, upstream in callers:
            upstream.send(TIMED_OUT)
            stage.upstream.forget(upstream)
    for _ in callers:
        again = stage.upstream.receive()
        assert again.read_message().body == b"once"
        again.send(OK)
    assert [caller.read_message().body for caller, _ in callers] == [b"ok"] * 10
    assert stage.upstream.is_untouched(0.05)


@pytest.mark.parametrize("keep_alive", [b"", b"Connection: keep-alive\r\nKeep-Alive: timeout=60\r\n"])
def test_http_1_0_is_not_kept(stage: Stage, keep_alive: bytes) -> None:
    """An upstream that speaks HTTP/1.0 is answered for, and its connection closed, whatever it offers."""
    caller, upstream = stage.sends(get())
    upstream.read_message()
    upstream.send(b"HTTP/1.0 200 OK\r\n" + keep_alive + b"Content-Length: 2\r\n\r\nok")
    returned = caller.read_message()
    assert returned.body == b"ok"
    assert returned.values("keep-alive") == []
    assert upstream.is_closed_within(1.0)
    assert not caller.is_closed_within(0.05)  # the caller's own connection is another matter


def test_no_pool_and_a_forward_proxy() -> None:
    """pool_size 0 keeps no connection. HTTPS_PROXY is for https alone, and its credentials are in nothing written."""
    upstream, forward = Upstream(), Upstream()
    config = {
        "providers": {"openai": {"base_url": upstream.url}, "anthropic": {"base_url": "https://far.test"}},
        "upstream": {"pool_size": 0},
    }
    password = "canary-p@ss"
    credentials = base64.b64encode(f"canary-user:{password}".encode())
    url = f"http://canary-user:canary-p%40ss@{HOST}:{forward.port}"
    with running_proxy(config, HTTPS_PROXY=url, LOG_LEVEL="debug") as proxy:
        stage = Stage(proxy, upstream)
        for _ in range(3):
            kept = served(stage, get())
            assert kept.is_closed_within(1.0)
        assert forward.is_untouched(0.0)

        caller = stage.caller()
        caller.send(post(b"{}", b"/anthropic/v1/messages"))
        tunnel = forward.accept()
        asked = tunnel.read_head()
        assert asked.value("proxy-authorization") == b"Basic " + credentials
        tunnel.send(b"HTTP/1.1 407 Proxy Authentication Required\r\nX: " + credentials + b"\r\n\r\n")
        returned = caller.read_message()
        assert returned.status == 502
        request_id = (returned.value("x-llm-proxy-request-id") or b"").decode()
        proxy.access_event(request_id=request_id)
        written = json.dumps(proxy.events()).encode() + b"\r\n".join(returned.lines) + returned.body
        for secret in (b"canary", credentials):
            assert secret not in written
        stage.clear()
    forward.close()
    upstream.close()
