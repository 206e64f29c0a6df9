"""The prices that are shipped."""

from collections.abc import Mapping
from datetime import date

import msgspec
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.core.pricing import Price, PriceBook
from llmproxy.core.reading import openai_responses
from llmproxy.core.reading.anthropic import AnthropicMessages
from llmproxy.core.reading.gemini import Gemini
from llmproxy.core.reading.interactions import Interactions
from llmproxy.core.reading.shape import Shape
from llmproxy.core.usage import ModelUsage, Usage
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


# Tools that an answer can tell, and for which no price can be stated for a request. Whoever uses one is told.
TOOLS_WITHOUT_A_PRICE = {
    # https://developers.openai.com/api/docs/pricing: by the container and how long it lives, which no answer tells.
    ("openai", "code_execution"),
    # Only where the answer does not tell the tokens of the model that drew: else its part is billed.
    ("openai", "image_generation"),
    # https://platform.claude.com/docs/en/agents-and-tools/tool-use/code-execution-tool: by the hour of a container,
    # with a free quota, and free beside a search.
    ("anthropic", "code_execution"),
    # https://ai.google.dev/gemini-api/docs/pricing has no price of a request for all models that are listed.
    ("gemini", "google_maps"),
    ("gemini", "retrieval"),
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

    def tools_of(self, shape: Shape, found: Mapping[str, object]) -> set[str]:
        """The names of tools that a reader takes from an answer."""
        shape.take_body(msgspec.json.encode(found))
        return {name for name, _ in shape.reading(True).usage.server_tools}

    def test_every_tool_that_an_answer_can_tell_has_a_price_or_a_reason(self) -> None:
        """No call is unpriced because a tool was forgotten."""
        response = {
            "object": "response",
            "usage": {"input_tokens": 1, "output_tokens": 1},
            "output": [{"type": kind} for kind in openai_responses._SERVER_TOOLS],
        }
        # What the documentation names: https://platform.claude.com/docs/en/api/messages (usage.server_tool_use),
        # https://ai.google.dev/api/generate-content (GroundingMetadata), https://ai.google.dev/api/interactions-api
        # (usage.grounding_tool_count).
        names = ("web_search", "web_fetch", "tool_search", "code_execution")
        message = {
            "type": "message",
            "role": "assistant",
            "content": [],
            "usage": {
                "input_tokens": 1,
                "output_tokens": 1,
                "server_tool_use": {f"{name}_requests": 1 for name in names},
            },
        }
        content = {
            "candidates": [{"groundingMetadata": {"webSearchQueries": ["a"]}}],
            "usageMetadata": {"promptTokenCount": 1},
        }
        grounding = [{"type": kind, "count": 1} for kind in ("google_search", "google_maps", "retrieval")]
        interaction = {"object": "interaction", "usage": {"total_input_tokens": 1, "grounding_tool_count": grounding}}
        told = {
            "openai": self.tools_of(openai_responses.OpenAIResponses(), response),
            "anthropic": self.tools_of(AnthropicMessages(), message),
            "gemini": self.tools_of(Gemini(), content) | self.tools_of(Interactions(), interaction),
        }
        self.assertEqual(told["openai"], set(openai_responses._SERVER_TOOLS.values()))
        self.assertEqual(told["anthropic"], set(names))
        self.assertEqual(told["gemini"], {"google_search", "google_maps", "retrieval"})
        shipped = load_shipped().prices
        unpriced = set()
        for provider, tools in told.items():
            reasons = {name for at, name in TOOLS_WITHOUT_A_PRICE if at == provider}
            # A model that has a price for one tool has one for all.
            for model, price in shipped[provider].items():
                priced = {name for name, _ in price.tiers[0][1].server_tools}
                if priced:
                    self.assertEqual(tools - priced, reasons, model)
            unpriced |= {
                (provider, tool)
                for tool in tools
                if not any(tool in dict(price.tiers[0][1].server_tools) for price in shipped[provider].values())
            }
        self.assertEqual(unpriced, TOOLS_WITHOUT_A_PRICE)

    def test_an_answer_with_free_tools_and_a_picture_has_a_price(self) -> None:
        """Servers of one's own, a search among tools, a picture that its model bills: the call costs what it costs."""
        book = PriceBook([load_shipped()])
        picture = ModelUsage("gpt-image-1.5", Usage(output_tokens=1000, output_image_tokens=1000))
        usage = Usage(input_tokens=1000, server_tools=(("mcp", 2),), parts=(picture,))
        # 1000 x 5000 nano-dollars, and 1000 tokens of an image x 32,000.
        self.assertEqual(book.cost(usage, "openai", "gpt-5.5").nano_usd, 5_000_000 + 32_000_000)
        usage = Usage(input_tokens=1000, server_tools=(("tool_search", 3), ("web_search", 1)))
        self.assertEqual(book.cost(usage, "anthropic", "claude-sonnet-4-5").nano_usd, 3_000_000 + 10_000_000)

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
