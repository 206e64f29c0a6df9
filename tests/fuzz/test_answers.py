"""A provider that says anything: the caller gets what it said, or sees that something is wrong."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.fuzz import grammar
from tests.fuzz.answers import CASES, CUT, REFUSED, RELAYED, Ask, ask, shows
from tests.fuzz.examples import examples
from tests.fuzz.grammar import Replied

_methods = st.sampled_from(sorted(CASES))


@st.composite
def _replies(draw: st.DrawFn) -> tuple[str, Replied]:
    name = draw(_methods)
    return name, draw(grammar.replies(name.partition(" ")[0].encode()))


class WellFormed(SynchronousTestCase):
    """Answers as they should be."""

    @settings(max_examples=examples(150))
    @given(st.data(), _replies(), st.booleans())
    def test_exact(self, data: st.DataObject, case: tuple[str, Replied], ends: bool) -> None:
        """However its bytes are cut into packets, and interim answers in front of it or not: the caller gets the
        provider's status, reason, fields, body and trailers, and then another answer to its next request."""
        name, reply = case
        asked = ask(name, data.draw(grammar.pieces(reply.raw)), ends or reply.until_close)
        self.assertEqual(asked.came, RELAYED)
        answer = asked.outcome.answers[0]
        self.assertEqual(
            (answer.status, answer.reason, answer.body, answer.trailers),
            (reply.status, reply.reason, reply.body, [] if "1.0" in name else reply.trailers),
        )
        for field in reply.fields:
            if field[0] not in (b"Transfer-Encoding", b"Content-Length"):
                self.assertIn(field, answer.fields)
        self.assertIn(asked.second, (b"SECOND", None))


class Malformed(SynchronousTestCase):
    """Answers as they should not be."""

    @settings(max_examples=examples(350))
    @given(st.data(), _methods, st.booleans())
    def test_split(self, data: st.DataObject, name: str, ends: bool) -> None:
        """A broken answer becomes a 502, or is cut so that the caller sees it, or is one that somebody else reads in
        the same way; which of these does not depend on packets; and nothing of it is left for the next request."""
        replies = grammar.replies(name.partition(" ")[0].encode()).map(lambda reply: reply.raw)
        raw = data.draw(grammar.mutated(replies))
        whole = ask(name, [raw], ends)
        split = ask(name, data.draw(grammar.pieces(raw)), ends)
        self.assertEqual(whole.digest(), split.digest())
        for asked in (whole, split):
            self.check(asked, raw)

    def check(self, asked: Ask, raw: bytes) -> None:
        """What the caller has is what was said, or a sign that it is not."""
        self.assertIn(asked.came, (RELAYED, REFUSED, CUT))
        self.assertEqual(shows(asked, raw), [])
