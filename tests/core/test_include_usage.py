"""Asking for the usage of a stream: one change in the caller's text, and where none is made.

Source: https://platform.openai.com/docs/api-reference/chat/create, stream_options.
"""

from __future__ import annotations

import json
from random import Random

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.core.include_usage import Edit, with_include_usage

_keys = st.sampled_from(["model", "streams", "a\\", 'b"', "", "é", "messages", '"stream":'])
_nested = st.sampled_from(["stream", "stream_options", "include_usage", "x", '"stream":', "\\"])
_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(alphabet='\\"[]{}:,stream_é', max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_nested, inner, max_size=3),
    max_leaves=8,
)
_absent = object()


def _options() -> st.SearchStrategy[object]:
    flag = st.sampled_from([_absent, False, None])
    made = st.tuples(flag, st.dictionaries(st.sampled_from(["include_obfuscation", "x"]), _values, max_size=2))
    objects = made.map(lambda each: each[1] if each[0] is _absent else {**each[1], "include_usage": each[0]})
    return st.sampled_from([_absent, None]) | objects


class WithIncludeUsageTests(SynchronousTestCase):
    """What is sent instead of the caller's text."""

    def _edits(self, body: bytes, edited: bytes) -> None:
        self.assertEqual(with_include_usage(body), Edit(edited, ""))

    def _refuses(self, body: bytes, reason: str) -> None:
        self.assertEqual(with_include_usage(body), Edit(None, reason))

    def test_the_member_is_added_after_the_last_one(self) -> None:
        """My text stays as I wrote it; what is added stands after my last member."""
        self._edits(b'{"stream":true}', b'{"stream":true,"stream_options":{"include_usage":true}}')
        self._edits(
            b' {\n  "stream" : true,\n  "n": 1E400\n}\r\n',
            b' {\n  "stream" : true,\n  "n": 1E400,"stream_options":{"include_usage":true}\n}\r\n',
        )

    def test_stream_options_of_mine_are_kept(self) -> None:
        """Options that I set stay in force; only the one that is needed is added or changed."""
        for mine, sent in (
            (b"null", b'{"include_usage":true}'),
            (b"{}", b'{"include_usage":true}'),
            (b"{ }", b'{"include_usage":true }'),
            (b'{"include_obfuscation":false }', b'{"include_obfuscation":false,"include_usage":true }'),
            (b'{"include_usage" : false, "a":1}', b'{"include_usage" : true, "a":1}'),
            (b'{"include_us\\u0061ge":null}', b'{"include_us\\u0061ge":true}'),
            (b'{"x":{"include_usage":1}}', b'{"x":{"include_usage":1},"include_usage":true}'),
            (b'{"x":{"include_usage":1},"include_usage":false}', b'{"x":{"include_usage":1},"include_usage":true}'),
        ):
            self._edits(
                b'{"stream_options": %b , "stream":true}' % mine, b'{"stream_options": %b , "stream":true}' % sent
            )

    def test_what_is_not_edited(self) -> None:
        """Where it is not certain what my text means to the provider, it is sent as it is."""
        for body, reason in (
            (b"", "empty"),
            (b" ", "not_json"),
            (b'{"stream":true', "not_json"),
            (b'{"stream":true} x', "not_json"),
            (b"[true]", "no_object"),
            (b"{}", "not_a_stream"),
            (b'{"stream":false}', "not_a_stream"),
            (b'{"stream":1}', "not_a_stream"),
            (b'{"stream":"true"}', "not_a_stream"),
            (b'{"x":{"stream":true}}', "not_a_stream"),
            (b'{"stream":true,"stream":true}', "repeated_key"),
            (b'{"stre\\u0061m":false,"stream":true}', "repeated_key"),
            (b'{"stream":true,"stre\\u0061\\u006D":true}', "repeated_key"),
            (b'{"stream":true,"stream_options":{},"stream\\u005Foptions":null}', "repeated_key"),
            (b'{"stream":true,"stream_options":{"include_usage":true,"include_usage":false}}', "repeated_key"),
            (b'{"stream":true,"stream_options":[]}', "stream_options_not_an_object"),
            (b'{"stream":true,"stream_options":{"include_usage":1}}', "include_usage_not_a_boolean"),
            (b'{"stream":true,"stream_options":{"include_usage":true}}', "asked"),
        ):
            self._refuses(body, reason)

    def test_the_words_elsewhere_do_not_matter(self) -> None:
        """A prompt or a tool that speaks of stream options is only text and schema."""
        for other in (
            b'"p":"\\"stream\\":true,\\\\"',
            b'"stream\\\\u0061":1,"tools":[{"stream":{"stream_options":null}}]',
            b'"p":"stream","q":"stream_options"',
            b'"p":"\xff\xfe","a":1,"a":2',
        ):
            body = b'{%b,"stream":true}' % other
            self._edits(body, body[:-1] + b',"stream_options":{"include_usage":true}}')

    def test_half_a_surrogate_pair(self) -> None:
        """A conversation with half an emoji is edited like any other, and its bytes stay. RFC 8259, section 8.2."""
        half = b'"m":"a\\ud83d \\\\ \\"\\uDE00"'
        asked = b'"stream_options":{"include_usage":true}'
        self._edits(b'{%b,"stream":true}' % half, b'{%b,"stream":true,%b}' % (half, asked))
        self._edits(
            b'{"stream_options":{"x":"\\ud83d\\\\","include_usage":false},"stream":true}',
            b'{"stream_options":{"x":"\\ud83d\\\\","include_usage":true},"stream":true}',
        )
        self._edits(
            b'{"stream_options":{"x":"\\ud83d"},"stream":true}',
            b'{"stream_options":{"x":"\\ud83d","include_usage":true},"stream":true}',
        )
        self._refuses(b'{"stream":true,"m":"\\ud83d"', "not_json")
        self._refuses(b'{"stream":true,"m":"\\ud8"}', "not_json")

    def test_deep_nesting_is_refused_and_harms_nothing(self) -> None:
        """A hundred thousand brackets cost neither the process nor the request."""
        deep = b"[" * 100_000 + b"]" * 100_000
        self._refuses(b'{"stream":true,"x":%b}' % deep, "nested_too_deep")
        self._refuses(b'{"stream":true,"x":%b' % (b"[" * 100_000), "nested_too_deep")

    @given(
        st.dictionaries(_keys, _values, max_size=5), _options(), st.randoms(), st.booleans(), st.sampled_from([None, 1])
    )
    def test_one_change_and_no_other(
        self, others: dict[str, object], options: object, random: Random, ascii_only: bool, indent: int | None
    ) -> None:
        """Whatever I send, the provider reads my request with the usage asked for, the rest byte for byte."""
        asked = {**others, "stream": True}
        if options is not _absent:
            asked["stream_options"] = options
        order = list(asked)
        random.shuffle(order)
        body = json.dumps({key: asked[key] for key in order}, ensure_ascii=ascii_only, indent=indent).encode()
        edited = with_include_usage(body).body
        assert edited is not None
        wanted = dict(options) if isinstance(options, dict) else {}
        self.assertEqual(json.loads(edited), {**asked, "stream_options": {**wanted, "include_usage": True}})
        ahead = next((i for i, (a, b) in enumerate(zip(body, edited, strict=False)) if a != b), len(body))
        behind = 0
        while behind < len(body) - ahead and body[-1 - behind] == edited[-1 - behind]:
            behind += 1
        # What was replaced of mine: nothing, null, or false less the "e" that true ends with too.
        self.assertIn(body[ahead : len(body) - behind], [b"", b"null", b"fals"])
