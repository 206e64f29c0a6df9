"""A body that begins with a JSON object: whole, too large to keep, cut, or one of many."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from llmproxy.core.reading.events import Body, EventRun, Item, LargeEvent
from llmproxy.core.reading.json_object import BODY_BYTES_MAX, INCOMPLETE_JSON, JSONObject

N = frozenset({("n",)})


def read(body: bytes, size: int) -> tuple[list[Item], str | None]:
    container = JSONObject(lambda: N)
    items = [item for at in range(0, len(body), size) for item in container.feed(body[at : at + size])]
    return items + container.finish(), container.trouble


class ObjectTests(SynchronousTestCase):
    """What is given of such a body."""

    def check(self, body: bytes, expected: list[Item], trouble: str | None = None) -> None:
        for size in (1000, 65536, len(body)) if len(body) > 1000 else (1, 7, len(body)):
            items, its_trouble = read(body, size)
            self.assertEqual((items, its_trouble), (expected, trouble))

    def sized(self, size_bytes: int) -> bytes:
        text = b'{"t":"%b","n":7}'
        return text % (b"x" * (size_bytes - len(text) + 2))

    def test_a_whole_object(self) -> None:
        """An answer is given whole, as it came."""
        text = b'{ "n": 7 }\n'
        self.check(text, [Body(text, {"n": b"7"})])

    def test_the_limit(self) -> None:
        """An object of exactly the limit is kept; of one that is a byte longer there is what is watched."""
        keys = {"t": b"", "n": b"7"}
        text = self.sized(BODY_BYTES_MAX)
        self.check(text, [Body(text, keys)])
        self.check(self.sized(BODY_BYTES_MAX + 1), [LargeEvent({("n",): b"7"}, keys, BODY_BYTES_MAX + 1)])

    def test_an_object_that_was_cut(self) -> None:
        """Of an object that was cut there is what had come."""
        self.check(b'{"n":7,"t":"', [LargeEvent({("n",): b"7"}, {"n": b"7", "t": b""}, 12)], INCOMPLETE_JSON)
        text = self.sized(300_000)[:-3]
        self.check(text, [LargeEvent({}, {"t": b""}, len(text))], INCOMPLETE_JSON)

    def test_something_after_it(self) -> None:
        """What is no JSON after the object is left alone."""
        self.check(b'{"n":7} and so on', [Body(b'{"n":7}', {"n": b"7"})])

    def test_more_objects(self) -> None:
        """Objects on lines of their own are events."""
        items, trouble = read(b'{"n":1}\n{"n":2}\n', 3)
        self.assertEqual(
            [text for item in items if isinstance(item, EventRun) for text in item.texts], [b'{"n":1}', b'{"n":2}']
        )
        self.assertIsNone(trouble)

    def test_more_objects_after_a_large_one(self) -> None:
        """The first of many objects may be too large to keep."""
        first = self.sized(BODY_BYTES_MAX + 5)
        for size in (1000, 10**7):
            items, _ = read(first + b'\n{"n":2}\n', size)
            self.assertEqual(items[0], LargeEvent({("n",): b"7"}, {"t": b"", "n": b"7"}, len(first)))
            self.assertEqual(items[1:], [EventRun([b'{"n":2}'], b'[{"n":2}]')])
