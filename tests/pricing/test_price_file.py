"""Price files: taken as a whole, or refused with all that is wrong."""

from datetime import date
from fractions import Fraction
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from llmproxy.core.pricing import Price, PriceBook, PriceList, Rates
from llmproxy.core.usage import Usage
from llmproxy.pricing import PriceFileError, load_file, staleness
from llmproxy.pricing.price_file import read_prices

DOLLAR = 10**9

YAML = b"""\
schema: 1
date: 2026-11-24
source: https://example.com/pricing
currency: USD
prices:
  openai:
    gpt-5.5:
      aliases: [gpt-5.5-2026-04-23]
      source: https://developers.openai.com/api/docs/pricing
      note: for readers
      input: 5
      cache_read: 0.50
      output: 30
      tiers: [{above: 272_000, input: 10, cache_read: 1, output: 45}]
      service_tiers: {flex: 0.5, priority: {input: 12.50, cache_read: 1.25, output: 75}}
      speeds: {fast: 2}
      inference_geos: {us: 1.1}
      batch: 0.5
      server_tools: {web_search: 0.01}
  my-gateway:
    same_as: openai
"""
JSON = b"""\
{"schema": 1, "date": "2026-11-24", "source": "https://example.com/pricing", "currency": "USD", "prices": {
 "openai": {"gpt-5.5": {
  "aliases": ["gpt-5.5-2026-04-23"], "source": "https://developers.openai.com/api/docs/pricing", "note": "for readers",
  "input": 5, "cache_read": 0.50, "output": "30",
  "tiers": [{"above": 272000, "input": 10.0, "cache_read": 1, "output": 45}],
  "service_tiers": {"flex": 0.5, "priority": {"input": 12.50, "cache_read": 1.25, "output": 75}},
  "speeds": {"fast": 2}, "inference_geos": {"us": 1.1}, "batch": 0.5, "server_tools": {"web_search": 0.01}}},
 "my-gateway": {"same_as": "openai"}}}
"""
SEARCH = (("web_search", DOLLAR // 100),)
EXPECTED = PriceList(
    origin="mine",
    date="2026-11-24",
    source="https://example.com/pricing",
    prices={
        "openai": {
            "gpt-5.5": Price(
                tiers=(
                    (0, Rates(input=5 * DOLLAR, cache_read=DOLLAR // 2, output=30 * DOLLAR, server_tools=SEARCH)),
                    (
                        272_000,
                        Rates(input=10 * DOLLAR, cache_read=DOLLAR, output=45 * DOLLAR, server_tools=SEARCH),
                    ),
                ),
                service_tiers={
                    "flex": Fraction(1, 2),
                    "priority": Price(
                        tiers=(
                            (
                                0,
                                Rates(
                                    input=12_500_000_000,
                                    cache_read=1_250_000_000,
                                    output=75 * DOLLAR,
                                    server_tools=SEARCH,
                                ),
                            ),
                        )
                    ),
                },
                speeds={"fast": Fraction(2)},
                inference_geos={"us": Fraction(11, 10)},
                batch=Fraction(1, 2),
                source="https://developers.openai.com/api/docs/pricing",
            )
        }
    },
    aliases={"openai": {"gpt-5.5-2026-04-23": "gpt-5.5"}},
    same_as={"my-gateway": "openai"},
)
HEAD = "schema: 1\ndate: 2026-11-24\ncurrency: USD\nprices:\n"


class ReadTests(SynchronousTestCase):
    """What is right."""

    def test_all_that_a_model_may_have_is_read_from_yaml(self) -> None:
        """Each key of the documentation ends up where it counts."""
        self.assertEqual(read_prices(YAML, "mine.yml", "mine"), EXPECTED)

    def test_json_says_the_same(self) -> None:
        """Numbers in quotes or not, in YAML or JSON: the same prices."""
        self.assertEqual(read_prices(JSON, "mine.json", "mine"), EXPECTED)

    def test_a_file_is_named_as_the_source_of_its_prices(self) -> None:
        """A cost tells which file and of which day priced it."""
        path = self.mktemp()
        Path(path).write_bytes(YAML)
        self.assertEqual(load_file(path).version, f"{Path(path).name} 2026-11-24")

    def test_a_number_is_never_a_float(self) -> None:
        """0.1 and 0.7 are a tenth and seven tenths, so that their sum is 0.8 and not a little off."""
        text = HEAD + "  x:\n    m: {input: 0.1, output: 0.7}\n"
        book = PriceBook([read_prices(text.encode(), "f", "f")])
        usage = Usage(input_tokens=10**6, output_tokens=10**6)
        self.assertEqual(book.cost(usage, "x", "m").nano_usd, 800_000_000)

    def test_a_price_by_the_second_holds_for_a_batch(self) -> None:
        """What is not billed by the token need not be repeated in each tier."""
        text = HEAD + "  x:\n    m: {input: 1, audio_second: 0.5, batch: {input: 0.25}}\n"
        book = PriceBook([read_prices(text.encode(), "f", "f")])
        self.assertEqual(book.cost(Usage(audio_ms=2000), "x", "m", batch=True).nano_usd, DOLLAR)

    def test_a_model_may_have_a_name_that_yaml_takes_for_something_else(self) -> None:
        """`on`, `1.5` and a date are names like others."""
        text = HEAD + "  x:\n    on: {input: 1}\n    1.5: {input: 2}\n    2026-01-01: {input: 3}\n"
        self.assertEqual(list(read_prices(text.encode(), "f", "f").prices["x"]), ["on", "1.5", "2026-01-01"])


class RefusedTests(SynchronousTestCase):
    """What is wrong."""

    def complaints(self, content: str | bytes) -> list[str]:
        data = content if isinstance(content, bytes) else content.encode()
        return str(self.assertRaises(PriceFileError, read_prices, data, "p.yml", "p")).splitlines()

    def of_model(self, entry: str) -> list[str]:
        return self.complaints(HEAD + "  x:\n    m: " + entry + "\n")

    def test_a_misspelt_key_is_named_with_its_path_and_what_was_meant(self) -> None:
        """A slip does not leave a class without a price."""
        self.assertEqual(
            self.of_model("{input: 1, cached_read: 2}"),
            ["p.yml: prices.x.m.cached_read: unknown key; did you mean cache_read?"],
        )
        self.assertEqual(
            self.of_model("{input: 1, tiers: [{above: 5, outputs: 1}]}"),
            ["p.yml: prices.x.m.tiers.0.outputs: unknown key; did you mean output?"],
        )
        self.assertEqual(
            self.complaints(HEAD + "  x:\n    m: {input: 1}\ncurency: EUR\n"),
            ["p.yml: curency: unknown key; did you mean currency?"],
        )

    def test_everything_that_is_wrong_is_said_at_once(self) -> None:
        """One run is enough to mend a file."""
        lines = self.complaints("schema: 2\ndate: soon\ncurrency: EUR\nprices: {x: {m: {input: free}, n: 5, o: {}}}\n")
        self.assertEqual(
            lines,
            [
                "p.yml: schema: must be 1; this version knows no other",
                "p.yml: currency: must be USD",
                "p.yml: date: must be the day on which the prices were read, as in 2026-11-24",
                "p.yml: prices.x.m.input: must be dollars, as in 0.075; this is no number",
                "p.yml: prices.x.n: must be a map",
                "p.yml: prices.x.o: states no price; write at least one of input, cache_read, cache_write_5m, "
                "cache_write_1h, tool_use, input_audio, input_image, output, reasoning, output_audio, output_image, "
                "audio_second",
            ],
        )

    def test_sizes_that_are_out_of_order_are_refused(self) -> None:
        """Which of two tiers counts is never left to chance."""
        (line,) = self.of_model("{input: 1, tiers: [{above: 200, input: 2}, {above: 100, input: 3}]}")
        self.assertIn("prices.x.m.tiers.1.above: must be more than", line)
        (line,) = self.of_model("{input: 1, tiers: [{input: 2}]}")
        self.assertIn("prices.x.m.tiers.0.above: must be a whole number of tokens", line)
        (line,) = self.of_model("{input: 1, tiers: {above: 200, input: 2}}")
        self.assertIn("prices.x.m.tiers: must be a list", line)

    def test_negative_and_endless_prices_are_refused(self) -> None:
        """No price makes a call earn money, or cost more than there is."""
        for text in ("-1", ".inf", "nan", "1e30", "[1]", "true", "''"):
            (line,) = self.of_model(f"{{input: {text}}}")
            self.assertTrue(line.startswith("p.yml: prices.x.m.input: must be dollars"), line)

    def test_a_key_that_stands_twice_is_refused(self) -> None:
        """The second of two prices does not win in silence."""
        (line,) = self.complaints(HEAD + "  x:\n    m: {input: 1}\n    m: {input: 2}\n")
        self.assertEqual(line, "p.yml: prices.x.m: stands there twice, the second time in line 7")
        (line,) = self.complaints(b'{"schema": 1, "schema": 1}')
        self.assertEqual(line, "p.yml: schema: stands there twice")

    def test_an_alias_of_two_models_is_refused(self) -> None:
        """A name has one price."""
        (line,) = self.complaints(HEAD + "  x:\n    m: {input: 1, aliases: [a]}\n    n: {input: 2, aliases: [a]}\n")
        self.assertEqual(line, "p.yml: prices.x.n.aliases: a is an alias of m already")

    def test_what_is_no_file_of_prices_is_refused_in_one_line(self) -> None:
        """A wrong path in the configuration is told as what it is."""
        for content, words in (
            (b"\xff\xfe", "is not UTF-8 text"),
            (b"a: [", "is no YAML"),
            (b'{"a": ', "is no JSON"),
            (b"[" * 100_000, "nested too deeply"),
            (b'{"a":' + b"[" * 100_000, "nested too deeply"),
        ):
            (line,) = self.complaints(content)
            self.assertIn(words, line)
        self.assertIn("p.yml: must be a map", self.complaints(b"- 1"))
        self.assertEqual(len(self.complaints(b"")), 3)  # no schema, no currency, no date

    def test_a_file_that_unfolds_without_end_is_refused(self) -> None:
        """A few lines of YAML that stand for a thousand million do not take the memory for them."""
        lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
        lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
        self.assertIn("write it out: *a0 is not known here", "\n".join(self.complaints("\n".join(lines))))


class AgeTests(SynchronousTestCase):
    """How old prices are."""

    def test_old_prices_are_told_of(self) -> None:
        """After three months a sentence in the log says that prices may have changed."""
        prices = PriceList(origin="shipped", date="2026-01-01")
        self.assertIsNone(staleness(prices, date(2026, 4, 1)))  # 90 days
        told = staleness(prices, date(2026, 4, 2))
        self.assertEqual(
            told,
            "the shipped prices are 91 days old (2026-01-01); costs of models whose price has changed since are wrong",
        )

    def test_who_does_not_want_to_know_is_not_told(self) -> None:
        """0 days switches it off, and prices without a date have no age."""
        self.assertIsNone(staleness(PriceList(origin="f", date="2020-01-01"), date(2026, 1, 1), 0))
        self.assertIsNone(staleness(PriceList(origin="config"), date(2026, 1, 1)))
        self.assertIsNotNone(staleness(PriceList(origin="f", date="2025-12-30"), date(2026, 1, 1), 1))
