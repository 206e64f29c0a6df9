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
            "ok client_gone upstream_reset upstream_truncated upstream_invalid upstream_busy connect_failed "
            "connect_timeout upload_timeout first_byte_timeout idle_timeout bad_request header_too_large "
            "header_timeout body_too_large body_idle_timeout write_idle_timeout overloaded drain proxy_error"
        )
        self.assertEqual([each.value for each in EndReason], words.split())

    def test_written_as_words(self) -> None:
        """In JSON and in text a reason is its word, not the name of a Python object."""
        self.assertEqual(json.loads(msgspec.json.encode({"end_reason": EndReason.OK})), {"end_reason": "ok"})
        self.assertEqual(f"end={EndReason.CLIENT_GONE}", "end=client_gone")

    def test_whose_fault(self) -> None:
        """An error that the provider caused never ends as a fault of the caller or the proxy."""
        ours = {
            EndReason.BAD_REQUEST,
            EndReason.HEADER_TOO_LARGE,
            EndReason.HEADER_TIMEOUT,
            EndReason.BODY_TOO_LARGE,
            EndReason.BODY_IDLE_TIMEOUT,
            EndReason.OVERLOADED,
            EndReason.UPSTREAM_BUSY,
            EndReason.DRAIN,
            EndReason.PROXY_ERROR,
        }
        for each in ERROR_CLASSES.values():
            self.assertEqual(each.end_reason in ours, each.source == "proxy", each.name)
