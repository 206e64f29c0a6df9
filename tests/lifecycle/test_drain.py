"""The end of service, step by step, on a clock."""

from __future__ import annotations

from typing import Any

from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.config.model import Server
from llmproxy.lifecycle.drain import TELL_S, Drain
from tests.web.proxy_in_memory import ProxyInMemory, get, ok
from tests.wire.far_end import FarEnd


class Steps(SynchronousTestCase):
    """What happens when."""

    def drain(self, **limits: float) -> ProxyInMemory:
        """A proxy and the end of its service."""
        proxy = self.proxy = ProxyInMemory(server=Server(**limits))  # type: ignore[arg-type]
        clock: Any = proxy.clock
        self.done: list[str] = []
        self.statuses: list[str] = []
        self.ending = Drain(
            proxy.site,
            clock,
            lambda: self.done.append("closed"),
            lambda: self.done.append("over"),
            self.statuses.append,
        )
        events: list[Any] = []
        globalLogPublisher.addObserver(events.append)  # type: ignore[arg-type]
        self.addCleanup(globalLogPublisher.removeObserver, events.append)  # type: ignore[arg-type]
        self.events = events
        return proxy

    def said(self) -> list[str]:
        """The lines of the log."""
        return [
            each["log_format"].format(**each)
            for each in self.events
            if "left" in each or "no con" in each["log_format"]
        ]

    def asking(self) -> FarEnd:
        """A caller whose request is with a provider."""
        caller = self.proxy.caller()
        caller.says(get("/openai/v1/models"))
        return caller

    def test_nothing_to_wait_for(self) -> None:
        """Without connections it is over at once, and no timer is left."""
        proxy = self.drain()
        self.ending.begin("SIGTERM")
        self.assertEqual(self.done, ["closed", "over"])
        self.assertEqual(proxy.clock.getDelayedCalls(), [])
        self.assertEqual(
            self.said(),
            ["SIGTERM: stopping; waiting for 0 requests on 0 connections for at most 600 s", "no connection is left"],
        )

    def test_waits(self) -> None:
        """Requests are waited for, however long they take within the time; it says so from time to time."""
        proxy = self.drain()
        caller = self.asking()
        self.ending.begin("SIGTERM")
        self.assertEqual(self.done, ["closed"])
        proxy.pass_time(TELL_S * 2 + 1)
        words = "no longer listening; waiting for 1 request on 1 connection"
        self.assertEqual(self.said()[1:], [words] * 3)
        self.assertEqual(self.statuses[-1], "stopping; waiting for 1 request on 1 connection")
        proxy.provider().says(ok())
        self.assertIn(b"Connection: close", caller.heard())
        proxy.clock.advance(0)
        self.assertEqual(self.done, ["closed", "over"])
        proxy.pass_time(1000)
        self.assertEqual(self.done, ["closed", "over"])

    def test_delay(self) -> None:
        """For drain_delay_s listening goes on, and readiness is told as over from the first moment."""
        proxy = self.drain(drain_delay_s=5.0)
        idle = proxy.caller()
        self.ending.begin("SIGTERM")
        self.assertIn(b"503", proxy.ask(get("/health/ready"))[:12])
        proxy.pass_time(4.875)
        self.assertEqual(self.done, [])
        self.assertFalse(idle.closed)
        proxy.pass_time(0.25)
        self.assertEqual(self.done[:1], ["closed"])
        self.assertTrue(idle.closed)

    def test_deadline(self) -> None:
        """drain_timeout_s counts from the beginning, the delay included."""
        proxy = self.drain(drain_delay_s=5.0, drain_timeout_s=8.0)
        self.asking()
        self.ending.begin("SIGTERM")
        proxy.pass_time(7.875)
        self.assertEqual(self.done, ["closed"])
        proxy.pass_time(0.25)
        self.assertEqual(self.done, ["closed", "over"])
        self.assertEqual(self.said()[-1], "server.drain_timeout_s (8 s) is over: 1 request on 1 connection cut")

    def test_deadline_before_the_delay_is_over(self) -> None:
        """A deadline that is shorter than the delay holds."""
        proxy = self.drain(drain_delay_s=5.0, drain_timeout_s=2.0)
        self.asking()
        self.ending.begin("SIGTERM")
        proxy.pass_time(2.0)
        self.assertEqual(self.done, ["over"])
        proxy.pass_time(10)
        self.assertEqual(self.done, ["over"])

    def test_no_deadline(self) -> None:
        """drain_timeout_s 0: as long as it takes."""
        proxy = self.drain(drain_timeout_s=0.0)
        self.asking()
        self.ending.begin("SIGTERM")
        proxy.pass_time(500)
        self.assertEqual(self.done, ["closed"])
        self.assertIn("for as long as they take", self.said()[0])

    def test_cut(self) -> None:
        """Whoever asks again waits no longer, and is not heard a third time."""
        proxy = self.drain()
        self.asking()
        self.ending.begin("SIGTERM")
        self.ending.cut("SIGINT again")
        self.ending.cut("SIGINT again")
        self.assertEqual(self.done, ["closed", "over"])
        self.assertEqual(self.said()[-1], "SIGINT again: 1 request on 1 connection cut")
        proxy.site.stop()
        proxy.clock.advance(0)
        self.assertEqual(self.done, ["closed", "over"])
        self.assertEqual([each["end_reason"] for each in proxy.access], ["drain"])
