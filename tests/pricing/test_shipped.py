"""The prices that are shipped."""

from datetime import date

from twisted.trial.unittest import SynchronousTestCase

from llmproxy.core.pricing import Price, PriceBook
from llmproxy.core.usage import Usage
from llmproxy.pricing import load_shipped, written
from llmproxy.pricing.price_file import read_prices
from llmproxy.simulate import catalog

# No price that our classes can express (speech is billed by the character, which no answer tells, dall-e by the image,
# Groq's systems by the models and tools that they use), or none for which there is a source: the page of Google's that
# priced text-embedding-004 is gone, and those of the others say different things.
WITHOUT_A_PRICE = {
    ("openai", "tts-1"),
    ("openai", "dall-e-3"),
    ("openai", "gpt-image-1"),
    ("openai", "gpt-4o-transcribe"),
    ("groq", "groq/compound"),
    ("groq", "groq/compound-mini"),
    ("gemini", "text-embedding-004"),
}


class ShippedTests(SynchronousTestCase):
    """What everyone gets."""

    def test_every_model_of_the_simulator_has_a_price(self) -> None:
        """Whoever tries the proxy out sees costs, by the name that is asked for and by the dated one."""
        book = PriceBook([load_shipped()])
        unpriced: set[tuple[str, str]] = set()
        for provider, models in (
            ("openai", catalog.OPENAI),
            ("anthropic", catalog.ANTHROPIC),
            ("gemini", catalog.GEMINI),
            ("groq", catalog.GROQ),
        ):
            names = [name for model in models for name in (model.name, model.dated) if name]
            names += list(catalog.ANTHROPIC_ALIASES) if provider == "anthropic" else []
            unpriced |= {(provider, name) for name in names if book.find(provider, name) is None}
        self.assertEqual(unpriced, WITHOUT_A_PRICE)

    def test_every_price_names_its_source(self) -> None:
        """Each can be checked against the page it was read from."""
        prices = load_shipped()
        missing = [name for models in prices.prices.values() for name, price in models.items() if not price.source]
        self.assertEqual(missing, [])
        self.assertEqual(date.fromisoformat(prices.date), date(2026, 11, 24))

    def test_a_call_costs_what_the_page_says(self) -> None:
        """One call at each provider, by hand from its page."""
        book = PriceBook([load_shipped()])
        usage = Usage(input_tokens=1_000, cache_read_tokens=1_000, output_tokens=1_000)
        for provider, model, nano_usd in (
            ("openai", "gpt-5.5-2026-04-23", 5_000_000 + 500_000 + 30_000_000),
            ("openai", "gpt-4o-mini", 150_000 + 75_000 + 600_000),
            ("anthropic", "claude-sonnet-4-5", 3_000_000 + 300_000 + 15_000_000),
            ("anthropic", "claude-haiku-5-5", 100_000 + 10_000 + 500_000),
            ("gemini", "gemini-2.5-pro", 1_250_000 + 125_000 + 10_000_000),
            ("groq", "openai/gpt-oss-120b", 150_000 + 75_000 + 600_000),
        ):
            self.assertEqual(book.cost(usage, provider, model).nano_usd, nano_usd, model)

    def test_reading_from_a_cache_never_costs_more_than_reading_afresh(self) -> None:
        """A slip of the decimal point in the file is seen."""
        for models in load_shipped().prices.values():
            for name, price in models.items():
                for tiers in (
                    price.tiers,
                    *(each.tiers for each in price.service_tiers.values() if isinstance(each, Price)),
                ):
                    for _, rates in tiers:
                        self.assertLessEqual(rates.cache_read or 0, rates.input or 0, name)
                        self.assertLessEqual(rates.input or 0, rates.cache_write_5m or rates.input or 0, name)
                        self.assertLessEqual(rates.cache_write_5m or 0, rates.cache_write_1h or 0, name)

    def test_the_file_is_written_and_read_back_alike(self) -> None:
        """What an export writes is what was loaded."""
        prices = load_shipped()
        self.assertEqual(read_prices(written(prices).encode(), "f", "shipped"), prices)
