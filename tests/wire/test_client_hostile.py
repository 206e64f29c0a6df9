"""An upstream that sends what it should not: nothing of it reaches a caller as an answer, and no connection that it
came over is used again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.client import ResponseDone, ResponseFailed

from llmproxy.config.model import Upstream
from llmproxy.wire.client import MAX_EMPTY_BYTES, MAX_FIELDS, MAX_INTERIM_ANSWERS, ClientConnection, OutgoingRequest
from llmproxy.wire.response import Response
from llmproxy.wire.upstream_error import InvalidAnswer, NeverAnswered
from tests.wire.far_end import FarEnd

_OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
_CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
_MORE = 1000


class _Body(Protocol):
    """What a caller would get of a body, and whether it would look whole."""

    def __init__(self) -> None:
        self.content = b""
        self.ended: Failure | None = None

    def dataReceived(self, data: bytes) -> None:
        self.content += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.ended = reason

    @property
    def whole(self) -> bool:
        return self.ended is not None and self.ended.check(ResponseDone) is not None


class _Case(SynchronousTestCase):
    def setUp(self) -> None:
        """A connection of which a head may have 64 KiB."""
        self.make(Upstream())

    def make(self, limits: Upstream) -> None:
        """A connection with these limits."""
        self.idle: list[ClientConnection] = []
        self.gone: list[ClientConnection] = []
        self.connection = ClientConnection(Clock(), limits, self.idle.append, self.gone.append)
        self.clock = Clock()
        self.upstream = FarEnd(self.clock, self.connection).connect()

    def ask(self, method: bytes = b"GET") -> Deferred[Response]:
        """A request."""
        result = self.connection.request(OutgoingRequest(method, method + b" / HTTP/1.1\r\n\r\n"))
        self.upstream.heard()
        return result

    def body(self, result: Deferred[Response]) -> _Body:
        """The body of the answer."""
        body = _Body()
        self.successResultOf(result).deliverBody(body)
        return body

    def refused(self, raw: bytes, method: bytes = b"GET") -> None:
        """`raw` is no answer: the request fails, and the connection is dropped and given back to nobody. Whole, or one
        byte at a time."""
        for pieces in ((raw,), [raw[at : at + 1] for at in range(len(raw))]):
            self.setUp()
            result = self.ask(method)
            self.upstream.says(*pieces)
            with self.subTest(raw[:70]):
                self.failureResultOf(result, InvalidAnswer)
                self.assertTrue(self.upstream.was_reset)
                self.assertEqual((self.idle, self.gone), ([], [self.connection]))


class Heads(_Case):
    """Heads that are none. Each means a 502 of our own for the caller, with nothing of the upstream's in it."""

    def test_reason_phrase(self) -> None:
        """A reason phrase with a control character in it never reaches a caller; one of words and umlauts does."""
        for phrase in (b"OK\x00", b"O\x01K", b"\x7f", b"OK\x1b[31m"):
            self.setUp()
            self.refused(b"HTTP/1.1 200 %b\r\nContent-Length: 0\r\n\r\n" % phrase)
        self.setUp()
        result = self.ask()
        self.upstream.says(b"HTTP/1.1 200 Sch\xf6n\tgut\r\nContent-Length: 0\r\n\r\n")
        self.assertEqual(self.successResultOf(result).phrase, b"Sch\xf6n\tgut")

    def test_status_line(self) -> None:
        """Garbage, another protocol, another version or no version in the place of a status line."""
        for line in (
            b"garbage",
            b"220 smtp.test ESMTP",
            b"SSH-2.0-OpenSSH_9.2p1",
            b"<html><body>hello</body></html>",
            b"\x15\x03\x01\x00\x02\x02\x28",
            b"200 OK",
            b"HTTP 200 OK",
            b"HTTP/1.1",
            b"HTTP/1.1200 OK",
            b"http/1.1 200 OK",
            b"HTTP/0.9 200 OK",
            b"HTTP/1.2 200 OK",
            b"HTTP/2.0 200 OK",
            b"HTTP/2 200",
            b"HTTP/3.0 200 OK",
            b"HTTP/1.10 200 OK",
            b"ICY 200 OK",
            b"GET / HTTP/1.1",
        ):
            self.refused(line + b"\r\nContent-Length: 2\r\n\r\nok")

    def test_status_code(self) -> None:
        """A status is three digits from 100 to 599: the caller's library would stumble over any other, or take it for
        something that it is not."""
        for code in (
            b"0",
            b"20",
            b"99",
            b"099",
            b"000",
            b"600",
            b"999",
            b"2000",
            b"abc",
            b"2x0",
            b"-200",
            b"+200",
            b"",
        ):
            self.refused(b"HTTP/1.1 " + code + b" X\r\nContent-Length: 2\r\n\r\nok")

    def test_length(self) -> None:
        """A length that is given twice, is no plain number, or has no end in sight."""
        values = (b"+5", b"-5", b"0x5", b"1_0", b"5.0", b"5 5", b"5,5", b"5, 6", b"\xb2", b"18446744073709551621", b"x")
        for value in values:
            self.refused(b"HTTP/1.1 200 OK\r\nContent-Length: " + value + b"\r\n\r\nhello")
        for first, second in ((b"2", b"3"), (b"2", b"2"), (b"3", b"x")):
            self.refused(
                b"HTTP/1.1 200 OK\r\nContent-Length: " + first + b"\r\nCONTENT-LENGTH: " + second + b"\r\n\r\nok"
            )

    def test_coding(self) -> None:
        """A length beside a transfer coding, or a coding other than chunked: two readers would not agree on the end."""
        for fields in (
            b"Content-Length: 2\r\nTransfer-Encoding: chunked",
            b"Transfer-Encoding: chunked\r\nContent-Length: 2",
            b"Transfer-Encoding: gzip",
            b"Transfer-Encoding: gzip, chunked",
            b"Transfer-Encoding: chunked, gzip",
            b"Transfer-Encoding: chunked, chunked",
            b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
            b"Transfer-Encoding: xchunked",
            b"Transfer-Encoding: \x0bchunked",
            b'Transfer-Encoding: "chunked"',
            b"Transfer-Encoding: ,chunked",
            b"Transfer-Encoding:",
        ):
            self.refused(b"HTTP/1.1 200 OK\r\n" + fields + b"\r\n\r\n2\r\nok\r\n0\r\n\r\n")

    def test_fields(self) -> None:
        """A NUL, a bare CR, a folded line, a space before the colon, a name that is none: none reaches a caller."""
        for line in (
            b"X: a\x00b",
            b"X: a\x01b",
            b"X: a\x7fb",
            b"X: a\rb",
            b"X\x00: a",
            b"X : a",
            b"X\t: a",
            b" X: a",
            b"X: a\r\n folded",
            b"X: a\r\n\tfolded",
            b"X y: a",
            b"no colon",
            b": no name",
            b"X(: a",
            b"Content-Length : 2",
        ):
            self.refused(b"HTTP/1.1 200 OK\r\n" + line + b"\r\nContent-Length: 2\r\n\r\nok")

    def test_bare_line_feeds(self) -> None:
        """Lines that end in a bare LF or a bare CR are no lines."""
        self.refused(b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok")
        self.refused(b"HTTP/1.1 200 OK\r\nX: y\nContent-Length: 2\r\n\r\nok")
        self.refused(b"HTTP/1.1 200 OK\r\nX: y\rContent-Length: 2\r\n\r\nok")

    def test_switching(self) -> None:
        """A change of protocol that nobody asked for."""
        asked = b"Connection: upgrade\r\nUpgrade: "
        for fields in (b"", asked + b"websocket\r\n", asked + b"h2c\r\n"):
            self.refused(b"HTTP/1.1 101 Switching Protocols\r\n" + fields + b"\r\n\x81\x05hello")

    def test_upgrade_with_an_answer(self) -> None:
        """An upgrade that is only offered changes nothing: the answer beside it is an answer."""
        result = self.ask()
        self.upstream.says(b"HTTP/1.1 200 OK\r\nConnection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\nok")
        body = self.body(result)
        self.assertEqual((body.content, body.whole), (b"ok", True))


class Endless(_Case):
    """What does not end. Our memory is not what gives way."""

    def test_heads(self) -> None:
        """A status line, a reason, a name or a value without end, or ever more fields: ended at `max_header_bytes`."""
        for begin, more in (
            (b"HTTP/1.1 200 ", b"r" * _MORE),
            (b"HTTP/1.1 200 OK\r\n", b"n" * _MORE),
            (b"HTTP/1.1 200 OK\r\nX: ", b"v" * _MORE),
            (b"HTTP/1.1 200 OK\r\nX:", b" " * _MORE),
            (b"HTTP/1.1 200 OK\r\n", b"X: y\r\n" * (_MORE // 6)),
            (b"HTTP/1.1 ", b"2" * _MORE),
            (b"", b"x" * _MORE),
            (b"", b"\r\n" * (_MORE // 2)),
        ):
            for limit in (4096, 65_536, 200_000):
                self.make(Upstream(max_header_bytes=limit))
                result = self.ask()
                self.upstream.says(begin)
                sent = len(begin)
                while not self.connection.closed:
                    self.upstream.says(more)
                    sent += len(more)
                    self.assertLessEqual(sent, limit + 2 * _MORE)
                self.failureResultOf(result, InvalidAnswer)

    def test_head_in_one_read(self) -> None:
        """A head that is too large is refused also when it came in one piece with its end; the body behind a head does
        not count."""
        for size, fits in ((3000, True), (5000, False)):
            for place in (b"HTTP/1.1 200 %b\r\n", b"HTTP/1.1 200 OK\r\nX: %b\r\n"):
                self.make(Upstream(max_header_bytes=4096))
                result = self.ask()
                self.upstream.says(place % (b"x" * size) + b"Content-Length: 9000\r\n\r\n" + b"b" * 9000)
                if fits:
                    self.assertTrue(self.body(result).whole)
                else:
                    self.failureResultOf(result, InvalidAnswer)

    def test_large_heads_fit(self) -> None:
        """60 KiB of fields, which no provider sends, still pass, in any number of reads."""
        value = b"v" * 59_000
        result = self.ask()
        self.upstream.says(b"HTTP/1.1 200 OK\r\nX: ", *[value[at : at + 100] for at in range(0, 59_000, 100)])
        self.upstream.says(b"\r\nContent-Length: 2\r\n\r\nok")
        self.assertEqual(self.successResultOf(result).fields[0], (b"X", value))

    def test_number_of_fields(self) -> None:
        """256 fields are many, and pass; one more does not."""
        for number, fits in ((MAX_FIELDS, True), (MAX_FIELDS + 1, False)):
            self.setUp()
            result = self.ask()
            self.upstream.says(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * (number - 1) + b"Content-Length: 2\r\n\r\nok")
            if fits:
                self.assertEqual(len(self.successResultOf(result).fields), MAX_FIELDS)
            else:
                self.failureResultOf(result, InvalidAnswer)

    def test_interim_answers(self) -> None:
        """Sixteen interim answers are borne; one more, or ever larger ones, is not."""
        hint = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
        result = self.ask()
        self.upstream.says(hint * MAX_INTERIM_ANSWERS + _OK)
        self.assertEqual(self.body(result).content, b"ok")
        for endless in (hint * (MAX_INTERIM_ANSWERS + 1), b"HTTP/1.1 100 Continue\r\n\r\n" * 1000):
            self.setUp()
            result = self.ask()
            self.upstream.says(endless)
            self.failureResultOf(result, InvalidAnswer)
        self.setUp()
        result = self.ask()
        for _ in range(8):
            self.upstream.says(b"HTTP/1.1 103 Early Hints\r\nLink: " + b"x" * 10_000 + b"\r\n\r\n")
        self.failureResultOf(result, InvalidAnswer)

    def test_trailers_and_extensions(self) -> None:
        """Trailer fields or a chunk extension without end break the answer off."""
        for begin, more in (
            (b"0\r\n", b"X: " + b"y" * 990 + b"\r\n"),
            (b"2;", b"x" * 1000),
            (b"0\r\nX: ", b"y" * 1000),
        ):
            self.setUp()
            result = self.ask()
            self.upstream.says(_CHUNKED + begin)
            body = self.body(result)
            sent = 0
            while body.ended is None:
                self.upstream.says(more)
                sent += len(more)
                self.assertLessEqual(sent, MAX_EMPTY_BYTES + 2 * _MORE)
            self.assertIsNotNone(body.ended.check(ResponseFailed))


class Bodies(_Case):
    """Bodies that are not what their head announced: what was good is delivered, and then there is a visible cut."""

    def test_chunks(self) -> None:
        """A chunk whose size is none, or that is longer or shorter than it said."""
        for chunk in (
            b"Z\r\nok\r\n",
            b"0x2\r\nok\r\n",
            b"+2\r\nok\r\n",
            b"-2\r\nok\r\n",
            b"2_0\r\nok\r\n",
            b" 2\r\nok\r\n",
            b"\r\nok\r\n",
            b"11111111111111111\r\nok\r\n",
            b"2\nok\n",
            b"2\r\nokay\r\n",
            b"2\r\nok0\r\n\r\n",
            b"2;\nx\r\nok\r\n",
        ):
            self.setUp()
            result = self.ask()
            self.upstream.says(_CHUNKED + b"4\r\ngood\r\n")
            body = self.body(result)
            self.upstream.says(chunk, b"0\r\n\r\n")
            with self.subTest(chunk):
                self.assertTrue(body.content.startswith(b"good"))
                self.assertFalse(body.whole)
                assert body.ended is not None
                self.assertIsNotNone(body.ended.check(ResponseFailed))
                self.assertTrue(self.upstream.was_reset)
                self.assertEqual(self.idle, [])

    def test_trailers(self) -> None:
        """Trailer fields that are none break the answer off as well."""
        for trailer in (b"X: a\x00b", b"X : y", b"no colon", b" X: y"):
            self.setUp()
            result = self.ask()
            self.upstream.says(_CHUNKED + b"2\r\nok\r\n0\r\n" + trailer + b"\r\n\r\n")
            body = self.body(result)
            self.upstream.turn()
            with self.subTest(trailer):
                self.assertFalse(body.whole)
                self.assertEqual(self.idle, [])


class Poison(_Case):
    """Bytes that nobody asked for are never the answer to the next request."""

    _ANSWERS = (
        (b"GET", _OK),
        (b"GET", _CHUNKED + b"2\r\nok\r\n0\r\n\r\n"),
        (b"GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
        (b"GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 4\r\n\r\n"),
        (b"HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n"),
        (b"HEAD", _CHUNKED),
        (b"HEAD", b"HTTP/1.1 103 Hints\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"),
    )
    _SURPLUS = (
        b"E",
        b"EVIL",
        b"\x00",
        b"0\r\n\r\n",
        b"4\r\nEVIL\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX-Evil: 1\r\nContent-Length: 4\r\n\r\nEVIL",
        b"HTTP/1.1 103 Evil\r\n\r\n",
        b"HTTP/1.1 101 Evil\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
    )

    def test_surplus(self) -> None:
        """What follows a whole answer is dropped, and the connection with it; the answer itself is whole. It does not
        matter where in the stream a read ends."""
        for method, answer in self._ANSWERS:
            for surplus in self._SURPLUS:
                raw = answer + surplus
                for cut in range(1, len(raw) + 1):
                    self.setUp()
                    result = self.ask(method)
                    body = _Body()
                    result.addCallback(Response.deliverBody, body)
                    self.upstream.says(raw[:cut], raw[cut:])
                    with self.subTest((method, answer, surplus, cut)):
                        self.assertTrue(body.whole)
                        self.assertNotIn(b"EVIL", body.content)
                        self.assertTrue(self.connection.closed)
                        self.assertEqual(self.gone, [self.connection])

    def test_surplus_is_no_trailer(self) -> None:
        """Nor does anything of a second answer get among the fields of the first."""
        for method, answer in self._ANSWERS:
            self.setUp()
            result = self.ask(method)
            self.upstream.says(answer + b"HTTP/1.1 200 Evil\r\nX-Evil: 1\r\nContent-Length: 0\r\n\r\n")
            response = self.successResultOf(result)
            self.assertEqual(response.trailers, [])
            self.assertNotIn(b"x-evil", response.index)
            self.assertNotEqual(response.phrase, b"Evil")

    def test_unasked(self) -> None:
        """A connection that speaks while it is idle, as one does that times out, is dropped with what it said."""
        for before in (False, True):
            self.setUp()
            if before:
                result = self.ask()
                self.upstream.says(_OK)
                self.body(result)
            self.upstream.says(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            self.assertTrue(self.connection.closed)
            self.assertTrue(self.upstream.was_reset)


class Bodiless(_Case):
    """Answers that have no body, whatever their fields say. Nobody waits for one."""

    def test_no_waiting(self) -> None:
        """The answer to a HEAD, a 204 and a 304 end with their head: at once, and the connection goes on."""
        for method, status in ((b"HEAD", b"200 OK"), (b"GET", b"204 No Content"), (b"GET", b"304 Not Modified")):
            for fields in (b"", b"Content-Length: 1000\r\n", b"Transfer-Encoding: chunked\r\n"):
                self.setUp()
                for _ in range(3):
                    result = self.ask(method)
                    self.upstream.says(b"HTTP/1.1 " + status + b"\r\n" + fields + b"\r\n")
                    body = self.body(result)
                    with self.subTest((method, status, fields)):
                        self.assertEqual((body.content, body.whole), (b"", True))
                        self.assertFalse(self.connection.closed)
                self.assertEqual(len(self.idle), 3)


class Anything(_Case):
    """No bytes whatever do harm."""

    @given(
        st.lists(
            st.one_of(
                st.binary(max_size=40),
                st.sampled_from(
                    [
                        b"HTTP/1.1 ",
                        b"200 OK\r\n",
                        b"HTTP/1.1 200 OK\r\n",
                        b"HTTP/1.1 103 Hints\r\n\r\n",
                        b"Content-Length: 5\r\n",
                        b"Transfer-Encoding: chunked\r\n",
                        b"Connection: close\r\n",
                        b"\r\n",
                        b"5\r\nhello\r\n",
                        b"0\r\n",
                        b"hello",
                        b"X: y\r\n",
                    ]
                ),
            ),
            max_size=12,
        ),
        st.sampled_from([b"GET", b"HEAD", b"POST"]),
        st.booleans(),
    )
    def test_anything(self, pieces: list[bytes], method: bytes, peaceful: bool) -> None:
        """Any bytes in any pieces, then an end: nothing raises, the request ends exactly once, and the connection is
        either idle and good for the next request, or gone."""
        self.setUp()
        ends: list[object] = []
        bodies: list[_Body] = []

        def answered(response: Response) -> None:
            bodies.append(_Body())
            ends.append(response)
            response.deliverBody(bodies[0])

        result = self.ask(method)
        result.addCallbacks(answered, ends.append)
        self.upstream.says(*pieces)
        if self.idle and not self.connection.closed:
            self.assertTrue(bodies[0].whole)
            again = self.ask()
            self.upstream.says(_OK)
            self.assertEqual(self.body(again).content, b"ok")
        (FarEnd.ends if peaceful else FarEnd.resets)(self.upstream)
        self.assertEqual(len(ends), 1)
        self.assertEqual(self.gone, [self.connection])
        if isinstance(ends[0], Failure):
            self.assertIn(type(ends[0].value).__module__, {NeverAnswered.__module__})
        for body in bodies:
            self.assertIsNotNone(body.ended)
        self.assertEqual(self.flushLoggedErrors(), [])
