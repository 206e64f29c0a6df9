"""Server-sent events: what the HTML standard says of them (section 9.2.6), in any split."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterable

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.core.reading.events import EVENT_BYTES_MAX, EventRun, Item, LargeEvent
from llmproxy.core.reading.sse import SSEReader

USAGE = frozenset({("response", "usage")})


def read(pieces: Iterable[bytes]) -> tuple[list[Item], SSEReader]:
    reader = SSEReader(lambda: USAGE)
    items = [item for piece in pieces for item in reader.feed(piece)]
    return items + reader.finish(), reader


def texts(items: Iterable[Item]) -> list[bytes]:
    return [text for item in items if isinstance(item, EventRun) for text in item.texts]


def as_the_standard_says(body: bytes) -> list[bytes]:
    """The data of each event, letter by letter after section 9.2.6; an event that is cut counts, one without data
    does not."""
    body = body.removeprefix(b"\xef\xbb\xbf")
    lines, line, at = [], b"", 0
    while at < len(body):
        byte = body[at : at + 1]
        if byte in (b"\r", b"\n"):
            if body[at : at + 2] == b"\r\n":
                at += 1
            lines.append(line)
            line = b""
        else:
            line += byte
        at += 1
    events: list[bytes] = []
    data: list[bytes] = []
    for each in [*lines, line, b""]:
        if not each:
            events.append(b"\n".join(data))
            data = []
        elif not each.startswith(b":"):
            field, _, value = each.partition(b":")
            if field == b"data":
                data.append(value.removeprefix(b" "))
    return [event for event in events if event]


class EventTests(SynchronousTestCase):
    """What is taken for an event."""

    def check(self, body: bytes, *expected: bytes) -> None:
        for pieces in ([body], [body[at : at + 1] for at in range(len(body))]):
            items, _ = read(pieces)
            self.assertEqual(texts(items), list(expected))
            for item in items:
                assert isinstance(item, EventRun)
                self.assertEqual(item.array, b"[" + b",".join(item.texts) + b"]")
        for at in range(len(body) + 1):
            self.assertEqual(texts(read([body[:at], body[at:]])[0]), list(expected))

    def test_a_line_of_data_for_each_event_as_openai_writes_it(self) -> None:
        """Every chunk of a chat stream is read."""
        self.check(b'data: {"a":1}\n\ndata: {"b":2}\n\n', b'{"a":1}', b'{"b":2}')

    def test_events_with_names_as_anthropic_writes_them(self) -> None:
        """Every event of a messages stream is read, and its name is not taken for data."""
        self.check(
            b'event: message_start\ndata: {"a":1}\n\nevent: ping\ndata: {"b":2}\n\n',
            b'{"a":1}',
            b'{"b":2}',
        )

    def test_crlf_as_gemini_writes_it(self) -> None:
        """A stream whose lines end in CR and LF is read as well."""
        self.check(b'data: {"a":1}\r\n\r\ndata: {"b":2}\r\n\r\n', b'{"a":1}', b'{"b":2}')

    def test_cr_alone(self) -> None:
        """A stream whose lines end in CR alone is read as well."""
        self.check(b"data: 1\r\rdata: 2\r\r", b"1", b"2")

    def test_line_ends_of_all_kinds_in_one_stream(self) -> None:
        """A stream that was put together by several writers is read."""
        self.check(b"data: 1\r\n\rdata: 2\n\r\ndata: 3\r\r\ndata: 4\n\r", b"1", b"2", b"3", b"4")

    def test_the_examples_of_the_standard(self) -> None:
        """The streams that the standard itself gives as examples are read as it says."""
        # https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
        self.check(b"data: YHOO\ndata: +2\ndata: 10\n\n", b"YHOO\n+2\n10")
        self.check(
            b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n",
            b"first event",
            b"second event",
            b" third event",
        )
        self.check(b"data:test\n\ndata: test\n\n", b"test", b"test")
        self.check(b"data\n\ndata\ndata\n\ndata:", b"\n")

    def test_text_that_looks_like_a_line_end_to_python(self) -> None:
        """U+2028, U+2029, U+0085 and form feeds in an answer do not tear its event apart."""
        text = 'data: {"t":"a\u2028b\u2029c\u0085d\x0ce\x1cf"}\n\n'.encode()
        self.check(text, text[6:-2])

    def test_comments_and_other_fields(self) -> None:
        """The comments by which a stream is kept alive do no harm, wherever they come."""
        self.check(
            b': OPENROUTER PROCESSING\n\ndata: {"a":1}\n\n: hi\n\nid: 7\nretry: 10\ndata: {"b":2}\n:x\nfoo\n\n',
            b'{"a":1}',
            b'{"b":2}',
        )

    def test_a_field_that_only_begins_like_data(self) -> None:
        """A field of another name is not data."""
        self.check(b"database: 1\n\ndata : 2\n\n data: 3\n\ndata: 4\n\n", b"4")

    def test_a_byte_order_mark(self) -> None:
        """A mark at the very beginning is skipped, and only there."""
        self.check(b"\xef\xbb\xbfdata: 1\n\n\xef\xbb\xbfdata: 2\n\n", b"1")

    def test_an_event_that_was_cut(self) -> None:
        """The last event counts although its blank line was lost: what it says is whole."""
        self.check(b'data: {"a":1}\n\ndata: {"b":2}\n', b'{"a":1}', b'{"b":2}')
        self.check(b'data: {"a":1}\n\ndata: {"b":2}', b'{"a":1}', b'{"b":2}')

    def test_done_is_noted(self) -> None:
        """The end mark of OpenAI's streams is no event, with or without its blank line, and wherever it stands."""
        for body in (
            b"data: 1\n\ndata: [DONE]\n\n",
            b"data: 1\n\ndata: [DONE]",
            b"data: [DONE]\n\ndata: 1\n\n",
            b"event: e\ndata: 1\n\nevent: done\ndata: [DONE]\n\n",
        ):
            self.check(body, b"1")
            self.assertTrue(read([body])[1].done)
        self.assertFalse(read([b"data: 1\n\n"])[1].done)

    def test_nothing_but_the_end_mark(self) -> None:
        """A stream without a single event gives none."""
        self.check(b"data: [DONE]\n\n")
        self.check(b"")
        self.check(b"\n\n\r\n: x\n\n")

    @settings(max_examples=300, deadline=None)
    @given(
        st.lists(
            st.sampled_from(
                [
                    *(b"data: ", b"data:", b"data", b"event: e", b":", b"id", b"\n", b"\n\n", b"\r", b"\r\n"),
                    *(b"\r\n\r\n", b"[DONE]", b'{"a":1}', b"x", b" ", b"\n\ndata: ", b"\nevent: e\ndata: "),
                    b"\xef\xbb\xbf",
                ]
            ),
            max_size=30,
        ),
        st.lists(st.integers(1, 12), min_size=1),
    )
    def test_any_lines_in_any_pieces(self, parts: list[bytes], sizes: list[int]) -> None:
        """However a stream is written and torn, what is read is what the standard says."""
        body = b"".join(parts)
        pieces, at = [], 0
        for turn in range(len(body)):
            pieces.append(body[at : at + sizes[turn % len(sizes)]])
            at += len(pieces[-1])
        expected = as_the_standard_says(body)
        for each in (pieces, [body]):
            items, reader = read(each)
            self.assertEqual(texts(items), [event for event in expected if event != b"[DONE]"])
            self.assertEqual(reader.done, b"[DONE]" in expected)


class LargeEventTests(SynchronousTestCase):
    """Events that are too large to keep."""

    def check(self, body: bytes, expected: list[object]) -> None:
        for size in (len(body), 1000, 4093, 65536, 65537):
            items, _ = read(body[at : at + size] for at in range(0, len(body), size))
            found: list[object] = []
            for item in items:
                if isinstance(item, EventRun):
                    found += item.texts
                else:
                    assert isinstance(item, LargeEvent)
                    found.append((dict(item.members), item.keys.get("type"), item.size_bytes))
            self.assertEqual(found, expected, size)

    def large(self, size_bytes: int) -> bytes:
        text = b'{"type":"response.completed","response":{"output":"%b","usage":{"input_tokens":5}}}'
        return text % (b"x" * (size_bytes - len(text) + 2))

    def test_the_usage_of_a_huge_final_event(self) -> None:
        """The final event of a Responses stream repeats the whole answer; its usage is found however long it is."""
        usage = {("response", "usage"): b'{"input_tokens":5}'}
        for size in (EVENT_BYTES_MAX, EVENT_BYTES_MAX + 1, 300_000):
            for line_end in (b"\n", b"\r\n", b"\r"):
                with self.subTest(size=size, line_end=line_end):
                    large = self.large(size)
                    body = b"data: 1\n\nevent: response.completed\ndata: %b\n\ndata: 2\n\n" % large
                    self.check(body.replace(b"\n", line_end), [b"1", (usage, b'"response.completed"', size), b"2"])

    def test_where_large_begins(self) -> None:
        """An event of exactly the limit is kept, one that is a byte longer is not, whatever pieces it comes in."""
        for more in (-1, 0, 1, 2, 3):
            size = EVENT_BYTES_MAX - len(b"data: ") + more
            large = self.large(size)
            expected: object = (
                large if more <= 0 else ({("response", "usage"): b'{"input_tokens":5}'}, b'"response.completed"', size)
            )
            self.check(b"data: %b\n\ndata: 2\n\n" % large, [expected, b"2"])

    def test_a_large_event_that_was_cut(self) -> None:
        """Of a huge event that was cut there is what was seen."""
        body = b"data: " + self.large(200_000)[:-10]
        self.check(body, [({}, b'"response.completed"', len(body) - 6)])

    def test_data_in_many_lines(self) -> None:
        """A huge event may have its data in many lines, and other fields among them."""
        lines = b"".join(b'data: "k%d":"%b",\n: comment\nid: 7\n' % (number, b"y" * 1000) for number in range(100))
        body = b'data: {\n%bdata:"response":{"usage":7}}\n\ndata: 2\n\n' % lines
        data = b"\n".join(
            line[5:].removeprefix(b" ") for line in body.split(b"\n\n")[0].split(b"\n") if line.startswith(b"data:")
        )
        self.assertEqual(json.loads(data)["response"], {"usage": 7})
        self.check(body, [({("response", "usage"): b"7"}, None, len(data)), b"2"])

    def test_a_flood_of_comments_in_one_event(self) -> None:
        """Comments without end are no event, and keep nothing."""
        self.check(b": hello\n" * 20_000 + b"\ndata: 2\n\n", [b"2"])

    def test_memory_stays_small(self) -> None:
        """A stream of one endless line costs no more memory than its largest piece."""
        reader = SSEReader(lambda: USAGE)
        piece = b"x" * 16384
        reader.feed(b'data: {"a":"')
        for _ in range(8):
            reader.feed(piece)
        tracemalloc.start()
        try:
            for _ in range(500):
                reader.feed(piece)
            self.assertLess(tracemalloc.get_traced_memory()[1], 100_000)
        finally:
            tracemalloc.stop()
