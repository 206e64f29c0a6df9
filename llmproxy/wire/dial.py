"""Opening a connection to an upstream: name, TCP, perhaps a CONNECT through a proxy, perhaps TLS, one deadline.

Whatever fails, the error says which of these steps it was and nothing about addresses. Every address of a name is
tried (RFC 8305, by Twisted's HostnameEndpoint).
"""

from __future__ import annotations

import base64
import os
import ssl
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast
from urllib.parse import unquote, urlsplit

from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.error import ConnectError, ConnectingCancelledError, ConnectionClosed, DNSLookupError
from twisted.internet.error import TimeoutError as TcpTimeoutError
from twisted.internet.interfaces import IAddress, IProtocol, IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.tcp import Connection
from twisted.python.failure import Failure

from llmproxy.wire.tls import TlsClient, TlsError

NAME: Final = "name"
CONNECT: Final = "connect"
TIMEOUT: Final = "timeout"
TLS: Final = "tls"
PROXY: Final = "proxy"

ATTEMPT_DELAY_S: Final = 0.1
"""How long one address is waited for before the next is tried as well: the least that RFC 8305 section 5 recommends.
Twisted also notices only then that the last one has failed, so it is what a refused connection costs."""

_MAX_PROXY_ANSWER_BYTES: Final = 16 * 1024


class DialError(Exception):
    """A connection could not be opened.

    :ivar step: NAME, CONNECT, TIMEOUT, TLS or PROXY.
    """

    def __init__(self, step: str, text: str) -> None:
        super().__init__(text)
        self.step = step


@dataclass(frozen=True, slots=True)
class HttpProxy:
    """A forward proxy: ``authorization`` is the value of Proxy-Authorization, or None."""

    host: str
    port: int
    authorization: bytes | None = None

    def __repr__(self) -> str:
        """Without the credentials."""
        return f"HttpProxy({self.host!r}, {self.port})"


def proxy_for(host: str, environ: Mapping[str, str]) -> HttpProxy | None:
    """The proxy that ``HTTPS_PROXY`` and ``NO_PROXY`` (in either case) ask for, for TLS connections to ``host``.

    :raises ValueError: when HTTPS_PROXY is not an ``http://`` URL with a host. The text does not repeat the value.
    """
    value = environ.get("https_proxy") or environ.get("HTTPS_PROXY")
    if not value:
        return None
    exempt = environ.get("no_proxy") or environ.get("NO_PROXY")
    if exempt and _is_exempt(host, exempt):
        return None
    try:
        parts = urlsplit(value if "://" in value else "http://" + value)
        host_and_port = parts.hostname, parts.port
    except ValueError:
        host_and_port = None, None
    if not host_and_port[0] or parts.scheme != "http":
        raise ValueError("HTTPS_PROXY must be an http:// URL with a host and a port")
    authorization = None
    if parts.username is not None:
        user = unquote(parts.username) + ":" + unquote(parts.password or "")
        authorization = b"Basic " + base64.b64encode(user.encode())
    return HttpProxy(host_and_port[0], host_and_port[1] or 80, authorization)


def _is_exempt(host: str, exempt: str) -> bool:
    # The standard library's reading of NO_PROXY: names, their subdomains, "*". The stubs do not know it.
    bypass = vars(urllib.request)["proxy_bypass_environment"]
    return bool(bypass(host, {"no": exempt}))


class ConnectTunnel(Protocol):
    """Asks a forward proxy for a tunnel, then hands the transport to the next protocol (RFC 9110 section 9.3.6).

    :ivar ready: fires with the transport, or fails with :class:`DialError`.
    """

    def __init__(self, host: str, port: int, proxy: HttpProxy) -> None:
        authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._head = b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n" % (authority.encode(), authority.encode())
        if proxy.authorization is not None:
            self._head += b"Proxy-Authorization: " + proxy.authorization + b"\r\n"
        self._answer = b""
        self.ready: Deferred[Any] = Deferred()

    def connectionMade(self) -> None:
        """Ask."""
        cast(Any, self.transport).write(self._head + b"\r\n")

    def dataReceived(self, data: bytes) -> None:
        """Read the proxy's answer; the upstream itself never speaks first."""
        if self.ready.called:
            return
        self._answer += data
        head, end, rest = self._answer.partition(b"\r\n\r\n")
        if not end:
            if len(self._answer) > _MAX_PROXY_ANSWER_BYTES:
                self._failed("the forward proxy's answer is too long")
            return
        parts = head.split(b"\r\n", 1)[0].split(b" ", 2)
        if len(parts) < 2 or not parts[0].startswith(b"HTTP/1.") or not parts[1].isdigit():
            self._failed("the forward proxy did not answer with HTTP/1.1")
        elif parts[1][:1] != b"2" or len(parts[1]) != 3:
            self._failed(f"the forward proxy refused the tunnel with status {parts[1][:3].decode('ascii')}")
        elif rest:
            self._failed("the forward proxy sent bytes before the tunnel was used")
        else:
            self.ready.callback(self.transport)

    def _failed(self, text: str) -> None:
        cast(Any, self.transport).abortConnection()
        self.ready.errback(Failure(DialError(PROXY, text)))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The proxy left before it answered."""
        if not self.ready.called:
            self.ready.errback(Failure(DialError(PROXY, "the forward proxy closed the connection")))


class Dialer:
    """Opens connections to one host and port.

    :param reactor: for endpoints and the deadline.
    :param tls: a context, or None for plain TCP.
    :param timeout_s: for all steps together; 0 waits as long as TCP does.
    :param endpoint: where to connect instead of the host or the proxy, for tests.
    """

    def __init__(
        self,
        reactor: Any,
        host: str,
        port: int,
        *,
        tls: ssl.SSLContext | None,
        proxy: HttpProxy | None,
        timeout_s: float,
        endpoint: IStreamClientEndpoint | None = None,
    ) -> None:
        self._reactor = reactor
        self._host = host
        self._port = port
        self._tls = tls
        self._proxy = proxy if tls is not None else None
        self._timeout_s = timeout_s
        at = self._proxy or HttpProxy(host, port)
        self._endpoint: Any = endpoint or HostnameEndpoint(
            reactor, at.host, at.port, timeout=timeout_s or 86400, attemptDelay=ATTEMPT_DELAY_S
        )

    def dial(self, make: Callable[[], IProtocol]) -> Deferred[IProtocol]:
        """A connected protocol from ``make``. Fails with :class:`DialError`; can be cancelled."""
        return _Attempt(self, make).begin()


class _OneProtocol(Factory):
    """For an endpoint: the protocol that is there already."""

    noisy = False

    def __init__(self, protocol: IProtocol) -> None:
        self._protocol = protocol

    def buildProtocol(self, addr: IAddress | None) -> Any:
        """See IProtocolFactory."""
        return self._protocol


class _Attempt:
    """One opening: the steps one after the other, with the deadline over all of them."""

    def __init__(self, dialer: Dialer, make: Callable[[], IProtocol]) -> None:
        self._d = dialer
        self._inner = make()
        self._transport: Any = None
        self._timed_out = False
        self._step: Deferred[Any] | None = None
        self.result: Deferred[IProtocol] = Deferred(lambda _: self._stop())
        self._timer: Any = None

    def begin(self) -> Deferred[IProtocol]:
        d = self._d
        if d._timeout_s:
            self._timer = d._reactor.callLater(d._timeout_s, self._deadline)
        step = self._step = maybeDeferred(self._open)
        step.addCallbacks(self._succeeded, self._failed)
        return self.result

    def _open(self) -> Deferred[Any]:
        d = self._d
        if d._proxy is None:
            return self._connect(self._last_stage())
        tunnel = ConnectTunnel(d._host, d._port, d._proxy)
        return self._connect(tunnel).addCallback(lambda _: tunnel.ready).addCallback(self._through_tunnel)

    def _connect(self, first: IProtocol) -> Deferred[Any]:
        connecting: Deferred[Any] = self._d._endpoint.connect(_OneProtocol(first))
        return connecting.addCallback(self._connected, first)

    def _last_stage(self) -> IProtocol:
        d = self._d
        if d._tls is None:
            return self._inner
        return TlsClient(d._tls, d._host, self._inner)

    def _connected(self, protocol: Any, first: IProtocol) -> Any:
        self._transport = protocol.transport
        _talk_to(self._transport, first)
        return first.ready if isinstance(first, TlsClient) else protocol

    def _through_tunnel(self, transport: Any) -> Any:
        stage = self._last_stage()
        _talk_to(transport, stage)
        stage.makeConnection(transport)
        return stage.ready if isinstance(stage, TlsClient) else stage

    def _deadline(self) -> None:
        self._timer = None
        self._timed_out = True
        self._stop()

    def _stop(self) -> None:
        if self._transport is not None:
            self._transport.abortConnection()
        if self._step is not None:
            self._step.cancel()

    def _end_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _succeeded(self, _: object) -> None:
        self._end_timer()
        self.result.callback(self._inner)

    def _failed(self, reason: Failure) -> None:
        self._end_timer()
        if not self.result.called:
            error = self._error(reason)
            self.result.errback(reason if error is None else Failure(error))

    def _error(self, reason: Failure) -> Exception | None:
        """What to say of it; None for a fault of our own."""
        if self._timed_out or reason.check(TcpTimeoutError) is not None:
            return DialError(TIMEOUT, "no connection within the time allowed")
        if reason.check(DialError) is not None:
            return cast(Exception, reason.value)
        if reason.check(DNSLookupError, ValueError) is not None:  # ValueError: it is no name
            return DialError(NAME, "the name could not be resolved")
        if reason.check(TlsError) is not None:
            return DialError(TLS, f"TLS: {reason.value}")
        if self._transport is not None and self._d._tls is not None:
            return DialError(TLS, "TLS: the connection ended during the handshake")
        if reason.check(CancelledError) is not None:
            return DialError(CONNECT, "given up")
        if reason.check(ConnectError, ConnectingCancelledError, ConnectionClosed, OSError) is None:
            return None
        number = getattr(reason.value, "osError", None) or getattr(reason.value, "errno", None)
        why = os.strerror(number) if isinstance(number, int) else type(reason.value).__name__
        return DialError(CONNECT, f"the connection was refused or could not be made: {why}")


def _talk_to(transport: Any, protocol: IProtocol) -> None:
    """Let the socket speak with ``protocol`` directly; an endpoint leaves a wrapper of its own between the two."""
    if isinstance(transport, Connection):
        transport.protocol = protocol
