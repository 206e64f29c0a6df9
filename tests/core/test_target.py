"""The request target: cut, never rebuilt."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.core import target as t

_targets = st.text("/?%2Fa.&=", max_size=20).map(lambda text: b"/" + text.encode())


class Form(SynchronousTestCase):
    """What a target may be."""

    def test_origin_form(self) -> None:
        """A path, and nothing that is invisible or not ASCII."""
        for target in (b"/", b"//", b"/a?b", b"/%00", b"/\\", b"/~", b"/http://x/", b'/a"b'):
            self.assertTrue(t.is_origin_form(target), target)
        for target in (
            b"",
            b"a",
            b"*",
            b"http://x/",
            b"/a b",
            b"/\x7f",
            b"/\x00",
            b"/\xe4",
            b"/\n",
            b"/a\r",
            b"?/",
            b"/a#b",
        ):
            self.assertFalse(t.is_origin_form(target), target)


class Cutting(SynchronousTestCase):
    """The route's part and the rest."""

    def test_after_segments(self) -> None:
        """What is behind so many segments, query and all; nothing if no path is left."""
        for target, count, rest in (
            (b"/openai/v1/models?a=1", 1, b"/v1/models?a=1"),
            (b"/openai/", 1, b"/"),
            (b"/openai/?a", 1, b"/?a"),
            (b"/openai", 1, b""),
            (b"/openai?a", 1, b""),
            (b"/openai?a/b", 1, b""),
            (b"/openai//x", 1, b"//x"),
            (b"/openai/%2F../x", 1, b"/%2F../x"),
            (b"/meta/u/openai/v1?x=/y", 3, b"/v1?x=/y"),
            (b"/meta/u/openai", 3, b""),
            (b"/meta//openai/v1", 3, b"/v1"),
            (b"/", 1, b""),
        ):
            self.assertEqual(t.after_segments(target, count), rest, target)

    @given(_targets, st.integers(1, 4))
    def test_is_an_end_of_it(self, target: bytes, count: int) -> None:
        """What is left is an end of the target, byte for byte, and begins in the path."""
        rest = t.after_segments(target, count)
        self.assertTrue(target.endswith(rest))
        self.assertTrue(not rest or rest.startswith(b"/"))
        taken = target[: len(target) - len(rest)]
        self.assertEqual(
            (taken.count(b"/"), b"?" in taken), (count, False) if rest else (taken.count(b"/"), b"?" in taken)
        )

    def test_split_query(self) -> None:
        """The query begins at the first question mark."""
        self.assertEqual(t.split_query(b"/a?b?c"), (b"/a", b"b?c"))
        self.assertEqual(t.split_query(b"/a?"), (b"/a", b""))
        self.assertEqual(t.split_query(b"/a"), (b"/a", b""))


class WithoutItem(SynchronousTestCase):
    """Taking one item out of a query."""

    def test_taken_out(self) -> None:
        """All items of that name go; every other byte stays, also where the query is odd."""
        for target, left in (
            (b"/a?u=1", b"/a"),
            (b"/a?u=1&b=2", b"/a?b=2"),
            (b"/a?b=2&u=1&c=3", b"/a?b=2&c=3"),
            (b"/a?u&b&u=", b"/a?b"),
            (b"/a?ux=1&xu=2", b"/a?ux=1&xu=2"),
            (b"/a?b=u", b"/a?b=u"),
            (b"/a?&&b=%20&", b"/a?&&b=%20&"),
            (b"/a?&u=1&", b"/a?&"),
            (b"/u=1", b"/u=1"),
            (b"/a?", b"/a?"),
        ):
            self.assertEqual(t.without_query_item(target, b"u"), left, target)
