"""The ledger in files of JSON lines, one or more for each UTC day, which any tool can read.

The rules: a line is one row and is there whole or not at all; a line that a crash has cut off is taken away before the
next one is written. One process writes. When a day's files are removed, its sums are kept in `days.jsonl`, which is
replaced as a whole. Who changes files of others holds `rewrite.lock` while he does.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from math import inf
from typing import Final, NamedTuple, TypeVar

import msgspec

from llmproxy.state.ledger.backend import LedgerError
from llmproxy.state.ledger.row import Row
from llmproxy.state.ledger.sums import DAY_NS, DayKey, added, day_key, of_row

DAYS_FILE: Final = "days.jsonl"
_WRITER_LOCK: Final = "ledger.lock"
_REWRITE_LOCK: Final = "rewrite.lock"
_NAME: Final = re.compile(r"ledger-(\d{4}-\d{2}-\d{2})(?:-(\d{1,6}))?\.jsonl")
_REST_NS: Final = 60 * 10**9
_TRY_S: Final = 0.02
_REWRITE_S: Final = 10.0
"""The largest file takes a few seconds."""
_TAIL_BYTES: Final = 1 << 20
"""A row is far shorter than this."""
_GONE_TRIES: Final = 100
_GONE_PAUSE_S: Final = 0.05

_encode_into: Final = msgspec.json.Encoder().encode_into
_encode: Final = msgspec.json.Encoder().encode
decode_row: Final = msgspec.json.Decoder(Row).decode

NO_ROW: Final = (msgspec.MsgspecError, ValueError, RecursionError)
"""What `decode_row` raises for a line that is none: of another form, no UTF-8, nested too deeply."""

_T = TypeVar("_T")


class DayFile(NamedTuple):
    """A file of rows: its day as text, its number in that day, its path."""

    day: str
    number: int
    path: str


class RemovedDays(msgspec.Struct):
    """The content of days.jsonl.

    removing: names of files whose rows are in the sums, and which may still be there if a crash came between.
    """

    sums: dict[DayKey, tuple[int, ...]]
    removing: frozenset[str] = frozenset()


class _Head(msgspec.Struct):
    removing: list[str] = []


_decode_head: Final = msgspec.json.Decoder(_Head).decode
_decode_day: Final = msgspec.json.Decoder(tuple[DayKey, tuple[int, ...]]).decode


def day_of(time_ns: int) -> str:
    """The UTC day of a time: `2026-11-24`."""
    return datetime.fromtimestamp(time_ns // 10**9, UTC).strftime("%Y-%m-%d")


def day_files(folder: str) -> list[DayFile]:
    """The files of rows in a folder, oldest first; [] if there is no folder."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    matches = filter(None, map(_NAME.fullmatch, names))
    return sorted(DayFile(match[1], int(match[2] or 0), os.path.join(folder, match[0])) for match in matches)


def lines_of(path: str) -> Iterator[bytes]:
    """The whole lines of a file; one without its end was cut off, or is being written."""
    with open(path, "rb") as opened:
        for line in opened:
            if line.endswith(b"\n"):
                yield line


def while_days_are_removed(read: Callable[[], _T]) -> _T:
    """What `read` returns: it is called again if a file that it wants to read was removed since it listed them.

    The oldest ones are removed, one after the other, and read first, so that little is read in vain. Raises what `read`
    does; FileNotFoundError if that goes on for some seconds.
    """
    for _ in range(_GONE_TRIES):
        try:
            return read()
        except FileNotFoundError:
            time.sleep(_GONE_PAUSE_S)
    return read()


def removed_days(folder: str) -> RemovedDays:
    """What is known of days whose rows are gone. Raises LedgerError if the file is damaged."""
    path = os.path.join(folder, DAYS_FILE)
    try:
        with open(path, "rb") as opened:
            head, *lines = opened.read().splitlines() or [b"{}"]
        return RemovedDays(dict(map(_decode_day, lines)), frozenset(_decode_head(head).removing))
    except FileNotFoundError:
        return RemovedDays({})
    except msgspec.MsgspecError as error:
        raise LedgerError(f"{path} is damaged ({error}); move it away, the sums of removed days are in it.") from error


def replace_file(path: str, pieces: Iterator[bytes], is_wanted: Callable[[], bool] = lambda: True) -> None:
    """Write a file anew (mode 600): the old one stays until all of the new one is on the disk.

    is_wanted: asked at the end; if not, all stays as it was.
    """
    draft = f"{path}.{os.getpid()}.{secrets.token_hex(4)}.new"
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as opened:
            opened.writelines(pieces)
            opened.flush()
            os.fsync(descriptor)
        if is_wanted():
            os.rename(draft, path)
        else:
            os.unlink(draft)
    except BaseException:
        os.unlink(draft)
        raise


@contextmanager
def rewriting(folder: str, is_over: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Nobody else changes files in the folder meanwhile.

    is_over: whether there is no more time to wait. Raises LedgerError if somebody does for long, or until then.
    """
    descriptor = os.open(os.path.join(folder, _REWRITE_LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _lock(descriptor, f"Files in {folder} are being rewritten; this waits until that is done.", _REWRITE_S, is_over)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, words: str, patience_s: float = 0.0, is_over: Callable[[], bool] = lambda: False) -> None:
    tries = int(patience_s / _TRY_S) + 1
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            tries -= 1
            if not tries or is_over():
                raise LedgerError(words) from None
        time.sleep(_TRY_S)


class _Open(NamedTuple):
    file: DayFile
    descriptor: int
    identity: tuple[int, int]


class JsonlLedger:
    """Keeps rows in the files of a folder. See backend.Backend.

    :param folder: it is made if it is not there (mode 700).
    :param keep_days: files of days before that are removed, their sums kept; 0 for none.
    :param wall_time: the time in seconds since 1970.
    :param max_file_bytes: a file that is larger is followed by another one.
    """

    name = "jsonl"

    def __init__(
        self, folder: str, *, keep_days: int, wall_time: Callable[[], float], max_file_bytes: int = 256 * 1024 * 1024
    ) -> None:
        self.notices: list[str] = []
        self.deadline_s = inf
        self._folder = folder
        self._keep_days = keep_days
        self._wall_time = wall_time
        self._max_file_bytes = max_file_bytes
        self._lock: int | None = None
        self._open: dict[str, _Open] = {}  # by day
        self._tended_ns = 0
        self._may_be_half_removed = True  # after a crash, files may be there whose rows are in the sums

    def write(self, rows: Sequence[Row]) -> None:
        """Append the rows to the files of their days; if one cannot take them, none does."""
        self._hold_lock()
        texts: dict[str, bytearray] = {}
        for row in rows:
            text = texts.setdefault(day_of(row.time_ns), bytearray())
            _encode_into(row, text, -1)
            text += b"\n"
        done: list[tuple[int, int]] = []
        with rewriting(self._folder, self._is_over):
            self._finish_removing()
            try:
                for day, text in sorted(texts.items()):
                    descriptor = self._descriptor(day)
                    done.append((descriptor, os.fstat(descriptor).st_size))
                    if os.write(descriptor, text) != len(text):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except BaseException:
                try:
                    for descriptor, size_bytes in done:
                        os.ftruncate(descriptor, size_bytes)
                finally:
                    # A half line that could not be taken away is, when the file is opened again.
                    self._close_files()
                raise
        for day in sorted(self._open)[:-2]:
            os.close(self._open.pop(day).descriptor)

    def tend(self) -> bool:
        """Remove the oldest day, if it is too old, and keep its sums."""
        now_ns = int(self._wall_time() * 1e9)
        if not self._keep_days or 0 <= now_ns - self._tended_ns < _REST_NS:
            return False
        self._hold_lock()
        oldest = day_of((now_ns // DAY_NS - self._keep_days) * DAY_NS)
        with rewriting(self._folder, self._is_over):
            self._finish_removing()
            files = [each for each in day_files(self._folder) if each.day < oldest]
            if files:
                self._remove([each for each in files if each.day == files[0].day])
            else:
                self._tended_ns = now_ns
        return bool(files)

    def close(self) -> None:
        """Close the files, and let another process write."""
        self._close_files()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _is_over(self) -> bool:
        return time.monotonic() >= self.deadline_s

    # -- files -----------------------------------------------------------------------------------------------

    def _hold_lock(self) -> None:
        if self._lock is not None:
            return
        os.makedirs(self._folder, mode=0o700, exist_ok=True)
        descriptor = os.open(os.path.join(self._folder, _WRITER_LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _lock(descriptor, f"Another process writes the ledger in {self._folder}; set ledger.path to another one.")
        except BaseException:
            os.close(descriptor)
            raise
        self._lock = descriptor

    def _descriptor(self, day: str) -> int:
        """The file for the rows of a day that is open, has room, and is the one of that name."""
        there = self._open.get(day)
        if there is not None:
            status = os.fstat(there.descriptor)
            if _identity(there.file.path) == there.identity and status.st_size < self._max_file_bytes:
                return there.descriptor
            if status.st_size < self._max_file_bytes and not _is_repriced(there):
                self.notices.append(f"{there.file.path} was removed or replaced; rows go to the file of that name.")
            os.close(self._open.pop(day).descriptor)
        opened = self._open[day] = self._opened(day)
        return opened.descriptor

    def _opened(self, day: str) -> _Open:
        os.makedirs(self._folder, mode=0o700, exist_ok=True)
        numbers = [each.number for each in day_files(self._folder) if each.day == day]
        number = max(numbers, default=0)
        while True:
            name = f"ledger-{day}-{number}.jsonl" if number else f"ledger-{day}.jsonl"
            path = os.path.join(self._folder, name)
            descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._cut_half_line(descriptor, path)
            status = os.fstat(descriptor)
            if status.st_size < self._max_file_bytes:
                return _Open(DayFile(day, number, path), descriptor, (status.st_dev, status.st_ino))
            os.close(descriptor)
            number += 1

    def _cut_half_line(self, descriptor: int, path: str) -> None:
        size_bytes = os.fstat(descriptor).st_size
        start = max(size_bytes - _TAIL_BYTES, 0)
        tail = os.pread(descriptor, _TAIL_BYTES, start)
        if tail and not tail.endswith(b"\n"):
            os.ftruncate(descriptor, start + tail.rfind(b"\n") + 1)
            self.notices.append(f"{path} ended with half a line, which was taken away.")

    def _close_files(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1].descriptor)

    # -- retention -------------------------------------------------------------------------------------------

    def _remove(self, files: Sequence[DayFile]) -> None:
        sums = removed_days(self._folder).sums
        for file in files:
            for line in lines_of(file.path):
                try:
                    row = decode_row(line)
                except NO_ROW:
                    continue  # somebody wrote into the file; `usage --verify` tells it for as long as it is there
                key = day_key(row, file.day)
                sums[key] = added(sums[key], of_row(row)) if key in sums else of_row(row)
        self._may_be_half_removed = True
        self._write_days(RemovedDays(sums, frozenset(os.path.basename(file.path) for file in files)))
        self._finish_removing()

    def _finish_removing(self) -> None:
        """The sums are safe; now the files can go, and after them their names. No row goes into such a file."""
        if not self._may_be_half_removed:
            return
        days = removed_days(self._folder)
        for name in days.removing:
            try:
                os.unlink(os.path.join(self._folder, name))
            except FileNotFoundError:
                pass
        if days.removing:
            self._write_days(RemovedDays(days.sums))
        self._may_be_half_removed = False

    def _write_days(self, days: RemovedDays) -> None:
        def lines() -> Iterator[bytes]:
            yield _encode(_Head(sorted(days.removing))) + b"\n"
            for key, sums in sorted(days.sums.items(), key=lambda each: msgspec.structs.astuple(each[0])):
                yield _encode((key, sums)) + b"\n"

        replace_file(os.path.join(self._folder, DAYS_FILE), lines())


def _is_repriced(there: _Open) -> bool:
    """Whether the file of that name now has the rows of this one, with other prices (state/ledger/reprice.py)."""
    try:
        with open(there.file.path, "rb") as now:
            first = decode_row(now.readline())
        was = os.pread(there.descriptor, _TAIL_BYTES, 0)
        return first.request_id == decode_row(was[: was.find(b"\n") + 1]).request_id
    except (OSError, *NO_ROW):
        return False


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino
