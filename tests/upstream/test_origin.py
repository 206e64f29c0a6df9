"""An origin: its pool, when a request is sent again, and that nothing leads elsewhere."""

from __future__ import annotations

import socket
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.error import ConnectionRefusedError as Refused
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.client import ResponseDone
from twisted.web.http_headers import Headers
from twisted.web.iweb import UNKNOWN_LENGTH, IAgent, IBodyProducer
from zope.interface import implementer
from zope.interface.verify import verifyObject

from llmproxy.config.model import Upstream
from llmproxy.core.fields import Fields
from llmproxy.upstream.client import ExactClient
from llmproxy.upstream.origin import Origin, Progress, RawHeaders
from llmproxy.wire.dial import Dialer, DialError
from llmproxy.wire.upstream_error import FirstByteTimeout, InvalidAnswer, NeverAnswered
from tests.web.proxy_in_memory import MemoryEndpoint, fields_of, head_and_body, ok
from tests.wire.far_end import FarEnd
from tests.wire.kernel_pair import KernelPair

_URL = b"http://api.test"


@implementer(IBodyProducer)
class _Body:
    """A body: held as a whole, or streamed."""

    def __init__(self, data: bytes, held: bool, length: Any = None) -> None:
        self.data = data if held else None
        self.length = len(data) if length is None else length
        self._all = data

    def startProducing(self, consumer: Any) -> Deferred[None]:
        consumer.write(self._all)
        return succeed(None)

    def pauseProducing(self) -> None:
        pass

    resumeProducing = stopProducing = pauseProducing


class _Case(SynchronousTestCase):
    def setUp(self) -> None:
        """An origin at http://api.test."""
        self.make()

    def make(self, limits: Upstream | None = None, base_url: bytes = _URL) -> None:
        """An origin of its own."""
        self.clock = Clock()
        self.endpoint = MemoryEndpoint(self.clock)
        self.origin = self.on(self.endpoint, limits, base_url)

    def on(self, endpoint: Any, limits: Upstream | None = None, base_url: bytes = _URL) -> Origin:
        """An origin that opens its connections at `endpoint`."""
        dialer = Dialer(self.clock, "api.test", 80, tls=None, proxy=None, timeout_s=10, endpoint=endpoint)
        return Origin(base_url, dialer, self.clock, limits or Upstream())

    def ask(
        self,
        method: bytes = b"GET",
        target: bytes = b"/x",
        fields: Fields | None = None,
        body: _Body | None = None,
        progress: Progress | None = None,
    ) -> Deferred[Any]:
        """A request."""
        return self.origin.request(method, _URL + target, RawHeaders(fields or [], progress), body)

    def far(self, number: int = -1) -> FarEnd:
        """The far end of a connection."""
        return self.endpoint.connections[number]

    def whole(self, far: FarEnd, result: Deferred[Any]) -> None:
        """Let `far` answer, and take the answer."""
        far.says(ok())
        self.successResultOf(result).deliverBody(Protocol())


class Pool(_Case):
    """Connections that are kept."""

    def test_last_in_first_out(self) -> None:
        """The connection that was used last is used next: it is the least likely to have been closed."""
        first, second = self.ask(), self.ask()
        self.assertEqual(len(self.endpoint.connections), 2)
        self.whole(self.far(1), second)
        self.whole(self.far(0), first)
        for far in self.endpoint.connections:
            far.heard()
        self.ask()
        self.assertEqual((self.far(1).heard(), len(self.endpoint.connections)), (b"", 2))
        self.assertTrue(self.far(0).heard().startswith(b"GET /x "))
        self.ask()
        self.assertTrue(self.far(1).heard().startswith(b"GET /x "))

    def test_pool_size(self) -> None:
        """No more than `pool_size` are kept idle; what is in use is not limited by it."""
        self.make(Upstream(pool_size=2))
        results = [self.ask() for _ in range(5)]
        for far, result in zip(list(self.endpoint.connections), results, strict=True):
            self.whole(far, result)
        self.assertEqual([far.closed for far in self.endpoint.connections], [False, False, True, True, True])

    def test_no_pool(self) -> None:
        """A pool of none closes each connection after its answer."""
        self.make(Upstream(pool_size=0))
        self.whole_new()
        self.assertTrue(self.far().closed)

    def whole_new(self) -> None:
        """One exchange."""
        result = self.ask()
        self.whole(self.far(), result)

    def test_pool_idle(self) -> None:
        """A connection that was idle for `pool_idle_s` is closed, and no timer runs when there is none left."""
        self.make(Upstream(pool_idle_s=45))
        self.whole_new()
        for _ in range(44):
            self.clock.advance(1)
        self.assertFalse(self.far().closed)
        for _ in range(3):
            self.clock.advance(1)
        self.assertTrue(self.far().closed)
        self.assertFalse(self.far().was_reset)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_use_renews(self) -> None:
        """Each use begins the time anew."""
        self.make(Upstream(pool_idle_s=45))
        for _ in range(4):
            self.whole_new()
            for _ in range(40):
                self.clock.advance(1)
        self.assertEqual(len(self.endpoint.connections), 1)

    def test_dead_ones_are_passed_over(self) -> None:
        """Connections that were closed, or said something unasked, are never used."""
        for die in (FarEnd.ends, FarEnd.resets, lambda far: far.says(b"HTTP/1.1 408 Timeout\r\n\r\n")):
            self.make()
            self.whole_new()
            die(self.far())
            self.far().heard()
            self.ask()
            self.assertEqual(self.far(0).heard(), b"")
            self.assertEqual(len(self.endpoint.connections), 2)

    def test_deadline(self) -> None:
        """A wait that is too long is ended by the look that is taken once a second."""
        self.make(Upstream(first_byte_timeout_s=30))
        result = self.ask()
        for _ in range(29):
            self.clock.advance(1)
        self.assertNoResult(result)
        for _ in range(3):
            self.clock.advance(1)
        self.failureResultOf(result, FirstByteTimeout)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_closed(self) -> None:
        """A closed origin has no connection and no timer left, and what comes back to it is closed."""
        self.whole_new()
        in_use = [self.ask(), self.ask()]
        self.origin.close()
        self.clock.advance(0)
        for result in in_use:
            self.failureResultOf(result)
        self.assertEqual({far.closed for far in self.endpoint.connections}, {True})
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_refused(self) -> None:
        """No connection is a DialError, and the next request tries again."""
        self.endpoint.error = Refused()
        self.failureResultOf(self.ask(), DialError)
        self.endpoint.error = None
        self.whole_new()

    def test_cancelled(self) -> None:
        """A request that is cancelled while its connection is opened, or later, leaves nothing behind."""
        self.endpoint.slow = True
        result = self.ask()
        result.cancel()
        self.failureResultOf(result)
        self.assertEqual((self.endpoint.waiting, self.clock.getDelayedCalls()), ([], []))
        self.endpoint.slow = False
        result = self.ask()
        result.cancel()
        self.failureResultOf(result, CancelledError)
        self.clock.advance(0)
        self.assertTrue(self.far().was_reset)
        self.clock.advance(1)
        self.assertEqual(self.clock.getDelayedCalls(), [])


class SendingAgain(_Case):
    """A kept connection that turns out to be dead."""

    outcome: list[Any]

    def _after_death(
        self, method: bytes, body: _Body | None, said: bytes = b"", reused: bool = True
    ) -> tuple[Any, Progress]:
        """What becomes of a request whose connection dies after it was written."""
        self.make()
        if reused:
            result = self.ask()
            self.whole(self.far(), result)
        progress = Progress()
        outcome = self.outcome = []
        self.ask(method, body=body, progress=progress).addErrback(outcome.append)
        self.far().says(said)
        self.far().resets()
        return (outcome[0] if outcome else None), progress

    def test_rule(self) -> None:
        """Sent again, once, is what may be done twice and is still held; a POST that may have been read never is: it
        would be paid twice."""
        for method in (b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE", b"TRACE", b"POST", b"PATCH", b"PROPFIND"):
            may_be_done_twice = method in (b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE", b"TRACE")
            for body, held in ((None, True), (_Body(b"data", True), True), (_Body(b"data", False), False)):
                again = may_be_done_twice and held
                failure, progress = self._after_death(method, body)
                with self.subTest((method, body and (body.data or "streamed"))):
                    self.assertEqual(len(self.endpoint.connections), 2 if again else 1)
                    self.assertEqual(progress.retries, 1 if again else 0)
                    if again:
                        self.assertIsNone(failure)
                        self.assertTrue(self.far().heard().startswith(method + b" /x HTTP/1.1\r\n"))
                    else:
                        self.assertIsNotNone(failure.check(NeverAnswered))

    def test_never_twice(self) -> None:
        """If the new connection dies as well, that is that."""
        failure, progress = self._after_death(b"GET", None)
        self.assertIsNone(failure)
        self.far().resets()
        self.assertIsNotNone(self.outcome[0].check(NeverAnswered))
        self.assertEqual((len(self.endpoint.connections), progress.retries), (2, 1))

    def test_not_on_a_new_connection(self) -> None:
        """A connection that was opened for this request was not stale: its death means something."""
        failure, _ = self._after_death(b"GET", None, reused=False)
        self.assertIsNotNone(failure.check(NeverAnswered))
        self.assertEqual(len(self.endpoint.connections), 1)

    def test_not_after_a_byte_of_answer(self) -> None:
        """An upstream that has begun to answer has read the request."""
        for said in (b"H", b"HTTP/1.1 103 Early Hints\r\n\r\n"):
            failure, _ = self._after_death(b"GET", None, said)
            self.assertIsNotNone(failure)
            self.assertEqual(len(self.endpoint.connections), 1)

    def test_a_post_of_which_nothing_was_sent(self) -> None:
        """A POST goes out once more if not one byte of it was handed to the socket."""
        for body, again in ((_Body(b"data", True), True), (None, True), (_Body(b"data", False), False)):
            endpoint = _Sockets(self)
            self.clock = Clock()
            self.origin = self.on(endpoint)
            result = self.ask()
            endpoint.pairs[0].far.send(ok())
            endpoint.pairs[0].reactor.turn()
            self.successResultOf(result).deliverBody(Protocol())
            endpoint.pairs[0].heard()
            # Our half is shut: nothing can be sent any more, but nothing has arrived that would tell so.
            endpoint.pairs[0].transport.socket.shutdown(socket.SHUT_WR)
            progress = Progress()
            result = self.ask(b"POST", body=body, progress=progress)
            for _ in range(3):
                endpoint.pairs[0].reactor.turn()
            self.assertEqual(endpoint.pairs[0].heard(), b"")
            self.assertEqual((len(endpoint.pairs), progress.retries), (2, 1) if again else (1, 0))
            if again:
                self.assertTrue(endpoint.pairs[1].heard().startswith(b"POST /x "))
                endpoint.pairs[1].far.send(ok())
                endpoint.pairs[1].reactor.turn()
                self.assertEqual(self.successResultOf(result).code, 200)
            else:
                self.failureResultOf(result, NeverAnswered)


class SpeaksFirst(_Case):
    """A server that speaks when a connection is opened."""

    def test_it_is_not_asked(self) -> None:
        """What it says is no answer to anybody, and nothing is sent to it: an answer would go to the next request."""
        endpoint = _Sockets(self, ok(b"EVIL"))
        self.clock = Clock()
        self.origin = self.on(endpoint)
        result = self.ask()
        self.assertIn("before it was asked", str(self.failureResultOf(result, InvalidAnswer).value))
        (pair,) = endpoint.pairs
        pair.reactor.turn()
        self.assertFalse(pair.transport.connected)
        self.assertEqual(self.origin.open_connections, 0)

    def test_it_closes(self) -> None:
        """One that closes at once was asked, and did not answer."""
        endpoint = _Sockets(self)
        self.clock = Clock()
        self.origin = self.on(endpoint)
        result = self.ask()
        (pair,) = endpoint.pairs
        pair.far.close()
        pair.reactor.turn()
        self.failureResultOf(result, NeverAnswered)


class EarlyAnswers(_Case):
    """Answers that come before the request is through."""

    def test_to_a_body_that_is_not_taken(self) -> None:
        """A provider that refuses a large body without reading it is left at once: its answer arrives, and neither the
        connection nor what could not be sent is kept, as a polite close would wait for it to read the rest."""
        for held in (True, False):
            endpoint = _Sockets(self)
            self.clock = Clock()
            self.origin = self.on(endpoint)
            result = self.ask(b"POST", body=_Body(b"x" * 20_000_000, held))
            (pair,) = endpoint.pairs
            pair.reactor.turn()
            self.assertIn(pair.transport, pair.reactor.writers)
            pair.far.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
            pair.reactor.turn()
            response = self.successResultOf(result)
            self.assertEqual(response.code, 413)
            body = _Collected()
            response.deliverBody(body)
            self.assertEqual((body.content, body.ended), (b"no", True))
            pair.reactor.turn()
            self.assertFalse(pair.transport.connected)
            self.assertEqual((pair.reactor.writers, pair.reactor.readers), (set(), set()))
            self.assertEqual((self.origin._idle, self.origin.open_connections), ([], 0))
            self.ask()
            self.assertEqual(len(endpoint.pairs), 2)

    def test_to_a_body_that_is_not_sent(self) -> None:
        """The same while the caller has not sent all of it: the rest goes nowhere, and the connection is reset."""
        body = _Unfinished()
        result = self.ask(b"POST", body=body)
        self.far().says(ok(b"no"))
        self.assertEqual(self.successResultOf(result).code, 200)
        self.far().turn()
        self.assertTrue(self.far().was_reset)
        self.assertTrue(body.stopped)
        self.assertEqual((self.origin._idle, self.origin.open_connections), ([], 0))


class _Collected(Protocol):
    """What arrives of an answer."""

    content = b""
    ended = False

    def dataReceived(self, data: bytes) -> None:
        self.content += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.ended = reason.check(ResponseDone) is not None


class _Unfinished(_Body):
    """A body of which only the beginning comes."""

    def __init__(self) -> None:
        super().__init__(b"some", False, 100)
        self.stopped = False

    def startProducing(self, consumer: Any) -> Deferred[None]:
        consumer.write(self._all)
        return Deferred()

    def stopProducing(self) -> None:
        self.stopped = True


class _Sockets:
    """Opens connections on pairs of sockets; `greeting` is what the far end says at once."""

    def __init__(self, case: SynchronousTestCase, greeting: bytes = b"") -> None:
        self.pairs: list[KernelPair] = []
        self._case = case
        self._greeting = greeting

    def connect(self, factory: Any) -> Deferred[Any]:
        protocol = factory.buildProtocol(None)
        pair = KernelPair(protocol, tcp=True)
        self._case.addCleanup(pair.close)
        if self._greeting:
            pair.far.send(self._greeting)
        self.pairs.append(pair.connect())
        return succeed(protocol)


class Confined(_Case):
    """Nothing in a request decides where it goes."""

    def test_other_places(self) -> None:
        """A URL that does not lie below the origin's own address is refused before a connection is opened."""
        for url in (
            b"http://evil.test/",
            b"https://api.test/",
            b"http://api.test.evil.test/",
            b"http://api.test@evil.test/",
            b"http://api.test:81/",
            b"http://api.testx/",
            b"http://api.test",
            b"http://api.test?x",
            b"http://api.test\\evil.test/",
            b"HTTP://api.test/",
            b"//api.test/",
            b"/x",
            b"",
            b"http://api.test/a b",
            b"http://api.test/a\r\nHost: evil.test",
            b"http://api.test/a\x00",
            b"http://api.test/\xe4",
        ):
            with self.subTest(url):
                self.assertRaises(ValueError, self.origin.request, b"GET", url, Headers(), None)
        self.assertEqual(self.endpoint.attempts, 0)

    @given(st.binary(max_size=30))
    def test_any_target(self, target: bytes) -> None:
        """Any target is either refused or sent as it is, to this origin, as the one request that it is."""
        self.make()
        try:
            self.origin.request(b"GET", _URL + b"/" + target, Headers(), None)
        except ValueError:
            self.assertEqual(self.endpoint.attempts, 0)
            return
        self.assertEqual(self.far().heard(), b"GET /" + target + b" HTTP/1.1\r\nHost: api.test\r\n\r\n")

    def test_injection(self) -> None:
        """A line break or NUL anywhere in a head is refused: it would be another field, or another request."""
        for method, target, fields in (
            (b"GET", b"/x", [(b"X", b"a\r\nHost: evil")]),
            (b"GET", b"/x", [(b"X", b"a\r\n\r\nGET / HTTP/1.1")]),
            (b"GET", b"/x", [(b"X", b"a\nb")]),
            (b"GET", b"/x", [(b"X", b"a\rb")]),
            (b"GET", b"/x", [(b"X", b"a\x00b")]),
            (b"GET", b"/x", [(b"X\r\nY", b"a")]),
            (b"GET", b"/x", [(b"X: y\r\nZ", b"a")]),
            (b"GET", b"/x", [(b"\nX", b"a")]),
            (b"GET", b"/x HTTP/1.1\r\nHost: evil\r\n\r\nGET /", []),
            (b"GET", b"/x\n", []),
            (b"GET / HTTP/1.1\r\nHost: evil\r\n\r\nGET", b"/x", []),
        ):
            with self.subTest((method, target, fields)):
                self.assertRaises(ValueError, self.ask, method, target, fields)
        for method in (b"GE T", b"", b"GET\t"):
            self.assertRaises(ValueError, self.origin.request, method, b"http://api.test/x", Headers(), None)
        self.assertEqual(self.endpoint.attempts, 0)

    @given(st.lists(st.tuples(st.binary(min_size=1, max_size=6), st.binary(max_size=10)), max_size=4))
    def test_any_fields(self, fields: Fields) -> None:
        """Any fields are either refused or written as exactly one line each."""
        self.make()
        try:
            self.ask(fields=fields)
        except ValueError:
            self.assertEqual(self.endpoint.attempts, 0)
            return
        lines = self.far().heard().split(b"\r\n")
        self.assertEqual(lines, [b"GET /x HTTP/1.1", *(name + b": " + value for name, value in fields), b"", b""])


class Messages(_Case):
    """The head that is sent."""

    def test_exact(self) -> None:
        """Raw fields are written as they are: case, order, repetition, nothing added."""
        self.make(base_url=b"http://api.test/v1/prefix")
        fields = [(b"hOST", b"other"), (b"A", b"1"), (b"B", b""), (b"A", b"2")]
        self.ask(fields=fields)
        self.assertEqual(fields_of(self.far().heard()), fields)

    def test_ordinary_headers(self) -> None:
        """twisted.web's own Headers work as with any agent: Host and the framing are added where they lack."""
        chunked = [(b"Transfer-Encoding", b"chunked")]
        for body, headers, framing in (
            (None, {}, []),
            (_Body(b"data", True), {}, [(b"Content-Length", b"4")]),
            (_Body(b"data", False), {b"content-length": [b"4"]}, [(b"Content-Length", b"4")]),
            (_Body(b"data", False, UNKNOWN_LENGTH), {}, chunked),
        ):
            self.make(base_url=b"http://api.test/v1/prefix")
            self.origin.request(b"POST", b"http://api.test/x", Headers(headers), body)
            head, sent = head_and_body(self.far().heard())
            self.assertEqual(fields_of(head + b"\r\n\r\n"), [(b"Host", b"api.test"), *framing])
            self.assertEqual(sent, b"4\r\ndata\r\n0\r\n\r\n" if framing == chunked else b"data" if body else b"")
        self.origin.request(b"GET", b"http://api.test/x", Headers({b"x-a": [b"1", b"2"], b"host": [b"h"]}), None)
        self.assertEqual(sorted(fields_of(self.far().heard())), [(b"Host", b"h"), (b"X-A", b"1"), (b"X-A", b"2")])

    def test_progress(self) -> None:
        """What is told meanwhile: how long the connection took, when it was sent, interim answers."""
        told: list[object] = []
        progress = Progress(on_interim=lambda *what: told.append(what))
        self.endpoint.slow = True
        self.ask(progress=progress)
        self.clock.advance(3)
        self.assertIsNone(progress.sent_at)
        far = self.endpoint.accept()
        self.assertEqual((progress.connect_s, progress.sent_at), (3, 3))
        far.says(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        self.assertEqual(told, [(103, b"Early Hints", [])])


class Client(_Case):
    """The treq-shaped client in front of it."""

    def test_agent(self) -> None:
        """The origin is an agent as twisted.web defines it."""
        self.assertTrue(verifyObject(IAgent, self.origin))

    def test_nothing_added(self) -> None:
        """The client sends what it is given and nothing else: no Accept-Encoding, no User-Agent, no cookies."""
        client = ExactClient(self.origin)
        given = [(b"Host", b"api.test"), (b"Content-Length", b"1")]
        for _ in range(2):
            result = client.request(
                b"POST", b"http://api.test/%2F?a=%20b&&", headers=RawHeaders(given), data=_Body(b"x", True)
            )
            self.assertEqual(
                self.far().heard(),
                b"POST /%2F?a=%20b&& HTTP/1.1\r\nHost: api.test\r\nContent-Length: 1\r\n\r\nx",
            )
            self.far().says(ok(b"\x1f\x8b", b"Content-Encoding: gzip", b"Set-Cookie: a=b"))
            taken: list[bytes] = []
            taker = Protocol()
            self.patch(taker, "dataReceived", taken.append)
            self.successResultOf(result).deliverBody(taker)
            self.assertEqual(taken, [b"\x1f\x8b"])

    def test_other_options(self) -> None:
        """What it does not do is refused and not ignored."""
        client: Any = ExactClient(self.origin)
        self.assertRaises(TypeError, client.request, b"GET", b"http://api.test/", params={"a": "b"})

    def test_redirects(self) -> None:
        """Redirects are answers."""
        result = ExactClient(self.origin).request(b"GET", b"http://api.test/", headers=RawHeaders([]))
        self.far().says(b"HTTP/1.1 302 Found\r\nLocation: http://evil.test/\r\nContent-Length: 0\r\n\r\n")
        self.assertEqual(self.successResultOf(result).code, 302)
        self.assertEqual(self.endpoint.attempts, 1)
