"""The SQLite ledger: its schema and the way to it, broken files, and rows that are given twice."""

import os
import sqlite3
from contextlib import closing
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from llmproxy.state.ledger.backend import LedgerError
from llmproxy.state.ledger.query import _COUNTED_ONCE, Question, ask, counted_once
from llmproxy.state.ledger.row import COLUMNS
from llmproxy.state.ledger.schema import APPLICATION_ID, SCHEMA, STEPS
from llmproxy.state.ledger.sqlite import SqliteLedger, connect_read_only
from llmproxy.state.ledger.verify import verify
from tests.state.ledger_cases import DAY_S, NOON_S, Clock, made, row, written


class SqliteLedgerTests(SynchronousTestCase):
    """One file."""

    def ledger(self, keep_days: int = 90) -> tuple[SqliteLedger, str]:
        path = os.path.join(self.mktemp(), "ledger.sqlite")
        ledger = SqliteLedger(path, keep_days=keep_days, wall_time=Clock())
        self.addCleanup(ledger.close)
        return ledger, path

    def test_a_row_that_is_given_twice_is_counted_once(self) -> None:
        """After an error that left open whether a batch was written, it is written again, and nobody pays twice."""
        ledger, path = self.ledger()
        ledger.write([row(1), row(2)])
        ledger.write([row(1), row(2), row(3)])
        self.assertEqual(ask("sqlite", path, Question(by="day")).total.requests, 3)
        self.assertEqual(ask("sqlite", path, Question(by="hour")).total.requests, 3)
        self.assertEqual(verify("sqlite", path), [])

    def test_a_batch_is_kept_whole_or_not_at_all(self) -> None:
        """A row that cannot be kept takes no half of its batch into the sums."""
        ledger, path = self.ledger()
        ledger.write([row(1)])
        self.assertRaises(sqlite3.Error, ledger.write, [row(2), row(3, provider=None)])
        self.assertEqual(ask("sqlite", path, Question(by="day")).total.requests, 1)
        ledger.write([row(2)])
        self.assertEqual(ask("sqlite", path, Question(by="day")).total.requests, 2)

    def test_a_row_comes_back_as_it_was(self) -> None:
        """Every column of a row has its own place."""
        ledger, path = self.ledger()
        values: dict[str, Any] = {name: f"<{name}>" for name in COLUMNS}
        numbers = {name: index for index, name in enumerate(COLUMNS) if "tokens" in name or "bytes" in name}
        given = row(1, **{**values, **numbers, "time_ns": 5, "stream": True, "status": 201, "duration_ms": 1.5})
        given.ttfb_ms, given.audio_ms, given.batch, given.cost_nano_usd = 0.25, 3, True, 9
        given.total_input, given.total_output = 1, 2
        ledger.write([given])
        with closing(connect_read_only(path)) as connection:
            (found,) = connection.execute(f"SELECT {', '.join(COLUMNS)} FROM requests")
        self.assertEqual(found, tuple(getattr(given, name) for name in COLUMNS))

    def test_a_broken_file_is_put_aside_and_told(self) -> None:
        """A file that is no database costs no row: it is kept under another name, and I am told."""
        ledger, path = self.ledger()
        os.makedirs(os.path.dirname(path))
        with open(path, "wb") as file:
            file.write(b"no database at all " * 500)
        self.assertRaises(sqlite3.DatabaseError, ledger.write, [row(1)])
        ledger.write([row(1)])
        self.assertEqual(ask("sqlite", path, Question()).total.requests, 1)
        aside = f"{path}.broken-20261124T120000Z"
        with open(aside, "rb") as file:
            self.assertTrue(file.read().startswith(b"no database"))
        self.assertEqual(len(ledger.notices), 1)
        self.assertIn(aside, ledger.notices[0])

    def test_a_file_that_breaks_while_it_is_open(self) -> None:
        """Damage in the middle is noticed by --verify, and by the writer, which begins anew."""
        ledger, path = self.ledger()
        ledger.write([row(n) for n in range(3000)])
        ledger.close()
        size = os.path.getsize(path)
        with open(path, "r+b") as file:
            file.seek(4096)
            file.write(b"\xee" * (size - 4096))
        self.assertNotEqual(verify("sqlite", path), [])
        self.assertRaises(sqlite3.DatabaseError, ledger.write, [row(5000)])
        ledger.write([row(5000)])
        self.assertEqual(ask("sqlite", path, Question()).total.requests, 1)
        self.assertEqual(verify("sqlite", path), [])

    def test_a_ledger_of_a_newer_program_is_left_alone(self) -> None:
        """After a downgrade I am told what to do, and nothing is damaged."""
        path = written("sqlite", self.mktemp(), [row(1)])
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA user_version = 99")
        ledger = SqliteLedger(path, keep_days=0, wall_time=Clock())
        for call in (lambda: ledger.write([row(2)]), lambda: ask("sqlite", path, Question())):
            error = self.assertRaises(LedgerError, call)
            self.assertIn("newer llmproxy", str(error))
        with closing(sqlite3.connect(path)) as connection:
            self.assertEqual(connection.execute("SELECT count(*) FROM requests").fetchone(), (1,))

    def test_a_database_of_another_program_is_left_alone(self) -> None:
        """A wrong path in the configuration writes into nobody's database."""
        folder = self.mktemp()
        os.makedirs(folder)
        path = os.path.join(folder, "other.sqlite")
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("CREATE TABLE theirs (x)")
        with open(path, "rb") as file:
            before = file.read()
        ledger = SqliteLedger(path, keep_days=0, wall_time=Clock())
        self.assertIn("no ledger of llmproxy", str(self.assertRaises(LedgerError, ledger.write, [row(1)])))
        with open(path, "rb") as file:
            self.assertEqual(file.read(), before)

    def test_an_older_ledger_is_brought_up_to_date(self) -> None:
        """A ledger of schema 1 goes on after an update, with all that was in it."""
        folder = self.mktemp()
        os.makedirs(folder)
        path = os.path.join(folder, "ledger.sqlite")
        columns = [name for name in COLUMNS if name != "once"]  # what schema 1 had
        with closing(sqlite3.connect(path)) as connection:
            connection.executescript(STEPS[0])
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute("PRAGMA user_version = 1")
            connection.execute(
                f"INSERT INTO requests ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})",
                [getattr(row(1), name) for name in columns],
            )
            connection.commit()
        self.assertIn("schema 1", str(self.assertRaises(LedgerError, ask, "sqlite", path, Question())))
        ledger = SqliteLedger(path, keep_days=0, wall_time=Clock())
        ledger.write([row(2, once="openai resp_1")])
        ledger.close()
        self.assertEqual(len(ledger.notices), 1)
        self.assertIn(f"from schema 1 to {SCHEMA}", ledger.notices[0])
        self.assertEqual(ask("sqlite", path, Question(by="day")).total.requests, 2)
        self.assertEqual(counted_once("sqlite", path, 10), ["openai resp_1"])
        self.assertEqual(verify("sqlite", path), [])

    def test_removed_rows_give_their_room_back(self) -> None:
        """A ledger whose old rows are removed becomes a smaller file."""
        ledger, path = self.ledger(keep_days=1)
        ledger.write([row(n, ago_s=5 * DAY_S, reason="x" * 300) for n in range(4000)])
        ledger.close()
        before = os.path.getsize(path)
        while ledger.tend():
            pass
        ledger.close()
        self.assertLess(os.path.getsize(path), before / 4)

    def test_verify_finds_sums_that_are_not_those_of_the_rows(self) -> None:
        """If somebody edits the ledger by hand, I am told which day is wrong."""
        path = written("sqlite", self.mktemp(), [row(1), row(2, ago_s=DAY_S)])
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("UPDATE days SET cost_nano_usd = cost_nano_usd + 1 WHERE day = '2026-11-24'")
            connection.commit()
        (words,) = verify("sqlite", path)
        self.assertIn("2026-11-24", words)

    def test_a_ledger_in_a_transaction_of_another_process_is_busy_for_a_moment(self) -> None:
        """While another process writes, a batch waits shortly, fails, and is written the next time."""
        ledger, path = self.ledger()
        ledger.write([row(1)])
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            self.assertIn("locked", str(self.assertRaises(sqlite3.OperationalError, ledger.write, [row(2)])))
            other.execute("COMMIT")
        ledger.write([row(2)])
        self.assertEqual(ask("sqlite", path, Question()).total.requests, 2)

    def test_names_that_were_counted_once_are_known_after_a_restart(self) -> None:
        """An answer that is polled before and after a restart is paid once."""
        for backend in ("sqlite", "jsonl"):
            ledger, path = made(backend, self.mktemp(), Clock())
            self.assertEqual(counted_once(backend, path, 5), [])
            ledger.write([row(n, once=f"openai resp_{n}" if n % 2 else None) for n in range(10)])
            ledger.close()
            self.assertEqual(counted_once(backend, path, 2), ["openai resp_7", "openai resp_9"])
        self.assertEqual(NOON_S % 3600, 0)

    def test_the_start_does_not_look_at_every_row_for_them(self) -> None:
        """A ledger of a year does not make the proxy start late."""
        path = written("sqlite", self.mktemp(), [row(n) for n in range(5)])
        with closing(sqlite3.connect(path)) as connection:
            plan = [step[3] for step in connection.execute(f"EXPLAIN QUERY PLAN {_COUNTED_ONCE}", (9,))]
        self.assertIn("USING COVERING INDEX requests_once", plan[0])

    def test_sums_beyond_64_bits_are_told(self) -> None:
        """A ledger that somebody filled with nonsense is no traceback: neither a report nor --verify."""
        path = written("sqlite", self.mktemp(), [row(n) for n in range(5)])
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("UPDATE requests SET cost_nano_usd = ?", (2**62,))
            connection.commit()
        (words,) = verify("sqlite", path)
        self.assertIn("64 bits", words)
        self.assertIn("overflow", str(self.assertRaises(LedgerError, ask, "sqlite", path, Question(by="hour"))))
