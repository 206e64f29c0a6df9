"""OpenAI's usage objects: each token in one class, and never more than the provider tells."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.core.reading.openai_chat_plain import PLAIN_ANSWER
from llmproxy.core.reading.openai_usage import breakdown_parts, count, error_kind, is_counted, left_over, usage_of
from llmproxy.core.usage import ModelUsage, Usage

_count = st.integers(-5, 1000) | st.sampled_from([None, 2**63, 1.5, "7", True])
_input_details = st.fixed_dictionaries(
    {},
    optional={
        "cached_tokens": _count,
        "cache_write_tokens": _count,
        "audio_tokens": _count,
        "image_tokens": _count,
        "cache_write_tokens_details": st.fixed_dictionaries({"ttl_30m_tokens": _count, "ttl_12h_tokens": _count}),
        "cached_tokens_details": st.fixed_dictionaries({"audio_tokens": _count, "image_tokens": _count}),
    },
)
_output_details = st.fixed_dictionaries(
    {}, optional={"reasoning_tokens": _count, "audio_tokens": _count, "image_tokens": _count}
)
_usages = st.fixed_dictionaries(
    {},
    optional={
        "prompt_tokens": _count,
        "completion_tokens": _count,
        "total_tokens": _count,
        "prompt_tokens_details": _input_details | _count,
        "completion_tokens_details": _output_details | _count,
    },
)
_FIELDS = Usage.__struct_fields__[:11]


def _number(value: object) -> int:
    return value if type(value) is int and 0 <= value < 2**63 else 0


class ClassesTests(SynchronousTestCase):
    """One usage object."""

    def test_what_is_written_to_a_cache(self) -> None:
        """Written for 12 hours is the long class; where no time is told it is the short one."""
        details: dict[str, Any] = {"cached_tokens": 10, "cache_write_tokens": 60}
        usage = usage_of({"prompt_tokens": 100, "completion_tokens": 1, "prompt_tokens_details": details})
        self.assertEqual(usage, Usage(input_tokens=30, cache_read_tokens=10, cache_write_5m_tokens=60, output_tokens=1))
        details["cache_write_tokens_details"] = {"ttl_30m_tokens": 0, "ttl_12h_tokens": 60}
        usage = usage_of({"prompt_tokens": 100, "completion_tokens": 1, "prompt_tokens_details": details})
        self.assertEqual((usage.cache_write_5m_tokens, usage.cache_write_1h_tokens), (0, 60))

    def test_details_that_are_more_than_the_whole(self) -> None:
        """What was read from the cache goes first, then what was written to it; together they are the input at most."""
        details = {"cached_tokens": 70, "cache_write_tokens": 50, "audio_tokens": 5}
        found = {"prompt_tokens": 100, "completion_tokens": 0, "prompt_tokens_details": details}
        self.assertEqual(usage_of(found), Usage(cache_read_tokens=70, cache_write_5m_tokens=30))

    def test_a_count_that_is_missing(self) -> None:
        """What is missing of input, output and total is told by the other two."""
        self.assertEqual(usage_of({"completion_tokens": 3, "total_tokens": 10}), Usage(input_tokens=7, output_tokens=3))
        self.assertEqual(usage_of({"input_tokens": 3, "total_tokens": 10}), Usage(input_tokens=3, output_tokens=7))
        self.assertEqual(usage_of({"total_tokens": 10}), Usage(input_tokens=10))

    @given(_usages)
    def test_never_more_than_is_told(self, found: dict[str, Any]) -> None:
        """Whatever the details say, the parts stay within the whole, and nothing is negative."""
        usage = usage_of(found)
        told = max(
            _number(found.get("total_tokens")),
            _number(found.get("prompt_tokens")) + _number(found.get("completion_tokens")),
        )
        self.assertEqual(usage.total_input + usage.total_output, told)
        self.assertTrue(all(getattr(usage, name) >= 0 for name in _FIELDS))
        self.assertLessEqual(usage.input_audio_tokens + usage.input_image_tokens, usage.input_tokens)
        self.assertLessEqual(
            usage.reasoning_tokens + usage.output_audio_tokens + usage.output_image_tokens, usage.output_tokens
        )


class PartsTests(SynchronousTestCase):
    """What other models used of the same call."""

    def test_parts_that_are_more_than_the_whole(self) -> None:
        """A part that does not fit into the whole is left out: the whole is what is billed."""
        whole = Usage(input_tokens=10, output_tokens=5)
        self.assertEqual(left_over(whole, [ModelUsage("m", Usage(input_tokens=11))]), whole)

    @given(_usages, st.lists(_usages, max_size=4))
    def test_the_whole_stays_the_whole(self, found: dict[str, Any], parts: list[dict[str, Any]]) -> None:
        """However it is taken apart, the sum is what the provider tells, and nothing is negative."""
        whole = usage_of(found)
        usage = left_over(whole, breakdown_parts({"models": [{"model": "m", "usage": part} for part in parts]}))
        self.assertEqual((usage.total_input, usage.total_output), (whole.total_input, whole.total_output))
        self.assertTrue(all(getattr(usage, name) >= 0 for name in _FIELDS))
        self.assertLessEqual(usage.input_audio_tokens + usage.input_image_tokens, usage.input_tokens)
        self.assertLessEqual(
            usage.reasoning_tokens + usage.output_audio_tokens + usage.output_image_tokens, usage.output_tokens
        )


class RestTests(SynchronousTestCase):
    """Errors, and objects that were too large."""

    def test_the_kind_of_an_error(self) -> None:
        """Type, code or status, whichever the provider tells first; a sentence is no kind."""
        for error, kind in (
            ({"type": "server_error", "code": "x"}, "server_error"),
            ({"type": None, "code": "context_length_exceeded"}, "context_length_exceeded"),
            ({"code": 503, "status": "UNAVAILABLE"}, "UNAVAILABLE"),
            ({"code": 503}, "503"),
            ({"message": "m"}, "error"),
            ("over_capacity", "over_capacity"),
            ("it was too much", "error"),
            ([], "error"),
            (None, None),
            (False, None),
        ):
            self.assertEqual(error_kind(error), kind, error)

    def test_a_count_that_is_not_exact(self) -> None:
        """A number that a JSON reader may round is no count, for no shape. RFC 8259, section 6."""
        for number, counted in ((2**53 - 1, True), (2**53, False)):
            self.assertEqual(count({"a": number}, "a"), number if counted else 0)
            self.assertEqual(is_counted({"prompt_tokens": number}), counted)
            usage = b'{"prompt_tokens":%d,"completion_tokens":0,"total_tokens":0}' % number
            self.assertEqual(_is_plain(b'{"choices":[],"usage":%b}' % usage), counted)


def _is_plain(answer: bytes) -> bool:
    try:
        PLAIN_ANSWER.decode(answer)
    except msgspec.ValidationError:
        return False
    return True
