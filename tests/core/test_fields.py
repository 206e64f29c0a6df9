"""Header fields: looked at, filtered, written; never rebuilt."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.core import fields as f
from llmproxy.core.fields import Fields

_names = st.sampled_from([b"Host", b"host", b"X-A", b"x-a", b"Connection", b"TE", b"X-LLM-Proxy-Y", b"Upgrade", b"B"])
_values = st.sampled_from([b"", b"1", b" padded\t", b"x-a", b"close, b", b"B , X-A", b"host"])
_fields = st.lists(st.tuples(_names, _values), max_size=10)


class LookingUp(SynchronousTestCase):
    """Finding a field."""

    def test_get(self) -> None:
        """The first of a name counts, in whatever case it was written; white space around it does not."""
        fields = [(b"X-A", b" 1\t"), (b"x-a", b"2"), (b"Y", b"")]
        self.assertEqual(f.get(fields, b"x-a"), b"1")
        self.assertEqual(f.get_all(fields, b"x-a"), [b"1", b"2"])
        self.assertEqual(f.get(fields, b"y"), b"")
        self.assertIsNone(f.get(fields, b"z"))
        self.assertEqual(f.get_all(fields, b"z"), [])

    def test_index(self) -> None:
        """Fields of one name are one list, in their order, and each name is there once."""
        self.assertEqual(f.index([(b"X-A", b" 1"), (b"B", b"b"), (b"x-a", b"2\t")]), {b"x-a": b"1, 2", b"b": b"b"})

    @given(_fields)
    def test_index_agrees(self, fields: Fields) -> None:
        """The table says what the list says."""
        table = f.index(fields)
        self.assertEqual(set(table), {name.lower() for name, _ in fields})
        for name, value in table.items():
            self.assertEqual(value, b", ".join(f.get_all(fields, name)))

    def test_tokens(self) -> None:
        """Lists are read as RFC 9110 has them: case, spaces and empty members do not matter."""
        self.assertEqual(f.tokens(b"Close ,\tX-A,,, b"), {b"close", b"x-a", b"b"})
        self.assertEqual(f.tokens(b""), set())
        self.assertEqual(f.tokens(None), set())


class Forwarding(SynchronousTestCase):
    """What goes on to the other side."""

    def test_hop_by_hop(self) -> None:
        """Fields for one connection stay, in any case; all others go on, in their order, as they are."""
        fields = [(name.title(), b"x") for name in sorted(f.HOP_BY_HOP - {b"connection"})]
        kept = [(b"b", b" 2 "), (b"A", b"1"), (b"b", b"3")]
        self.assertEqual(f.end_to_end([*kept[:1], *fields, *kept[1:]]), kept)

    def test_named_by_connection(self) -> None:
        """What Connection names stays too, however many Connection fields there are and wherever they stand."""
        fields = [(b"X-A", b"1"), (b"Connection", b"x-A, close"), (b"C", b"2"), (b"D", b"3"), (b"connection", b"D")]
        self.assertEqual(f.end_to_end(fields), [(b"C", b"2")])

    def test_what_connection_cannot_take(self) -> None:
        """A field without which the message means something else cannot be taken away."""
        fields = [(name, b"1") for name in sorted(f.NEVER_NAMED)]
        named = (b"Connection", b", ".join(f.NEVER_NAMED))
        self.assertEqual(f.end_to_end([named, *fields]), fields)

    def test_close_is_no_name(self) -> None:
        """`Connection: close` does not take a field called Close away."""
        self.assertEqual(f.end_to_end([(b"Connection", b"close"), (b"Close", b"1")]), [(b"Close", b"1")])

    def test_more_to_drop(self) -> None:
        """Further names, prefixes, and another Host, as the caller of it wants."""
        fields = [(b"hOst", b"a"), (b"X-User-ID", b"1"), (b"X-LLM-Proxy-A", b"2"), (b"X-LLM", b"3"), (b"TE", b"4")]
        self.assertEqual(
            f.end_to_end(fields, f.HOP_BY_HOP | {b"x-user-id"}, (f.CONTROL_PREFIX,), b"api.test"),
            [(b"hOst", b"api.test"), (b"X-LLM", b"3")],
        )

    @given(_fields)
    def test_only_takes_out(self, fields: Fields) -> None:
        """Whatever comes: what is left is in its order, nothing is changed, the list that was given neither."""
        before = list(fields)
        kept = f.end_to_end(fields)
        self.assertEqual(fields, before)
        rest = iter(fields)
        self.assertTrue(all(any(pair == other for other in rest) for pair in kept))
        self.assertFalse({name.lower() for name, _ in kept} & f.HOP_BY_HOP)
        self.assertEqual(f.end_to_end(kept), kept)

    def test_trailers(self) -> None:
        """A trailer never becomes framing, routing, authentication or the meaning of the content."""
        fields = [
            (b"X-Sum", b"1"),
            (b"Content-Length", b"5"),
            (b"HOST", b"evil"),
            (b"Authorization", b"x"),
            (b"x-b", b"2"),
        ]
        self.assertEqual(f.trailers(fields), [(b"X-Sum", b"1"), (b"x-b", b"2")])
        self.assertEqual(f.trailers([]), [])


class Grammar(SynchronousTestCase):
    """What may be a name or a value."""

    def test_tokens_only(self) -> None:
        """Names and methods are tokens."""
        for name in (b"GET", b"x-a", b"!#$%&'*+-.^_`|~09azAZ"):
            self.assertTrue(f.is_token(name))
        for name in (b"", b"a b", b"a:", b"a\n", b"\xe4", b"a\x00", b"a/b", b'"a"', b"a\r\nb"):
            self.assertFalse(f.is_token(name), name)


class Writing(SynchronousTestCase):
    """A head as bytes."""

    def test_serialize(self) -> None:
        """A start line, the fields, an empty line."""
        self.assertEqual(f.serialize(b"GET / HTTP/1.1", []), b"GET / HTTP/1.1\r\n\r\n")
        self.assertEqual(f.serialize(b"S", [(b"A", b"1"), (b"b", b"")]), b"S\r\nA: 1\r\nb: \r\n\r\n")

    def test_trailers(self) -> None:
        """The last chunk, with and without trailers."""
        self.assertEqual(f.serialize_trailers([]), b"0\r\n\r\n")
        self.assertEqual(f.serialize_trailers([(b"A", b"1")]), b"0\r\nA: 1\r\n\r\n")

    @given(st.binary(max_size=10), st.lists(st.tuples(st.binary(max_size=6), st.binary(max_size=6)), max_size=4))
    def test_one_head(self, start: bytes, fields: Fields) -> None:
        """A head with a line break in the wrong place, or a NUL, is known; any other is what it was made of."""
        head = f.serialize(start, fields)
        dirty = any(byte in b"".join((start, *(part for pair in fields for part in pair))) for byte in b"\r\n\0")
        self.assertEqual(f.is_one_head(head, len(fields)), not dirty)

    @given(_fields)
    def test_size(self, fields: Fields) -> None:
        """The size of fields is what they take in a head."""
        self.assertEqual(f.size_bytes(fields), len(f.serialize(b"", fields)) - 4)
