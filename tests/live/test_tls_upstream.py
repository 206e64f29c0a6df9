"""TLS towards a provider, record by record: what its end of the connection sees before the proxy trusts it.

That a provider with a wrong certificate is answered for with the right error is in test_no_connection.py and
test_ways_to_a_provider.py. Here the provider's end is played by hand, so that it is known what was sent to it, also
after decryption: of a handshake that did not succeed, nothing but the handshake.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import pytest

from tests.live.certificates import Authority
from tests.live.conversation import OK, Stage, error_of, post
from tests.live.proxy import running_proxy
from tests.live.upstream import HOST, Upstream

CONNECT_S: Final = 0.6
KEY: Final = b"sk-live-not-a-key"
NAMES: Final = (HOST, "localhost")

WRONG: Final[dict[str, tuple[tuple[str, ...], dict[str, bool]]]] = {
    "self-signed": (NAMES, {"self_signed": True}),
    "expired": (NAMES, {"expired": True}),
    "not-yet-valid": (NAMES, {"not_yet_valid": True}),
    "wrong-name": (("other.test", "127.0.0.2"), {}),
    "address-as-a-name": (("*.0.0.1", "*"), {}),
    "name-in-the-subject": (NAMES, {"subject_only": True}),
    "for-clients": (NAMES, {"for_clients": True}),
}
"""Names and faults of certificates that prove nothing."""

VERSIONS: Final = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
OLD: Final = {"1.0": ssl.TLSVersion.TLSv1, "1.1": ssl.TLSVersion.TLSv1_1}
EVERY: Final = (*WRONG, "unknown-authority")


class FarEnd:
    """A provider's end of one TLS connection, moved by hand.

    :ivar received: what came, as it came.
    :ivar complete: whether the handshake was.
    """

    def __init__(self, tcp: socket.socket, context: ssl.SSLContext) -> None:
        self.tcp = tcp
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_side=True)
        self.received = b""
        self.complete = False

    def take(self) -> bool:
        """Receive once, and go on with the handshake; False at the end of the connection."""
        try:
            data = self.tcp.recv(65_536)
        except ConnectionError:
            data = b""
        self.received += data
        self._in.write(data)
        if not self.complete:
            try:
                self._tls.do_handshake()
                self.complete = True
            except ssl.SSLWantReadError:
                pass
        return bool(data)

    def flight(self) -> bytes:
        """What this end has to send next."""
        return self._out.read()

    def plaintext(self) -> bytes:
        """What was said within TLS."""
        said = b""
        while self.complete:
            try:
                data = self._tls.read()
            except ssl.SSLError:
                break
            if not data:
                break
            said += data
        return said

    def run(self) -> bytes:
        """Do all that a server does until the connection ends; returns what it was told within TLS."""
        going = True
        try:
            while going:
                going = self.take()
                self.tcp.sendall(self.flight())
        except ssl.SSLError:
            with contextlib.suppress(ConnectionError):
                self.tcp.sendall(self.flight())  # the alert
            while self.take_raw():
                pass
        except ConnectionError:
            pass
        return self.plaintext()

    def take_raw(self) -> bool:
        """Receive once, whatever it is."""
        try:
            data = self.tcp.recv(65_536)
        except ConnectionError:
            return False
        self.received += data
        return bool(data)


@dataclass
class World:
    """A proxy that trusts a private authority, and an upstream whose context is another for each provider."""

    stage: Stage
    contexts: dict[str, ssl.SSLContext]
    upstreams: dict[str, Upstream]

    def asks(self, name: str) -> tuple[socket.socket, Callable[[], tuple[int, bytes | None, bytes | None]]]:
        """A caller has sent a key to this provider: the connection that came, and what the caller is told at last."""
        caller = self.stage.caller()
        caller.send(post(b"{}", b"/%b/v1/x" % name.encode(), b"Authorization: Bearer " + KEY))
        return self.upstreams[name].accept_tcp(), lambda: error_of(caller.read_message())


@pytest.fixture(scope="module")
def world(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A proxy whose providers speak TLS of every kind."""
    foreign = Authority(tmp_path_factory.mktemp("foreign"))
    contexts = {
        name: authority.server_context(f"matrix-{name}", *names, **wrong) for name, (names, wrong) in WRONG.items()
    }
    contexts["unknown-authority"] = foreign.server_context("foreign", *NAMES)
    contexts["good"] = authority.server_context("matrix-good", *NAMES)
    contexts["own-authority"] = foreign.server_context("foreign-2", *NAMES)
    upstreams = {name: Upstream() for name in contexts}
    providers = {
        name: {"kind": "openai-compatible", "base_url": f"https://{HOST}:{upstream.port}"}
        for name, upstream in upstreams.items()
    }
    providers["own-authority"]["upstream"] = {"ca_file": str(foreign.ca_file)}  # type: ignore[assignment]
    config = {
        "providers": providers,
        "upstream": {"ca_file": str(authority.ca_file), "connect_timeout_s": CONNECT_S},
    }
    with running_proxy(config) as proxy:
        yield World(Stage(proxy, upstreams["good"]), contexts, upstreams)
    for upstream in upstreams.values():
        upstream.close()


def only(context: ssl.SSLContext, version: ssl.TLSVersion) -> ssl.SSLContext:
    """Let ``context`` speak one version alone."""
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    context.maximum_version = version
    context.minimum_version = version
    return context


# -- certificates ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", EVERY)
def test_wrong_certificates(world: World, name: str, version: str) -> None:
    """A provider that cannot prove who it is sees a ClientHello and an alert: no key, no path, nothing of a request."""
    connected, told = world.asks(name)
    far = FarEnd(connected, only(world.contexts[name], VERSIONS[version]))
    assert far.run() == b""
    hello = 5 + int.from_bytes(far.received[3:5], "big")
    assert far.received[:1] == b"\x16"
    # A Finished of ours is what a server needs before it reads any request; behind it one would have come at once.
    assert not far.complete
    assert len(far.received) - hello <= 64, "more than an alert"
    connected.close()
    assert told() == (502, b"upstream_tls_failed", b"upstream")
    assert world.upstreams[name].is_untouched(0.02)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ["good", "own-authority"])
def test_good_certificates(world: World, name: str, version: str) -> None:
    """The authority of `upstream.ca_file` is trusted, and so is the one of a provider's own `ca_file` there alone."""
    caller = world.stage.caller()
    caller.send(post(b"{}", b"/%b/v1/x" % name.encode(), b"Authorization: Bearer " + KEY))
    connected = world.upstreams[name].accept_tcp()
    tls = only(world.contexts[name], VERSIONS[version]).wrap_socket(connected, server_side=True)
    said = b""
    while not said.endswith(b"\r\n\r\n{}"):
        said += tls.recv(65_536)
    assert KEY in said
    tls.sendall(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    assert caller.read_message().body == b"ok"
    tls.close()


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
@pytest.mark.parametrize("version", OLD)
def test_old_versions(world: World, authority: Authority, version: str) -> None:
    """A provider that speaks nothing newer than TLS 1.1 is refused, though its certificate is good."""
    context = authority.server_context("matrix-old", *NAMES)
    context.set_ciphers("ALL:@SECLEVEL=0")
    only(context, OLD[version])
    assert _shakes_hands(context, authority), "this Python can no longer play such a server"
    connected, told = world.asks("good")
    far = FarEnd(connected, context)
    assert far.run() == b""
    assert not far.complete
    connected.close()
    assert told() == (502, b"upstream_tls_failed", b"upstream")


def _shakes_hands(server: ssl.SSLContext, authority: Authority) -> bool:
    """Whether a lenient client and ``server`` agree."""
    client = authority.client_context()
    client.set_ciphers("ALL:@SECLEVEL=0")
    client.minimum_version = ssl.TLSVersion.TLSv1
    client.maximum_version = ssl.TLSVersion.TLSv1_1
    one, other = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (client.wrap_bio(one, other, server_hostname="localhost"), server.wrap_bio(other, one, server_side=True))
    done: set[int] = set()
    for _ in range(6):
        for number, end in enumerate(ends):
            try:
                end.do_handshake()
                done.add(number)
            except ssl.SSLWantReadError:
                pass
    return len(done) == len(ends)


# -- handshakes that do not go on --------------------------------------------------------------------------------------


def _reset(tcp: socket.socket) -> None:
    tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    tcp.close()


def _fin(tcp: socket.socket) -> None:
    tcp.shutdown(socket.SHUT_WR)


PHASES: Final = ("nothing", "half a record", "half a flight")


def _goes_as_far_as(world: World, connected: socket.socket, phase: str) -> FarEnd:
    """Play the server up to ``phase``."""
    far = FarEnd(connected, world.contexts["good"])
    while not (flight := far.flight()):
        assert far.take()
    connected.sendall({"nothing": b"", "half a record": flight[:3], "half a flight": flight[: len(flight) // 2]}[phase])
    return far


@pytest.mark.parametrize("leave", [_fin, _reset], ids=["FIN", "RST"])
@pytest.mark.parametrize("phase", PHASES)
def test_cut_handshake(world: World, phase: str, leave: Callable[[socket.socket], None]) -> None:
    """A handshake that is cut anywhere: 502 at once, nothing of the request was shown, and nobody tries again."""
    connected, told = world.asks("good")
    far = _goes_as_far_as(world, connected, phase)
    began_s = time.monotonic()
    leave(connected)
    assert told() == (502, b"upstream_tls_failed", b"upstream")
    assert time.monotonic() - began_s < CONNECT_S
    assert far.received[:1] == b"\x16"
    if leave is _fin:
        shown = len(far.received)
        while far.take_raw():
            pass
        assert len(far.received) - shown <= 64, "more than an alert"
    connected.close()
    assert world.stage.upstream.is_untouched(0.02)


def test_cut_before_the_handshake(world: World) -> None:
    """The same for a connection that is reset as soon as it is there, which may be before the proxy has seen it."""
    connected, told = world.asks("good")
    _reset(connected)
    status, name, _ = told()
    assert (status, name) in ((502, b"upstream_tls_failed"), (502, b"upstream_connect_failed"))


def test_stalled_handshakes(world: World) -> None:
    """A handshake that stops anywhere ends with `connect_timeout_s`: 504, and the connection is closed."""
    began_s = time.monotonic()
    stalled = []
    for phase in PHASES:
        connected, told = world.asks("good")
        stalled.append((_goes_as_far_as(world, connected, phase), told))
    for far, told in stalled:
        assert told() == (504, b"upstream_connect_timeout", b"upstream")
        while far.take_raw():
            pass
        assert not far.complete
        far.tcp.close()
    assert CONNECT_S - 0.1 <= time.monotonic() - began_s < CONNECT_S + 1.0


def test_dripping_handshake(world: World) -> None:
    """The time is for all of it: a provider that sends a byte now and then gets no more of it."""
    connected, told = world.asks("good")
    far = FarEnd(connected, world.contexts["good"])
    while not (flight := far.flight()):
        assert far.take()
    began_s = time.monotonic()
    try:
        for byte in flight[:200]:
            connected.sendall(bytes((byte,)))
            time.sleep(0.05)
    except ConnectionError:
        pass
    assert time.monotonic() - began_s < CONNECT_S + 1.0
    assert told() == (504, b"upstream_connect_timeout", b"upstream")
    connected.close()


def test_garbage_in_the_handshake(world: World) -> None:
    """What is no TLS at all is refused at once: a banner, plain HTTP, a record of impossible length."""
    for garbage in (b"SSH-2.0-OpenSSH_9\r\n", OK, b"\x16\x03\x03\xff\xff" + b"x" * 70_000, b"\x00" * 100):
        connected, told = world.asks("good")
        try:
            connected.sendall(garbage)
        except ConnectionError:
            pass
        assert told() == (502, b"upstream_tls_failed", b"upstream")
        connected.close()
