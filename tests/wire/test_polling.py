"""Reading without the logging context, on a reactor of its own that the test turns by hand."""

from __future__ import annotations

import contextlib
import socket
from typing import Any

from twisted.internet.epollreactor import EPollReactor
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.tcp import Port, Server
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

import twisted
from llmproxy.wire.direct import COPIED_BYTES, GATHERED_BYTES, writer_for
from llmproxy.wire.polling import read_directly


class Echo(Protocol):
    """Says what it hears; fails when told to."""

    ended: list[str]

    def dataReceived(self, data: bytes) -> None:
        """Echo, or raise."""
        if data == b"fail":
            raise RuntimeError("told to")
        self.transport.write(data)  # type: ignore[union-attr]

    def connectionLost(self, reason: Any = None) -> None:
        """Note why."""
        self.ended.append(reason.type.__name__)


class ReadDirectly(SynchronousTestCase):
    """The reactor's private parts are used in one place, and it still does what a reactor does."""

    def setUp(self) -> None:
        self.reactor = EPollReactor()
        self.assertTrue(read_directly(self.reactor))
        self.ended: list[str] = []
        Echo.ended = self.ended
        factory = Factory.forProtocol(Echo)
        factory.noisy = False
        self.port = Port(0, factory, interface="127.0.0.1", reactor=self.reactor)
        self.port.startListening()
        self.addCleanup(self._clean)
        self.caller = socket.create_connection(("127.0.0.1", self.port.getHost().port), 5)
        self.caller.settimeout(5)
        self.addCleanup(self.caller.close)

    def _clean(self) -> None:
        self.port.loseConnection()
        self.turn(3)
        for descriptor in self.reactor.removeAll():
            descriptor.connectionLost(None)

    def turn(self, times: int = 2) -> None:
        for _ in range(times):
            self.reactor.runUntilCurrent()
            self.reactor.doIteration(0.2)

    def test_version(self) -> None:
        """The private names were read in Twisted 26.10: look at them again before another version is let in."""
        self.assertTrue(twisted.__version__.startswith("26.10."), twisted.__version__)

    def test_echo(self) -> None:
        """A connection is accepted, read and written."""
        self.caller.sendall(b"hello")
        self.turn()
        self.turn(1)
        self.assertEqual(self.caller.recv(100), b"hello")

    def test_end(self) -> None:
        """A caller that closes is noticed, with the reason that it closed."""
        self.turn()
        self.caller.close()
        self.turn()
        self.assertEqual(self.ended, ["ConnectionDone"])

    def test_fault(self) -> None:
        """What a protocol raises is logged and ends that one connection; the loop goes on."""
        self.caller.sendall(b"fail")
        self.turn()
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.assertEqual(self.ended, ["RuntimeError"])
        with socket.create_connection(("127.0.0.1", self.port.getHost().port), 5) as another:
            another.settimeout(5)
            another.sendall(b"still here")
            self.turn(3)
            self.assertEqual(another.recv(100), b"still here")

    def test_other_reactors(self) -> None:
        """Any other reactor is left as it is."""
        self.assertFalse(read_directly(Clock()))


class Speaker(Protocol):
    """Answers through a writer, and notes how much of it the kernel had when it was done."""

    sent: list[int]
    close = False
    size = 5

    def connectionMade(self) -> None:
        """Take the fastest writer."""
        self.writer = writer_for(self.transport)  # type: ignore[arg-type]

    def dataReceived(self, data: bytes) -> None:
        """Two writes."""
        self.writer.write(b"x" * self.size)
        self.writer.write(b"!")
        self.sent.append(self.writer.sent_bytes)
        if self.close:
            self.writer.flush()
            self.transport.loseConnection()  # type: ignore[union-attr]


def _raise(*_: object) -> None:
    raise RuntimeError("told to")


class Gathering(SynchronousTestCase):
    """Sends are made at the end of a turn that brings many events."""

    def begin(self, callers: int, **settings: object) -> list[socket.socket]:
        """Connected callers; each turn is the test's to take."""
        self.reactor = EPollReactor()
        read_directly(self.reactor)
        self.speaker: Any = type("It", (Speaker,), {"sent": [], **settings})
        factory = Factory.forProtocol(self.speaker)
        factory.noisy = False
        port = Port(0, factory, interface="127.0.0.1", reactor=self.reactor)
        port.startListening()
        found = [socket.create_connection(("127.0.0.1", port.getHost().port), 5) for _ in range(callers)]
        for caller in found:
            caller.settimeout(5)
            self.addCleanup(caller.close)
        for _ in range(3):
            self.turn()

        def clean() -> None:
            port.loseConnection()
            self.turn()
            for descriptor in self.reactor.removeAll():
                descriptor.connectionLost(Failure(ConnectionDone()))

        self.addCleanup(clean)
        return found

    def turn(self) -> None:
        self.reactor.runUntilCurrent()
        self.reactor.doIteration(0.2)

    def test_one_event(self) -> None:
        """A turn of one event sends at once."""
        (caller,) = self.begin(1)
        caller.sendall(b"?")
        self.turn()
        self.assertEqual(self.speaker.sent, [6])
        self.assertEqual(caller.recv(100), b"xxxxx!")

    def test_many_events(self) -> None:
        """A turn of many sends when all were dealt with, each connection once and whole."""
        callers = self.begin(3)
        for caller in callers:
            caller.sendall(b"?")
        self.turn()
        self.assertEqual(self.speaker.sent, [0, 0, 0])
        for caller in callers:
            self.assertEqual(caller.recv(100), b"xxxxx!")

    def test_much(self) -> None:
        """More than a bound is never gathered."""
        callers = self.begin(2, size=GATHERED_BYTES + 1)
        for caller in callers:
            caller.sendall(b"?")
        self.turn()
        self.assertEqual(self.speaker.sent, [GATHERED_BYTES + 1] * 2)

    def test_large_pieces(self) -> None:
        """Large pieces go out together too, each once and in order, also where the kernel takes only a part of them."""
        for size in (COPIED_BYTES, GATHERED_BYTES - 1):
            callers = self.begin(2, size=size)
            for connection in list(self.reactor._selectables.values()):
                if isinstance(connection, Server):
                    connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            for caller in callers:
                caller.sendall(b"?")
            self.turn()
            self.assertEqual(self.speaker.sent, [0, 0])
            for caller in callers:
                heard = b""
                while len(heard) < size + 1:
                    caller.setblocking(False)
                    try:
                        heard += caller.recv(1 << 20)
                    except BlockingIOError:
                        self.turn()
                self.assertEqual(heard, b"x" * size + b"!")

    def test_a_fault_in_the_same_turn(self) -> None:
        """What is raised at the end of one connection keeps no answer of another one back."""
        callers = self.begin(2)
        self.speaker.connectionLost = _raise
        callers[0].sendall(b"?")
        callers[1].shutdown(socket.SHUT_WR)
        with contextlib.suppress(RuntimeError):
            self.turn()
        self.speaker.connectionLost = Protocol.connectionLost
        callers[0].settimeout(0.5)
        self.assertEqual(callers[0].recv(100), b"xxxxx!")
        self.flushLoggedErrors(RuntimeError)

    def test_closed_in_the_same_turn(self) -> None:
        """What was written before a connection is closed is still sent."""
        callers = self.begin(2, close=True)
        for caller in callers:
            caller.sendall(b"?")
        self.turn()
        self.turn()
        for caller in callers:
            heard = b""
            while piece := caller.recv(100):
                heard += piece
            self.assertEqual(heard, b"xxxxx!")
