"""TLS towards an upstream: who is trusted, what a cut is, and that nothing is said too early."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.config.model import Upstream
from llmproxy.upstream.origin import Origin, RawHeaders
from llmproxy.wire.client import ClientConnection, OutgoingRequest
from llmproxy.wire.dial import Dialer
from llmproxy.wire.tls import TlsClient, TlsError, client_context
from llmproxy.wire.upstream_error import InvalidAnswer
from tests.web.proxy_in_memory import MemoryEndpoint, ok
from tests.wire.certificates import HOST, Authority
from tests.wire.far_end import FarEnd


class _Inner(Protocol):
    """What speaks inside."""

    def __init__(self) -> None:
        self.heard = b""
        self.lost: Failure | None = None

    def dataReceived(self, data: bytes) -> None:
        self.heard += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.lost is not None:
            raise AssertionError("lost twice")
        self.lost = reason


class TlsServer:
    """The far end of a TLS connection, on Python's own `ssl`."""

    def __init__(self, far: FarEnd, context: ssl.SSLContext) -> None:
        self.far = far
        self.server_name: str | None = None
        context.sni_callback = self._named
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self.done = False
        self.error: ssl.SSLError | None = None

    def _named(self, tls: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        self.server_name = name

    def move(self, one_byte_at_a_time: bool = False) -> None:
        """Let bytes flow until neither end has anything to say."""
        for _ in range(20):
            heard = self.hear()
            self.shake()
            out = self.say(one_byte_at_a_time)
            if not heard and not out:
                return

    def hear(self) -> bytes:
        """Take what has come."""
        heard = self.far.heard()
        self._incoming.write(heard)
        return heard

    def shake(self) -> None:
        """Go on with the handshake."""
        if not self.done:
            try:
                self.tls.do_handshake()
                self.done = True
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError as error:
                self.error = error

    def say(self, one_byte_at_a_time: bool = False) -> bytes:
        """Send what is written."""
        out = self._outgoing.read()
        if one_byte_at_a_time:
            self.far.says(*(bytes((each,)) for each in out))
        else:
            self.far.says(out)
        return out

    def hears(self) -> bytes:
        """What has been said inside."""
        self.move()
        heard = b""
        try:
            while data := self.tls.read(65536):
                heard += data
            heard += b"<closed>"
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            heard += b"<closed>"
        return heard

    def says(self, data: bytes) -> None:
        """Say something inside."""
        self.tls.write(data)
        self.move()

    def closes(self) -> None:
        """Send the closing alert."""
        try:
            self.tls.unwrap()
        except ssl.SSLError:
            pass
        self.move()


class _Case(SynchronousTestCase):
    def setUp(self) -> None:
        """An authority that the client trusts."""
        folder = self.mktemp()
        os.makedirs(folder)
        self.authority = Authority.make(folder)
        self.clock = Clock()
        self.inner = _Inner()

    def connection(self, server: ssl.SSLContext, name: str = HOST, trusted: bool = True) -> tuple[TlsClient, TlsServer]:
        """A connection that is about to begin."""
        client = TlsClient(client_context(self.authority.path if trusted else None), name, self.inner)
        far = FarEnd(self.clock, client).connect()
        return client, TlsServer(far, server)

    def connected(self) -> tuple[TlsClient, TlsServer]:
        """A connection after its handshake."""
        client, server = self.connection(self.authority.server())
        server.move()
        self.assertIs(self.successResultOf(client.ready), self.inner)
        return client, server


class Trust(_Case):
    """Whose certificate is good enough."""

    def test_good(self) -> None:
        """A trusted authority's certificate for this name; the name is told to the server, and HTTP/1.1 agreed on."""
        client, server = self.connected()
        self.assertEqual(server.server_name, HOST)
        self.assertEqual(server.tls.selected_alpn_protocol(), "http/1.1")
        client.write(b"hello")
        self.assertEqual(server.hears(), b"hello")

    def test_bad(self) -> None:
        """Self-signed, expired, for another name, of an unknown authority: refused before anything is said, with a
        reason that holds no address."""
        for what, server, name, trusted in (
            ("self-signed", self.authority.server(self_signed=True), HOST, True),
            ("expired", self.authority.server(expired=True), HOST, True),
            ("another name", self.authority.server("other.test"), HOST, True),
            ("an address", self.authority.server(), "192.0.2.1", True),
            ("unknown authority", self.authority.server(), HOST, False),
        ):
            with self.subTest(what):
                self.inner = _Inner()
                client, far = self.connection(server, name, trusted)
                far.move()
                failure = self.failureResultOf(client.ready, TlsError)
                self.assertTrue(str(failure.value))
                self.assertFalse(far.far.transport.connected)
                self.assertIsNone(self.inner.transport)
                self.assertIsNone(self.inner.lost)

    def test_old_versions(self) -> None:
        """A server that speaks nothing newer than TLS 1.1 is refused."""
        server = self.authority.server()
        server.minimum_version = ssl.TLSVersion.TLSv1
        server.maximum_version = ssl.TLSVersion.TLSv1_1
        server.set_ciphers("ALL:@SECLEVEL=0")
        client, far = self.connection(server)
        far.move()
        self.failureResultOf(client.ready, TlsError)

    def test_no_tls(self) -> None:
        """A server that does not speak TLS at all."""
        client, far = self.connection(self.authority.server())
        far.far.says(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        self.failureResultOf(client.ready, TlsError)
        self.assertTrue(far.far.was_reset)

    def test_a_file_that_is_none(self) -> None:
        """A private authority's file that is missing or empty is an error at the start."""
        self.assertRaises(OSError, client_context, "/nowhere/ca.pem")
        with open(self.authority.path, "w", encoding="ascii") as file:
            file.write("nothing")
        self.assertRaises(OSError, client_context, self.authority.path)


class Talking(_Case):
    """After the handshake."""

    def test_split_at_every_byte(self) -> None:
        """The handshake and what follows may arrive one byte at a time."""
        client, server = self.connection(self.authority.server())
        server.move(one_byte_at_a_time=True)
        self.assertIs(self.successResultOf(client.ready), self.inner)
        server.tls.write(b"hello")
        server.move(one_byte_at_a_time=True)
        self.assertEqual(self.inner.heard, b"hello")

    def test_large(self) -> None:
        """Megabytes arrive whole, both ways."""
        client, server = self.connected()
        data = bytes(range(256)) * 8000
        client.write(data)
        self.assertEqual(server.hears(), data)
        server.says(data)
        self.assertEqual(self.inner.heard, data)
        client.writeSequence([b"a", b"b"])
        self.assertEqual(server.hears(), b"ab")

    def test_closing_alert(self) -> None:
        """An end that TLS itself announced is an end."""
        _, server = self.connected()
        server.says(b"all of it")
        server.closes()
        server.far.ends()
        self.assertEqual(self.inner.heard, b"all of it")
        assert self.inner.lost is not None
        self.inner.lost.trap(ConnectionDone)

    def test_cut(self) -> None:
        """An end of TCP alone is a cut: anybody on the way could have made it."""
        for leave in (FarEnd.ends, FarEnd.resets):
            self.inner = _Inner()
            _, server = self.connected()
            server.says(b"a part")
            leave(server.far)
            assert self.inner.lost is not None
            self.inner.lost.trap(ConnectionLost)

    def test_cut_in_the_handshake(self) -> None:
        """A connection that ends in the handshake fails it; the inner protocol never hears of it."""
        for leave in (FarEnd.ends, FarEnd.resets):
            self.inner = _Inner()
            client, server = self.connection(self.authority.server())
            leave(server.far)
            self.failureResultOf(client.ready)
            self.assertIsNone(self.inner.lost)

    def test_garbage(self) -> None:
        """Bytes that were changed on the way end the connection and are never taken for the upstream's."""
        _, server = self.connected()
        server.far.says(b"\x17\x03\x03\x00\x10" + b"x" * 16)
        self.assertEqual(self.inner.heard, b"")
        assert self.inner.lost is not None
        self.assertIsNone(self.inner.lost.check(ConnectionDone))

    def test_we_close(self) -> None:
        """We announce our end too, once, and write nothing after it."""
        client, server = self.connected()
        client.write(b"bye")
        client.loseConnection()
        client.loseConnection()
        client.write(b"too late")
        self.clock.advance(0)
        self.assertEqual(server.hears(), b"bye<closed>")
        self.assertIsNotNone(self.inner.lost)

    def test_we_abort(self) -> None:
        """Dropping drops TCP."""
        client, server = self.connected()
        client.abortConnection()
        self.clock.advance(0)
        self.assertTrue(server.far.was_reset)
        self.assertIsNotNone(self.inner.lost)

    def test_abort_within_a_read(self) -> None:
        """If the inner protocol drops the connection on what it hears, nothing that follows disturbs it."""
        client, server = self.connected()

        def abort(data: bytes) -> None:
            client.abortConnection()

        self.inner.dataReceived = abort  # type: ignore[method-assign]
        server.says(b"x" * 100_000)
        self.assertIsNotNone(self.inner.lost)

    def test_flow(self) -> None:
        """Pausing holds TCP back; a producer is paused when TCP is behind."""
        client, server = self.connected()
        client.pauseProducing()
        server.tls.write(b"later")
        server.move()
        self.assertEqual(self.inner.heard, b"")
        client.resumeProducing()
        self.clock.advance(0)
        self.assertEqual(self.inner.heard, b"later")
        calls: list[str] = []

        class Producer:
            def pauseProducing(self) -> None:
                calls.append("pause")

            def resumeProducing(self) -> None:
                calls.append("resume")

            def stopProducing(self) -> None:
                calls.append("stop")

        client.registerProducer(Producer(), True)  # type: ignore[arg-type]
        server.far.stops_reading()
        client.write(b"x" * 200_000)
        self.assertEqual(set(calls), {"pause"})
        server.far.reads_on()
        self.assertEqual(calls[-1:], ["resume"])
        client.unregisterProducer()


class _Answer(_Inner):
    """Takes the body of an answer; `pauses` is a reader who takes one piece and then wants no more for now."""

    pauses = False

    def fetch(self, response: Any) -> None:
        response.deliverBody(self)

    def dataReceived(self, data: bytes) -> None:
        super().dataReceived(data)
        if self.pauses:
            transport: Any = self.transport
            transport.pauseProducing()


class _AsksAgain(_Answer):
    """Asks again as soon as the answer has ended."""

    def __init__(self, ask: Callable[[], Deferred[Any]]) -> None:
        super().__init__()
        self.ask = ask
        self.results: list[Deferred[Any]] = []

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.results.append(self.ask())


class Answers(_Case):
    """Answers of a provider that is reached over TLS."""

    def setUp(self) -> None:
        """A provider's origin, reached over TLS."""
        super().setUp()
        self.endpoint = MemoryEndpoint(self.clock)
        dialer = Dialer(
            self.clock,
            HOST,
            443,
            tls=client_context(self.authority.path),
            proxy=None,
            timeout_s=10,
            endpoint=self.endpoint,  # type: ignore[arg-type]
        )
        self.origin = Origin(f"https://{HOST}".encode(), dialer, self.clock, Upstream())
        self.servers: list[TlsServer] = []

    def ask(self) -> Deferred[Any]:
        """A request; if it opens a connection, with the server's side of it."""
        result = self.origin.request(b"GET", f"https://{HOST}/x".encode(), RawHeaders([(b"Host", HOST.encode())]))
        while len(self.servers) < len(self.endpoint.connections):
            server = TlsServer(self.endpoint.connections[len(self.servers)], self.authority.server())
            self.servers.append(server)
            server.move()
        return result

    def body_of(self, result: Deferred[Any]) -> bytes:
        """The body of the whole answer."""
        body = _Answer()
        self.successResultOf(result).deliverBody(body)
        self.assertIsNotNone(body.lost)
        return body.heard

    def test_used_again(self) -> None:
        """A connection that has answered as it should serves the next request."""
        for text in (b"first", b"second"):
            result = self.ask()
            self.servers[0].says(ok(text))
            self.assertEqual(self.body_of(result), text)
        self.assertEqual(len(self.servers), 1)

    def test_an_answer_that_nobody_asked_for(self) -> None:
        """A second answer that arrives together with the first never becomes the answer to the next request."""
        for together in (True, False):
            self.setUp()
            first = self.ask()
            server = self.servers[0]
            server.tls.write(ok(b"good"))
            if not together:
                server.move()
            server.tls.write(ok(b"EVIL"))
            server.move()
            self.assertEqual(self.body_of(first), b"good")
            second = self.ask()
            self.assertNoResult(second)
            self.assertEqual(len(self.servers), 2)
            self.assertFalse(server.far.transport.connected)
            self.servers[1].says(ok(b"also good"))
            self.assertEqual(self.body_of(second), b"also good")

    def test_a_close_that_is_not_taken(self) -> None:
        """An upstream that does not even take our closing alert keeps its connection for ten seconds, and no longer."""
        result = self.ask()
        self.servers[0].says(ok())
        self.body_of(result)
        self.servers[0].far.stops_reading()
        self.origin.retire()
        for _ in range(9):
            self.clock.advance(1)
        self.assertEqual(self.origin.open_connections, 1)
        for _ in range(3):
            self.clock.advance(1)
        self.assertEqual(self.origin.open_connections, 0)

    def test_an_answer_before_the_question(self) -> None:
        """What an upstream says together with the end of its handshake, before it was asked anything, is no answer; nor
        is a true answer to the first request ever given to the second."""
        context = self.authority.server()
        context.maximum_version = ssl.TLSVersion.TLSv1_2  # its server has the last word in the handshake
        result = self.origin.request(b"GET", f"https://{HOST}/x".encode(), RawHeaders([(b"Host", HOST.encode())]))
        server = TlsServer(self.endpoint.connections[0], context)
        for greeting in (b"", ok(b"EVIL")):  # two flights of the server's
            server.hear()
            server.shake()
            self.assertIs(server.done, bool(greeting))
            if greeting:
                server.tls.write(greeting)
            server.say()
        self.assertIn("before it was asked", str(self.failureResultOf(result, InvalidAnswer).value))
        self.assertTrue(server.far.was_reset)
        self.ask()
        self.assertEqual(len(self.endpoint.connections), 2)

    def test_asked_again_at_once(self) -> None:
        """The same, and the same for an end that comes with the answer, if the next request waits only for that."""
        for closes in (True, False):
            self.setUp()
            first = self.ask()
            asks = _AsksAgain(self.ask)
            first.addCallback(asks.fetch)
            server = self.servers[0]
            server.tls.write(ok(b"good"))
            if closes:
                server.closes()
            else:
                server.tls.write(ok(b"EVIL"))
                server.move()
            self.assertEqual(asks.heard, b"good")
            (result,) = asks.results
            self.assertNoResult(result)
            self.assertEqual(len(self.endpoint.connections), 2)

    def test_an_answer_with_the_end(self) -> None:
        """A connection that the provider closes together with its answer serves no other request."""
        first = self.ask()
        server = self.servers[0]
        server.tls.write(ok(b"good"))
        server.closes()
        self.assertEqual(self.body_of(first), b"good")
        second = self.ask()
        self.assertEqual(len(self.servers), 2)
        self.servers[1].says(ok(b"also good"))
        self.assertEqual(self.body_of(second), b"also good")
        self.assertFalse(server.far.transport.connected)

    def test_no_time_runs_while_the_reader_is_behind(self) -> None:
        """A reader who is held back is not cut for silence, although more had arrived in the same read."""
        connection = ClientConnection(self.clock, Upstream(), lambda _: None, lambda _: None)
        client = TlsClient(client_context(self.authority.path), HOST, connection)
        server = TlsServer(FarEnd(self.clock, client).connect(), self.authority.server())
        server.move()
        result = connection.request(OutgoingRequest(b"GET", b"GET / HTTP/1.1\r\n\r\n"))
        server.says(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        body = _Answer()
        body.pauses = True
        self.successResultOf(result).deliverBody(body)
        self.assertIsNotNone(connection.deadline)
        server.tls.write(b"x" * 1000)
        server.tls.write(b"y" * 1000)
        server.move()
        self.assertEqual(body.heard, b"x" * 1000 + b"y" * 1000)
        self.assertIsNone(connection.deadline)
