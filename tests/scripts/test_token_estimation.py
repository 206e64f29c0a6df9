"""The figures behind the estimate, with a stand-in for OpenAI's tokenizer: four characters, one token."""

import csv
import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.scripts.terminal import script

TIKTOKEN = """
class Encoding:
    name = "stand_in"

    def encode(self, text, disallowed_special):
        return [text[at : at + 4] for at in range(0, len(text), 4)]


def encoding_for_model(model):
    if model == "unheard-of":
        raise KeyError(model)
    return Encoding()


def get_encoding(name):
    if name == "o200k_base":
        raise ValueError("an old version does not know it")
    return Encoding()
"""

ANTHROPIC = """
class AnthropicError(Exception):
    pass


class Counted:
    def __init__(self, input_tokens):
        self.input_tokens = input_tokens


class Anthropic:
    # Eight tokens around each message, and every character is one.
    def __init__(self, api_key):
        self.messages, self.api_key = self, api_key

    def count_tokens(self, model, messages):
        if self.api_key != "the-key":
            raise AnthropicError("401")
        return Counted(8 + len(messages[0]["content"]))
"""


class EstimationTests(SynchronousTestCase):
    """scripts/token_estimation.py"""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        Path(folder.name, "tiktoken.py").write_text(TIKTOKEN, encoding="utf-8")
        Path(folder.name, "anthropic.py").write_text(ANTHROPIC, encoding="utf-8")
        self.path = folder.name

    def test_every_row_says_who_counted(self) -> None:
        """The figures are right for a known tokenizer, and each names its source."""
        told = script(
            "token_estimation.py",
            "--csv",
            "--sizes",
            "100,400",
            "--openai-models",
            "gpt-4o",
            "--anthropic-models",
            "",
            PYTHONPATH=self.path,
        )
        self.assertEqual(told.status, 0)
        rows = list(csv.DictReader(told.out.splitlines()))
        self.assertEqual({row["sample"] for row in rows}, {"lorem", "prose", "code", "json", "chinese"})
        for row in rows:
            self.assertEqual(row["counted_by"], "tiktoken stand_in")
            self.assertEqual(float(row["mean_tokens"]), int(row["size_label"]) / 4)
            self.assertEqual(float(row["mean_tokens_per_1k_chars"]), 250)
            if row["sample"] != "chinese":
                self.assertEqual(float(row["mean_bytes_per_token"]), 4)
            else:
                self.assertEqual(float(row["mean_bytes_per_token"]), 12)

    def test_the_columns_are_the_originals(self) -> None:
        """Whoever reads the table or the CSV with a program of theirs finds the columns where they were."""
        options = ("token_estimation.py", "--sizes", "64", "--trials", "1", "--seed", "3", "--anthropic-models", "")
        told = script(*options, "--csv", PYTHONPATH=self.path)
        self.assertEqual(
            told.out.splitlines()[0],
            "size_label,provider,model,num_trials,mean_tokens,p50_tokens,p95_tokens,stdev_tokens,"
            "mean_tokens_per_1k_chars,sample,counted_by,mean_bytes_per_token",
        )
        told = script(*options, PYTHONPATH=self.path)
        self.assertEqual(
            told.out.splitlines()[0].split()[:9],
            ["Size", "Provider", "Model", "Trials", "MeanTokens", "P50", "P95", "Stdev", "MeanTok/1kChars"],
        )
        self.assertEqual(told.out.splitlines()[1].split()[:5], ["64", "openai", "gpt-4o", "1", "16.00"])

    def test_a_stand_in_is_named(self) -> None:
        """A model without a tokenizer here is counted by another one, and its rows say so."""
        told = script(
            *("token_estimation.py", "--csv", "--sizes", "64", "--openai-models", "unheard-of"),
            PYTHONPATH=self.path,
            ANTHROPIC_API_KEY="",
        )
        rows = list(csv.DictReader(told.out.splitlines()))
        self.assertEqual({row["provider"] for row in rows}, {"openai", "anthropic"})
        self.assertEqual({row["counted_by"] for row in rows}, {"tiktoken cl100k_base (stand-in)"})

    def test_anthropic_counts_with_a_key(self) -> None:
        """With a key Anthropic counts, and what it adds to a message is taken off; a wrong key is no stand-in."""
        options = ("token_estimation.py", "--csv", "--sizes", "64", "--openai-models", "", "--anthropic-models", "c")
        told = script(*options, "--anthropic-api-key", "the-key", PYTHONPATH=self.path)
        rows = list(csv.DictReader(told.out.splitlines()))
        self.assertEqual(
            {(row["counted_by"], row["mean_tokens"]) for row in rows}, {("Anthropic count_tokens", "64.00")}
        )
        told = script(*options, "--anthropic-api-key", "another", PYTHONPATH=self.path)
        self.assertEqual((told.status, told.out), (1, ""))
        self.assertIn("anthropic c: not counted, count_tokens failed (AnthropicError)", told.err)

    def test_nothing_counted_is_a_failure(self) -> None:
        """Without any tokenizer the script says what to install and fails."""
        told = script("token_estimation.py", "--anthropic-models", "c", ANTHROPIC_API_KEY="")
        self.assertEqual((told.status, told.out), (1, ""))
        self.assertIn("the tiktoken package is not installed (pip install tiktoken)", told.err)
        self.assertIn("anthropic c: not counted, there is no key", told.err)
