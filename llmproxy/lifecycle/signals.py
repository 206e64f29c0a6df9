"""The signals of the process: SIGTERM and SIGINT end it in peace, SIGHUP reloads its configuration.

The rule: they are ours from the moment at which there is something to end. Twisted installs its own when the reactor
starts, and those would end the process as killed by the signal (exit status 143) whatever was done in between; so ours
are installed twice, at once for a signal that comes early, and again when the reactor runs.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any


def has_terminal() -> bool:
    """Whether this process has a controlling terminal, wherever its output goes (tty(4): it is ``/dev/tty``)."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def take_signals(reactor: Any, end: Callable[[str], None], reload: Callable[[], None]) -> None:
    """From now on call ``end`` with a signal's name, or ``reload``, in the reactor's own thread and turn.

    What was told to ignore SIGINT goes on to do so: a shell starts background jobs of a script that way. SIGHUP also
    comes when a terminal is closed: whoever has lost the one that it was started in has been left, and ends.

    :param reactor: provides IReactorCore and IReactorFromThreads.
    """
    inherited = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGHUP)}
    in_terminal = inherited[signal.SIGHUP] != signal.SIG_IGN and has_terminal()

    def hangup() -> None:
        if in_terminal and not has_terminal():
            end("the end of the terminal")
        else:
            reload()

    def deliver(call: Callable[[], None]) -> Callable[[int, FrameType | None], None]:
        # A signal comes between any two instructions. What Twisted does with it, and nothing else, is safe there.
        return lambda number, frame: reactor.callFromThread(call)

    def install() -> None:
        signal.signal(signal.SIGTERM, deliver(lambda: end("SIGTERM")))
        if inherited[signal.SIGINT] != signal.SIG_IGN:
            signal.signal(signal.SIGINT, deliver(lambda: end("SIGINT")))
        signal.signal(signal.SIGHUP, deliver(hangup))

    def ignore() -> None:
        # Python gives them their old meaning back when it ends, and a second wish to stop that comes then would make a
        # killed process of one that has ended well.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)

    install()
    reactor.callWhenRunning(install)
    reactor.addSystemEventTrigger("after", "shutdown", ignore)
