"""The ledger in one file of SQLite: rows for as long as they are kept, and the sums of each day for ever.

The rules: what is committed survives a kill of the process, and a crash of the machine corrupts nothing (WAL with
synchronous=NORMAL, sqlite.org/pragma.html#pragma_synchronous). A file that is gone or broken costs no request: it is
made anew, a broken one is kept under another name, and the operator is told.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import chain
from math import inf
from operator import attrgetter
from pathlib import Path
from typing import Final

from llmproxy.state.ledger.row import COLUMNS, Row
from llmproxy.state.ledger.schema import SCHEMA, bring_up_to_date, insert, version_of
from llmproxy.state.ledger.sums import DAY_NS

_BUSY_S: Final = 0.25
"""Another process may be in a transaction (llmproxy reprice). The writer tries again, so this is short."""

_BROKEN: Final = frozenset((sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB))
_ROWS_A_STATEMENT: Final = 100
"""The interpreter's lock is given away once a statement, and it takes a while to get it back from a busy reactor. (A
statement has 32,766 places at most, sqlite.org/limits.html.)"""

_REMOVED_ROWS_A_STEP: Final = 1000
_FREED_PAGES_A_STEP: Final = 256
_REST_NS: Final = 60 * 10**9
"""Old rows are looked for once a minute."""

_values: Final = attrgetter(*COLUMNS)


class SqliteLedger:
    """Keeps rows in the file at a path. See backend.Backend.

    :param path: the file. Its folder is made if it is not there (mode 700); the file has mode 600.
    :param keep_days: rows are removed that are older; 0 for none.
    :param wall_time: the time in seconds since 1970.
    """

    name = "sqlite"

    def __init__(self, path: str, *, keep_days: int, wall_time: Callable[[], float]) -> None:
        self.notices: list[str] = []
        self.deadline_s = inf  # it never waits longer than _BUSY_S
        self._path = path
        self._keep_days = keep_days
        self._wall_time = wall_time
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None  # device and inode
        self._tended_ns = 0
        self._frees_pages = False

    def write(self, rows: Sequence[Row]) -> None:
        """Keep rows and count them for their days, in one transaction."""
        connection = self._opened()
        try:
            # One statement is a transaction of its own. Without one this is to say whether there could be one.
            begins = not 0 < len(rows) <= _ROWS_A_STATEMENT
            if begins:
                connection.execute("BEGIN IMMEDIATE")
            for start in range(0, len(rows), _ROWS_A_STATEMENT):
                some = rows[start : start + _ROWS_A_STATEMENT]
                connection.execute(insert(len(some)), tuple(chain.from_iterable(map(_values, some))))
            if begins:
                connection.execute("COMMIT")
        except BaseException as error:
            self._undo(error)
            raise

    def tend(self) -> bool:
        """Remove some of the rows that are too old, then give free pages back to the file system."""
        now_ns = int(self._wall_time() * 1e9)
        if not self._keep_days or (0 <= now_ns - self._tended_ns < _REST_NS and not self._frees_pages):
            return False
        connection = self._opened()
        oldest_ns = (now_ns // DAY_NS - self._keep_days) * DAY_NS
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("UPDATE meta SET value = max(value, ?) WHERE name = 'removed_before_ns'", (oldest_ns,))
            removed = connection.execute(
                "DELETE FROM requests WHERE id IN (SELECT id FROM requests WHERE time_ns < ? ORDER BY time_ns LIMIT ?)",
                (oldest_ns, _REMOVED_ROWS_A_STEP),
            ).rowcount
            connection.execute("COMMIT")
            if removed == _REMOVED_ROWS_A_STEP:
                return True
            self._tended_ns = now_ns
            (free_pages,) = connection.execute("PRAGMA freelist_count").fetchone()
            if free_pages:
                # It gives no rows, one for each page: execute() would stop after the first.
                connection.executescript(f"PRAGMA incremental_vacuum({_FREED_PAGES_A_STEP})")
            self._frees_pages = free_pages > _FREED_PAGES_A_STEP
        except sqlite3.Error as error:
            self._undo(error)
            raise
        return self._frees_pages

    def close(self) -> None:
        """Close the file; what is in the WAL goes into it."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _opened(self) -> sqlite3.Connection:
        """The open database: the one that is there, or a new one if that was taken away."""
        if self._connection is not None:
            if self._is_still_there():
                return self._connection
            self.notices.append(f"The ledger {self._path} was removed or replaced; rows go to the file of that name.")
            self._let_go()
        try:
            return self._open()
        except sqlite3.Error as error:
            self._undo(error)
            raise

    def _open(self) -> sqlite3.Connection:
        os.makedirs(os.path.dirname(self._path) or ".", mode=0o700, exist_ok=True)
        # SQLite would make the file readable for all. It gives -wal and -shm the mode of this one.
        with suppress(FileExistsError):
            os.close(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            self._remove_journals()  # they would be of a file that is no more
        status = os.stat(self._path)
        connection = sqlite3.connect(self._path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
        self._connection, self._file = connection, (status.st_dev, status.st_ino)
        try:
            version_of(connection, self._path)  # another program's database is left as it is
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # holds for a database that is still empty
            connection.execute("PRAGMA journal_mode = WAL").fetchone()
            connection.execute("PRAGMA synchronous = NORMAL")
            before = bring_up_to_date(connection, self._path)
        except BaseException:
            self._let_go(keep_file=True)
            raise
        if before not in (0, SCHEMA):
            self.notices.append(f"The ledger {self._path} was brought from schema {before} to {SCHEMA}.")
        return connection

    def _is_still_there(self) -> bool:
        try:
            status = os.stat(self._path)
        except FileNotFoundError:
            return False
        return (status.st_dev, status.st_ino) == self._file

    def _undo(self, error: BaseException) -> None:
        """Nothing of a transaction stays. A broken file is put aside."""
        connection = self._connection
        if connection is not None and connection.in_transaction:
            with suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
        code = getattr(error, "sqlite_errorcode", None)
        if code is not None and code & 0xFF in _BROKEN:
            self._put_aside(error)

    def _put_aside(self, error: BaseException) -> None:
        self._let_go(keep_file=True)
        date = datetime.fromtimestamp(self._wall_time(), UTC).strftime("%Y%m%dT%H%M%SZ")
        aside = f"{self._path}.broken-{date}"
        os.rename(self._path, aside)
        for suffix in ("-wal", "-shm"):
            with suppress(FileNotFoundError):
                os.rename(self._path + suffix, aside + suffix)
        self.notices.append(
            f"The ledger {self._path} is broken ({error}); it was renamed to {aside}, and a new one is begun."
        )

    def _let_go(self, keep_file: bool = False) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()
        if not keep_file and not os.path.exists(self._path):
            self._remove_journals()

    def _remove_journals(self) -> None:
        for suffix in ("-wal", "-shm"):
            with suppress(FileNotFoundError):
                os.unlink(self._path + suffix)


def connect_read_only(path: str) -> sqlite3.Connection:
    """A connection that can change nothing, also while the proxy writes. Raises sqlite3.Error if there is no file."""
    return sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro", uri=True, timeout=5.0, isolation_level=None)
