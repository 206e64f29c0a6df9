"""A caller that says anything: what goes upstream is what it said, or nothing."""

from __future__ import annotations

import re

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.fuzz import grammar
from tests.fuzz.examples import examples
from tests.fuzz.grammar import OWN_TARGETS, Said
from tests.fuzz.laboratory import CallerLaboratory, Outcome
from tests.fuzz.readers import Pairs, answer_to, read_requests

_LENGTH = re.compile(rb"(\r\ncontent-length:[ \t]*)[0-9]+", re.IGNORECASE)
_pipeline = st.lists(grammar.requests(), min_size=1, max_size=4)


def _upstream_target(target: bytes) -> bytes:
    path = target.removeprefix(b"/meta/me")
    return path.removeprefix(b"/openai")


def _as_h11_has_them(fields: Pairs) -> Pairs:
    """h11 gives the value of Transfer-Encoding in lower case."""
    return [(name, value.lower() if name.lower() == b"transfer-encoding" else value) for name, value in fields]


def run(pieces: list[bytes]) -> Outcome:
    """One conversation with a proxy of its own."""
    return CallerLaboratory().run(pieces)


class WellFormed(SynchronousTestCase):
    """Requests as they should be."""

    @settings(max_examples=examples(150))
    @given(st.data(), _pipeline)
    def test_exact(self, data: st.DataObject, said: list[Said]) -> None:
        """However the bytes of several requests are cut into packets: each reaches the provider once, in order, with
        its own body, even if that looks like a request; and each caller's answer is that to its own request."""
        raw = b"".join(each.raw for each in said)
        outcome = run(data.draw(grammar.pieces(raw)))
        forwarded = [each for each in said if each.target not in OWN_TARGETS]
        self.assertEqual(
            [(m.method, m.target, m.body, m.trailers) for m in outcome.received],
            [(s.method, _upstream_target(s.target), s.body, s.trailers) for s in forwarded],
        )
        answered = [
            a.body for a in outcome.answers if a.get(b"x-llm-proxy-error-source") is None and a.body[:1].isdigit()
        ]
        expected = [answer_to(m) for m in outcome.received if m.method != b"HEAD"]
        self.assertEqual(answered, expected)


class Malformed(SynchronousTestCase):
    """Requests as they should not be. The laboratory checks what holds for each."""

    @settings(max_examples=examples(400))
    @given(st.data(), grammar.mutated(_pipeline.map(lambda said: b"".join(each.raw for each in said))))
    def test_split(self, data: st.DataObject, raw: bytes) -> None:
        """Broken bytes do the same however they are cut into packets, and what of them is taken for a request is
        what somebody else takes for one, body included."""
        whole = run([raw])
        split = run(data.draw(grammar.pieces(raw)))
        self.assertEqual(whole.digest(), split.digest())
        agree(self, raw, whole)


@st.composite
def _alike(draw: st.DrawFn) -> list[bytes]:
    """The same request some times, with other bodies too, and perhaps something else that begins like it."""
    said = draw(grammar.requests())
    other = grammar.mutated(st.just(said.raw)) | st.just(said.raw + draw(grammar.requests()).raw)
    head, _, _ = said.raw.partition(b"\r\n\r\n")
    if _LENGTH.search(head) is not None:
        other |= grammar.bodies.map(lambda body: _LENGTH.sub(rb"\g<1>%d" % len(body), head) + b"\r\n\r\n" + body)
    return [draw(st.just(said.raw) | st.just(said.raw) | other) for _ in range(draw(st.integers(2, 5)))]


class Alike(SynchronousTestCase):
    """Requests that are the same as the one before, or nearly. There is a short cut for them: wire/repeat.py."""

    @settings(max_examples=examples(250))
    @given(st.data(), _alike())
    def test_split(self, data: st.DataObject, said: list[bytes]) -> None:
        """Each in one packet, where the short cut is taken, or in any others, where the parser reads: the same."""
        whole = run(said)
        raw = b"".join(said)
        self.assertEqual(run(data.draw(grammar.pieces(raw))).digest(), whole.digest())
        self.assertEqual(run([raw]).digest(), whole.digest())
        agree(self, raw, whole)


def agree(case: SynchronousTestCase, raw: bytes, outcome: Outcome) -> None:
    """The requests that we took are those that h11 reads in the same bytes, as far as both read on."""
    theirs = read_requests(raw).requests
    for ours, other in zip(outcome.accepted(), theirs, strict=False):
        case.assertEqual((ours.method, ours.body), (other.method, other.body))
        case.assertEqual(_as_h11_has_them(ours.fields), other.fields)
        if other.target.startswith(b"/"):
            case.assertEqual(ours.target, other.target)
