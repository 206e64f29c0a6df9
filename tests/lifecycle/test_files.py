"""Descriptors that run out: a pause and one line, never a spin."""

from __future__ import annotations

import errno
import resource
import socket
from typing import Any

from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.lifecycle import files


class _Listening(socket.socket):
    """A listening socket whose next accepts fail with these numbers."""

    failures: list[int]

    def accept(self) -> Any:
        if self.failures:
            raise OSError(self.failures.pop(0), "said the kernel")
        return "a connection", ("192.0.2.1", 1)


class _Port:
    """An open port of Twisted's, as far as it matters here."""

    connected = True
    disconnecting = False

    def __init__(self, listening: Any) -> None:
        self.socket = listening
        self.reading = True

    def stopReading(self) -> None:
        self.reading = False

    def startReading(self) -> None:
        self.reading = True


class Accepting(SynchronousTestCase):
    """A port at the limit."""

    def setUp(self) -> None:
        """A port, a clock, and the log."""
        listening = _Listening()
        self.addCleanup(listening.close)
        self.failures = listening.failures = []
        self.clock = Clock()
        self.port = _Port(listening)
        files.pause_when_full(self.port, self.clock)
        self.events: list[Any] = []
        globalLogPublisher.addObserver(self.events.append)  # type: ignore[arg-type]
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)  # type: ignore[arg-type]

    def test_full(self) -> None:
        """Whatever there is none left of: nobody is accepted, the port pauses, and goes on a moment later."""
        for number in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
            self.failures.append(number)
            self.assertRaises(BlockingIOError, self.port.socket.accept)
            self.assertFalse(self.port.reading)
            self.clock.advance(files.PAUSE_S)
            self.assertTrue(self.port.reading)
            self.assertEqual(self.port.socket.accept()[0], "a connection")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_one_line(self) -> None:
        """An hour at the limit is one line of log in ten seconds, not two in each."""
        for _ in range(100):
            self.failures.append(errno.EMFILE)
            self.assertRaises(BlockingIOError, self.port.socket.accept)
            self.clock.advance(files.PAUSE_S)
        self.assertEqual(len(self.events), 100 * files.PAUSE_S / files.TELL_S)

    def test_other_errors(self) -> None:
        """What is no want of descriptors is Twisted's to deal with, and so is all else of the socket."""
        self.failures.append(errno.ECONNABORTED)
        error = self.assertRaises(OSError, self.port.socket.accept)
        self.assertEqual(error.errno, errno.ECONNABORTED)
        self.assertTrue(self.port.reading)
        self.assertGreater(self.port.socket.fileno(), 0)

    def test_closed_meanwhile(self) -> None:
        """A port that was closed in its pause stays closed."""
        for name, value in (("connected", False), ("disconnecting", True)):
            self.failures.append(errno.EMFILE)
            self.assertRaises(BlockingIOError, self.port.socket.accept)
            setattr(self.port, name, value)
            self.clock.advance(files.PAUSE_S)
            self.assertFalse(self.port.reading)

    def test_no_socket(self) -> None:
        """An endpoint of another kind is left as it is."""
        files.pause_when_full(object(), self.clock)


class Limit(SynchronousTestCase):
    """The limit of open files."""

    def warned(self, limit: int, max_connections: int) -> list[Any]:
        """What is said of this limit."""
        events: list[Any] = []
        globalLogPublisher.addObserver(events.append)  # type: ignore[arg-type]
        files.check_limit(limit, max_connections)
        globalLogPublisher.removeObserver(events.append)  # type: ignore[arg-type]
        return events

    def test_warning(self) -> None:
        """Two for each connection and some: less than that is told, with the numbers."""
        enough = 2 * 100 + files.OWN_FILES
        self.assertEqual(self.warned(enough, 100), [])
        (event,) = self.warned(enough - 1, 100)
        self.assertEqual((event["needed"], event["limit"], event["connections"]), (enough, enough - 1, 100))
        self.assertEqual(self.warned(-1, 100), [])
        self.assertEqual(self.warned(10, 0), [])

    def test_raised(self) -> None:
        """The limit becomes what the system allows; where it refuses, it is what it was."""
        limits = [(100, 1000)]
        self.patch(resource, "getrlimit", lambda _: limits[-1])
        self.patch(resource, "setrlimit", lambda _, wanted: limits.append(wanted))
        self.assertEqual(files.raise_limit(), 1000)
        self.assertEqual(limits[-1], (1000, 1000))

        def refuses(_: int, wanted: object) -> None:
            raise ValueError("not allowed")

        limits[-1] = (100, 1000)
        self.patch(resource, "setrlimit", refuses)
        self.assertEqual(files.raise_limit(), 100)
