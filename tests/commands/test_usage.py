"""`llmproxy usage`: tables for people, JSON and CSV for programs, and the words where something is not known."""

import argparse
import csv
import io
import json
import os
from collections.abc import Sequence
from typing import Any
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from llmproxy.commands import usage as command
from llmproxy.commands.usage import LedgerPlace
from llmproxy.state.ledger.row import Row
from tests.commands.test_bars import Terminal
from tests.state.ledger_cases import DAY_S, NOON_S, Clock, made, row, written


class Latin(io.StringIO):
    """A place that takes Latin letters only."""

    encoding = "latin-1"


class UsageTests(SynchronousTestCase):
    """The command over a ledger of three rows."""

    def setUp(self) -> None:
        self.patch(os, "get_terminal_size", lambda *_: os.terminal_size((120, 40)))
        self.environ = mock.patch.dict(os.environ, {"COLUMNS": "120"})
        self.environ.start()
        self.addCleanup(self.environ.stop)

    def rows(self) -> list[Row]:
        return [
            row(1, user="ann", cost_nano_usd=750_000_000, total_input=12_000),
            row(2, user="bob", cost_nano_usd=250_000_000, ago_s=DAY_S),
            row(3, user="=cmd()", cost_nano_usd=None, source="estimated"),
        ]

    def run_it(
        self, *arguments: str, rows: Sequence[Row] | None = None, out: Any = None, path: str | None = None
    ) -> tuple[int, str, str]:
        place = path or written("sqlite", self.mktemp(), self.rows() if rows is None else rows)
        parser = argparse.ArgumentParser()
        command.add_arguments(parser)
        out, err = out or io.StringIO(), io.StringIO()
        code = command.usage(
            parser.parse_args(arguments), LedgerPlace("sqlite", place), environ={}, out=out, err=err, now_s=NOON_S
        )
        return code, out.getvalue(), err.getvalue()

    def test_a_table_for_people(self) -> None:
        """One row a user, a bar for its share of the cost, the total, and what is not known."""
        code, out, err = self.run_it("--by", "user")
        self.assertEqual((code, err), (0, ""))
        lines = out.splitlines()
        self.assertEqual(
            lines[0].split(),
            ["user", "requests", "errors", "input", "output", "cache", "read", "cache", "write", "cost"],
        )
        self.assertEqual(lines[1].split()[:5], ["ann", "1", "0", "12,000", "5"])
        self.assertIn("$0.75", lines[1])
        # As a StringIO has no encoding, the bars are of "#"; the ratio of the two costs is 3 to 1.
        self.assertEqual((lines[1].count("#"), lines[2].count("#")), (30, 10))
        self.assertEqual(lines[3].split()[0], "=cmd()")
        self.assertEqual(lines[3].split()[-1], "-")
        self.assertEqual(lines[4].split()[:4], ["total", "3", "0", "12,020"])
        self.assertIn(">= $1.00", lines[4])
        self.assertIn("1 of 3 requests have no price", out)
        self.assertIn("1 requests are estimated", out)
        self.assertNotIn("\x1b", out)

    def test_a_terminal_gets_blocks_and_colour(self) -> None:
        """A terminal shows eighths of a block and a bold total."""
        code, out, _ = self.run_it("--by", "user", out=Terminal())
        self.assertEqual(code, 0)
        self.assertEqual(out.splitlines()[1].count("█"), 30)
        self.assertIn("\x1b[1mtotal", out)

    def test_a_narrow_terminal_gets_no_bars(self) -> None:
        """Where there is no room for bars the numbers are still there."""
        with mock.patch.dict(os.environ, {"COLUMNS": "60"}):
            _, out, _ = self.run_it("--by", "user")
        self.assertNotIn("#", out)
        self.assertIn("$0.75", out)

    def test_where_nothing_has_a_price_the_bars_are_of_tokens(self) -> None:
        """Without prices I still see who uses most."""
        rows = [row(n, user=f"u{n}", cost_nano_usd=None, total_input=n * 100, total_output=0) for n in (1, 3)]
        _, out, _ = self.run_it("--by", "user", rows=rows)
        lines = out.splitlines()
        self.assertEqual((lines[1].count("#"), lines[2].count("#")), (30, 10))

    def test_json_for_programs(self) -> None:
        """Every number is there, money as whole nano-dollars and as exact dollars."""
        code, out, _ = self.run_it("--by", "user", "--format", "json")
        document = json.loads(out)
        self.assertEqual(code, 0)
        self.assertEqual([group["name"] for group in document["groups"]], ["ann", "bob", "=cmd()"])
        self.assertEqual(document["groups"][0]["cost_nano_usd"], 750_000_000)
        self.assertEqual(document["groups"][0]["cost_usd"], "0.75")
        self.assertEqual(document["total"]["requests"], 3)
        self.assertEqual(document["total"]["unpriced"], 1)

    def test_csv_for_spreadsheets(self) -> None:
        """A user who calls himself a formula is text in my spreadsheet."""
        _, out, _ = self.run_it("--by", "user", "--format", "csv")
        table = list(csv.DictReader(io.StringIO(out)))
        self.assertEqual([line["user"] for line in table], ["ann", "bob", "'=cmd()"])
        self.assertEqual(table[0]["cost_usd"], "0.75")

    def test_a_name_that_is_no_formula_at_first_sight(self) -> None:
        """Blanks before it, the wide signs of East Asia, a terminal's commands: all is plain text."""
        names = ("\x1b]0;owned\x07", " =1+1", "\t@x", "\uff1d1+1", "a=1", "-2")
        rows = [row(n, user=name, cost_nano_usd=10 - n) for n, name in enumerate(names)]
        _, out, _ = self.run_it("--by", "user", "--format", "csv", rows=rows)
        found = [line["user"] for line in csv.DictReader(io.StringIO(out))]
        self.assertEqual(found, ["?]0;owned?", "' =1+1", "?@x", "'\uff1d1+1", "a=1", "'-2"])

    def test_a_part_of_a_day_that_is_gone(self) -> None:
        """Where rows were removed, a report from the middle of such a day says that something is missing."""
        clock = Clock()
        ledger, path = made("sqlite", self.mktemp(), clock, keep_days=2)
        ledger.write([row(1, ago_s=10 * DAY_S), row(2)])
        while ledger.tend():
            pass
        ledger.close()
        words = "The rows of 2026-11-14 were removed, so that a part of a day is not in this; ask for whole days."
        self.assertIn(words, self.run_it("--since", "10d", path=path)[1])
        self.assertNotIn("removed", self.run_it("--since", "2026-11-14", path=path)[1])
        out = self.run_it("--since", "10d", "--until", "2026-11-14T13:00", path=path)[1]
        self.assertEqual(out, f"No requests.\n\n{words}\n")
        _, out, _ = self.run_it("--since", "10d", "--format", "json", path=path)
        self.assertEqual(json.loads(out)["left_out"], ["2026-11-14"])

    def test_the_end_of_the_calendar(self) -> None:
        """A time that is beyond it is told in a line."""
        code, out, err = self.run_it("--until", "9999-12-31")
        self.assertEqual((code, out, err.count("\n")), (1, "", 1))
        self.assertIn("beyond the calendar", err)
        self.assertEqual(self.run_it("--until", "9998-12-31")[0], 0)

    def test_times_and_filters(self) -> None:
        """--since, --until, --user and --key narrow it down."""
        for arguments, requests in (
            (("--since", "today"), 2),
            (("--until", "yesterday"), 1),
            (("--since", "7d", "--user", "ann"), 1),
            (("--key", "key_aaaa"), 3),
            (("--key", "key_b"), 0),
            (("--model", "gpt-5.5", "--provider", "groq"), 0),
        ):
            _, out, _ = self.run_it("--format", "json", *arguments)
            self.assertEqual(json.loads(out)["total"]["requests"], requests, arguments)

    def test_nothing_found(self) -> None:
        """An empty answer says so."""
        self.assertEqual(self.run_it(rows=[]), (0, "No requests.\n", ""))

    def test_what_is_wrong_is_one_line(self) -> None:
        """A wrong time and a ledger that is not there are no tracebacks."""
        for arguments, path, words in ((("--since", "soon"), None, "is no time"), ((), "/nonexistent", "no ledger")):
            code, out, err = self.run_it(*arguments, path=path)
            self.assertEqual((code, out), (1, ""))
            self.assertIn(words, err)
            self.assertEqual(err.count("\n"), 1)

    def test_verify(self) -> None:
        """A ledger in order says so, and one that is damaged ends with 1 and words."""
        path = written("sqlite", self.mktemp(), [row(n) for n in range(500)])
        self.assertEqual(self.run_it("--verify", path=path), (0, f"The ledger {path} is in order.\n", ""))
        with open(path, "r+b") as file:
            file.seek(8192)
            file.write(b"\xee" * 16384)
        code, out, err = self.run_it("--verify", path=path)
        self.assertEqual((code, out), (1, ""))
        self.assertNotEqual(err, "")

    def test_a_reader_who_has_seen_enough(self) -> None:
        """`llmproxy usage | head -1` ends without a complaint."""

        class Closed(io.StringIO):
            def write(self, text: str) -> int:
                raise BrokenPipeError

        code, _, err = self.run_it(out=Closed())
        self.assertEqual((code, err), (1, ""))

    def test_a_place_that_takes_latin_letters_only(self) -> None:
        """A name in another script is no UnicodeEncodeError."""
        _, out, _ = self.run_it("--by", "user", rows=[row(1, user="東京")], out=Latin())
        out.encode("latin-1")
        self.assertIn("??", out)
