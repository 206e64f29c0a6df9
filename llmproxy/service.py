"""The running proxy as a Twisted service: listens, serves, takes a new configuration, stops.

What can go wrong at the start (a port in use, a directory that cannot be written) is one line on standard error and
exit status 1, never a traceback and never a process that lives on without its port. The end is the operator's: it
begins with a signal, and goes by the steps of lifecycle/drain.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NoReturn, Protocol

from twisted.application.service import IService, Service
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IReactorTime, IStreamServerEndpoint
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from llmproxy.assembly import StartError
from llmproxy.config.model import Config
from llmproxy.lifecycle.drain import Drain
from llmproxy.lifecycle.files import pause_when_full
from llmproxy.lifecycle.notify import Notify
from llmproxy.web.site import ProxySite

LAST_WORDS_S: Final = 1.0
"""How long the last answers of a stop may take to go out: an error for who still waits, the rest of what was said."""


class Assembled(Protocol):
    """A proxy that is put together; see :class:`~llmproxy.assembly.Assembly`."""

    site: ProxySite

    def replace(self, config: Config) -> None:
        """Serve with ``config`` from now on."""

    def close(self) -> None:
        """End everything now."""

    def write_rest(self) -> None:
        """Write what is to be kept of what has ended."""


class Process(Protocol):
    """What the service asks of the process that it is in."""

    clock: IReactorTime

    def take_signals(self, end: Callable[[str], None], reload: Callable[[], None]) -> None:
        """From now on, call ``end`` with the name of a signal that ends, and ``reload`` for one that reloads."""

    def end(self, status: int = 0) -> None:
        """End the process with this exit status; ``stopService`` is called first."""

    def refuse(self, text: str) -> NoReturn:
        """End the process with status 1 and these words."""

    def flush_log(self) -> None:
        """Write what is not written yet."""


@implementer(IService)
class ProxyService(Service):
    """Listens on one endpoint.

    :param assemble: puts the proxy together; called when the service starts, after privileges were dropped. May raise
        :class:`~llmproxy.assembly.StartError`.
    :param endpoint: where to listen.
    :param banner: says in a few words what was started; gets the address that is listened on.
    :param reload: loads a new configuration and passes it on; False when it did not come to that.
    """

    _log = Logger()

    def __init__(
        self,
        assemble: Callable[[], Assembled],
        endpoint: IStreamServerEndpoint,
        banner: Callable[[str], str],
        process: Process,
        notify: Notify,
        reload: Callable[[Callable[[Config], None]], bool],
    ) -> None:
        self._assemble = assemble
        self._endpoint = endpoint
        self._banner = banner
        self._process = process
        self._notify = notify
        self._reload = reload
        self._assembly: Assembled | None = None
        self._port: Any = None
        self._drain: Drain | None = None
        self._listens_no_more = False

    def startService(self) -> None:
        """Build, then listen."""
        super().startService()
        try:
            self._assembly = self._assemble()
        except StartError as error:
            self._process.refuse(str(error))
        failures: list[Failure] = []
        listening = maybeDeferred(self._endpoint.listen, self._assembly.site)
        listening.addCallbacks(self._listening, failures.append)
        if failures:
            self._process.refuse(_why_not(failures[0]))
        # An endpoint of somebody's plugin may take its time. Then it fails in the reactor, which swallows a refusal.
        listening.addCallback(self._failed_late, failures)
        self._process.take_signals(self.end, self.reload)

    def _failed_late(self, _: object, failures: list[Failure]) -> None:
        if failures:
            self._log.critical("{why}", why=_why_not(failures[0]))
            self._process.end(1)

    def _listening(self, port: IListeningPort) -> None:
        if self._listens_no_more:
            port.stopListening()
            return
        self._port = port
        pause_when_full(port, self._process.clock)
        address = address_text(port.getHost())
        self._log.info("{banner}", banner=self._banner(address))
        self._notify.ready(f"listening on {address}")

    def end(self, cause: str) -> None:
        """End the service in peace; when that has begun already, end it now. ``cause``: whose wish it is."""
        if self._drain is not None:
            self._drain.cut(f"{cause} again")
        elif self._assembly is not None:
            self._notify.stopping("stopping")
            self._drain = Drain(
                self._assembly.site, self._process.clock, self._stop_listening, self._process.end, self._notify.status
            )
            self._drain.begin(cause)

    def reload(self) -> None:
        """Take the configuration anew."""
        if self._drain is not None or self._assembly is None:
            self._log.warn("not reloaded: the proxy is stopping")
            return
        self._notify.reloading()
        words = "the last reload failed, see the log; running as before"
        try:
            if self._reload(self._assembly.replace):
                words = "reloaded"
        finally:
            self._notify.ready(words)

    def stopService(self) -> Deferred[None]:
        """Stop listening and close what is open; fires when the port is closed."""
        super().stopService()
        return self._stop_listening().addCallback(self._close).addCallback(self._closed)

    def _stop_listening(self) -> Deferred[None]:
        self._listens_no_more = True
        port, self._port = self._port, None
        if port is None:
            return succeed(None)
        return maybeDeferred(port.stopListening).addErrback(self._still_listening)

    def _still_listening(self, reason: Failure) -> None:
        # Whatever it is, what is open is closed all the same, and the port goes with the process.
        self._log.failure("the port could not be closed", failure=reason)

    def _close(self, _: object) -> Deferred[None]:
        """End what is open. That takes the reactor a turn, or some where what was said last has to go through TLS."""
        assembly, self._assembly = self._assembly, None
        if assembly is None:
            return succeed(None)
        assembly.close()
        drained = assembly.site.when_drained().addTimeout(LAST_WORDS_S, self._process.clock, lambda *_: None)
        return drained.addBoth(lambda _: assembly.write_rest())

    def _closed(self, _: object) -> None:
        self._notify.close()
        self._process.flush_log()


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
