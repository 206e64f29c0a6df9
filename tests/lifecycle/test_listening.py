"""Where the proxy listens, and with which certificate."""

from __future__ import annotations

import shutil
import ssl
import tempfile
from pathlib import Path
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.lifecycle.listening import BACKLOG, CertificateError, TlsEndpoint, endpoint_for
from tests.live.certificates import Authority


class Numbers(SynchronousTestCase):
    """A port number."""

    def test_all_interfaces(self) -> None:
        """It is every address, with a backlog for bursts."""
        reactor = MemoryReactorClock()
        self.successResultOf(endpoint_for(9002, reactor).listen(Factory()))
        (port, _, backlog, interface) = reactor.tcpServers[0]
        self.assertEqual((port, backlog, interface), (9002, BACKLOG, "::"))

    def test_no_ipv6(self) -> None:
        """Without IPv6 it is every IPv4 address; a port that is taken is not tried a second time."""
        import errno

        for number, works in ((errno.EAFNOSUPPORT, True), (errno.EADDRINUSE, False)):
            reactor = MemoryReactorClock()
            listen = reactor.listenTCP

            def without(port: Any, factory: Any, backlog: int = 50, interface: str = "") -> Any:
                if interface == "::":
                    raise CannotListenError(interface, port, OSError(number, "no"))  # noqa: B023
                return listen(port, factory, backlog, interface)  # noqa: B023

            reactor.listenTCP = without  # type: ignore[method-assign]
            listening = endpoint_for(9002, reactor).listen(Factory())
            if works:
                self.successResultOf(listening)
                self.assertEqual(reactor.tcpServers[0][3], "")
            else:
                self.failureResultOf(listening, CannotListenError)


class Strings(SynchronousTestCase):
    """An endpoint string."""

    def tearDown(self) -> None:
        """Twisted writes server names as bytes into its log, of which `python -bb` makes errors."""
        self.flushWarnings()

    def test_queue(self) -> None:
        """A string that says nothing of the kernel's queue has a long one too; one that does is taken at its word."""
        for text, backlog in (
            ("tcp:9002:interface=127.0.0.1", BACKLOG),
            ("tcp:9002", BACKLOG),
            ("tcp:9002:backlog=7", 7),
        ):
            reactor = MemoryReactorClock()
            self.successResultOf(endpoint_for(text, reactor).listen(Factory()))
            self.assertEqual(reactor.tcpServers[0][2], backlog)
        reactor = MemoryReactorClock()
        self.successResultOf(endpoint_for("unix:/a\\:b", reactor).listen(Factory()))
        self.assertEqual((reactor.unixServers[0][0], reactor.unixServers[0][2]), ("/a:b", BACKLOG))

    def test_mistakes(self) -> None:
        """A string that is none says why, in one line."""
        for text, words in (
            ("127.0.0.1:9002", "write tcp:9002:interface=127.0.0.1"),
            ("nonsense:1", "Unknown endpoint type"),
            ("ssl:1:privateKey=/nope", "No such file or directory: /nope"),
            ("tls:/nope:1", "/nope"),
            ("ssl:x", ""),
        ):
            error = self.assertRaises(ValueError, endpoint_for, text, MemoryReactorClock())
            self.assertIn(words, str(error))
            self.assertEqual(len(str(error).splitlines()), 1)


class Certificates(SynchronousTestCase):
    """TLS towards the callers, in memory."""

    def setUp(self) -> None:
        """A folder with one certificate."""
        self.folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)
        (self.folder / "own").mkdir()
        self.file = self.folder / "own" / "localhost.pem"
        self.authority = Authority(self.folder)
        self.reactor = MemoryReactorClock()
        self.served: list[Any] = []

    def install(self, name: str) -> bytes:
        """Put a new certificate in place; returns it."""
        certificate, key = self.authority.certificate(name, "localhost")
        self.file.write_bytes(key.read_bytes() + certificate.read_bytes())
        return ssl.PEM_cert_to_DER_cert(certificate.read_text())

    def endpoints(self) -> list[TlsEndpoint]:
        """One of each kind, listening."""
        made = []
        for text in (f"ssl:1:privateKey={self.file}:interface=127.0.0.1", f"tls:{self.folder}/own:2"):
            endpoint = endpoint_for(text, self.reactor)
            assert isinstance(endpoint, TlsEndpoint)
            factory = Factory.forProtocol(Protocol)
            build = factory.buildProtocol

            def built(addr: Any) -> Any:
                self.served.append(build(addr))  # noqa: B023
                return self.served[-1]

            factory.buildProtocol = built  # type: ignore[method-assign]
            self.successResultOf(endpoint.listen(factory))
            made.append(endpoint)
        return made

    def shown(self, number: int) -> tuple[bytes | None, str | None]:
        """What a new caller of this port is shown, and the protocol that was agreed on."""
        context = self.authority.client_context()
        context.set_alpn_protocols(["h2", "http/1.1"])
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        caller = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
        server: Any = self.reactor.tcpServers[number][1].buildProtocol(IPv4Address("TCP", "127.0.0.1", 1))
        transport = StringTransport()
        server.makeConnection(transport)
        for _ in range(5):
            try:
                caller.do_handshake()
            except ssl.SSLWantReadError:
                pass
            if outgoing.pending:
                server.dataReceived(outgoing.read())
            incoming.write(transport.value())
            transport.clear()
        return caller.getpeercert(binary_form=True), caller.selected_alpn_protocol()

    def tearDown(self) -> None:
        """Twisted writes server names as bytes into its log, of which `python -bb` makes errors."""
        self.flushWarnings()

    def test_where(self) -> None:
        """The string's port, address and backlog are used, as Twisted would."""
        self.install("one")
        self.endpoints()
        self.assertEqual([each[0] for each in self.reactor.tcpServers], [1, 2])
        self.assertEqual([each[3] for each in self.reactor.tcpServers], ["127.0.0.1", "::"])

    def test_reload(self) -> None:
        """Both kinds show the new certificate from the reload on, and speak HTTP/1.1."""
        first = self.install("one")
        endpoints = self.endpoints()
        self.assertEqual([self.shown(number) for number in (0, 1)], [(first, "http/1.1")] * 2)
        second = self.install("two")
        self.assertEqual([self.shown(number)[0] for number in (0, 1)], [first] * 2)
        served = len(self.served)
        for endpoint in endpoints:
            endpoint.reload()
        self.assertEqual(len(self.served), served)  # the trial is none of the site's
        self.assertEqual([self.shown(number) for number in (0, 1)], [(second, "http/1.1")] * 2)

    def test_bad(self) -> None:
        """Whatever is wrong with the new one, the old one stays; the text shows nothing of the key."""
        first = self.install("one")
        endpoints = self.endpoints()
        good = self.file.read_text()
        key, certificate = good.split("-----BEGIN CERTIFICATE", 1)
        other = self.authority.certificate("other", "localhost")[1].read_text()
        for content in (
            "",
            "nothing",
            key,
            "-----BEGIN CERTIFICATE" + certificate,
            other + good[len(key) :],
            good[:-60],
        ):
            self.file.write_text(content)
            for endpoint in endpoints:
                error = self.assertRaises(CertificateError, endpoint.reload)
                self.assertTrue(str(error))
                self.assertNotIn("PRIVATE", str(error))
        self.file.unlink()
        for endpoint in endpoints:
            self.assertRaises(CertificateError, endpoint.reload)
        self.assertEqual([self.shown(number)[0] for number in (0, 1)], [first] * 2)

    def test_unwanted(self) -> None:
        """A connection that the site does not want is closed, and is no error."""
        self.install("one")
        endpoint = endpoint_for(f"ssl:1:privateKey={self.file}", self.reactor)

        class Nobody(Factory):
            def buildProtocol(self, addr: Any) -> None:
                return None

        self.successResultOf(endpoint.listen(Nobody()))
        self.assertIsNone(self.reactor.tcpServers[0][1].buildProtocol(IPv4Address("TCP", "127.0.0.1", 1)))
