"""The way to a provider: its name, its addresses, its TLS; and for each way to fail, what the SDK is told of it.

What a request through a forward proxy and a wrong certificate look like from outside is in test_no_connection.py.
"""

from __future__ import annotations

import json
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import pytest

from tests.live.certificates import Authority
from tests.live.conversation import OK, Stage, answer, get, post
from tests.live.names import python_path
from tests.live.proxy import all_providers, running_proxy
from tests.live.upstream import HOST, Upstream, unused_port
from tests.live.wire import LIMIT_S, Message, Wire, wait_until

CONNECT_S: Final = 1.0
SLOW_NAME_S: Final = 0.7
NAME: Final = "api.provider.test"
KEY: Final = b"sk-live-not-a-key"

ENDPOINTS: Final = {
    "openai-compatible": b"/v1/chat/completions",
    "anthropic": b"/v1/messages",
    "gemini": b"/v1beta/models/m:generateContent",
}
KINDS: Final = tuple(ENDPOINTS)

CERTIFICATES: Final[dict[str, tuple[tuple[str, ...], dict[str, bool]]]] = {
    "self-signed": ((NAME,), {"self_signed": True}),
    "wrong-name": (("provider.test", "127.0.0.1"), {}),
    "expired": ((NAME,), {"expired": True}),
}
"""Names and faults of certificates that are not to be trusted."""

STEPS: Final = ("cut", "stall", "no-tls")


def kinds_of(name: str, base_url: str) -> dict[str, dict[str, str]]:
    """A provider of each kind, all at ``base_url``."""
    return {f"{name}-{kind}": {"kind": kind, "base_url": base_url} for kind in KINDS}


def full_listener(host: str = HOST, port: int = 0) -> list[socket.socket]:
    """A listener whose queue is full, so that the kernel drops each SYN: the listener first, then what fills it."""
    sockets = [socket.create_server((host, port), backlog=0)]
    while len(sockets) < 8:
        filler = socket.socket()
        filler.settimeout(0.1)
        sockets.append(filler)
        try:
            filler.connect(sockets[0].getsockname())
        except TimeoutError:
            return sockets
    raise AssertionError("the queue does not fill")


@dataclass
class World:
    """A proxy with a good upstream behind a name and TLS, and the bad ones beside it."""

    stage: Stage
    plain: Upstream
    bad: dict[str, Upstream]
    server_names: list[str | None] = field(default_factory=list)


@pytest.fixture(scope="module")
def _world(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    server_names: list[str | None] = []
    context = authority.server_context("way", NAME)
    context.set_alpn_protocols(["h2", "http/1.1"])
    context.sni_callback = lambda _socket, name, _context: server_names.append(name)
    good = Upstream(context)
    plain = Upstream()
    bad = {
        **{
            name: Upstream(authority.server_context(name, *names, **wrong))
            for name, (names, wrong) in CERTIFICATES.items()
        },
        **{name: Upstream() for name in STEPS},
    }
    full = full_listener()
    silent_first = full_listener("127.0.0.3", plain.port)
    providers = {
        **all_providers(f"https://{NAME}:{good.port}"),
        "plain": {"kind": "openai-compatible", "base_url": plain.url},
        "second": {"kind": "openai-compatible", "base_url": f"http://second.test:{plain.port}"},
        "second-of-six": {"kind": "openai-compatible", "base_url": f"http://six.test:{plain.port}"},
        "behind-silence": {"kind": "openai-compatible", "base_url": f"http://silent.test:{plain.port}"},
        "slow": {"kind": "openai-compatible", "base_url": f"http://slow.test:{plain.port}"},
        "slow-wrong": {"kind": "openai-compatible", "base_url": f"http://slow-wrong.test:{plain.port}"},
        **kinds_of("refused", f"http://{HOST}:{unused_port()}"),
        **kinds_of("full", f"http://{HOST}:{full[0].getsockname()[1]}"),
        **kinds_of("nameless", "http://nobody.test"),
    }
    for name, upstream in bad.items():
        providers |= kinds_of(name, f"https://{NAME}:{upstream.port}")
    addresses = {
        NAME: [HOST],
        "second.test": ["::1", "127.0.0.2", HOST],
        "six.test": ["127.0.0.2", "127.0.0.4", "127.0.0.5", "127.0.0.6", "127.0.0.7", HOST],
        "silent.test": ["127.0.0.3", HOST],
        "slow.test": [HOST],
    }
    delays_s = {"slow.test": SLOW_NAME_S, "slow-wrong.test": SLOW_NAME_S}
    path = python_path(tmp_path_factory.mktemp("names"), addresses, delays_s)
    config = {
        "providers": providers,
        "upstream": {"ca_file": str(authority.ca_file), "connect_timeout_s": CONNECT_S},
    }
    with running_proxy(config, PYTHONPATH=path) as proxy:
        yield World(Stage(proxy, good), plain, bad, server_names)
    for upstream in (good, plain, *bad.values()):
        upstream.close()
    for each in (*full, *silent_first):
        each.close()


@pytest.fixture
def world(_world: World) -> Iterator[World]:
    """The proxy and all that it can reach or not."""
    yield _world
    _world.stage.clear()
    for each in (_world.plain, *_world.bad.values()):
        each.hang_up()


def serves(upstream: Upstream, caller: Wire) -> None:
    """Answer one request there, and see the answer here."""
    wire = upstream.receive()
    wire.read_message()
    wire.send(OK)
    assert caller.read_message().body == b"ok"


# -- what an SDK is told -----------------------------------------------------------------------------------------------


def told(returned: Message, kind: str) -> tuple[int, str]:
    """Status and class of an error of ours, which must be whole in this kind's own shape and say nothing more."""
    status = returned.status
    name = (returned.value("x-llm-proxy-error-class") or b"").decode()
    assert returned.value("x-llm-proxy-error-source") == b"upstream"
    assert returned.value("content-type") == b"application/json"
    body = json.loads(returned.body)
    error = body["error"]
    if kind == "anthropic":
        assert (body["type"], error["type"]) == ("error", "timeout_error" if status == 504 else "api_error")
    elif kind == "gemini":
        assert (error["code"], error["status"]) == (status, "DEADLINE_EXCEEDED" if status == 504 else "UNAVAILABLE")
    else:
        assert (error["type"], error["code"]) == ("server_error", name)
    assert "nothing was sent" in error["message"]
    for secret in (KEY, b".test", b"127.0.0", b"Traceback", b"Error:"):
        assert secret not in returned.body
    return status, name


def ask_for(world: World, name: str, kind: str) -> Wire:
    """A caller that has sent a POST with a key to this provider."""
    caller = world.stage.caller()
    caller.send(post(b"{}", f"/{name}-{kind}".encode() + ENDPOINTS[kind], b"Authorization: Bearer " + KEY))
    return caller


UNREACHABLE = {
    "refused": (502, "upstream_connect_failed", "connect_failed"),
    "nameless": (502, "upstream_name_failed", "connect_failed"),
    "full": (504, "upstream_connect_timeout", "connect_timeout"),
}


@pytest.mark.parametrize("name", UNREACHABLE)
def test_unreachable(world: World, name: str) -> None:
    """The SDK of each provider raises the right class with a sentence of ours, and the log says the same."""
    callers = {kind: ask_for(world, name, kind) for kind in KINDS}
    for kind, caller in callers.items():
        returned = caller.read_message()
        assert told(returned, kind) == UNREACHABLE[name][:2]
        request_id = (returned.value("x-llm-proxy-request-id") or b"").decode()
        event = world.stage.proxy.access_event(request_id=request_id)
        assert (event["error_class"], event["end_reason"]) == UNREACHABLE[name][1:]


def handshake_of(upstream: Upstream) -> tuple[socket.socket, bytes]:
    """The next connection there, and what it began with."""
    connected = upstream.accept_tcp()
    return connected, connected.recv(65_536)


@pytest.mark.parametrize("name", CERTIFICATES)
def test_bad_certificates(world: World, name: str) -> None:
    """A wrong certificate ends the handshake from our side: no byte of a request can have been sent."""
    for kind in KINDS:
        caller = ask_for(world, name, kind)
        with pytest.raises((ssl.SSLError, ConnectionError)):
            world.bad[name].accept()
        assert told(caller.read_message(), kind) == (502, "upstream_tls_failed")
    assert world.bad[name].is_untouched(0.05)


@pytest.mark.parametrize("name", ["cut", "no-tls"])
def test_no_handshake(world: World, name: str) -> None:
    """Whoever closes in the handshake, or does not speak TLS at all, has seen a ClientHello and nothing more."""
    for kind in KINDS:
        caller = ask_for(world, name, kind)
        connected, hello = handshake_of(world.bad[name])
        if name == "no-tls":
            connected.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
        rest = b""
        try:
            connected.shutdown(socket.SHUT_WR)  # of a connection that the proxy may have left already
            while data := connected.recv(65_536):
                rest += data
        except OSError:
            pass
        connected.close()
        assert hello[:1] == b"\x16"
        assert rest[:1] in (b"", b"\x15")  # an alert at most (RFC 8446 section 5.1)
        assert KEY not in hello + rest
        assert told(caller.read_message(), kind) == (502, "upstream_tls_failed")
    assert world.bad[name].is_untouched(0.05)


def test_stalled_handshake(world: World) -> None:
    """A handshake that does not go on is part of the time to connect, and its connection is closed."""
    callers = {kind: ask_for(world, "stall", kind) for kind in KINDS}
    began = time.monotonic()
    handshakes = [handshake_of(world.bad["stall"]) for _ in KINDS]
    for kind, caller in callers.items():
        assert told(caller.read_message(), kind) == (504, "upstream_connect_timeout")
    assert time.monotonic() - began < CONNECT_S + 0.5
    for connected, hello in handshakes:
        assert hello[:1] == b"\x16"
        assert Wire(connected).is_closed_within(0.5)
        connected.close()


# -- names and addresses -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [b"second", b"second-of-six", b"behind-silence"])
def test_all_addresses_are_tried(world: World, name: bytes) -> None:
    """If the first addresses of a name refuse or do not answer, the next one serves, within the time to connect."""
    caller = world.stage.caller()
    began = time.monotonic()
    caller.send(post(b"{}", b"/%b/v1/x" % name))
    serves(world.plain, caller)
    assert time.monotonic() - began < CONNECT_S


def test_slow_names_hold_up_nobody(world: World) -> None:
    """While the resolver is slow with a name, however many ask for it, other providers are served."""
    waiting = []
    began = time.monotonic()
    for _ in range(30):
        caller = world.stage.caller()
        caller.send(post(b"{}", b"/slow-wrong/v1/x"))
        waiting.append(caller)
    other = world.stage.caller()
    other.send(get(b"/second/v1/x"))  # by name, and on a connection of its own
    serves(world.plain, other)
    assert world.stage.is_served()
    assert time.monotonic() - began < SLOW_NAME_S
    for caller in waiting:
        assert told(caller.read_message(), "openai-compatible") == (502, "upstream_name_failed")
    assert time.monotonic() - began < 2 * SLOW_NAME_S


def test_names_are_remembered(world: World) -> None:
    """A name that the resolver was slow with is not asked for again with the next connection."""
    first = world.stage.caller()
    first.send(get(b"/slow/v1/x"))
    serves(world.plain, first)
    world.plain.hang_up()
    began = time.monotonic()
    second = world.stage.caller()
    second.send(get(b"/slow/v1/x"))
    serves(world.plain, second)
    assert time.monotonic() - began < SLOW_NAME_S / 2


# -- TLS ---------------------------------------------------------------------------------------------------------------


def test_tls_as_asked(world: World) -> None:
    """The provider's name is sent (SNI) and HTTP/1.1 asked for (ALPN); Host has name and port."""
    world.server_names.clear()
    _, upstream = world.stage.sends(get())
    assert world.server_names == [NAME]
    assert isinstance(upstream.socket, ssl.SSLSocket)
    assert upstream.socket.selected_alpn_protocol() == "http/1.1"
    assert upstream.socket.version() == "TLSv1.3"
    assert upstream.read_message().value("host") == f"{NAME}:{world.stage.upstream.port}".encode()


def test_tls_is_shaken_once(world: World) -> None:
    """Connections are kept with their TLS: one handshake for many requests."""
    world.server_names.clear()
    for _ in range(5):
        assert world.stage.is_served()
    assert len(world.stage.upstream.connections) == len(world.server_names) == 1


def to_the_end(wire: Wire) -> tuple[Message, bytes, bool]:
    """An answer's head, its chunked body as far as it came, and whether it ended as a chunked body must."""
    head = wire.read_head()
    assert head.value("transfer-encoding") == b"chunked"
    body = b""
    try:
        while data := wire.read_chunk():
            body += data
        return head, body, wire.read_trailers() == []
    except (EOFError, ConnectionError):
        return head, body, False


def test_close_without_an_alert(world: World) -> None:
    """A body that ends with the connection is whole only if TLS says so; otherwise anyone could have cut it."""
    unframed = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nall of it?"
    caller, upstream = world.stage.sends(get())
    upstream.read_message()
    upstream.send(unframed)
    world.stage.upstream.connections.remove(upstream)
    upstream.end()
    assert to_the_end(caller)[1:] == (b"all of it?", True)

    caller, upstream = world.stage.sends(get())
    upstream.read_message()
    upstream.send(unframed)
    world.stage.upstream.forget(upstream)
    head, body, is_whole = to_the_end(caller)
    assert (body, is_whole) == (b"all of it?", False)
    request_id = (head.value("x-llm-proxy-request-id") or b"").decode()
    assert world.stage.proxy.access_event(request_id=request_id)["end_reason"] == "upstream_truncated"


def test_alert_in_mid_body(world: World) -> None:
    """An orderly close of TLS does not make half a body a whole one."""
    caller, upstream = world.stage.sends(get())
    upstream.read_message()
    upstream.send(answer(b"Content-Length: 10", body=None) + b"half")
    world.stage.upstream.connections.remove(upstream)
    upstream.end()
    caller.read_head()
    assert caller.read(4) == b"half"
    assert caller.is_closed_within(1.0)


def test_keys_stay_out_of_the_log(world: World) -> None:
    """After each of these failures, no key is in anything that was written."""
    for name in (*UNREACHABLE, "cut"):
        caller = ask_for(world, name, "gemini")
        if name == "cut":
            handshake_of(world.bad[name])[0].close()
        caller.read_message()
    wait_until(lambda: any(each.get("provider") == "cut-gemini" for each in world.stage.proxy.events()), LIMIT_S)
    assert KEY.decode() not in json.dumps(world.stage.proxy.events())
