"""The writer's promises: the reactor never waits for a disk, and what was taken is written once or counted as lost."""

import errno
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial

from twisted.trial.unittest import SynchronousTestCase

from llmproxy.state.ledger.jsonl import rewriting
from llmproxy.state.ledger.query import Question, ask
from llmproxy.state.ledger.row import Row
from llmproxy.state.ledger.verify import verify
from llmproxy.state.ledger.writer import LedgerWriter
from tests.state.ledger_cases import BACKENDS, Clock, made, row


class Disk:
    """A backend that does what a test says."""

    name = "sqlite"

    def __init__(self, on_write: Callable[[Sequence[Row]], None] = lambda rows: None) -> None:
        self.notices: list[str] = []
        self.deadline_s = 0.0
        self.rows: list[str] = []
        self.on_write = on_write

    def write(self, rows: Sequence[Row]) -> None:
        if rows:
            self.on_write(rows)
        self.rows += [each.request_id for each in rows]

    def tend(self) -> bool:
        return False

    def close(self) -> None:
        pass


def until(is_true: Callable[[], bool]) -> None:
    """Wait for the writer's thread."""
    end = time.monotonic() + 10.0
    while not is_true():
        if time.monotonic() > end:
            raise AssertionError("waited in vain")
        time.sleep(0.002)


def hold(backend: str, path: str, locked: threading.Event, may_go: threading.Event) -> None:
    """Hold a ledger as `llmproxy reprice` does, until it may go."""
    if backend == "sqlite":
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            locked.set()
            may_go.wait(20.0)
            other.execute("ROLLBACK")
    else:
        with rewriting(path):
            locked.set()
            may_go.wait(20.0)


class LedgerWriterTests(SynchronousTestCase):
    """Rows on their way to a disk."""

    def writer(self, disk: Disk, max_queued_rows: int = 100_000, max_queued_bytes: int = 1 << 26) -> LedgerWriter:
        self.told: list[str] = []
        writer = LedgerWriter(
            disk,
            told=self.told.append,
            in_reactor=lambda call, words: call(words),
            flush_s=0.005,
            max_queued_rows=max_queued_rows,
            max_queued_bytes=max_queued_bytes,
        )
        self.addCleanup(writer.close, 5.0)
        return writer

    def test_what_is_added_is_written_in_order(self) -> None:
        """Every request has its row, in the order of their ends."""
        disk = Disk()
        writer = self.writer(disk)
        writer.start()
        for n in range(3000):
            writer.add(row(n))
        self.assertTrue(writer.close(5.0))
        self.assertEqual(disk.rows, [f"req-{n}" for n in range(3000)])
        state = {"backend": "sqlite", "state": "ok", "error": None, "queued": 0, "written": 3000, "dropped": 0}
        self.assertEqual(writer.state(), state)
        self.assertEqual(self.told, [])

    def test_a_slow_disk_holds_nobody_up(self) -> None:
        """The disk takes forever over a write: requests go on at full speed."""
        is_writing, may_go_on = threading.Event(), threading.Event()

        def wait(rows: Sequence[Row]) -> None:
            is_writing.set()
            may_go_on.wait(10.0)

        writer = self.writer(Disk(wait))
        writer.start()
        writer.add(row(0))
        self.assertTrue(is_writing.wait(5.0))
        rows = [row(n) for n in range(1, 1001)]
        begun = time.thread_time()
        for each in rows:
            writer.add(each)
        self.assertLess(time.thread_time() - begun, 0.2)
        self.assertEqual(writer.state()["queued"], 1001)
        may_go_on.set()
        self.assertTrue(writer.close(5.0))
        self.assertEqual(writer.state()["written"], 1001)

    def test_a_full_disk_is_told_once_and_costs_no_row(self) -> None:
        """The disk is full for a while: one line when it begins, one when it ends, and all rows are there."""
        full = threading.Event()
        full.set()
        attempts = []

        def maybe(rows: Sequence[Row]) -> None:
            if full.is_set():
                attempts.append(len(rows))
                raise OSError(errno.ENOSPC, "No space left on device")

        disk = Disk(maybe)
        writer = self.writer(disk)
        writer.start()
        writer.add(row(1))
        until(lambda: len(attempts) >= 3)
        writer.add(row(2))
        self.assertEqual(writer.state()["state"], "failing")
        self.assertIn("No space left", str(writer.state()["error"]))
        self.assertEqual(len(self.told), 1)
        self.assertIn("No space left", self.told[0])
        full.clear()
        until(lambda: writer.state()["written"] == 2)
        self.assertTrue(writer.close(5.0))
        self.assertEqual(disk.rows, ["req-1", "req-2"])
        self.assertEqual(writer.state()["state"], "ok")
        self.assertEqual(len(self.told), 2)

    def test_the_queue_is_bounded_in_rows(self) -> None:
        """A disk that fails for days costs a bounded amount of memory; what is lost is counted."""
        writer = self.writer(Disk(), max_queued_rows=10)
        for n in range(25):
            writer.add(row(n))
        self.assertEqual((writer.state()["queued"], writer.state()["dropped"]), (10, 15))
        writer.start()
        until(lambda: writer.state()["written"] == 10)
        writer.add(row(99))
        self.assertTrue(writer.close(5.0))
        self.assertEqual((writer.state()["written"], writer.state()["dropped"]), (11, 15))

    def test_the_queue_is_bounded_in_bytes(self) -> None:
        """Rows with long texts fill the same memory sooner, and give all of it back when they are written."""
        disk = Disk()
        writer = self.writer(disk, max_queued_bytes=100_000)
        for n in range(30):
            writer.add(row(n, parts="x" * 10_000, once="x" * 10_000))
        self.assertEqual((writer.state()["queued"], writer.state()["dropped"]), (4, 26))
        writer.start()
        until(lambda: writer.state()["queued"] == 0)
        for n in range(30, 100):
            writer.add(row(n))
        self.assertEqual(writer.state()["dropped"], 26)
        self.assertTrue(writer.close(5.0))

    def test_a_row_that_cannot_be_kept_does_not_keep_others_from_it(self) -> None:
        """One row that the database refuses is dropped, counted and told; its neighbours are written."""
        for backend in BACKENDS:
            ledger, path = made(backend, self.mktemp(), Clock())
            told: list[str] = []
            writer = LedgerWriter(ledger, told=told.append, in_reactor=lambda call, words: call(words), flush_s=0.005)
            for n in range(5):
                writer.add(row(n, time_ns=2**70) if n == 2 else row(n))
            writer.start()
            self.assertTrue(writer.close(5.0))
            self.assertEqual((writer.state()["written"], writer.state()["dropped"]), (4, 1))
            self.assertEqual(ask(backend, path, Question()).total.requests, 4)
            self.assertIn("cannot hold 1 of 5 rows", told[0])

    def test_a_disk_that_is_stuck_does_not_hold_the_exit(self) -> None:
        """The network file system hangs: the proxy ends when its time is over."""
        stuck = threading.Event()

        def hang(rows: Sequence[Row]) -> None:
            stuck.wait(10.0)

        writer = self.writer(Disk(hang))
        writer.start()
        writer.add(row(1))
        begun = time.monotonic()
        self.assertFalse(writer.close(0.1))
        self.assertLess(time.monotonic() - begun, 2.0)
        writer.add(row(2))
        # The one that is stuck, and the one that came too late.
        self.assertEqual((writer.unwritten, writer.state()["dropped"], writer.state()["queued"]), (1, 2, 0))
        stuck.set()

    def test_a_ledger_that_is_locked_at_the_exit_is_tried_again(self) -> None:
        """Another process holds the ledger for a moment while the proxy stops: what waits is written all the same."""
        for backend in BACKENDS:
            ledger, path = made(backend, self.mktemp(), Clock())
            writer = LedgerWriter(
                ledger, told=lambda words: None, in_reactor=lambda call, words: call(words), flush_s=0.01
            )
            writer.start()
            writer.add(row(1))
            until(lambda writer=writer: writer.state()["written"] == 1)  # type: ignore[misc]
            locked, may_go = threading.Event(), threading.Event()
            other = threading.Thread(target=hold, args=(backend, path, locked, may_go))
            other.start()
            self.assertTrue(locked.wait(5.0))
            writer.add(row(2))
            timer = threading.Timer(0.7, may_go.set)  # longer than one attempt on SQLite takes
            timer.start()
            self.assertTrue(writer.close(8.0))
            timer.join()
            other.join()
            self.assertEqual((writer.unwritten, writer.state()["written"], writer.state()["dropped"]), (0, 2, 0))
            self.assertEqual(ask(backend, path, Question()).total.requests, 2)

    def test_a_ledger_that_stays_locked_does_not_hold_the_exit(self) -> None:
        """What could not be written by then counts as dropped, and its number is known."""
        for backend in BACKENDS:
            ledger, path = made(backend, self.mktemp(), Clock())
            writer = LedgerWriter(
                ledger, told=lambda words: None, in_reactor=lambda call, words: call(words), flush_s=0.01
            )
            writer.start()
            writer.add(row(1))
            until(lambda writer=writer: writer.state()["written"] == 1)  # type: ignore[misc]
            locked, may_go = threading.Event(), threading.Event()
            other = threading.Thread(target=hold, args=(backend, path, locked, may_go))
            other.start()
            self.assertTrue(locked.wait(5.0))
            for n in range(2, 5):
                writer.add(row(n))
            begun = time.monotonic()
            self.assertFalse(writer.close(0.8))
            self.assertLess(time.monotonic() - begun, 1.5)
            self.assertEqual(writer.unwritten, 3)
            state = writer.state()
            self.assertEqual((state["queued"], state["written"], state["dropped"]), (0, 1, 3))
            self.assertIsNotNone(state["error"])
            # Neither backend waits on longer than the exit: the thread has ended, and closed its files.
            until(lambda: "ledger" not in {thread.name for thread in threading.enumerate()})
            self.assertLess(time.monotonic() - begun, 2.0)
            may_go.set()
            other.join()

    def test_what_the_backend_put_right_is_told(self) -> None:
        """A file that was removed is in the log."""
        disk = Disk()
        disk.notices.append("The ledger was removed.")
        writer = self.writer(disk)
        writer.start()
        writer.add(row(1))
        self.assertTrue(writer.close(5.0))
        self.assertEqual(self.told, ["The ledger was removed."])

    def test_what_is_wrong_is_told_before_the_first_request(self) -> None:
        """A ledger that cannot be opened is in the log at the start."""
        for backend in BACKENDS:
            folder = self.mktemp()
            with open(folder, "w"):
                pass
            told: list[str] = []
            ledger, _ = made(backend, os.path.join(folder, "below"), Clock())
            writer = LedgerWriter(ledger, told=told.append, in_reactor=lambda call, words: call(words), flush_s=60)
            writer.start()
            until(partial(bool, told))
            self.assertIn("cannot be written", told[0])
            writer.close(5.0)

    def test_a_read_only_database_is_an_error_that_passes(self) -> None:
        """SQLite says "readonly": rows wait until it can be written again."""
        readonly = [True]

        def maybe(rows: Sequence[Row]) -> None:
            if readonly[0]:
                raise sqlite3.OperationalError("attempt to write a readonly database")

        writer = self.writer(Disk(maybe))
        writer.start()
        writer.add(row(1))
        until(lambda: writer.state()["state"] == "failing")
        readonly[0] = False
        until(lambda: writer.state()["written"] == 1)

    def test_texts_and_numbers_of_others_are_brought_into_bounds(self) -> None:
        """Half a surrogate pair, a huge count, a key in a user's name: the row is kept, and the key is not."""
        key = "sk-proj-abcdefghijklmnop"
        for backend in BACKENDS:
            ledger, path = made(backend, self.mktemp(), Clock())
            writer = LedgerWriter(ledger, told=self.fail, in_reactor=lambda call, words: call(words), flush_s=0.005)
            writer.start()
            writer.add(row(1, user=f"ann {key}", model="m\ud800", reason="r" * 9000, output_tokens=10**30))
            self.assertTrue(writer.close(5.0))
            answer = ask(backend, path, Question(by="user"))
            self.assertEqual(list(answer.groups), ["ann sk-***"])
            self.assertEqual(answer.total.output_tokens, 10**12)
            self.assertEqual(list(ask(backend, path, Question(by="model")).groups), ["m?"])
            self.assertEqual(verify(backend, path), [])
