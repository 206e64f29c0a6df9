"""Where the proxy listens: a port number, or an endpoint string of Twisted's.

TLS endpoints take a new certificate while they listen. The rule: what is taken has been tried, in a handshake in
memory; what fails it changes nothing. Connections keep the certificate that they began with.
"""

from __future__ import annotations

import errno
import re
import ssl
from typing import Any, Final

from OpenSSL import SSL, crypto
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ServerEndpoint, TCP6ServerEndpoint, serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import (
    IAddress,
    IProtocolNegotiationFactory,
    IReactorSSL,
    IReactorTCP,
    IStreamServerEndpoint,
)
from twisted.internet.protocol import Factory, Protocol
from twisted.protocols.tls import TLSMemoryBIOFactory
from zope.interface import implementer

BACKLOG: Final = 1024
"""Connections that the kernel keeps for us while we are busy, unless the string says otherwise; Twisted's own is 50."""

_WITH_BACKLOG: Final = ("tcp:", "tcp6:", "unix:", "ssl:")
"""Endpoint strings that take the length of the kernel's queue as an argument."""

_HOST_AND_PORT = re.compile(r"(?:\d{1,3}(?:\.\d{1,3}){3}|localhost|[\w-]+(?:\.[\w-]+)+):\d+\Z")


def endpoint_for(listen: int | str, reactor: Any) -> IStreamServerEndpoint:
    """The endpoint for ``listen``.

    :raises ValueError: when it is a string that Twisted does not understand, or whose certificate cannot be used.
    """
    if isinstance(listen, int):
        return AllInterfaces(listen, reactor)
    if _HOST_AND_PORT.match(listen):
        host, _, port = listen.rpartition(":")
        raise ValueError(f"the port {listen!r} is a host and a port: write tcp:{port}:interface={host}")
    takes_backlog = listen.startswith(_WITH_BACKLOG) and "backlog=" not in listen and not listen.endswith("\\")
    description = f"{listen}:backlog={BACKLOG}" if takes_backlog else listen
    try:
        if listen.startswith(("ssl:", "tls:")):
            return TlsEndpoint(description, reactor)
        return serverFromString(reactor, description)  # type: ignore[no-any-return]
    except Exception as error:  # noqa: BLE001 - every endpoint plugin has errors of its own
        raise ValueError(
            f"the port {listen!r} is no number, and as a Twisted endpoint it fails: {_words(error)}"
        ) from None


def _words(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.strerror}: {error.filename}"
    if isinstance(error, SSL.Error | crypto.Error):  # its text is a list of lists; the last word is the reason
        return (
            next((str(each[-1]) for each in error.args[0] if each), "OpenSSL fails") if error.args else "OpenSSL fails"
        )
    return str(error) or type(error).__name__


@implementer(IStreamServerEndpoint)
class AllInterfaces:
    """Listens on every address, IPv6 and IPv4, or on IPv4 alone where the system has no IPv6."""

    def __init__(self, port: int, reactor: Any) -> None:
        self._port = port
        self._reactor = reactor

    def listen(self, factory: Any) -> Any:
        """See IStreamServerEndpoint."""
        endpoint = TCP6ServerEndpoint(self._reactor, self._port, backlog=BACKLOG)
        return endpoint.listen(factory).addErrback(self._without_ipv6, factory)

    def _without_ipv6(self, reason: Any, factory: Any) -> Any:
        reason.trap(CannotListenError)
        if getattr(reason.value.socketError, "errno", None) not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            return reason
        return TCP4ServerEndpoint(self._reactor, self._port, backlog=BACKLOG).listen(factory)


class CertificateError(Exception):
    """The certificate cannot be used; the text says why, and holds nothing of the key."""


@implementer(IStreamServerEndpoint)
class TlsEndpoint:
    """A ``ssl:`` or ``tls:`` endpoint whose files can be read again.

    :raises Exception: (of many kinds) when made with a description or files that cannot be used.
    """

    def __init__(self, description: str, reactor: Any) -> None:
        self._description = description
        self._reactor = reactor
        self._factory = _Switch()
        self._asked = self._parse()
        self._factory.tls = self._asked.factory

    def listen(self, factory: Any) -> Deferred[Any]:
        """See IStreamServerEndpoint."""
        self._factory.inside.site = factory
        asked = self._asked
        # What Twisted's own endpoints do, with one factory in between.
        kind: Any = TCP6ServerEndpoint if ":" in asked.interface else TCP4ServerEndpoint
        endpoint = kind(self._reactor, asked.port, backlog=asked.backlog, interface=asked.interface)
        return endpoint.listen(self._factory)  # type: ignore[no-any-return]

    def reload(self) -> None:
        """Read the files again; handshakes that begin from now on use what is in them.

        :raises CertificateError: when that cannot be used. What was used so far stays.
        """
        try:
            fresh = self._parse().factory
        except Exception as error:  # noqa: BLE001 - of Twisted, pyOpenSSL, cryptography and the file system
            raise CertificateError(_words(error)) from None
        self._factory.tls = fresh

    def _parse(self) -> _Asked:
        asked = _Asked()
        # There is no public parser of these strings; so Twisted's endpoint is made, and told to listen on something
        # that only writes down how it would.
        failures: list[Any] = []
        serverFromString(asked, self._description).listen(self._factory.inside).addErrback(failures.append)
        if failures:
            failures[0].raiseException()
        _shake_hands(asked.factory)
        return asked


@implementer(IReactorTCP, IReactorSSL)
class _Asked:
    """Stands in the reactor's place and keeps what it is asked for."""

    factory: TLSMemoryBIOFactory
    port = 0
    backlog = BACKLOG
    interface = ""

    def listenTCP(self, port: int, factory: Any, backlog: int = 50, interface: str = "") -> Any:
        """See IReactorTCP."""
        self.port, self.factory, self.backlog, self.interface = port, factory, backlog, interface

    def listenSSL(self, port: int, factory: Any, contextFactory: Any, backlog: int = 50, interface: str = "") -> Any:
        """See IReactorSSL."""
        # RFC 8996: nothing below TLS 1.2, whatever method the string may name.
        contextFactory.getContext().set_min_proto_version(SSL.TLS1_2_VERSION)
        self.listenTCP(port, TLSMemoryBIOFactory(contextFactory, False, factory), backlog, interface)

    def connectTCP(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError

    connectSSL = connectTCP


@implementer(IProtocolNegotiationFactory)
class _Inside(Factory):
    """What speaks inside of TLS: the site, once there is one; for a handshake that is tried, nothing."""

    noisy = False
    site: Any = None

    def buildProtocol(self, addr: IAddress | None) -> Any:
        # The trial has no address.
        return Protocol() if addr is None else self.site.buildProtocol(addr)

    def acceptableProtocols(self) -> list[bytes]:
        """ALPN: HTTP/1.1 only."""
        return [b"http/1.1"]


class _Switch(Factory):
    """Makes each connection with the TLS of the moment."""

    noisy = False

    def __init__(self) -> None:
        self.inside = _Inside()
        self.tls: TLSMemoryBIOFactory

    def doStart(self) -> None:
        self.inside.site.doStart()

    def doStop(self) -> None:
        self.inside.site.doStop()

    def buildProtocol(self, addr: IAddress | None) -> Any:
        protocol: Any = self.tls.buildProtocol(addr)
        # Twisted would wrap a connection that the site does not want.
        return None if protocol.wrappedProtocol is None else protocol


# -- the trial ---------------------------------------------------------------------------------------------------------


def _shake_hands(factory: TLSMemoryBIOFactory) -> None:
    """One handshake in memory, with a caller that believes anything.

    :raises CertificateError: when it does not succeed.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    from_server, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    caller = context.wrap_bio(from_server, to_server)
    server: Any = factory.buildProtocol(None)
    server.makeConnection(_Memory(from_server))
    while True:
        try:
            caller.do_handshake()
            return
        except ssl.SSLError as error:
            said = to_server.read()
            if not isinstance(error, ssl.SSLWantReadError) or not said:
                raise CertificateError("there is no certificate with its key") from None
            server.dataReceived(said)


class _Memory:
    """As much of a transport as a handshake needs."""

    disconnecting = False

    def __init__(self, to: ssl.MemoryBIO) -> None:
        self._to = to

    def write(self, data: bytes) -> None:
        self._to.write(data)

    def writeSequence(self, data: Any) -> None:
        self._to.write(b"".join(data))

    def loseConnection(self) -> None:
        self._to.write_eof()

    abortConnection = unregisterProducer = loseConnection

    def registerProducer(self, *_: Any) -> None:
        pass
