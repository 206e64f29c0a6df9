"""Other prices for history: rows and sums change together, on a ledger that is in use."""

import os
import stat
from collections.abc import Callable

from twisted.trial.unittest import SynchronousTestCase

from llmproxy.state.ledger.jsonl import day_files
from llmproxy.state.ledger.query import Question, ask
from llmproxy.state.ledger.reprice import Change, reprice
from llmproxy.state.ledger.row import Row
from llmproxy.state.ledger.verify import verify
from tests.state.ledger_cases import BACKENDS, DAY_S, NOON_S, Clock, made, row, written


def two_a_token(row: Row) -> tuple[int | None, str | None]:
    """Two nano-dollars for each token, and no price for one model."""
    return (None if row.model == "lost" else 2 * (row.input_tokens + row.output_tokens)), "new"


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

    def test_a_rewritten_file_is_still_the_owners_alone(self) -> None:
        """Mode 600, and nothing is left lying about."""
        path = written("jsonl", self.mktemp(), self.rows())
        reprice("jsonl", path, 0, 2**63 - 1, two_a_token)
        for file in day_files(path):
            self.assertEqual(stat.S_IMODE(os.stat(file.path).st_mode), 0o600)
        self.assertEqual([name for name in os.listdir(path) if name.endswith(".new")], [])
