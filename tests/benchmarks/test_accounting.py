"""The benchmark of accounting: that it measures the proxy as it is, and prints what it found. No time is asserted."""

from __future__ import annotations

import contextlib
import io
import json

from twisted.trial.unittest import SynchronousTestCase

from benchmarks import answers
from benchmarks.accounting import Memory, Proxy, Times, Transport, Unsound, body_of, check, main, measured, table
from benchmarks.answers import Case, cases


def case(text: str) -> Case:
    """The first one with this in its name."""
    return next(each for each in cases() if text in each.name)


class Runs(SynchronousTestCase):
    """The command, with numbers that make it quick."""

    def run_it(self, *options: str) -> tuple[int, str, str]:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(["--reps", "1", "--events", "1", *options])
        return status, out.getvalue(), err.getvalue()

    def test_all_cases(self) -> None:
        """One command measures every kind of answer, with its limit beside it, and the memory of large ones."""
        status, out, err = self.run_it("--stream-mb", "1", "--value-mb", "1")
        self.assertEqual((status, err), (0, ""))
        for each in cases():
            self.assertEqual(out.count(f"| {each.name} |"), 1)
        for name in ("stream of 1 MB", "one event of 1 MB", "JSON answer of 1 MB"):
            self.assertEqual(out.count(f"| {name} |"), 1)
        self.assertIn("1 repetitions of 1 events; load ", out)

    def test_only(self) -> None:
        """A look at one kind of answer does not wait for the others."""
        status, out, _ = self.run_it("--only", "JSON", "--no-memory")
        self.assertEqual(status, 0)
        self.assertIn("| JSON chat, one read |", out)
        self.assertNotIn("SSE", out)
        self.assertNotIn("KiB", out)


class Soundness(SynchronousTestCase):
    """A proxy that does less than its work cannot look fast."""

    def test_not_counted(self) -> None:
        """A proxy without accounting in the place of the one with it is found out before anything is timed."""
        error = self.assertRaises(Unsound, check, case("messages"), Proxy(False), Proxy(False))
        self.assertIn("it was not counted", str(error))

    def test_counted_wrongly(self) -> None:
        """A count other than the one that the answer tells is found out."""
        other = case("messages")._replace(tokens=(answers.IN, answers.OUT + 1))
        error = self.assertRaises(Unsound, check, other, Proxy(False), Proxy(True))
        self.assertIn("it was not counted, or not rightly", str(error))

    def test_other_bytes(self) -> None:
        """An answer that is another one with accounting than without is found out."""
        asks = case("the proxy asks")
        error = self.assertRaises(Unsound, check, asks._replace(off=asks.on), Proxy(False), Proxy(True))
        self.assertIn("other bytes", str(error))

    def test_cut_while_timed(self) -> None:
        """A stream that does not end as it did in the check is no measurement."""

        class Tired(Proxy):
            def exchange(self, case: Case, reads: object) -> None:
                super().exchange(case, case.on if self.rows < 2 else case.on[:-1])

        error = self.assertRaises(Unsound, measured, case("gemini"), Proxy(False), Tired(True), 1, 1)
        self.assertIn("not every answer came to its end", str(error))


class Answers(SynchronousTestCase):
    """What the providers' connections give."""

    def test_sizes(self) -> None:
        """The chunks and the answer are as large as OpenAI's: the cost of an event goes by its bytes."""
        self.assertTrue(270 <= len(answers.chat(False)[5]) <= 310)
        self.assertTrue(700 <= len(answers.completion(b"The answer is forty-two.")) <= 900)

    def test_longer_ones(self) -> None:
        """The long streams are the short ones with more pieces, and as sound."""
        for short, long in zip(cases(), cases(1000), strict=True):
            self.assertEqual((long.name, long.request), (short.name, short.request))
            self.assertEqual(long.events, short.events and short.events - answers.PIECES + 1000)
        check(next(each for each in cases(1000) if "gemini" in each.name), Proxy(False), Proxy(True))

    def test_reads(self) -> None:
        """Split into many reads or few, it is the same stream, and each event is in a chunk of its own."""
        one, many = case("responses, one event"), case("responses, 20 events")
        self.assertEqual(b"".join(one.on), b"".join(many.on))
        self.assertEqual(len(one.on), 2 + one.events)
        self.assertEqual(body_of(b"".join(one.on)).count(b"\n\n"), one.events)

    def test_large(self) -> None:
        """The long event is one event, and the long answer is one JSON object of the length that it announces."""
        line = body_of(b"".join(answers.large_line(200_000)[1]))
        longest = max(line.split(b"\n\n"), key=len)
        self.assertTrue(190_000 < len(longest) < 210_000)
        self.assertTrue(len(json.loads(longest.removeprefix(b"data: "))["choices"][0]["delta"]["content"]) > 190_000)
        head, _, body = b"".join(answers.large_json(200_000)[1]).partition(b"\r\n\r\n")
        self.assertIn(b"Content-Length: %d\r\n" % len(body), head + b"\r\n")
        self.assertEqual(json.loads(body)["usage"]["total_tokens"], answers.IN + answers.OUT)
        stream = b"".join(answers.large_stream(200_000)[1])
        self.assertTrue(170_000 < len(stream) < 230_000)


class Tables(SynchronousTestCase):
    """What is printed about figures that are known."""

    def test_times(self) -> None:
        """The first difference is that of the two best, the second the median of the pairs; the limit is said."""
        times = Times(case("SSE chat"), [1.0, 2.0, 3.0], [1.9, 3.5, 5.0])
        self.assertIn("| 1.00 | 1.90 | 0.90 | 1.50 (0.90 - 2.00) | 0.90 |  |  | 1.0 | within |", table([times], []))
        alone = Times(case("JSON"), [10.0], [35.5], [22.0])
        self.assertIn("| 12.00 |  |  | 15.0 | within |", table([alone], []))
        slow = Times(case("JSON"), [10.0], [25.5])
        self.assertIn(
            "| 10.00 | 25.50 | 15.50 | 15.50 (15.50 - 15.50) | 15.50 |  |  | 15.0 | **above** |", table([slow], [])
        )

    def test_each_further_event(self) -> None:
        """From a short stream and a long one it is told what one event costs, and what a stream costs besides."""
        short = Case("SSE", "openai", b"", (), (), 100)
        # 50 us a stream and half a microsecond an event: 100 us for 100 events, and 550 us for a thousand.
        times = Times(short, [1.0], [9.0], [2.0], Times(short._replace(events=1000), [1.0], [9.0], [1.55]))
        self.assertIn("| 1.00 | 50 | 0.50 | 1.0 | within |", table([times], []))

    def test_memory(self) -> None:
        """Memory is told in KiB: at most, and kept."""
        memory = Memory("a stream", (10 * 1024, 1024), (2048 * 1024, 0))
        self.assertIn("| a stream | 10 | 2048 | 2038 | 1 | 0 | 1024 | **above** |", table([], [memory]))


class Ends(SynchronousTestCase):
    def test_transport(self) -> None:
        """The other end takes everything, and remembers it only when it is told to."""

        class Protocol:
            def makeConnection(self, transport: object) -> None:
                self.transport = transport

        transport = Transport(Protocol())
        transport.write(b"a")
        transport.kept = []
        transport.write(b"b")
        self.assertEqual(transport.kept, [b"b"])
