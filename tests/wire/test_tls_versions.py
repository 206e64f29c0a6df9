"""Which versions of TLS are spoken with providers, whatever the machine's OpenSSL would allow."""

from __future__ import annotations

import ssl

from twisted.trial.unittest import SynchronousTestCase

from llmproxy.wire.tls import client_context


class Versions(SynchronousTestCase):
    """RFC 8996: "TLS 1.0 MUST NOT be used [...] TLS 1.1 MUST NOT be used"."""

    def test_lowest(self) -> None:
        """It is our own decision, and not that of a policy of the machine, that nothing below TLS 1.2 is spoken."""
        self.assertEqual(client_context(None).minimum_version, ssl.TLSVersion.TLSv1_2)
