"""From events to writes: codings, sizes, faults."""

from __future__ import annotations

import importlib.util
import zlib
from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.simulate import steps
from llmproxy.simulate.steps import Act, CodingUnavailable, Step, steps_of_body, steps_of_events, whole
from llmproxy.simulate.wishes import wishes_of

_EVENTS = [b"data: one\n\n", b"data: two\n\n", b"data: three\n\n"]
_ALL = b"".join(_EVENTS)


def _steps(text: str, events: list[bytes] | None = None) -> list[Step]:
    given_events = iter(_EVENTS if events is None else events)
    return list(steps_of_events(given_events, wishes_of(text), lambda sent: b"error after %d" % sent))


class FaultTests(SynchronousTestCase):
    """Where an answer breaks."""

    def test_nothing_asked(self) -> None:
        """Each event is one write."""
        self.assertEqual(_steps(""), _EVENTS)

    def test_faults_by_events(self) -> None:
        """`silence=N` and `error_event=N` let N events through, none included."""
        for n in range(4):
            self.assertEqual(_steps(f"silence={n}"), [*_EVENTS[:n], Act.SILENCE])
            self.assertEqual(_steps(f"error_event={n}"), [*_EVENTS[:n], b"error after %d" % n])
        self.assertEqual(_steps("silence=4"), _EVENTS)

    @given(st.integers(0, len(_ALL) + 5), st.sampled_from(["cut", "reset", "garbage"]), st.none() | st.integers(1, 40))
    def test_faults_by_bytes(self, at: int, fault: str, chunk: int | None) -> None:
        """Exactly N bytes come before a cut, a reset or garbage, however the writes are sized."""
        made = _steps(f"{fault}={at}" + (f",chunk={chunk}" if chunk else ""))
        written = b"".join(step for step in made if isinstance(step, bytes))
        self.assertEqual(written, _ALL[:at])
        acts = [step for step in made if isinstance(step, Act)]
        self.assertEqual(acts, [Act[fault.upper()]] if at <= len(_ALL) else [])
        self.assertFalse(acts and isinstance(made[-1], bytes))

    def test_the_earliest_fault_wins(self) -> None:
        """Of two faults only the nearer one happens."""
        self.assertEqual(_steps("cut=20,reset=5"), [_ALL[:5], Act.RESET])
        self.assertEqual(_steps("cut=500,silence=1"), [_EVENTS[0], Act.SILENCE])

    @given(st.lists(st.binary(min_size=1, max_size=50)), st.integers(1, 20))
    def test_sized_writes(self, events: list[bytes], size: int) -> None:
        """`chunk=N`: the same bytes, each write but the last of N bytes."""
        made = [step for step in _steps(f"chunk={size}", events) if isinstance(step, bytes)]
        self.assertEqual(b"".join(made), b"".join(events))
        self.assertTrue(all(len(step) == size for step in made[:-1]))

    def test_a_whole_body_is_one_event(self) -> None:
        """`silence=0` keeps a whole body back; a larger number does not touch it; large ones are written in parts."""
        self.assertEqual(list(steps_of_body(b"abc", wishes_of("silence=0"))), [Act.SILENCE])
        self.assertEqual(list(steps_of_body(b"abc", wishes_of("silence=1"))), [b"abc"])
        large = b"x" * 200_000
        made = list(steps_of_body(large, wishes_of("")))
        self.assertEqual(b"".join(step for step in made if isinstance(step, bytes)), large)
        self.assertGreater(len(made), 3)

    def test_nothing_is_made_ahead(self) -> None:
        """An endless stream is taken event by event."""

        def endless() -> Iterator[bytes]:
            while True:
                yield b"data: x\n\n"

        made = steps_of_events(endless(), wishes_of("encoding=gzip,chunk=4"), lambda sent: b"")
        self.assertEqual(len([next(made) for _ in range(100)]), 100)


class CodingTests(SynchronousTestCase):
    """Content codings."""

    def test_each_event_can_be_decoded_when_it_comes(self) -> None:
        """gzip and deflate are flushed per event: the reader has event one before event two is written."""
        for coding, wbits in (("gzip", 31), ("deflate", 15)):
            decoder = zlib.decompressobj(wbits=wbits)
            read = []
            for step in _steps(f"encoding={coding}"):
                assert isinstance(step, bytes)
                read.append(decoder.decompress(step))
            self.assertEqual(read, [*_EVENTS, b""])
            self.assertTrue(decoder.eof)

    def test_brotli_and_zstandard(self) -> None:
        """Where the package is installed the body decodes; where it is not, a sentence names the package."""
        for coding, package in (("br", "brotli"), ("zstd", "zstandard")):
            if importlib.util.find_spec(package) is None:
                with self.assertRaises(CodingUnavailable) as caught:
                    whole(b"abc", coding)
                self.assertIn(package, str(caught.exception))
                continue
            coded = whole(b"abc" * 100, coding)
            module = importlib.import_module(package)
            decode = module.decompress if coding == "br" else module.ZstdDecompressor().decompressobj().decompress
            self.assertEqual(decode(coded), b"abc" * 100)
            first = next(steps_of_events(iter(_EVENTS), wishes_of(f"encoding={coding}"), lambda sent: b""))
            assert isinstance(first, bytes)
            stream = (
                module.Decompressor().process
                if coding == "br"
                else module.ZstdDecompressor().decompressobj().decompress
            )
            self.assertEqual(stream(first), _EVENTS[0])

    def test_whole_bodies(self) -> None:
        """A whole body is coded whole, and left alone when nothing was asked."""
        self.assertEqual(zlib.decompress(whole(b"abc", "gzip"), 31), b"abc")
        self.assertEqual(whole(b"abc", None), b"abc")
        self.assertEqual(steps.whole(b"", None), b"")
