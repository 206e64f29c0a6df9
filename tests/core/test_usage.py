"""What a call used: the classes and their sums."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.core.usage import NO_USAGE, ModelUsage, Source, Usage

_COUNT = st.integers(0, 10**9)
_USAGE = st.builds(
    Usage,
    input_tokens=_COUNT,
    cache_read_tokens=_COUNT,
    cache_write_5m_tokens=_COUNT,
    cache_write_1h_tokens=_COUNT,
    tool_use_tokens=_COUNT,
    output_tokens=_COUNT,
)


class Totals(SynchronousTestCase):
    """Sums over the classes."""

    def test_each_token_once(self) -> None:
        """The input is all that went in, cached or not; what is part of another class is not counted again."""
        usage = Usage(
            input_tokens=1,
            cache_read_tokens=20,
            cache_write_5m_tokens=300,
            cache_write_1h_tokens=4000,
            tool_use_tokens=50000,
            output_tokens=7,
            reasoning_tokens=6,
            input_audio_tokens=1,
            output_image_tokens=1,
        )
        self.assertEqual((usage.total_input, usage.total_output, usage.cache_write_tokens), (54321, 7, 4300))

    def test_nothing(self) -> None:
        """What used nothing sums to nothing."""
        self.assertEqual((NO_USAGE.total_input, NO_USAGE.total_output, NO_USAGE.cache_write_tokens), (0, 0, 0))

    @given(_USAGE, st.lists(_USAGE, max_size=3))
    def test_parts(self, own: Usage, parts: list[Usage]) -> None:
        """What other models used is in the sums."""
        together = Usage(
            input_tokens=own.input_tokens,
            cache_read_tokens=own.cache_read_tokens,
            cache_write_5m_tokens=own.cache_write_5m_tokens,
            cache_write_1h_tokens=own.cache_write_1h_tokens,
            tool_use_tokens=own.tool_use_tokens,
            output_tokens=own.output_tokens,
            parts=tuple(ModelUsage("m", part) for part in parts),
        )
        everyone = [own, *parts]
        self.assertEqual(together.total_input, sum(each.total_input for each in everyone))
        self.assertEqual(together.total_output, sum(each.total_output for each in everyone))
        self.assertEqual(together.cache_write_tokens, sum(each.cache_write_tokens for each in everyone))

    def test_words(self) -> None:
        """The words of the log and of the ledger, which reports are built on."""
        self.assertEqual([*Source], ["exact", "partial", "estimated", "none"])
