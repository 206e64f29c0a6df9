"""What systemd hears, on a real socket and a clock."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from typing import Any

from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.lifecycle.notify import Notify


class Telling(SynchronousTestCase):
    """The messages."""

    def setUp(self) -> None:
        """A socket as systemd has one."""
        self.folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.folder)
        self.clock = Clock()
        self.clock.advance(17.25)
        self.warnings: list[Any] = []
        globalLogPublisher.addObserver(self.warnings.append)  # type: ignore[arg-type]
        self.addCleanup(globalLogPublisher.removeObserver, self.warnings.append)  # type: ignore[arg-type]

    def listen(self, name: str) -> socket.socket:
        """The other end."""
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(listening.close)
        listening.bind(name)
        listening.setblocking(False)
        return listening

    def notify(self, **environ: str) -> Notify:
        """What tells, in process 7."""
        clock: Any = self.clock
        notify = Notify(environ, clock, lambda: 7)
        self.addCleanup(notify.close)
        return notify

    def hears(self, listening: socket.socket) -> list[str]:
        """All that came."""
        heard = []
        while True:
            try:
                heard.append(listening.recv(1000).decode())
            except BlockingIOError:
                return heard

    def test_messages(self) -> None:
        """Each state is one message, to a path or an abstract address."""
        abstract = f"llmproxy-unit-{os.getpid()}"
        for name, address in ((os.path.join(self.folder, "s"),) * 2, ("\0" + abstract, "@" + abstract)):
            listening = self.listen(name)
            notify = self.notify(NOTIFY_SOCKET=address)
            notify.ready("listening")
            notify.reloading()
            notify.stopping("stopping")
            notify.status("waiting")
            self.assertEqual(
                self.hears(listening),
                [
                    "READY=1\nSTATUS=listening",
                    "RELOADING=1\nMONOTONIC_USEC=17250000",
                    "STOPPING=1\nSTATUS=stopping",
                    "STATUS=waiting",
                ],
            )
            self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_nobody_asked(self) -> None:
        """Without NOTIFY_SOCKET, or with what systemd never sends, nothing happens and nothing is said."""
        for address in ("", "relative", "vsock:2:1"):
            notify = self.notify(NOTIFY_SOCKET=address, WATCHDOG_USEC="")
            notify.ready("listening")
            notify.close()
        self.assertEqual(self.warnings, [])

    def test_watchdog(self) -> None:
        """It is fed twice in its time, from ready to close, and once begun it is not begun again."""
        address = os.path.join(self.folder, "s")
        listening = self.listen(address)
        for pid in ("", "7"):
            notify = self.notify(NOTIFY_SOCKET=address, WATCHDOG_USEC="3000000", WATCHDOG_PID=pid)
            self.assertEqual(self.clock.getDelayedCalls(), [])
            notify.ready("listening")
            notify.ready("again")
            self.assertEqual(self.hears(listening)[1:2], ["WATCHDOG=1"])
            for _ in range(4):
                self.clock.advance(1.5)
            self.assertEqual(self.hears(listening), ["WATCHDOG=1"] * 4)
            notify.close()
            self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_no_watchdog(self) -> None:
        """A watchdog of another process, or one that is off or nonsense, is not fed."""
        address = os.path.join(self.folder, "s")
        self.listen(address)
        for usec, pid in (("3000000", "8"), ("0", ""), ("", ""), ("-5", ""), ("soon", "")):
            self.notify(NOTIFY_SOCKET=address, WATCHDOG_USEC=usec, WATCHDOG_PID=pid).ready("listening")
            self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_lost(self) -> None:
        """What cannot be sent is lost; that is said once, and raises nothing. A full socket is not waited for."""
        notify = self.notify(NOTIFY_SOCKET=os.path.join(self.folder, "nobody"))
        notify.ready("listening")
        notify.status("waiting")
        self.assertEqual([each["log_level"].name for each in self.warnings], ["warn"])
        address = os.path.join(self.folder, "s")
        listening = self.listen(address)
        notify = self.notify(NOTIFY_SOCKET=address)
        for number in range(2000):
            notify.status(str(number))
        self.assertEqual(self.hears(listening)[0], "STATUS=0")
        self.assertEqual(len(self.warnings), 2)
