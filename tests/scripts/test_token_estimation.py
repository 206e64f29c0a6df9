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
"""


class EstimationTests(SynchronousTestCase):
    """scripts/token_estimation.py"""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        Path(folder.name, "tiktoken.py").write_text(TIKTOKEN, encoding="utf-8")
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
            PYTHONPATH=self.path,
        )
        self.assertEqual(told.status, 0)
        rows = list(csv.DictReader(told.out.splitlines()))
        self.assertEqual({row["text"] for row in rows}, {"prose", "code", "json", "chinese"})
        for row in rows:
            self.assertEqual(row["counted_by"], "tiktoken stand_in")
            self.assertEqual(float(row["mean_tokens"]), int(row["size"]) / 4)
            self.assertEqual(float(row["mean_tokens_per_1k_chars"]), 250)
            if row["text"] != "chinese":
                self.assertEqual(float(row["mean_bytes_per_token"]), 4)
            else:
                self.assertEqual(float(row["mean_bytes_per_token"]), 12)

    def test_what_cannot_be_counted_is_named_and_not_made_up(self) -> None:
        """An unknown model and a provider without a key have no row, but a reason."""
        told = script("token_estimation.py", "--openai-models", "gpt-4o,unheard-of", PYTHONPATH=self.path)
        self.assertEqual(told.status, 0)
        self.assertNotIn("unheard-of", told.out)
        self.assertNotIn("anthropic", told.out)
        self.assertIn("openai unheard-of: not counted, this version of tiktoken does not know unheard-of", told.err)
        self.assertIn("anthropic claude-", told.err)

    def test_nothing_counted_is_a_failure(self) -> None:
        """Without any tokenizer the script says what to install and fails."""
        told = script("token_estimation.py", "--anthropic-models", "")
        self.assertEqual((told.status, told.out), (1, ""))
        self.assertIn("the tiktoken package is not installed (pip install tiktoken)", told.err)
