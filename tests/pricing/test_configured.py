"""Prices in a configuration."""

from twisted.trial.unittest import SynchronousTestCase

from llmproxy.core.pricing import PriceBook
from llmproxy.core.usage import Usage
from llmproxy.pricing import from_original
from llmproxy.pricing.entry import Tree

# As configurations have had it: numbers are text, since YAML's scalars are read as they are written.
TIERS: list[object] = [
    {"threshold": "200_000", "input": "1.25", "output": "10.00"},
    {"threshold": "0", "input": "2.50", "output": "15.00"},
]


class CaseOfConfigurations(SynchronousTestCase):
    """Reads what stands below `providers`."""

    def book(self, tree: Tree) -> PriceBook:
        prices, complaints = from_original(tree)
        self.assertEqual(complaints, [])
        return PriceBook([prices])

    def nano(self, book: PriceBook, model: str, input_tokens: int = 0, output_tokens: int = 0) -> int | None:
        return book.cost(Usage(input_tokens=input_tokens, output_tokens=output_tokens), "p", model).nano_usd

    def complaints(self, tree: Tree) -> list[tuple[tuple[str, ...], str]]:
        return from_original(tree)[1]


class OriginalTests(CaseOfConfigurations):
    """The form that there has always been."""

    def test_a_plain_price_goes_on_to_price(self) -> None:
        """`{input, output}` is dollars for a million tokens, and other keys of a model are left to others."""
        model = {"enabled": "true", "aliases": ["fast"], "pricing": {"input": "2.50", "output": "10.00"}}
        book = self.book({"p": {"enabled": "true", "models": {"gpt-4o": model}}})
        self.assertEqual(self.nano(book, "gpt-4o", 1000, 100), 3_500_000)  # 0.0025 + 0.001
        self.assertEqual(self.nano(book, "fast", 1000, 100), 3_500_000)
        self.assertEqual(book.cost(Usage(input_tokens=1), "p", "fast").version, "config")

    def test_the_first_threshold_that_holds_the_input_counts(self) -> None:
        """Up to the threshold is the first price, above it the one with threshold 0."""
        book = self.book({"p": {"models": {"m": {"pricing": TIERS}}}})
        self.assertEqual(self.nano(book, "m", 200_000), 250_000_000)
        self.assertEqual(self.nano(book, "m", 200_001), 500_002_500)
        self.assertEqual(self.nano(book, "m", 0, 1000), 10_000_000)

    def test_above_all_thresholds_the_last_price_counts(self) -> None:
        """A list that forgot its last entry does not make long prompts free."""
        tiers = [{"threshold": "10", "input": "1", "output": "1"}, {"threshold": "20", "input": "2", "output": "2"}]
        book = self.book({"p": {"models": {"m": {"pricing": tiers}}}})
        self.assertEqual([self.nano(book, "m", n) for n in (10, 11, 20, 21)], [10_000, 22_000, 40_000, 42_000])

    def test_one_name_of_a_model_may_have_its_own_price(self) -> None:
        """`overrides` stands in the pricing or beside it."""
        for model in (
            {"aliases": ["a"], "pricing": {"input": "1", "output": "1", "overrides": {"a": {"input": "2"}}}},
            {"aliases": ["a"], "pricing": {"input": "1", "output": "1"}, "overrides": {"a": {"input": "2"}}},
            {"aliases": ["a"], "pricing": TIERS, "overrides": {"a": {"input": "2"}}},
        ):
            book = self.book({"p": {"models": {"m": model}}})
            self.assertEqual(self.nano(book, "a", 1), 2000)
            self.assertNotEqual(self.nano(book, "m", 1), 2000)

    def test_a_provider_without_models_is_no_mistake(self) -> None:
        """Most configurations price nothing."""
        self.book({"p": {"enabled": "true"}, "q": None, "r": {"models": None}})
        self.book({"p": {"models": {"m": None, "n": {"aliases": ["o"]}}}})
        self.book(None)


class RicherTests(CaseOfConfigurations):
    """All that a price file can say."""

    def test_what_a_price_file_may_say_the_configuration_may_say_too(self) -> None:
        """Cache, sizes, tiers and batches can be priced without a file."""
        pricing = {
            "input": "4",
            "cache_read": "1",
            "output": "8",
            "tiers": [{"above": "100", "input": "8", "output": "16"}],
            "service_tiers": {"flex": "0.5"},
            "batch": {"input": "1", "output": "1"},
        }
        book = self.book({"p": {"models": {"m": {"pricing": pricing}}}})
        usage = Usage(input_tokens=10, cache_read_tokens=10)
        self.assertEqual(book.cost(usage, "p", "m").nano_usd, 50_000)
        self.assertEqual(book.cost(usage, "p", "m", service_tier="flex").nano_usd, 25_000)
        self.assertEqual(book.cost(usage, "p", "m", batch=True).nano_usd, 20_000)
        self.assertEqual(self.nano(book, "m", 101), 808_000)

    def test_a_gateway_may_say_whose_prices_it_has(self) -> None:
        """`prices: {same_as: openai}`."""
        book = self.book({"mine": {"prices": {"same_as": "p"}}, "p": {"models": {"m": {"pricing": {"input": "1"}}}}})
        self.assertEqual(book.cost(Usage(input_tokens=1), "mine", "m").nano_usd, 1000)


class RefusedTests(CaseOfConfigurations):
    """What is wrong."""

    def test_a_slip_is_told_with_its_path(self) -> None:
        """The path leads to the key, and the words say what was meant."""
        path = ("p", "models", "m", "pricing")
        self.assertEqual(
            self.complaints({"p": {"models": {"m": {"pricing": {"input": "1", "ouput": "2"}}}}}),
            [((*path, "ouput"), "unknown key; did you mean output?")],
        )
        self.assertEqual(
            self.complaints({"p": {"models": {"m": {"pricing": [{"treshold": "0", "input": "1"}]}}}}),
            [((*path, "0", "treshold"), "unknown key; did you mean threshold?")],
        )
        self.assertEqual(
            self.complaints({"p": {"models": {"m": {"pricing": {"input": 0.1}}}}}),
            [((*path, "input"), "must be dollars, as in 0.075; this is no number")],
        )

    def test_an_entry_that_never_counts_is_told(self) -> None:
        """Who lists thresholds in the wrong order learns that the second one does nothing."""
        tiers = [{"threshold": "0", "input": "1"}, {"threshold": "10", "input": "2"}]
        ((path, words),) = self.complaints({"p": {"models": {"m": {"pricing": tiers}}}})
        self.assertEqual(path, ("p", "models", "m", "pricing", "1"))
        self.assertIn("never reached", words)

    def test_other_shapes_are_complaints_and_never_a_crash(self) -> None:
        """Whatever stands there, something is said about it."""
        trees: tuple[Tree, ...] = (
            ["p"],
            {"p": "x"},
            {"p": {"models": ["m"]}},
            {"p": {"models": {"m": "x"}}},
            {"p": {"models": {"m": {"pricing": "x"}}}},
            {"p": {"models": {"m": {"pricing": []}}}},
            {"p": {"models": {"m": {"pricing": ["x"]}}}},
            {"p": {"models": {"m": {"pricing": [{"threshold": "0"}]}}}},
            {"p": {"models": {"m": {"pricing": {"input": "1", "tiers": [{"above": "5"}]}}}}},
            {"p": {"models": {"m": {"aliases": "x"}}}},
            {"p": {"models": {"m": {"overrides": {"a": {}}}}}},
            {"p": {"prices": {"same_as": "p"}}},
            {"p": {"prices": {"same_as": ["q"]}}},
        )
        for tree in trees:
            self.assertNotEqual(self.complaints(tree), [], tree)
