"""What `llmproxy prices show` says."""

from twisted.trial.unittest import SynchronousTestCase

from llmproxy.core.pricing import PriceBook, PriceList
from llmproxy.pricing import from_original, load_shipped, show

BOOK = PriceBook([from_original({"mine": {"prices": {"same_as": "openai"}}})[0], load_shipped()])


class ShowTests(SynchronousTestCase):
    """A model, and why it costs what it costs."""

    def test_a_model_is_shown_with_its_source_sizes_and_tiers(self) -> None:
        """All that decides a price is on the screen, and what is not stated is marked."""
        text = show(BOOK, "gpt-5.5-2026-04-23", "openai")
        for part in (
            "gpt-5.5-2026-04-23 at openai",
            "alias   of gpt-5.5",
            "prices  shipped 2026-11-24, https://developers.openai.com/api/docs/pricing",
            "to 272,000",
            "above 272,000",
            "service tier flex: x 0.5",
            "for a request of web_search: $0.01",
            "not priced: input_audio, output_audio, output_image",
            "batch: x 0.5",
        ):
            self.assertIn(part, text)
        rows = [line.split() for line in text.splitlines()]
        self.assertIn(["input", "$5.00", "$10.00"], rows)
        self.assertIn(["cache_write_5m", "$5.00", "(as", "input)", "$10.00", "(as", "input)"], rows)
        self.assertIn(["input", "$12.50"], rows)

    def test_every_provider_that_has_the_model_is_shown(self) -> None:
        """Without a provider, each one that sells it is."""
        text = show(BOOK, "gpt-4o")
        self.assertIn("gpt-4o at openai", text)
        self.assertIn("gpt-4o at mine", text)
        self.assertIn("same_as openai", text)
        self.assertNotIn("at anthropic", text)

    def test_a_model_without_a_price_is_told_as_such(self) -> None:
        """Near names are a hint, and never a price; and how to price it is said."""
        text = show(BOOK, "gpt-5.5-ultra", "openai")
        self.assertIn("gpt-5.5-ultra at openai has no price", text)
        self.assertIn("are not taken for it: gpt-5.5", text)
        self.assertIn("providers.openai.models.gpt-5.5-ultra.pricing", text)
        self.assertNotIn("$", text)

    def test_an_empty_book_is_no_crash(self) -> None:
        """Without any prices the answer is that there is none."""
        self.assertIn("has no price", show(PriceBook([PriceList(origin="config")]), "gpt-4o"))
