"""Bars and tables: nothing of a stranger's moves the cursor, and columns stand under each other."""

import io

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.commands.bars import ProgressBar, aligned, bar, columns_of, printable, shortened, takes_colour


class Terminal(io.StringIO):
    """Says that it is one."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


class BarTests(SynchronousTestCase):
    """Shares of a whole."""

    def test_a_bar_is_as_long_as_its_share(self) -> None:
        """Eighths of a column show what whole ones would not."""
        for share, expected in ((0, ""), (0.5, "████"), (1, "████████"), (0.1875, "█▌"), (0.0001, "▏"), (7, "█" * 8)):
            self.assertEqual(bar(share, 8, blocks=True), expected, share)

    def test_a_bar_without_blocks(self) -> None:
        """A terminal that takes ASCII only gets signs that it has."""
        for share, expected in ((0, ""), (0.5, "####"), (1, "########"), (0.0001, "#")):
            self.assertEqual(bar(share, 8, blocks=False), expected, share)

    @given(st.floats(0, 1), st.integers(1, 60), st.booleans())
    def test_a_bar_has_never_more_than_its_room(self, share: float, columns: int, blocks: bool) -> None:
        """No bar breaks a line, and what is more than nothing is seen."""
        drawn = bar(share, columns, blocks=blocks)
        self.assertLessEqual(len(drawn), columns)
        self.assertEqual(bool(drawn), share > 0)

    def test_a_name_cannot_move_the_cursor(self) -> None:
        """A caller who calls himself an escape sequence is shown as question marks."""
        self.assertEqual(printable("ann\x1b[2J\n\u202ebob"), "ann?[2J??bob")
        latin = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
        self.assertEqual(printable("zoë 東", latin), "zoë ?")

    def test_columns_stand_under_each_other(self) -> None:
        """Wide characters take two columns."""
        self.assertEqual(aligned([["a", "1,000"], ["東京", "7"]]), ["a     1,000", "東京      7"])
        self.assertEqual(columns_of("e\u0301"), 1)
        self.assertEqual(shortened("東京都庁", 5), "東京~")
        self.assertEqual(shortened("short", 5), "short")

    def test_colour_is_for_terminals_that_want_it(self) -> None:
        """No colour in a pipe, nor with NO_COLOR."""
        self.assertTrue(takes_colour(Terminal(), {}))
        self.assertFalse(takes_colour(Terminal(), {"NO_COLOR": "1"}))
        self.assertFalse(takes_colour(io.StringIO(), {}))


class ProgressBarTests(SynchronousTestCase):
    """What takes long says how long."""

    def test_it_is_shown_after_half_a_second_and_taken_away(self) -> None:
        """Nothing flickers where it is quick; and nothing is left behind."""
        times = iter([0.0, 0.3, 0.6, 0.61, 0.8])
        err = Terminal()
        progress = ProgressBar(err, "Reading", lambda: next(times))
        progress(10, 100)
        self.assertEqual(err.getvalue(), "")
        progress(50, 100)
        self.assertEqual(err.getvalue(), "\rReading " + "█" * 15 + " " * 15 + "  50%\x1b[K")
        progress(51, 100)  # too soon to draw again
        progress(0, 0)
        self.assertTrue(err.getvalue().endswith("\rReading 0.8 s\x1b[K"))
        progress.end()
        self.assertTrue(err.getvalue().endswith("\r\x1b[K"))

    def test_a_pipe_gets_none(self) -> None:
        """A log file of a cron job has no bars in it."""
        err = io.StringIO()
        progress = ProgressBar(err, "Reading", iter([0.0, 9.0]).__next__)
        progress(1, 2)
        progress.end()
        self.assertEqual(err.getvalue(), "")
