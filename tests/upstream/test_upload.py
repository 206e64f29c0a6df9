"""The body on its way up: looked at, held, given away whole or streamed."""

from __future__ import annotations

import sys
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.iweb import UNKNOWN_LENGTH, IBodyProducer
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET
from zope.interface.verify import verifyObject

from llmproxy.core.framing import FramingError
from llmproxy.upstream.upload import Upload
from llmproxy.wire.request import Request
from llmproxy.wire.server import Site
from tests.wire.far_end import FarEnd


class _Consumer:
    """An upstream that takes a body."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.pieces.append(data)

    @property
    def content(self) -> bytes:
        return b"".join(self.pieces)


class _Takes(Resource):
    """Makes an upload of every request."""

    isLeaf = True

    def __init__(self, look: Any) -> None:
        super().__init__()
        self.looked = 0
        self.broken: list[FramingError] = []
        self._look = look

    def render(self, request: Request) -> int:
        self.upload = Upload(request, self._look, self._looked, self.broken.append)
        request.receive_body(self.upload)
        return NOT_DONE_YET

    def _looked(self) -> None:
        self.looked += 1


class _Case(SynchronousTestCase):
    def begin(self, look: Any = None) -> tuple[FarEnd, _Takes]:
        """A caller, and the page that takes its body."""
        page = _Takes(look)
        clock = Clock()
        return FarEnd(clock, Site(page, clock).buildProtocol(None)).connect(), page


def _sized(body: bytes) -> bytes:
    return b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def _chunked(*pieces: bytes) -> bytes:
    body = b"".join(b"%x\r\n%b\r\n" % (len(each), each) for each in pieces)
    return (
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
        + body
        + b"0\r\nX-T: 1\r\nHost: evil\r\n\r\n"
    )


class Looking(_Case):
    """What is seen of a body before it goes on."""

    @given(st.binary(max_size=200), st.integers(0, 250), st.booleans(), st.lists(st.integers(1, 30), max_size=20))
    def test_all_of_it_arrives(self, body: bytes, enough: int, sized: bool, cuts: list[int]) -> None:
        """However it is cut and however much is looked at: it is looked at in order, once, and arrives whole."""
        seen: list[bytes] = []

        def look(data: bytes) -> bool:
            seen.append(data)
            return len(b"".join(seen)) >= enough

        caller, page = self.begin(look)
        rest = _sized(body) if sized else _chunked(*([body] if body else []))
        started = False
        consumer = _Consumer()

        def go_on() -> None:
            nonlocal started
            if page.looked and not started:
                started = True
                done = page.upload.data
                if done is not None:
                    consumer.write(done)
                else:
                    page.upload.startProducing(consumer)  # type: ignore[arg-type]

        for cut in cuts:
            caller.says(rest[:cut])
            rest = rest[cut:]
            go_on()
        caller.says(rest)
        go_on()
        caller.turn()
        self.assertEqual(page.looked, 1)
        self.assertEqual(consumer.content, body)
        self.assertTrue(body.startswith(b"".join(seen)))
        self.assertTrue(page.upload.complete)
        self.assertEqual(page.upload.received_bytes, len(body))

    def test_held_while_nobody_takes_it(self) -> None:
        """When enough was seen and no connection is there yet, the caller is held back at one read."""
        caller, page = self.begin(lambda data: True)
        caller.says(_sized(b"x" * 500_000))
        self.assertEqual(page.looked, 1)
        self.assertGreater(caller.unread_bytes, 400_000)
        consumer = _Consumer()
        done = page.upload.startProducing(consumer)  # type: ignore[arg-type]
        caller.turn()
        self.successResultOf(done)
        self.assertEqual(len(consumer.content), 500_000)


class Holding(_Case):
    """What a body costs while it is looked at."""

    def test_a_million_tiny_chunks(self) -> None:
        """A body that comes a byte or two at a time takes about as much memory as it is long, and arrives whole."""
        caller, page = self.begin(lambda data: False)
        caller.says(_chunked(b"x").partition(b"\r\n\r\n")[0] + b"\r\n\r\n")
        upload = page.upload
        for _ in range(500_000):
            upload.body_received(b"a")
            upload.body_received(b"bc")
        total = 1_500_000
        self.assertEqual((page.looked, upload.received_bytes), (0, total))
        held = upload._held
        self.assertLess(sys.getsizeof(held) + sum(sys.getsizeof(piece) for piece in held), 1.3 * total)
        self.assertLess(len(held), 1000)
        upload.body_complete([])
        consumer = _Consumer()
        self.successResultOf(upload.startProducing(consumer))  # type: ignore[arg-type]
        self.assertEqual(consumer.content, b"abc" * 500_000)
        self.assertEqual({type(piece) for piece in consumer.pieces}, {bytes})


class Producing(_Case):
    """As a body producer."""

    def test_interface(self) -> None:
        """It is what twisted.web calls a body producer, with the length that the caller announced."""
        caller, page = self.begin()
        caller.says(_sized(b"12345"))
        self.assertTrue(verifyObject(IBodyProducer, page.upload))
        self.assertEqual(page.upload.length, 5)
        caller, page = self.begin()
        caller.says(_chunked(b"12345"))
        self.assertIs(page.upload.length, UNKNOWN_LENGTH)

    def test_whole(self) -> None:
        """A body that is all there is given away in one piece, as often as it is asked for."""
        for raw in (_sized(b"12345"), _chunked(b"123", b"45")):
            caller, page = self.begin()
            caller.says(raw)
            self.assertEqual([page.upload.data, page.upload.data], [b"12345", b"12345"])

    def test_not_whole(self) -> None:
        """One that is not all there, or has begun to stream, cannot be given again."""
        caller, page = self.begin()
        caller.says(_sized(b"12345")[:-1])
        self.assertIsNone(page.upload.data)
        consumer = _Consumer()
        done = page.upload.startProducing(consumer)  # type: ignore[arg-type]
        caller.says(b"5")
        self.successResultOf(done)
        self.assertEqual(consumer.content, b"12345")
        self.assertIsNone(page.upload.data)

    def test_trailers(self) -> None:
        """Trailers are there at the end, without those that would change what the message means."""
        caller, page = self.begin()
        caller.says(_chunked(b"x"))
        self.assertEqual(page.upload.trailers, [(b"X-T", b"1")])

    def test_pace(self) -> None:
        """A slow upstream holds the caller back."""
        caller, page = self.begin()
        caller.says(_sized(b"x" * 300_000)[:1000])
        consumer = _Consumer()
        page.upload.startProducing(consumer)  # type: ignore[arg-type]
        page.upload.pauseProducing()
        caller.says(b"x" * 200_000)
        self.assertGreater(caller.unread_bytes, 150_000)
        page.upload.resumeProducing()
        caller.turn()
        self.assertEqual(caller.unread_bytes, 0)

    def test_stopped(self) -> None:
        """When the upstream wants no more, the rest is dropped, and stopping twice does no harm."""
        caller, page = self.begin()
        caller.says(_sized(b"x" * 2000)[:1000])
        consumer = _Consumer()
        done: Deferred[None] = page.upload.startProducing(consumer)  # type: ignore[arg-type]
        taken = len(consumer.content)
        page.upload.stopProducing()
        page.upload.stopProducing()
        caller.says(b"x" * 900)
        self.assertEqual((len(consumer.content), caller.unread_bytes), (taken, 0))
        self.assertNoResult(done)

    def test_broken(self) -> None:
        """Framing that breaks is told, once, and the body never counts as complete."""
        for look in (None, lambda data: False):
            caller, page = self.begin(look)
            caller.says(b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\nZZ\r\n")
            self.assertEqual(len(page.broken), 1)
            self.assertFalse(page.upload.complete)
            self.assertIsNone(page.upload.data)
