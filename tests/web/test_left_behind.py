"""Requests whose caller leaves while they wait in line behind another one on its connection."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from llmproxy.wire import server
from llmproxy.wire.direct import GONE
from tests.web.proxy_in_memory import ProxyInMemory, get


class InLine(SynchronousTestCase):
    """Three requests at once, and no answer yet: the connection is not read from."""

    def setUp(self) -> None:
        """The first of them is with the provider."""
        self.proxy = ProxyInMemory()
        self.caller = self.proxy.caller()
        self.caller.says(b"".join(get(f"/openai/v1/{name}") for name in "abc"))

    def test_unread(self) -> None:
        """A caller that leaves is noticed within a second, although nobody reads from it: the kernel is asked. Each of
        its requests has its line in the log, those too that were never begun, and the provider is told."""
        self.patch(server, "peer_state", lambda transport: GONE)
        self.proxy.pass_time(1)
        told = [(each["path"], each["end_reason"], each["status"]) for each in self.proxy.access]
        self.assertEqual(told, [(f"/openai/v1/{name}", "client_gone", None) for name in "abc"])
        self.assertTrue(self.proxy.provider().was_reset)
        self.assertEqual(self.proxy.site.in_flight, 0)
