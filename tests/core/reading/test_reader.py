"""The reader: which container and which shape an answer has, and the same reading for every split.

The shapes are made for these tests: what a provider's own says is tested with it.
"""

from __future__ import annotations

import json
import struct
import tracemalloc
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar
from zlib import crc32

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.core.reading.events import EVENT_BYTES_MAX
from llmproxy.core.reading.json_object import BODY_BYTES_MAX
from llmproxy.core.reading.reader import BATCH_BYTES, EVENTS_LOOKED_AT, UsageReader, read_whole
from llmproxy.core.reading.recognition import Shapes
from llmproxy.core.reading.shape import Members, Path
from llmproxy.core.usage import Counters, Reading, Usage


class Plain:
    """Sums `n` of all that it is given: input tokens. Its bodies and events have `plain`."""

    __slots__ = ("_end", "_events", "_sum", "_text_bytes")

    name = "plain"
    watched: frozenset[Path] = frozenset({("n",)})
    key: ClassVar[str] = "plain"

    def __init__(self) -> None:
        self._sum = 0
        self._events = 0
        self._text_bytes = 0
        self._end: str | None = None

    @classmethod
    def recognises(cls, keys: Mapping[str, bytes]) -> bool:
        return cls.key in keys

    def take_body(self, body: bytes) -> None:
        self._add(body)
        self._end = "body"

    def take_events(self, events: Sequence[bytes]) -> None:
        for event in events:
            self._add(event)

    def take_large(self, members: Members, skipped_bytes: int) -> None:
        self._events += 1
        self._text_bytes += skipped_bytes
        self._sum += int(members.get(("n",), b"0"))

    def reading(self, whole: bool) -> Reading:
        return Reading(
            shape=self.name,
            usage=Usage(input_tokens=self._sum),
            counters=Counters.FINAL if whole else Counters.RUNNING,
            reason=None if whole else "stream_cut",
            finish_reason=self._end,
            text_events=self._events,
            text_characters=self._text_bytes,
        )

    def _add(self, text: bytes) -> None:
        self._events += 1
        try:
            value = json.loads(text)
        except ValueError:
            return
        number = value.get("n") if isinstance(value, dict) else None
        self._sum += number if isinstance(number, int) else 0


class Quick(Plain):
    """The same, for what has `quick`; takes whole arrays, if they have no member `refuse`."""

    __slots__ = ()

    name = "quick"
    key = "quick"

    def take_array(self, text: bytes, count: int) -> bool:
        if b"refuse" in text:
            return False
        values = json.loads(text)
        assert len(values) == count
        for value in values:
            self._add(json.dumps(value).encode())
        return True


SHAPES: Shapes = (Plain, Quick)


def read(pieces: Iterable[bytes], whole: bool = True) -> Reading:
    reader = UsageReader(SHAPES)
    for piece in pieces:
        reader.feed(piece)
    return reader.finish(whole)


def cut(body: bytes, size: int) -> list[bytes]:
    return [body[at : at + size] for at in range(0, len(body), size)]


def sse(*events: bytes) -> bytes:
    return b"".join(b"data: %b\n\n" % event for event in events)


def frame(kind: bytes, payload: bytes) -> bytes:
    headers = b"\x0b:event-type\x07" + struct.pack(">H", len(kind)) + kind
    prelude = struct.pack(">II", 16 + len(headers) + len(payload), len(headers))
    text = prelude + struct.pack(">I", crc32(prelude)) + headers + payload
    return text + struct.pack(">I", crc32(text))


LINES = b'{"plain":1,"n":2}\n{"n":3}\n{"n":4}\n'
BODIES = {
    "object": b'{"plain":1,"n":9}',
    "object on many lines": b'{\n  "plain": 1,\n  "n": 9\n}\n',
    "lines": LINES,
    "array": b'[{"plain":"a\\"]","n":2}\n,\r\n{"n":3,"x":[{}]},\n[{"n":50}], "x]", 7, {"n":4}\n]',
    "SSE": sse(b'{"plain":1,"n":2}', b'{"n":3}', b'{"n":4}', b"[DONE]"),
    "SSE with names": b'event: a\ndata: {"plain":1,"n":2}\n\nevent: b\r\ndata: {"n":7}\r\n\r\n',
    "SSE after a comment": b": hello\n\n" + sse(b'{"plain":1,"n":9}'),
    "AWS": frame(b"plain", b"{}") + frame(b"n", b"9"),
}


class ContainerTests(SynchronousTestCase):
    """Whatever an answer comes in, it is read."""

    def test_every_container_in_any_split(self) -> None:
        """Whatever form an answer has and wherever its pieces are torn, what it used is the same."""
        for name, body in BODIES.items():
            for mark in (b"", b"\xef\xbb\xbf", b"\r\n \t") if name != "AWS" else (b"",):
                text = mark + body
                for pieces in ([text], cut(text, 1), *([text[:at], text[at:]] for at in range(len(text)))):
                    reading = read(pieces)
                    self.assertEqual(
                        (reading.shape, reading.usage.input_tokens, reading.counters, reading.reason),
                        ("plain", 9, Counters.FINAL, None),
                        (name, pieces),
                    )

    def test_many_events(self) -> None:
        """A long stream, of which every event counts, is read whole whatever pieces it comes in."""
        events = [b'{"quick":1,"n":%d,"text":"%b"}' % (number, b"x" * (number % 300)) for number in range(500)]
        wanted = sum(range(500))
        for body in (sse(*events), b"\n".join(events), b"[%b]" % b",".join(events)):
            for size in (1, 97, 300, BATCH_BYTES, BATCH_BYTES + 1, 10**6):
                reading = read(cut(body, size))
                self.assertEqual((reading.usage.input_tokens, reading.text_events), (wanted, 500))

    def test_a_shape_may_refuse_an_array(self) -> None:
        """Where a shape cannot take a whole run at once, it gets its events, each of them once."""
        body = sse(b'{"quick":1,"n":1}', b'{"refuse":1,"n":2}')
        self.assertEqual((read([body]).usage.input_tokens, read([body]).text_events), (3, 2))

    def test_an_unknown_container(self) -> None:
        """What is no answer that we know (a page, a sound) is said to be none."""
        for body in (b"<html>", b"ID3\x04\x00\x00", b"\x00" * 40, b"true", b"datum: x", b"d", b"RIFF" + b"x" * 20000):
            for size in (1, 7, 10**6):
                reading = read(cut(body, size))
                self.assertEqual(
                    (reading.shape, reading.counters, reading.reason), ("", Counters.ABSENT, "not_json"), body[:20]
                )
            self.assertEqual(read_whole(body, SHAPES), reading)

    def test_an_empty_answer(self) -> None:
        """An answer with nothing in it is told apart from one that cannot be read."""
        for body in (b"", b" \r\n", b"\xef\xbb\xbf"):
            self.assertEqual(read([body]), Reading(reason="empty"))
            self.assertEqual(read_whole(body, SHAPES), Reading(reason="empty"))
        self.assertEqual(read([b": ping\n\n"]), Reading(reason="no_events"))

    def test_a_damaged_aws_stream(self) -> None:
        """What came before the damage counts, and that not all was read is said."""
        body = frame(b"plain", b"{}") + frame(b"n", b"9") + frame(b"n", b"5")[:-1] + b"\x00" + frame(b"n", b"7")
        reading = read([body])
        self.assertEqual((reading.usage.input_tokens, reading.counters), (9, Counters.RUNNING))
        self.assertEqual(reading.reason, "bad_checksum")


class ShapeTests(SynchronousTestCase):
    """Which shape an answer has."""

    def test_the_first_that_recognises_it(self) -> None:
        """Of two shapes that would both do, the one that is asked first takes the answer."""
        body = b'{"quick":1,"plain":1}'
        self.assertEqual(read_whole(body, SHAPES).shape, "plain")
        self.assertEqual(read_whole(body, (Quick, Plain)).shape, "quick")

    def test_other_events_may_come_first(self) -> None:
        """Pings before the first real event do not keep a stream from being read."""
        for others, is_read in ((EVENTS_LOOKED_AT - 1, True), (EVENTS_LOOKED_AT, False)):
            body = sse(*[b'{"ping":1,"n":100}'] * others, b'{"plain":1,"n":2}', b'{"n":3}')
            for size in (1, 10**6):
                reading = read(cut(body, size))
                self.assertEqual(
                    (reading.shape, reading.usage.input_tokens, reading.reason),
                    ("plain", 5, None) if is_read else ("", 0, "unknown_shape"),
                )

    def test_what_no_shape_knows(self) -> None:
        """An answer of a kind that nobody knows is said to be so, in any container."""
        for body in (b'{"a":1}', b'{"a":1}\n{"b":1}\n', b'[{"a":1}]', sse(b'{"a":1}'), frame(b"a", b"{}")):
            self.assertEqual(read([body]), Reading(reason="unknown_shape"))
            self.assertEqual(read_whole(body, SHAPES), Reading(reason="unknown_shape"))

    def test_an_error_and_nothing_else(self) -> None:
        """An error is told by its kind, whoever writes it and in whatever container."""
        errors = {
            b'{"error":{"message":"m","type":"invalid_request_error","code":null}}': "invalid_request_error",
            b'{"type":"error","error":{"type":"overloaded_error","message":"m"},"request_id":"r"}': "overloaded_error",
            b'{"error":{"code":503,"message":"m","status":"UNAVAILABLE"}}': "UNAVAILABLE",
            b'{"error":{"code":503}}': "503",
            b'{"type":"error","code":"server_error","message":"m","sequence_number":3}': "server_error",
            b'{"error":"free text"}': "error",
            b'{"error":{"message":"%b"}}' % (b"x" * 5000): "error",
        }
        for error, kind in errors.items():
            for body in (error, b"[%b]" % error, sse(error), b"event: error\n" + sse(error)):
                wanted = Reading(reason="error", error=kind)
                self.assertEqual(read([body]), wanted)
                self.assertEqual(read(cut(body, 1), whole=False), wanted)
                self.assertEqual(read_whole(body, SHAPES), wanted)

    def test_no_error(self) -> None:
        """A member that says that there was no error is not taken for one."""
        self.assertEqual(read_whole(b'{"error":null,"x":1}', SHAPES), Reading(reason="unknown_shape"))


class EndTests(SynchronousTestCase):
    """An answer that did not come to its end, and one that is still coming."""

    def test_a_cut_stream(self) -> None:
        """Of a stream that was cut, all that came counts, and that there may have been more is said."""
        body = sse(b'{"plain":1,"n":2}', b'{"n":3}')
        reading = read([body], whole=False)
        self.assertEqual((reading.usage.input_tokens, reading.counters), (5, Counters.RUNNING))
        self.assertEqual(reading.reason, "stream_cut")

    def test_an_event_without_its_blank_line(self) -> None:
        """The last event of a cut stream counts, if its data is whole."""
        body = sse(b'{"plain":1,"n":2}', b'{"n":3}')
        self.assertEqual(read([body[:-2]], whole=False).usage.input_tokens, 5)
        self.assertEqual(read([body[:-4]], whole=False).usage.input_tokens, 2)

    def test_a_caller_that_leaves_after_the_end_mark(self) -> None:
        """A stream that has said that it is over is whole, even if the connection is lost then."""
        for body in (sse(b'{"plain":1,"n":2}', b"[DONE]"), b'[{"plain":1,"n":2}]'):
            self.assertEqual(read([body], whole=False).counters, Counters.FINAL)

    def test_a_cut_object(self) -> None:
        """Of an object that was cut there is what had come, and it is not taken for all."""
        for whole in (True, False):
            reading = read([b'{"plain":1,"n":2,"x":[1,'], whole)
            self.assertEqual((reading.shape, reading.usage.input_tokens), ("plain", 2))
            self.assertEqual((reading.counters, reading.reason), (Counters.RUNNING, "incomplete_json"))
        self.assertEqual(read([b"{nothing"]), Reading(reason="not_json"))

    def test_cut_lines(self) -> None:
        """Of lines that were cut, those that came count."""
        reading = read([LINES[:-4]], whole=False)
        self.assertEqual((reading.usage.input_tokens, reading.counters), (5, Counters.RUNNING))

    def test_something_after_the_object(self) -> None:
        """What is no JSON after an object does not make it unreadable."""
        reading = read([b'{"plain":1,"n":2} trailing'])
        self.assertEqual((reading.shape, reading.usage.input_tokens), ("plain", 2))

    def test_a_snapshot(self) -> None:
        """While a stream goes on, what it has used so far can be asked for at any time, and changes nothing."""
        reader = UsageReader(SHAPES)
        self.assertEqual(reader.snapshot(), Reading(reason="empty"))
        for at, byte in enumerate(body := sse(b'{"plain":1,"n":2}', b'{"n":3}')):
            reader.feed(bytes([byte]))
            reading = reader.snapshot()
            wanted = 5 if at == len(body) - 1 else 2 if at >= body.index(b"\n\n") + 1 else 0
            self.assertEqual((reading.usage.input_tokens, reading.counters is Counters.FINAL), (wanted, False))
        self.assertEqual(reader.finish(True), read([body]))

    def test_finishing_again(self) -> None:
        """Asking for the reading again gives the same."""
        reader = UsageReader(SHAPES)
        reader.feed(sse(b'{"plain":1,"n":2}'))
        self.assertEqual(reader.finish(True), reader.finish(True))
        reader.feed(sse(b'{"n":3}'))
        self.assertEqual(reader.finish(True).usage.input_tokens, 2)


class LargeTests(SynchronousTestCase):
    """What is too large to keep."""

    def test_a_large_object(self) -> None:
        """An answer with an image in it is read like one without."""
        for more in (-1, 0, 1, 500_000):
            text = b'{"plain":1,"data":"%b","n":7}'
            size = BODY_BYTES_MAX + more
            body = text % (b"x" * (size - len(text) + 2))
            whole = read_whole(body, SHAPES)
            self.assertEqual((whole.usage.input_tokens, whole.counters), (7, Counters.FINAL))
            self.assertEqual(whole.finish_reason, "body" if more <= 0 else None)
            self.assertEqual(whole.text_characters, 0 if more <= 0 else size)
            for piece in (1000, 8191, 65536, 10**7):
                self.assertEqual(read(cut(body, piece)), whole)
                self.assertEqual(read(cut(body + b"\n", piece)).usage, whole.usage)

    def test_large_lines(self) -> None:
        """The results of a batch may have lines of any length, the first one too."""
        large = [b'{"plain":1,"t":"%b","n":%d}' % (b"x" * size, size % 10) for size in (400_003, EVENT_BYTES_MAX, 5)]
        for lines in (large, large[::-1], [large[2], large[0], large[1]], [large[0]] * 3):
            body = b"\n".join(lines)
            wanted = sum(json.loads(line)["n"] for line in lines)
            for piece in (1000, 8192, 65536, 10**7):
                for end in (b"", b"\n", b"\r\n\n"):
                    reading = read(cut(body + end, piece))
                    self.assertEqual((reading.usage.input_tokens, reading.text_events), (wanted, 3))

    def test_large_elements(self) -> None:
        """The elements of an array may have any length."""
        body = b'[{"plain":1,"n":1},{"t":"%b","n":2}\n,{"n":3},{"n":4,"u":[["%b"]]},{"n":5}]' % (
            b"\\\\" * 100_000,
            b'\\"]' * 50_000,
        )
        for piece in (1000, 8191, 8192, 65536, 10**7):
            reading = read(cut(body, piece))
            self.assertEqual((reading.usage.input_tokens, reading.text_events, reading.reason), (15, 5, None))

    def test_a_large_first_event(self) -> None:
        """A stream may begin with an event that is too large to keep; its shape is told all the same."""
        body = sse(b'{"plain":1,"t":"%b","n":2}' % (b"x" * 100_000), b'{"n":3}')
        for piece in (1000, 8192, 10**7):
            self.assertEqual(read(cut(body, piece)).usage.input_tokens, 5)

    def test_memory_stays_small(self) -> None:
        """Millions of bytes in any container, whole or in one endless event, cost no memory."""
        event = sse(b'{"plain":1,"n":0,"text":"%b"}' % (b"x" * 200))
        endless = b"x" * 16000
        for name, begin, piece in (
            ("stream", event, event * 50),
            ("endless event", event + b'data: {"t":"', endless),
            ("lines", b'{"plain":1}\n', b'{"n":1,"text":"%b"}\n' % (b"x" * 200) * 100),
            ("endless line", b'{"plain":1}\n{"t":"', endless),
            ("object", b'{"plain":1,"t":"', endless),
            ("array", b'[{"plain":1},', b'{"n":1},' * 1000),
            ("endless element", b'[{"plain":1},{"t":"', endless),
            ("white space", b" ", b" \r\n" * 1000),
            ("comments", b":", b": x\n" * 1000),
            ("unknown", b"<html>", endless),
            ("unknown shape", sse(b'{"a":1}'), event.replace(b"plain", b"strange") * 50),
        ):
            reader = UsageReader(SHAPES)
            tracemalloc.start()
            try:
                reader.feed(begin)
                for _ in range(40):
                    reader.feed(piece)
                self.assertLess(tracemalloc.get_traced_memory()[1], 2_500_000, name)
                del piece
                self.assertLess(tracemalloc.get_traced_memory()[0], 200_000, name)
            finally:
                tracemalloc.stop()


class AnyBytesTests(SynchronousTestCase):
    """Nothing that a provider can send raises, and no split changes what is read."""

    def check(self, body: bytes, size: int) -> None:
        reading = read([body])
        self.assertEqual(read(cut(body, size)), reading)
        self.assertEqual(read_whole(body, SHAPES), reading)
        read(cut(body, size), whole=False)

    @given(st.binary(max_size=80), st.integers(1, 20))
    def test_random_bytes(self, body: bytes, size: int) -> None:
        """Bytes that are nothing at all are read as nothing."""
        self.check(body, size)

    @given(
        st.sampled_from(sorted(BODIES.values())),
        st.lists(st.tuples(st.integers(0, 200), st.integers(0, 3), st.binary(max_size=3)), max_size=4),
        st.integers(1, 30),
    )
    def test_damaged_answers(self, body: bytes, changes: list[tuple[int, int, bytes]], size: int) -> None:
        """An answer that was damaged anywhere is read the same in any split."""
        for at, removed, added in changes:
            body = body[:at] + added + body[at + removed :]
        self.check(body, size)

    @given(
        st.lists(
            st.sampled_from(
                [
                    b"{",
                    b"}",
                    b"[",
                    b"]",
                    b",",
                    b":",
                    b'"',
                    b"\\",
                    b"\n",
                    b"\r\n",
                    b" ",
                    b'"n":1',
                    b'"plain":1',
                    b"data: ",
                ]
            ),
            max_size=40,
        ),
        st.integers(1, 9),
    )
    def test_scraps_of_json(self, parts: list[bytes], size: int) -> None:
        """Scraps of JSON and of events in any order are read the same in any split."""
        self.check(b"".join(parts), size)
