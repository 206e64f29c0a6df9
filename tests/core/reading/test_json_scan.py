"""The watched members of an object of any size: what json.loads would say, in any split."""

from __future__ import annotations

import json
import time
import tracemalloc
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.core.reading.json_scan import KEY_VALUE_BYTES_MAX, MemberScan, ValueEnd
from llmproxy.core.reading.shape import MEMBER_BYTES_MAX, Path

_scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=12),
    st.text(alphabet='\\"[]{}:,/u\U0001f600é', max_size=12),
)
_keys = st.sampled_from(["usage", "response", "model", "x", "a\\", 'b"', "", "é"])
_values = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=60) | st.dictionaries(_keys, inner, max_size=4),
    max_leaves=12,
)
_objects = st.dictionaries(_keys, _values, max_size=8)
_paths = st.frozensets(st.lists(_keys, min_size=1, max_size=3).map(tuple), max_size=5)


@st.composite
def _texts(draw: st.DrawFn) -> bytes:
    """A JSON object, written in one of the ways that JSON writers write."""
    separators = draw(st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", "\t:\r\n")]))
    text = json.dumps(draw(_objects), separators=separators, ensure_ascii=draw(st.booleans()))
    return (draw(st.sampled_from(["", " ", "\r\n\t"])) + text).encode()


def scan(text: bytes, watched: frozenset[Path], size: int) -> MemberScan:
    found = MemberScan(watched)
    for at in range(0, len(text), size):
        found.feed(text[at : at + size])
    return found


def expected_values(text: bytes, watched: frozenset[Path]) -> dict[Path, Any]:
    found: dict[Path, Any] = {}
    for path in watched:
        value = json.loads(text)
        for name in path:
            if not isinstance(value, dict) or name not in value:
                break
            value = value[name]
        else:
            found[path] = value
    return found


USAGE = frozenset({("usage",), ("response", "usage")})


class MemberScanTests(SynchronousTestCase):
    """What is found."""

    def found(self, text: bytes, watched: frozenset[Path] = USAGE) -> dict[Path, bytes]:
        whole = scan(text, watched, len(text))
        for size in (1, 2, 3, 7):
            again = scan(text, watched, size)
            self.assertEqual((again.values, again.keys), (whole.values, whole.keys))
            self.assertEqual(
                (again.complete, again.broken, again.size_bytes), (whole.complete, whole.broken, whole.size_bytes)
            )
        return whole.values

    @given(_texts(), _paths, st.integers(1, 40))
    def test_what_json_loads_says(self, text: bytes, watched: frozenset[Path], size: int) -> None:
        """Whatever an object holds and whatever pieces it comes in, its members are those that json.loads finds."""
        found = scan(text, watched, size)
        self.assertTrue(found.complete)
        self.assertEqual(found.size_bytes, len(text))
        self.assertEqual(
            {path: json.loads(value) for path, value in found.values.items()}, expected_values(text, watched)
        )
        self.assertEqual({name: json.loads(value) for name, value in found.keys.items()}, json.loads(text))

    @settings(max_examples=40)
    @given(_texts(), _paths)
    def test_cut_at_every_byte(self, text: bytes, watched: frozenset[Path]) -> None:
        """An object that comes in two pieces is read the same wherever they meet."""
        whole = scan(text, watched, len(text))
        for at in range(len(text) + 1):
            found = MemberScan(watched)
            found.feed(text[:at])
            self.assertEqual(found.complete, at == len(text))
            found.feed(text[at:])
            self.assertEqual((found.values, found.keys, found.complete), (whole.values, whole.keys, True))

    @given(st.binary(max_size=60) | st.text(alphabet='{}[]":,\\ tu1', max_size=60).map(str.encode), st.integers(1, 9))
    def test_no_bytes_raise(self, text: bytes, size: int) -> None:
        """Whatever a provider sends, the scan takes it, and takes the same in any split."""
        one, many = scan(text, USAGE, 100), scan(text, USAGE, size)
        self.assertEqual((one.values, one.keys), (many.values, many.keys))
        self.assertEqual((one.complete, one.broken), (many.complete, many.broken))

    def test_nested_members_and_the_objects_around_them(self) -> None:
        """A member is found as it is written, and so is the object that holds it, if both are watched."""
        watched = frozenset({("a",), ("a", "b"), ("a", "b", "c")})
        text = b'{"x":{"a":1}, "a" : { "b": {"c" :[1, "}"]}, "z":0 } }'
        self.assertEqual(
            self.found(text, watched),
            {
                ("a",): b'{ "b": {"c" :[1, "}"]}, "z":0 }',
                ("a", "b"): b'{"c" :[1, "}"]}',
                ("a", "b", "c"): b'[1, "}"]',
            },
        )

    def test_the_last_of_a_repeated_key_counts(self) -> None:
        """Where a member comes twice, the last one counts, as in other JSON readers."""
        self.assertEqual(self.found(b'{"usage":1,"usage":{"a":2}}'), {("usage",): b'{"a":2}'})
        self.assertEqual(self.found(b'{"response":{"usage":1},"response":{}}'), {})

    def test_escaped_keys_and_quotes(self) -> None:
        """A key that is written with escapes is the same key, and an escaped quote ends nothing."""
        self.assertEqual(self.found(b'{"a\\\\":"\\"usage\\":1","us\\u0061ge":"\\\\"}'), {("usage",): b'"\\\\"'})

    def test_what_is_too_long_is_passed_over(self) -> None:
        """A watched member that is far too long for what is wanted of it is not kept."""
        for size, is_kept in ((MEMBER_BYTES_MAX, True), (MEMBER_BYTES_MAX + 1, False)):
            text = b'{"usage":"%b","z":1}' % (b"x" * (size - 2))
            for piece in (len(text), 1000):
                found = scan(text, USAGE, piece)
                self.assertEqual(("usage",) in found.values, is_kept)
                self.assertEqual(found.keys, {"usage": b"", "z": b"1"})

    def test_keys_of_the_top_level(self) -> None:
        """The short members of the top level are there to tell what the object is; of long ones the name is."""
        for size, is_kept in ((KEY_VALUE_BYTES_MAX, True), (KEY_VALUE_BYTES_MAX + 1, False)):
            value = b'"%b"' % (b"x" * (size - 2))
            self.assertEqual(
                scan(b'{"object":"response","output":%b}' % value, USAGE, 100).keys,
                {"object": b'"response"', "output": value if is_kept else b""},
            )

    def test_what_follows_the_object(self) -> None:
        """What comes after the object is handed back, to be read as what it is."""
        found = MemberScan(USAGE)
        self.assertFalse(found.feed(b' {"usage":1'))
        self.assertTrue(found.feed(b'}\n{"usage":2}'))
        self.assertEqual((found.rest, found.size_bytes), (b'\n{"usage":2}', 12))

    def test_what_is_no_object(self) -> None:
        """What is no JSON object is given up, and only its length is still counted."""
        for text in (b"[1]", b"x", b'{"a" 1}', b"{1:2}", b'{"a":1;}', b'{"a":?}'):
            found = scan(text, USAGE, 1)
            self.assertTrue(found.broken)
            self.assertFalse(found.complete)
            self.assertEqual(found.size_bytes, len(text))

    def test_an_object_that_was_cut(self) -> None:
        """Of an object that was cut there is what had come."""
        self.assertEqual(self.found(b'{"usage":{"a":1},"b":[1,'), {("usage",): b'{"a":1}'})
        self.assertEqual(self.found(b'{"usage":12'), {})


class CostTests(SynchronousTestCase):
    """What it costs."""

    def test_memory_stays_small(self) -> None:
        """An image of many megabytes, deep nesting and an endless list cost no memory."""
        base64, words = b"A" * 65536, b'"a","b",' * 8192
        tracemalloc.start()
        try:
            found = MemberScan(USAGE)
            found.feed(b'{"data":[{"b64_json":"')
            for _ in range(100):
                found.feed(base64)
            found.feed(b'"}],"deep":')
            for _ in range(20):
                found.feed(b"[" * 16384)
            for _ in range(20):
                found.feed(b"]" * 16384)
            found.feed(b',"words":[')
            for _ in range(20):
                found.feed(words)
            found.feed(b'""],"usage":{"total_tokens":7}}')
            self.assertLess(tracemalloc.get_traced_memory()[1], 1_500_000)
        finally:
            tracemalloc.stop()
        self.assertTrue(found.complete)
        self.assertEqual(found.values, {("usage",): b'{"total_tokens":7}'})

    def test_a_long_string_is_jumped_over(self) -> None:
        """Fifty megabytes of base64 take a moment, not seconds."""
        piece = b"A" * 65536
        found = MemberScan(USAGE)
        found.feed(b'{"b64_json":"')
        started = time.process_time()
        for _ in range(800):
            found.feed(piece)
        self.assertLess(time.process_time() - started, 1.0)  # it is some 10 ms


class ValueEndTests(SynchronousTestCase):
    """Where a value ends."""

    def test_wherever_a_step_ends(self) -> None:
        """A long list of numbers ends where it ends, however long it is, with brackets and strings behind."""
        for padding in range(300):
            for form in (b"[%b[{}]]", b'[%b"]"]', b'{%b"}":[]}', b'[%b"",[],{"a":[]}]', b"[[%b]]"):
                value = form % (b"1" * padding)
                for more in (b"", b",", b"]", b',{"a":1}]'):
                    end = ValueEnd()
                    end.begin(value[0])
                    self.assertEqual(end.find(value + more, 1), len(value))
                end.begin(value[0])
                self.assertEqual(end.find(value[:-1], 1), -1)
                self.assertEqual(end.find(value[-1:] + b"]", 0), 1)
