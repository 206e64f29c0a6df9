"""Puts other prices on rows that are kept: history is put right after a wrong price, while the proxy goes on.

The rules: only cost_nano_usd and price_version of a row change, and the sums of its day with them, at the same moment.
What is interrupted has done some rows whole and the others not at all, and can be run again. The proxy waits for a
lock a few milliseconds at a time, and gets it in between.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Final, Protocol

import msgspec

from llmproxy.state.ledger.backend import LedgerError
from llmproxy.state.ledger.jsonl import (
    NO_ROW,
    DayFile,
    day_files,
    day_of,
    decode_row,
    removed_days,
    replace_file,
    rewriting,
)
from llmproxy.state.ledger.query import BackendName, Progress, opened
from llmproxy.state.ledger.row import COLUMNS, Row, storable_cost
from llmproxy.state.ledger.schema import SCHEMA, version_of

_ROWS_A_STEP: Final = 200
_BUSY_S: Final = 30.0
_PAUSE_S: Final = 0.05
"""Between two files: the proxy looks every 0.02 s whether it can write."""
_STEP_PAUSE_S: Final = 0.005
"""Between two steps of SQLite, at least; after a longer step it is as long as that held the lock."""

_encode: Final = msgspec.json.Encoder().encode
# In the order of the index on the time, so that a step reads its own rows and no others.
_SELECT: Final = f"""
    SELECT id, {", ".join(COLUMNS)} FROM requests
    WHERE (time_ns, id) > (?, ?) AND time_ns < ? AND id <= ? ORDER BY time_ns, id LIMIT {_ROWS_A_STEP}
"""
# The row was priced outside of the transaction: it may be gone, and somebody else may have been faster.
_UPDATE: Final = """
    UPDATE requests SET cost_nano_usd = ?, price_version = ?
    WHERE id = ? AND cost_nano_usd IS ? AND price_version IS ?
"""


class PriceOf(Protocol):
    """Says what a row costs: nano-dollars, or None where there is no price; and the version of the prices."""

    def __call__(self, row: Row) -> tuple[int | None, str | None]: ...


class Change(msgspec.Struct, gc=False):
    """What other prices do to one model. The costs are of all rows that were looked at, changed or not."""

    rows: int = 0
    changed: int = 0
    before_nano_usd: int = 0
    after_nano_usd: int = 0
    unpriced_before: int = 0
    unpriced_after: int = 0

    def add(self, row: Row, cost_nano_usd: int | None) -> None:
        """Count a row that costs `cost_nano_usd` from now on."""
        self.rows += 1
        self.changed += cost_nano_usd != row.cost_nano_usd
        self.before_nano_usd += row.cost_nano_usd or 0
        self.after_nano_usd += cost_nano_usd or 0
        self.unpriced_before += row.cost_nano_usd is None
        self.unpriced_after += cost_nano_usd is None


def reprice(
    backend: BackendName,
    path: str,
    since_ns: int,
    until_ns: int,
    price_of: PriceOf,
    *,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> dict[str, Change]:
    """Price the rows from and up to a time again. Returns the changes by model; with dry_run nothing is written.

    Rows of which nothing is billed are left alone, and so is the cost of those that do not tell it
    (`Row.tells_its_cost`). Raises LedgerError, in words, if that cannot be done; what was done
    until then stays.
    """
    try:
        run = _reprice_sqlite if backend == "sqlite" else _reprice_jsonl
        return run(path, since_ns, until_ns, price_of, dry_run, progress or _tell_nobody)
    except (OSError, OverflowError, sqlite3.Error) as error:
        raise LedgerError(f"The ledger {path} cannot be priced again: {error}.") from error


class _Changes:
    """Looks at rows one after the other."""

    def __init__(self, price_of: PriceOf) -> None:
        self.by_model: dict[str, Change] = {}
        self._price_of = price_of

    def of(self, row: Row) -> tuple[int | None, str | None] | None:
        """The new cost and version of a row; None if it stays as it is."""
        if row.source == "none":
            return None
        cost_nano_usd, version = row.cost_nano_usd, row.price_version
        if row.tells_its_cost:
            cost_nano_usd, version = self._price_of(row)
            if cost_nano_usd is not None:
                cost_nano_usd = storable_cost(cost_nano_usd)
        self.by_model.setdefault(row.group_model, Change()).add(row, cost_nano_usd)
        if (cost_nano_usd, version) == (row.cost_nano_usd, row.price_version):
            return None
        return cost_nano_usd, version


def _reprice_sqlite(
    path: str, since_ns: int, until_ns: int, price_of: PriceOf, dry_run: bool, progress: Progress
) -> dict[str, Change]:
    changes = _Changes(price_of)
    with closing(opened(path) if dry_run else _opened_to_write(path)) as connection:
        # Rows that come from now on have the proxy's own prices.
        total, last = connection.execute(
            "SELECT count(*), max(id) FROM requests WHERE time_ns >= ? AND time_ns < ?", (since_ns, until_ns)
        ).fetchone()
        done, after = 0, (since_ns, 0)
        while done < total:
            rows = list(map(_row, connection.execute(_SELECT, (*after, until_ns, last))))
            if not rows:
                break
            updates = [
                (*change, number, row.cost_nano_usd, row.price_version)
                for number, row in rows
                if (change := changes.of(row)) is not None
            ]
            if updates and not dry_run:
                time.sleep(max(_update(connection, updates), _STEP_PAUSE_S))
            done, after = done + len(rows), (rows[-1][1].time_ns, rows[-1][0])
            progress(done, total)
    return changes.by_model


def _update(connection: sqlite3.Connection, updates: Sequence[tuple[object, ...]]) -> float:
    """Change the rows and the sums of their days in one transaction. Returns for how long, in seconds."""
    connection.execute("BEGIN IMMEDIATE")
    begun_s = time.monotonic()
    try:
        connection.executemany(_UPDATE, updates)
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    return time.monotonic() - begun_s


def _opened_to_write(path: str) -> sqlite3.Connection:
    opened(path).close()  # says in words what is wrong with it
    connection = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None)
    connection.execute("PRAGMA synchronous = NORMAL")  # as the proxy has it
    if version_of(connection, path) != SCHEMA:
        connection.close()
        raise LedgerError(f"The ledger {path} was brought to another schema just now; try again.")
    return connection


def _row(values: Sequence[object]) -> tuple[int, Row]:
    """A row as SQLite gives it, whose truth values are numbers."""
    number, *fields = values
    row = msgspec.convert(dict(zip(COLUMNS, fields, strict=True)), Row, strict=False)
    return int(str(number)), row


def _reprice_jsonl(
    folder: str, since_ns: int, until_ns: int, price_of: PriceOf, dry_run: bool, progress: Progress
) -> dict[str, Change]:
    if not os.path.isdir(folder):
        raise LedgerError(f"There is no ledger at {folder}; the proxy makes it when it starts.")
    changes = _Changes(price_of)
    first, last = day_of(since_ns), day_of(until_ns)
    files = [each for each in day_files(folder) if first <= each.day <= last]
    total_bytes = sum(map(_size_bytes, files))
    done_bytes = 0

    def tell(more_bytes: int) -> None:
        nonlocal done_bytes
        done_bytes += more_bytes
        progress(done_bytes, total_bytes)

    for file in files:
        rewritten = _Rewritten(file.path, changes, since_ns, until_ns, tell)
        # While the proxy writes, its rows wait in memory for as long as its file is rewritten.
        with rewriting(folder):
            if not os.path.exists(file.path) or os.path.basename(file.path) in removed_days(folder).removing:
                continue  # it was too old, and is or will be removed
            if dry_run:
                deque(rewritten.lines(), maxlen=0)
            else:
                replace_file(file.path, rewritten.lines(), rewritten.has_changed)
        time.sleep(_PAUSE_S)
    return changes.by_model


def _size_bytes(file: DayFile) -> int:
    try:
        return os.path.getsize(file.path)
    except FileNotFoundError:  # it was too old
        return 0


class _Rewritten:
    """The lines of a file with other prices."""

    def __init__(self, path: str, changes: _Changes, since_ns: int, until_ns: int, tell: Callable[[int], None]) -> None:
        self._is_changed = False
        self._path = path
        self._changes = changes
        self._since_ns = since_ns
        self._until_ns = until_ns
        self._tell = tell

    def has_changed(self) -> bool:
        """Whether a line is another one now."""
        return self._is_changed

    def lines(self) -> Iterator[bytes]:
        """All lines, in order."""
        with open(self._path, "rb") as lines:
            for line in lines:
                self._tell(len(line))
                yield self._line(line)

    def _line(self, line: bytes) -> bytes:
        try:
            row = decode_row(line)
        except NO_ROW:
            return line  # not ours to put right
        change = self._changes.of(row) if self._since_ns <= row.time_ns < self._until_ns else None
        if change is None:
            return line
        self._is_changed = True
        row.cost_nano_usd, row.price_version = change
        return _encode(row) + b"\n"


def _tell_nobody(done: int, total: int) -> None:
    pass
