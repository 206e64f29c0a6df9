"""Open files: as many as the system gives, and what happens when they are used up.

The rule: at the limit the proxy goes on with what it has. New connections wait in the kernel's queue until there is
a descriptor for them; nothing is tried again at once, and the log has one line about it, not one for each.
"""

from __future__ import annotations

import errno
import resource
import socket
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

PAUSE_S = 0.5
"""How long nothing is accepted after a connection could not be."""

TELL_S = 10.0
"""How often that is said."""

OWN_FILES = 64
"""What is open besides connections: the port, the log, the reactor's own, name look-ups."""

_FULL = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

_log = Logger()


def raise_limit() -> int:
    """Raise the limit of open files as far as the system lets us, and return it; -1 is no limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):
            return soft
    return hard


def check_limit(limit: int, max_connections: int) -> None:
    """Warn when ``max_connections`` (0: no bound) callers, each with its connection upstream, are more than ``limit``
    files."""
    needed = 2 * max_connections + OWN_FILES
    if 0 <= limit < needed and max_connections:
        _log.warn(
            "server.max_connections: {connections} may need {needed} open files, this process may open {limit}; "
            "raise that (LimitNOFILE= in a systemd unit, ulimit -n in a shell, --ulimit nofile= for a container), "
            "or lower server.max_connections",
            connections=max_connections,
            needed=needed,
            limit=limit,
        )


def pause_when_full(port: Any, clock: IReactorTime) -> None:
    """Let ``port``, an open port of Twisted's, pause when a connection cannot be accepted for want of a descriptor.

    Twisted by itself would close the callers that wait, with three lines of log for each; or, where its spare
    descriptor is gone or does not help, be asked again at once and for ever.
    """
    if isinstance(getattr(port, "socket", None), socket.socket):
        port.socket = _Accepting(port.socket, port.stopReading, lambda: _resume(port), clock)


def _resume(port: Any) -> None:
    if port.connected and not port.disconnecting:
        port.startReading()


class _Accepting:
    """A listening socket whose ``accept`` never fails for want of a descriptor: there is nobody, and then a pause."""

    def __init__(
        self, listening: socket.socket, pause: Callable[[], None], resume: Callable[[], None], clock: IReactorTime
    ) -> None:
        self._listening = listening
        self._pause = pause
        self._resume = resume
        self._clock = clock
        self._tell_at = float("-inf")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._listening, name)

    def accept(self) -> Any:
        """See ``socket.accept``."""
        try:
            return self._listening.accept()
        except OSError as error:
            if error.errno not in _FULL:
                raise
            self._pause()
            self._clock.callLater(PAUSE_S, self._resume)
            now = self._clock.seconds()
            if now >= self._tell_at:
                self._tell_at = now + TELL_S
                _log.warn(
                    "no connection can be accepted: {reason}; new ones wait until others close", reason=error.strerror
                )
            raise BlockingIOError(errno.EAGAIN, "paused") from None
