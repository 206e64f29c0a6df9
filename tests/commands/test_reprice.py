"""`llmproxy reprice`: what it changes, and how it tells."""

import argparse
import io

from twisted.trial.unittest import SynchronousTestCase

from llmproxy.commands import reprice as command
from llmproxy.commands.usage import LedgerPlace
from llmproxy.core.pricing import Price, PriceBook, PriceList, Rates
from llmproxy.core.usage import ModelUsage, Usage
from llmproxy.state.ledger.query import Question, ask
from llmproxy.state.ledger.row import Row, json_text
from tests.state.ledger_cases import DAY_S, NOON_S, row, written


class RepriceTests(SynchronousTestCase):
    """The command over a small ledger."""

    def run_it(self, path: str, *arguments: str) -> tuple[int, str, str]:
        def price_of(row: Row) -> tuple[int | None, str | None]:
            return 1_000_000_000, "new"

        parser = argparse.ArgumentParser()
        command.add_arguments(parser)
        out, err = io.StringIO(), io.StringIO()
        place = LedgerPlace("sqlite", path)
        code = command.reprice(parser.parse_args(arguments), place, price_of, out=out, err=err, now_s=NOON_S)
        return code, out.getvalue(), err.getvalue()

    def test_before_and_after_for_each_model(self) -> None:
        """I see what each model cost and what it costs now."""
        path = written("sqlite", self.mktemp(), [row(1, cost_nano_usd=500_000_000), row(2, ago_s=9 * DAY_S)])
        code, out, err = self.run_it(path, "--since", "7d")
        self.assertEqual((code, err), (0, ""))
        lines = out.splitlines()
        self.assertEqual(lines[1].split(), ["gpt-5.5", "1", "1", "$0.50", "$1.00", "0", "0"])
        self.assertEqual(lines[2].split()[0], "total")
        self.assertEqual(lines[-1], "Written.")
        self.assertEqual(ask("sqlite", path, Question(by="day")).total.cost_nano_usd, 1_000_000_007)

    def test_a_dry_run_says_so(self) -> None:
        """Nothing is written, and I am told."""
        path = written("sqlite", self.mktemp(), [row(1)])
        _, out, _ = self.run_it(path, "--since", "7d", "--dry-run")
        self.assertIn("Nothing was written", out)
        self.assertEqual(ask("sqlite", path, Question()).total.cost_nano_usd, 7)

    def test_no_rows_and_no_ledger(self) -> None:
        """Both are told in a line."""
        path = written("sqlite", self.mktemp(), [])
        self.assertEqual(self.run_it(path, "--since", "7d"), (0, "No requests.\n", ""))
        code, _, err = self.run_it("/nonexistent", "--since", "7d")
        self.assertEqual(code, 1)
        self.assertIn("There is no ledger", err)


class BookTests(SynchronousTestCase):
    """A row has all that its price follows from."""

    def test_a_row_is_priced_as_the_call_was(self) -> None:
        """A row with parts comes to the same as its usage did."""
        million = 1_000_000_000  # a dollar in nano-dollars, for a million tokens
        rates = {
            "big": Price(tiers=((0, Rates(input=3 * million, output=15 * million)),)),
            "small": Price(tiers=((0, Rates(input=million, output=5 * million)),)),
        }
        book = PriceBook([PriceList(origin="test", date="2026-11-24", source="test", prices={"openai": rates})])
        parts = (ModelUsage("small", Usage(input_tokens=1000, output_tokens=100)),)
        one = row(1, model="big", input_tokens=100, output_tokens=10, parts=json_text(parts))
        # 100 x 3000 + 10 x 15000 nano-dollars, and 1000 x 1000 + 100 x 5000 of the other model.
        cost, version = command.from_book(book)(one)
        self.assertEqual(cost, 450_000 + 1_500_000)
        self.assertIn("2026-11-24", str(version))
        self.assertEqual(command.from_book(book)(row(2, model="none such")), (None, None))

    def test_a_row_that_cannot_be_read_keeps_its_price(self) -> None:
        """One damaged row does not end the run."""
        one = row(1, parts="{", price_version="old")
        self.assertEqual(command.from_book(PriceBook([]))(one), (7, "old"))
