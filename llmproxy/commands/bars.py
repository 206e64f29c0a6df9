"""Bars and tables for a terminal: the share of each row, and how far something has come.

The rule: nothing is written that a terminal could take for a command, whoever chose the text; and whoever reads by a
pipe gets plain lines.
"""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Final, TextIO

_EIGHTHS: Final = "▏▎▍▌▋▊▉█"
_SHOW_AFTER_S: Final = 0.5
_REDRAW_S: Final = 0.1
_PROGRESS_COLUMNS: Final = 30


def bar(share: float, columns: int, *, blocks: bool) -> str:
    """A bar as long as `share` (0 to 1) of some columns. What is more than nothing is seen.

    blocks: in eighths of a column (U+2588 to U+258F), else in whole `#`.
    """
    share = min(max(share, 0.0), 1.0)
    if not blocks:
        return "#" * max(round(share * columns), share > 0)
    whole, eighth = divmod(max(round(share * columns * 8), share > 0), 8)
    return "█" * whole + (_EIGHTHS[eighth - 1] if eighth else "")


def takes_blocks(out: TextIO) -> bool:
    """Whether what reads `out` takes UTF-8."""
    return (getattr(out, "encoding", None) or "").lower().replace("-", "").startswith("utf8")


def takes_colour(out: TextIO, environ: Mapping[str, str]) -> bool:
    """Whether `out` is a terminal that nobody asked to be without colour (no-color.org)."""
    return out.isatty() and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"


def printable(text: str, out: TextIO | None = None) -> str:
    """A text that others chose, with "?" for what moves a cursor or cannot be written to `out`."""
    text = "".join(each if each.isprintable() else "?" for each in text)
    encoding = getattr(out, "encoding", None) or "utf-8"
    return text.encode(encoding, "replace").decode(encoding)


def columns_of(text: str) -> int:
    """How many columns of a terminal a text takes (Unicode Standard Annex #11)."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(each) else 2 if unicodedata.east_asian_width(each) in "WF" else 1 for each in text
    )


def shortened(text: str, columns: int) -> str:
    """The text, or as much of it as goes into some columns, then "~"."""
    if columns_of(text) <= columns:
        return text
    kept = ""
    for each in text:
        if columns_of(kept + each) > columns - 1:
            break
        kept += each
    return kept + "~"


def aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines: the first cell to the left, the others to the right."""
    widths = [max(map(columns_of, cells)) for cells in zip(*lines, strict=True)]
    return [
        "  ".join(
            cell + " " * (width - columns_of(cell)) if not index else " " * (width - columns_of(cell)) + cell
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        for cells in lines
    ]


class ProgressBar:
    """Shows how far something has come on a terminal, if it takes longer than half a second.

    :param err: where it is drawn, and wiped out at the end. Nothing is, if that is no terminal.
    :param monotonic: a clock, in seconds.
    """

    def __init__(self, err: TextIO, words: str, monotonic: Callable[[], float]) -> None:
        self._err = err
        self._words = words
        self._monotonic = monotonic
        self._begun_s = monotonic()
        self._drawn_s = self._begun_s + _SHOW_AFTER_S - _REDRAW_S
        self._is_shown = False
        self._is_terminal = err.isatty()
        self._blocks = takes_blocks(err)

    def __call__(self, done: int, total: int) -> None:
        """So much of the whole is done. total: 0 if that is not known."""
        if not self._is_terminal or (now_s := self._monotonic()) - self._drawn_s < _REDRAW_S:
            return
        self._drawn_s, self._is_shown = now_s, True
        if total:
            share = min(done / total, 1.0)
            drawn = bar(share, _PROGRESS_COLUMNS, blocks=self._blocks)
            state = f"{drawn}{' ' * (_PROGRESS_COLUMNS - len(drawn))} {share:4.0%}"
        else:
            state = f"{now_s - self._begun_s:.1f} s"
        self._err.write(f"\r{self._words} {state}\x1b[K")
        self._err.flush()

    def end(self) -> None:
        """Take it away."""
        if self._is_shown:
            self._err.write("\r\x1b[K")
            self._err.flush()


def turn_away(out: TextIO) -> None:
    """Whoever read `out` has gone: what is still to be written goes nowhere, so that the exit is a quiet one."""
    if out is sys.stdout:
        os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())
