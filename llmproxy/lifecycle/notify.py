"""What systemd is told of the service: ready, reloading, stopping, alive (sd_notify(3)).

The rule: it is told, and never waited for. A message that cannot be sent is lost, and the first loss is logged. Where
nobody asked (no ``NOTIFY_SOCKET``) nothing happens.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger


class Notify:
    """Sends the state of this process to the socket that ``NOTIFY_SOCKET`` names.

    :param environ: also for ``WATCHDOG_USEC`` and ``WATCHDOG_PID`` (sd_watchdog_enabled(3)).
    :param clock: seconds since the system's start, as CLOCK_MONOTONIC has them.
    """

    _log = Logger()

    def __init__(self, environ: Mapping[str, str], clock: IReactorTime, pid: Callable[[], int] = os.getpid) -> None:
        name = environ.get("NOTIFY_SOCKET", "")
        # An abstract address is written with an @ in the place of its null byte. Anything else systemd does not send.
        self._address = "\0" + name[1:] if name.startswith("@") else name if name.startswith("/") else ""
        self._clock = clock
        self._pid = pid
        self._watchdog = (environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", ""))
        self._beat: IDelayedCall | None = None
        self._socket: socket.socket | None = None
        self._told_of_loss = False

    def ready(self, status: str) -> None:
        """The service serves, for the first time or after a reload. The watchdog is fed from the first time on."""
        self._send("READY=1", f"STATUS={status}")
        usec, pid = self._watchdog
        if self._beat is None and usec.isdigit() and int(usec) and pid in ("", str(self._pid())):
            self._feed(int(usec) / 2_000_000)

    def reloading(self) -> None:
        """A new configuration is being taken; :meth:`ready` says that it is done with."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={int(self._clock.seconds() * 1_000_000)}")

    def stopping(self, status: str) -> None:
        """The end of service has begun. It is still alive, and says so."""
        self._send("STOPPING=1", f"STATUS={status}")

    def status(self, status: str) -> None:
        """One line for whoever asks systemctl."""
        self._send(f"STATUS={status}")

    def close(self) -> None:
        """Nothing more is said."""
        if self._beat is not None:
            self._beat.cancel()
            self._beat = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._address = ""

    def _feed(self, every_s: float) -> None:
        self._beat = self._clock.callLater(every_s, self._feed, every_s)
        self._send("WATCHDOG=1")

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        try:
            if self._socket is None:
                # Kept open: a process that has no descriptor left must not be taken for dead as well.
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            self._socket.sendto("\n".join(lines).encode(), self._address)
        except OSError as error:
            if not self._told_of_loss:
                self._told_of_loss = True
                self._log.warn("systemd cannot be told: {reason}", reason=error.strerror or str(error))
