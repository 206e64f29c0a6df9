"""Callers over TLS that do not shake hands as they should: each is let go in time, and costs nobody else anything."""

from __future__ import annotations

import os
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.live.certificates import Authority
from tests.live.conversation import Stage, get
from tests.live.proxy import all_providers, running_proxy
from tests.live.upstream import HOST, Upstream
from tests.live.wire import LIMIT_S, Wire, wait_until

HEADER_S: Final = 0.6
LATE_S: Final = 0.8
"""How much later than due a deadline may be seen here."""


@pytest.fixture(scope="module")
def _hurried(authority: Authority) -> Iterator[Stage]:
    upstream = Upstream()
    certificate, key = authority.certificate("hurried", "localhost")
    config = {"providers": all_providers(upstream.url), "server": {"header_timeout_s": HEADER_S}}
    port = f"ssl:0:interface={HOST}:privateKey={key}:certKey={certificate}"
    with running_proxy(config, port=port, tls=authority.client_context()) as proxy:
        yield Stage(proxy, upstream)
    upstream.close()


@pytest.fixture
def hurried(_hurried: Stage) -> Iterator[Stage]:
    """A proxy on a TLS port that does not wait long for a first request; it serves after the test as before it."""
    yield _hurried
    assert _is_live(_hurried)
    _hurried.clear()


def _is_live(stage: Stage) -> bool:
    """Whether somebody who speaks TLS is served at once."""
    began_s = time.monotonic()
    caller = stage.caller()
    caller.send(get(b"/health/live", b"Connection: close"))
    return caller.read_message().status == 200 and time.monotonic() - began_s < 1.0


def _plain(stage: Stage) -> Wire:
    """A connection to the TLS port on which nothing was said."""
    wire = Wire(socket.create_connection(stage.proxy.address, LIMIT_S))
    stage.callers.append(wire)
    return wire


def _hello() -> bytes:
    """A ClientHello."""
    context = ssl.create_default_context()
    outgoing = ssl.MemoryBIO()
    tls = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


HELLO: Final = _hello()
BEGINNINGS: Final = {"nothing": b"", "half a record": HELLO[:4], "half a hello": HELLO[:100], "a hello": HELLO}


@pytest.mark.parametrize("said", BEGINNINGS.values(), ids=BEGINNINGS)
def test_stalled(hurried: Stage, said: bytes) -> None:
    """A handshake that does not go on is ended by `server.header_timeout_s`; others are served meanwhile."""
    began_s = time.monotonic()
    caller = _plain(hurried)
    caller.send(said)
    assert _is_live(hurried)
    assert caller.is_closed_within(HEADER_S + LATE_S)
    assert time.monotonic() - began_s >= HEADER_S - 0.05


def test_dripping(hurried: Stage) -> None:
    """The time is for all of it: one byte now and then does not make it longer."""
    caller = _plain(hurried)
    began_s = time.monotonic()
    for byte in HELLO[:200]:
        if caller.poll(0.1):
            break
        caller.send(bytes((byte,)))
    assert caller.is_closed_within(0.2)
    assert HEADER_S - 0.05 <= time.monotonic() - began_s < HEADER_S + LATE_S


def test_handshake_and_then_nothing(hurried: Stage) -> None:
    """Nor does a handshake that succeeds: what is waited for is a request."""
    began_s = time.monotonic()
    caller = hurried.caller()
    assert caller.is_closed_within(HEADER_S + LATE_S)
    assert time.monotonic() - began_s >= HEADER_S - 0.1


@pytest.mark.parametrize(
    "said",
    [
        get(b"/health/live"),
        b"SSH-2.0-OpenSSH_9\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10" + b"\x01" * 37,
        b"\x16\x03\x01\xff\xff" + b"\x01" * 66_000,
        b"\x16\x03\x01\x40\x00\x01\xff\xff\xff" + b"\x00" * 16_380,
        b"\x17\x03\x03\x00\x10" + b"\x00" * 16,
        b"\x15\x03\x01\x00\x02\x02\x28",
        b"\x00" * 1000,
    ],
    ids=["HTTP", "SSH", "h2", "SSLv2", "a long record", "a long hello", "data", "an alert", "zeros"],
)
def test_no_tls(hurried: Stage, said: bytes) -> None:
    """Plain HTTP and whatever else is no TLS gets at most an alert, never an answer, and is let go in time."""
    caller = _plain(hurried)
    got = b""
    try:
        caller.send(said)
        while data := caller.read_some():
            got += data
    except ConnectionError:
        pass
    assert got[:1] in (b"", b"\x15")
    assert len(got) <= 7


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
def test_old_versions(hurried: Stage, authority: Authority, version: ssl.TLSVersion) -> None:
    """A caller that speaks nothing newer than TLS 1.1 is told in the handshake that its version is not spoken."""
    context = authority.client_context()
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    context.maximum_version = version
    context.minimum_version = version
    with socket.create_connection(hurried.proxy.address, LIMIT_S) as tcp, pytest.raises(ssl.SSLError) as refused:
        context.wrap_socket(tcp, server_hostname="localhost")
    assert refused.value.reason == "TLSV1_ALERT_PROTOCOL_VERSION"


def _descriptors(stage: Stage) -> int:
    return len(os.listdir(f"/proc/{stage.proxy.pid}/fd"))


def _fin(tcp: socket.socket) -> None:
    tcp.close()


def _reset(tcp: socket.socket) -> None:
    tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    tcp.close()


@pytest.mark.parametrize("leave", [_fin, _reset], ids=["FIN", "RST"])
def test_cut(hurried: Stage, leave: Callable[[socket.socket], None]) -> None:
    """Two hundred handshakes that are cut, at every stage, leave no descriptor and no line of error behind."""
    assert _is_live(hurried)
    hurried.clear()
    before = _descriptors(hurried)
    for _ in range(50):
        for said in BEGINNINGS.values():
            tcp = socket.create_connection(hurried.proxy.address, LIMIT_S)
            tcp.sendall(said)
            leave(tcp)
    wait_until(lambda: _descriptors(hurried) <= before, HEADER_S + LATE_S)


def test_a_certificate_of_the_caller_is_not_asked_for(hurried: Stage, authority: Authority, tmp_path: Path) -> None:
    """A caller that has a certificate of its own, whoever signed it, is served as any other."""
    context = authority.client_context()
    context.load_cert_chain(*Authority(tmp_path).certificate("caller", "caller.test"))
    with (
        socket.create_connection(hurried.proxy.address, LIMIT_S) as tcp,
        context.wrap_socket(tcp, server_hostname="localhost") as tls,
    ):
        tls.sendall(get(b"/health/live"))
        assert tls.recv(65_536).startswith(b"HTTP/1.1 200 ")
