"""Accounting, prices and the ledger in the configuration."""

from llmproxy.config.model import Accounting, DrainBounds, OnDisconnect
from tests.config.case import ConfigCase


class OnDisconnectTests(ConfigCase):
    def test_words_and_bounds(self) -> None:
        """One word, or a map with bounds; what is left out is without end."""
        for text, drain in (
            ("cancel", None),
            ("drain", DrainBounds()),
            ("Drain", DrainBounds()),
            ("{drain: {max_s: 30}}", DrainBounds(max_s=30.0)),
            ("{drain: {max_s: 1.5, max_tokens: 2000}}", DrainBounds(max_s=1.5, max_tokens=2000)),
            ("{drain: {}}", DrainBounds()),
        ):
            with self.subTest(text):
                config = self.load(f"accounting: {{on_disconnect: {text}}}\n")
                self.assertEqual(config.accounting.on_disconnect, OnDisconnect(drain=drain))

    def test_mistakes(self) -> None:
        """What is neither is told with its place."""
        for text, words in (
            ("leave", "accounting.on_disconnect: must be cancel, drain, or {drain: {max_s: 30, max_tokens: 2000}}"),
            ("{drain: {max_seconds: 3}}", "accounting.on_disconnect.drain.max_seconds: unknown key"),
            ("{drain: {max_s: -3}}", "accounting.on_disconnect.drain.max_s: must be a number of seconds, at least 0"),
            ("[drain]", "accounting.on_disconnect: must be cancel"),
        ):
            with self.subTest(text):
                self.assertIn(words, self.complaints(f"accounting: {{on_disconnect: {text}}}\n")[0])

    def test_for_one_provider(self) -> None:
        """A provider has its own keys, and the others as for all."""
        config = self.load(
            "accounting: {hold_json_bytes: 1000}\n"
            "providers: {groq: {accounting: {on_disconnect: drain, inject_include_usage: false}}}\n"
        )
        self.assertEqual(config.accountings["openai"], Accounting(hold_json_bytes=1000))
        self.assertEqual(
            config.accountings["groq"],
            Accounting(
                hold_json_bytes=1000, inject_include_usage=False, on_disconnect=OnDisconnect(drain=DrainBounds())
            ),
        )


class PricesTests(ConfigCase):
    def test_the_forms_that_configurations_have(self) -> None:
        """A price, tiers, aliases, overrides, and numbers with underscores."""
        config = self.load(
            "providers:\n"
            "  openai:\n"
            "    models:\n"
            "      gpt-4o: {aliases: [our-gpt], pricing: {input: 2.50, output: 10.00}}\n"
            "      gpt-5.5:\n"
            "        pricing:\n"
            "          - {threshold: 272_000, input: 5, output: 30}\n"
            "          - {threshold: 0, input: 10, output: 45}\n"
            "        overrides: {mine: {input: 1, output: 2}}\n"
        )
        self.assertEqual(sorted(config.prices.prices["openai"]), ["gpt-4o", "gpt-5.5", "mine"])
        self.assertEqual(config.prices.aliases["openai"], {"our-gpt": "gpt-4o"})

    def test_from_the_environment(self) -> None:
        """A price may come from a variable, as any value may."""
        config = self.load("providers: {openai: {models: {m: {pricing: {input: '${P}', output: 2}}}}}\n", P="1.5")
        self.assertIn("m", config.prices.prices["openai"])

    def test_mistakes(self) -> None:
        """Each is told with its line and path."""
        for text, words in (
            ("{models: {m: {pricing: {input: 1, outptu: 2}}}}", "openai.models.m.pricing.outptu: unknown key"),
            ("{models: {m: {pricing: {input: free, output: 2}}}}", "openai.models.m.pricing.input: "),
            ("{models: 5}", "openai.models: must be a map of keys"),
            ("{models: [a]}", "openai.models: must be a map of keys"),
            ("{prices: 3}", "openai.prices: must be a map of keys"),
            ("{prices: {same_as: opnai}}", "prices.same_as: there is no such provider; did you mean openai?"),
        ):
            with self.subTest(text):
                complaint = self.complaints(f"providers: {{openai: {text}}}\n")[0]
                self.assertTrue(complaint.startswith("configs/base.yml:1: providers."), complaint)
                self.assertIn(words, complaint)


class LedgerTests(ConfigCase):
    def test_off(self) -> None:
        """off needs no quotes, though YAML reads it as false."""
        for text in ("off", "'off'", "OFF"):
            self.assertEqual(self.load(f"ledger: {{backend: {text}}}\n").ledger.backend, "off")
        self.assertEqual(self.load("", LLM_PROXY_LEDGER="jsonl").ledger.backend, "jsonl")
        self.assertIn("must be one of off, sqlite, jsonl", self.complaints("ledger: {backend: sqlit}\n")[0])

    def test_places(self) -> None:
        """Relative paths are meant from the directory of the start."""
        config = self.load("ledger: {path: rows.sqlite}\npricing: {file: prices.json}\n")
        self.assertTrue(str(config.ledger.path).startswith("/"))
        self.assertTrue(str(config.pricing.file).endswith("/prices.json"))
