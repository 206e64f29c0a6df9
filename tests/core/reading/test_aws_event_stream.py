"""AWS event streams: frames as the specification has them, in any split, and what is no such frame."""

from __future__ import annotations

import json
import struct
import tracemalloc
from zlib import crc32

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.core.reading.aws_event_stream import (
    BAD_CHECKSUM,
    BAD_FRAME,
    CUT_FRAME,
    FRAME_BYTES_MAX,
    AWSEventStream,
    Frame,
    FrameReader,
    is_prelude,
)
from llmproxy.core.reading.events import EventRun, Item, LargeEvent


def header(name: bytes, kind: int, value: bytes) -> bytes:
    """Smithy 2.0, "application/vnd.amazon.eventstream": name length, name, type, value."""
    return bytes([len(name)]) + name + bytes([kind]) + value


def text_header(name: bytes, value: bytes) -> bytes:
    return header(name, 7, struct.pack(">H", len(value)) + value)


def frame(headers: bytes, payload: bytes) -> bytes:
    prelude = struct.pack(">II", 12 + len(headers) + len(payload) + 4, len(headers))
    text = prelude + struct.pack(">I", crc32(prelude)) + headers + payload
    return text + struct.pack(">I", crc32(text))


def event(kind: bytes, payload: bytes) -> bytes:
    headers = text_header(b":event-type", kind) + text_header(b":content-type", b"application/json")
    return frame(headers + text_header(b":message-type", b"event"), payload)


# Of the specification's test vectors: no headers and no payload; the payload {'foo':'bar'}; one header besides.
# https://smithy.io/2.0/aws/amazon-eventstream.html
EMPTY = bytes.fromhex("00000010 00000000 05c248eb 7d98c8ff")
PAYLOAD = bytes.fromhex("0000001d 00000000 fd528c5a 7b27666f6f273a27626172277d c3653936")


class FrameTests(SynchronousTestCase):
    """What is a frame."""

    def frames(self, text: bytes, size: int) -> tuple[list[Frame], FrameReader]:
        reader = FrameReader()
        return [each for at in range(0, len(text), size) for each in reader.feed(text[at : at + size])], reader

    def test_frames_of_the_specification(self) -> None:
        """The frames that the specification shows are read as it says."""
        self.assertTrue(is_prelude(EMPTY))
        for size in (1, 7, 100):
            frames, reader = self.frames(EMPTY + PAYLOAD, size)
            self.assertEqual(
                [(dict(each.headers), each.payload) for each in frames], [({}, b""), ({}, b"{'foo':'bar'}")]
            )
            self.assertTrue(reader.between_frames)
            self.assertIsNone(reader.trouble)

    def test_headers_of_every_type(self) -> None:
        """Headers that are no strings are skipped by the length that their type has."""
        headers = b"".join(
            header(b"h%d" % kind, kind, b"\x07" * size)
            for kind, size in ((0, 0), (1, 0), (2, 1), (3, 2), (4, 4), (5, 8), (8, 8), (9, 16))
        )
        headers = text_header(b"a", b"1") + headers + header(b"b", 6, b"\x00\x03xyz") + text_header(b":t", "é".encode())
        frames, _ = self.frames(frame(headers, b"p"), 1)
        self.assertEqual(frames, [Frame({"a": "1", ":t": "é"}, b"p", len(frame(headers, b"p")))])

    def test_any_changed_byte_ends_the_reading(self) -> None:
        """A damaged stream is read up to the damage, and no further."""
        good, damaged = event(b"a", b"{}"), event(b"b", b"{}")
        for at in range(len(damaged)):
            text = good + damaged[:at] + bytes([damaged[at] ^ 1]) + damaged[at + 1 :] + good
            frames, reader = self.frames(text, 50)
            self.assertEqual([each.headers[":event-type"] for each in frames], ["a"])
            self.assertEqual(reader.trouble, BAD_CHECKSUM)
            self.assertEqual(reader.feed(good), [])

    def test_a_frame_that_contradicts_itself(self) -> None:
        """Lengths that cannot be, and headers that are none, end the reading; they do not raise."""
        prelude = struct.pack(">II", 15, 0)
        too_short = prelude + struct.pack(">I", crc32(prelude))
        prelude = struct.pack(">II", 20, 100)
        headers_too_long = prelude + struct.pack(">I", crc32(prelude))
        for text in (
            too_short,
            headers_too_long,
            frame(b"\x05ab", b""),  # a name that is cut
            frame(header(b"a", 10, b""), b""),  # a type that is none
            frame(header(b"a", 7, b"\x00"), b""),  # a length that is cut
            frame(header(b"a", 7, b"\x00\x09x"), b""),  # a value that is cut
            frame(header(b"a", 7, b"\x00\x01\xff"), b""),  # no UTF-8
        ):
            frames, reader = self.frames(text, 7)
            self.assertEqual((frames, reader.trouble), ([], BAD_FRAME))

    def test_a_frame_that_is_too_long_is_passed_over(self) -> None:
        """A huge frame is not kept; the one after it is read."""
        for size, is_kept in ((FRAME_BYTES_MAX, True), (FRAME_BYTES_MAX + 1, False)):
            text = frame(b"", b"x" * (size - 16))
            for piece in (len(text) + 200, 65536, 65521):
                frames, _ = self.frames(text + event(b"a", b"{}"), piece)
                self.assertEqual([each.payload is not None for each in frames], [is_kept, True])
                self.assertEqual(frames[0].size_bytes, size)

    def test_memory_stays_small(self) -> None:
        """A frame that says it is gigabytes long costs none."""
        prelude = struct.pack(">II", 2**32 - 1, 0)
        reader, piece = FrameReader(), b"x" * 65536
        tracemalloc.start()
        try:
            reader.feed(prelude + struct.pack(">I", crc32(prelude)))
            for _ in range(500):
                reader.feed(piece)
            self.assertLess(tracemalloc.get_traced_memory()[1], 200_000)
        finally:
            tracemalloc.stop()
        self.assertFalse(reader.between_frames)

    @given(st.binary(max_size=60), st.integers(1, 20))
    def test_no_bytes_raise(self, text: bytes, size: int) -> None:
        """Whatever comes, it is no reason to raise."""
        self.assertEqual(self.frames(text, size)[0], self.frames(text, 100)[0])
        frame_of_it = frame(text, b"")
        self.assertEqual(self.frames(frame_of_it, size)[0], self.frames(frame_of_it, 200)[0])


class EventTests(SynchronousTestCase):
    """What a shape gets of a frame."""

    def read(self, text: bytes) -> tuple[list[Item], str | None]:
        stream = AWSEventStream()
        items = [item for at in range(0, len(text), 11) for item in stream.feed(text[at : at + 11])]
        items += stream.finish()
        return items, stream.trouble

    def values(self, text: bytes) -> list[object]:
        return [json.loads(each) for item in self.read(text)[0] if isinstance(item, EventRun) for each in item.texts]

    def test_an_event_is_named_by_its_type(self) -> None:
        """The type of an event stands in a header; a shape finds it as the name of the only member."""
        text = event(b"messageStart", b'{"role":"assistant"}') + event(b"metadata", b'{"usage":{"inputTokens":3}}')
        self.assertEqual(
            self.values(text), [{"messageStart": {"role": "assistant"}}, {"metadata": {"usage": {"inputTokens": 3}}}]
        )

    def test_exceptions_and_errors(self) -> None:
        """An exception in mid-stream, and an error of the service, are told by their kind."""
        exception = text_header(b":message-type", b"exception") + text_header(
            b":exception-type", b"throttlingException"
        )
        error = text_header(b":message-type", b"error") + text_header(b":error-code", b"InternalError")
        self.assertEqual(
            self.values(frame(exception, b'{"message":"slow down"}') + frame(error, b"")),
            [{"exception": {"type": "throttlingException"}}, {"exception": {"type": "InternalError"}}],
        )

    def test_an_event_without_payload(self) -> None:
        """An event with nothing in it is still one."""
        self.assertEqual(self.values(event(b"x", b"")), [{"x": None}])

    def test_a_stream_that_was_cut(self) -> None:
        """A frame that was cut is told of."""
        text = event(b"a", b"{}") + event(b"b", b"{}")
        self.assertIsNone(self.read(text)[1])
        self.assertEqual(self.read(text[:-1])[1], CUT_FRAME)
        self.assertEqual(self.values(text[:-1]), [{"a": {}}])

    def test_a_frame_too_long_to_keep_is_told_of_in_its_place(self) -> None:
        """The size of a huge event is known, and what came before and after it."""
        huge = frame(b"", b"x" * FRAME_BYTES_MAX)
        stream = AWSEventStream()
        items = stream.feed(event(b"a", b"{}") + huge + event(b"b", b"{}"))
        self.assertEqual([type(item) for item in items], [EventRun, LargeEvent, EventRun])
        self.assertEqual(items[1], LargeEvent({}, {}, len(huge)))
