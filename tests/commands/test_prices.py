"""Tests of llmproxy.commands.prices: `llmproxy prices show` and `llmproxy prices import`.

The entries are written after LiteLLM's list (MIT licence, BerriAI): its prices are dollars for one token, so that
2.5e-06 is 2.50 for a million.
"""

import argparse
import io
import json
import os
import shutil
import stat
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.commands import prices
from llmproxy.pricing import load_file
from llmproxy.pricing.price_file import read_prices

GPT = {"litellm_provider": "openai", "input_cost_per_token": 2.5e-06, "output_cost_per_token": 1e-05}
CLAUDE = {"litellm_provider": "anthropic", "input_cost_per_token": 3e-06, "output_cost_per_token": 1.5e-05}

# What a list may hold, and what it had better not.
_ODD = ["x", None, [1], -1, float("nan"), 1.23e-16, 999, 1e9]
_AMOUNTS = st.one_of(st.sampled_from([0, 1e-07, 2.5e-06, 6.25e-06]), st.sampled_from(_ODD), st.floats(0, 1e-3))
_WHAT = st.sampled_from(["input_cost_per_token", "output_cost_per_token", "cache_creation_input_token_cost"])
_SUFFIX = st.sampled_from(
    ["", "", "_above_200k_tokens", "_above_1hr", "_above_0k_tokens", "_batches", "_flex", "_above_9999999999k_tokens"]
)
_MORE = st.fixed_dictionaries(
    {"litellm_provider": st.sampled_from(["openai", "vertex_ai-x", "same_as", ""])},
    optional={
        "provider_specific_entry": st.dictionaries(st.sampled_from(["fast", "us"]), _AMOUNTS),
        "search_context_cost_per_query": st.dictionaries(st.sampled_from(["a", "b"]), _AMOUNTS),
        "source": st.text(max_size=4),
    },
)
ENTRIES = st.builds(
    lambda prices_of, more: {**prices_of, **more},
    st.dictionaries(st.builds(str.__add__, _WHAT, _SUFFIX), _AMOUNTS, max_size=5),
    _MORE,
)


class PricesCase(SynchronousTestCase):
    """Runs the two commands in this process, in an empty directory."""

    def setUp(self) -> None:
        self.cwd = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.cwd)
        self.patch(os, "getcwd", lambda: str(self.cwd))

    def command(self, *arguments: str, stdin: bytes = b"") -> tuple[int, str, str]:
        """Exit code, standard output, standard error. `arguments`: after `llmproxy prices`."""
        out, err = io.StringIO(), io.StringIO()
        self.patch(sys, "stdout", out)
        self.patch(sys, "stderr", err)
        self.patch(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        try:
            asked = _parser().parse_args(arguments)
        except SystemExit:
            return 1, out.getvalue(), err.getvalue()
        return asked.command(asked, {"HOME": str(self.cwd)}), out.getvalue(), err.getvalue()

    def file(self, content: object, name: str = "list.json") -> str:
        """The path of a file with this in it: bytes, text, or what is written as JSON."""
        path = self.cwd / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return str(path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="llmproxy prices")
    commands = parser.add_subparsers(required=True)
    show = commands.add_parser("show")
    show.set_defaults(command=prices.show_price)
    prices.add_show_arguments(show)
    for option in ("--config", "--environment"):
        show.add_argument(option)
    made = commands.add_parser("import")
    made.set_defaults(command=prices.import_prices)
    prices.add_import_arguments(made)
    return parser


class ShowTests(PricesCase):
    """`prices show`: what a model costs with the configuration in use."""

    def test_a_model_of_the_shipped_prices(self) -> None:
        """Without a configuration the shipped prices are shown, and with them their day."""
        code, out, err = self.command("show", "gpt-4o", "--provider", "openai")
        self.assertEqual((code, err), (0, ""))
        self.assertTrue(out.startswith("gpt-4o at openai\n  prices  shipped 20"), out)
        # https://platform.openai.com/docs/pricing: gpt-4o, 2.50 and 10.00 for a million
        rows = [line.split() for line in out.splitlines()]
        self.assertIn(["input", "$2.50"], rows)
        self.assertIn(["output", "$10.00"], rows)

    def test_the_order_of_the_lists(self) -> None:
        """The configuration goes before the file of pricing.file, and that before the shipped prices."""
        own = {"input": "7", "output": "8"}
        price_file = {"schema": 1, "date": "2026-11-01", "source": "a contract", "currency": "USD"}
        self.file(price_file | {"prices": {"openai": {"gpt-4o": own, "gpt-4o-mini": own}}}, "own.json")
        config = self.file(
            "pricing: {file: own.json}\n"
            "providers: {openai: {models: {gpt-4o: {pricing: {input: 1, output: 2}, aliases: [fast]}}}}\n",
            "mine.yml",
        )
        for model, version, price in (
            ("gpt-4o", "config", "$1.00"),
            ("fast", "config", "$1.00"),
            ("gpt-4o-mini", "own.json 2026-11-01, a contract", "$7.00"),
        ):
            with self.subTest(model):
                code, out, err = self.command("show", model, "--config", config)
                self.assertEqual((code, err), (0, ""))
                self.assertIn(f"\n  prices  {version}\n", out)
                self.assertIn(["input", price], [line.split() for line in out.splitlines()])
        self.assertIn("  prices  shipped ", self.command("show", "gpt-5.5", "--config", config)[1])

    def test_the_environment(self) -> None:
        """--environment chooses the file below configs, as with the other commands."""
        (self.cwd / "configs").mkdir()
        self.file("{}", "configs/base.yml")
        self.file("providers: {openai: {models: {m: {pricing: {input: 1, output: 2}}}}}", "configs/prod.yml")
        self.assertEqual(self.command("show", "m", "--environment", "prod")[0], 0)
        self.assertEqual(self.command("show", "m")[0], 1)

    def test_no_price(self) -> None:
        """A model that has no price is exit code 1, with the names that are like it, and nothing on standard output."""
        code, out, err = self.command("show", "gpt-4o-mimi")
        self.assertEqual((code, out), (1, ""))
        self.assertIn("gpt-4o-mimi has no price", err)
        self.assertIn("gpt-4o-mini", err)

    def test_no_such_provider(self) -> None:
        """A provider whose name is wrong is told apart from a model that it does not have."""
        code, out, err = self.command("show", "gpt-4o", "--provider", "opnai")
        self.assertEqual((code, out), (1, ""))
        self.assertTrue(err.endswith("\nno provider 'opnai' has prices; did you mean openai?\n"), err)
        self.assertNotIn("no provider", self.command("show", "claude-x", "--provider", "openai")[2])

    def test_what_cannot_be_used(self) -> None:
        """A bad configuration, or a bad or missing price file, is told as at a start of the proxy."""
        bad = self.file("pricing: {fil: x}", "bad.yml")
        self.assertIn("bad.yml:1: pricing.fil: unknown key", self.command("show", "gpt-4o", "--config", bad)[2])
        config = self.file("pricing: {file: own.json}", "mine.yml")
        code, out, err = self.command("show", "gpt-4o", "--config", config)
        path = self.cwd / "own.json"
        missing = f"pricing.file {path} cannot be read: No such file or directory\n"
        self.assertEqual((code, out, err), (1, "", missing))
        self.file({"schema": 1, "date": "2026-11-01", "currency": "EUR", "prices": {}}, "own.json")
        code, out, err = self.command("show", "gpt-4o", "--config", config)
        self.assertEqual((code, out, err), (1, "", f"pricing.file: {path}: currency: must be USD\n"))


class ImportTests(PricesCase):
    """`prices import`: LiteLLM's list as a price file."""

    def test_a_list_becomes_a_price_file(self) -> None:
        """The written file is one that pricing.file takes, with the prices of the list and the day that was told."""
        source = self.file({"sample_spec": {}, "gpt-4o": GPT, "claude-x": CLAUDE, "dall-e-3": {"mode": "image"}})
        output = str(self.cwd / "prices.json")
        code, out, err = self.command("import", source, "--output", output, "--date", "2026-10-31")
        self.assertEqual((code, out), (0, ""))
        self.assertEqual(
            err.splitlines(),
            [
                "read: 2 models taken, 2 skipped",
                "skipped, names no provider: 1",
                "skipped, the list's own documentation: 1",
                "rounded to a nano-dollar: 0",
                "written: 2 models of openai, anthropic",
            ],
        )
        loaded = load_file(output)
        self.assertEqual(loaded.date, "2026-10-31")
        gpt, claude = loaded.prices["openai"]["gpt-4o"], loaded.prices["anthropic"]["claude-x"]
        self.assertEqual((gpt.tiers[0][1].input, gpt.tiers[0][1].output), (2_500_000_000, 10_000_000_000))
        self.assertEqual((claude.tiers[0][1].input, claude.tiers[0][1].output), (3_000_000_000, 15_000_000_000))

    def test_the_licence_goes_along(self) -> None:
        """Who passes the file on passes on what LiteLLM's licence asks for: its copyright and its permission."""
        _, out, _ = self.command("import", self.file({"gpt-4o": GPT}))
        note = json.loads(out)["note"]
        for words in (
            "MIT License",
            "Copyright (c) 2023 Berri AI",
            "Permission is hereby granted, free of charge",
            "shall be included in all copies or substantial portions",
            'THE SOFTWARE IS PROVIDED "AS IS"',
        ):
            self.assertIn(words, note)
        self.assertIn("github.com/BerriAI/litellm", json.loads(out)["source"])

    def test_streams(self) -> None:
        """It can stand in a pipe: the list comes from standard input, and standard output has the price file alone."""
        before = datetime.now(UTC).date().isoformat()
        code, out, err = self.command("import", "-", stdin=json.dumps({"gpt-4o": GPT}).encode())
        self.assertEqual(code, 0)
        self.assertEqual(json.loads(out)["prices"], {"openai": {"gpt-4o": {"input": "2.5", "output": "10"}}})
        self.assertIn("written: 1 models of openai\n", err)
        self.assertTrue(before <= json.loads(out)["date"] <= datetime.now(UTC).date().isoformat())
        self.assertEqual(self.command("import", self.file({"gpt-4o": GPT}), "--output", "-")[1], out)

    def test_some_providers(self) -> None:
        """--provider takes those alone; one that the list does not have is told, and nothing is written."""
        source = self.file({"gpt-4o": GPT, "claude-x": CLAUDE, "x": CLAUDE | {"litellm_provider": "xai"}})
        code, out, err = self.command("import", source, "--provider", "openai", "--provider", "xai")
        self.assertEqual((code, list(json.loads(out)["prices"])), (0, ["openai", "xai"]))
        self.assertTrue(err.endswith("\nwritten: 2 models of openai, xai\n"), err)
        code, out, err = self.command("import", source, "--provider", "openai", "--provider", "antropic")
        self.assertEqual((code, out), (1, ""))
        self.assertEqual(err, "llmproxy prices import: no provider 'antropic' has prices; did you mean anthropic?\n")

    def test_what_no_price_file_can_say(self) -> None:
        """A model that would not load is left out and named; one strange entry does not cost the whole list."""
        strange = {
            "gpt-4o": GPT,
            "same_as": GPT,  # a price file has this word for something else
            "too-dear": GPT | {"input_cost_per_token": 1000},  # a thousand million dollars for a million tokens
            "fine": GPT | {"provider_specific_entry": {"fast": 1.12345678901}},
        }
        code, out, err = self.command("import", self.file(strange))
        self.assertEqual((code, list(json.loads(out)["prices"]["openai"])), (0, ["fine", "gpt-4o"]))
        left_out = "left out, no price file can say it: 2 (openai same_as, openai too-dear)\n"
        self.assertIn(left_out, err)
        code, out, err = self.command("import", self.file({"same_as": GPT}))
        self.assertEqual((code, out, len(err.splitlines())), (1, "", 1))

    def test_names_of_any_letters(self) -> None:
        """A name is the same in the file, whatever the locale: also one that UTF-8 does not have."""
        _, out, err = self.command(
            "import", self.file({"caf\xe9-\U0001f600-\ud800": GPT, "b": GPT | {"\x1b[2Jcost": 1}})
        )
        self.assertTrue(out.isascii())
        self.assertEqual(set(read_prices(out.encode(), "", "").prices["openai"]), {"caf\xe9-\U0001f600-\ud800", "b"})
        self.assertIn("passed over, field \\x1b[2Jcost: 1", err)  # nor can it clear the screen

    def test_what_is_no_list(self) -> None:
        """What cannot be imported is one line and exit code 1, never a traceback."""
        for content, words in (
            (b"", "is no JSON: Expecting value in line 1"),
            (b'{\n"a": nope}', "is no JSON: Expecting value in line 2"),
            (b"<html>", "is no JSON"),
            (b'{"a": "\xff"}', "is no JSON: it is not UTF-8 text"),
            (b"[" * 100_000, "is nested too deeply"),
            (b"[1]", "is not LiteLLM's price list"),
            (b"{}", "is not LiteLLM's price list: nothing in it has a litellm_provider and a price"),
            (b'{"schema": 1, "prices": {}}', "is not LiteLLM's price list"),
        ):
            with self.subTest(content[:20]):
                code, out, err = self.command("import", self.file(content))
                self.assertEqual((code, out, len(err.splitlines())), (1, "", 1), err)
                self.assertTrue(err.startswith(f"llmproxy prices import: {self.cwd}/list.json {words}"), err)
        code, out, err = self.command("import", "-", stdin=b"x")
        self.assertEqual(err, "llmproxy prices import: standard input is no JSON: Expecting value in line 1\n")
        for name in ("nowhere.json", "."):
            code, out, err = self.command("import", str(self.cwd / name))
            self.assertEqual((code, out, len(err.splitlines())), (1, "", 1))
            self.assertIn(" cannot be read: ", err)

    def test_a_number_that_nothing_can_hold(self) -> None:
        """One such entry is skipped, and the others are imported."""
        content = f'{{"gpt-4o": {json.dumps(GPT)}, "b": 1e{"9" * 30}}}'.encode()
        code, out, err = self.command("import", self.file(content))
        self.assertEqual((code, list(json.loads(out)["prices"]["openai"])), (0, ["gpt-4o"]))
        self.assertIn("1 models taken, 1 skipped", err)

    def test_a_day_that_is_none(self) -> None:
        """--date is a day of the calendar."""
        for day in ("2026-02-30", "yesterday", ""):
            code, _, err = self.command("import", self.file({"gpt-4o": GPT}), "--date", day)
            self.assertEqual(code, 1)
            self.assertIn(f"{day!r} is no day, as in 2026-11-24", err)

    @given(st.dictionaries(st.text(max_size=6), ENTRIES, max_size=4))
    def test_what_is_written_loads(self, entries: dict[str, Any]) -> None:
        """Whatever stands in the list, a price file that is written is one that loads, with as many models as told."""
        code, out, err = self.command("import", "-", stdin=json.dumps(entries).encode())
        if code == 0:
            loaded = read_prices(out.encode("ascii"), "", "")
            models = sum(map(len, loaded.prices.values()))
            self.assertIn(f"\nwritten: {models} models of ", err)
            self.assertGreater(models, 0)
        else:
            self.assertEqual((out, len(err.splitlines())), ("", 1))


class OutputTests(PricesCase):
    """The file that `prices import --output` writes."""

    def written(self, output: Path) -> tuple[int, str]:
        code, _, err = self.command("import", self.file({"gpt-4o": GPT}), "--output", str(output))
        return code, err

    def test_a_file_that_was_there(self) -> None:
        """It is replaced with its permissions kept; a link to it stays a link; no draft is left."""
        target, link = self.cwd / "real.json", self.cwd / "link.json"
        target.write_text("old")
        target.chmod(0o640)
        link.symlink_to(target)
        self.assertEqual(self.written(link)[0], 0)
        self.assertTrue(link.is_symlink())
        self.assertEqual(stat.S_IMODE(target.stat().st_mode), 0o640)
        self.assertEqual(list(load_file(str(target)).prices), ["openai"])
        self.assertEqual({each.name for each in self.cwd.iterdir()}, {"real.json", "link.json", "list.json"})

    def test_others_can_read_a_new_file(self) -> None:
        """The proxy may run as another user: a new file has the permissions that any new file has."""
        before = os.umask(0o022)
        self.addCleanup(os.umask, before)
        self.assertEqual(self.written(self.cwd / "new.json")[0], 0)
        self.assertEqual(stat.S_IMODE((self.cwd / "new.json").stat().st_mode), 0o644)

    def test_a_disk_that_is_full(self) -> None:
        """Where it cannot be written, the file that was there is as it was, and no half of a new one is left."""
        target = self.cwd / "prices.json"
        target.write_text("old")

        def full(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        self.patch(os, "fsync", full)
        code, err = self.written(target)
        full_disk = f"llmproxy prices import: {target} cannot be written: No space left on device\n"
        self.assertEqual((code, err, target.read_text()), (1, full_disk, "old"))
        self.assertEqual({each.name for each in self.cwd.iterdir()}, {"prices.json", "list.json"})

    def test_what_is_no_place_for_a_file(self) -> None:
        """A device or a pipe is not replaced by a file, and a folder that is not there is told."""
        pipe = self.cwd / "pipe"
        os.mkfifo(pipe)
        for output, words in (
            (pipe, "it is no regular file"),
            (self.cwd, "it is no regular file"),
            (self.cwd / "nowhere" / "x.json", "No such file or directory"),
        ):
            code, err = self.written(output)
            self.assertEqual((code, err), (1, f"llmproxy prices import: {output} cannot be written: {words}\n"))
        self.assertTrue(stat.S_ISFIFO(pipe.stat().st_mode))

    def test_a_reader_that_leaves(self) -> None:
        """A closed pipe is no complaint of its own: the command ends as every other does then."""

        class Closed(io.StringIO):
            def write(self, text: str) -> int:
                raise BrokenPipeError

        asked = _parser().parse_args(["import", self.file({"gpt-4o": GPT})])
        self.patch(sys, "stdout", Closed())
        self.assertRaises(BrokenPipeError, prices.import_prices, asked, {})
