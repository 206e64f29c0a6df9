"""The client side of a connection: every way in which an answer can be framed, come late, break off or be wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.client import ResponseDone, ResponseFailed
from twisted.web.http import PotentialDataLoss
from twisted.web.iweb import UNKNOWN_LENGTH, IBodyProducer
from zope.interface import implementer

from llmproxy.config.model import Upstream
from llmproxy.core.fields import Fields
from llmproxy.wire.client import MAX_EMPTY_BYTES, ClientConnection, OutgoingRequest
from llmproxy.wire.response import Response
from llmproxy.wire.upstream_error import (
    AnswerCut,
    FirstByteTimeout,
    IdleTimeout,
    InvalidAnswer,
    NeverAnswered,
    UploadTimeout,
)
from tests.wire.far_end import FarEnd


class _Body(Protocol):
    """Takes a body: its pieces, the reads they came in, its end."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.reads = 0
        self.ended: Failure | None = None
        self.pause_at_once = False

    def connectionMade(self) -> None:
        if self.pause_at_once:
            self.producer.pauseProducing()

    @property
    def producer(self) -> Any:
        return self.transport

    def dataReceived(self, data: bytes) -> None:
        self.pieces.append(data)

    def read_done(self) -> None:
        self.reads += 1

    def connectionLost(self, reason: Failure = Failure(ResponseDone())) -> None:  # noqa: B008
        if self.ended is not None:
            raise AssertionError("the body has ended twice")
        self.ended = reason

    @property
    def content(self) -> bytes:
        return b"".join(self.pieces)


@implementer(IBodyProducer)
class _Upload:
    """A body in the test's hands."""

    def __init__(self, length: Any = UNKNOWN_LENGTH) -> None:
        self.length = length
        self.calls: list[str] = []
        self.consumer: Any = None
        self.trailers: Fields = []
        self.done: Deferred[None] = Deferred()

    def startProducing(self, consumer: Any) -> Deferred[None]:
        self.consumer = consumer
        return self.done

    def pauseProducing(self) -> None:
        self.calls.append("pause")

    def resumeProducing(self) -> None:
        self.calls.append("resume")

    def stopProducing(self) -> None:
        self.calls.append("stop")


@implementer(IBodyProducer)
class _Held:
    """A body that is all there."""

    def __init__(self, data: bytes, trailers: Fields) -> None:
        self.data: bytes | None = data
        self.length = len(data)
        self.trailers = trailers

    def startProducing(self, consumer: Any) -> Deferred[None]:
        raise AssertionError("not needed")

    def pauseProducing(self) -> None:
        raise AssertionError("not needed")

    resumeProducing = pauseProducing

    def stopProducing(self) -> None:
        self.data = None


_STREAM = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def _outgoing(
    method: bytes,
    body: IBodyProducer | None = None,
    chunked: bool = False,
    on_interim: Callable[[int, bytes, Fields], None] | None = None,
) -> OutgoingRequest:
    return OutgoingRequest(method, method + b" / HTTP/1.1\r\n\r\n", body, chunked, on_interim)


def _get(method: bytes = b"GET") -> OutgoingRequest:
    return _outgoing(method)


class _Case(SynchronousTestCase):
    def setUp(self) -> None:
        """A connection that waits 30 s for a first byte and 20 s within an answer."""
        self.clock = Clock()
        self.idle: list[ClientConnection] = []
        self.gone: list[ClientConnection] = []
        self.connection = ClientConnection(
            self.clock, Upstream(first_byte_timeout_s=30.0, idle_timeout_s=20.0), self.idle.append, self.gone.append
        )
        self.upstream = FarEnd(self.clock, self.connection).connect()

    def ask(self, outgoing: OutgoingRequest | None = None) -> Deferred[Response]:
        """A request, a GET unless said otherwise; what was written is forgotten."""
        result = self.connection.request(outgoing or _get())
        self.upstream.heard()
        return result

    def body_of(self, result: Deferred[Response]) -> _Body:
        """The body of the answer, as it comes."""
        body = _Body()
        self.successResultOf(result).deliverBody(body)
        return body

    def failed(self, body: _Body) -> Exception:
        """Why the answer broke off."""
        assert body.ended is not None
        body.ended.trap(ResponseFailed)
        broken: Any = body.ended.value
        (reason,) = broken.reasons
        error = reason.value
        assert isinstance(error, Exception)
        return error


class Answers(_Case):
    """Whole answers."""

    _ANSWERS: tuple[tuple[bytes, bytes, bytes, bool], ...] = (
        # method, answer, content, whether the connection can be used again
        (b"GET", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", b"hello", True),
        (b"GET", b"HTTP/1.1 200 OK\r\ncontent-LENGTH:5\r\n\r\nhello", b"hello", True),
        (b"GET", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b"", True),
        (b"POST", b"HTTP/1.1 200\r\nContent-Length: 1\r\n\r\nx", b"x", True),
        (
            b"GET",
            _STREAM + b"3;e=1\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n",
            b"hello",
            True,
        ),
        (b"GET", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n0\r\nX-T: 1\r\n\r\n", b"", True),
        (b"HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", b"", True),
        (b"HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"", True),
        (b"HEAD", b"HTTP/1.1 200 OK\r\n\r\n", b"", True),
        (b"GET", b"HTTP/1.1 204 No Content\r\n\r\n", b"", True),
        (b"GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", b"", True),
        (b"GET", b"HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n", b"", True),
        (b"GET", b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", b"hello", True),
        (b"HEAD", b"HTTP/1.1 103 Hints\r\nA: b\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", b"", True),
        (b"GET", b"HTTP/1.1 200 OK\r\nConnection: Close\r\nContent-Length: 5\r\n\r\nhello", b"hello", False),
        (b"GET", b"HTTP/1.1 200 OK\r\nConnection: x, close\r\nContent-Length: 5\r\n\r\nhello", b"hello", False),
        (b"GET", b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", b"hello", False),
        (b"GET", b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nhello", b"hello", False),
    )

    def test_every_framing_split_at_every_byte(self) -> None:
        """Each answer means the same wherever the network cuts it, ends where it should without waiting for more, and
        leaves the connection fit for the next request exactly when it may."""
        for method, raw, content, again in self._ANSWERS:
            for cut in range(len(raw)):
                self.setUp()
                body = _Body()
                self.ask(_get(method)).addCallback(Response.deliverBody, body)
                self.upstream.says(raw[:cut], raw[cut:])
                self.assertEqual(body.content, content, (raw, cut))
                assert body.ended is not None
                body.ended.trap(ResponseDone)
                self.assertEqual(self.idle, [self.connection] if again else [], (raw, cut))
                self.assertEqual(self.upstream.closed, not again, (raw, cut))
                self.assertIsNone(self.connection.deadline)

    @given(st.lists(st.integers(1, 20), max_size=30))
    def test_one_connection_many_answers(self, sizes: list[int]) -> None:
        """All that allow it, one after the other over one connection, cut in any way."""
        self.setUp()
        for method, raw, content, again in self._ANSWERS:
            if not again:
                continue
            body = _Body()
            self.ask(_get(method)).addCallback(Response.deliverBody, body)
            rest = raw
            for size in sizes:
                self.upstream.says(rest[:size])
                rest = rest[size:]
            self.upstream.says(rest)
            self.assertEqual(body.content, content)
        self.assertEqual(set(self.idle), {self.connection})

    def test_many_answers_without_a_body(self) -> None:
        """A connection that has carried a thousand bodiless answers is as good as on its first day."""
        for method, status in ((b"HEAD", b"200 OK"), (b"GET", b"304 Not Modified"), (b"DELETE", b"204 No Content")):
            head = b"HTTP/1.1 " + status + b"\r\nX-Pad: " + b"p" * 300 + b"\r\n\r\n"
            for _ in range(1000):
                result = self.ask(_get(method))
                self.upstream.says(head)
                self.successResultOf(result).deliverBody(_Body())
                self.assertFalse(self.connection.closed)

    def test_head(self) -> None:
        """The head is as it was sent: names, order, repetition, reason."""
        result = self.ask()
        self.upstream.says(
            b"HTTP/1.1 418 I'm a teapot\r\nset-cookie: a\r\nX-y:  b \r\nSet-Cookie: c\r\nContent-Length: 0\r\n\r\n"
        )
        response = self.successResultOf(result)
        self.assertEqual((response.code, response.phrase, response.version), (418, b"I'm a teapot", (b"HTTP", 1, 1)))
        self.assertEqual(
            [(name, value.strip()) for name, value in response.fields],
            [(b"set-cookie", b"a"), (b"X-y", b"b"), (b"Set-Cookie", b"c"), (b"Content-Length", b"0")],
        )
        self.assertEqual(response.headers.getRawHeaders(b"set-cookie"), [b"a", b"c"])

    def test_trailers(self) -> None:
        """The fields behind a chunked body are there once it has ended, apart from those of the head."""
        result = self.ask()
        self.upstream.says(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"0\r\nX-Sum: 1\r\nX-Sum: 2\r\n\r\n"
        )
        response = self.successResultOf(result)
        self.assertEqual(response.trailers, [(b"X-Sum", b"1"), (b"X-Sum", b"2")])
        self.assertEqual(response.fields, [(b"Transfer-Encoding", b"chunked")])

    def test_until_close(self) -> None:
        """An answer without length ends with the connection; that is an end, of the kind that cannot be sure."""
        for head in (b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.0 200 OK\r\n\r\n"):
            self.setUp()
            body = self.body_of_after(head)
            self.upstream.says(b"hel", b"lo")
            self.assertIsNone(body.ended)
            self.upstream.ends()
            self.assertEqual(body.content, b"hello")
            assert body.ended is not None
            body.ended.trap(PotentialDataLoss)
            self.assertEqual((self.idle, self.gone), ([], [self.connection]))

    def body_of_after(self, head: bytes) -> _Body:
        """The body of an answer with this head."""
        result = self.ask()
        self.upstream.says(head)
        return self.body_of(result)

    def test_told_after_each_read(self) -> None:
        """Whoever wants to write once for each read is told when a read is through."""
        body = self.body_of_after(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        self.upstream.says(b"1\r\na\r\n1\r\nb\r\n", b"1\r\nc\r\n")
        self.assertEqual((body.pieces, body.reads), ([b"a", b"b", b"c"], 2))

    def test_body_that_is_not_fetched_at_once(self) -> None:
        """A body that nobody takes is not read beyond what came with the head; whoever takes it later gets it all."""
        result = self.ask()
        content = b"x" * 500_000
        self.upstream.says(b"HTTP/1.1 200 OK\r\nContent-Length: 500000\r\n\r\n" + content[:100], content[100:])
        self.assertGreater(self.upstream.unread_bytes, 400_000)
        body = self.body_of(result)
        self.upstream.turn()
        self.assertEqual(body.content, content)
        assert body.ended is not None
        body.ended.trap(ResponseDone)

    def test_interim(self) -> None:
        """103 is told with its fields, 100 is not; neither is taken for the answer."""
        told: list[object] = []
        result = self.ask(_outgoing(b"GET", on_interim=lambda *what: told.append(what)))
        self.upstream.says(
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\nConnection: x\r\n\r\n"
        )
        self.assertEqual(told, [(103, b"Early Hints", [(b"Link", b"</a>")])])
        self.assertNoResult(result)
        self.upstream.says(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        response = self.successResultOf(result)
        self.assertEqual((response.code, response.fields), (200, [(b"Content-Length", b"0")]))


class Unusable(_Case):
    """Answers that cannot be trusted, and connections that cannot be used again."""

    def test_surplus(self) -> None:
        """Bytes after the end of an answer are dropped, and the connection with them."""
        for method, answer in (
            (b"GET", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"),
            (b"GET", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
            (b"GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
            (b"GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 4\r\n\r\n"),
            (b"HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n"),
        ):
            for surplus in (b"EVIL", b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nEVIL", b"\x00", b"H"):
                for together in (True, False):
                    self.setUp()
                    result = self.ask(_get(method))
                    self.upstream.says(*((answer + surplus,) if together else (answer, surplus)))
                    body = self.body_of(result)
                    self.assertNotIn(b"EVIL", body.content)
                    self.assertTrue(self.connection.closed, (answer, surplus, together))
                    self.assertEqual(self.gone, [self.connection])

    def test_unasked(self) -> None:
        """A connection that speaks before it is asked is dropped."""
        self.upstream.says(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
        self.assertTrue(self.connection.closed)
        self.assertTrue(self.upstream.was_reset)

    def test_invalid(self) -> None:
        """What is no answer fails the request, and the connection is dropped."""
        for raw in (
            b"220 smtp.test ESMTP\r\n",
            b"HTTP/1.1 abc\r\n\r\n",
            b"HTTP/1.1 099 X\r\n\r\n",
            b"HTTP/1.1 1000 X\r\n\r\n",
            b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/0.9 200 OK\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n\x81\x05hello",
            b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 1, 1\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: x\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n",
            b"HTTP/1.1 204 OK\r\nContent-Length: x\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nX: \x00\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nX y: z\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000,
            b"HTTP/1.1 103 Hints\r\n\r\n" * 50,
        ):
            self.setUp()
            result = self.ask()
            self.upstream.says(raw)
            self.failureResultOf(result, InvalidAnswer)
            self.assertTrue(self.upstream.was_reset, raw[:60])
            self.assertEqual((self.idle, self.gone), ([], [self.connection]))

    def test_invalid_body(self) -> None:
        """Garbage among the chunks breaks the answer off; what was good before it was delivered."""
        result = self.ask()
        self.upstream.says(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\nEVIL\r\n")
        body = self.body_of(result)
        self.upstream.turn()
        self.assertEqual(body.content, b"ok")
        self.assertIsInstance(self.failed(body), InvalidAnswer)

    def test_endless_emptiness(self) -> None:
        """Trailers or a chunk extension without end break the answer off, instead of filling our memory."""
        for begin, more in ((b"0\r\n", b"X: " + b"y" * 1000 + b"\r\n"), (b"2;", b"x" * 1000)):
            self.setUp()
            result = self.ask()
            self.upstream.says(_STREAM + b"2\r\nok\r\n" + begin)
            body = self.body_of(result)
            for _ in range(MAX_EMPTY_BYTES // 1000 - 2):
                self.upstream.says(more)
            self.assertIsNone(body.ended)
            self.upstream.says(*[more] * 4)
            self.assertIsInstance(self.failed(body), InvalidAnswer)
            self.assertEqual(body.content, b"ok")
            self.assertTrue(self.upstream.was_reset)
            self.assertEqual((self.idle, self.gone), ([], [self.connection]))

    def test_much_framing_is_no_emptiness(self) -> None:
        """A long answer in tiny chunks, each with an extension, is as good as any other."""
        result = self.ask()
        self.upstream.says(_STREAM)
        body = self.body_of(result)
        self.upstream.says(b"1;ext=value\r\nx\r\n" * 20_000, b"0\r\nX-T: 1\r\n\r\n")
        self.assertEqual(len(body.content), 20_000)
        self.assertEqual(self.idle, [self.connection])

    def test_cut(self) -> None:
        """An answer that breaks off is told from one that ends, for every framing that can tell."""
        for head, part in (
            (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", b"hell"),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"2\r\nhe\r\n"),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"2\r\nhe\r\n0\r\n"),
        ):
            for leave in (FarEnd.ends, FarEnd.resets):
                self.setUp()
                result = self.ask()
                self.upstream.says(head)
                body = self.body_of(result)
                self.upstream.says(part)
                leave(self.upstream)
                self.assertIsInstance(self.failed(body), AnswerCut)

    def test_reset_of_an_answer_until_close(self) -> None:
        """A reset is never an end, also where the end of the connection would be one."""
        result = self.ask()
        self.upstream.says(b"HTTP/1.1 200 OK\r\n\r\nsome")
        body = self.body_of(result)
        self.upstream.resets()
        self.assertIsInstance(self.failed(body), AnswerCut)

    def test_cut_in_the_head(self) -> None:
        """A head that breaks off is a cut: the upstream had begun to answer, so nothing is sent again."""
        head = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"
        for cut in range(1, len(head)):
            self.setUp()
            result = self.ask()
            self.upstream.says(head[:cut])
            self.upstream.ends()
            self.failureResultOf(result, AnswerCut)

    def test_never_answered(self) -> None:
        """A connection that ends without a byte says how much of the request was handed over, and whether it had
        served before: on that hangs whether the request may be sent again."""
        outgoing = _outgoing(b"POST", _Held(b"hi", []))
        result: Deferred[Any] = self.connection.request(outgoing)
        failed: list[Failure] = []
        result.addErrback(failed.append)
        written = len(self.upstream.heard())
        self.upstream.ends()
        error: Any = failed[0].value
        self.assertEqual((error.sent_bytes, error.reused), (written, False))
        self.setUp()
        result = self.ask()
        self.upstream.says(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        self.successResultOf(result)
        result = self.ask()
        self.upstream.resets()
        self.assertTrue(self.failureResultOf(result, NeverAnswered).value.reused)

    @example(b"\r\n\x00", b"HTTP/1.1 200 OK\r\n")
    @given(
        st.binary(max_size=150),
        st.sampled_from([b"", b"HTTP/1.1 200 OK\r\n", _STREAM]),
    )
    def test_anything(self, raw: bytes, start: bytes) -> None:
        """No bytes whatever make the connection raise; the request ends one way or another."""
        self.setUp()
        ends: list[object] = []
        self.connection.request(_get()).addBoth(ends.append)
        self.upstream.says(start, raw)
        self.upstream.resets()
        self.assertEqual(len(ends), 1)
        if isinstance(ends[0], Response):
            body = _Body()
            ends[0].deliverBody(body)
            self.upstream.turn()  # a body that nobody had asked for was not read on
            self.assertIsNotNone(body.ended)


class Requests(_Case):
    """Requests on the wire."""

    def test_head(self) -> None:
        """The head is written as it is given, at once and in one piece."""
        head = b"PATCH /a?b HTTP/1.1\r\nhOST: h\r\nA: \r\nA: b\r\n\r\n"
        self.connection.request(OutgoingRequest(b"PATCH", head))
        self.assertEqual(self.upstream.writes, [head])

    def test_held_body(self) -> None:
        """A body that is all there goes out in one piece with the head, whatever its framing."""
        for chunked, data, written in (
            (False, b"hello", b"hello"),
            (False, b"", b""),
            (True, b"hello", b"5\r\nhello\r\n0\r\nT: 1\r\n\r\n"),
            (True, b"", b"0\r\nT: 1\r\n\r\n"),
        ):
            self.setUp()
            self.connection.request(_outgoing(b"POST", _Held(data, [(b"T", b"1")]), chunked))
            self.assertEqual(self.upstream.writes, [b"POST / HTTP/1.1\r\n\r\n" + written])

    def test_streamed_body(self) -> None:
        """A body that comes in pieces is written piece by piece, and an empty piece does not end it."""
        for chunked, written in ((True, [b"2\r\nab\r\n", b"1\r\nc\r\n", b"0\r\nT: 1\r\n\r\n"]), (False, [b"ab", b"c"])):
            self.setUp()
            upload = _Upload()
            self.ask(_outgoing(b"POST", upload, chunked))
            upload.consumer.write(b"ab")
            upload.consumer.write(b"")
            upload.consumer.write(b"c")
            upload.trailers = [(b"T", b"1")]
            upload.done.callback(None)
            self.assertEqual(self.upstream.writes, written)

    def test_back_pressure(self) -> None:
        """An upstream that does not read holds the body back."""
        upload = _Upload()
        self.ask(_outgoing(b"POST", upload, True))
        self.upstream.stops_reading()
        for _ in range(100):
            upload.consumer.write(b"x" * 1024)
        self.assertEqual(set(upload.calls), {"pause"})
        self.upstream.reads_on()
        self.assertEqual(upload.calls[-1:], ["resume"])

    def test_body_that_breaks_off(self) -> None:
        """If the body fails, the upstream must not take what it has for the whole: no last chunk, a reset."""
        upload = _Upload()
        result = self.ask(_outgoing(b"POST", upload, True))
        upload.consumer.write(b"ab")
        upload.done.errback(Failure(RuntimeError("the caller's line broke")))
        self.upstream.turn()
        self.assertEqual(self.upstream.heard(), b"2\r\nab\r\n")
        self.assertTrue(self.upstream.was_reset)
        self.failureResultOf(result, NeverAnswered)

    def test_early_answer(self) -> None:
        """An answer that comes before the body is through is delivered; the body is stopped, nothing more is written,
        and the connection, being in mid-request, serves nobody else."""
        upload = _Upload()
        result = self.ask(_outgoing(b"POST", upload, True))
        upload.consumer.write(b"ab")
        self.upstream.heard()
        self.upstream.says(b"HTTP/1.1 401 No\r\nContent-Length: 2\r\n\r\nno")
        self.assertEqual(self.body_of(result).content, b"no")
        self.assertEqual(upload.calls, ["stop"])
        upload.consumer.write(b"more")
        self.assertEqual(self.upstream.heard(), b"")
        self.assertEqual(self.idle, [])
        self.assertTrue(self.upstream.closed)

    def test_answer_while_uploading(self) -> None:
        """An answer that begins early and streams while the body still goes up is relayed, and both end well."""
        upload = _Upload()
        result = self.ask(_outgoing(b"POST", upload, True))
        self.upstream.says(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        body = self.body_of(result)
        upload.consumer.write(b"ab")
        self.upstream.says(b"1\r\nx\r\n")
        upload.done.callback(None)
        self.assertEqual(self.upstream.heard(), b"2\r\nab\r\n0\r\n\r\n")
        self.upstream.says(b"0\r\n\r\n")
        self.assertEqual(body.content, b"x")
        self.assertEqual(self.idle, [self.connection])

    def test_upstream_gone_while_uploading(self) -> None:
        """A connection that dies in mid-upload stops the body."""
        upload = _Upload()
        result = self.ask(_outgoing(b"POST", upload, True))
        upload.consumer.write(b"ab")
        self.upstream.resets()
        self.assertEqual(set(upload.calls), {"stop"})
        self.failureResultOf(result, NeverAnswered)


class Flow(_Case):
    """Readers that are slow."""

    def test_pause_and_resume(self) -> None:
        """Nothing is read while the reader is paused, and all is delivered afterwards."""
        result = self.ask()
        self.upstream.says(b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n")
        body = self.body_of(result)
        body.producer.pauseProducing()
        self.upstream.says(b"x" * 300_000)
        self.assertEqual(body.content, b"")
        body.producer.resumeProducing()
        self.upstream.turn()
        self.assertEqual(len(body.content), 300_000)

    def test_paused_at_the_end(self) -> None:
        """A reader that pauses in the last read of its answer does not leave a connection that nobody reads."""
        result = self.ask()
        self.upstream.says(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n")
        body = _Body()
        body.pause_at_once = True
        self.successResultOf(result).deliverBody(body)
        producer = body.producer
        self.upstream.says(b"last")
        producer.resumeProducing()
        self.upstream.turn()
        assert body.ended is not None
        self.assertEqual(self.idle, [self.connection])
        # The old reader has no hold on the connection any more.
        producer.pauseProducing()
        result = self.ask()
        self.upstream.says(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnext")
        self.assertEqual(self.body_of(result).content, b"next")
        producer.stopProducing()
        self.assertFalse(self.upstream.closed)

    def test_pause_within_the_last_piece(self) -> None:
        """The same when the pause comes while the last piece is delivered, as it does when the caller is behind."""

        class Pauses(_Body):
            def dataReceived(self, data: bytes) -> None:
                super().dataReceived(data)
                self.producer.pauseProducing()

        result = self.ask()
        self.upstream.says(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n")
        body = Pauses()
        self.successResultOf(result).deliverBody(body)
        self.upstream.says(b"last")
        self.assertEqual(self.idle, [self.connection])
        result = self.ask()
        self.upstream.says(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnext")
        self.assertEqual(self.body_of(result).content, b"next")

    def test_stop(self) -> None:
        """A reader that wants no more has the connection dropped at once."""
        result = self.ask()
        self.upstream.says(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n")
        body = self.body_of(result)
        body.producer.stopProducing()
        self.upstream.turn()
        self.assertTrue(self.upstream.was_reset)
        self.assertIsNotNone(body.ended)
        self.assertRaises(TypeError, body.producer.write, b"x")


class Cancelled(_Case):
    """Requests that nobody waits for any more."""

    def test_while_waiting(self) -> None:
        """Cancelling drops the connection, and the request fails once, as cancelled."""
        for said in (b"", b"HTTP/1.1 200 O", b"HTTP/1.1 103 Hints\r\n\r\n"):
            self.setUp()
            result = self.ask()
            self.upstream.says(said)
            result.cancel()
            self.failureResultOf(result, CancelledError)
            self.upstream.turn()
            self.assertTrue(self.upstream.was_reset)
            self.assertEqual(self.gone, [self.connection])
            self.assertEqual(self.flushLoggedErrors(), [])

    def test_while_uploading(self) -> None:
        """The body is stopped too."""
        upload = _Upload()
        result = self.ask(_outgoing(b"POST", upload, True))
        upload.consumer.write(b"ab")
        result.cancel()
        self.failureResultOf(result, CancelledError)
        self.upstream.turn()
        self.assertEqual(set(upload.calls), {"stop"})
        self.assertEqual(self.upstream.heard(), b"2\r\nab\r\n")

    def test_after_the_head(self) -> None:
        """Cancelling what has happened already does nothing."""
        result = self.ask()
        self.upstream.says(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n")
        result.cancel()
        body = self.body_of(result)
        self.upstream.says(b"body")
        self.assertEqual(body.content, b"body")


class Deadlines(_Case):
    """Waits that are too long. The origin has each connection `look` at the clock once a second."""

    def test_first_byte(self) -> None:
        """The wait for an answer begins when the request is out, and gives up with its own error."""
        self.clock.advance(5)
        upload = _Upload()
        result = self.ask(_outgoing(b"POST", upload, True))
        self.assertIsNone(self.connection.deadline)
        self.clock.advance(100)
        upload.done.callback(None)
        self.assertEqual(self.connection.deadline, 105 + 30)
        self.connection.look(134)
        self.assertNoResult(result)
        self.clock.advance(30)
        self.connection.look(self.clock.seconds())
        self.upstream.turn()
        self.failureResultOf(result, FirstByteTimeout)
        self.assertTrue(self.upstream.was_reset)

    def test_idle(self) -> None:
        """The wait for the next bytes begins anew with each read, from the head on, and gives up with its own error."""
        result = self.ask()
        self.clock.advance(25)
        self.upstream.says(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n")
        self.assertEqual(self.connection.deadline, 45)
        body = self.body_of(result)
        self.clock.advance(10)
        self.upstream.says(b"b")
        self.assertEqual(self.connection.deadline, 55)
        self.clock.advance(20)
        self.connection.look(self.clock.seconds())
        self.upstream.turn()
        self.assertIsInstance(self.failed(body), IdleTimeout)

    def test_not_while_we_hold_it_back(self) -> None:
        """No time runs while the reader is the one who is slow."""
        result = self.ask()
        self.upstream.says(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nb")
        body = self.body_of(result)
        body.producer.pauseProducing()
        self.assertIsNone(self.connection.deadline)
        self.clock.advance(500)
        body.producer.resumeProducing()
        self.assertEqual(self.connection.deadline, 520)

    def test_not_for_what_comes_after_the_pause(self) -> None:
        """Nor does what is still delivered from the same read, or comes with the piece that was one too many, start
        the time of a reader who is held back."""
        result = self.ask()
        self.upstream.says(_STREAM)
        body = _Body()
        body.dataReceived = lambda data: body.producer.pauseProducing()  # type: ignore[method-assign]
        self.successResultOf(result).deliverBody(body)
        self.upstream.says(b"1\r\na\r\n1\r\nb\r\n")
        self.assertIsNone(self.connection.deadline)
        self.connection.dataReceived(b"1\r\nc\r\n")
        self.assertIsNone(self.connection.deadline)
        self.clock.advance(500)
        body.producer.resumeProducing()
        self.assertEqual(self.connection.deadline, 520)

    def test_interim_during_an_upload(self) -> None:
        """A 103 while a long body still goes up starts no time: the caller may take as long as it likes to send it."""
        upload = _Upload()
        told: list[int] = []
        result = self.ask(_outgoing(b"POST", upload, True, lambda status, *_: told.append(status)))
        self.upstream.says(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
        self.assertEqual(told, [103])
        self.assertIsNone(self.connection.deadline)
        self.clock.advance(500)
        upload.consumer.write(b"more")
        upload.done.callback(None)
        self.assertEqual(self.connection.deadline, 530)
        self.assertNoResult(result)
        self.upstream.says(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        self.assertEqual(self.successResultOf(result).code, 200)
        self.assertEqual(self.idle, [self.connection])

    def test_upload_that_is_not_taken(self) -> None:
        """An upstream that takes no byte of a body that waits for it is given up, with an error of its own, and the
        body is stopped: the provider is stuck, and the caller would wait for ever."""
        for said in (b"", b"HTTP/1.1 103 Early Hints\r\n\r\n", _STREAM):
            self.setUp()
            upload = _Upload()
            result = self.ask(_outgoing(b"POST", upload, True))
            self.upstream.says(said)
            body = self.body_of(result) if said == _STREAM else None
            self.upstream.stops_reading()
            upload.consumer.write(b"x" * 1000)
            self.look_for(15)
            if said == _STREAM:
                self.upstream.says(b"1\r\nx\r\n")
            self.look_for(4)
            self.assertFalse(self.connection.closed)
            self.look_for(3)
            if body is not None:
                self.assertIsInstance(self.failed(body), UploadTimeout)
            else:
                self.failureResultOf(result, UploadTimeout)
            self.assertTrue(self.upstream.was_reset)
            self.assertIn("stop", upload.calls)

    def test_upload_that_is_not_taken_because_we_do_not_read(self) -> None:
        """Some take a body only as fast as their answer is read. While nobody reads that, no time runs; then it may."""
        upload = _Upload()
        result = self.ask(_outgoing(b"POST", upload, True))
        self.upstream.says(_STREAM, b"1\r\nx\r\n")
        self.upstream.stops_reading()
        upload.consumer.write(b"x" * 1000)
        self.look_for(1000)
        self.assertFalse(self.connection.closed)
        body = self.body_of(result)
        self.look_for(15)
        self.assertFalse(self.connection.closed)
        self.upstream.says(b"1\r\nx\r\n")
        self.look_for(8)
        self.assertIsInstance(self.failed(body), UploadTimeout)

    def test_held_body_that_is_not_taken(self) -> None:
        """The same for a body that was all there from the start."""
        self.upstream.stops_reading()
        result = self.ask(_outgoing(b"POST", _Held(b"x" * 1000, [])))
        self.look_for(23)
        self.failureResultOf(result, UploadTimeout)

    def test_slow_steady_upload(self) -> None:
        """An upload is never cut while it makes way, however long it takes: neither when the upstream takes little at a
        time, nor when the caller sends little and all of it is taken."""
        for upstream_is_slow in (True, False):
            self.setUp()
            upload = _Upload()
            result = self.ask(_outgoing(b"POST", upload, True))
            for _ in range(40):
                if upstream_is_slow:
                    self.upstream.stops_reading()
                    upload.consumer.write(b"x" * 10)
                    self.look_for(15)
                    self.upstream.reads_on()
                else:
                    upload.consumer.write(b"x")
                    self.look_for(15)
            self.assertNoResult(result)
            self.look_for(300)
            upload.done.callback(None)
            self.upstream.says(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            self.assertEqual(self.successResultOf(result).code, 200)

    def test_trickle_into_a_stuck_upstream(self) -> None:
        """A caller that goes on sending does not hide that the upstream takes nothing."""
        upload = _Upload()
        result = self.ask(_outgoing(b"POST", upload, True))
        self.upstream.stops_reading()
        for _ in range(25):
            upload.consumer.write(b"x")
            self.look_for(1)
        self.failureResultOf(result, UploadTimeout)

    def test_first_byte_is_waited_for_from_the_last_byte_taken(self) -> None:
        """While the end of a request is still being taken, the wait for its answer has not begun."""
        upload = _Upload()
        result = self.ask(_outgoing(b"POST", upload, False))
        self.upstream.stops_reading()
        upload.consumer.write(b"x" * 100)
        upload.done.callback(None)
        for _ in range(6):
            self.look_for(15)
            del self.upstream.transport._unsent[:10]
        self.look_for(1)
        self.upstream.reads_on()
        self.look_for(25)
        self.assertNoResult(result)
        self.look_for(10)
        self.failureResultOf(result, FirstByteTimeout)

    def look_for(self, seconds: int) -> None:
        """Let that many seconds pass, and the connection look at the clock after each."""
        for _ in range(seconds):
            self.clock.advance(1)
            if self.connection.sending or self.connection.deadline is not None:
                self.connection.look(self.clock.seconds())
            self.upstream.turn()

    def test_switched_off(self) -> None:
        """0 waits for ever."""
        connection = ClientConnection(
            self.clock, Upstream(first_byte_timeout_s=0, idle_timeout_s=0), self.idle.append, self.gone.append
        )
        upstream = FarEnd(self.clock, connection).connect()
        connection.request(_get())
        self.assertIsNone(connection.deadline)
        upload = _Upload()
        stuck = ClientConnection(self.clock, Upstream(first_byte_timeout_s=0, idle_timeout_s=0), print, print)
        far = FarEnd(self.clock, stuck).connect()
        far.stops_reading()
        stuck.request(_outgoing(b"POST", upload, True))
        upload.consumer.write(b"x")
        for now in range(0, 100_000, 10_000):
            stuck.look(now)
        self.assertFalse(stuck.closed)
        upstream.says(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n")
        self.assertIsNone(connection.deadline)


class Seams(SynchronousTestCase):
    """Where an upload is done at once."""

    def test_upload_that_is_done_at_once(self) -> None:
        """A body that writes all of itself when it is started is sent whole."""

        class AtOnce(_Upload):
            def startProducing(self, consumer: Any) -> Deferred[None]:
                consumer.write(b"all")
                return succeed(None)

        connection = ClientConnection(Clock(), Upstream(), lambda _: None, lambda _: None)
        upstream = FarEnd(Clock(), connection).connect()
        connection.request(_outgoing(b"POST", AtOnce(), True))
        self.assertTrue(upstream.heard().endswith(b"\r\n\r\n3\r\nall\r\n0\r\n\r\n"))
