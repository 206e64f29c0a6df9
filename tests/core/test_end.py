"""The words for how an exchange ended."""

from __future__ import annotations

import json

import msgspec
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.core.end import EndReason
from llmproxy.core.errors import ERROR_CLASSES


class Words(SynchronousTestCase):
    """What is in the log."""

    def test_words(self) -> None:
        """The words are those that dashboards and alerts are built on; a change here breaks them."""
        words = (
            "ok client_gone upstream_reset upstream_truncated upstream_invalid connect_failed "
            "first_byte_timeout idle_timeout bad_request drain proxy_error"
        )
        self.assertEqual([each.value for each in EndReason], words.split())

    def test_written_as_words(self) -> None:
        """In JSON and in text a reason is its word, not the name of a Python object."""
        self.assertEqual(json.loads(msgspec.json.encode({"end_reason": EndReason.OK})), {"end_reason": "ok"})
        self.assertEqual(f"end={EndReason.CLIENT_GONE}", "end=client_gone")

    def test_whose_fault(self) -> None:
        """An error that the provider caused never ends as a fault of the caller or the proxy."""
        ours = {EndReason.BAD_REQUEST, EndReason.PROXY_ERROR, EndReason.DRAIN}
        for each in ERROR_CLASSES.values():
            self.assertEqual(each.end_reason in ours, each.source == "proxy", each.name)
