"""The relay: bytes from an answer to the caller, at the caller's pace."""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IProtocol
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.client import ResponseDone
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET
from zope.interface.verify import verifyObject

from llmproxy.config.model import Upstream
from llmproxy.upstream.relay import Relay
from llmproxy.wire.client import ClientConnection, OutgoingRequest
from llmproxy.wire.request import Request
from llmproxy.wire.server import Site
from tests.wire.far_end import FarEnd


class _Page(Resource):
    """Begins a chunked answer and gives its request away."""

    isLeaf = True
    request: Request

    def render(self, request: Request) -> int:
        self.request = request
        request.cork()
        request.write_head(200, b"OK", [])
        request.flush()
        return NOT_DONE_YET


class Relaying(SynchronousTestCase):
    """One answer from end to end."""

    def setUp(self) -> None:
        """A caller that waits, and an upstream that has sent the head of a chunked answer."""
        self.clock = Clock()
        page = _Page()
        self.caller = FarEnd(self.clock, Site(page, self.clock).buildProtocol(None)).connect()
        self.caller.says(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        self.caller.heard()
        connection = ClientConnection(self.clock, Upstream(), lambda _: None, lambda _: None)
        self.upstream = FarEnd(self.clock, connection).connect()
        self.ended: list[Failure] = []
        self.request = page.request
        self.relay = Relay(page.request, self.ended.append)
        connection.request(OutgoingRequest(b"GET", b"GET / HTTP/1.1\r\n\r\n")).addCallback(self._deliver)
        self.upstream.says(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")

    def _deliver(self, response: Any) -> None:
        response.deliverBody(self.relay)

    def test_counts(self) -> None:
        """It counts what it passes on: pieces as they came, bytes without framing."""
        self.upstream.says(b"3\r\nabc\r\n2\r\nde\r\n", b"1\r\nf\r\n0\r\n\r\n")
        self.assertEqual((self.request.sent_pieces, self.request.sent_body_bytes), (3, 6))
        self.assertEqual(len(self.ended), 1)
        self.ended[0].trap(ResponseDone)

    def test_one_write_for_each_read(self) -> None:
        """What came in one read goes out in one write."""
        self.upstream.says(b"3\r\nabc\r\n2\r\nde\r\n", b"1\r\nf\r\n")
        self.assertEqual(len(self.caller.writes), 2)
        self.assertEqual(self.caller.heard().replace(b"\r\n", b" "), b"3 abc 2 de 1 f ")

    def test_cut(self) -> None:
        """The reason of the end is handed on; the relay itself writes no end."""
        self.upstream.says(b"3\r\nabc\r\n")
        self.upstream.resets()
        self.assertEqual(self.caller.heard(), b"3\r\nabc\r\n")
        self.assertIsNone(self.ended[0].check(ResponseDone))

    def test_pace(self) -> None:
        """A caller that does not read stops the upstream, and one that reads on starts it again."""
        self.caller.stops_reading()
        self.upstream.says(*(b"400\r\n" + b"x" * 1024 + b"\r\n" for _ in range(300)))
        self.assertGreater(self.upstream.unread_bytes, 200_000)
        self.caller.reads_on()
        self.assertEqual(self.upstream.unread_bytes, 0)
        self.assertEqual(self.request.sent_body_bytes, 300 * 1024)

    def test_is_a_protocol(self) -> None:
        """It is what `deliverBody` takes."""
        self.assertTrue(verifyObject(IProtocol, self.relay))
