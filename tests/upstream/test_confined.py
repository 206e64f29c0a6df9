"""Where a request goes, for requests as the proxy makes them: with fields or a whole head of their own."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.config.model import Upstream
from llmproxy.upstream.origin import Origin, RawHeaders
from llmproxy.wire.dial import Dialer
from tests.web.proxy_in_memory import MemoryEndpoint


class Confined(SynchronousTestCase):
    """The URL must lie below the origin's own address, however the head is given."""

    def test_other_places(self) -> None:
        """A URL that goes on where the origin's authority ends is refused before a connection is opened."""
        clock = Clock()
        endpoint = MemoryEndpoint(clock)
        dialer = Dialer(clock, "api.test", 80, tls=None, proxy=None, timeout_s=10, endpoint=endpoint)  # type: ignore[arg-type]
        origin = Origin(b"http://api.test", dialer, clock, Upstream())
        for url in (
            b"http://api.test.evil.test/",
            b"http://api.test@evil.test/",
            b"http://api.test:81/",
            b"http://api.test?x",
            b"http://api.test",
            b"http://evil.test/",
            b"https://api.test/",
            b"/x",
        ):
            for head in (None, b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n"):
                with self.subTest((url, head)):
                    headers = RawHeaders([(b"Host", b"api.test")], head=head)
                    self.assertRaises(ValueError, origin.request, b"GET", url, headers, None)
        self.assertEqual(endpoint.attempts, 0)
