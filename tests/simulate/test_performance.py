"""How an answer goes over its connection: pace, the caller's pace, leaving, and faults as they look on the wire."""

from __future__ import annotations

import gzip
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from llmproxy.simulate.performance import RESET_AFTER_S
from llmproxy.simulate.steps import GARBAGE
from tests.simulate.caller import NOON, OPENAI, Answer, Call, Simulator, request

CHAT = "POST /v1/chat/completions"
STREAM: dict[str, Any] = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}], "stream": True}
WHOLE = STREAM | {"stream": False}


class Case(SynchronousTestCase):
    """With a simulator."""

    def setUp(self) -> None:
        self.simulator = Simulator()
        self.clock = self.simulator.clock

    def begin(self, simulate: str, body: object = STREAM) -> Call:
        """A request whose body is in, at the moment it is in."""
        return self.simulator.begin(CHAT, body, OPENAI | {"X-Simulate": simulate})

    def idle(self) -> None:
        """Nothing is due any more."""
        self.assertEqual(self.clock.getDelayedCalls(), [])


class PaceTests(Case):
    """Time."""

    def test_the_head_comes_after_the_delay(self) -> None:
        """`delay` is the time to the head; the first event comes with it."""
        call = self.begin("delay=2,interval=1")
        self.clock.advance(1.9)
        self.assertEqual(call.answer.raw, b"")
        self.clock.advance(0.2)
        self.assertEqual((call.answer.status, len(call.answer.pieces)), (200, 1))

    def test_events_come_one_by_one(self) -> None:
        """Each interval brings one event, whole, as one chunk."""
        call = self.begin("delay=0,interval=0.5,events=3")
        self.clock.advance(0)
        for count in range(1, 5):
            self.assertEqual(len(call.answer.events()), count)
            self.clock.advance(0.5)

    def test_the_defaults_are_real(self) -> None:
        """Without wishes an answer takes its 50 ms and 20 ms an event."""
        call = self.simulator.begin(CHAT, STREAM | {"model": "gpt-4o+events=10"}, OPENAI)
        self.simulator.run()
        self.assertTrue(call.answer.complete)
        took = self.clock.seconds() - NOON
        self.assertTrue(0.05 + 0.02 * 12 <= took < 0.4, took)

    def test_a_whole_answer_comes_at_once(self) -> None:
        """An answer that is not streamed is not paced, but is by `chunk` and `interval`."""
        call = self.begin("delay=0", WHOLE)
        self.clock.advance(0)
        self.clock.advance(0)
        self.assertTrue(call.answer.complete)
        call = self.begin("delay=0,chunk=100,interval=1", WHOLE)
        self.clock.advance(0)
        self.assertEqual(len(call.answer.body), 100)
        self.clock.advance(1)
        self.assertEqual(len(call.answer.body), 200)

    def test_the_connection_is_kept(self) -> None:
        """After an answer the same connection takes the next request."""
        call = self.begin("")
        self.simulator.run()
        call.transport.clear()
        call.send(request(CHAT, WHOLE, OPENAI))
        self.simulator.run()
        self.assertEqual(call.answer.status, 200)
        seen = self.simulator.shown("requests")["requests"]
        self.assertEqual([one["connection"] for one in seen], [1, 1])


class CallersPaceTests(Case):
    """A caller that does not read, and one that leaves."""

    def test_a_caller_that_does_not_read_is_waited_for(self) -> None:
        """While paused nothing is written and no timer runs; after that the stream goes on where it was."""
        call = self.begin("delay=0,interval=0.01,events=100")
        self.clock.advance(0.5)
        call.transport.producer.pauseProducing()
        before = len(call.answer.events())
        self.clock.advance(10)
        self.assertEqual(len(call.answer.events()), before)
        self.idle()
        call.transport.producer.resumeProducing()
        self.simulator.run()
        self.assertTrue(call.answer.complete)
        self.assertEqual(len(call.answer.events()), 103)

    def test_a_terabyte_costs_nothing(self) -> None:
        """An answer far larger than memory stops when the caller does not read."""
        call = self.begin("delay=1,interval=0,bytes=1000000000000")
        call.transport.room_bytes = 100_000
        self.clock.advance(1)
        size = len(call.transport.value())
        self.clock.advance(5)
        self.assertEqual(len(call.transport.value()), size)
        self.assertLess(size, 200_000)
        call.leave()
        self.idle()

    def test_pausing_before_the_head(self) -> None:
        """A caller that is behind when the answer begins gets it when it reads."""
        call = self.begin("delay=1")
        call.transport.producer.pauseProducing()
        self.clock.advance(2)
        call.transport.producer.resumeProducing()
        self.simulator.run()
        self.assertTrue(call.answer.complete)

    def test_silence_stays_silence(self) -> None:
        """A pause and a resume do not wake a stream that has fallen silent."""
        call = self.begin("delay=0,interval=0,silence=2")
        self.simulator.run()
        call.transport.producer.pauseProducing()
        call.transport.producer.resumeProducing()
        self.simulator.run()
        self.assertEqual((len(call.answer.events()), call.answer.complete), (2, False))

    def test_leaving_stops_everything(self) -> None:
        """In the upload, before the head, in the stream, in silence: no timer is left, and it is counted."""
        uploading = Call(self.simulator)
        uploading.send(request(CHAT, STREAM, OPENAI)[:-5])
        uploading.leave()
        for simulate, wait in (
            ("delay=5", 0.1),
            ("delay=0,interval=1", 3),
            ("delay=0,silence=2", 1),
            ("silence=head", 1),
            ("delay=0,reset=50", 0.01),
        ):
            call = self.begin(simulate)
            self.clock.advance(wait)
            call.leave()
            self.idle()
        counts = self.simulator.shown("connections")
        self.assertEqual((counts["requests"], counts["aborted"], counts["answering"]), (6, 6, 0))
        self.assertTrue(all(one["aborted"] for one in self.simulator.shown("requests")["requests"]))


class FaultTests(Case):
    """Faults, as a client sees them."""

    def _seen(self, simulate: str, body: object = STREAM) -> tuple[Call, Answer]:
        call = self.begin(simulate, body)
        self.simulator.run()
        return call, call.answer

    def test_silence(self) -> None:
        """After two events nothing more comes and the connection stays; before the head, nothing at all."""
        call, answer = self._seen("silence=2")
        self.assertEqual((len(answer.events()), answer.complete), (2, False))
        self.assertFalse(call.closed or call.transport.aborted)
        call, answer = self._seen("silence=head")
        self.assertEqual(answer.raw, b"")
        self.assertFalse(call.closed or call.transport.aborted)

    def test_cut(self) -> None:
        """A cut stream has no last chunk, a cut body fewer bytes than announced; the connection is closed."""
        for body in (STREAM, WHOLE):
            call, answer = self._seen("cut=300", body)
            self.assertEqual((len(answer.body), answer.complete, answer.status), (300, False, 200))
            self.assertTrue(call.closed)

    def test_reset(self) -> None:
        """N bytes come through, then the connection is reset; before the head, at once."""
        call = self.begin("delay=0,interval=0,reset=300")
        self.clock.advance(0)
        self.assertEqual(len(call.answer.body), 300)
        self.assertFalse(call.transport.aborted)
        self.clock.advance(RESET_AFTER_S)
        self.assertTrue(call.transport.aborted)
        call, answer = self._seen("reset=head")
        self.assertTrue(call.transport.aborted)
        self.assertEqual(answer.raw, b"")

    def test_garbage(self) -> None:
        """What follows is no HTTP: a parser fails, in place of a head and in place of a chunk, then it is closed."""
        for simulate, body in (("garbage=head", STREAM), ("garbage=300", STREAM), ("garbage=300", WHOLE)):
            call, answer = self._seen(simulate, body)
            self.assertIsNotNone(answer.error)
            self.assertTrue(answer.raw.endswith(GARBAGE))
            self.assertTrue(call.closed)

    def test_close(self) -> None:
        """`close=1`: no length, no chunks, the end is the end of the connection."""
        for body in (STREAM, WHOLE):
            call, answer = self._seen("close=1", body)
            self.assertIsNone(answer.field("content-length") or answer.field("transfer-encoding"))
            self.assertEqual(answer.field("connection"), "close")
            self.assertTrue(call.closed)
        self.assertEqual(answer.json()["object"], "chat.completion")

    def test_codings(self) -> None:
        """A coded body says so, has the right length, and decodes to the plain one's events."""
        plain = self._seen("events=3")[1]
        coded = self._seen("events=3,encoding=gzip")[1]
        self.assertEqual(coded.field("content-encoding"), "gzip")
        self.assertEqual(len(gzip.decompress(coded.body).split(b"\n\n")), len(plain.body.split(b"\n\n")))
        whole = self._seen("encoding=gzip", WHOLE)[1]
        self.assertEqual(whole.field("content-length"), str(len(whole.body)))
        self.assertIn(b"chat.completion", gzip.decompress(whole.body))

    def test_sized_writes(self) -> None:
        """`chunk=7` makes chunks of seven bytes."""
        answer = self._seen("chunk=7")[1]
        self.assertEqual({len(piece) for piece in answer.pieces[:-1]}, {7})
        self.assertEqual(answer.events()[-1], ("", "[DONE]"))

    def test_other_statuses(self) -> None:
        """204 has no body, 302 says where to, 201 is the answer with that status; the connection goes on."""
        answer = self._seen("status=204", WHOLE)[1]
        self.assertEqual((answer.status, answer.body, answer.complete), (204, b"", True))
        answer = self._seen("status=302", WHOLE)[1]
        self.assertEqual((answer.status, answer.field("location")), (302, "https://simulator.invalid/moved"))
        answer = self._seen("status=201", WHOLE)[1]
        self.assertEqual((answer.status, answer.json()["object"]), (201, "chat.completion"))

    def test_an_early_answer(self) -> None:
        """`early=1` answers before the upload has ended, and once only."""
        call = Call(self.simulator)
        sent = request(CHAT, STREAM, OPENAI | {"X-Simulate": "early=1,status=413"})
        call.send(sent[:-20])
        self.clock.advance(0.1)
        self.assertEqual((call.answer.status, call.answer.complete), (413, True))
        call.send(sent[-20:])
        self.clock.advance(5)
        self.assertEqual(call.transport.value().count(b"HTTP/1.1"), 1)

    def test_a_whole_answer_has_a_bound(self) -> None:
        """What would not fit into memory must be streamed."""
        answer = self._seen("bytes=1000000000000", WHOLE)[1]
        self.assertEqual(answer.status, 400)
        self.assertIn("must be streamed", answer.json()["error"]["message"])


class BodyTests(Case):
    """The request's body."""

    def test_split_anywhere(self) -> None:
        """A request that comes byte by byte is answered as one that comes whole."""
        call = Call(self.simulator)
        for byte in request(CHAT, WHOLE, OPENAI):
            call.send(bytes([byte]))
        self.simulator.run()
        self.assertEqual(call.answer.status, 200)

    def test_chunked(self) -> None:
        """A chunked upload is read, counted and hashed."""
        call = Call(self.simulator)
        head = request("POST /v1/embeddings", None, OPENAI | {"Transfer-Encoding": "chunked"})
        call.send(head.replace(b"Content-Length: 0\r\n", b""))
        body = b'{"model":"m","input":"x"}'
        for at in range(0, len(body), 5):
            call.send(b"%x\r\n%b\r\n" % (len(body[at : at + 5]), body[at : at + 5]))
        call.send(b"0\r\n\r\n")
        self.simulator.run()
        self.assertEqual(call.answer.status, 200)
        self.assertEqual(self.simulator.shown("requests")["requests"][0]["body_bytes"], len(body))
