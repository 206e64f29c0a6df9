"""JSON lines and JSON arrays: each value as it comes to its end, in any split."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.core.reading.events import EVENT_BYTES_MAX, Container, EventRun, Item, LargeEvent
from llmproxy.core.reading.json_runs import NOT_JSON, JSONArray, JSONLines
from llmproxy.core.reading.json_scan import ValueEnd

N = frozenset({("n",)})

_values = st.recursive(
    st.none() | st.integers() | st.text(alphabet='\\"[]{},:\né', max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(alphabet='\\"[]{}a', max_size=3), inner, max_size=4)
    ),
    max_leaves=10,
)


def read(container: Container, body: bytes, size: int) -> list[Item]:
    items = [item for at in range(0, len(body), size) for item in container.feed(body[at : at + size])]
    return items + container.finish()


def texts(items: list[Item]) -> list[bytes]:
    return [text for item in items if isinstance(item, EventRun) for text in item.texts]


class LinesTests(SynchronousTestCase):
    """JSON lines."""

    def lines(self, body: bytes) -> list[bytes]:
        found = texts(read(JSONLines(lambda: N), body, 1))
        for size in (2, 3, 100):
            self.assertEqual(texts(read(JSONLines(lambda: N), body, size)), found)
        return [line.strip() for line in found]

    def test_lines(self) -> None:
        """Every line of the results of a batch is read, the last one too if it has no end."""
        self.assertEqual(self.lines(b'{"a":1}\n{"b":2}\n'), [b'{"a":1}', b'{"b":2}'])
        self.assertEqual(self.lines(b'{"a":1}\r\n\r\n \n{"b":2}'), [b'{"a":1}', b'{"b":2}'])
        self.assertEqual(self.lines(b"\n\n"), [])

    def test_a_line_that_is_too_long_to_keep(self) -> None:
        """Of a long line there is what is watched, in its place among the others."""
        for more in (0, 1):
            text = b'{"t":"%b","n":7}'
            line = text % (b"x" * (EVENT_BYTES_MAX + more - len(text) + 2))
            for size in (999, 10**7):
                items = read(JSONLines(lambda: N), b"1\n%b\n2\n" % line, size)
                self.assertEqual(texts(items), [b"1", *([] if more else [line]), b"2"])
                large = [(dict(item.members), item.size_bytes) for item in items if isinstance(item, LargeEvent)]
                self.assertEqual(large, [({("n",): b"7"}, len(line))] if more else [])


class ArrayTests(SynchronousTestCase):
    """A JSON array."""

    def test_as_gemini_writes_it(self) -> None:
        """The answers of a Gemini stream without server-sent events are read one by one, each as soon as it is here."""
        array = JSONArray(lambda: N)
        self.assertEqual(texts(array.feed(b'[{\n  "n": 1\n}\n,\r\n{\n  "n"')), [b'{\n  "n": 1\n}'])
        self.assertEqual(texts(array.feed(b": 2\n}")), [b'{\n  "n": 2\n}'])
        self.assertFalse(array.done)
        self.assertEqual(array.feed(b"\n]"), [])
        self.assertTrue(array.done)

    @given(st.lists(_values, max_size=6), st.integers(1, 20), st.sampled_from([None, 2]))
    def test_any_array_in_any_split(self, values: list[object], size: int, indent: int | None) -> None:
        """Whatever the elements hold, the objects among them are found."""
        array = JSONArray(lambda: N)
        body = json.dumps(values, indent=indent).encode() + b"]]{}"
        found = texts(read(array, body, size))
        self.assertEqual([json.loads(each) for each in found], [each for each in values if isinstance(each, dict)])
        self.assertTrue(array.done)

    def test_an_array_that_was_cut(self) -> None:
        """An element that was cut is none, and the array is not over."""
        array = JSONArray(lambda: N)
        self.assertEqual(texts(read(array, b'[{"n":1},{"n":2', 4)), [b'{"n":1}'])
        self.assertFalse(array.done)

    def test_a_large_element_that_is_no_json(self) -> None:
        """Where the end of a huge element cannot be found, that is said."""
        array = JSONArray(lambda: N)
        read(array, b'[{"n":1},{"a" "%b"},{"n":2}]' % (b"x" * EVENT_BYTES_MAX), 1000)
        self.assertEqual((array.done, array.trouble), (False, NOT_JSON))

    def test_thousands_of_small_elements(self) -> None:
        """An answer of a hostile provider that is nothing but small elements takes time in proportion to its length."""
        for element in (b"{}", b"[1,2]", b"[0.12345678,0.23456789,0.3456789]"):
            looked_at = []
            for number in (500, 2000):
                array = JSONArray(lambda: N)
                array._end = end = _Counting()
                array.feed(b"[" + b",".join([element] * number) + b',{"a":"b"}]')
                self.assertTrue(array.done)
                looked_at.append(end.looked_at_bytes)
            self.assertLess(looked_at[1], 5 * looked_at[0])
            self.assertGreater(looked_at[0], 500)


class _Counting(ValueEnd):
    """Tells how many bytes were looked at for brackets."""

    def __init__(self) -> None:
        super().__init__()
        self.looked_at_bytes = 0

    def _count_brackets(self, text: bytes) -> int | None:
        self.looked_at_bytes += len(text)
        return super()._count_brackets(text)
