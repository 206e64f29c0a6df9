"""Checks a ledger: that it can be read, that nothing is in it twice, and that its sums are those of its rows.

The rule: nothing is changed by checking, and the proxy may write meanwhile.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from typing import Final

from llmproxy.state.ledger.backend import LedgerError
from llmproxy.state.ledger.jsonl import (
    NO_ROW,
    day_files,
    day_of,
    decode_row,
    lines_of,
    removed_days,
    while_days_are_removed,
)
from llmproxy.state.ledger.query import BackendName, Progress, opened
from llmproxy.state.ledger.sums import DAY_NS, SUMMED

_COMPLAINTS_MAX: Final = 20
"""What is broken in a thousand places need not be told a thousand times."""

_LINES_A_STEP: Final = 2000

_ROWS_BY_DAY: Final = """
    SELECT date(time_ns / 1000000000, 'unixepoch') AS day, provider, coalesce(nullif(model, ''), model_asked, ''),
        coalesce(user, ''), coalesce(credential_id, ''), source, batch, count(*),
        sum(status >= 400 OR status = 0 OR coalesce(error_class, '') <> ''),
        sum(cost_nano_usd IS NULL AND source <> 'none'),
        {sums}, coalesce(sum(cost_nano_usd), 0)
    FROM requests WHERE time_ns >= ? GROUP BY 1, 2, 3, 4, 5, 6, 7
""".format(sums=", ".join(f"sum({name})" for name in SUMMED[3:-1]))
_DAYS: Final = f"""
    SELECT day, provider, model, user, credential_id, source, batch, {", ".join(SUMMED)} FROM days WHERE day >= ?
"""


def verify(backend: BackendName, path: str, progress: Progress | None = None) -> list[str]:
    """What is wrong with a ledger, a sentence each; [] if nothing is. Raises LedgerError if it cannot be read."""
    try:
        if backend == "sqlite":
            found = _verify_sqlite(path, progress)
        else:
            found = while_days_are_removed(lambda: _verify_jsonl(path, progress))
    except OverflowError as error:
        return [f"{path} has a number that is none of 64 bits: {error}."]
    except sqlite3.DatabaseError as error:
        if str(error) == "integer overflow":  # of sum() (sqlite.org/lang_aggfunc.html)
            return [f"{path} has a sum that is none of 64 bits: {error}."]
        if isinstance(error, sqlite3.OperationalError):
            raise LedgerError(f"The ledger {path} cannot be read: {error}.") from error
        return [f"{path} is broken: {error}."]
    except OSError as error:
        raise LedgerError(f"The ledger {path} cannot be read: {error}.") from error
    if len(found) > _COMPLAINTS_MAX:
        found[_COMPLAINTS_MAX:] = [f"and {len(found) - _COMPLAINTS_MAX} more."]
    return found


def _verify_sqlite(path: str, progress: Progress | None) -> list[str]:
    with closing(opened(path)) as connection:
        if progress is not None:
            tell = progress
            connection.set_progress_handler(lambda: tell(0, 0), 100_000)
        connection.execute("BEGIN")
        found = [
            f"{path}: {words}."
            for (words,) in connection.execute(f"PRAGMA integrity_check({_COMPLAINTS_MAX})")
            if words != "ok"
        ]
        if found:
            return found
        doubles = connection.execute("SELECT request_id FROM requests GROUP BY request_id HAVING count(*) > 1")
        found += [f"The request {request_id} is in {path} more than once." for (request_id,) in doubles]
        (removed_before_ns,) = connection.execute("SELECT value FROM meta WHERE name = 'removed_before_ns'").fetchone()
        since_ns = -(-removed_before_ns // DAY_NS) * DAY_NS
        rows = {tuple(row[:7]): tuple(row[7:]) for row in connection.execute(_ROWS_BY_DAY, (since_ns,))}
        days = {tuple(row[:7]): tuple(row[7:]) for row in connection.execute(_DAYS, (day_of(since_ns),))}
    for key in sorted(rows.keys() | days.keys()):
        if rows.get(key) != days.get(key):
            found.append(f"The sums of {' '.join(map(str, key))} are {days.get(key)}, its rows make {rows.get(key)}.")
    return found


def _verify_jsonl(folder: str, progress: Progress | None) -> list[str]:
    if not os.path.isdir(folder):
        raise LedgerError(f"There is no ledger at {folder}; the proxy makes it when it starts.")
    found: list[str] = []
    removing = removed_days(folder).removing
    files = [each for each in day_files(folder) if os.path.basename(each.path) not in removing]
    total_bytes = sum(os.path.getsize(each.path) for each in files)
    done_bytes = 0
    there: set[str] = set()
    for file in files:
        for number, line in enumerate(lines_of(file.path), 1):
            done_bytes += len(line)
            if progress is not None and not number % _LINES_A_STEP:
                progress(done_bytes, total_bytes)
            try:
                row = decode_row(line)
                day = day_of(row.time_ns)
            except (*NO_ROW, OverflowError, OSError) as error:  # the last two: of a time that no calendar has
                found.append(f"{file.path}, line {number} is no row: {error}.")
                continue
            if row.request_id in there:
                found.append(f"{file.path}, line {number}: the request {row.request_id} is there more than once.")
            there.add(row.request_id)
            if day != file.day:
                found.append(f"{file.path}, line {number}: the row is of {day}, and in the wrong file.")
    return found
