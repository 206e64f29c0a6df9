"""The line before an origin whose connections are bounded, and how an origin comes to its end."""

from __future__ import annotations

from functools import partial
from typing import Any
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionRefusedError as Refused
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.config.model import Upstream
from llmproxy.upstream.origin import Origin, Progress, RawHeaders
from llmproxy.wire.dial import Dialer, DialError
from llmproxy.wire.upstream_error import NeverAnswered, UpstreamBusy, UpstreamError
from tests.web.proxy_in_memory import MemoryEndpoint, ok
from tests.wire.far_end import FarEnd

_EVENTS = (
    *("ask", "ask", "ask", "accept", "accept", "refuse", "answer", "answer"),
    *("close", "reset", "end", "cancel", "second", "early", "retire"),
)


class _Case(SynchronousTestCase):
    def make(self, **limits: Any) -> None:
        """An origin with these limits."""
        self.clock = Clock()
        self.endpoint = MemoryEndpoint(self.clock)
        endpoint: Any = self.endpoint
        dialer = Dialer(self.clock, "api.test", 80, tls=None, proxy=None, timeout_s=10, endpoint=endpoint)
        self.origin = Origin(b"http://api.test", dialer, self.clock, Upstream(**limits))
        self.progress: list[Progress] = []

    def ask(self, name: str = "x", method: bytes = b"GET") -> Deferred[Any]:
        """A request for /name."""
        self.progress.append(Progress())
        fields = RawHeaders([], self.progress[-1])
        return self.origin.request(method, f"http://api.test/{name}".encode(), fields, None)

    def asked(self, number: int) -> list[str]:
        """The names that were asked for over a connection, since the last call."""
        heard = self.endpoint.connections[number].heard()
        return [part.split(b" ")[0].decode() for part in heard.split(b"GET /")[1:]]

    def answer(self, number: int, result: Deferred[Any] | None = None, *fields: bytes) -> None:
        """Answer the request on a connection, and take the answer."""
        if result is not None:
            result.addCallback(lambda response: response.deliverBody(Protocol()))
        self.endpoint.connections[number].says(ok(b"", *fields))

    def pass_by(self, seconds: int) -> None:
        """Let time pass."""
        for _ in range(seconds):
            self.clock.advance(1)


class Line(_Case):
    """Requests that find every connection taken."""

    def test_order(self) -> None:
        """No more connections than `max_connections`; the others wait and are served in the order in which they came,
        by whichever connection is free first."""
        self.make(max_connections=2)
        results = [self.ask(name) for name in "abcd"]
        self.assertEqual(len(self.endpoint.connections), 2)
        self.assertEqual((self.asked(0), self.asked(1)), (["a"], ["b"]))
        self.answer(1, results[1])
        self.assertEqual((self.asked(0), self.asked(1)), ([], ["c"]))
        self.answer(0, results[0])
        self.assertEqual((self.asked(0), self.asked(1)), (["d"], []))
        self.answer(0, results[3])
        self.answer(1, results[2])
        self.assertEqual(self.origin.open_connections, 2)

    def test_full(self) -> None:
        """As many may wait as there may be connections. One more is told at once that the provider is busy."""
        self.make(max_connections=3)
        results = [self.ask() for _ in range(6)]
        self.failureResultOf(self.ask(), UpstreamBusy)
        for result in results:
            self.assertNoResult(result)

    def test_too_long(self) -> None:
        """Who has waited for `connect_timeout_s` is told that the provider is busy; what is served goes on."""
        self.make(max_connections=1, connect_timeout_s=10.0)
        first = self.ask()
        self.pass_by(5)
        second = self.ask()
        self.pass_by(9)
        self.assertNoResult(second)
        self.pass_by(2)
        self.failureResultOf(second, UpstreamBusy)
        self.assertNoResult(first)
        self.answer(0, first)
        self.assertEqual(self.asked(0), ["x"])

    def test_without_a_time(self) -> None:
        """With `connect_timeout_s` 0 they wait as long as it takes."""
        self.make(max_connections=1, connect_timeout_s=0.0)
        first, second = self.ask(), self.ask()
        self.pass_by(100)
        self.assertNoResult(second)
        self.answer(0, first)
        self.answer(0, second)
        self.assertEqual(self.progress[1].connect_s, 100)

    def test_leaving(self) -> None:
        """Who leaves is out of the line: nothing is sent for it, and its place is free."""
        self.make(max_connections=1)
        first, second = self.ask("a"), self.ask("b")
        second.cancel()
        self.failureResultOf(second, CancelledError)
        third = self.ask("c")
        self.answer(0, first)
        self.assertEqual(self.asked(0), ["a", "c"])
        self.answer(0, third)
        self.assertEqual(self.asked(0), [])

    def test_a_connection_that_closes(self) -> None:
        """A connection that closes makes room for one in line, however it comes to close."""
        for end in (
            lambda far: far.says(ok(b"", b"Connection: close")),
            lambda far: far.says(b"garbage\r\n\r\n"),
            FarEnd.ends,
            FarEnd.resets,
        ):
            self.make(max_connections=1)
            self.ask("a").addErrback(lambda _: None)
            self.ask("b")
            self.asked(0)
            end(self.endpoint.connections[0])
            self.assertEqual(self.asked(1), ["b"])
            self.assertEqual(self.origin.open_connections, 1)

    def test_a_connection_that_cannot_be_opened(self) -> None:
        """So does a connection that could not be opened, or whose caller left while it was being opened."""
        for give_up in (True, False):
            self.make(max_connections=1)
            self.endpoint.slow = True
            first, second = self.ask("a"), self.ask("b")
            if give_up:
                first.cancel()
                self.failureResultOf(first, CancelledError)
            else:
                self.endpoint.refuse(Refused())
                self.failureResultOf(first, DialError)
            self.endpoint.accept()
            self.assertEqual(self.asked(0), ["b"])
            self.assertNoResult(second)

    def test_none_can_be_opened(self) -> None:
        """If none can be opened, everyone in a long line is told so, and not one call deeper than the one before."""
        self.make(max_connections=1500)
        self.endpoint.slow = True
        results = [self.ask() for _ in range(3000)]
        self.endpoint.slow = False
        self.endpoint.error = Refused()
        self.endpoint.refuse(Refused())
        for _ in range(1499):
            self.endpoint.refuse(Refused())
        for result in results:
            self.failureResultOf(result, DialError)
        self.assertEqual(self.origin.open_connections, 0)

    def test_a_connection_that_is_not_quiet(self) -> None:
        """A connection that became free but does not look alive is not given to the one in line: that gets another."""
        self.make(max_connections=1)
        first, second = self.ask("a"), self.ask("b")
        (connection,) = self.origin._open
        connection.is_quiet = lambda: False
        self.answer(0, first)
        self.clock.advance(0)
        self.assertEqual((self.asked(0), self.asked(1)), (["a"], ["b"]))
        self.assertNoResult(second)

    def test_sent_again(self) -> None:
        """A request that has to be sent again goes before those in line, and is sent again once only."""
        self.make(max_connections=1)
        first = self.ask("a")
        self.answer(0, first)
        again, waits = self.ask("b"), self.ask("c")
        self.endpoint.connections[0].resets()
        # The room that the dead connection made went to the next in line; the one that was served already is next.
        self.assertEqual(self.asked(1), ["c"])
        self.answer(1, waits)
        self.assertEqual(self.asked(1), ["b"])
        self.endpoint.connections[1].resets()
        self.failureResultOf(again, NeverAnswered)

    def test_no_bound(self) -> None:
        """Without `max_connections` nobody waits."""
        self.make()
        for _ in range(300):
            self.ask()
        self.assertEqual(len(self.endpoint.connections), 300)

    def test_time_in_line(self) -> None:
        """The time in line is told as time that it took to get a connection, not as time of the proxy's own."""
        self.make(max_connections=1)
        first = self.ask()
        self.ask()
        self.clock.advance(3)
        self.answer(0, first)
        self.assertEqual((self.progress[1].connect_s, self.progress[1].sent_at), (3, 3))


class AnyOrder(_Case):
    """Whatever happens in whatever order."""

    @settings(max_examples=200, deadline=None)
    @given(
        st.integers(1, 4),
        st.integers(0, 3),
        st.lists(st.tuples(st.sampled_from(_EVENTS), st.integers(0, 100)), max_size=60),
    )
    def test_any_order(self, most: int, pool: int, events: list[tuple[str, int]]) -> None:
        """Never more connections than allowed, nobody forgotten while there is room, and in the end everyone has been
        served or told why not, and nothing is left: no connection, no timer, no place in the line."""
        self.make(max_connections=most, pool_size=pool, connect_timeout_s=20.0)
        self.endpoint.slow = True
        ends: dict[int, object] = {}
        results: list[Deferred[Any]] = []

        def answered(response: Any) -> Any:
            response.deliverBody(Protocol())
            return response

        for what, which in events:
            connections = [far for far in self.endpoint.connections if not far.closed]
            if what == "ask":
                number = len(results)
                result = self.ask(str(number))
                result.addCallback(answered).addBoth(partial(ends.__setitem__, number))
                results.append(result)
            elif what == "accept" and self.endpoint.waiting:
                self.endpoint.accept()
            elif what == "refuse" and self.endpoint.waiting:
                self.endpoint.refuse(Refused())
            elif what == "cancel" and results:
                results[which % len(results)].cancel()
            elif what == "second":
                self.clock.advance(1)
            elif what == "retire":
                self.origin.retire()
            elif connections:
                far = connections[which % len(connections)]
                if what == "answer" and b"GET" in far.heard():
                    far.says(ok())
                elif what == "close" and b"GET" in far.heard():
                    far.says(ok(b"", b"Connection: close"))
                elif what == "early":
                    far.says(b"HTTP/1.1 408 Timeout\r\n\r\n")
                elif what == "reset":
                    far.resets()
                elif what == "end":
                    far.ends()
            self.clock.advance(0)
            in_line = len(self.origin._line)
            self.assertLessEqual(self.origin.open_connections, most)
            self.assertLessEqual(in_line, most + most)
            if in_line:
                self.assertEqual(self.origin.open_connections, most, "somebody waits while there is room")
                self.assertEqual(self.origin._idle, [], "somebody waits while a connection idles")
        for _ in range(200):
            if len(ends) == len(results):
                break
            while self.endpoint.waiting:
                self.endpoint.accept()
            for far in list(self.endpoint.connections):
                if not far.closed:
                    far.says(ok(b"", b"Connection: close"))
                    far.ends()
            self.clock.advance(0)
        self.assertEqual(len(ends), len(results))
        for end in ends.values():
            if isinstance(end, Failure):
                self.assertIsNotNone(end.check(UpstreamError, DialError, CancelledError), end)
        self.origin.retire()
        for far in self.endpoint.connections:
            far.ends()  # of an answer that lasts as long as its connection
        self.pass_by(3)
        self.assertEqual((self.origin.open_connections, list(self.origin._line)), (0, []))
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.flushLoggedErrors(), [])


class Ends(_Case):
    """Origins that are not needed any more."""

    def test_retire(self) -> None:
        """A retired origin closes what idles at once, lets what is under way end in peace, closes it then, and has no
        timer left."""
        self.make()
        results = [self.ask() for _ in range(3)]
        self.answer(0, results[0])
        self.origin.retire()
        self.clock.advance(0)
        self.assertEqual([far.closed for far in self.endpoint.connections], [True, False, False])
        self.assertEqual(self.origin.open_connections, 2)
        for number in (1, 2):
            self.answer(number, results[number])
            self.successResultOf(results[number])
        self.clock.advance(0)
        self.assertEqual({(far.closed, far.was_reset) for far in self.endpoint.connections}, {(True, False)})
        self.assertEqual(self.origin.open_connections, 0)
        self.pass_by(2)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_retired_with_a_line(self) -> None:
        """Those in line before a retired origin are still served."""
        self.make(max_connections=1)
        first, second = self.ask("a"), self.ask("b")
        self.origin.retire()
        self.answer(0, first)
        self.clock.advance(0)
        self.answer(1, second)
        self.successResultOf(second)
        self.clock.advance(0)
        self.assertEqual(self.origin.open_connections, 0)

    def test_none_is_kept(self) -> None:
        """Without a pool no connection serves two, not even for those in line; they get one of their own, in order."""
        self.make(max_connections=1, pool_size=0)
        results = [self.ask(name) for name in ("a", "b")]
        for number, result in enumerate(results):
            self.answer(number, result)
            self.clock.advance(0)
        self.assertEqual(self.origin.open_connections, 0)

    def test_no_connection_can_be_tried(self) -> None:
        """Where not even an attempt can be made, the request fails with what was wrong, and takes nobody's place."""
        self.make(max_connections=1)

        def broken(_: Any) -> Deferred[Any]:
            raise RuntimeError("can't start new thread")

        with mock.patch.object(self.endpoint, "connect", broken):
            for _ in range(3):
                self.failureResultOf(self.ask(), RuntimeError)
        self.assertEqual(self.origin.open_connections, 0)
        result = self.ask()
        self.answer(0, result)
        self.successResultOf(result)

    def test_sent_and_then_no_connection(self) -> None:
        """A request that was sent, and finds no connection when it is to be sent again, ends with how its first try
        did: to say that nothing was sent would not be true."""
        self.make()
        self.answer(0, self.ask())
        result = self.ask(method=b"DELETE")
        self.endpoint.error = Refused(111)
        self.endpoint.connections[0].resets()
        self.failureResultOf(result, NeverAnswered)
        self.assertEqual(self.origin.open_connections, 0)

    def test_nor_for_those_in_line(self) -> None:
        """The same for one in line; and who was on the connection before it has its end too."""
        self.make(max_connections=1)
        first, second = self.ask("a"), self.ask("b")

        def broken(_: Any) -> Deferred[Any]:
            raise RuntimeError("can't start new thread")

        with mock.patch.object(self.endpoint, "connect", broken):
            self.endpoint.connections[0].resets()
            self.clock.advance(0)
        self.failureResultOf(first, NeverAnswered)
        self.failureResultOf(second, RuntimeError)
        self.assertEqual(self.origin.open_connections, 0)

    def test_retired_is_still_of_use(self) -> None:
        """A request that began before the change and is made only now is served, and its connection closed."""
        self.make()
        self.origin.retire()
        result = self.ask()
        self.answer(0, result)
        self.clock.advance(0)
        self.assertEqual(self.origin.open_connections, 0)

    def test_close(self) -> None:
        """A closed origin ends everything at once: those in line, those for whom a connection is opened, those that are
        served, and those that come later."""
        self.make(max_connections=3)
        first, second = self.ask(), self.ask()
        self.answer(0, first)
        self.endpoint.slow = True
        opening = [self.ask("again"), self.ask("opening")]
        waiting = [self.ask("waits")]
        self.origin.close()
        self.clock.advance(0)
        for result in (second, *opening, *waiting, self.ask("late")):
            self.failureResultOf(result)
        self.assertEqual(self.origin.open_connections, 0)
        self.assertEqual({far.closed for far in self.endpoint.connections}, {True})
        self.assertEqual((self.endpoint.waiting, self.clock.getDelayedCalls()), ([], []))
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_a_fault_of_ours(self) -> None:
        """A body whose producer fails when it is started fails its request, and blocks nobody else."""
        self.make(max_connections=1)

        class Broken:
            length = 5
            data = None

            def startProducing(self, consumer: Any) -> Deferred[None]:
                raise RuntimeError("a fault")

            def stopProducing(self) -> None:
                pass

        result = self.origin.request(b"POST", b"http://api.test/", RawHeaders([]), Broken())  # type: ignore[arg-type]
        self.failureResultOf(result, RuntimeError)
        second = self.ask("b")
        self.clock.advance(0)
        self.assertEqual(self.asked(1), ["b"])
        self.assertNoResult(second)
