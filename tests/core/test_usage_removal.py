"""What the caller gets of a stream whose usage the proxy asked for: what it would have got without.

Sources: https://platform.openai.com/docs/api-reference/chat/create (stream_options) for the two forms of a stream;
https://learn.microsoft.com/azure/ai-services/openai/concepts/content-streaming for Azure's first chunk.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import pairwise
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.core.usage_removal import EVENT_BYTES_MAX, UsageRemoval
from llmproxy.simulate import openai_chat
from llmproxy.simulate.ask import Ask, House
from llmproxy.simulate.dialects import GROQ, OPENAI

USAGE = b'{"prompt_tokens":9,"completion_tokens":1,"total_tokens":10}'
EXTRA = b'data: {"id":"c","choices":[],"usage":' + USAGE + b"}\n\n"
DONE = b"data: [DONE]\n\n"


def removed(pieces: Iterable[bytes]) -> tuple[bytes, int, str | None]:
    removal = UsageRemoval()
    given_on = b"".join([*map(removal.feed, pieces), removal.finish()])
    return given_on, removal.removed, removal.trouble


_text = st.text(alphabet='",:{}[]\\usagenl \u00e9', max_size=14) | st.just(',"usage":null}')
_members = st.dictionaries(
    st.sampled_from(["id", "choices", "model", "a", 'x"', '"usage":null', "\\", "usages"]),
    _text
    | st.integers()
    | st.none()
    | st.just({"usage": None})
    | st.lists(st.just({"usage": None, "a": 1}), max_size=2),
    max_size=4,
)


@st.composite
def _streams(draw: st.DrawFn) -> tuple[bytes, bytes, int]:
    """A stream without usage, the same with it, and how many chunks the latter has more."""
    comma, colon = draw(st.sampled_from([(",", ":"), (", ", ": "), (" ,\t", " : ")]))
    end = draw(st.sampled_from([b"\n", b"\r\n", b"\r"]))
    prefix = draw(st.sampled_from([b"data: ", b"data:"]))
    key = draw(st.sampled_from(['"usage"', '"us\\u0061ge"', '"\\u0075sage"']))
    ascii_only = draw(st.booleans())
    plain, counted, more = [], [], 0

    def event(parts: list[str]) -> bytes:
        return prefix + ("{" + comma.join(parts) + "}").encode() + end + end

    for _ in range(draw(st.integers(1, 4))):
        other = draw(st.sampled_from([b"", b": ping" + end + end, b'event: x,"usage":null}' + end]))
        members = draw(_members)
        parts = [
            json.dumps(name, ensure_ascii=ascii_only)
            + colon
            + json.dumps(value, ensure_ascii=ascii_only, separators=(comma, colon))
            for name, value in members.items()
        ]
        at = draw(st.integers(0, len(parts)) | st.just(len(parts)))
        plain.append(other + event(parts))
        counted.append(other + event([*parts[:at], f"{key}{colon}null", *parts[at:]]))
    if draw(st.booleans()):
        more = 1
        name = draw(st.sampled_from([b"", b"event: chunk" + end, b"id: 7" + end]))
        counted.append(name + event(['"id":"c"', f'"choices"{colon}[]', key + colon + USAGE.decode()]))
    if draw(st.booleans()):
        plain.append(prefix + b"[DONE]" + end + end)
        counted.append(prefix + b"[DONE]" + end + end)
    return b"".join(plain), b"".join(counted), more


class UsageRemovalTests(SynchronousTestCase):
    """The bytes that a caller gets."""

    def _becomes(self, stream: bytes, wanted: bytes, chunks: int = 0, trouble: str | None = None) -> None:
        for at in range(len(stream) + 1):
            self.assertEqual(removed([stream[:at], stream[at:]]), (wanted, chunks, trouble), at)
        self.assertEqual(removed([stream[at : at + 1] for at in range(len(stream))]), (wanted, chunks, trouble))

    def _stays(self, stream: bytes, trouble: str | None = None) -> None:
        self._becomes(stream, stream, 0, trouble)

    def test_the_usual_stream(self) -> None:
        """I did not ask for usage: neither the extra chunk nor the null members reach me."""
        chunk = b'data: {"id":"c","choices":[{"delta":{"content":"a"}}]%b}\n\n'
        padding = b',"obfuscation":"x7"'
        self._becomes(
            chunk % b',"usage":null' + chunk % (b',"usage":null' + padding) + EXTRA + DONE,
            chunk % b"" + chunk % padding + DONE,
            1,
        )

    def test_a_whole_event_is_given_at_once(self) -> None:
        """A token is not held back: what is whole reaches me in the same moment."""
        removal = UsageRemoval()
        self.assertEqual(removal.feed(b'data: {"a":1,"usage":null}\n\ndata: {"b'), b'data: {"a":1}\n\n')
        self.assertEqual(removal.feed(b'":2}\n\n'), b'data: {"b":2}\n\n')
        self.assertEqual(removal.feed(b": ping\n\n"), b": ping\n\n")
        self.assertEqual(removal.finish(), b"")

    def test_how_the_member_may_be_written(self) -> None:
        """Whatever way the provider writes JSON, the rest is as it would have written it."""
        for text, wanted in (
            (b'{"usage":null}', b"{}"),
            (b'{ "usage" : null }', b"{}"),
            (b'{"usage": null, "b": 2}', b'{"b": 2}'),
            (b'{"a": 1, "usage": null, "b": 2}', b'{"a": 1, "b": 2}'),
            (b'{"a":1 , "us\\u0061ge":null }', b'{"a":1 }'),
            (b'{"choices":[],"usage":null,"prompt_filter_results":[]}', b'{"choices":[],"prompt_filter_results":[]}'),
            (b'{"a":{"usage":null},"usage":null,"b":[{"usage":null}]}', b'{"a":{"usage":null},"b":[{"usage":null}]}'),
            (b'{"a":",\\"usage\\":null}","usage":null,"n":1}', b'{"a":",\\"usage\\":null}","n":1}'),
        ):
            self._becomes(b"data: %b\n\n" % text, b"data: %b\n\n" % wanted)
            self._becomes(b"event: x\r\ndata:%b\r\n\r\n" % text, b"event: x\r\ndata:%b\r\n\r\n" % wanted)

    def test_what_stays(self) -> None:
        """What the provider may have sent anyway is never taken from me."""
        for stream in (
            b'data: {"choices":[{"index":0}],"usage":%b}\n\n' % USAGE,
            b'data: {"choices":[],"usage":%b,"error":{"message":"m"}}\n\n' % USAGE,
            b'data: {"usage":%b}\n\n' % USAGE,
            b'data: {"x":{"usage":null}}\n\n',
            b'data: {"x":[",\\"usage\\":null}"]}\n\n',
            b': {"a":1,"usage":null}\n\n',
            b'event: {"a":1,"usage":null}\n\n',
            b'data: no JSON ,"usage":null}\n\n',
            DONE,
            b"\n\n\n",
        ):
            self._stays(stream)
        self._stays(b'data: {"usage":{},"usage":null }\n\n', "repeated_key")
        self._stays(b'data: {"a":1,\ndata: "usage":null}\n\n', "usage_across_lines")

    def test_lines_that_go_with_the_extra_chunk(self) -> None:
        """The name of the chunk that is taken out goes with it; a comment before it reaches me."""
        named = b"event: x\nid: 1\n: ping\n" + EXTRA
        self._becomes(named + DONE, b": ping\n" + DONE, 1)
        self._becomes(EXTRA.replace(b"[]", b"[ ]").replace(b"\n", b"\r\n"), b"", 1)
        self._becomes(b'data: {"choices":[],\ndata: "usage":{}}\n\n', b"", 1)

    def test_events_that_come_whole(self) -> None:
        """One event a piece, or many: with padding and without, what only looks like the member stays."""
        form = b'data: {"id":"c","choices":[{"delta":{"content":"%b"}}]%b}\n\n'
        null = b',"usage":null'
        for text in (b"", b"a", b',\\"usage\\":null', b"\\\\", b'a\\",\\"obfuscation\\":\\"b', "\u00fc".encode()):
            for padding in (
                b"",
                b',"obfuscation":""',
                b',"obfuscation":"x7"',
                b',"obfuscation":"x\\"7"',
                b',"b":"","a":"]"',
            ):
                one, wanted = form % (text, null + padding), form % (text, padding)
                self.assertEqual(removed([one] * 3), (wanted * 3, 0, None))
                self.assertEqual(removed([one * 3]), (wanted * 3, 0, None))
                self.assertEqual(removed([one + wanted + one]), (wanted * 3, 0, None))
                crlf = one.replace(b"\n", b"\r\n")
                self.assertEqual(removed([one + crlf, crlf]), (wanted + 2 * wanted.replace(b"\n", b"\r\n"), 0, None))
        self.assertEqual(
            removed([b'data: {"a":"x\n,"usage":null}\n\n']), (b'data: {"a":"x\n,"usage":null}\n\n', 0, None)
        )

    def test_what_goes_on_is_no_event_of_its_own(self) -> None:
        """A line that is given away while it comes is not cleaned where a piece of it looks like a chunk."""
        looks = b'data: {"a":1,"usage":null}\n\n'
        self.assertEqual(removed([b"data: x", looks, looks]), (b"data: x" + looks + b'data: {"a":1}\n\n', 0, None))

    def test_an_error_of_ours(self) -> None:
        """Where the filter itself fails, not a byte that it held is lost or given twice."""
        stream = b"event: x\n" + EXTRA + b"event: y\n" + EXTRA
        for at in range(1, len(stream)):
            removal = UsageRemoval()
            with mock.patch.object(UsageRemoval, "_event", side_effect=ZeroDivisionError):
                rest = b""
                for data in (stream[:at], stream[at:]):
                    try:
                        rest += removal.feed(data)
                    except ZeroDivisionError:
                        rest += removal.give_up() + data
                self.assertEqual(rest + removal.give_up(), stream, at)
                removal.feed(stream[:20])
                self.assertRaises(ZeroDivisionError, removal.finish)
                self.assertEqual(removal.give_up(), stream[:20])

    def test_a_byte_order_mark(self) -> None:
        """A mark before the stream reaches me, and hides nothing."""
        self._becomes(b'\xef\xbb\xbfdata: {"a":1,"usage":null}\n\n', b'\xef\xbb\xbfdata: {"a":1}\n\n')
        # One before a later event is none, and makes that event's first line one of no known field.
        later = b'\xef\xbb\xbfdata: {"a":1,"usage":null}\n\n'
        self._becomes(b'data: {"a":1,"usage":null}\n\n' + later, b'data: {"a":1}\n\n' + later)

    def test_a_stream_that_is_cut(self) -> None:
        """Of a stream that breaks off I get all that came; what is whole is still cleaned."""
        self._becomes(b'data: {"a":1,"usage":null}', b'data: {"a":1}')
        self._becomes(b'data: {"a":1,"usage":null}\n', b'data: {"a":1}\n')
        self._stays(b'data: {"a":1,"usage":nul')
        self._stays(b'data: {"choices":[],"usage":{"prompt_t')

    def test_an_error_in_a_chunk(self) -> None:
        """A chunk that carries an error has its usage member taken out like any other; an empty one stays."""
        self._becomes(
            b'data: {"choices":[{}], "usage":null, "error":{"code":1}}\n\n',
            b'data: {"choices":[{}], "error":{"code":1}}\n\n',
        )
        self._becomes(b'data: {"a":[1], "usage": null , "error":null}\n\n', b'data: {"a":[1] , "error":null}\n\n')
        self._stays(b'data: {"choices":[],"usage":{"a":1},"error":{"code":1}}\n\n')
        pieces = [b'data: {"choices":[],"usage":{"a":1},"error":null}\n\n']
        self.assertEqual(removed(pieces), (b"", 1, None))

    def test_half_a_surrogate_pair(self) -> None:
        """A chunk with half an emoji has its usage member taken out like any other, and is else untouched."""
        half = b'"c":"a\\\\\\ud83d\\"\\\\ud83d"'
        self._becomes(b"data: {%b,%b}\n\n" % (b'"usage":null', half), b"data: {%b}\n\n" % half)
        self._becomes(b"data: {%b, %b}\n\n" % (half, b'"usage" : null'), b"data: {%b}\n\n" % half)
        extra = b'data: {"choices":[],"x":"\\ud83d","usage":%b}\n\n' % USAGE
        self.assertEqual(removed([extra]), (b"", 1, None))

    def test_an_event_that_is_none_of_ours(self) -> None:
        """An event that begins with an unknown field is left as it is, however the network cuts it."""
        chunk = b'data: {"a":1,"usage":null}'
        for begin in (b"foo: 1\n", b"x\n", b"0\r\n", b"datum\n", b" data: 1\n"):
            event = begin + chunk + b"\n\n"
            for size in range(1, len(event) + 1):
                pieces = [event[at : at + size] for at in range(0, len(event), size)]
                self.assertEqual(removed([*pieces, chunk + b"\n\n"]), (event + b'data: {"a":1}\n\n', 0, None))
        large = b"foo: " + b"x" * EVENT_BYTES_MAX + b"\n" + chunk
        for pieces in ([large, b"\n\n"], [large + b"\n\n"], [large[:9], large[9:], b"\n\n"]):
            self.assertEqual(removed(pieces), (large + b"\n\n", 0, None))
        for begin in (b"foo\n", b"data\n", b": ping\n", b"event: a\n", b"id\n", b"retry: 1\n"):
            kept = begin + (chunk if begin == b"foo\n" else b'data: {"a":1}') + b"\n\n"
            event = begin + chunk + b"\n\n"
            for at in range(len(event) + 1):
                self.assertEqual(removed([event[:at], event[at:]]), (kept, 0, None))

    def test_an_event_larger_than_is_held(self) -> None:
        """An image in one event passes while it comes, and the member at its end is still taken out."""
        text = b"x" * (2 * EVENT_BYTES_MAX)
        big = b'data: {"a":"%b"%b}\n\n' % (text, b',"usage":null')
        pieces = [big[at : at + 10_007] for at in range(0, len(big), 10_007)]
        self.assertEqual(removed([*pieces, EXTRA]), (b'data: {"a":"%b"}\n\n' % text, 1, None))
        removal = UsageRemoval()
        self.assertGreater(len(removal.feed(big[:-5])), EVENT_BYTES_MAX)
        early = b'data: {"usage":null,"a":"%b"}\n\n' % text
        pieces = [early[at : at + 10_007] for at in range(0, len(early), 10_007)]
        self.assertEqual(removed(pieces), (early, 0, "large_event"))

    @given(_streams(), st.lists(st.integers(0, 600), max_size=6))
    def test_any_stream_in_any_pieces(self, streams: tuple[bytes, bytes, int], cuts: list[int]) -> None:
        """However the network cuts the stream, I get the bytes that I would have got."""
        plain, counted, more = streams
        edges = [0, *sorted(cut for cut in cuts if cut < len(counted)), len(counted)]
        pieces = [counted[begin:end] for begin, end in pairwise(edges)]
        self.assertEqual(removed(pieces), (plain, more, None))

    def test_the_simulated_providers(self) -> None:
        """OpenAI's and Groq's streams, chat and older completions, are what they are without usage."""
        for dialect in (OPENAI, GROQ):
            for endpoint, asked in (
                (openai_chat.chat, {"messages": [{"role": "user", "content": "tell me of rivers"}]}),
                (openai_chat.completions, {"prompt": "tell me of rivers"}),
            ):
                streams = []
                for options in ({}, {"stream_options": {"include_usage": True}}):
                    body = json.dumps({"model": "m", "stream": True, **asked, **options}).encode()
                    ask = Ask(method=b"POST", target=b"/", fields=[], body=body, body_bytes=len(body), now_s=1.0)
                    ask.dialect = dialect
                    with mock.patch.object(openai_chat, "new_id", lambda prefix, size=24: prefix + "1" * size):
                        streams.append(list(endpoint(ask, House()).events or ()))
                plain, counted = streams
                self.assertEqual(len(counted), len(plain) + 1)
                self.assertEqual(removed(counted), (b"".join(plain), 1, None))
                self.assertEqual(removed([b"".join(counted)]), (b"".join(plain), 1, None))
