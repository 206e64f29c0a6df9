"""Other prices for history: rows and sums change together, on a ledger that is in use."""

import os
import sqlite3
import stat
import threading
import time
from collections.abc import Callable
from contextlib import closing

from twisted.trial.unittest import SynchronousTestCase

from llmproxy.state.ledger.jsonl import day_files
from llmproxy.state.ledger.query import Question, ask
from llmproxy.state.ledger.reprice import _SELECT, Change, reprice
from llmproxy.state.ledger.row import TOO_LARGE, Row
from llmproxy.state.ledger.verify import verify
from llmproxy.state.ledger.writer import LedgerWriter
from tests.state.ledger_cases import BACKENDS, DAY_S, NOON_S, Clock, made, row, written


def two_a_token(row: Row) -> tuple[int | None, str | None]:
    """Two nano-dollars for each token, and no price for one model."""
    return (None if row.model == "lost" else 2 * (row.input_tokens + row.output_tokens)), "new"


def a_slip(row: Row) -> tuple[int | None, str | None]:
    """What nobody pays."""
    return 10**30, "slip"


def progress(seen: list[tuple[int, int]]) -> Callable[[int, int], None]:
    """Keeps what it is told."""
    return lambda done, total: seen.append((done, total))


class RepriceTests(SynchronousTestCase):
    """Both backends."""

    def rows(self) -> list[Row]:
        return [
            row(1, ago_s=2 * DAY_S),
            row(2, cost_nano_usd=None, stream=True, batch=True),  # had no price
            row(3, model="lost", cost_nano_usd=50),  # has none any more
            row(4, source="none", cost_nano_usd=None, input_tokens=0, output_tokens=0),  # nothing to pay
            row(5, ago_s=9 * DAY_S),  # too old
        ]

    def test_rows_and_sums_change_together(self) -> None:
        """After a wrong price every report is right, and what has no price any more says so."""
        since = int((NOON_S - 3 * DAY_S) * 1e9)
        for backend in BACKENDS:
            path = written(backend, self.mktemp(), self.rows())
            seen: list[tuple[int, int]] = []
            changes = reprice(backend, path, since, 2**63 - 1, two_a_token, progress=progress(seen))
            # 15 tokens each: 10 in, 5 out.
            self.assertEqual(
                changes,
                {
                    "gpt-5.5": Change(2, 2, before_nano_usd=7, after_nano_usd=60, unpriced_before=1),
                    "lost": Change(1, 1, before_nano_usd=50, after_nano_usd=0, unpriced_after=1),
                },
            )
            for by in ("day", "hour"):
                total = ask(backend, path, Question(by=by)).total
                self.assertEqual((total.cost_nano_usd, total.unpriced, total.requests), (67, 1, 5), by)
            self.assertEqual(verify(backend, path), [])
            self.assertEqual(seen[-1][0], seen[-1][1])
            again = reprice(backend, path, since, 2**63 - 1, two_a_token)
            self.assertEqual([change.changed for change in again.values()], [0, 0])

    def test_a_dry_run_writes_nothing(self) -> None:
        """I can look at what would change first."""
        for backend in BACKENDS:
            path = written(backend, self.mktemp(), self.rows())
            before = ask(backend, path, Question(by="day"))
            changes = reprice(backend, path, 0, 2**63 - 1, two_a_token, dry_run=True)
            self.assertEqual(changes["gpt-5.5"].after_nano_usd, 90)
            self.assertEqual(ask(backend, path, Question(by="day")), before)
            self.assertEqual(ask(backend, path, Question(by="hour")).total, before.total)

    def test_more_rows_than_one_step_takes(self) -> None:
        """A whole month is priced again, in steps, each row once."""
        for backend in BACKENDS:
            path = written(backend, self.mktemp(), [row(n, ago_s=n * 60) for n in range(1700)])
            calls: list[str] = []

            def price(row: Row, calls: list[str] = calls) -> tuple[int | None, str | None]:
                calls.append(row.request_id)
                return 1, "one"

            changes = reprice(backend, path, 0, 2**63 - 1, price)
            self.assertEqual(changes["gpt-5.5"].rows, 1700)
            self.assertEqual(len(calls), len(set(calls)))
            self.assertEqual(ask(backend, path, Question(by="day")).total.cost_nano_usd, 1700)
            self.assertEqual(verify(backend, path), [])

    def test_the_proxy_goes_on_writing(self) -> None:
        """Rows that come while and after history is priced again are in the same ledger."""
        for backend in BACKENDS:
            ledger, path = made(backend, self.mktemp(), Clock())
            ledger.write([row(1), row(2)])
            reprice(backend, path, 0, 2**63 - 1, two_a_token)
            ledger.write([row(3)])
            total = ask(backend, path, Question()).total
            self.assertEqual((total.requests, total.cost_nano_usd), (3, 30 + 30 + 7))
            self.assertEqual(verify(backend, path), [])
            ledger.close()

    def test_a_long_range_does_not_stop_the_proxy(self) -> None:
        """50,000 rows are priced again, and what comes meanwhile is written as ever."""
        ledger, path = made("sqlite", self.mktemp(), Clock(), keep_days=0)
        ledger.write([row(n, ago_s=n) for n in range(50_000)])
        ledger.close()
        told: list[str] = []
        writer = LedgerWriter(ledger, told=told.append, in_reactor=lambda call, words: call(words), flush_s=0.01)
        writer.start()
        ended, begun_s = threading.Event(), time.monotonic()
        waited_s = [0.0]

        def requests() -> None:
            number = 100_000
            while not ended.is_set():
                writer.add(row(number))
                added_s, number = time.monotonic(), number + 1
                while writer.state()["queued"] and not ended.is_set():
                    time.sleep(0.002)
                waited_s.append(time.monotonic() - added_s)

        thread = threading.Thread(target=requests)
        thread.start()
        changes = reprice("sqlite", path, 0, 2**63 - 1, two_a_token)
        ended.set()
        thread.join()
        self.assertTrue(writer.close(5.0))
        self.assertEqual(told, [])
        self.assertEqual(changes["gpt-5.5"].changed, 50_000)
        self.assertGreater(len(waited_s), 20)
        self.assertLess(max(waited_s), 1.0)
        self.assertLess(time.monotonic() - begun_s, 60.0)
        self.assertEqual(verify("sqlite", path), [])

    def test_a_step_reads_its_own_rows_alone(self) -> None:
        """The last step over a year of rows takes as long as the first one."""
        path = written("sqlite", self.mktemp(), [row(1)])
        with closing(sqlite3.connect(path)) as connection:
            plan = [step[3] for step in connection.execute(f"EXPLAIN QUERY PLAN {_SELECT}", (0, 0, 2**63 - 1, 9))]
        self.assertEqual(plan, ["SEARCH requests USING INDEX requests_time (time_ns>? AND time_ns<?)"])

    def test_many_rows_of_the_same_moment(self) -> None:
        """Steps begin where the last one ended, in the middle of rows of the same time too."""
        path = written("sqlite", self.mktemp(), [row(n) for n in range(1000)])
        self.assertEqual(reprice("sqlite", path, row(1).time_ns, 2**63 - 1, two_a_token)["gpt-5.5"].changed, 1000)
        self.assertEqual(ask("sqlite", path, Question(by="hour")).total.cost_nano_usd, 30_000)
        self.assertEqual(reprice("sqlite", path, row(1).time_ns + 1, 2**63 - 1, two_a_token), {})

    def test_the_edge_of_the_range(self) -> None:
        """A row of the moment before the range is none of it, and does not take the place of one that is."""
        before, since_ns = row(0), row(1).time_ns
        before.time_ns = since_ns - 1
        path = written("sqlite", self.mktemp(), [before, *(row(n) for n in range(1, 201))])
        self.assertEqual(reprice("sqlite", path, since_ns, 2**63 - 1, two_a_token)["gpt-5.5"].changed, 200)

    def test_a_price_that_somebody_else_has_put_on_a_row_stays(self) -> None:
        """Two of these at the same time leave each row with the price of one of them, and right sums."""
        path = written("sqlite", self.mktemp(), [row(1), row(2)])

        def slow(row: Row) -> tuple[int | None, str | None]:
            with closing(sqlite3.connect(path)) as connection:
                connection.execute("UPDATE requests SET cost_nano_usd = 11 WHERE request_id = 'req-1'")
                connection.commit()
            return 100, "slow"

        reprice("sqlite", path, 0, 2**63 - 1, slow)
        self.assertEqual(ask("sqlite", path, Question(by="hour")).total.cost_nano_usd, 111)
        self.assertEqual(verify("sqlite", path), [])

    def test_rows_that_do_not_tell_their_cost_are_left_alone(self) -> None:
        """What accounting failed on is not free afterwards, and what lost its parts is not cheap."""
        rows = [
            row(1, reason="accounting_failed", source="estimated", cost_nano_usd=None, input_tokens=0, output_tokens=0),
            row(2, parts=TOO_LARGE, cost_nano_usd=900),
            row(3),
        ]
        for backend in BACKENDS:
            path = written(backend, self.mktemp(), rows)
            changes = reprice(backend, path, 0, 2**63 - 1, two_a_token)
            expected = Change(3, 1, before_nano_usd=907, after_nano_usd=930, unpriced_before=1, unpriced_after=1)
            self.assertEqual(changes, {"gpt-5.5": expected})
            total = ask(backend, path, Question(by="day")).total
            self.assertEqual((total.cost_nano_usd, total.unpriced), (930, 1))

    def test_a_price_beyond_all_bounds(self) -> None:
        """A slip in a price file makes a row dear, and no sum overflows: it can be put right again."""
        for backend in BACKENDS:
            path = written(backend, self.mktemp(), [row(1), row(2)])
            changes = reprice(backend, path, 0, 2**63 - 1, a_slip)
            self.assertEqual(changes["gpt-5.5"].after_nano_usd, 2 * 10**12)
            self.assertEqual(ask(backend, path, Question(by="day")).total.cost_nano_usd, 2 * 10**12)
            reprice(backend, path, 0, 2**63 - 1, two_a_token)
            self.assertEqual(ask(backend, path, Question(by="day")).total.cost_nano_usd, 60)
            self.assertEqual(verify(backend, path), [])

    def test_nothing_is_told_of_todays_file(self) -> None:
        """The proxy goes on in the rewritten file, and does not say that somebody took its file away."""
        ledger, path = made("jsonl", self.mktemp(), Clock())
        ledger.write([row(1)])
        reprice("jsonl", path, 0, 2**63 - 1, two_a_token)
        ledger.write([row(2)])
        self.assertEqual(ledger.notices, [])
        self.assertEqual(ask("jsonl", path, Question()).total.requests, 2)
        ledger.close()

    def test_a_rewritten_file_is_still_the_owners_alone(self) -> None:
        """Mode 600, and nothing is left lying about."""
        path = written("jsonl", self.mktemp(), self.rows())
        reprice("jsonl", path, 0, 2**63 - 1, two_a_token)
        for file in day_files(path):
            self.assertEqual(stat.S_IMODE(os.stat(file.path).st_mode), 0o600)
        self.assertEqual([name for name in os.listdir(path) if name.endswith(".new")], [])
