"""What the proxy uses: descriptors, memory, processor time, and the turns of its one thread.

Whatever callers and providers do, it comes back to what it had, and nobody waits for somebody else's trouble.
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.live.certificates import Authority
from tests.live.conversation import END, OK, STREAM, STREAM_HEAD, Stage, answer, get, post, request
from tests.live.proxy import Proxy, all_providers, running_proxy
from tests.live.upstream import HOST, Upstream
from tests.live.wire import LIMIT_S, Wire, chunk, wait_until

MIB: Final = 1 << 20
LIVE: Final = get(b"/health/live")
PROBE_S: Final = 2.0
"""How long a probe may take while others make trouble."""


def descriptors(proxy: Proxy) -> int:
    """How many descriptors the process has open."""
    return len(os.listdir(f"/proc/{proxy.pid}/fd"))


def processor_s(proxy: Proxy) -> float:
    """How much processor time the process has used (proc(5): utime and stime)."""
    fields = Path(f"/proc/{proxy.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.fixture(scope="module")
def _own() -> Iterator[Stage]:
    upstream = Upstream()
    with running_proxy({"providers": all_providers(upstream.url)}) as proxy:
        yield Stage(proxy, upstream)
    upstream.close()


@pytest.fixture
def own(_own: Stage) -> Iterator[Stage]:
    """A proxy of these tests alone; after each it has the descriptors that it had before."""
    _own.clear()
    time.sleep(0.2)
    _own.clear()  # what was still on its way there
    assert _own.is_served()
    _own.clear()
    time.sleep(0.2)
    before = descriptors(_own.proxy)
    yield _own
    _own.clear()
    wait_until(lambda: descriptors(_own.proxy) <= before, 8.0)


def probe_s(proxy: Proxy) -> float:
    """How long a new caller waits for a page of the proxy's own."""
    began_s = time.monotonic()
    wire = proxy.connect()
    wire.send(LIVE)
    assert wire.read_message().status == 200
    wire.close()
    return time.monotonic() - began_s


@contextlib.contextmanager
def many_files(count: int) -> Iterator[None]:
    """Let this process, and the programs that it starts, open so many files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < count:
        pytest.skip(f"needs {count} open files, the system allows {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# -- descriptors -------------------------------------------------------------------------------------------------------


def _leaves(own: Stage, leave: Callable[[Wire], None], begun: bool) -> None:
    """A caller that leaves before its answer, or within it."""
    caller, upstream = own.sends(STREAM)
    upstream.read_message()
    if begun:
        upstream.send(STREAM_HEAD, chunk(b"data: 1\n\n"))
        caller.read_head()
    leave(caller)
    assert upstream.is_closed_within(2.0)


def _is_cut(own: Stage, said: bytes, leave: Callable[[Wire], None]) -> None:
    """A provider that goes away."""
    caller, upstream = own.sends(STREAM)
    upstream.read_message()
    upstream.send(said)
    own.upstream.connections.remove(upstream)
    leave(upstream)
    caller.read_head()


def test_nothing_is_left_behind(own: Stage) -> None:
    """After two hundred exchanges that end in every way there are, the proxy has the descriptors that it began with."""
    for _ in range(10):
        for leave in (Wire.close, Wire.reset):
            for begun in (False, True):
                _leaves(own, leave, begun)
            for said in (b"", b"HTTP/1.1 2", b"SSH-2.0\r\n", STREAM_HEAD + b"4\r\nda", answer(body=b"x")[:-1]):
                _is_cut(own, said, leave)
        assert own.is_served()
        caller, upstream = own.sends(request(b"POST", b"/openai/f", b"Content-Length: 9999"), b"a part")
        upstream.read_head()
        caller.reset()
        assert upstream.is_closed_within(2.0)
        own.caller().send(b"GET / HTTP/9.9\r\n\r\n")
        own.caller().send(b"GET /half")
        own.caller()
        own.clear()


# -- crowds ------------------------------------------------------------------------------------------------------------


def test_five_hundred_half_open(own: Stage) -> None:
    """Five hundred connections that say half a head, or nothing, keep nobody from being served."""
    with many_files(2000):
        crowd = [socket.create_connection(own.proxy.address, LIMIT_S) for _ in range(500)]
        for number, each in enumerate(crowd):
            each.sendall((b"", b"GET /openai/v1/mod", b"POST /openai/v1/x HTTP/1.1\r\nHost: x\r\n")[number % 3])
        assert probe_s(own.proxy) < PROBE_S
        assert own.is_served()
        for each in crowd:
            each.close()


def test_uploads_to_a_provider_that_does_not_read(own: Stage) -> None:
    """A hundred uploads of 4 MiB, JSON and not, to a provider that takes nothing: all of them are held back."""
    uploads: list[Wire] = []
    with many_files(2000), own.proxy.memory_bounded(48 * MIB):
        for number in range(100):
            caller = own.caller()
            body = (b'{"messages":["' if number % 2 else b"RIFF") + b"x" * (4 * MIB)
            caller.send(request(b"POST", b"/openai/v1/f", b"Content-Length: %d" % len(body)))
            caller.fill(body[:65_536], for_s=0.03, limit_bytes=4 * MIB - 65_536)
            uploads.append(caller)
        assert probe_s(own.proxy) < PROBE_S
    for caller in uploads:
        caller.reset()
    own.upstream.hang_up()


# -- processor time ----------------------------------------------------------------------------------------------------


def test_waiting_costs_no_time(own: Stage) -> None:
    """Half-closed callers, stalled readers, held uploads and half heads are waited for, not looped over."""
    for _ in range(3):
        caller, upstream = own.sends(STREAM)  # half-closed before the head
        upstream.read_message()
        caller.socket.shutdown(socket.SHUT_WR)
        caller, upstream = own.sends(STREAM)  # half-closed within a stream
        upstream.read_message()
        upstream.send(STREAM_HEAD, chunk(b"x"))
        caller.read_head()
        caller.socket.shutdown(socket.SHUT_WR)
        caller, upstream = own.sends(STREAM + get())  # half-closed behind a second request
        upstream.read_message()
        caller.socket.shutdown(socket.SHUT_WR)
        caller = own.caller(receive_buffer_bytes=8192)  # does not read
        caller.send(STREAM)
        upstream = own.upstream.receive()
        upstream.read_message()
        upstream.send(STREAM_HEAD, b"ffffffff\r\n")
        upstream.fill(b"x" * 65_536, for_s=0.1, limit_bytes=64 * MIB)
        caller, upstream = own.sends(request(b"PUT", b"/openai/f", b"Content-Length: %d" % (1 << 30)), b"x")
        upstream.read_head()
        caller.fill(b"x" * 65_536, for_s=0.1, limit_bytes=64 * MIB)  # is not read
        own.caller().send(b"GET /half")
        own.caller().send(request(b"POST", b"/openai/f", b"Content-Length: 100"), b'{"half":')
        own.caller()
    time.sleep(0.3)
    before_s = processor_s(own.proxy)
    time.sleep(2.0)
    used_s = processor_s(own.proxy) - before_s
    assert used_s < 0.2, f"{used_s} s of 2"
    assert probe_s(own.proxy) < PROBE_S


# -- the one thread ----------------------------------------------------------------------------------------------------


class Lag:
    """Asks the proxy for a page of its own all the time, in a thread, and keeps the worst waits for it.

    What the proxy does between a question and its answer is what it would not be interrupted in; on a machine that is
    busy with other things only its own processor time tells that from being not run at all.

    :ivar worst_s: the most processor time of the proxy within one wait.
    :ivar longest_s: the longest wait.
    :ivar count: how many there were.
    """

    def __init__(self, proxy: Proxy) -> None:
        self._wire = proxy.connect()
        self._running = Path(f"/proc/{proxy.pid}/task/{proxy.pid}/schedstat")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.worst_s = 0.0
        self.longest_s = 0.0
        self.count = 0

    def _used_s(self) -> float:
        return int(self._running.read_text().split()[0]) / 1e9

    def _run(self) -> None:
        while not self._stop.is_set():
            used_s, began_s = self._used_s(), time.monotonic()
            self._wire.send(LIVE)
            self._wire.read_message()
            self.worst_s = max(self.worst_s, self._used_s() - used_s)
            self.longest_s = max(self.longest_s, time.monotonic() - began_s)
            self.count += 1
            time.sleep(0.002)

    def __enter__(self) -> Lag:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._wire.close()
        waits = f"{self.count} waits: {self.longest_s * 1000:.0f} ms at most"
        print(f"{waits}, {self.worst_s * 1000:.0f} ms of work in one")  # noqa: T201 - pytest -s shows it

    def assert_short(self) -> None:
        """Nobody has waited for long."""
        assert self.count
        assert self.worst_s < LAG_S
        assert self.longest_s < PROBE_S


LAG_S: Final = 0.15
"""How long the proxy may work before it answers somebody else: more than one turn of its loop may be in between."""

BOMBS: Final = {
    "brackets": b"[" * (8 * MIB),
    "objects": b'{"a":' * (8 * MIB // 5),
    "a huge integer": b'{"model":' + b"9" * (8 * MIB) + b"}",
    "a huge exponent": b'{"model":1e' + b"9" * (8 * MIB) + b"}",
    "a long string": b'{"messages":"' + b"\\u0041" * (8 * MIB // 6) + b'"}',
    "lone surrogates": b'{"model":"' + b"\\ud800" * MIB + b'"}',
    "the same name": b"{" + b'"model":"m",' * (8 * MIB // 12) + b'"model":"m"}',
    "many numbers": b'{"messages":[' + b"1," * (4 * MIB) + b'1],"model":"m"}',
    "white space": b'{"a":1' + b" " * (8 * MIB) + b',"model":"m"}',
    "no JSON": b"{" + b"\xff\x00" * (4 * MIB),
    "backslashes": b'{"messages":"' + b"\\\\" * (4 * MIB) + b'","model":"m"}',
}


def _sends(wire: Wire, data: bytes) -> threading.Thread:
    def send() -> None:
        with contextlib.suppress(OSError):
            wire.send(data)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


@pytest.mark.parametrize("name", BOMBS)
def test_json_bombs(own: Stage, name: str) -> None:
    """JSON that is made to be hard to read reaches my provider byte for byte; nobody else waits for it."""
    body = BOMBS[name]
    with Lag(own.proxy) as lag:
        caller = own.caller()
        sender = _sends(caller, post(body, b"/openai/v1/chat/completions", b"Content-Type: application/json"))
        upstream = own.upstream.receive()
        arrived = upstream.read_message()
        sender.join()
        upstream.send(OK)
        assert caller.read_message().body == b"ok"
    assert arrived.body == body
    lag.assert_short()


def test_garbage_holds_up_nobody(own: Stage) -> None:
    """Megabytes that are no request, long pipelines and tiny chunks hold up nobody else."""
    with Lag(own.proxy) as lag:
        for data in (
            b"x" * (2 * MIB),
            b"\r\n" * MIB,
            b"GET /" + b"x" * (2 * MIB),
            get(b"/openai/v1/x", *([b"X-A: b"] * 30_000)),
            LIVE * 5000,
            request(b"POST", b"/nowhere", b"Transfer-Encoding: chunked") + chunk(b"x") * 100_000 + END,
        ):
            caller = own.caller()
            sender = _sends(caller, data)
            with contextlib.suppress(ConnectionError):
                while caller.poll(0.5) and caller.read_some():
                    pass
            caller.reset()
            sender.join()
    lag.assert_short()


def test_a_long_answer_in_tiny_chunks(own: Stage) -> None:
    """Nor does an answer in a hundred thousand chunks of a byte, or one with the largest head that is taken."""
    with Lag(own.proxy) as lag:
        caller, upstream = own.sends(STREAM)
        upstream.read_message()
        sender = _sends(upstream, STREAM_HEAD + chunk(b"x") * 100_000 + END)
        assert len(caller.read_message().body) == 100_000
        sender.join()
        for _ in range(20):
            returned = own.returns(answer(*(b"X-%d: %b" % (n, b"y" * 200) for n in range(200))))
            assert returned.status == 200
    lag.assert_short()


def test_handshakes_hold_up_nobody(authority: Authority) -> None:
    """Fifty callers that shake hands at the same moment, and fifty providers' handshakes, hold up nobody for long."""
    upstream = Upstream(authority.server_context("busy", HOST))
    certificate, key = authority.certificate("busy-proxy", "localhost")
    port = f"ssl:0:interface={HOST}:privateKey={key}:certKey={certificate}"
    config = {"providers": all_providers(upstream.url), "upstream": {"ca_file": str(authority.ca_file)}}
    with running_proxy(config, port=port, tls=authority.client_context()) as proxy:
        stage = Stage(proxy, upstream)
        with Lag(proxy) as lag:
            crowd = [socket.create_connection(proxy.address, LIMIT_S) for _ in range(50)]
            threads = [threading.Thread(target=_shake, args=(each, authority)) for each in crowd]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert stage.is_served()
        lag.assert_short()
        stage.clear()
    upstream.close()


def _shake(tcp: socket.socket, authority: Authority) -> None:
    with authority.client_context().wrap_socket(tcp, server_hostname="localhost") as tls:
        assert isinstance(tls, ssl.SSLSocket)
        tls.sendall(LIVE)
        assert tls.recv(65_536).startswith(b"HTTP/1.1 200 ")
