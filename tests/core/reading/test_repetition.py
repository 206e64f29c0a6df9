"""Runs of events that differ in their text alone: what is counted is what would be counted of each event."""

from __future__ import annotations

import json
from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.core.reading.anthropic import AnthropicMessages
from llmproxy.core.reading.catalog import SHAPES
from llmproxy.core.reading.openai_chat import OpenAIChat
from llmproxy.core.reading.reader import BATCH_BYTES, UsageReader
from llmproxy.core.reading.repetition import Repetition, TextRun, learned
from llmproxy.core.reading.sse import SSEReader
from llmproxy.core.usage import Reading

# OpenAI API reference, "Streaming": the first chunk, a piece, the last but one, and the usage.
FIRST = b'{"id":"c1","model":"gpt-5.4","choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}'
PIECE = (
    b'{"id":"c1","model":"gpt-5.4","choices":[{"index":0,"delta":{"content":"%b"},"finish_reason":null}],"usage":null}'
)
STOP = b'{"id":"c1","model":"gpt-5.4","choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":null}'
COUNTED = b'{"id":"c1","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}'
# Claude API reference, "Streaming messages".
BLOCK = b'{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"%b"}}'


def _chat() -> OpenAIChat:
    shape = OpenAIChat()
    shape.take_events([FIRST])
    return shape


def _events(*texts: bytes, form: bytes = PIECE, begin: bytes = b"data: ", end: bytes = b"\n\n") -> bytes:
    return b"".join([begin + form % text + end for text in texts])


def _learned(data: bytes, plain_text: Callable[[bytes], str | None]) -> Repetition:
    form = learned(data, plain_text)
    if form is None:
        raise AssertionError(f"no form in {data!r}")
    return form


class RepetitionTests(SynchronousTestCase):
    """One form, learned and taken."""

    def _taken(self, *texts: bytes) -> TextRun | None:
        """What is counted of these texts, if all of them are taken."""
        data = _events(*texts)
        taken = _learned(_events(b"", b"Hello", b" you"), _chat().plain_text).take(data)
        if taken is None:
            return None
        self.assertEqual(taken[1], len(data))
        return taken[0]

    def test_a_run(self) -> None:
        """Characters are counted, not bytes, and an event without text brings none."""
        self.assertEqual(self._taken(b"ab", b"", "\u00fc\U0001f600".encode()), TextRun(4, 2))

    def test_padding(self) -> None:
        """A padding that hides how long a text is differs too, and is no text."""
        form = PIECE[:-1] + b',"obfuscation":"%b"}'
        plain_text = _chat().plain_text

        def events(*each: tuple[bytes, bytes]) -> bytes:
            return b"".join([b"data: " + form % both + b"\n\n" for both in each])

        two = _learned(events((b"", b"x"), (b"a", b"xyz"), (b"b", b"")), plain_text)
        data = events((b"ab", b"xy"), (b"", "\u00fc".encode()), (rb"\n", b""))
        self.assertEqual(two.take(data), (TextRun(3, 2), len(data)))
        for both in (
            (b"a", b'"'),
            (b"a\\", b"b"),
            (b"a", b"b\\"),
            (b'a"', b"b"),
            (b"a", b"\xff"),
            (b"\x01", b""),
            (b"", b"\0"),
        ):
            self.assertIsNone(two.take(events((b"a", b"b"), both, (b"c", b"d"))), both)
            self.assertIsNone(two.take(events(both)), both)
        stripped = data.replace(b'"},"finish_reason":null}],"usage":null,"obfuscation":"', b"\x01")
        self.assertNotEqual(stripped, data)
        self.assertIsNone(two.take(stripped))
        # Of two that differ in the padding alone it is not told which is the text.
        self.assertIsNone(learned(events((b"a", b"x"), (b"a", b"y"), (b"a", b"z")), plain_text))

    def test_escapes(self) -> None:
        r"""What is escaped is one character: \n, \", \\, an accent and a whole surrogate pair."""
        self.assertEqual(self._taken(rb"a\n", rb"\"\\", rb"\u00e9\ud83d\ude00", rb"\\n"), TextRun(8, 4))

    def test_what_is_not_taken(self) -> None:
        """What could be another form, or no JSON, is left to who looks at each event."""
        for text in (
            b'"',
            b"\\",
            b"\\x",
            b"\\u12",
            b"\\ud83d",
            b"\\ude00",
            b"\x00",
            b"\x1f",
            b"\x7f\xff",
            b'a","usage":"',
        ):
            self.assertIsNone(self._taken(b"a", text, b"b"), text)
            self.assertIsNone(self._taken(text), text)

    def test_other_events_are_not_taken(self) -> None:
        """An event of another form between them is not passed over; what follows them is left."""
        form = _learned(_events(b"", b"Hello", b" you"), _chat().plain_text)
        two = _events(b"a", b"b")
        stop = b"data: " + STOP + b"\n\n"
        self.assertIsNone(form.take(two + stop + two))
        self.assertIsNone(form.take(two + b": a comment\n\n" + two))
        self.assertIsNone(form.take(stop + two))
        self.assertEqual(form.take(two[:40]), (TextRun(0, 0), 0))
        self.assertEqual(form.take(two + stop + b"data: [DONE]\n\n"), (TextRun(2, 2), len(two)))
        self.assertEqual(form.take(two + two[:-1]), (TextRun(3, 3), len(two) * 3 // 2))

    def test_names_and_line_ends(self) -> None:
        """Events with names, and those whose lines end in CRLF, have a form too."""
        plain_text = AnthropicMessages().plain_text
        for begin, end in (
            (b"event: content_block_delta\ndata: ", b"\n\n"),
            (b"event: content_block_delta\r\ndata: ", b"\r\n\r\n"),
            (b"data: ", b"\r\n\r\n"),
        ):
            data = _events(b"", b"a", b"bc", form=BLOCK, begin=begin, end=end)
            self.assertEqual(_learned(data, plain_text).take(data), (TextRun(3, 2), len(data)))

    def test_what_is_not_learned(self) -> None:
        """Where more differs than the text, or the shape looks at what differs, there is no form."""
        plain_text = _chat().plain_text
        other = PIECE.replace(b'"c1"', b'"%b"').replace(b'"content":"%b"', b'"content":"a"')
        for data in (
            _events(b"a", b"a", b"a"),
            _events(b"a", b"b"),
            _events(b"a", b"b", b"c", form=other),
            _events(b"a", b"b", b"c", form=PIECE.replace(b"null}", b'"%b"}', 1).replace(b"%b", b"a", 1)),
            _events(b"a", b"b", b"c", begin=b"data:"),
            _events(b"a", b"b", b"c", form=PIECE + b" "),
            _events(b"1", b"2", b"3", form=PIECE.replace(b'"%b"', b"%b")),
            b"",
            b"\n\n" * 9,
        ):
            found = learned(data, plain_text)
            if found is not None:  # then it is right, whatever it is
                self.assertEqual(found.take(data), (TextRun(3, 3), len(data)))
                self.assertTrue(data.endswith(b" \n\n"))
        self.assertIsNone(learned(_events(b"a", b"b", b"c"), OpenAIChat().plain_text))


_texts = st.text(alphabet='a \u00fc\U0001f600"\\\n\x1f,:{}', max_size=6)
_raw = st.sampled_from([b'"', b"\\", b"\\ud83d", b"\xff", b"\\/", b"\\u00E9", b'x"},"finish_reason":null}],"y":{"z":"'])
_pieces = st.builds(lambda text, plain: json.dumps(text, ensure_ascii=plain)[1:-1].encode(), _texts, st.booleans())


def _one_by_one(events: list[bytes]) -> Reading:
    shape = OpenAIChat()
    for event in events:
        shape.take_events([event])
    return shape.reading(whole=True)


class StreamTests(SynchronousTestCase):
    """Whole streams, long enough for a form to be learned."""

    @settings(max_examples=60, deadline=None)
    @given(
        st.lists(_pieces | _raw, min_size=1, max_size=12),
        st.integers(1, 4000),
        st.sampled_from([b"\n\n", b"\r\n\r\n"]),
        st.booleans(),
        st.lists(st.sampled_from([STOP, b'{"error":{"type":"e"}}', b'{"choices":7}']), max_size=2),
    )
    def test_any_stream(self, texts: list[bytes], cut: int, end: bytes, padded: bool, others: list[bytes]) -> None:
        """However the texts are written, and whatever is between, a long stream is read as event by event."""
        plain = [PIECE % (b"word %d" % (number % 7)) for number in range(2 * BATCH_BYTES // len(PIECE))]
        odd = [PIECE % text for text in texts]
        if padded:
            plain = [event[:-1] + b',"obfuscation":"%b"}' % (b"x" * (at % 5)) for at, event in enumerate(plain)]
            odd = [
                event[:-1] + b',"obfuscation":"%b"}' % text for event, text in zip(odd, reversed(texts), strict=True)
            ]
        events = [FIRST, *plain, *odd, *plain, *others, *plain[:9], STOP, COUNTED]
        stream = b"".join([b"data: " + event + end for event in events])
        reader = UsageReader(SHAPES)
        for at in range(0, len(stream), cut):
            reader.feed(stream[at : at + cut])
        self.assertEqual(reader.finish(whole=True), _one_by_one(events))

    def test_the_form_is_what_reads(self) -> None:
        """A long stream is read by its form, and a glance at what was used so far does not end that."""
        reader = UsageReader(SHAPES)
        events = [FIRST, *[PIECE % b"%d" % number for number in range(200)]]
        for event in events:
            reader.feed(b"data: " + event + b"\n\n")
        for _ in range(3):
            reader.snapshot()
        container = reader._container
        assert isinstance(container, SSEReader)
        self.assertIsNotNone(container.repetition)
        self.assertEqual(reader.snapshot().text_characters, 10 + 2 * 90 + 3 * 100)
        # An event in two halves, and one of another form.
        reader.feed(b"data: " + events[1][:70])
        reader.snapshot()
        reader.feed(events[1][70:] + b"\n\ndata: " + STOP + b"\n\n")
        reading = reader.finish(whole=True)
        self.assertEqual((reading.text_characters, reading.text_events), (491, 201))
        self.assertEqual(reading.finish_reason, "stop")

    def test_texts_like_the_marks(self) -> None:
        """A text that looks like the marks by which a form is learned is counted like any other."""
        for text in (b"~", b"~~", b"~~~~", b"~5~", b"~0~", b"~text~", b"~padding~"):
            for padding in (b"aB%05d", b"~text~%05d", b"~~%05d"):
                form = PIECE[:-1] + b',"obfuscation":"%b"}'
                events = [FIRST, *[form % (text, padding % number) for number in range(400)]]
                stream = b"".join([b"data: " + event + b"\n\n" for event in events])
                reader = UsageReader(SHAPES)
                for at in range(0, len(stream), 700):
                    reader.feed(stream[at : at + 700])
                reading = reader.finish(whole=True)
                self.assertEqual((reading.text_characters, reading.text_events), (400 * len(text), 400))
