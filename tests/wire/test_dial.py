"""Opening connections: each step, each way it can fail, one deadline over all."""

from __future__ import annotations

import os
import ssl
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionRefusedError as Refused
from twisted.internet.error import DNSLookupError, TimeoutError
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.wire.dial import CONNECT, NAME, PROXY, TIMEOUT, TLS, Dialer, DialError, HttpProxy, proxy_for
from llmproxy.wire.tls import client_context
from tests.wire.certificates import HOST, Authority
from tests.wire.far_end import FarEnd
from tests.wire.kernel_pair import KernelPair
from tests.wire.test_tls import TlsServer


class _Endpoint:
    """Opens connections in memory, or on a pair of sockets."""

    def __init__(self, clock: Clock) -> None:
        self.error: Exception | None = None
        self.slow = False
        self.on_sockets = False
        self.far: Any = None
        self.given_up = 0
        self._clock = clock

    def connect(self, factory: Any) -> Deferred[Any]:
        result: Deferred[Any] = Deferred(self._cancelled)
        if self.error is not None:
            result.errback(Failure(self.error))
        elif not self.slow:
            protocol = factory.buildProtocol(None)
            if self.on_sockets:
                self.far = KernelPair(protocol).connect()
            else:
                self.far = FarEnd(self._clock, protocol).connect()
            result.callback(protocol)
        return result

    def _cancelled(self, _: Deferred[Any]) -> None:
        self.given_up += 1


class _Case(SynchronousTestCase):
    def setUp(self) -> None:
        """An endpoint and a clock."""
        self.clock = Clock()
        self.endpoint = _Endpoint(self.clock)
        self.inner = Protocol()

    def dial(
        self, tls: ssl.SSLContext | None = None, proxy: HttpProxy | None = None, host: str = HOST, timeout_s: float = 10
    ) -> Deferred[Any]:
        """Open a connection."""
        dialer = Dialer(
            self.clock,
            host,
            443,
            tls=tls,
            proxy=proxy,
            timeout_s=timeout_s,
            endpoint=self.endpoint,  # type: ignore[arg-type]
        )
        return dialer.dial(lambda: self.inner)

    def assertFailed(self, result: Deferred[Protocol], step: str) -> DialError:
        """It failed at `step`, tells no address, and nothing is left behind."""
        error = self.failureResultOf(result, DialError).value
        assert isinstance(error, DialError)
        self.assertEqual(error.step, step)
        self.assertNotIn("provider", str(error))
        self.assertEqual(self.clock.getDelayedCalls(), [])
        return error


class Plain(_Case):
    """Without TLS."""

    def test_connected(self) -> None:
        """The protocol has its transport, and no timer runs on."""
        self.assertIs(self.successResultOf(self.dial()), self.inner)
        self.assertIsNotNone(self.inner.transport)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_failed(self) -> None:
        """A name that is not known, a port that refuses, and a network that gives up are told apart."""
        for error, step in (
            (DNSLookupError("no such name: api.provider.test"), NAME),
            (Refused(111, "api.provider.test"), CONNECT),
            (TimeoutError(), TIMEOUT),
            (OSError(101, "provider unreachable"), CONNECT),
        ):
            self.endpoint.error = error
            self.assertFailed(self.dial(), step)

    def test_too_slow(self) -> None:
        """An attempt that takes too long is given up."""
        self.endpoint.slow = True
        result = self.dial()
        self.clock.advance(9.9)
        self.assertNoResult(result)
        self.clock.advance(0.2)
        self.assertFailed(result, TIMEOUT)
        self.assertEqual(self.endpoint.given_up, 1)

    def test_no_deadline(self) -> None:
        """0 sets no deadline of our own."""
        self.endpoint.slow = True
        result = self.dial(timeout_s=0)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        result.cancel()
        self.failureResultOf(result)

    def test_cancelled(self) -> None:
        """An attempt that nobody waits for any more is given up at once."""
        self.endpoint.slow = True
        result = self.dial()
        result.cancel()
        self.failureResultOf(result)
        self.assertEqual(self.endpoint.given_up, 1)
        self.assertEqual(self.clock.getDelayedCalls(), [])


class Secure(_Case):
    """With TLS."""

    def setUp(self) -> None:
        """An authority."""
        super().setUp()
        folder = self.mktemp()
        os.makedirs(folder)
        self.authority = Authority.make(folder)
        self.tls = client_context(self.authority.path)

    def test_connected(self) -> None:
        """The protocol is connected when the handshake is through."""
        result = self.dial(self.tls)
        self.assertNoResult(result)
        TlsServer(self.endpoint.far, self.authority.server()).move()
        self.assertIs(self.successResultOf(result), self.inner)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_refused(self) -> None:
        """A certificate that is not trusted is an error of TLS, with OpenSSL's reason."""
        result = self.dial(self.tls)
        TlsServer(self.endpoint.far, self.authority.server(expired=True)).move()
        self.assertIn("expired", str(self.assertFailed(result, TLS)))

    def test_cut(self) -> None:
        """A connection that ends within the handshake too."""
        for leave in (FarEnd.ends, FarEnd.resets):
            result = self.dial(self.tls)
            leave(self.endpoint.far)
            self.assertFailed(result, TLS)

    def test_stalled(self) -> None:
        """A handshake that stalls is given up with the deadline of all steps, and its connection dropped."""
        result = self.dial(self.tls)
        self.clock.advance(10)
        self.assertFailed(result, TIMEOUT)
        self.assertTrue(self.endpoint.far.was_reset)

    def test_cancelled(self) -> None:
        """So is one that nobody waits for any more."""
        result = self.dial(self.tls)
        result.cancel()
        self.clock.advance(0)
        self.failureResultOf(result)
        self.assertTrue(self.endpoint.far.was_reset)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    # -- through a forward proxy

    def tunnel(self, *answer: bytes, proxy: HttpProxy | None = None) -> Deferred[Protocol]:
        """A dial through a proxy that says this, in these pieces."""
        self.endpoint.on_sockets = False
        result = self.dial(self.tls, proxy or HttpProxy("squid.test", 3128))
        self.endpoint.far.says(*answer)
        return result

    def test_through_a_proxy(self) -> None:
        """The proxy is asked for a tunnel, with its own credentials; inside it TLS goes to the upstream itself."""
        self.endpoint.on_sockets = True
        result = self.dial(self.tls, HttpProxy("squid.test", 3128, b"Basic dTpw"))
        pair = self.endpoint.far
        self.addCleanup(pair.close)
        pair.reactor.turn()
        self.assertEqual(
            pair.heard(),
            b"CONNECT api.provider.test:443 HTTP/1.1\r\nHost: api.provider.test:443\r\n"
            b"Proxy-Authorization: Basic dTpw\r\n\r\n",
        )
        for piece in (b"HTTP/1.1 200 Connec", b"tion established\r\nX: y\r", b"\n\r\n"):
            pair.far.send(piece)
            pair.reactor.turn()
        far = _OnSockets(pair)
        TlsServer(far, self.authority.server()).move()  # type: ignore[arg-type]
        self.assertIs(self.successResultOf(result), self.inner)

    def test_an_ipv6_address(self) -> None:
        """An IPv6 address is written in brackets."""
        self.dial(self.tls, HttpProxy("squid.test", 3128), host="2001:db8::1")
        self.assertTrue(self.endpoint.far.heard().startswith(b"CONNECT [2001:db8::1]:443 HTTP/1.1\r\n"))

    def test_plain_needs_no_proxy(self) -> None:
        """A plain upstream is not asked for through the proxy of HTTPS_PROXY."""
        result = self.dial(None, HttpProxy("squid.test", 3128))
        self.assertIs(self.successResultOf(result), self.inner)

    def test_refused_by_the_proxy(self) -> None:
        """A proxy that says no, wants credentials, speaks no HTTP, talks too much or goes away: an error of that step,
        which does not repeat what it said."""
        for answer in (
            b'HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm="secret"\r\n\r\n',
            b"HTTP/1.1 403 Forbidden\r\n\r\nno",
            b"HTTP/1.0 502 Bad Gateway\r\n\r\n",
            b"HTTP/1.1 302 Found\r\nLocation: http://secret/\r\n\r\n",
            b"HTTP/1.1 100 Continue\r\n\r\n",
            b"HTTP/2 200\r\n\r\n",
            b"SSH-2.0-secret\r\n\r\n",
            b"HTTP/1.1\r\n\r\n",
            b"HTTP/1.1 2000 secret\r\n\r\n",
            b"HTTP/1.1 \xb2\xb2\xb2 secret\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n\r\nsecret before it was asked",
            b"x" * 20_000,
        ):
            result = self.tunnel(answer)
            self.assertNotIn("secret", str(self.assertFailed(result, PROXY)))
            self.clock.advance(0)
            self.assertFalse(self.endpoint.far.transport.connected)

    def test_split_answer_of_the_proxy(self) -> None:
        """The proxy's answer may arrive one byte at a time."""
        answer = b"HTTP/1.1 407 No\r\n\r\n"
        result = self.tunnel(*(bytes((each,)) for each in answer))
        self.assertIn("407", str(self.assertFailed(result, PROXY)))

    def test_proxy_gone(self) -> None:
        """A proxy that goes away without an answer."""
        for leave in (FarEnd.ends, FarEnd.resets):
            result = self.tunnel(b"HTTP/1.1 200 O")
            leave(self.endpoint.far)
            self.assertFailed(result, PROXY)

    def test_proxy_silent(self) -> None:
        """A proxy that says nothing."""
        result = self.tunnel()
        self.clock.advance(10)
        self.assertFailed(result, TIMEOUT)
        self.assertTrue(self.endpoint.far.was_reset)


class _OnSockets:
    """A pair of sockets in the shape of a FarEnd, for TlsServer."""

    def __init__(self, pair: KernelPair) -> None:
        self._pair = pair

    def heard(self) -> bytes:
        self._pair.reactor.turn()
        return self._pair.heard()

    def says(self, *pieces: bytes) -> None:
        for piece in pieces:
            if piece:
                self._pair.far.send(piece)
        self._pair.reactor.turn()


class Proxies(SynchronousTestCase):
    """HTTPS_PROXY and NO_PROXY."""

    def test_none(self) -> None:
        """Without HTTPS_PROXY there is none; nor is HTTP_PROXY one, which is for plain upstreams."""
        for environ in ({}, {"HTTPS_PROXY": ""}, {"HTTP_PROXY": "http://p:1"}):
            self.assertIsNone(proxy_for("api.test", environ))

    def test_forms(self) -> None:
        """Host, port and credentials, in upper or lower case, with or without a scheme."""
        for name in ("HTTPS_PROXY", "https_proxy"):
            for value, proxy in (
                ("http://p.test:3128", HttpProxy("p.test", 3128)),
                ("p.test:3128", HttpProxy("p.test", 3128)),
                ("http://p.test", HttpProxy("p.test", 80)),
                ("http://p.test:3128/", HttpProxy("p.test", 3128)),
                ("http://[::1]:3128", HttpProxy("::1", 3128)),
                ("http://u%40x:p%3Aw@p.test:1", HttpProxy("p.test", 1, b"Basic dUB4OnA6dw==")),
                ("http://u@p.test:1", HttpProxy("p.test", 1, b"Basic dTo=")),
            ):
                self.assertEqual(proxy_for("api.test", {name: value}), proxy, value)

    def test_exempt(self) -> None:
        """NO_PROXY names hosts and domains that are reached directly."""
        for exempt, direct in (("api.test", True), (".test", True), ("test", True), ("*", True), ("other.test", False)):
            for name in ("NO_PROXY", "no_proxy"):
                found = proxy_for("api.test", {"HTTPS_PROXY": "http://p.test:1", name: exempt})
                self.assertEqual(found is None, direct, exempt)

    def test_bad(self) -> None:
        """A proxy that cannot be used is an error at the start, which does not repeat the credentials in it."""
        for value in (
            "socks5://u:secret@p:1",
            "https://u:secret@p:1",
            "http://u:secret@p:x",
            "http://",
            "http://u:secret@:1",
        ):
            error = self.assertRaises(ValueError, proxy_for, "api.test", {"HTTPS_PROXY": value})
            self.assertNotIn("secret", str(error))

    def test_shown(self) -> None:
        """A proxy that is printed hides its credentials."""
        self.assertEqual(repr(HttpProxy("p.test", 1, b"Basic secret")), "HttpProxy('p.test', 1)")
