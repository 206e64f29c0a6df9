"""No connection to the provider: refused, silent, without a name, not to be trusted, or behind a forward proxy.

What the caller is told, and that nothing of its request was shown to anyone.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator

import pytest

from tests.live.certificates import Authority
from tests.live.conversation import OK, Stage, error_of, get, post
from tests.live.proxy import all_providers, running_proxy
from tests.live.upstream import HOST, Upstream, unused_port

CONNECT_S = 0.5


@pytest.fixture(scope="module")
def _unreachable_stage() -> Iterator[Stage]:
    upstream = Upstream()
    full = _Full()
    config = {
        "providers": {
            **all_providers(upstream.url),
            "full": {"kind": "anthropic", "base_url": f"http://{HOST}:{full.port}"},
            "closed": {"kind": "openai-compatible", "base_url": f"http://{HOST}:{unused_port()}"},
            "nameless": {"kind": "gemini", "base_url": "http://no-such-host.invalid"},
        },
        "upstream": {"connect_timeout_s": CONNECT_S},
    }
    with running_proxy(config) as proxy:
        yield Stage(proxy, upstream)
    upstream.close()
    full.close()


@pytest.fixture
def unreachable(_unreachable_stage: Stage) -> Iterator[Stage]:
    """A proxy with providers that cannot be reached, and little patience with them."""
    yield _unreachable_stage
    _unreachable_stage.clear()


class _Full:
    """A listener whose queue is full: to whoever connects, the kernel does not answer."""

    def __init__(self) -> None:
        self._listener = socket.create_server((HOST, 0), backlog=0)
        self.port: int = self._listener.getsockname()[1]
        self._fillers = []
        for _ in range(3):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex((HOST, self.port))
            self._fillers.append(filler)

    def close(self) -> None:
        for each in (self._listener, *self._fillers):
            each.close()


def test_refused(unreachable: Stage) -> None:
    """Nobody listens: 502 at once, and other providers are served."""
    caller = unreachable.caller()
    started_s = time.monotonic()
    caller.send(post(b"{}", b"/closed/v1/x"))
    assert error_of(caller.read_message()) == (502, b"upstream_connect_failed", b"upstream")
    assert time.monotonic() - started_s < CONNECT_S
    caller.send(get())
    upstream = unreachable.upstream.receive()
    upstream.read_message()
    upstream.send(OK)
    assert caller.read_message().body == b"ok"


def test_connect_timeout(unreachable: Stage) -> None:
    """A host that does not answer at all: 504 after `connect_timeout_s`, and nobody else waits for it."""
    caller = unreachable.caller()
    started_s = time.monotonic()
    caller.send(post(b"{}", b"/full/v1/messages"))
    assert unreachable.is_served()
    assert time.monotonic() - started_s < CONNECT_S
    assert error_of(caller.read_message()) == (504, b"upstream_connect_timeout", b"upstream")
    assert CONNECT_S - 0.1 <= time.monotonic() - started_s < CONNECT_S + 0.5


def test_no_such_name(unreachable: Stage) -> None:
    """A name that does not exist: 502 (or 504, where the resolver itself is silent), and nobody else waits for it."""
    caller = unreachable.caller()
    caller.send(post(b"{}", b"/nameless/v1/x"))
    started_s = time.monotonic()
    assert unreachable.is_served()
    assert time.monotonic() - started_s < 0.4
    returned = caller.read_message()
    assert error_of(returned)[:2] in ((502, b"upstream_name_failed"), (504, b"upstream_connect_timeout"))
    assert b"invalid" not in returned.body.lower().replace(b"invalid_", b"")


def test_caller_leaves_while_connecting(unreachable: Stage) -> None:
    """A caller that does not wait for the connection is forgotten with it."""
    caller = unreachable.caller()
    caller.send(post(b"{}", b"/full/v1/messages"))
    caller.close()
    event = unreachable.proxy.access_event(provider="full", end_reason="client_gone")
    assert event["phase"] == "connecting"


# -- TLS ---------------------------------------------------------------------------------------------------------------


class _Bad:
    """An upstream that is not to be trusted, with this context or without TLS; what it sees of a handshake."""

    def __init__(self, context: ssl.SSLContext | None) -> None:
        self.upstream = Upstream()
        self._context = context

    def handshake_fails(self) -> bool:
        """Take one connection; whether the handshake ends without a byte of a request."""
        connection = self.upstream.accept_tcp()
        try:
            if self._context is None:
                hello = connection.recv(65_536)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                return hello.startswith(b"\x16") and b"Bearer" not in hello
            connection = self._context.wrap_socket(connection, server_side=True)
            return connection.recv(1) == b""
        except (ssl.SSLError, ConnectionError):
            return True
        finally:
            connection.close()


@pytest.fixture(scope="module")
def bad_certificates(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, _Bad]]:
    """One upstream for each way in which a certificate can be wrong."""
    foreign = Authority(tmp_path_factory.mktemp("foreign"))
    bad = {
        "self-signed": _Bad(authority.server_context("self", HOST, self_signed=True)),
        "wrong-name": _Bad(authority.server_context("other", "other.test", "127.0.0.2")),
        "expired": _Bad(authority.server_context("old", HOST, expired=True)),
        "old-version": _Bad(_only_tls_1_1(authority.server_context("tls11", HOST))),
        "unknown-authority": _Bad(foreign.server_context("foreign", HOST)),
        "no-tls": _Bad(None),
    }
    yield bad
    for each in bad.values():
        each.upstream.close()


def _only_tls_1_1(context: ssl.SSLContext) -> ssl.SSLContext:
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning):
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    return context


@pytest.fixture(scope="module")
def _suspicious_stage(authority: Authority, bad_certificates: dict[str, _Bad]) -> Iterator[Stage]:
    good = Upstream(authority.server_context("good", HOST))
    providers = {
        name: {"kind": "openai-compatible", "base_url": f"https://{HOST}:{each.upstream.port}"}
        for name, each in bad_certificates.items()
    }
    config = {
        "providers": {**all_providers(good.url), **providers},
        "upstream": {"ca_file": str(authority.ca_file), "connect_timeout_s": 2},
    }
    with running_proxy(config) as proxy:
        yield Stage(proxy, good)
    good.close()


@pytest.fixture
def suspicious(_suspicious_stage: Stage) -> Iterator[Stage]:
    """A proxy that trusts a private authority, before upstreams with certificates of every kind."""
    yield _suspicious_stage
    _suspicious_stage.clear()


@pytest.mark.parametrize("name", ["self-signed", "wrong-name", "expired", "old-version", "unknown-authority", "no-tls"])
def test_bad_certificates(suspicious: Stage, bad_certificates: dict[str, _Bad], name: str) -> None:
    """A provider that cannot prove who it is gets no byte of a request; the caller a 502 that says why."""
    caller = suspicious.caller()
    caller.send(post(b"{}", b"/%b/v1/x" % name.encode(), b"Authorization: Bearer sk-live-not-a-key"))
    assert bad_certificates[name].handshake_fails()
    returned = caller.read_message()
    assert error_of(returned) == (502, b"upstream_tls_failed", b"upstream")
    assert suspicious.is_served()


def test_good_certificate(suspicious: Stage) -> None:
    """One that is signed by the authority of `upstream.ca_file` is served."""
    assert suspicious.is_served()


# -- through a forward proxy -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def direct(authority: Authority) -> Iterator[Upstream]:
    """An upstream that NO_PROXY exempts."""
    upstream = Upstream(authority.server_context("direct", HOST))
    yield upstream
    upstream.close()


@pytest.fixture(scope="module")
def _tunnel_stage(authority: Authority, direct: Upstream) -> Iterator[Stage]:
    forward = Upstream()
    config = {
        "providers": {
            "openai": {"base_url": "https://far.test"},
            "anthropic": {"base_url": "https://far.test:8443/below"},
            "gemini": {"base_url": direct.url},
        },
        "upstream": {"ca_file": str(authority.ca_file), "connect_timeout_s": 1},
    }
    https_proxy = f"http://user:pa%40ss@{HOST}:{forward.port}"
    with running_proxy(config, HTTPS_PROXY=https_proxy, NO_PROXY=f"other.test,{HOST}") as proxy:
        yield Stage(proxy, forward)
    forward.close()


@pytest.fixture
def tunnel(_tunnel_stage: Stage, direct: Upstream) -> Iterator[Stage]:
    """A proxy that reaches its providers, whose names only the forward proxy knows, through HTTPS_PROXY."""
    yield _tunnel_stage
    _tunnel_stage.clear()
    direct.hang_up()


KEYED = get(b"/openai/v1/models", b"Authorization: Bearer sk-live-not-a-key")


def test_tunnel(tunnel: Stage, authority: Authority) -> None:
    """The forward proxy is asked for a tunnel with its own credentials; the request goes through it, in TLS."""
    caller, forward = tunnel.sends(KEYED)
    connect = forward.read_head()
    assert connect.start == b"CONNECT far.test:443 HTTP/1.1"
    assert connect.lines == [b"Host: far.test:443", b"Proxy-Authorization: Basic dXNlcjpwYUBzcw=="]
    forward.send(b"HTTP/1.1 200 Connection established\r\nProxy-Agent: x\r\n\r\n")
    forward.start_tls(authority.server_context("far", "far.test"))
    arrived = forward.read_message()
    assert arrived.start == b"GET /v1/models HTTP/1.1"
    assert arrived.lines == [b"Host: far.test", b"Authorization: Bearer sk-live-not-a-key"]
    forward.send(OK)
    assert caller.read_message().body == b"ok"
    caller.send(get())
    assert tunnel.upstream.receive() is forward
    forward.read_message()
    forward.send(OK)
    assert caller.read_message().body == b"ok"


def test_tunnel_to_another_port(tunnel: Stage, authority: Authority) -> None:
    """The port of the base URL is the tunnel's, and Host has it too."""
    caller, forward = tunnel.sends(post(b"{}", b"/anthropic/v1/messages"))
    assert forward.read_head().start == b"CONNECT far.test:8443 HTTP/1.1"
    forward.send(b"HTTP/1.0 200 OK\r\n\r\n")
    forward.start_tls(authority.server_context("far", "far.test"))
    arrived = forward.read_message()
    assert arrived.start == b"POST /below/v1/messages HTTP/1.1"
    assert arrived.value("host") == b"far.test:8443"
    forward.send(OK)
    assert caller.read_message().body == b"ok"


@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\n\r\n",
        b"HTTP/1.1 503 No\r\nContent-Length: 2\r\n\r\nno",
        b"HTTP/1.1 200 OK\r\n\r\nunasked",
        b"SSH-2.0-x\r\n\r\n",
        b"",
    ],
    ids=["407", "503", "200 and more", "no HTTP", "a close"],
)
def test_tunnel_refused(tunnel: Stage, reply: bytes) -> None:
    """If the forward proxy refuses, the caller gets a 502 of ours, and no byte of the request is shown to anyone."""
    caller, forward = tunnel.sends(KEYED)
    forward.read_head()
    forward.send(reply)
    if not reply:
        tunnel.upstream.forget(forward)
    returned = caller.read_message()
    assert error_of(returned) == (502, b"upstream_connect_failed", b"upstream")
    assert returned.values("proxy-authenticate") == []
    if reply:
        assert forward.is_closed_within(1.0)


def test_tunnel_to_somebody_else(tunnel: Stage, authority: Authority) -> None:
    """What is at the end of the tunnel has to prove that it is the provider."""
    caller, forward = tunnel.sends(KEYED)
    forward.read_head()
    forward.send(b"HTTP/1.1 200 OK\r\n\r\n")
    with pytest.raises((ssl.SSLError, ConnectionError, EOFError)):
        forward.start_tls(authority.server_context("near", "near.test"))
        forward.read(1)
    assert error_of(caller.read_message()) == (502, b"upstream_tls_failed", b"upstream")


def test_silent_forward_proxy(tunnel: Stage) -> None:
    """The time to connect counts the forward proxy's own."""
    caller, forward = tunnel.sends(KEYED)
    forward.read_head()
    assert error_of(caller.read_message()) == (504, b"upstream_connect_timeout", b"upstream")
    assert forward.is_closed_within(0.5)


def test_no_proxy(tunnel: Stage, direct: Upstream) -> None:
    """What NO_PROXY names is reached directly."""
    caller = tunnel.caller()
    caller.send(get(b"/gemini/v1/models"))
    upstream = direct.receive()
    assert upstream.read_message().value("host") == direct.host
    upstream.send(OK)
    assert caller.read_message().body == b"ok"
    assert tunnel.upstream.is_untouched(0.02)
