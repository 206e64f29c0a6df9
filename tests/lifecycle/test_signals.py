"""Signals of the process come in the reactor's own turn, and are ours when it runs."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from llmproxy.lifecycle import signals
from llmproxy.lifecycle.signals import take_signals

NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class _Reactor:
    """As Twisted's at its start: calls wait for its turn, and its own handlers are put in place of others."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], None]] = []
        self.when_running: list[Callable[[], None]] = []

    def callFromThread(self, call: Callable[[], None]) -> None:
        self.calls.append(call)

    def callWhenRunning(self, call: Callable[[], None]) -> None:
        self.when_running.append(call)

    def addSystemEventTrigger(self, phase: str, event: str, call: Callable[[], None]) -> None:
        self.ended = call, phase, event

    def turn(self) -> None:
        calls, self.calls = self.calls, []
        for call in calls:
            call()

    def run(self) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        for call in self.when_running:
            call()


class Signals(SynchronousTestCase):
    """What each one does."""

    def setUp(self) -> None:
        """Whatever was there is there again afterwards."""
        for number in NUMBERS:
            self.addCleanup(signal.signal, number, signal.getsignal(number))
        self.reactor = _Reactor()
        self.heard: list[Any] = []

    def take(self) -> None:
        """Take them."""
        take_signals(self.reactor, self.heard.append, lambda: self.heard.append("reload"))

    def raised(self, *numbers: int) -> list[Any]:
        """What comes of these, in the reactor's next turn."""
        for number in numbers:
            signal.raise_signal(number)
        self.assertEqual(self.heard, [])  # not in the middle of anything
        self.reactor.turn()
        heard = self.heard[:]
        self.heard.clear()
        return heard

    def test_each(self) -> None:
        """SIGTERM and SIGINT end, SIGHUP reloads, in the order in which they came, before and after the start."""
        self.take()
        self.assertEqual(self.raised(*NUMBERS), ["SIGTERM", "SIGINT", "reload"])
        self.reactor.run()
        self.assertEqual(self.raised(*NUMBERS), ["SIGTERM", "SIGINT", "reload"])

    def test_at_the_end(self) -> None:
        """When all is over, one more signal of an impatient operator does not make a clean exit a failure."""
        self.take()
        call, *when = self.reactor.ended
        self.assertEqual(when, ["after", "shutdown"])
        call()
        self.assertEqual(self.raised(*NUMBERS), [])
        self.assertEqual([signal.getsignal(number) for number in NUMBERS], [signal.SIG_IGN] * 3)

    def test_ignored(self) -> None:
        """A background job that was told to ignore SIGINT goes on to; nohup does not keep a proxy from reloading."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        self.take()
        self.reactor.run()
        self.assertEqual(self.raised(signal.SIGINT, signal.SIGHUP), ["reload"])

    def test_terminal(self) -> None:
        """SIGHUP from a terminal that is gone ends; from one that is there, or under nohup, it reloads."""
        for inherited, there, expected in (
            (signal.SIG_DFL, [True, True], "reload"),
            (signal.SIG_DFL, [True, False], "the end of the terminal"),
            (signal.SIG_DFL, [False, False], "reload"),
            (signal.SIG_IGN, [True, False], "reload"),
        ):
            signal.signal(signal.SIGHUP, inherited)
            answers = list(there)
            self.patch(signals, "has_terminal", lambda a=answers: a.pop(0) if len(a) > 1 else a[0])
            self.take()
            self.assertEqual(self.raised(signal.SIGHUP), [expected])
