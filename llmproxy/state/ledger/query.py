"""Asks the ledger what was used and what it cost, while the proxy writes it: one interface over both backends.

The rules: nothing is changed by asking. Whole UTC days are taken from the sums that are kept for ever, the rest from
rows; so an answer is complete for as long as there are rows for its first and its last day; if there are not,
`Answer.left_out` says so.
"""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from operator import add
from typing import Final, Literal, TypeAlias

import msgspec

from llmproxy.state.ledger.backend import LedgerError
from llmproxy.state.ledger.jsonl import (
    NO_ROW,
    DayFile,
    day_files,
    day_of,
    decode_row,
    lines_of,
    removed_days,
    while_days_are_removed,
)
from llmproxy.state.ledger.row import Row
from llmproxy.state.ledger.schema import SCHEMA, version_of
from llmproxy.state.ledger.sqlite import connect_read_only
from llmproxy.state.ledger.sums import DAY_NS, HOUR_NS, SUMMED, Sums, of_row

BackendName: TypeAlias = Literal["sqlite", "jsonl"]
Progress: TypeAlias = Callable[[int, int], None]
"""Is told how much is done, and of how much; 0 if that is not known."""

GROUPS: Final = ("user", "key", "model", "provider", "day", "hour", "source", "none")

_END_NS: Final = 2**63 - 1
"""The last time that SQLite has a number for, in the year 2262."""

_LINES_A_STEP: Final = 2000

_ONCE_DAYS: Final = 7
"""What is polled is days old at most."""
_ONCE_BYTES_MAX: Final = 32 * 1024 * 1024
"""Of JSON lines so much is read at the start of the proxy: it takes a fraction of a second."""


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for.

    by: one of GROUPS. since_ns, until_ns: from and up to that time, in nanoseconds since 1970.
    user, model, provider: exactly these; model is the one as answered, or as asked where none was. key: a credential
    id, or what it begins with. None: any.
    """

    by: str = "none"
    since_ns: int = 0
    until_ns: int = _END_NS
    user: str | None = None
    key: str | None = None
    model: str | None = None
    provider: str | None = None


class Answer(msgspec.Struct):
    """Sums by the name of the group, in the order of days and hours, else dearest first; and the sums of all.

    rows_since_ns: the time of the oldest row that is kept; None if there is none.
    left_out: days of which a part was asked for whose rows are gone, so that it is not in the sums.
    """

    groups: dict[str, Sums]
    total: Sums
    rows_since_ns: int | None
    left_out: list[str] = []


def ask(backend: BackendName, path: str, question: Question, progress: Progress | None = None) -> Answer:
    """Sum up what is asked for. Raises LedgerError, in words, if the ledger cannot be read."""
    if question.by not in GROUPS:
        raise ValueError(f"no such group: {question.by}")
    try:
        if backend == "sqlite":
            return _ask_sqlite(path, question, progress)
        return while_days_are_removed(lambda: _ask_jsonl(path, question, progress))
    except (OSError, OverflowError, sqlite3.Error) as error:
        raise LedgerError(f"The ledger {path} cannot be read: {error}.") from error


class _Found:
    """Sums by group and source while they are added up."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, str], Sequence[int]] = {}

    def add(self, group: str, source: str, values: Sequence[int]) -> None:
        key = (group, source)
        there = self._sums.get(key)
        self._sums[key] = values if there is None else tuple(map(add, there, values))

    def answer(self, by: str, rows_since_ns: int | None, left_out: list[str]) -> Answer:
        groups: dict[str, Sums] = {}
        total = Sums()
        for (group, source), values in self._sums.items():
            groups.setdefault(group, Sums()).add(values, source)
            total.add(values, source)
        names = sorted(groups)
        if by not in ("day", "hour"):
            names.sort(key=lambda name: (-groups[name].cost_nano_usd, -groups[name].tokens))
        return Answer({name: groups[name] for name in names}, total, rows_since_ns, left_out)


# -- SQLite --------------------------------------------------------------------------------------------------

_SUMS_OF_DAYS: Final = ", ".join(f"sum({name})" for name in SUMMED)
_EXPRESSIONS: Final = {
    "requests": "count(*)",
    "errors": "sum(status >= 400 OR status = 0 OR coalesce(error_class, '') <> '')",
    "unpriced": "sum(cost_nano_usd IS NULL AND source <> 'none')",
    "cost_nano_usd": "coalesce(sum(cost_nano_usd), 0)",
}
_SUMS_OF_ROWS: Final = ", ".join(_EXPRESSIONS.get(name, f"sum({name})") for name in SUMMED)
_MODEL_OF_ROWS: Final = "coalesce(nullif(model, ''), model_asked, '')"
_DAY_GROUPS: Final = {
    "user": "user",
    "key": "credential_id",
    "model": "model",
    "provider": "provider",
    "day": "day",
    "source": "source",
    "none": "''",
}
_ROW_GROUPS: Final = {
    "user": "coalesce(user, '')",
    "key": "coalesce(credential_id, '')",
    "model": _MODEL_OF_ROWS,
    "provider": "provider",
    "day": "date(time_ns / 1000000000, 'unixepoch')",
    "hour": "strftime('%Y-%m-%dT%H:00', time_ns / 1000000000, 'unixepoch')",
    "source": "source",
    "none": "''",
}


def opened(path: str) -> sqlite3.Connection:
    """A read-only connection to a ledger that this program knows. Raises LedgerError or sqlite3.Error."""
    if not os.path.exists(path):
        raise LedgerError(f"There is no ledger at {path}; the proxy makes it when it starts.")
    connection = connect_read_only(path)
    try:
        version = version_of(connection, path)
        if version != SCHEMA:
            raise LedgerError(
                f"The ledger {path} has schema {version}, this llmproxy reads {SCHEMA}; start the proxy once, which "
                "brings it up to date."
            )
    except BaseException:
        connection.close()
        raise
    return connection


def _ask_sqlite(path: str, question: Question, progress: Progress | None) -> Answer:
    found = _Found()
    first_ns, last_ns = _whole_days(question)
    with closing(opened(path)) as connection:
        if progress is not None:
            tell = progress
            connection.set_progress_handler(lambda: tell(0, 0), 100_000)
        connection.execute("BEGIN")  # both parts see the same rows
        if first_ns < last_ns:
            days = f"SELECT {_DAY_GROUPS[question.by]}, source, {_SUMS_OF_DAYS} FROM days WHERE day >= ? AND day < ?"
            _add_up(connection, found, days, "model", question, [day_of(first_ns), day_of(last_ns)])
        for since_ns, until_ns in _edges(question, first_ns, last_ns):
            rows = (
                f"SELECT {_ROW_GROUPS[question.by]}, source, {_SUMS_OF_ROWS} FROM requests "
                "WHERE time_ns >= ? AND time_ns < ?"
            )
            _add_up(connection, found, rows, _MODEL_OF_ROWS, question, [since_ns, until_ns])
        (oldest_ns,) = connection.execute("SELECT min(time_ns) FROM requests").fetchone()
        (gone_ns,) = connection.execute("SELECT value FROM meta WHERE name = 'removed_before_ns'").fetchone()
        left_out = [
            day
            for day in _partial_days(question, first_ns, last_ns)
            if day < day_of(gone_ns) and connection.execute("SELECT 1 FROM days WHERE day = ?", (day,)).fetchone()
        ]
    return found.answer(question.by, oldest_ns if oldest_ns is None else int(oldest_ns), left_out)


def _add_up(
    connection: sqlite3.Connection, found: _Found, sql: str, model: str, question: Question, values: list[object]
) -> None:
    for column, value in (("user", question.user), (model, question.model), ("provider", question.provider)):
        if value is not None:
            sql += f" AND coalesce({column}, '') = ?"
            values.append(value)
    if question.key is not None:
        sql += " AND substr(coalesce(credential_id, ''), 1, ?) = ?"
        values += [len(question.key), question.key]
    for group, source, *sums in connection.execute(sql + " GROUP BY 1, 2", values):
        found.add(group, source, sums)


def _whole_days(question: Question) -> tuple[int, int]:
    """From and up to which time the question is about whole days. The same time twice if it is about none."""
    first_ns = -(-question.since_ns // DAY_NS) * DAY_NS
    last_ns = question.until_ns // DAY_NS * DAY_NS
    if question.by == "hour" or first_ns >= last_ns:
        return question.since_ns, question.since_ns
    return first_ns, last_ns


def _edges(question: Question, first_ns: int, last_ns: int) -> Iterator[tuple[int, int]]:
    for since_ns, until_ns in ((question.since_ns, first_ns), (last_ns, question.until_ns)):
        if since_ns < until_ns:
            yield since_ns, until_ns


def _partial_days(question: Question, first_ns: int, last_ns: int) -> list[str]:
    """The days of which not the whole is asked for. By the hour it is nothing but rows anyway."""
    if question.by == "hour":
        return []
    edges = [edge for edge in _edges(question, first_ns, last_ns) if edge[0] < _END_NS // DAY_NS * DAY_NS]
    return sorted({day_of(time_ns) for since_ns, until_ns in edges for time_ns in (since_ns, until_ns - 1)})


# -- JSON lines ----------------------------------------------------------------------------------------------


def _ask_jsonl(folder: str, question: Question, progress: Progress | None) -> Answer:
    if not os.path.isdir(folder):
        raise LedgerError(f"There is no ledger at {folder}; the proxy makes it when it starts.")
    files = day_files(folder)
    days = removed_days(folder)  # after the list: a day that is removed in between is found missing, or is in here
    files = [each for each in files if os.path.basename(each.path) not in days.removing]
    found = _Found()
    first_ns, last_ns = _whole_days(question)
    gone = {key.day for key in days.sums}
    left_out = [day for day in _partial_days(question, first_ns, last_ns) if day in gone]
    if first_ns < last_ns:
        first_day, last_day = day_of(first_ns), day_of(last_ns)
        for key, sums in days.sums.items():
            names = {
                "user": key.user,
                "key": key.credential_id,
                "model": key.model,
                "provider": key.provider,
                "day": key.day,
                "source": key.source,
                "none": "",
            }
            if first_day <= key.day < last_day and _is_asked_for(
                question, key.user, key.credential_id, key.model, key.provider
            ):
                found.add(names[question.by], key.source, sums)
    since_day, until_day = day_of(question.since_ns), day_of(question.until_ns)
    asked = [each for each in files if since_day <= each.day <= until_day]
    total_bytes = sum(os.path.getsize(each.path) for each in asked)
    done_bytes = 0
    for file in asked:
        for number, line in enumerate(lines_of(file.path)):
            done_bytes += len(line)
            if progress is not None and not number % _LINES_A_STEP:
                progress(done_bytes, total_bytes)
            try:
                row = decode_row(line)
            except NO_ROW:
                continue  # `usage --verify` tells it
            if question.since_ns <= row.time_ns < question.until_ns and _is_asked_for(
                question, row.user or "", row.credential_id or "", row.group_model, row.provider
            ):
                found.add(_group_of(row, question.by, file.day), row.source, of_row(row))
    return found.answer(question.by, _oldest_ns(files), left_out)


def _oldest_ns(files: Sequence[DayFile]) -> int | None:
    """The time of the oldest row; None if there is none."""
    for line in lines_of(files[0].path) if files else ():
        try:
            return decode_row(line).time_ns
        except NO_ROW:
            continue
    return None


def _is_asked_for(question: Question, user: str, credential_id: str, model: str, provider: str) -> bool:
    return (
        (question.user is None or user == question.user)
        and (question.key is None or credential_id.startswith(question.key))
        and (question.model is None or model == question.model)
        and (question.provider is None or provider == question.provider)
    )


def _group_of(row: Row, by: str, day: str) -> str:
    match by:
        case "user":
            return row.user or ""
        case "key":
            return row.credential_id or ""
        case "model":
            return row.group_model
        case "provider":
            return row.provider
        case "day":
            return day
        case "hour":
            return f"{day}T{row.time_ns % DAY_NS // HOUR_NS:02d}:00"
        case "source":
            return row.source
        case _:
            return ""


# -- what was counted once -----------------------------------------------------------------------------------


def counted_once(backend: BackendName, path: str, names_max: int) -> list[str]:
    """The latest values of `Row.once`, oldest first: what must not be counted again after a restart.

    [] if there is no ledger yet. Of JSON lines the newest days are read, and of them so much as does not take long.
    Raises LedgerError if the ledger cannot be read.
    """
    try:
        if backend == "sqlite":
            return _counted_once_sqlite(path, names_max)
        return while_days_are_removed(lambda: _counted_once_jsonl(path, names_max))
    except (OSError, sqlite3.Error) as error:
        raise LedgerError(f"The ledger {path} cannot be read: {error}.") from error


# Nearly all rows have no such name. SQLite would look at every row, because the table is in the order of the id.
_COUNTED_ONCE: Final = (
    "SELECT once FROM requests INDEXED BY requests_once WHERE once IS NOT NULL ORDER BY id DESC LIMIT ?"
)


def _counted_once_sqlite(path: str, names_max: int) -> list[str]:
    if not os.path.exists(path):
        return []
    with closing(connect_read_only(path)) as connection:
        if version_of(connection, path) < SCHEMA:
            return []
        return [once for (once,) in connection.execute(_COUNTED_ONCE, (names_max,))][::-1]


def _counted_once_jsonl(folder: str, names_max: int) -> list[str]:
    files = day_files(folder)
    days = sorted({file.day for file in files})[-_ONCE_DAYS:]
    by_file: list[list[str]] = []  # newest first
    left_bytes = _ONCE_BYTES_MAX
    for file in reversed(files):
        if file.day not in days or left_bytes <= 0:
            break
        with open(file.path, "rb") as opened:
            size_bytes = opened.seek(0, os.SEEK_END)
            if opened.seek(max(size_bytes - left_bytes, 0)):
                opened.readline()  # half a line
            by_file.append(_names_of(opened))
        left_bytes -= size_bytes
    return list(dict.fromkeys(name for names in reversed(by_file) for name in names))[-names_max:]


def _names_of(lines: Iterable[bytes]) -> list[str]:
    names: list[str] = []
    for line in lines:
        if b'"once":' in line:
            try:
                once = decode_row(line).once
            except NO_ROW:
                continue  # one line that somebody has damaged
            if once is not None:
                names.append(once)
    return names


# -- times ---------------------------------------------------------------------------------------------------

_AGO: Final = re.compile(r"(\d{1,5})([dh])")


def moment_ns(text: str, now_s: float, *, is_end: bool = False) -> int:
    """A time as it is written on the command line, in nanoseconds since 1970; all are UTC.

    `2026-11-24`, `2026-11-24T10:00`, `today`, `yesterday`, `month` (this one), `7d` and `24h` (that long ago). A day or
    a month is its beginning, or, with is_end, its end: --until 2026-11-24 has all of that day.

    Raises ValueError, in words.
    """
    now = datetime.fromtimestamp(now_s, UTC)
    today = now.replace(hour=0, minute=0, second=0, microsecond=0)
    if match := _AGO.fullmatch(text):
        ago_s = int(match[1]) * (86_400 if match[2] == "d" else 3_600)
        return max(int(now_s) - ago_s, 0) * 10**9
    length = timedelta(days=1)
    match text:
        case "today":
            start = today
        case "yesterday":
            start = today - length
        case "month":
            start = today.replace(day=1)
            length = (start + timedelta(days=31)).replace(day=1) - start
        case _:
            try:
                start = datetime.fromisoformat(text)
            except ValueError:
                raise ValueError(
                    f"{text!r} is no time; write 2026-11-24, 2026-11-24T10:00, 7d, 24h, today, yesterday or month"
                ) from None
            if start.tzinfo is None:
                start = start.replace(tzinfo=UTC)
            if len(text) > len("2026-11-24"):
                length = timedelta()
    try:
        seconds = (start + length if is_end else start) - datetime(1970, 1, 1, tzinfo=UTC)
    except OverflowError:
        raise ValueError(f"{text!r} is beyond the calendar; leave --until away for all that is there") from None
    return min(max(seconds // timedelta(microseconds=1), 0) * 1000, _END_NS)
