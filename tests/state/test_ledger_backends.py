"""Both backends keep the same promises: what is written is counted once, for ever, and can be asked at any time."""

import os
import stat

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.state.ledger.backend import LedgerError
from llmproxy.state.ledger.query import Question, ask
from llmproxy.state.ledger.row import Row
from llmproxy.state.ledger.sums import SUMMED, Sums
from llmproxy.state.ledger.verify import verify
from tests.state.ledger_cases import BACKENDS, DAY_S, NOON_S, Clock, made, row, written


class BothBackendsTests(SynchronousTestCase):
    """One suite over sqlite and jsonl."""

    def test_what_is_written_can_be_asked_for(self) -> None:
        """I see what each user has used and paid."""
        rows = [
            row(1, user="ann", cost_nano_usd=100),
            row(2, user="bob", cost_nano_usd=300, total_input=40),
            row(3, user="ann", cost_nano_usd=None, source="estimated"),
            row(4, user="ann", cost_nano_usd=None, source="none", status=500, total_input=0, total_output=0),
        ]
        for backend in BACKENDS:
            path = written(backend, self.mktemp(), rows)
            answer = ask(backend, path, Question(by="user"))
            self.assertEqual(list(answer.groups), ["bob", "ann"])  # dearest first
            ann = answer.groups["ann"]
            self.assertEqual((ann.requests, ann.errors, ann.unpriced), (3, 1, 1))
            self.assertEqual((ann.exact, ann.estimated, ann.none, ann.partial), (1, 1, 1, 0))
            self.assertEqual((ann.total_input, ann.total_output, ann.cost_nano_usd), (20, 10, 100))
            self.assertEqual((answer.total.requests, answer.total.cost_nano_usd), (4, 400))
            self.assertEqual(answer.total.total_input, 60)
            self.assertEqual(verify(backend, path), [])

    def test_every_group_and_filter(self) -> None:
        """I can ask by user, key, model, provider, day, hour and source, and for one of each."""
        rows = [
            row(1, ago_s=2 * DAY_S, model=None, model_asked="m-asked", batch=True),
            row(2, ago_s=3600, user="bob", credential_id="key_bbbb2222", provider="groq"),
            row(3, source="partial", credential_id=None, user=None),
        ]
        by = {
            "user": {"ann": 1, "bob": 1, "": 1},
            "key": {"key_aaaa1111": 1, "key_bbbb2222": 1, "": 1},
            "model": {"m-asked": 1, "gpt-5.5": 2},
            "provider": {"openai": 2, "groq": 1},
            "day": {"2026-11-22": 1, "2026-11-24": 2},
            "hour": {"2026-11-22T12:00": 1, "2026-11-24T11:00": 1, "2026-11-24T12:00": 1},
            "source": {"exact": 2, "partial": 1},
            "none": {"": 3},
        }
        filters = {
            Question(user="bob"): 1,
            Question(key="key_b"): 1,
            Question(key="key_"): 2,
            Question(model="gpt-5.5"): 2,
            Question(model="m-asked"): 1,
            Question(provider="openai"): 2,
            Question(provider="openai", user="bob"): 0,
            Question(since_ns=int((NOON_S - 3600) * 1e9)): 2,
            Question(until_ns=int((NOON_S - 3600) * 1e9)): 1,
            Question(since_ns=int((NOON_S - 2 * DAY_S) * 1e9), until_ns=int(NOON_S * 1e9)): 2,
        }
        for backend in BACKENDS:
            path = written(backend, self.mktemp(), rows)
            for group, expected in by.items():
                answer = ask(backend, path, Question(by=group))
                self.assertEqual({name: sums.requests for name, sums in answer.groups.items()}, expected, group)
            for question, requests in filters.items():
                self.assertEqual(ask(backend, path, question).total.requests, requests, question)

    def test_rows_are_removed_and_their_sums_are_not(self) -> None:
        """Last year's spending is still told when its rows are gone."""
        for backend in BACKENDS:
            clock = Clock()
            ledger, path = made(backend, self.mktemp(), clock, keep_days=2)
            ledger.write([row(n, ago_s=10 * DAY_S) for n in range(2500)])
            ledger.write([row(9000, ago_s=5 * DAY_S, user="bob"), row(9001)])
            before = ask(backend, path, Question(by="day"))
            steps = 0
            while ledger.tend():
                steps += 1
                self.assertLess(steps, 100)
            after = ask(backend, path, Question(by="day"))
            self.assertEqual(after.groups, before.groups)
            self.assertEqual(after.groups["2026-11-14"].requests, 2500)
            self.assertEqual(after.rows_since_ns, row(9001).time_ns)
            self.assertEqual(ask(backend, path, Question(user="bob")).total.requests, 1)
            self.assertEqual(list(ask(backend, path, Question(by="hour")).groups), ["2026-11-24T12:00"])
            self.assertEqual(verify(backend, path), [])
            ledger.close()

    def test_a_part_of_a_day_whose_rows_are_gone_is_told(self) -> None:
        """I ask from ten o'clock of a day that is kept as a sum: I am told what is not in the answer."""
        hour = 3600
        for backend in BACKENDS:
            ledger, path = made(backend, self.mktemp(), Clock(), keep_days=2)
            ledger.write([row(1, ago_s=10 * DAY_S), row(2, ago_s=9 * DAY_S), row(3)])
            since_ns = int((NOON_S - 10 * DAY_S - hour) * 1e9)
            self.assertEqual(ask(backend, path, Question(since_ns=since_ns)).total.requests, 3)
            self.assertEqual(ask(backend, path, Question(since_ns=since_ns)).left_out, [])
            while ledger.tend():
                pass
            answer = ask(backend, path, Question(since_ns=since_ns))
            self.assertEqual((answer.total.requests, answer.left_out), (2, ["2026-11-14"]))
            for question, left_out in (
                (Question(), []),
                (Question(by="hour", since_ns=since_ns), []),  # it is told that hours begin later
                (Question(since_ns=since_ns - since_ns % (DAY_S * 10**9)), []),
                (Question(since_ns=since_ns - 3 * DAY_S * 10**9), []),  # of that day there was nothing
                (Question(since_ns=int((NOON_S - hour) * 1e9)), []),
                (Question(until_ns=since_ns), ["2026-11-14"]),
                (Question(since_ns=since_ns, until_ns=since_ns + 10), ["2026-11-14"]),
                (Question(since_ns=since_ns, until_ns=since_ns + 20 * hour * 10**9), ["2026-11-14", "2026-11-15"]),
            ):
                self.assertEqual(ask(backend, path, question).left_out, left_out, question)
            ledger.close()

    def test_no_key_is_asked_for_as_any_key(self) -> None:
        """`--key ''` gives the same from both backends: what begins with nothing is everything."""
        for backend in BACKENDS:
            path = written(backend, self.mktemp(), [row(1), row(2, credential_id=None), row(3, credential_id="")])
            for by in ("day", "hour"):
                self.assertEqual(ask(backend, path, Question(by=by, key="")).total.requests, 3)
                self.assertEqual(ask(backend, path, Question(by=by, key="key_")).total.requests, 1)

    def test_nothing_is_removed_where_rows_are_kept_for_ever(self) -> None:
        """keep_days: 0 keeps every row."""
        for backend in BACKENDS:
            ledger, path = made(backend, self.mktemp(), Clock(), keep_days=0)
            ledger.write([row(1, ago_s=3000 * DAY_S)])
            self.assertFalse(ledger.tend())
            self.assertEqual(ask(backend, path, Question(by="hour")).total.requests, 1)
            ledger.close()

    def test_only_the_owner_can_read_it(self) -> None:
        """Who paid for what is nobody else's business."""
        for backend in BACKENDS:
            folder = os.path.join(self.mktemp(), "deep")
            ledger, path = made(backend, folder, Clock())
            ledger.write([row(1)])
            made_folder = folder if backend == "sqlite" else path
            self.assertEqual(stat.S_IMODE(os.stat(made_folder).st_mode), 0o700)
            files = [path] if backend == "sqlite" else [os.path.join(path, each) for each in os.listdir(path)]
            for file in [*files, *(f"{path}{end}" for end in ("-wal", "-shm") if backend == "sqlite")]:
                self.assertEqual(stat.S_IMODE(os.stat(file).st_mode), 0o600, file)
            ledger.close()

    def test_a_file_that_is_removed_is_made_anew(self) -> None:
        """Somebody deletes the ledger under the running proxy: the next rows are in a new one, and I am told."""
        for backend in BACKENDS:
            ledger, path = made(backend, self.mktemp(), Clock())
            ledger.write([row(1)])
            if backend == "sqlite":
                os.unlink(path)
            else:
                os.unlink(os.path.join(path, "ledger-2026-11-24.jsonl"))
            ledger.write([row(2)])
            ledger.write([row(3)])
            self.assertEqual(len(ledger.notices), 1)
            self.assertIn("removed", ledger.notices[0])
            self.assertEqual(ask(backend, path, Question()).total.requests, 2)
            self.assertEqual(verify(backend, path), [])
            ledger.close()

    def test_a_ledger_that_is_not_there_is_told_in_words(self) -> None:
        """Asking before the proxy ever ran is no traceback."""
        for backend in BACKENDS:
            error = self.assertRaises(LedgerError, ask, backend, self.mktemp(), Question())
            self.assertIn("There is no ledger", str(error))

    def test_a_folder_that_cannot_be_written_is_an_error_and_not_the_end(self) -> None:
        """The state directory is a file: writing fails, and works as soon as that is put right."""
        for backend in BACKENDS:
            folder = self.mktemp()
            with open(folder, "w"):
                pass
            ledger, path = made(backend, os.path.join(folder, "state"), Clock())
            self.assertRaises(OSError, ledger.write, [row(1)])
            os.unlink(folder)
            ledger.write([row(1)])
            self.assertEqual(ask(backend, path, Question()).total.requests, 1)
            ledger.close()

    def test_a_hundred_thousand_rows_are_summed_up_in_a_second(self) -> None:
        """A question about a busy day is answered while I wait."""
        import time

        rows = [row(n, user=f"user-{n % 50}", ago_s=n % 40_000) for n in range(100_000)]
        for backend in BACKENDS:
            path = written(backend, self.mktemp(), rows)
            begun = time.process_time()
            answer = ask(backend, path, Question(by="user", since_ns=int((NOON_S - 50_000) * 1e9)))
            self.assertLess(time.process_time() - begun, 1.0)
            self.assertEqual(answer.total.requests, 100_000)
            self.assertEqual(answer.groups["user-7"].requests, 2000)

    @settings(max_examples=25, deadline=None)
    @given(
        st.lists(
            st.builds(
                lambda ago, user, model, status, source, cost, tokens: (ago, user, model, status, source, cost, tokens),
                st.integers(0, 3 * DAY_S),
                st.sampled_from(["ann", "", None, "zoë"]),
                st.sampled_from(["m1", "", None]),
                st.sampled_from([0, 200, 429]),
                st.sampled_from(["exact", "partial", "estimated", "none"]),
                st.none() | st.integers(0, 10**9),
                st.integers(0, 10**6),
            ),
            max_size=30,
        ),
        st.integers(0, 4 * DAY_S),
        st.integers(0, 4 * DAY_S),
    )
    def test_both_backends_answer_alike(
        self, drawn: list[tuple[int, str | None, str | None, int, str, int | None, int]], since: int, until: int
    ) -> None:
        """Whichever backend I choose, the sums are the same, whole days or not."""
        rows = [
            row(
                n,
                ago_s=ago,
                user=user,
                model=model,
                status=status,
                source=source,
                cost_nano_usd=cost,
                total_input=size,
            )
            for n, (ago, user, model, status, source, cost, size) in enumerate(drawn)
        ]
        since_ns, until_ns = int((NOON_S - since) * 1e9), int((NOON_S - until) * 1e9)
        asked = [one for one in rows if since_ns <= one.time_ns < until_ns]
        answers = []
        for backend in BACKENDS:
            path = written(backend, self.mktemp(), rows)
            answer = ask(backend, path, Question(by="user", since_ns=since_ns, until_ns=until_ns))
            self.assertEqual(answer.total.requests, len(asked))
            self.assertEqual(answer.total.total_input, sum(one.total_input for one in asked))
            self.assertEqual(answer.total.cost_nano_usd, sum(one.cost_nano_usd or 0 for one in asked))
            self.assertEqual(answer.total.errors, sum(one.status in (0, 429) for one in asked))
            self.assertEqual(verify(backend, path), [])
            answers.append(answer.groups)
        self.assertEqual(*answers)


class RowTests(SynchronousTestCase):
    """Every number of a row has its place in the sums."""

    def test_the_sums_have_every_class(self) -> None:
        """No class of tokens is forgotten by either backend."""
        summed = [name for name in SUMMED if name not in ("requests", "errors", "unpriced", "cost_nano_usd")]
        numbers = {name: 3 + index for index, name in enumerate(summed)}
        for backend in BACKENDS:
            path = written(backend, self.mktemp(), [row(1, **numbers), row(2, **numbers, ago_s=DAY_S)])
            for question in (Question(), Question(since_ns=1), Question(by="hour")):
                total = ask(backend, path, question).total
                found = {name: getattr(total, name) for name in summed}
                self.assertEqual(found, {name: 2 * number for name, number in numbers.items()})
        self.assertEqual(set(Sums.__struct_fields__) - set(SUMMED), {"exact", "partial", "estimated", "none"})
        self.assertTrue(set(summed) <= set(Row.__struct_fields__))
