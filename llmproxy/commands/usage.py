"""`llmproxy usage`: what was used and what it cost, from the ledger, also while the proxy writes it.

The rule: what is not known is said. Rows without a price and rows that are estimated are counted under every table.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import shutil
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final, NamedTuple, TextIO

from llmproxy.commands.bars import (
    ProgressBar,
    aligned,
    bar,
    columns_of,
    printable,
    shortened,
    takes_blocks,
    takes_colour,
    turn_away,
)
from llmproxy.core.money import usd
from llmproxy.state.ledger.backend import LedgerError
from llmproxy.state.ledger.query import GROUPS, Answer, BackendName, Question, ask, moment_ns
from llmproxy.state.ledger.sums import Sums
from llmproxy.state.ledger.verify import verify

_NAME_COLUMNS_MAX: Final = 40
_BAR_COLUMNS: Final = range(6, 41)
"""A bar shorter than that tells nothing, and a longer one no more."""

_FIELDS: Final = Sums.__struct_fields__
_HEADS: Final = ("requests", "errors", "input", "output", "cache read", "cache write", "cost")
# Some spreadsheets take the wide forms of East Asia for the same.
_FORMULA: Final = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_BOLD, _DIM, _PLAIN = "\x1b[1m", "\x1b[2m", "\x1b[0m"


class LedgerPlace(NamedTuple):
    """Where the ledger is: the file of sqlite, the folder of jsonl."""

    backend: BackendName
    path: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `llmproxy usage` takes."""
    times = "2026-11-24, 2026-11-24T10:00, 7d, 24h, today, yesterday, month (UTC)"
    parser.add_argument("--by", choices=GROUPS, default="model", help="a row for each; default: %(default)s")
    parser.add_argument("--since", metavar="TIME", help=f"from then on: {times}")
    parser.add_argument("--until", metavar="TIME", help="up to then; a day or month is meant with all of it")
    parser.add_argument("--user", help="of this user alone")
    parser.add_argument("--key", metavar="ID", help="of this credential id, or what it begins with")
    parser.add_argument("--model", help="of this model, as answered")
    parser.add_argument("--provider", help="of this provider")
    parser.add_argument("--format", choices=("table", "json", "csv"), default="table", help="default: %(default)s")
    parser.add_argument("--verify", action="store_true", help="check the ledger instead")


def usage(
    given: argparse.Namespace,
    ledger: LedgerPlace,
    *,
    environ: Mapping[str, str],
    out: TextIO,
    err: TextIO,
    now_s: float,
) -> int:
    """Run the command. now_s: the time in seconds since 1970. Returns the exit code: 0, or 1 with words on err."""
    progress = ProgressBar(err, "Reading the ledger", time.monotonic)
    try:
        if given.verify:
            return _verify(ledger, progress, out, err)
        question = _question(given, now_s)
        answer = ask(ledger.backend, ledger.path, question, progress)
        progress.end()
        written = {"table": _table, "json": _json, "csv": _csv}[given.format]
        out.write(written(question, answer, out, environ))
        out.flush()
    except (LedgerError, ValueError) as error:
        progress.end()
        err.write(f"llmproxy usage: {error}\n")
        return 1
    except BrokenPipeError:
        turn_away(out)
        return 1
    return 0


def _verify(ledger: LedgerPlace, progress: ProgressBar, out: TextIO, err: TextIO) -> int:
    found = verify(ledger.backend, ledger.path, progress)
    progress.end()
    if found:
        err.writelines(f"{printable(words, err)}\n" for words in found)
        return 1
    out.write(f"The ledger {ledger.path} is in order.\n")
    return 0


def _question(given: argparse.Namespace, now_s: float) -> Question:
    times: dict[str, int] = {}
    if given.since is not None:
        times["since_ns"] = moment_ns(given.since, now_s)
    if given.until is not None:
        times["until_ns"] = moment_ns(given.until, now_s, is_end=True)
    return Question(by=given.by, user=given.user, key=given.key, model=given.model, provider=given.provider, **times)


# -- for people ----------------------------------------------------------------------------------------------


def _table(question: Question, answer: Answer, out: TextIO, environ: Mapping[str, str]) -> str:
    if not answer.total.requests:
        return "\n".join(("No requests.", *_notes(question, answer))) + "\n"
    named = [(shortened(printable(name or "-", out), _NAME_COLUMNS_MAX), sums) for name, sums in answer.groups.items()]
    by_none = question.by == "none"
    rows = [] if by_none else [[name, *_cells(sums)] for name, sums in named]
    lines = aligned([["" if by_none else question.by, *_HEADS], *rows, ["total", *_cells(answer.total)]])
    if rows:
        lines[1:-1] = _with_bars(lines[1:-1], [sums for _, sums in named], answer.total, out)
    if takes_colour(out, environ):
        lines[0], lines[-1] = f"{_DIM}{lines[0]}{_PLAIN}", f"{_BOLD}{lines[-1]}{_PLAIN}"
    return "\n".join(line.rstrip() for line in (*lines, *_notes(question, answer))) + "\n"


def _cells(sums: Sums) -> list[str]:
    numbers = (
        sums.requests,
        sums.errors,
        sums.total_input,
        sums.total_output,
        sums.cache_read_tokens,
        sums.cache_write_5m_tokens + sums.cache_write_1h_tokens,
    )
    return [*(f"{number:,}" for number in numbers), _cost(sums)]


def _cost(sums: Sums) -> str:
    """The cost; "-" if nothing of it has a price, ">=" if some has none."""
    if not sums.unpriced:
        return usd(sums.cost_nano_usd)
    return f">= {usd(sums.cost_nano_usd)}" if sums.cost_nano_usd else "-"


def _with_bars(lines: list[str], groups: list[Sums], total: Sums, out: TextIO) -> list[str]:
    """A bar behind each line: its share of the cost, or of the tokens where nothing has a price."""
    room = shutil.get_terminal_size().columns - max(map(columns_of, lines)) - 3
    if room < _BAR_COLUMNS.start:
        return lines
    columns = min(room, _BAR_COLUMNS.stop - 1)
    by_cost = total.cost_nano_usd > 0
    amounts = [sums.cost_nano_usd if by_cost else sums.tokens for sums in groups]
    whole = sum(amounts) or 1
    blocks = takes_blocks(out)
    return [
        f"{line}  {bar(amount / whole, columns, blocks=blocks)}" for line, amount in zip(lines, amounts, strict=True)
    ]


def _notes(question: Question, answer: Answer) -> list[str]:
    total = answer.total
    notes = []
    if total.unpriced:
        notes.append(f"{total.unpriced:,} of {total.requests:,} requests have no price: the cost is without them.")
    if total.estimated or total.partial:
        notes.append(f"{total.estimated:,} requests are estimated, {total.partial:,} are so in part.")
    oldest_ns = answer.rows_since_ns
    if question.by == "hour" and oldest_ns is not None and question.since_ns < oldest_ns:
        notes.append(f"Hours are known since {_time(oldest_ns)}; for what is older ask --by day.")
    if answer.left_out:
        notes.append(
            f"The rows of {', '.join(answer.left_out)} were removed, so that a part of a day is not in this; "
            "ask for whole days."
        )
    return ["", *notes] if notes else []


def _time(time_ns: int) -> str:
    return datetime.fromtimestamp(time_ns // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# -- for programs --------------------------------------------------------------------------------------------


def _json(question: Question, answer: Answer, out: TextIO, environ: Mapping[str, str]) -> str:
    def as_object(sums: Sums) -> dict[str, object]:
        return {**{name: getattr(sums, name) for name in _FIELDS}, "cost_usd": _plain_usd(sums)}

    document = {
        "by": question.by,
        "groups": [{"name": name, **as_object(sums)} for name, sums in answer.groups.items()],
        "total": as_object(answer.total),
        "left_out": answer.left_out,
    }
    return json.dumps(document, indent=2) + "\n"


def _csv(question: Question, answer: Answer, out: TextIO, environ: Mapping[str, str]) -> str:
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow([question.by, *_FIELDS, "cost_usd"])
    for name, sums in answer.groups.items():
        # A spreadsheet would run what looks like a formula, and callers choose their names (OWASP, CSV injection).
        safe = printable(name, out)
        safe = f"'{safe}" if safe.lstrip().startswith(_FORMULA) else safe
        writer.writerow([safe, *(getattr(sums, field) for field in _FIELDS), _plain_usd(sums)])
    return written.getvalue()


def _plain_usd(sums: Sums) -> str:
    return usd(sums.cost_nano_usd).replace("$", "").replace(",", "")
