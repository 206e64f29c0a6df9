"""A kept connection that is dead without the reactor's having told so yet."""

from __future__ import annotations

from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.config.model import Upstream
from llmproxy.upstream.origin import Origin, RawHeaders
from llmproxy.wire.dial import Dialer
from tests.web.proxy_in_memory import MemoryEndpoint, ok


class Quiet(SynchronousTestCase):
    """Before a kept connection is used again the kernel is asked about it."""

    def test_asked_before_use(self) -> None:
        """My POST goes out on a new connection if the provider has closed the kept one a moment ago: sent on that one
        it would be lost, and could not be sent again."""
        clock = Clock()
        endpoint = MemoryEndpoint(clock)
        dialer = Dialer(clock, "api.test", 80, tls=None, proxy=None, timeout_s=10, endpoint=endpoint)  # type: ignore[arg-type]
        origin = Origin(b"http://api.test", dialer, clock, Upstream())
        first = origin.request(b"POST", b"http://api.test/x", RawHeaders([(b"Host", b"api.test")]), None)
        (kept,) = origin._open
        endpoint.connections[0].says(ok())
        self.successResultOf(first).deliverBody(Protocol())
        endpoint.connections[0].heard()
        kept.is_quiet = lambda: False
        origin.request(b"POST", b"http://api.test/x", RawHeaders([(b"Host", b"api.test")]), None)
        self.assertEqual(endpoint.connections[0].heard(), b"")
        self.assertEqual(endpoint.connections[1].heard(), b"POST /x HTTP/1.1\r\nHost: api.test\r\n\r\n")
