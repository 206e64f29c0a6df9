"""The server side of a connection: reading requests, answering in order, refusing, closing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.interfaces import IProtocolNegotiationFactory
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET
from zope.interface.verify import verifyObject

from llmproxy.core.fields import Fields
from llmproxy.core.framing import FramingError
from llmproxy.wire.request import Request
from llmproxy.wire.request_reader import MAX_EMPTY_BYTES
from llmproxy.wire.server import SWEEP_S, Site
from tests.wire.far_end import FarEnd

Render = Callable[[Request], Any]


class _Page(Resource):
    """Renders every path by one function."""

    isLeaf = True

    def __init__(self, render: Render) -> None:
        super().__init__()
        self._render = render
        self.requests: list[Request] = []

    def render(self, request: Request) -> Any:
        self.requests.append(request)
        return self._render(request)


class _Echo:
    """Takes a body and answers with what it was: method, target, body, trailers."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.pieces: list[bytes] = []
        request.receive_body(self)

    def body_received(self, data: bytes) -> None:
        self.pieces.append(data)

    def body_complete(self, trailers: Fields) -> None:
        tail = b"".join(b";" + name + b"=" + value for name, value in trailers)
        text = b"<%b %b %b%b>" % (self.request.method, self.request.uri, b"".join(self.pieces), tail)
        self.request.write_head(200, b"OK", [(b"Content-Length", b"%d" % len(text))])
        self.request.write(text)
        self.request.finish()

    def body_broken(self, error: FramingError) -> None:
        self.request.refuse(error)


def _echo(request: Request) -> int:
    _Echo(request)
    return NOT_DONE_YET


def _later(request: Request) -> int:
    return NOT_DONE_YET


class _Case(SynchronousTestCase):
    def serve(self, render: Render) -> FarEnd:
        """A caller of a site whose every path is rendered by `render`."""
        self.clock = Clock()
        self.page = _Page(render)
        self.site = Site(self.page, self.clock)
        return FarEnd(self.clock, self.site.buildProtocol(None)).connect()

    def bodies(self, heard: bytes) -> list[bytes]:
        """What `_echo` has answered."""
        return [part.partition(b">")[0] for part in heard.split(b"<")[1:]]


def _get(target: bytes = b"/", *fields: bytes) -> bytes:
    return b"\r\n".join((b"GET " + target + b" HTTP/1.1", b"Host: h", *fields, b"", b""))


def _post(body: bytes, *fields: bytes, target: bytes = b"/") -> bytes:
    head = (b"POST " + target + b" HTTP/1.1", b"Host: h", *fields, b"Content-Length: %d" % len(body), b"", b"")
    return b"\r\n".join(head) + body


_CHUNKED_HEAD = b"POST /c HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
_CHUNKED = _CHUNKED_HEAD + b'5;ext="a b"\r\nhello\r\n1\r\n!\r\n0\r\nX-T: 1\r\n\r\n'


class Reading(_Case):
    """Requests as they arrive."""

    _CONVERSATION = (
        _get(b"/1")
        + _post(b"body", target=b"/2")
        + _CHUNKED
        + _post(b"", target=b"/4")
        + b"\r\n"  # an empty line before a request line is skipped (RFC 9112 section 2.2)
        + _post(b"xyz", b"Connection: Upgrade", b"Upgrade: h2c", target=b"/5")
        + _CHUNKED.replace(b"Host: h\r\n", b"Host: h\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n")
        + _get(b"/7", b"Connection: Upgrade", b"Upgrade: h2c")
        + _get(b"/8")
    )
    _ANSWERS = [  # noqa: RUF012
        b"GET /1 ",
        b"POST /2 body",
        b"POST /c hello!;X-T=1",
        b"POST /4 ",
        b"POST /5 xyz",
        b"POST /c hello!;X-T=1",
        b"GET /7 ",
        b"GET /8 ",
    ]

    def test_pipelined(self) -> None:
        """Many requests in one read are answered one by one, in their order."""
        caller = self.serve(_echo)
        caller.says(self._CONVERSATION)
        self.assertEqual(self.bodies(caller.heard()), self._ANSWERS)
        self.assertFalse(caller.closed)

    def test_split_at_every_byte(self) -> None:
        """It makes no difference where the network cuts: two pieces, or one byte at a time."""
        for cut in range(1, len(self._CONVERSATION)):
            caller = self.serve(_echo)
            caller.says(self._CONVERSATION[:cut], self._CONVERSATION[cut:])
            self.assertEqual(self.bodies(caller.heard()), self._ANSWERS, cut)
        caller = self.serve(_echo)
        caller.says(*(bytes((each,)) for each in self._CONVERSATION))
        self.assertEqual(self.bodies(caller.heard()), self._ANSWERS)

    @given(st.lists(st.integers(1, 60), max_size=40))
    def test_split_anywhere(self, sizes: list[int]) -> None:
        """Nor does any other way of cutting."""
        caller = self.serve(_echo)
        rest = self._CONVERSATION
        for size in sizes:
            caller.says(rest[:size])
            rest = rest[size:]
        caller.says(rest)
        self.assertEqual(self.bodies(caller.heard()), self._ANSWERS)

    def test_one_after_the_other(self) -> None:
        """A request is not begun before the answer to the one before it is complete, and meanwhile the caller is not
        read, so that what can pile up is one read."""
        caller = self.serve(_later)
        caller.says(_get(b"/1") + _get(b"/2"), _get(b"/3") * 5000)
        self.assertEqual([each.uri for each in self.page.requests], [b"/1"])
        self.assertGreater(caller.unread_bytes, 100_000)
        self.page.requests[0].write_head(200, b"OK", [(b"Content-Length", b"2")])
        self.page.requests[0].write(b"hi")
        self.page.requests[0].finish()
        self.assertEqual([each.uri for each in self.page.requests], [b"/1", b"/2"])

    def test_two_hundred_deep(self) -> None:
        """Two hundred requests at once, each answered later than asked, are answered in order and not mixed."""
        caller = self.serve(_later)
        caller.says(b"".join(_get(b"/%d" % number) for number in range(200)))
        for number in range(200):
            request = self.page.requests[-1]
            self.assertEqual(request.uri, b"/%d" % number)
            request.write_head(200, b"OK", [(b"Content-Length", b"%d" % (len(request.uri) + 2))])
            request.write(b"<%b>" % request.uri)
            request.finish()
            caller.turn()
        self.assertEqual(self.bodies(caller.heard()), [b"/%d" % number for number in range(200)])

    def test_body_before_it_is_wanted(self) -> None:
        """A body that nobody takes yet is held at one read; whoever takes it later gets all of it."""
        caller = self.serve(_later)
        body = bytes(range(256)) * 1000
        caller.says(_post(body))
        self.assertGreater(caller.unread_bytes, len(body) - 100_000)
        _Echo(self.page.requests[0])
        caller.turn()
        self.assertEqual(self.bodies(caller.heard().replace(body, b"all of it")), [b"POST / all of it"])

    def test_gone(self) -> None:
        """A page that is still answering is told that the caller has left, once."""
        for leave in (FarEnd.ends, FarEnd.resets):
            told: list[object] = []

            def render(request: Request, told: list[object] = told) -> int:
                request.notifyFinish().addErrback(told.append)
                return NOT_DONE_YET

            caller = self.serve(render)
            caller.says(_get())
            leave(caller)
            self.assertEqual(len(told), 1)
            self.assertEqual(self.site.channels, set())
            # What the page still writes goes nowhere and disturbs nobody.
            self.page.requests[0].write(b"too late")
            self.page.requests[0].finish()

    def test_gone_in_a_head(self) -> None:
        """A caller that leaves in the middle of a head leaves nothing behind."""
        head = _get(b"/", b"X: y")
        for cut in range(len(head)):
            caller = self.serve(_echo)
            caller.says(head[:cut])
            caller.resets()
            self.assertEqual(self.page.requests, [])
            self.assertEqual(self.site.channels, set())
            self.clock.advance(SWEEP_S)
            self.assertEqual(self.clock.getDelayedCalls(), [])


class Expecting(_Case):
    """`Expect: 100-continue`."""

    def test_continue(self) -> None:
        """A caller that asks is told to go on when somebody wants its body, and not before."""
        caller = self.serve(_later)
        caller.says(_post(b"body", b"Expect: 100-continue")[:-4])
        self.assertEqual(caller.heard(), b"")
        _Echo(self.page.requests[0])
        self.assertEqual(caller.heard(), b"HTTP/1.1 100 Continue\r\n\r\n")
        caller.says(b"body")
        self.assertEqual(self.bodies(caller.heard()), [b"POST / body"])

    def test_not_needed(self) -> None:
        """A caller that did not wait, or has no body to send, or speaks HTTP/1.0, is not told."""
        for raw in (
            _post(b"body", b"Expect: 100-continue"),
            _get(b"/", b"Expect: 100-continue"),
            _post(b"body", b"Expect: 100-continue").replace(b"HTTP/1.1", b"HTTP/1.0", 1),
        ):
            caller = self.serve(_later)
            caller.says(raw)
            _Echo(self.page.requests[0])
            caller.turn()
            self.assertTrue(caller.heard().startswith(b"HTTP/1.1 200 "))

    def test_unknown(self) -> None:
        """An expectation that nobody here can meet is a 417, and the body that may follow is no request."""
        caller = self.serve(_echo)
        caller.says(_post(_get(), b"Expect: something"))
        self.assertTrue(caller.heard().startswith(b"HTTP/1.1 417 Expectation Failed\r\n"))
        self.assertEqual(self.page.requests, [])
        self.assertTrue(caller.closed)

    def test_refused(self) -> None:
        """A final answer instead of 100: the caller may or may not send its body, so the connection closes, and what
        follows is no request."""

        def render(request: Request) -> bytes:
            request.setResponseCode(401)
            return b"no"

        caller = self.serve(render)
        caller.says(_post(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", b"Expect: 100-continue")[:-27])
        heard = caller.heard()
        self.assertTrue(heard.startswith(b"HTTP/1.1 401 "))
        self.assertIn(b"\r\nConnection: close\r\n", heard)
        caller.says(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        self.assertEqual(len(self.page.requests), 1)
        self.assertTrue(caller.closed)


class Answering(_Case):
    """Answers on the wire."""

    def answer(self, raw: bytes, render: Render) -> tuple[bytes, FarEnd]:
        """What is heard for `raw`."""
        caller = self.serve(render)
        caller.says(raw)
        return caller.heard(), caller

    def test_page(self) -> None:
        """An ordinary twisted.web page works as it does everywhere: codes, fields, cookies, a length of its own."""

        def render(request: Request) -> bytes:
            request.setResponseCode(201)
            request.setHeader(b"x-a", b"1")
            request.addCookie(b"c", b"d")
            return b"page"

        heard, caller = self.answer(_get(), render)
        head, _, body = heard.partition(b"\r\n\r\n")
        self.assertEqual(body, b"page")
        self.assertTrue(head.startswith(b"HTTP/1.1 201 Created\r\nDate: "))
        self.assertIn(b"\r\nX-A: 1\r\n", head)
        self.assertIn(b"Content-Length: 4\r\n", head + b"\r\n")
        self.assertIn(b"\r\nSet-Cookie: c=d", head)
        self.assertFalse(caller.closed)

    def test_request_as_twisted_has_it(self) -> None:
        """A page sees the request as twisted.web shows it: fields, path segments, peer."""
        seen: list[object] = []

        def render(request: Request) -> bytes:
            seen.extend((request.getHeader(b"x-a"), request.path, request.postpath, request.getClientAddress().host))  # type: ignore[attr-defined]
            seen.append(request.isSecure())
            return b""

        self.answer(_get(b"/a%20b/c?d", b"X-A: 1"), render)
        self.assertEqual(seen, [b"1", b"/a%20b/c", [b"a b", b"c"], "192.0.2.7", False])

    def test_framings(self) -> None:
        """With a length the length is kept; without one HTTP/1.1 gets chunks and HTTP/1.0 the end of the connection."""

        def sized(request: Request) -> int:
            request.write_head(200, b"OK", [(b"cONTENT-lENGTH", b"4")])
            request.write(b"ab")
            request.write(b"cd")
            request.finish()
            return NOT_DONE_YET

        def unsized(request: Request) -> int:
            request.write_head(200, b"OK", [])
            request.write(b"ab")
            request.write(b"")
            request.write(b"cd")
            request.finish_with([(b"X-T", b"1")])
            return NOT_DONE_YET

        old = _get().replace(b"1.1", b"1.0")
        self.assertEqual(self.answer(_get(), sized)[0], b"HTTP/1.1 200 OK\r\ncONTENT-lENGTH: 4\r\n\r\nabcd")
        self.assertEqual(
            self.answer(_get(), unsized)[0],
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n2\r\ncd\r\n0\r\nX-T: 1\r\n\r\n",
        )
        heard, caller = self.answer(old, unsized)
        self.assertEqual(heard, b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nabcd")
        self.assertTrue(caller.closed)
        self.assertFalse(caller.was_reset)
        heard, caller = self.answer(old, sized)
        self.assertTrue(heard.endswith(b"\r\n\r\nabcd"))
        self.assertTrue(caller.closed)

    def test_without_a_body(self) -> None:
        """HEAD, 204 and 304 have no body whatever is written, and no last chunk; the next answer is read right."""
        for raw, status, sized in (
            (_get().replace(b"GET", b"HEAD", 1), 200, True),
            (_get().replace(b"GET", b"HEAD", 1), 200, False),
            (_get(), 204, True),
            (_get(), 204, False),
            (_get(), 304, True),
            (_get(), 304, False),
        ):

            def render(request: Request, status: int = status, sized: bool = sized) -> int:
                request.write_head(status, b"X", [(b"Content-Length", b"4")] if sized else [])
                request.write(b"body")
                request.finish()
                return NOT_DONE_YET

            heard, caller = self.answer(raw, render)
            self.assertTrue(heard.endswith(b"\r\n\r\n"))
            self.assertEqual(heard.count(b"\r\n\r\n"), 1)
            self.assertFalse(caller.closed)
            if status == 204:
                self.assertNotIn(b"Content-Length", heard)
                self.assertNotIn(b"Transfer-Encoding", heard)

    def test_close(self) -> None:
        """A caller that wants the connection closed has it closed, however it writes the word."""
        for word in (b"close", b"Close", b"x, close", b"close,"):
            heard, caller = self.answer(_get(b"/", b"Connection: " + word), lambda request: b"")
            self.assertIn(b"\r\nConnection: close\r\n", heard)
            self.assertTrue(caller.closed)

    def test_gathered(self) -> None:
        """What is written between `cork` and `flush` goes out as one piece."""

        def render(request: Request) -> int:
            request.cork()
            request.write_head(200, b"OK", [])
            request.write(b"a")
            request.write(b"b")
            request.flush()
            return NOT_DONE_YET

        caller = self.serve(render)
        caller.says(_get())
        self.assertEqual(len(caller.writes), 1)
        self.assertTrue(caller.heard().endswith(b"1\r\na\r\n1\r\nb\r\n"))

    def test_copied(self) -> None:
        """What is written is looked at after it was sent: when there is enough of it, or when nobody takes it."""
        seen: list[tuple[bytes, int]] = []
        requests: list[Request] = []

        def look() -> None:
            copy = requests[0].copy
            assert copy is not None
            seen.append((bytes(copy), len(caller.writes)))
            copy.clear()

        def render(request: Request) -> int:
            requests.append(request)
            request.cork()
            request.write_head(200, b"OK", [])
            request.copy, request.copy_enough, request.look_at_copy = bytearray(), 3, look
            request.write(b"not copied")
            request.copies_written = True
            for piece in (b"a", b"b", b"c"):
                request.write(piece)
                request.flush()
            return NOT_DONE_YET

        caller = self.serve(render)
        caller.says(_get())
        self.assertEqual(seen, [(b"abc", 3)])
        caller.resets()
        requests[0].write(b"d")
        requests[0].flush()
        self.assertEqual(seen[1:], [(b"d", 3)])

    def test_aborted(self) -> None:
        """An answer that is given up is visibly cut: no last chunk; where only the end would end it, a reset."""

        def render(request: Request) -> int:
            request.write_head(200, b"OK", [])
            request.write(b"ab")
            request.abort()
            request.write(b"more")
            return NOT_DONE_YET

        heard, caller = self.answer(_get(), render)
        self.assertTrue(heard.endswith(b"2\r\nab\r\n"))
        self.assertEqual((caller.closed, caller.was_reset), (True, False))
        heard, caller = self.answer(_get().replace(b"1.1", b"1.0"), render)
        self.assertTrue(heard.endswith(b"\r\n\r\nab"))
        self.assertTrue(caller.was_reset)

    def test_interim(self) -> None:
        """103 goes out before the head, to HTTP/1.1 callers only, and never after it."""

        def render(request: Request) -> int:
            request.write_interim(103, b"Early Hints", [(b"Link", b"</a>")])
            request.write_head(200, b"OK", [(b"Content-Length", b"0")])
            request.write_interim(103, b"Early Hints", [(b"Link", b"</b>")])
            request.finish()
            return NOT_DONE_YET

        hints = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
        self.assertEqual(self.answer(_get(), render)[0], hints + b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        self.assertTrue(self.answer(_get().replace(b"1.1", b"1.0"), render)[0].startswith(b"HTTP/1.1 200 "))

    def test_a_page_that_raises(self) -> None:
        """A page that raises is a 500 before its answer has begun and a cut after it; the failure is logged."""

        def before(request: Request) -> bytes:
            raise RuntimeError("a bug in a page")

        def after(request: Request) -> bytes:
            request.write_head(200, b"OK", [])
            request.write(b"ab")
            raise RuntimeError("a bug in a page")

        heard, caller = self.answer(_get() + _get(), before)
        self.assertEqual(heard.count(b"HTTP/1.1 500 Internal Server Error\r\n"), 2)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 2)
        heard, caller = self.answer(_get(), after)
        self.assertTrue(heard.endswith(b"2\r\nab\r\n"))
        self.assertTrue(caller.closed)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_back_pressure(self) -> None:
        """A producer is paused while the caller does not read, and asked again when it does."""
        calls: list[str] = []

        class Producer:
            def pauseProducing(self) -> None:
                calls.append("pause")

            def resumeProducing(self) -> None:
                calls.append("resume")

            def stopProducing(self) -> None:
                calls.append("stop")

        caller = self.serve(_later)
        caller.says(_get())
        (request,) = self.page.requests
        request.write_head(200, b"OK", [])
        request.registerProducer(Producer(), True)  # type: ignore[arg-type]
        caller.stops_reading()
        for _ in range(40):
            request.write(b"x" * 1024)
        self.assertEqual(set(calls), {"pause"})
        caller.reads_on()
        self.assertEqual(calls[-1:], ["resume"])
        request.unregisterProducer()
        request.finish()
        self.assertTrue(caller.heard().endswith(b"0\r\n\r\n"))

    def test_a_late_producer(self) -> None:
        """A producer that is registered when the caller is already behind is paused at once."""
        caller = self.serve(_later)
        caller.says(_get())
        (request,) = self.page.requests
        caller.stops_reading()
        request.write_head(200, b"OK", [])
        request.write(b"x" * 100_000)
        calls: list[str] = []

        class Producer:
            def pauseProducing(self) -> None:
                calls.append("pause")

        request.registerProducer(Producer(), True)  # type: ignore[arg-type]
        self.assertEqual(calls, ["pause"])
        self.assertRaises(ValueError, request.registerProducer, Producer(), False)


class Protocols(SynchronousTestCase):
    """What is spoken."""

    def test_negotiated(self) -> None:
        """A caller over TLS that offers HTTP/2 and HTTP/1.1 is told HTTP/1.1: nothing else is spoken here."""
        site = Site(_Page(_echo), Clock())
        self.assertTrue(verifyObject(IProtocolNegotiationFactory, site))
        self.assertEqual(site.acceptableProtocols(), [b"http/1.1"])


class EarlyAnswers(_Case):
    """Answers that are complete before the request is."""

    def test_the_rest_is_dropped(self) -> None:
        """The rest of the body is read and dropped, and the next request is served on the same connection."""
        caller = self.serve(lambda request: b"<early>" if request.method == b"POST" else b"<next>")
        body = _get(b"/hidden") * 3000
        caller.says(_post(body) + _get(b"/next"))
        self.assertEqual([each.uri for each in self.page.requests], [b"/", b"/next"])
        self.assertEqual(self.bodies(caller.heard()), [b"early", b"next"])
        caller.resets()
        self.clock.advance(SWEEP_S)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_slow_rest(self) -> None:
        """A caller that goes on sending for too long is cut off, after its answer has reached it."""
        caller = self.serve(lambda request: b"<early>")
        caller.says(_post(b"x" * 1000)[:-500])
        self.assertEqual(self.bodies(caller.heard()), [b"early"])
        for _ in range(8):
            self.clock.advance(0.5)
            caller.says(b"x")
        self.assertTrue(caller.closed)
        self.clock.advance(SWEEP_S)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_gone_meanwhile(self) -> None:
        """A caller that leaves meanwhile leaves nothing behind."""
        caller = self.serve(lambda request: b"<early>")
        caller.says(_post(b"x" * 1000)[:-500])
        caller.resets()
        self.clock.advance(SWEEP_S)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.site.channels, set())


class Refusing(_Case):
    """What is no acceptable request."""

    def refused(self, raw: bytes) -> tuple[int, FarEnd]:
        """The status that `raw` is refused with. No page is rendered, the connection closes, the rest is no request."""
        caller = self.serve(_echo)
        caller.says(raw)
        caller.says(_get(b"/smuggled"))
        heard = caller.heard()
        self.assertEqual(self.page.requests, [], raw[:80])
        self.assertEqual(heard.count(b"HTTP/1.1 "), 1 + heard.partition(b"\r\n\r\n")[2].count(b"HTTP/1.1 "), heard)
        self.assertIn(b"\r\nConnection: close\r\n", heard)
        self.assertTrue(caller.closed, raw[:80])
        self.clock.advance(5)
        self.assertFalse(caller.transport.connected)
        self.clock.advance(SWEEP_S)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        return int(heard[9:12]), caller

    def test_framing(self) -> None:
        """Bodies whose end could be read in two ways are refused: that is how requests are smuggled."""
        chunked = b"Transfer-Encoding: chunked"
        for status, fields in (
            (400, [b"Content-Length: 5", chunked]),
            (400, [chunked, b"Content-Length: 5"]),
            (400, [b"Content-Length: 5", b"Content-Length: 6"]),
            (400, [b"Content-Length: 5", b"Content-Length: 5"]),
            (400, [b"Content-Length: 5, 5"]),
            (400, [b"Content-Length: +5"]),
            (400, [b"Content-Length: -5"]),
            (400, [b"Content-Length: 0x5"]),
            (400, [b"Content-Length: 1_0"]),
            (400, [b"Content-Length: 5.0"]),
            (400, [b"Content-Length: 5 5"]),
            (400, [b"Content-Length:"]),
            (400, [b"Content-Length: \xc2\xa05"]),
            (400, [b"Content-Length: \x0b5"]),
            (400, [b"Content-Length: 18446744073709551621"]),
            (400, [b"Content-Length : 5"]),
            (400, [b"Transfer-Encoding : chunked"]),
            (400, [b"Transfer-Encoding: chunked\r\n x"]),
            (400, [b"Transfer-Encoding:\x0bchunked"]),
            (400, [b"Transfer-Encoding:\xa0chunked"]),
            (501, [b"Transfer-Encoding: gzip, chunked"]),
            (400, [b"Transfer-Encoding: chunked, gzip"]),
            (400, [b"Transfer-Encoding: gzip"]),
            (400, [b"Transfer-Encoding: identity"]),
            (501, [b"Transfer-Encoding: ,chunked"]),
            (501, [b"Transfer-Encoding: chunked, chunked"]),
            (501, [chunked, chunked]),
            (400, [b'Transfer-Encoding: "chunked"']),
        ):
            with self.subTest(fields):
                raw = b"\r\n".join((b"POST / HTTP/1.1", b"Host: h", *fields, b"", b""))
                self.assertIn(self.refused(raw)[0], {status, 400, 501})

    def test_http_1_0_with_a_coding(self) -> None:
        """HTTP/1.0 knows no transfer codings; a message that uses one was made to be misread."""
        raw = b"POST / HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        self.assertEqual(self.refused(raw)[0], 400)

    def test_host(self) -> None:
        """Exactly one Host, and one that is a host."""
        for fields in ([], [b"Host: a", b"Host: a"], [b"Host: a b"], [b"Host: a/c"], [b"Host: u@h"], [b"Host: h:x"]):
            raw = b"\r\n".join((b"GET / HTTP/1.1", *fields, b"", b""))
            self.assertEqual(self.refused(raw)[0], 400, fields)

    def test_request_lines(self) -> None:
        """Targets that are no path, forward-proxy requests, odd versions and no HTTP at all."""
        for status, line in (
            (400, b"GET http://evil.test/ HTTP/1.1"),
            (400, b"GET //[ HTTP/1.1\x00"),
            (400, b"GET x HTTP/1.1"),
            (400, b"GET * HTTP/1.1"),
            (400, b"GET /a b HTTP/1.1"),
            (400, b"GET /a\x00b HTTP/1.1"),
            (400, b"GET /\xe4 HTTP/1.1"),
            (400, b"GET /a\x7fb HTTP/1.1"),
            (501, b"CONNECT a.test:443 HTTP/1.1"),
            (505, b"GET / HTTP/2.0"),
            (400, b"GET / HTTP/1.2"),
            (505, b"GET / HTTP/0.9"),
            (400, b"GET / HTTP/11"),
            (400, b"GET / http/1.1"),
            (400, b"GET /"),
            (501, b"NOSUCHMETHOD / HTTP/1.1"),
            (501, b"get / HTTP/1.1"),
            (400, b"PRI * HTTP/2.0"),
            (400, b"\x16\x03\x01\x02\x00\x01\x00"),
        ):
            with self.subTest(line):
                self.assertIn(self.refused(line + b"\r\nHost: h\r\n\r\n")[0], {status, 400, 501, 505})

    def test_fields(self) -> None:
        """Names and values that could be read as something else: folds, bare CR, NUL, spaces, bare line feeds."""
        for lines in (
            b"X: a\r\n b",
            b" X: a",
            b"X : a",
            b"X\t: a",
            b": a",
            b"X: a\x00b",
            b"X: a\rb",
            b"X\x00: a",
            b"X(: a",
            b"X",
            b"X: a\nY: b",
            b"X: a\x7fb",
            b"X: \x01",
        ):
            with self.subTest(lines):
                self.assertEqual(self.refused(b"GET / HTTP/1.1\r\nHost: h\r\n" + lines + b"\r\n\r\n")[0], 400)

    def test_size(self) -> None:
        """A head that never ends is refused at 64 KiB; what an SDK with long tokens sends passes."""
        self.assertEqual(self.refused(b"GET / HTTP/1.1\r\nHost: h\r\nX: " + b"x" * 70_000)[0], 431)
        self.assertEqual(self.refused(b"GET /" + b"x" * 70_000)[0], 414)
        self.assertEqual(self.refused(b"GET / HTTP/1.1\r\nHost: h\r\n" + b"X: y\r\n" * 20_000)[0], 431)
        caller = self.serve(_echo)
        caller.says(_get(b"/" + b"x" * 8000, b"X: " + b"y" * 40_000))
        self.assertTrue(caller.heard().startswith(b"HTTP/1.1 200 "))

    def test_large_bodies_are_no_heads(self) -> None:
        """The limit is for heads: a body may be as long as it likes, also right behind another request."""
        caller = self.serve(_echo)
        caller.says(_post(b"x" * 200_000) + _post(b"y" * 200_000) + _get(b"/end"))
        self.assertEqual(caller.heard().count(b"HTTP/1.1 200 OK\r\n"), 3)

    def test_chunks(self) -> None:
        """A body whose chunks are malformed is refused, and nothing behind it is a request."""
        for body in (
            b"Z\r\n",
            b"0x5\r\nhello\r\n0\r\n\r\n",
            b"+5\r\nhello\r\n0\r\n\r\n",
            b"-5\r\nhello\r\n0\r\n\r\n",
            b" 5\r\nhello\r\n0\r\n\r\n",
            b"0_5\r\nhello\r\n0\r\n\r\n",
            b"\r\nhello\r\n0\r\n\r\n",
            b"11111111111111111\r\nhello",
            b"5\r\nhelloX\r\n0\r\n\r\n",
            b"4\r\nhello\r\n0\r\n\r\n",
            b"5\nhello\r\n0\r\n\r\n",
            b"5;a\x00b\r\nhello\r\n0\r\n\r\n",
            b"5;a\nb\r\nhello\r\n0\r\n\r\n",
            b"5\r\nhello\r\n0\r\nX : y\r\n\r\n",
        ):
            with self.subTest(body):
                caller = self.serve(_echo)
                caller.says(
                    b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n" + body, _get(b"/smuggled")
                )
                self.assertEqual([each.uri for each in self.page.requests], [b"/"])
                self.assertTrue(caller.heard().startswith(b"HTTP/1.1 400 "))
                self.assertTrue(caller.closed)

    def test_endless_emptiness(self) -> None:
        """Trailers or a chunk extension without end are refused, instead of filling our memory."""
        for begin, more in ((b"0\r\n", b"X: " + b"y" * 1000 + b"\r\n"), (b"2;", b"x" * 1000)):
            caller = self.serve(_echo)
            caller.says(_CHUNKED_HEAD + b"2\r\nok\r\n" + begin)
            for _ in range(MAX_EMPTY_BYTES // 1000 - 2):
                caller.says(more)
            self.assertEqual((caller.heard(), caller.closed), (b"", False))
            caller.says(*[more] * 4)
            self.assertTrue(caller.heard().startswith(b"HTTP/1.1 431 "))
            self.assertTrue(caller.closed)
            caller.says(*[more] * 10, b"\r\n\r\n" + _get(b"/smuggled"))
            self.assertEqual((caller.heard(), len(self.page.requests), caller.unread_bytes), (b"", 1, 0))
            self.clock.advance(5)
            self.assertFalse(caller.transport.connected)

    def test_much_framing_is_no_emptiness(self) -> None:
        """A long body in tiny chunks, each with an extension, is as good as any other."""
        caller = self.serve(_echo)
        caller.says(_CHUNKED_HEAD + b"1;ext=value\r\nx\r\n" * 20_000 + b"0\r\nX-T: 1\r\n\r\n" + _get(b"/next"))
        self.assertEqual(self.bodies(caller.heard()), [b"POST /c " + b"x" * 20_000 + b";X-T=1", b"GET /next "])

    def test_many_requests_with_an_empty_chunked_body(self) -> None:
        """A connection that has carried a thousand chunked bodies without a byte is not refused for their framing."""
        caller = self.serve(_echo)
        for _ in range(1000):
            caller.says(_CHUNKED_HEAD[:-2] + b"X-Pad: " + b"p" * 300 + b"\r\n\r\n")
            caller.says(b"0\r\n\r\n")
        self.assertEqual(len(self.bodies(caller.heard())), 1000)

    def test_malformed_second_request(self) -> None:
        """A malformed request behind a good one: the good one is answered in full, then the connection closes."""
        for gap in (0, 1):
            caller = self.serve(_later)
            caller.says(*((_get(b"/1"), b"\x00\r\n\r\n") if gap else (_get(b"/1") + b"\x00\r\n\r\n",)))
            (request,) = self.page.requests
            request.write_head(200, b"OK", [(b"Content-Length", b"4")])
            request.write(b"<1>\n")
            request.finish()
            caller.turn()
            heard = caller.heard()
            self.assertTrue(heard.startswith(b"HTTP/1.1 200 OK\r\n"))
            self.assertIn(b"<1>\n", heard)
            self.assertEqual(self.page.requests, [request])
            self.assertTrue(caller.closed)

    def test_malformed_third_request(self) -> None:
        """The same with one more that waits in between."""
        caller = self.serve(_echo)
        caller.says(_get(b"/1") + _get(b"/2") + b"\x00\r\n\r\n" + _get(b"/smuggled"))
        self.assertEqual(self.bodies(caller.heard()), [b"GET /1 ", b"GET /2 "])
        self.assertTrue(caller.closed)

    def test_the_answer_is_not_lost(self) -> None:
        """The connection is closed on our side first, and read a while longer: a reset could take the answer away."""
        caller = self.serve(_echo)
        caller.says(b"POST / HTTP/1.1\r\nContent-Length: 100000\r\n\r\n" + b"x" * 100)
        self.assertTrue(caller.closed)
        self.assertTrue(caller.transport.connected)
        self.assertFalse(caller.was_reset)
        caller.says(b"x" * 99_900)
        self.assertEqual(caller.unread_bytes, 0)
        caller.ends()
        self.assertFalse(caller.transport.connected)
        self.clock.advance(SWEEP_S)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    @given(st.binary(max_size=200), st.lists(st.integers(1, 40), max_size=6))
    def test_anything(self, raw: bytes, cuts: list[int]) -> None:
        """No bytes whatever make the channel raise."""
        caller = self.serve(_echo)
        for cut in cuts:
            caller.says(raw[:cut])
            raw = raw[cut:]
        caller.says(raw)
        caller.resets()
        self.assertEqual(self.site.channels, set())

    @given(st.integers(0, 400), st.binary(min_size=1, max_size=3))
    def test_almost_right(self, at: int, junk: bytes) -> None:
        """Nor does a good conversation with a few wrong bytes in it, and whatever is served is served in order."""
        raw = Reading._CONVERSATION
        at %= len(raw)
        caller = self.serve(_echo)
        caller.says(raw[:at] + junk + raw[at + len(junk) :])
        caller.resets()
        self.assertEqual(self.site.channels, set())
        self.assertEqual(self.flushLoggedErrors(), [])
