"""LiteLLM's price list, imported. The entries are written after its file (MIT licence, BerriAI)."""

import json
from fractions import Fraction

from twisted.trial.unittest import SynchronousTestCase

from llmproxy.core.pricing import Price, PriceBook, Rates
from llmproxy.core.usage import Usage
from llmproxy.pricing import import_litellm, show, written
from llmproxy.pricing.litellm import Imported
from llmproxy.pricing.price_file import read_prices
from llmproxy.pricing.written import decimal

DOLLAR = 10**9

GPT_5_5 = """{
    "cache_read_input_token_cost": 5e-07, "cache_read_input_token_cost_above_272k_tokens": 1e-06,
    "cache_read_input_token_cost_flex": 2.5e-07, "cache_read_input_token_cost_priority": 1e-06,
    "input_cost_per_token": 5e-06, "input_cost_per_token_above_272k_tokens": 1e-05,
    "input_cost_per_token_flex": 2.5e-06, "input_cost_per_token_batches": 2.5e-06,
    "input_cost_per_token_priority": 1.25e-05, "litellm_provider": "openai", "max_input_tokens": 1050000,
    "output_cost_per_token": 3e-05, "output_cost_per_token_above_272k_tokens": 4.5e-05,
    "output_cost_per_token_flex": 1.5e-05, "output_cost_per_token_batches": 1.5e-05,
    "output_cost_per_token_priority": 7.5e-05, "mode": "chat", "source": "https://openai.com",
    "regional_processing_uplift_multiplier_eu": 1.1}"""
SONNET = """{
    "cache_creation_input_token_cost": 3.75e-06, "cache_creation_input_token_cost_above_1hr": 6e-06,
    "cache_creation_input_token_cost_above_200k_tokens": 7.5e-06,
    "cache_creation_input_token_cost_above_1hr_above_200k_tokens": 1.2e-05,
    "cache_read_input_token_cost": 3e-07, "input_cost_per_token": 3e-06, "output_cost_per_token": 1.5e-05,
    "input_cost_per_token_above_200k_tokens": 6e-06, "output_cost_per_token_above_200k_tokens": 2.25e-05,
    "litellm_provider": "anthropic", "provider_specific_entry": {"us": 1.1, "fast": 6.0},
    "search_context_cost_per_query": {"search_context_size_high": 0.01, "search_context_size_low": 0.01}}"""


def imported(**entries: str) -> Imported:
    text = ", ".join(f"{json.dumps(name)}: {entry}" for name, entry in entries.items())
    return import_litellm(f"{{{text}}}".encode(), "2026-11-24")


class GrammarTests(SynchronousTestCase):
    """What the names of its fields say."""

    def test_sizes_and_tiers_are_read_from_the_names_of_fields(self) -> None:
        """gpt-5.5 costs after the import what its page says: by size, in flex, in priority, in a batch."""
        price = imported(**{"gpt-5.5": GPT_5_5}).prices.prices["openai"]["gpt-5.5"]
        self.assertEqual(
            price.tiers,
            (
                (0, Rates(input=5 * DOLLAR, cache_read=DOLLAR // 2, output=30 * DOLLAR)),
                (272_000, Rates(input=10 * DOLLAR, cache_read=DOLLAR, output=45 * DOLLAR)),
            ),
        )
        self.assertEqual(price.service_tiers["flex"], Fraction(1, 2))
        self.assertEqual(price.batch, Fraction(1, 2))
        # 2.5 times for input and output, 2 times for the cache: no factor.
        own = Rates(input=12_500_000_000, cache_read=DOLLAR, output=75 * DOLLAR)
        self.assertEqual(price.service_tiers["priority"], Price(tiers=((0, own),)))
        self.assertEqual(price.source, "https://openai.com")

    def test_writing_to_the_cache_for_an_hour_is_its_own_class(self) -> None:
        """`_above_1hr` is how long, `_above_200k_tokens` is how much, and both can stand together."""
        price = imported(**{"claude-x": SONNET}).prices.prices["anthropic"]["claude-x"]
        low, high = price.tiers[0][1], price.tiers[1][1]
        self.assertEqual((low.cache_write_5m, low.cache_write_1h), (3_750_000_000, 6 * DOLLAR))
        self.assertEqual((high.cache_write_5m, high.cache_write_1h), (7_500_000_000, 12 * DOLLAR))
        self.assertEqual((price.tiers[1][0], high.cache_read), (200_000, 300_000_000))
        self.assertEqual(low.server_tools, (("web_search", DOLLAR // 100),))
        self.assertEqual((price.speeds, price.inference_geos), ({"fast": Fraction(6)}, {"us": Fraction(11, 10)}))

    def test_numbers_are_taken_exactly(self) -> None:
        """A price that no float has is still the price that was written."""
        entry = '{"litellm_provider": "x", "input_cost_per_token": 0.000000123456789, "output_cost_per_token": 1.1e-07}'
        result = imported(m=entry)
        rates = result.prices.prices["x"]["m"].tiers[0][1]
        self.assertEqual((rates.input, rates.output, result.rounded), (123_456_789, 110_000_000, 0))
        finer = imported(m='{"litellm_provider": "x", "input_cost_per_token": 1.23e-16, "output_cost_per_token": 0}')
        self.assertEqual((finer.prices.prices["x"]["m"].tiers[0][1].input, finer.rounded), (0, 1))

    def test_sound_is_priced_by_token_or_by_second(self) -> None:
        """A transcription costs by its length, a conversation by its tokens."""
        prices = imported(
            **{
                "groq/whisper": '{"litellm_provider": "groq", "mode": "audio_transcription",'
                ' "input_cost_per_second": 0.00003083, "output_cost_per_second": 0}',
                "gpt-audio": '{"litellm_provider": "openai", "input_cost_per_token": 2.5e-06,'
                ' "input_cost_per_audio_token": 3.2e-05, "output_cost_per_token": 1e-05,'
                ' "output_cost_per_audio_token": 6.4e-05, "output_cost_per_reasoning_token": 2e-05}',
            }
        ).prices
        book = PriceBook([prices])
        self.assertEqual(book.cost(Usage(audio_ms=1000), "groq", "whisper").nano_usd, 30_830)
        usage = Usage(input_audio_tokens=1, output_audio_tokens=1, input_tokens=1, output_tokens=2, reasoning_tokens=1)
        self.assertEqual(book.cost(usage, "openai", "gpt-audio").nano_usd, 32_000 + 64_000 + 20_000)


class NamesTests(SynchronousTestCase):
    """Who sells what."""

    def test_models_are_found_under_their_provider_without_its_prefix(self) -> None:
        """`groq/openai/gpt-oss-120b` is openai/gpt-oss-120b at groq."""
        cheap = '"input_cost_per_token": 1e-06, "output_cost_per_token": 1e-06'
        prices = imported(
            **{
                "groq/openai/gpt-oss-120b": f'{{"litellm_provider": "groq", {cheap}}}',
                "gemini/gemini-2.5-pro": f'{{"litellm_provider": "gemini", {cheap}}}',
                "gemini-2.5-pro": f'{{"litellm_provider": "vertex_ai-language-models", {cheap}}}',
                "gpt-3.5-turbo-instruct": f'{{"litellm_provider": "text-completion-openai", {cheap}}}',
                "azure/gpt-4o": f'{{"litellm_provider": "azure", {cheap}}}',
            }
        ).prices.prices
        self.assertEqual(
            {provider: list(models) for provider, models in prices.items()},
            {
                "groq": ["openai/gpt-oss-120b"],
                "gemini": ["gemini-2.5-pro"],
                "vertex_ai": ["gemini-2.5-pro"],
                "openai": ["gpt-3.5-turbo-instruct"],
                "azure": ["gpt-4o"],
            },
        )


class ReportTests(SynchronousTestCase):
    """What was taken, and what was not."""

    def test_what_is_not_taken_is_counted_with_the_reason(self) -> None:
        """An import says what it left out, so that nobody looks for it in vain."""
        result = imported(
            **{
                "sample_spec": '{"litellm_provider": "one of https://docs.litellm.ai", "input_cost_per_token": 0.0}',
                "1024-x-1024/dall-e-2": '{"litellm_provider": "openai", "input_cost_per_pixel": 1.9e-08}',
                "nobody": '{"input_cost_per_token": 1e-06}',
                "odd": "5",
                "gpt-5.5": GPT_5_5,
                "openai/gpt-5.5": GPT_5_5,
                "null": '{"litellm_provider": "y", "input_cost_per_token": null, "output_cost_per_token": "free"}',
            }
        )
        self.assertEqual(result.taken, 1)
        self.assertEqual(
            result.skipped,
            {
                "the list's own documentation": 1,
                "has no price for tokens or seconds": 2,
                "names no provider": 2,
                "is there under another spelling": 1,
            },
        )
        self.assertEqual(result.fields, {"regional_processing_uplift_multiplier_eu": 1})
        self.assertIn("1 models taken, 6 skipped", str(result))

    def test_a_search_whose_price_depends_is_not_guessed(self) -> None:
        """Three prices for one search are none, and are counted."""
        result = imported(
            m='{"litellm_provider": "x", "input_cost_per_token": 1e-06, "output_cost_per_token": 1e-06,'
            ' "search_context_cost_per_query": {"search_context_size_high": 0.05, "search_context_size_low": 0.03}}'
        )
        self.assertEqual(result.prices.prices["x"]["m"].tiers[0][1].server_tools, ())
        self.assertEqual(result.fields, {"search_context_cost_per_query": 1})

    def test_values_that_are_no_amounts_cost_no_import(self) -> None:
        """One odd entry in a list of two thousand does not keep me from the others."""
        sound = '"litellm_provider": "x", "input_cost_per_token": 1e-06, "output_cost_per_token": 1e-06'
        result = imported(
            lists=f'{{{sound}, "search_context_cost_per_query": {{"low": [0.01], "high": {{"x": 1}}}}}}',
            number=f'{{{sound}, "search_context_cost_per_query": 0.01}}',
            empty=f'{{{sound}, "search_context_cost_per_query": {{}}}}',
            text=f'{{{sound}, "search_context_cost_per_query": {{"low": "0.01"}}}}',
            huge='{"litellm_provider": "x", "input_cost_per_token": 1e99999999999999999999}',
            tiny='{"litellm_provider": "x", "input_cost_per_token": 1e-99999999999999999999}',
            half=f'{{{sound}, "cache_read_input_token_cost": 1e99999999999999999999}}',
        )
        self.assertEqual(sorted(result.prices.prices["x"]), ["empty", "half", "lists", "number", "text"])
        self.assertEqual(result.skipped, {"has no price for tokens or seconds": 2})
        self.assertEqual(result.fields, {"search_context_cost_per_query": 4, "cache_read_input_token_cost": 1})
        self.assertEqual(
            {rates.server_tools for price in result.prices.prices["x"].values() for _, rates in price.tiers}, {()}
        )

    def test_a_factor_of_many_decimals_is_kept(self) -> None:
        """A factor that is finer than a nano-dollar is written, shown and read back as it is."""
        entry = SONNET.replace('"us": 1.1', '"us": 1.1000000000000001')
        prices = imported(**{"claude-x": entry}).prices
        self.assertEqual(
            prices.prices["anthropic"]["claude-x"].inference_geos, {"us": Fraction(11_000_000_000_000_001, 10**16)}
        )
        self.assertEqual(read_prices(written(prices).encode(), "f", "litellm"), prices)
        self.assertIn("inference geo us: x 1.1000000000000001", show(PriceBook([prices]), "claude-x"))
        long = f"0.{'1' * 300}"
        prices = imported(**{"claude-x": SONNET.replace('"us": 1.1', f'"us": {long}')}).prices
        self.assertEqual(read_prices(written(prices).encode(), "f", "litellm"), prices)

    def test_a_number_as_a_decimal(self) -> None:
        """What has an end is written to its end, and a third is not written at all."""
        for number, text in (
            (Fraction(3), "3"),
            (Fraction(3, 40), "0.075"),
            (Fraction(0), "0"),
            (Fraction(1, 8), "0.125"),
        ):
            self.assertEqual(decimal(number), text)
        self.assertRaises(ValueError, decimal, Fraction(1, 3))

    def test_what_was_imported_can_be_kept_as_a_file(self) -> None:
        """The file that an import writes reads back as the same prices."""
        prices = imported(**{"gpt-5.5": GPT_5_5, "claude-x": SONNET}).prices
        self.assertEqual(read_prices(written(prices, "MIT licence").encode(), "f", "litellm"), prices)

    def test_another_file_is_refused(self) -> None:
        """What is no JSON object is a ValueError, and nothing else."""
        for data in (b"", b"[]", b"{", b"\xff"):
            self.assertRaises(ValueError, import_litellm, data)
