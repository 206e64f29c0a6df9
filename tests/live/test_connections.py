"""Connections to providers: which are kept, which are used again, and what a request is told when none can be had."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Iterator

import pytest

from tests.live.certificates import Authority
from tests.live.conversation import END, OK, STREAM_HEAD, Stage, answer, get, post, request
from tests.live.proxy import all_providers, running_proxy
from tests.live.upstream import HOST, Upstream, unused_port
from tests.live.wire import Message, Wire, chunk

POOL_SIZE = 3
FIRST_BYTE_S = 1.0
IDLE_S = 1.0
POOL_IDLE_S = 2.0
CONNECT_S = 0.5
SWEEP_S = 1.0
"""How much later than due a deadline may be seen."""


@pytest.fixture(scope="module")
def _impatient_stage() -> Iterator[Stage]:
    upstream = Upstream()
    full = _Full()
    config = {
        "providers": {
            **all_providers(upstream.url),
            "full": {"kind": "anthropic", "base_url": f"http://{HOST}:{full.port}"},
            "closed": {"kind": "openai-compatible", "base_url": f"http://{HOST}:{unused_port()}"},
            "nameless": {"kind": "gemini", "base_url": "http://no-such-host.invalid"},
        },
        "upstream": {
            "pool_size": POOL_SIZE,
            "pool_idle_s": POOL_IDLE_S,
            "connect_timeout_s": CONNECT_S,
            "first_byte_timeout_s": FIRST_BYTE_S,
            "idle_timeout_s": IDLE_S,
        },
    }
    with running_proxy(config) as proxy:
        yield Stage(proxy, upstream)
    upstream.close()
    full.close()


@pytest.fixture
def impatient(_impatient_stage: Stage) -> Iterator[Stage]:
    """A proxy with short deadlines and a small pool, and providers that cannot be reached."""
    yield _impatient_stage
    _impatient_stage.clear()


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


def ask(stage: Stage, caller: Wire, data: bytes, reply: bytes = OK) -> Wire:
    """One request on ``caller`` that is answered; returns the upstream's connection that it came on."""
    caller.send(data)
    upstream = stage.upstream.receive()
    upstream.read_message()
    upstream.send(reply)
    caller.read_message()
    return upstream


def error_of(message: Message) -> tuple[int, bytes | None, bytes | None]:
    """Status, class and source of an error of ours."""
    return message.status, message.value("x-llm-proxy-error-class"), message.value("x-llm-proxy-error-source")


# -- kept connections --------------------------------------------------------------------------------------------------


def test_connections_are_kept(stage: Stage) -> None:
    """One request after the other goes over one connection, whoever sends them."""
    first = ask(stage, stage.caller(), get())
    for data in (get(), post(), get(b"/openai/x"), request(b"DELETE", b"/openai/x")):
        assert ask(stage, stage.caller(), data) is first
    caller = stage.caller()
    for _ in range(20):
        assert ask(stage, caller, post()) is first
    assert stage.upstream.is_untouched(0.02)


def test_connections_are_kept_after_streams(stage: Stage) -> None:
    """Also after a stream that ended properly, and after an error of the provider's."""
    stream = STREAM_HEAD + chunk(b"data: 1\n\n") + END
    first = ask(stage, stage.caller(), get(), stream)
    for reply in (answer(status=b"500 X"), stream, answer(status=b"429 Y"), OK):
        assert ask(stage, stage.caller(), get(), reply) is first


def test_one_request_at_a_time(stage: Stage) -> None:
    """A connection that is in use is not shared: the second request gets one of its own."""
    caller, busy = stage.sends(get())
    busy.read_message()
    other = ask(stage, stage.caller(), get())
    assert other is not busy
    busy.send(OK)
    assert caller.read_message().body == b"ok"


def test_each_origin_has_its_own(stage: Stage) -> None:
    """A connection that one provider's key was sent over is not used for another provider, even at one address."""
    first = ask(stage, stage.caller(), get(b"/openai/v1/x"))
    assert ask(stage, stage.caller(), get(b"/anthropic/v1/x")) is not first
    assert ask(stage, stage.caller(), get(b"/openai/v1/x")) is first


def test_pool_size(impatient: Stage) -> None:
    """No more idle connections are kept than the configuration says."""
    callers = []
    for _ in range(POOL_SIZE + 2):
        caller, upstream = impatient.sends(get())
        upstream.read_message()
        callers.append((caller, upstream))
    for caller, upstream in callers:
        upstream.send(OK)
        assert caller.read_message().body == b"ok"
    closed = [upstream.is_closed_within(0.2) for _, upstream in callers]
    assert closed.count(False) == POOL_SIZE


def test_pool_idle(impatient: Stage) -> None:
    """An idle connection is closed after `pool_idle_s`, and not before."""
    upstream = ask(impatient, impatient.caller(), get())
    assert not upstream.is_closed_within(POOL_IDLE_S - 0.3)
    assert upstream.is_closed_within(SWEEP_S + 0.6)


@pytest.mark.parametrize(
    "reply",
    [
        answer(b"Connection: close"),
        answer(b"connection: foo, CLOSE"),
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        OK + b"more than was announced",
        OK + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nEVIL",
        STREAM_HEAD + END + b"\x00",
    ],
    ids=["close", "close in a list", "HTTP/1.0", "surplus", "a second answer", "surplus after chunks"],
)
def test_not_kept(stage: Stage, reply: bytes) -> None:
    """A connection that the provider wants closed, or on which it said more than was asked, serves nobody else."""
    upstream = ask(stage, stage.caller(), get(), reply)
    assert upstream.is_closed_within(1.0)
    for _ in range(5):
        assert stage.is_served()


def test_unasked_bytes_on_an_idle_connection(either_stage: Stage) -> None:
    """What a provider says on an idle connection is nobody's answer."""
    upstream = ask(either_stage, either_stage.caller(), get())
    upstream.send(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 4\r\n\r\nEVIL")
    assert upstream.is_closed_within(1.0)
    assert either_stage.is_served()


def test_an_answer_before_the_question(stage: Stage) -> None:
    """Not even when it comes in the same moment as the next request."""
    for _ in range(20):
        caller = stage.caller()
        upstream = ask(stage, caller, get())
        upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nEVIL")
        caller.send(get())
        again = stage.upstream.receive()
        assert again is not upstream
        again.read_message()
        again.send(OK)
        assert caller.read_message().body == b"ok"


# -- a kept connection that is dead ----------------------------------------------------------------------------------


@pytest.mark.parametrize("leave", [Wire.end, Wire.reset])
def test_closed_while_idle(either_stage: Stage, leave: Callable[[Wire], None]) -> None:
    """A kept connection that the provider has closed is not used: also a POST just works, and is sent once."""
    for _ in range(5):
        upstream = ask(either_stage, either_stage.caller(), get())
        either_stage.upstream.connections.remove(upstream)
        leave(upstream)
        caller, again = either_stage.sends(post(b"once"))
        assert again.read_message().body == b"once"
        again.send(OK)
        assert caller.read_message().body == b"ok"


@pytest.mark.parametrize("leave", [Wire.close, Wire.reset])
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PUT", "DELETE"])
def test_idempotent_requests_are_sent_once_more(stage: Stage, method: str, leave: Callable[[Wire], None]) -> None:
    """If a kept connection dies under an idempotent request, it is sent again on a new one; the log counts it."""
    ask(stage, stage.caller(), get())
    body = b"held" if method == "PUT" else None
    caller, dying = stage.sends(request(method.encode(), b"/openai/v1/x", b"A: 1", body=body))
    first = dying.read_message()
    stage.upstream.connections.remove(dying)
    leave(dying)
    again = stage.upstream.receive()
    assert again.read_message() == first
    again.send(OK if method != "HEAD" else answer(body=None))
    returned = caller.read_message(bodyless=method == "HEAD")
    assert returned.status == 200
    request_id = (returned.value("x-llm-proxy-request-id") or b"").decode()
    assert stage.proxy.access_event(request_id=request_id)["retries"] == 1


def test_once_more_and_no_more(stage: Stage) -> None:
    """If the new connection dies as well, that is the end."""
    ask(stage, stage.caller(), get())
    caller, dying = stage.sends(get())
    dying.read_message()
    stage.upstream.forget(dying)
    again = stage.upstream.receive()
    again.read_message()
    stage.upstream.forget(again)
    assert error_of(caller.read_message()) == (502, b"upstream_reset", b"upstream")
    assert stage.upstream.is_untouched()


@pytest.mark.parametrize("leave", [Wire.close, Wire.reset])
@pytest.mark.parametrize("method", ["POST", "PATCH"])
def test_a_post_is_never_sent_twice(stage: Stage, method: str, leave: Callable[[Wire], None]) -> None:
    """A POST that may have been read is answered 502: it would be paid for twice."""
    for body in (b"{}", b"", b'{"messages":"' + b"x" * 50_000 + b'"}'):
        ask(stage, stage.caller(), get())
        caller, dying = stage.sends(request(method.encode(), b"/openai/v1/x", body=body))
        dying.read_message()
        stage.upstream.connections.remove(dying)
        leave(dying)
        assert error_of(caller.read_message()) == (502, b"upstream_reset", b"upstream")
        assert stage.upstream.is_untouched(0.05)


def test_a_new_connection_that_dies(stage: Stage) -> None:
    """On a new connection nothing was stale: not even a GET is sent again, the provider has just refused it."""
    caller, dying = stage.sends(get())
    dying.read_message()
    stage.upstream.forget(dying)
    assert error_of(caller.read_message()) == (502, b"upstream_reset", b"upstream")
    assert stage.upstream.is_untouched()


def test_an_answer_that_had_begun(stage: Stage) -> None:
    """After the first byte of an answer nothing is sent again, on a kept connection neither."""
    ask(stage, stage.caller(), get())
    caller, dying = stage.sends(get())
    dying.read_message()
    dying.send(b"H")
    stage.upstream.forget(dying)
    assert error_of(caller.read_message())[0] == 502
    assert stage.upstream.is_untouched()


def test_an_upload_that_had_begun(stage: Stage) -> None:
    """A PUT of which a part is gone cannot be sent again."""
    ask(stage, stage.caller(), get())
    caller, dying = stage.sends(request(b"PUT", b"/openai/v1/f", b"Content-Length: 100"), b"x" * 50)
    dying.read_head()
    dying.read(50)
    stage.upstream.forget(dying)
    assert error_of(caller.read_message()) == (502, b"upstream_reset", b"upstream")
    assert stage.upstream.is_untouched()


# -- deadlines ---------------------------------------------------------------------------------------------------------


def test_first_byte_timeout(impatient: Stage) -> None:
    """A provider that does not begin to answer in time: 504, its connection closed, the request not sent again."""
    caller, upstream = impatient.sends(get())
    upstream.read_message()
    started_s = time.monotonic()
    assert error_of(caller.read_message()) == (504, b"upstream_first_byte_timeout", b"upstream")
    assert FIRST_BYTE_S - 0.1 <= time.monotonic() - started_s <= FIRST_BYTE_S + SWEEP_S + 0.5
    assert upstream.is_closed_within(0.5)
    assert impatient.upstream.is_untouched()


def test_first_byte_in_time(impatient: Stage) -> None:
    """The deadline is for the first byte: a stream may take as long as it wants, if it is never silent for too long."""
    caller, upstream = impatient.sends(get())
    upstream.read_message()
    time.sleep(FIRST_BYTE_S * 0.7)
    upstream.send(STREAM_HEAD)
    for number in range(4):
        time.sleep(IDLE_S * 0.6)
        upstream.send_chunk(b"%d" % number)
    upstream.send(END)
    assert caller.read_message().body == b"0123"


def test_a_slow_upload_is_not_a_late_answer(impatient: Stage) -> None:
    """The wait for an answer begins when the request is sent, however long the caller takes to send it."""
    caller, upstream = impatient.sends(request(b"POST", b"/openai/v1/f", b"Content-Length: 5"), b"1")
    upstream.read_head()
    for digit in (b"2", b"3", b"4", b"5"):
        time.sleep(FIRST_BYTE_S * 0.6)
        caller.send(digit)
    assert upstream.read(5) == b"12345"
    upstream.send(OK)
    assert caller.read_message().status == 200


def test_idle_timeout(impatient: Stage) -> None:
    """A stream that falls silent for too long is cut on both sides, visibly."""
    caller, upstream = impatient.sends(get())
    upstream.read_message()
    upstream.send(STREAM_HEAD, chunk(b"data: 1\n\n"))
    head = caller.read_head()
    assert caller.read_chunk() == b"data: 1\n\n"
    started_s = time.monotonic()
    assert caller.read_to_end() == b""
    assert time.monotonic() - started_s <= IDLE_S + SWEEP_S + 0.5
    assert upstream.is_closed_within(0.5)
    request_id = (head.value("x-llm-proxy-request-id") or b"").decode()
    assert impatient.proxy.access_event(request_id=request_id)["end_reason"] == "idle_timeout"


def test_a_reader_that_pauses_is_no_silent_upstream(impatient: Stage) -> None:
    """While the caller is the one who does not read, the provider is not blamed for silence."""
    caller, upstream = impatient.sends(get())
    upstream.read_message()
    size = 16 * 1024 * 1024
    upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
    taken = upstream.fill(b"x" * 65_536, for_s=IDLE_S + SWEEP_S + 0.5, limit_bytes=size)
    assert taken < size
    caller.read_head()
    assert caller.read(taken) == b"x" * taken
    upstream.send(b"y" * (size - taken))
    assert caller.read(size - taken) == b"y" * (size - taken)


# -- no connection -----------------------------------------------------------------------------------------------------


def test_refused(impatient: Stage) -> None:
    """Nobody listens: 502 at once, and other providers are served."""
    caller = impatient.caller()
    started_s = time.monotonic()
    caller.send(post(b"{}", b"/closed/v1/x"))
    assert error_of(caller.read_message()) == (502, b"upstream_connect_failed", b"upstream")
    assert time.monotonic() - started_s < CONNECT_S
    caller.send(get())
    upstream = impatient.upstream.receive()
    upstream.read_message()
    upstream.send(OK)
    assert caller.read_message().body == b"ok"


def test_connect_timeout(impatient: Stage) -> None:
    """A host that does not answer at all: 504 after `connect_timeout_s`, and nobody else waits for it."""
    caller = impatient.caller()
    started_s = time.monotonic()
    caller.send(post(b"{}", b"/full/v1/messages"))
    assert impatient.is_served()
    assert time.monotonic() - started_s < CONNECT_S
    assert error_of(caller.read_message()) == (504, b"upstream_connect_timeout", b"upstream")
    assert CONNECT_S - 0.1 <= time.monotonic() - started_s < CONNECT_S + 0.5


def test_no_such_name(impatient: Stage) -> None:
    """A name that does not exist: 502 (or 504, where the resolver itself is silent), and nobody else waits for it."""
    caller = impatient.caller()
    caller.send(post(b"{}", b"/nameless/v1/x"))
    started_s = time.monotonic()
    assert impatient.is_served()
    assert time.monotonic() - started_s < 0.4
    returned = caller.read_message()
    assert error_of(returned)[:2] in ((502, b"upstream_name_failed"), (504, b"upstream_connect_timeout"))
    assert b"invalid" not in returned.body.lower().replace(b"invalid_", b"")


def test_caller_leaves_while_connecting(impatient: Stage) -> None:
    """A caller that does not wait for the connection is forgotten with it."""
    caller = impatient.caller()
    caller.send(post(b"{}", b"/full/v1/messages"))
    caller.close()
    event = impatient.proxy.access_event(provider="full", end_reason="client_gone")
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
