"""Takes rows in the reactor's thread and has one thread of its own write them.

The rules: `add` never waits and never raises, whatever the disk does. What waits for the disk is bounded; beyond that
rows are dropped and counted. A row that was taken is written once, after however many failures; what is not yet
written when the process is killed is what came in the last `flush_s`. The thread shares one interpreter with the
reactor: it works in small steps with pauses between them, so that no request waits for many rows.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from math import inf
from typing import Final

from llmproxy.state.ledger.backend import Backend, LedgerError
from llmproxy.state.ledger.row import Row, make_storable

MAX_QUEUED_BYTES: Final = 64 * 1024 * 1024

_ROW_BYTES: Final = 640
"""About what a row takes in memory, without the texts that others chose."""

# Of these the thread makes one transaction. 500 at once, and the next 500 at once after them, cost the same CPU, and
# at 5,000 requests a second held up one request in five for 10 ms and more: the reactor waits for the interpreter's
# lock after each of its system calls.
_STEP_ROWS: Final = 64
_FLUSHES: Final = 2
"""So often in `flush_s` rows are taken from the queue: what is taken has the other half of that time to be written."""
_SPREAD: Final = 0.8
"""The share of that half that the steps are spread over."""
_BACK_OFF_MAX_S: Final = 10.0
_PAUSE_S: Final = 0.02
"""Between two steps of removing old rows, for the disk's sake."""
_CLOSING_PAUSE_S: Final = 0.05
"""Between two attempts to write what is left at the end."""
_CLOSING_SHARE: Final = 0.9
"""Of the time that `close` has: so long it is tried to write what is left; the rest is for closing the files."""

# sqlite3 raises the plain DatabaseError for a broken file; its subclasses but for these are about the values of a row.
_STORAGE_ERRORS: Final = (OSError, LedgerError, sqlite3.OperationalError, sqlite3.InternalError)


class LedgerWriter:
    """Writes rows to a backend.

    :param backend: where they go. Only the writer's thread uses it, from `start` to the end.
    :param told: is told what the operator has to know, a sentence at a time: when writing begins to fail, when it goes
        on, and what the backend put right.
    :param in_reactor: calls `told` in its thread: `reactor.callFromThread`.
    :param flush_s: so long rows wait for others to be written with.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        told: Callable[[str], None],
        in_reactor: Callable[[Callable[[str], None], str], object],
        flush_s: float = 0.5,
        max_queued_rows: int = 100_000,
        max_queued_bytes: int = MAX_QUEUED_BYTES,
    ) -> None:
        self._backend = backend
        self._told = told
        self._in_reactor = in_reactor
        self._flush_s = flush_s
        self._max_queued_rows = max_queued_rows
        self._max_queued_bytes = max_queued_bytes
        # A deque is safe to append to in one thread and to take from in another. Each number below is changed by one
        # thread only, so that none needs a lock.
        self._rows: deque[tuple[Row, int]] = deque()  # with about its size in bytes
        self._added = self._added_bytes = self._overflowed = 0
        self._left = self._left_bytes = self._written = self._refused = 0
        self._error: str | None = None
        self._closing = threading.Event()
        self._deadline_s = inf  # of the monotonic clock; set before `_closing` is
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def add(self, row: Row) -> None:
        """Take a row; it may be changed from now on. Never waits, never raises."""
        size = _size(row)
        if (
            self._added - self._left >= self._max_queued_rows
            or self._added_bytes - self._left_bytes + size > self._max_queued_bytes
            or self._closing.is_set()
        ):
            self._overflowed += 1
            return
        self._added += 1
        self._added_bytes += size
        self._rows.append((row, size))

    def state(self) -> dict[str, object]:
        """How it is, for the health page: backend, state ("ok", "failing"), error, queued, written, dropped.

        After `close` nothing is queued: what was not written is dropped.
        """
        error = self._error
        queued, unwritten = self._added - self._left, self.unwritten
        return {
            "backend": self._backend.name,
            "state": "ok" if error is None else "failing",
            "error": error,
            "queued": queued - unwritten,
            "written": self._written,
            "dropped": self._overflowed + self._refused + unwritten,
        }

    @property
    def unwritten(self) -> int:
        """Rows that were taken, and are not written although the writer was closed."""
        return self._added - self._left if self._closing.is_set() else 0

    def close(self, timeout_s: float) -> bool:
        """Write what is queued, and end: a disk that fails is tried again for as long as there is time.

        Waits at most `timeout_s`. Returns whether all was written; `unwritten` says how many rows were not.
        """
        self._deadline_s = self._backend.deadline_s = time.monotonic() + timeout_s * _CLOSING_SHARE
        self._closing.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive() and self._added == self._left

    # -- in the thread ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        flush_s = wait_s = self._flush_s / _FLUSHES
        self._try_out()  # so that what is wrong is told at the start, and not at the first request
        while True:
            closing = self._closing.wait(wait_s)
            begun_s = time.monotonic()
            if self._write_queued(flush_s * _SPREAD) and self._tend(closing):
                wait_s = max(flush_s - (time.monotonic() - begun_s), 0.0)
            else:
                # As long as the disk fails, each attempt costs it something too.
                wait_s = min(max(wait_s * 2, 0.05), _BACK_OFF_MAX_S)
            if closing:
                if not self._rows or time.monotonic() >= self._deadline_s:
                    break
                time.sleep(_CLOSING_PAUSE_S)
        try:
            self._backend.close()
        except Exception as error:  # noqa: BLE001 - as above
            self._fails(error)

    def _write_queued(self, spread_s: float) -> bool:
        """Write what is queued now, in steps over `spread_s`, or longer if that is not enough.

        Returns whether that went well; if not, the rows are still there.
        """
        rows = self._rows
        left = len(rows)
        pause_s = spread_s * _STEP_ROWS / max(left, 1)
        while left:
            if time.monotonic() >= self._deadline_s:
                return False
            # They stay in the queue until they are written. Only this thread takes rows, so the first ones stay the
            # first ones; a copy by index does not care that others are appended.
            step = [rows[index][0] for index in range(min(left, _STEP_ROWS))]
            if not self._write(step):
                return False
            left -= len(step)
            if left:
                self._closing.wait(pause_s)
        if self._error is not None:
            return self._try_out()
        return True

    def _try_out(self) -> bool:
        """Open the ledger, or see whether it can be written again, with no row."""
        try:
            self._backend.write(())
        except Exception as error:  # noqa: BLE001 - as above
            self._fails(error)
            return False
        self._goes_on()
        return True

    def _write(self, batch: list[Row]) -> bool:
        try:
            storable = [_storable(row) for row in batch]
            self._backend.write(storable)
        except Exception as error:  # noqa: BLE001 - a row that cannot be written must not keep the others from it
            if not _is_of_storage(error):
                return self._write_one_by_one(batch)
            self._fails(error)
            return False
        self._drop_first(len(batch), 0)
        self._goes_on()
        return True

    def _drop_first(self, count: int, refused: int) -> None:
        """So many rows are done with: written, but for those that were refused."""
        for _ in range(count):
            self._left_bytes += self._rows.popleft()[1]
        self._left += count
        self._written += count - refused
        self._refused += refused

    def _write_one_by_one(self, batch: list[Row]) -> bool:
        """Write what can be written of a batch with a row that cannot be. Nothing of it was written before."""
        refused, why = 0, ""
        for index, row in enumerate(batch):
            try:
                self._backend.write((_storable(row),))
            except Exception as error:  # noqa: BLE001 - if it is the row, it is dropped, counted and told
                if _is_of_storage(error):
                    self._drop_first(index, refused)
                    self._fails(error)
                    return False
                refused, why = refused + 1, str(error)
        self._drop_first(len(batch), refused)
        self._say(f"The ledger cannot hold {refused} of {len(batch)} rows; they are dropped ({why}).")
        self._goes_on()
        return True

    def _tend(self, closing: bool) -> bool:
        try:
            while not closing and self._backend.tend() and not self._rows:
                closing = self._closing.wait(_PAUSE_S)
        except Exception as error:  # noqa: BLE001 - whatever it is, writing goes on
            self._fails(error)
            return False
        self._pass_notices_on()
        return True

    def _fails(self, error: Exception) -> None:
        words = str(error) if isinstance(error, LedgerError) else f"{type(error).__name__}: {error}"
        self._pass_notices_on()
        if self._error is None:
            self._say(
                f"The ledger cannot be written ({words.rstrip('.')}); rows wait in memory, "
                f"{self._max_queued_rows} at most."
            )
        self._error = words

    def _goes_on(self) -> None:
        self._pass_notices_on()
        if self._error is not None:
            self._error = None
            self._say("The ledger is written again.")

    def _pass_notices_on(self) -> None:
        notices = self._backend.notices
        while notices:
            self._say(notices.pop(0))

    def _say(self, words: str) -> None:
        try:
            self._in_reactor(self._told, words)
        except Exception:  # noqa: BLE001, S110 - a log that fails does not end the ledger
            pass


def _storable(row: Row) -> Row:
    make_storable(row)
    return row


def _is_of_storage(error: Exception) -> bool:
    """Whether it may be over the next time; else it is the row that cannot be written."""
    return isinstance(error, _STORAGE_ERRORS) or type(error) is sqlite3.DatabaseError


def _size(row: Row) -> int:
    # The texts that can be long. Others have bounds where they come from.
    parts, user, model, once = row.parts, row.user, row.model, row.once
    return (
        _ROW_BYTES
        + (len(parts) if parts is not None else 0)
        + (len(user) if user is not None else 0)
        + (len(model) if model is not None else 0)
        + (len(once) if once is not None else 0)
    )
