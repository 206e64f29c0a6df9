"""The access event's fields."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.observe.access import ACCESS_FIELDS, path_of, sdk_of


class Fields(SynchronousTestCase):
    """The list."""

    def test_names(self) -> None:
        """The record has the fields that dashboards are built on; a change here breaks them."""
        names = (
            "time event request_id upstream_request_id user credential_id provider route method path model "
            "stream_requested streamed status request_bytes response_bytes chunks ttfb_ms connect_ms "
            "overhead_ms duration_ms end_reason phase sdk retries error_class error_detail client "
            "usage_source usage_reason input_tokens output_tokens cache_read_tokens cache_write_tokens "
            "reasoning_tokens cost_nano_usd unpriced response_model finish_reason include_usage"
        )
        self.assertEqual(ACCESS_FIELDS, tuple(names.split()))


class Path(SynchronousTestCase):
    """The path as logged."""

    def test_no_query_no_key(self) -> None:
        """The query, where keys are, is left out, and a key in the path is masked."""
        self.assertEqual(path_of(b"/gemini/v1/models/m:verb?key=AIza123"), "/gemini/v1/models/m:verb")
        self.assertEqual(path_of(b"/meta/sk-proj-0123456789/openai/v1/x"), "/meta/sk-***/openai/v1/x")

    @given(st.binary(max_size=2000))
    def test_any_bytes(self, target: bytes) -> None:
        """Any target gives a path of bounded length that can be written."""
        path = path_of(b"/" + target)
        self.assertLessEqual(len(path), 1024)
        path.encode("utf-8")


class Sdk(SynchronousTestCase):
    """Which software calls."""

    def test_known(self) -> None:
        """The names of the clients in wide use, one form for each language."""
        for user_agent, name in (
            (b"OpenAI/Python 3.54.0", "openai-python/3.54.0"),
            (b"AsyncOpenAI/Python 1.109.1", "openai-python/1.109.1"),
            (b"OpenAI/JS 7.57.0", "openai-js/7.57.0"),
            (b"AsyncAnthropic/Python 2.12.0", "anthropic-python/2.12.0"),
            (b"Anthropic/JS 1.12.0", "anthropic-js/1.12.0"),
            (b"Groq/Python 1.7.0", "groq-python/1.7.0"),
            (b"google-genai-sdk/3.4.0 gl-python/3.11.7", "google-genai-python/3.4.0"),
            (b"google-genai-sdk/3.1.0 gl-node/v22.1.0", "google-genai-node/3.1.0"),
            (b"claude-cli/2.1.330 (external, cli)", "claude-cli/2.1.330"),
            (b"curl/8.5.0", "curl/8.5.0"),
            (b"Mozilla/5.0 (X11; Linux)", "Mozilla/5.0"),
            (b"python-requests", "python-requests"),
            (b"(nothing)", ""),
            (b"", ""),
            (None, ""),
        ):
            self.assertEqual(sdk_of(user_agent), name)

    @given(st.binary(max_size=400))
    def test_bounded_and_safe(self, user_agent: bytes) -> None:
        """A made-up user agent cannot break a log line or blow up a label."""
        for text in (user_agent, b"OpenAI/Python " + user_agent, b"a" * 80 + user_agent):
            self.assertRegex(sdk_of(text), r"\A[\w.+@/-]{0,64}\Z")
