"""Objects that hold keys for a moment only, so that a look at all that lives would miss them."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from llmproxy.core.identity import CredentialIds
from llmproxy.upstream.origin import RawHeaders
from llmproxy.wire.client import OutgoingRequest
from llmproxy.wire.repeat import RepeatedHead

KEY = "sk-canary-0123456789"


class Representations(SynchronousTestCase):
    """What a debugger or an error report would print."""

    def test_no_key(self) -> None:
        """No key is in it, in no form."""
        key = KEY.encode()
        fields = [(b"Authorization", b"Bearer " + key)]
        head = b"GET /?key=%b HTTP/1.1\r\n\r\n" % key
        for each in (
            RawHeaders(fields, head=head),
            OutgoingRequest(b"GET", head),
            RepeatedHead(head, head, b"GET", b"/?key=" + key, fields, dict(fields)),
            CredentialIds(key),
        ):
            self.assertNotIn(KEY, repr(each))
            self.assertNotIn(KEY, str(each))
