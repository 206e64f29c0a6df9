"""The running proxy as a Twisted service: listens, serves, stops.

What can go wrong at the start (a port in use, a directory that cannot be written) is one line on standard error and
exit status 1, never a traceback and never a process that lives on without its port.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from twisted.application.service import IService, Service
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IStreamServerEndpoint
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from llmproxy.upstream.origin import Origin
from llmproxy.web.site import ProxySite


class StartError(Exception):
    """The proxy cannot start; the text is one line for the operator."""


@dataclass(frozen=True, slots=True)
class Assembly:
    """What the assembly function has built: the site that serves, and the origins whose connections must be closed."""

    site: ProxySite
    origins: tuple[Origin, ...]


@implementer(IService)
class ProxyService(Service):
    """Listens on one endpoint.

    :param assemble: builds the proxy; called when the service starts, after privileges were dropped. May raise
        :class:`StartError`.
    :param endpoint: where to listen.
    :param banner: says in a few words what was started; gets the address that is listened on.
    :param refuse: ends the process with the text of a :class:`StartError`.
    """

    _log = Logger()

    def __init__(
        self,
        assemble: Callable[[], Assembly],
        endpoint: IStreamServerEndpoint,
        banner: Callable[[str], str],
        refuse: Callable[[str], NoReturn],
        flush_log: Callable[[], None],
    ) -> None:
        self._assemble = assemble
        self._endpoint = endpoint
        self._banner = banner
        self._refuse = refuse
        self._flush_log = flush_log
        self._assembly: Assembly | None = None
        self._port: Any = None

    def startService(self) -> None:
        """Build, then listen."""
        super().startService()
        try:
            self._assembly = self._assemble()
        except StartError as error:
            self._refuse(str(error))
        failures: list[Failure] = []
        listening = maybeDeferred(self._endpoint.listen, self._assembly.site)
        listening.addCallbacks(self._listening, failures.append)
        if failures:
            self._refuse(_why_not(failures[0]))

    def _listening(self, port: IListeningPort) -> None:
        self._port = port
        self._log.info("{banner}", banner=self._banner(address_text(port.getHost())))

    def stopService(self) -> Deferred[None]:
        """Stop listening and close what is open; fires when the port is closed."""
        super().stopService()
        port, self._port = self._port, None
        stopped = maybeDeferred(port.stopListening) if port is not None else maybeDeferred(lambda: None)
        return stopped.addCallback(self._close)

    def _close(self, _: object) -> None:
        assembly, self._assembly = self._assembly, None
        if assembly is not None:
            assembly.site.stop()
            for origin in assembly.origins:
                origin.close()
        self._flush_log()


def address_text(address: object) -> str:
    """An address as an operator writes it: ``host:port``, or the path of a UNIX socket."""
    host, port = getattr(address, "host", None), getattr(address, "port", None)
    if host is not None and port is not None:
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    name = getattr(address, "name", None)
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name or address)


def _why_not(reason: Failure) -> str:
    error = reason.value
    if isinstance(error, CannotListenError):
        where = f"port {error.port}" if isinstance(error.port, int) else str(error.port)
        cause = getattr(error.socketError, "strerror", None) or str(error.socketError)
        return f"cannot listen on {where}: {cause}"
    cause = getattr(error, "strerror", None) or str(error) or type(error).__name__
    path = getattr(error, "filename2", None) or getattr(error, "filename", None)
    name = path.decode("utf-8", "replace") if isinstance(path, bytes) else path
    # A UNIX socket is locked first, by a file of that name; the operator wrote the socket's.
    return f"cannot listen on {name.removesuffix('.lock')}: {cause}" if name else f"cannot listen: {cause}"
