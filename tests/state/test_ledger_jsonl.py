"""The ledger of JSON lines: half lines, rotation, one writer, a full disk, a crash while a day is removed."""

import errno
import os
from collections.abc import Callable
from unittest import mock

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.state.ledger import jsonl, query
from llmproxy.state.ledger import verify as ledger_verify
from llmproxy.state.ledger.backend import LedgerError
from llmproxy.state.ledger.jsonl import JsonlLedger, day_files, rewriting
from llmproxy.state.ledger.query import Question, ask, counted_once
from llmproxy.state.ledger.reprice import reprice
from llmproxy.state.ledger.row import Row
from llmproxy.state.ledger.verify import verify
from tests.state.ledger_cases import DAY_S, Clock, row


def eleven(row: Row) -> tuple[int | None, str | None]:
    """A price for every row."""
    return 11, "eleven"


class JsonlLedgerTests(SynchronousTestCase):
    """A folder of files."""

    def ledger(self, keep_days: int = 90, max_file_bytes: int = 1 << 28) -> tuple[JsonlLedger, str]:
        folder = self.mktemp()
        ledger = JsonlLedger(folder, keep_days=keep_days, wall_time=Clock(), max_file_bytes=max_file_bytes)
        self.addCleanup(ledger.close)
        return ledger, folder

    def test_each_day_has_its_file(self) -> None:
        """A batch around midnight goes into the files of both days, a line for each row."""
        ledger, folder = self.ledger()
        ledger.write([row(1, ago_s=12 * 3600 + 1), row(2, ago_s=12 * 3600)])
        files = day_files(folder)
        self.assertEqual([file.day for file in files], ["2026-11-23", "2026-11-24"])
        for number, file in enumerate(files, 1):
            with open(file.path, "rb") as opened:
                (line,) = opened.read().splitlines()
            self.assertEqual(msgspec.json.decode(line)["request_id"], f"req-{number}")

    def test_a_large_file_is_followed_by_another(self) -> None:
        """No file grows without end, and all of them are read in order."""
        ledger, folder = self.ledger(max_file_bytes=2000)
        for n in range(30):
            ledger.write([row(n)])
        files = day_files(folder)
        self.assertGreater(len(files), 3)
        self.assertEqual([file.number for file in files], list(range(len(files))))
        self.assertTrue(all(os.path.getsize(file.path) < 3000 for file in files))
        ledger.close()
        ledger.write([row(99)])
        self.assertEqual(ask("jsonl", folder, Question()).total.requests, 31)
        self.assertEqual(verify("jsonl", folder), [])

    @settings(max_examples=20, deadline=None)
    @given(st.integers(1, 300))
    def test_a_half_line_is_taken_away(self, missing: int) -> None:
        """Wherever a crash cut the last line, the next rows are whole, and the half one is not counted."""
        ledger, folder = self.ledger()
        ledger.write([row(1), row(2)])
        ledger.close()
        path = day_files(folder)[0].path
        with open(path, "rb") as opened:
            length = len(opened.read().splitlines(keepends=True)[1])
        os.truncate(path, os.path.getsize(path) - min(missing, length))
        self.assertEqual(ask("jsonl", folder, Question()).total.requests, 1)
        ledger.write([row(3)])
        self.assertEqual(ask("jsonl", folder, Question()).total.requests, 2)
        self.assertEqual(verify("jsonl", folder), [])
        self.assertEqual(len(ledger.notices), int(min(missing, length) < length))

    def test_a_disk_that_takes_half_a_batch_keeps_none_of_it(self) -> None:
        """When the disk is full in the middle of a batch, it is written whole later, and counted once."""
        ledger, folder = self.ledger()
        ledger.write([row(1)])
        real = os.write

        def half(descriptor: int, data: bytes) -> int:
            return real(descriptor, bytes(data)[: len(data) // 2])

        with mock.patch.object(os, "write", half):
            error = self.assertRaises(OSError, ledger.write, [row(2), row(3), row(4, ago_s=DAY_S)])
        self.assertEqual(error.errno, errno.ENOSPC)
        self.assertEqual(ask("jsonl", folder, Question()).total.requests, 1)
        ledger.write([row(2), row(3), row(4, ago_s=DAY_S)])
        self.assertEqual(ask("jsonl", folder, Question()).total.requests, 4)
        self.assertEqual(verify("jsonl", folder), [])
        self.assertEqual(ledger.notices, [])

    def test_one_process_writes(self) -> None:
        """A second proxy on the same folder is told so, and goes on when the first has ended."""
        ledger, folder = self.ledger()
        ledger.write([row(1)])
        second = JsonlLedger(folder, keep_days=0, wall_time=Clock())
        self.assertIn("Another process", str(self.assertRaises(LedgerError, second.write, [row(2)])))
        ledger.close()
        second.write([row(2)])
        second.close()
        self.assertEqual(ask("jsonl", folder, Question()).total.requests, 2)

    def test_rows_wait_while_files_are_rewritten(self) -> None:
        """A row that comes while history is priced again is not lost in the file that is replaced."""
        ledger, folder = self.ledger()
        ledger.write([row(1)])
        self.patch(jsonl, "_REWRITE_S", 0.05)
        with rewriting(folder):
            self.assertIn("rewritten", str(self.assertRaises(LedgerError, ledger.write, [row(2)])))
        ledger.write([row(2)])
        self.assertEqual(ask("jsonl", folder, Question()).total.requests, 2)

    def test_a_crash_while_a_day_is_removed_counts_it_once(self) -> None:
        """Between the sums being written and the file being removed the power fails: the day is counted once."""
        ledger, folder = self.ledger(keep_days=1)
        ledger.write([row(n, ago_s=9 * DAY_S) for n in range(3)] + [row(9)])
        with mock.patch.object(os, "unlink", side_effect=OSError(errno.EIO, "crash")):
            self.assertRaises(OSError, ledger.tend)
        self.assertEqual(len(day_files(folder)), 2)
        self.assertEqual(ask("jsonl", folder, Question()).total.requests, 4)
        while ledger.tend():
            pass
        self.assertEqual(len(day_files(folder)), 1)
        answer = ask("jsonl", folder, Question(by="day"))
        self.assertEqual(
            {day: sums.requests for day, sums in answer.groups.items()}, {"2026-11-15": 3, "2026-11-24": 1}
        )

    def test_verify_finds_what_is_no_row_and_what_is_there_twice(self) -> None:
        """Each line that is wrong is named."""
        ledger, folder = self.ledger()
        ledger.write([row(1), row(1)])
        with open(day_files(folder)[0].path, "ab") as file:
            file.write(b'{"time_ns": "no"}\n')
        found = verify("jsonl", folder)
        self.assertEqual(len(found), 2)
        self.assertIn("line 2: the request req-1", found[0])
        self.assertIn("line 3 is no row", found[1])

    def test_a_damaged_line_is_passed_over_alone(self) -> None:
        """Bad JSON, bad UTF-8, nesting without end, a time that no calendar has: the other rows are all there."""
        ledger, folder = self.ledger(keep_days=1)
        ledger.write([row(1, ago_s=9 * DAY_S, once="p one")])
        damaged = (
            b'{"once":"broken\n',
            b'{"time_ns":1,"request_id":"x","provider":"p","once":"\xff\xfe"}\n',
            b'{"once":"deep","x":' + b"[" * 100_000 + b"\n",
        )
        path = day_files(folder)[0].path
        with open(path, "ab") as file:
            file.writelines(damaged)
        ledger.write([row(2, ago_s=9 * DAY_S, once="p two"), row(3)])
        self.assertEqual(counted_once("jsonl", folder, 9), ["p one", "p two"])
        self.assertEqual(ask("jsonl", folder, Question()).total.requests, 3)
        self.assertEqual(len(verify("jsonl", folder)), 3)
        reprice("jsonl", folder, 0, 2**63 - 1, eleven)
        self.assertEqual(ask("jsonl", folder, Question()).total.cost_nano_usd, 33)
        with open(path, "rb") as file:
            self.assertEqual(file.read().count(b"\n"), 5)
        with open(day_files(folder)[1].path, "ab") as file:
            file.write(b'{"time_ns":%d,"request_id":"y","provider":"p"}\n' % 10**30)
        self.assertEqual(len(verify("jsonl", folder)), 4)
        while ledger.tend():
            pass
        self.assertEqual(ask("jsonl", folder, Question(by="day")).groups["2026-11-15"].requests, 2)

    def test_names_that_were_counted_once_are_those_of_a_week(self) -> None:
        """Many files a day do not make a restart forget what was counted yesterday."""
        ledger, folder = self.ledger(max_file_bytes=200)
        for days in (8, 7, 6, 5, 4, 3, 2):
            ledger.write([row(days, ago_s=days * DAY_S, once=f"p {days} days")])
        for n in range(100, 110):
            ledger.write([row(n, once=f"p {n}")])
        self.assertEqual(len(day_files(folder)), 17)
        today = [f"p {n}" for n in range(100, 110)]
        # Days that have files: today and six before it.
        self.assertEqual(
            counted_once("jsonl", folder, 99), [*(f"p {days} days" for days in (7, 6, 5, 4, 3, 2)), *today]
        )
        self.assertEqual(counted_once("jsonl", folder, 3), ["p 107", "p 108", "p 109"])

    def test_the_start_reads_no_more_than_the_newest_part(self) -> None:
        """A busy week in JSON lines does not hold the start up: the newest names are known."""
        self.patch(query, "_ONCE_BYTES_MAX", 1000)
        ledger, folder = self.ledger(max_file_bytes=1200)
        for n in range(20):
            ledger.write([row(n, once=f"p {n:02d}")])
        names = counted_once("jsonl", folder, 99)
        line_bytes = os.path.getsize(day_files(folder)[0].path) // 4
        self.assertEqual(names, [f"p {n:02d}" for n in range(20)][-len(names) :])
        self.assertIn(len(names), range(1000 // line_bytes - 2, 1000 // line_bytes + 2))

    def test_a_report_while_old_days_are_removed(self) -> None:
        """One day after the other goes while I ask, and the sums are whole all the same."""
        ledger, folder = self.ledger(keep_days=1)
        ledger.write([row(days, ago_s=days * DAY_S) for days in range(12)])
        self.patch(jsonl, "_GONE_PAUSE_S", 0.0)
        removed: list[bool] = []

        def and_then_one_goes(path: str) -> list[jsonl.DayFile]:
            files = day_files(path)
            ledger._tended_ns = 0
            removed.append(ledger.tend())
            return files

        self.patch(query, "day_files", and_then_one_goes)
        self.patch(ledger_verify, "day_files", and_then_one_goes)
        total = 12
        calls: tuple[Callable[[], object], ...] = (
            lambda: ask("jsonl", folder, Question()).total.requests - total,
            lambda: len(verify("jsonl", folder)),
            lambda: len(counted_once("jsonl", folder, 9)),
        )
        for call in calls:
            ledger.write([row(1000 + total + days, ago_s=(20 + days) * DAY_S) for days in range(6)])
            total += 6
            removed.clear()
            self.assertEqual(call(), 0)
            self.assertGreater(sum(removed), 0)

    def test_damaged_sums_are_told(self) -> None:
        """A days.jsonl that somebody has broken is not taken for an empty one."""
        ledger, folder = self.ledger()
        ledger.write([row(1)])
        with open(os.path.join(folder, "days.jsonl"), "w") as file:
            file.write("{}\nnonsense\n")
        self.assertIn("damaged", str(self.assertRaises(LedgerError, ask, "jsonl", folder, Question())))
