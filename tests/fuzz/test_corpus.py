"""The corpus: every payload that is known to deceive somebody, whole and cut in two at each byte."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from llmproxy.config.model import Server
from tests.fuzz.answers import ask, shows
from tests.fuzz.corpus import entries, halves, verdict
from tests.fuzz.laboratory import CallerLaboratory, Outcome
from tests.fuzz.test_requests import agree


def _run(pieces: list[bytes]) -> Outcome:
    return CallerLaboratory().run(pieces)


class Corpus(SynchronousTestCase):
    """corpus/README.md says what must become of each file."""

    def test_requests(self) -> None:
        """A smuggled, split or broken request is refused or is exactly one clean request at the provider, wherever
        its packets are cut; and whoever reads the same bytes takes the same for a request."""
        for entry in entries("requests"):
            with self.subTest(entry.name):
                whole = _run([entry.data])
                self.assertEqual(verdict(whole), entry.expected, entry.name)
                agree(self, entry.data, whole)
                digest = whole.digest()
                for pieces in halves(entry.data):
                    self.assertEqual(_run(pieces).digest(), digest, f"{entry.name}, cut before {pieces[1]!r}")

    def test_responses(self) -> None:
        """A broken answer is a 502 or visibly cut, and one that is good reaches the caller as it was said, wherever
        its packets are cut; what follows it never answers the next request."""
        for entry in entries("responses"):
            with self.subTest(entry.name):
                for ends in (True, False):  # with the answer, or only where that waits for it
                    whole = ask("GET", [entry.data], ends)
                    self.assertEqual(whole.came, entry.expected, entry.name)
                    self.assertEqual(shows(whole, entry.data), [], entry.name)
                digest = whole.digest()
                for pieces in halves(entry.data):
                    asked = ask("GET", pieces, False)
                    self.assertEqual(asked.digest(), digest, f"{entry.name}, cut before {pieces[1]!r}")

    def test_thirty_thousand_fields(self) -> None:
        """A head of 30,000 fields is refused when it has passed its limit, not read to its end."""
        raw = b"GET /openai/v1/x HTTP/1.1\r\nHost: proxy.test\r\n" + b"X-A: b\r\n" * 30_000 + b"\r\n"
        for size in (len(raw), 1000, 77):
            outcome = _run([raw[at : at + size] for at in range(0, len(raw), size)])
            self.assertEqual((verdict(outcome), outcome.answers[0].status), ("reject", 431))

    def test_many_small_fields(self) -> None:
        """More fields than allowed are refused, though they are small; and as many as allowed are not."""
        limits = Server(max_headers=16)
        for count, expected in ((15, "one"), (16, "reject")):
            raw = b"GET /openai/v1/x HTTP/1.1\r\nHost: proxy.test\r\n" + b"a: b\r\n" * count + b"\r\n"
            for pieces in ([raw], halves(raw)[30], [raw[at : at + 1] for at in range(len(raw))]):
                self.assertEqual(verdict(CallerLaboratory(limits).run(pieces)), expected)
