"""What the containers have in common: a run of events is the same as a list and as one JSON array."""

from __future__ import annotations

import json

import msgspec
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.core.reading.aws_event_stream import AWSEventStream
from llmproxy.core.reading.events import FEW_EVENTS, Container, is_odd, plain_part, run_of
from llmproxy.core.reading.json_object import JSONObject
from llmproxy.core.reading.json_runs import JSONArray, JSONLines
from llmproxy.core.reading.sse import SSEReader


class RunTests(SynchronousTestCase):
    """Events that follow one another."""

    def test_the_array_has_the_same_events(self) -> None:
        """A shape that takes a run at once gets what one gets that takes event by event."""
        for texts in ([], [b"{}"], [b'{"a":1}', b' {"b":[2]}', b"3"]):
            run = run_of(texts)
            self.assertEqual(list(run.texts), texts)
            self.assertEqual(json.loads(run.array), [json.loads(text) for text in texts])

    def test_what_is_plain_between_the_ends(self) -> None:
        """A few events of another form at either end do not make the others slow to read; many are not looked for."""
        decoder = msgspec.json.Decoder(list[int])
        plain = [b"[1]"] * FEW_EVENTS
        self.assertEqual(plain_part([b"{}", b"{", *plain, b"3"], decoder), (2, 2 + FEW_EVENTS))
        self.assertEqual(plain_part([*plain, *plain], decoder), (0, 2 * FEW_EVENTS))
        self.assertEqual(plain_part([b"3", b"[1]"], decoder), (0, 2))
        begin, end = plain_part([b"{}"] * 2 * FEW_EVENTS, decoder)
        self.assertTrue(0 < begin < 8 < end < 2 * FEW_EVENTS)

    def test_an_end_that_is_odd(self) -> None:
        """The event that ends a stream is most often far longer or shorter than a piece of text."""
        texts = [b"[%d]" % number for number in range(2 * FEW_EVENTS)]
        self.assertFalse(is_odd(texts))
        self.assertTrue(is_odd([*texts, b"[%b]" % (b" " * 400)]))
        self.assertFalse(is_odd([]))


class ContainerTests(SynchronousTestCase):
    """Each container, told apart only by what it is fed."""

    def test_nothing_comes_of_nothing(self) -> None:
        """A body that ends before it began is no trouble, but for an object, which has to be there."""
        containers: list[Container] = [
            SSEReader(frozenset),
            JSONLines(frozenset),
            JSONArray(frozenset),
            AWSEventStream(),
        ]
        for container in containers:
            self.assertEqual(container.feed(b""), [])
            self.assertEqual(container.finish(), [])
            self.assertFalse(container.done)
            self.assertIsNone(container.trouble)
        thing = JSONObject(frozenset)
        thing.finish()
        self.assertEqual(thing.trouble, "not_json")
