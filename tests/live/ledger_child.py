"""A process that writes rows to a ledger as fast as it can, and tells which of them were written."""

from __future__ import annotations

import sys
import time

from llmproxy.state.ledger.backend import Backend
from llmproxy.state.ledger.jsonl import JsonlLedger
from llmproxy.state.ledger.sqlite import SqliteLedger
from llmproxy.state.ledger.writer import LedgerWriter
from tests.state.ledger_cases import DAY_S, NOON_S, row


def tell(words: str) -> None:
    """What the operator would be told."""
    sys.stderr.write(f"{words}\n")


def main(backend: str, path: str, first: int) -> None:
    """Write until somebody ends the process. Each line is how many rows were taken, and how many written."""
    ledger: Backend
    if backend == "sqlite":
        ledger = SqliteLedger(path, keep_days=2, wall_time=lambda: NOON_S)
    else:
        ledger = JsonlLedger(path, keep_days=2, wall_time=lambda: NOON_S, max_file_bytes=200_000)
    writer = LedgerWriter(ledger, told=tell, in_reactor=lambda call, words: call(words), flush_s=0.02)
    writer.start()
    number = first
    while True:
        for _ in range(20):
            # Some are too old to be kept: the kill comes while they are removed, too.
            writer.add(row(number, ago_s=(number % 5) * DAY_S))
            number += 1
        written = writer.state()["written"]
        sys.stdout.write(f"{number} {written}\n")
        sys.stdout.flush()
        time.sleep(0.002)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
