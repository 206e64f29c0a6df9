"""`llmproxy reprice`: puts the prices of a file on requests of the past, and tells what that changes."""

from __future__ import annotations

import argparse
import time
from typing import TextIO

import msgspec

from llmproxy.commands.bars import ProgressBar, aligned, printable, turn_away
from llmproxy.commands.usage import LedgerPlace
from llmproxy.core.money import usd
from llmproxy.core.pricing import PriceBook
from llmproxy.state.ledger.backend import LedgerError
from llmproxy.state.ledger.query import Question, moment_ns
from llmproxy.state.ledger.reprice import Change, PriceOf
from llmproxy.state.ledger.reprice import reprice as reprice_ledger
from llmproxy.state.ledger.row import Row


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `llmproxy reprice` takes."""
    times = "2026-11-24, 2026-11-24T10:00, 7d, 24h, today, yesterday, month (UTC)"
    parser.add_argument("--since", metavar="TIME", required=True, help=f"from then on: {times}")
    parser.add_argument("--until", metavar="TIME", help="up to then; a day or month is meant with all of it")
    parser.add_argument("--prices", metavar="FILE", help="the prices; none: those that the proxy would use")
    parser.add_argument("--dry-run", action="store_true", help="only tell what would change")


def from_book(book: PriceBook) -> PriceOf:
    """Prices for rows from the proxy's own price book. A row that somebody has damaged keeps its price."""

    def price_of(row: Row) -> tuple[int | None, str | None]:
        try:
            usage = row.usage()
        except msgspec.MsgspecError:
            return row.cost_nano_usd, row.price_version
        cost = book.cost(
            usage,
            row.provider,
            row.model,
            row.model_asked,
            row.service_tier,
            row.speed,
            row.inference_geo,
            row.batch,
        )
        return cost.nano_usd, cost.version or None

    return price_of


def reprice(
    given: argparse.Namespace, ledger: LedgerPlace, price_of: PriceOf, *, out: TextIO, err: TextIO, now_s: float
) -> int:
    """Run the command. now_s: the time in seconds since 1970. Returns the exit code: 0, or 1 with words on err."""
    progress = ProgressBar(err, "Pricing", time.monotonic)
    try:
        since_ns = moment_ns(given.since, now_s)
        until_ns = Question().until_ns if given.until is None else moment_ns(given.until, now_s, is_end=True)
        changes = reprice_ledger(
            ledger.backend, ledger.path, since_ns, until_ns, price_of, dry_run=given.dry_run, progress=progress
        )
        progress.end()
        out.write(_report(changes, given.dry_run, out))
        out.flush()
    except (LedgerError, ValueError) as error:
        progress.end()
        err.write(f"llmproxy reprice: {error}\n")
        return 1
    except BrokenPipeError:
        turn_away(out)
        return 1
    return 0


def _report(changes: dict[str, Change], dry_run: bool, out: TextIO) -> str:
    if not changes:
        return "No requests.\n"
    total = Change()
    for change in changes.values():
        for name in Change.__struct_fields__:
            setattr(total, name, getattr(total, name) + getattr(change, name))
    lines = aligned(
        [
            ["model", "requests", "changed", "before", "after", "unpriced before", "unpriced after"],
            *([printable(name or "-", out), *_cells(change)] for name, change in sorted(changes.items())),
            ["total", *_cells(total)],
        ]
    )
    end = "Nothing was written (--dry-run)." if dry_run else "Written."
    return "\n".join((*lines, "", end)) + "\n"


def _cells(change: Change) -> list[str]:
    return [
        f"{change.rows:,}",
        f"{change.changed:,}",
        usd(change.before_nano_usd),
        usd(change.after_nano_usd),
        f"{change.unpriced_before:,}",
        f"{change.unpriced_after:,}",
    ]
