"""The running service: it listens, or says in one line why it cannot; takes a new configuration; stops in its steps."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any, NoReturn

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import CannotListenError
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.assembly import StartError
from llmproxy.config.model import Config
from llmproxy.lifecycle.notify import Notify
from llmproxy.service import ProxyService, address_text
from tests.web.proxy_in_memory import ProxyInMemory, get, ok, post


class _Refused(Exception):
    """Stands for the end of the process."""


class _Port:
    """An open port."""

    def __init__(self) -> None:
        self.stopped: Deferred[None] = Deferred()
        self.stopping = False

    def getHost(self) -> IPv4Address:
        return IPv4Address("TCP", "127.0.0.1", 9002)

    def stopListening(self) -> Deferred[None]:
        self.stopping = True
        return self.stopped


class _Endpoint:
    """Where the service listens."""

    def __init__(self, result: Callable[[], Deferred[Any]]) -> None:
        self._result = result
        self.factory: Any = None

    def listen(self, factory: Any) -> Deferred[Any]:
        self.factory = factory
        return self._result()


class _Assembly:
    """A proxy in memory, put together."""

    def __init__(self, proxy: ProxyInMemory) -> None:
        self._proxy = proxy
        self.site = proxy.site
        self.taken: list[Config] = []

    def replace(self, config: Config) -> None:
        self.taken.append(config)

    def close(self) -> None:
        self.site.stop()
        for origin in self._proxy.origins:
            origin.close()

    def write_rest(self) -> None:
        """There is no ledger; what had ended by then is noted."""
        self.written = len(self._proxy.access)


class _Process:
    """The process of a service.

    signals: what it called for. ended: how often it was to end. flushed: the access events at each flush of the log.
    """

    def __init__(self, proxy: ProxyInMemory) -> None:
        self._proxy = proxy
        self.clock: Any = proxy.clock
        self.signals: list[Callable[..., None]] = []
        self.refusals: list[str] = []
        self.ended = 0
        self.status = 0
        self.flushed: list[int] = []

    def take_signals(self, end: Callable[[str], None], reload: Callable[[], None]) -> None:
        self.signals = [end, reload]

    def end(self, status: int = 0) -> None:
        self.ended += 1
        self.status = status

    def refuse(self, text: str) -> NoReturn:
        self.refusals.append(text)
        raise _Refused(text)

    def flush_log(self) -> None:
        self.flushed.append(len(self._proxy.access))


class _Notify(Notify):
    """Hears what systemd would."""

    def __init__(self, proxy: ProxyInMemory) -> None:
        super().__init__({}, proxy.clock)
        self.told: list[str] = []

    def _send(self, *lines: str) -> None:
        self.told.append(lines[0])


class _Case(SynchronousTestCase):
    def setUp(self) -> None:
        """A proxy in memory and a port for it."""
        self.proxy = ProxyInMemory()
        self.port = _Port()
        self.endpoint = _Endpoint(lambda: succeed(self.port))
        self.process = _Process(self.proxy)
        self.notify = _Notify(self.proxy)
        self.assembly = _Assembly(self.proxy)
        self.fresh: Config | None = Config()
        self.service = self.make(lambda: self.assembly)

    def make(self, assemble: Callable[[], Any]) -> ProxyService:
        """A service."""
        return ProxyService(
            assemble,
            self.endpoint,  # type: ignore[arg-type]
            lambda address: f"the proxy listens on {address}",
            self.process,
            self.notify,
            self._reload,
        )

    def _reload(self, put_together: Callable[[Config], None]) -> bool:
        if self.fresh is not None:
            put_together(self.fresh)
        return self.fresh is not None


class Starting(_Case):
    """The start."""

    def test_listens(self) -> None:
        """It listens with the site that was assembled, and says where."""
        logged: list[Any] = []
        globalLogPublisher.addObserver(logged.append)  # type: ignore[arg-type]
        self.addCleanup(globalLogPublisher.removeObserver, logged.append)  # type: ignore[arg-type]
        self.service.startService()
        self.assertIs(self.endpoint.factory, self.proxy.site)
        self.assertIn("the proxy listens on 127.0.0.1:9002", [event.get("banner") for event in logged])
        self.assertEqual(self.notify.told, ["READY=1"])
        self.assertEqual(self.process.signals, [self.service.end, self.service.reload])

    def test_nothing_before(self) -> None:
        """Nothing is assembled or opened before the service starts: privileges have not been dropped yet."""
        assembled: list[int] = []
        self.make(lambda: assembled.append(1))
        self.assertEqual(assembled, [])

    def test_cannot_be_assembled(self) -> None:
        """What is missing is one line, and there is no port."""

        def assemble() -> Any:
            raise StartError("the state directory cannot be written")

        self.assertRaises(_Refused, self.make(assemble).startService)
        self.assertEqual(self.process.refusals, ["the state directory cannot be written"])
        self.assertIsNone(self.endpoint.factory)

    def test_port_in_use(self) -> None:
        """A port that is taken is one line that names it."""
        error = OSError(errno.EADDRINUSE, "Address already in use")
        self.endpoint = _Endpoint(lambda: fail(CannotListenError("", 9002, error)))
        service = self.make(lambda: self.assembly)
        self.assertRaises(_Refused, service.startService)
        self.assertEqual(self.process.refusals, ["cannot listen on port 9002: Address already in use"])

    def test_endpoint_that_raises(self) -> None:
        """An endpoint that fails in a way of its own is one line too."""

        def broken() -> Deferred[Any]:
            raise ValueError("no certificate")

        self.endpoint = _Endpoint(broken)
        self.assertRaises(_Refused, self.make(lambda: self.assembly).startService)
        self.assertEqual(self.process.refusals, ["cannot listen: no certificate"])

    def test_endpoint_that_fails_later(self) -> None:
        """An endpoint that takes its time and then fails is told, and ends the process with status 1."""
        later: Deferred[Any] = Deferred()
        logged: list[Any] = []
        globalLogPublisher.addObserver(logged.append)  # type: ignore[arg-type]
        self.addCleanup(globalLogPublisher.removeObserver, logged.append)  # type: ignore[arg-type]
        self.endpoint = _Endpoint(lambda: later)
        self.make(lambda: self.assembly).startService()
        self.assertEqual(self.process.ended, 0)
        later.errback(CannotListenError("", 9002, OSError(errno.EADDRINUSE, "Address already in use")))
        self.assertEqual((self.process.ended, self.process.status), (1, 1))
        self.assertIn("cannot listen on port 9002: Address already in use", [event.get("why") for event in logged])

    def test_endpoint_that_listens_too_late(self) -> None:
        """A port that opens when the proxy is about to stop is closed, and nobody is told that it listens."""
        later: Deferred[Any] = Deferred()
        self.endpoint = _Endpoint(lambda: later)
        service = self.make(lambda: self.assembly)
        service.startService()
        service.end("SIGTERM")
        later.callback(self.port)
        self.assertTrue(self.port.stopping)
        self.assertNotIn("READY=1", self.notify.told)


class Stopping(_Case):
    """The end."""

    def test_port_that_does_not_close(self) -> None:
        """A port whose closing fails keeps nothing from being closed and written."""
        self.service.startService()
        self.proxy.exchange(get("/openai/v1/models"), ok())
        stopped = self.service.stopService()
        self.port.stopped.errback(OSError(errno.EIO, "Input/output error"))
        self.proxy.clock.advance(0)
        self.successResultOf(stopped)
        self.assertEqual(self.proxy.site.channels, set())
        self.assertEqual(len(self.process.flushed), 1)
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 1)

    def test_idle(self) -> None:
        """Idle connections on both sides are closed, no timer is left, the log is flushed."""
        self.service.startService()
        self.proxy.exchange(get("/openai/v1/models"), ok())
        stopped = self.service.stopService()
        self.assertTrue(self.port.stopping)
        self.assertNoResult(stopped)
        self.port.stopped.callback(None)
        self.proxy.clock.advance(0)
        self.successResultOf(stopped)
        self.assertEqual(self.proxy.site.channels, set())
        self.assertTrue(self.proxy.provider().closed)
        self.assertEqual(self.proxy.clock.getDelayedCalls(), [])
        self.assertEqual(len(self.process.flushed), 1)

    def test_in_flight(self) -> None:
        """What is still running is ended visibly, and its access events are there when the log is flushed."""
        self.service.startService()
        callers = [self.proxy.caller() for _ in range(4)]
        for caller in callers[:3]:
            caller.says(post("/openai/v1/chat/completions", b"{}"))
        first, second, _ = self.proxy.endpoints["openai"].connections
        first.says(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n")
        second.says(b"HTTP/1.1 200 O")
        self.proxy.endpoints["openai"].slow = True
        callers[3].says(get("/openai/v1/models"))
        stopped = self.service.stopService()
        self.port.stopped.callback(None)
        self.assertNoResult(stopped)
        self.proxy.clock.advance(0)
        self.successResultOf(stopped)
        self.assertEqual(self.process.flushed, [4])
        self.assertEqual({each["end_reason"] for each in self.proxy.access}, {"drain"})
        self.assertEqual(len(self.proxy.access), 4)
        for caller in callers:
            self.assertTrue(caller.closed)
            self.assertFalse(caller.heard().endswith(b"0\r\n\r\n"))
        self.assertEqual({far.closed for far in self.proxy.endpoints["openai"].connections}, {True})
        self.assertEqual(self.proxy.endpoints["openai"].waiting, [])
        self.assertEqual(self.proxy.clock.getDelayedCalls(), [])
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_last_words(self) -> None:
        """An answer that is not out yet when the service stops has a moment to go; then the process ends anyway."""
        for takes in (True, False):
            self.setUp()
            self.port.stopped.callback(None)
            self.service.startService()
            caller = self.proxy.caller()
            caller.stops_reading()
            caller.says(post("/openai/v1/chat/completions", b"{}"))
            stopped = self.service.stopService()
            self.proxy.clock.advance(0.5)
            self.assertNoResult(stopped)
            if takes:
                caller.reads_on()
                self.assertTrue(caller.heard().startswith(b"HTTP/1.1 503 "))
            else:
                self.proxy.clock.advance(0.5)
            self.successResultOf(stopped)
            self.assertEqual(self.process.flushed, [1])

    def test_never_started(self) -> None:
        """Stopping what never listened is no error."""
        self.successResultOf(self.service.stopService())


class Signals(_Case):
    """The end that is asked for from outside, and a new configuration."""

    def test_end(self) -> None:
        """The first signal begins the end; when the last answer is out the process ends, once."""
        self.service.startService()
        caller = self.proxy.caller()
        caller.says(get("/openai/v1/models"))
        self.service.end("SIGTERM")
        self.assertEqual(self.notify.told[:2], ["READY=1", "STOPPING=1"])
        self.assertTrue(self.port.stopping)
        self.assertEqual(self.process.ended, 0)
        self.proxy.provider().says(ok())
        self.proxy.clock.advance(0)
        self.assertEqual(self.process.ended, 1)
        stopped = self.service.stopService()
        self.successResultOf(stopped)
        self.assertEqual(self.process.flushed, [1])
        self.assertEqual([each["end_reason"] for each in self.proxy.access], ["ok"])
        self.proxy.clock.advance(1000)
        self.assertEqual(self.process.ended, 1)
        self.assertEqual(self.proxy.clock.getDelayedCalls(), [])

    def test_again(self) -> None:
        """The second one waits no longer."""
        self.service.startService()
        self.proxy.caller().says(get("/openai/v1/models"))
        self.service.end("SIGTERM")
        self.service.end("SIGINT")
        self.service.end("SIGINT")
        self.assertEqual(self.process.ended, 1)

    def test_before_it_listens(self) -> None:
        """A signal for a service that has not begun is no error."""
        self.service.end("SIGTERM")
        self.service.reload()
        self.assertEqual(self.process.ended, 0)
        self.assertEqual(self.assembly.taken, [])

    def test_reload(self) -> None:
        """A new configuration goes to the proxy; systemd hears when it begins and when it is done."""
        self.service.startService()
        self.service.reload()
        self.assertEqual(self.assembly.taken, [self.fresh])
        self.assertEqual(self.notify.told, ["READY=1", "RELOADING=1", "READY=1"])

    def test_reload_fails(self) -> None:
        """Whatever happens in a reload, systemd hears that the service goes on."""
        self.service.startService()
        self.fresh = None
        self.service.reload()
        self.assertEqual(self.notify.told, ["READY=1", "RELOADING=1", "READY=1"])

        def broken(config: Config) -> None:
            raise RuntimeError("a bug")

        self.fresh = Config()
        self.assembly.replace = broken  # type: ignore[method-assign]
        self.assertRaises(RuntimeError, self.service.reload)
        self.assertEqual(self.notify.told[3:], ["RELOADING=1", "READY=1"])

    def test_no_reload_at_the_end(self) -> None:
        """A service that stops takes no new configuration."""
        self.service.startService()
        self.proxy.caller().says(get("/openai/v1/models"))
        self.service.end("SIGTERM")
        self.service.reload()
        self.assertEqual(self.assembly.taken, [])
        self.assertNotIn("RELOADING=1", self.notify.told)


class Addresses(SynchronousTestCase):
    """An address as an operator writes it."""

    def test_text(self) -> None:
        """Host and port, IPv6 in brackets, or the path of a UNIX socket."""
        for address, text in (
            (IPv4Address("TCP", "127.0.0.1", 1), "127.0.0.1:1"),
            (IPv6Address("TCP", "::", 9002), "[::]:9002"),
            (UNIXAddress("/run/llmproxy.sock"), "/run/llmproxy.sock"),
            ("elsewhere", "elsewhere"),
        ):
            self.assertEqual(address_text(address), text)
