"""Where members stand in JSON text, and what is cut or added there."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from llmproxy.core.json_places import Place, key_of, places, span, stands_once, with_member

USAGE = key_of("usage")


class PlacesTests(SynchronousTestCase):
    """Positions, counted by hand."""

    def test_only_the_members_of_the_object_itself(self) -> None:
        """What is inside another value, or inside a string, is not mine to change."""
        self.assertEqual(places(b'{"x":{"usage":1},"usage":2}', USAGE), [Place(17, 25)])
        self.assertEqual(places(b'{"x":[{"usage":1},"]}"],"usage" : 2}', USAGE), [Place(24, 34)])
        self.assertEqual(places(b'{"x":"\\"usage\\":\\\\","usage":2}', USAGE), [Place(20, 28)])

    def test_a_key_may_be_spelled_with_escapes(self) -> None:
        """A key is what it means, not how it is written; an escaped backslash is no such escape."""
        self.assertEqual(places(b'{"us\\u0061ge":1,"usage":2}', USAGE), [Place(1, 14), Place(16, 24)])
        self.assertTrue(stands_once(b'{"us\\\\u0061ge":1,"usage":2}', USAGE))
        self.assertFalse(stands_once(b'{"us\\u0061ge":1,"usage":2}', USAGE))

    def test_a_member_is_added_after_the_last(self) -> None:
        """The white space around my braces stays where it is."""
        self.assertEqual(with_member(b'{"a":1 } ', b'"b":2'), b'{"a":1,"b":2 } ')
        self.assertEqual(with_member(b"{ }", b'"b":2'), b'{"b":2 }')

    def test_what_goes_with_a_member(self) -> None:
        """A member takes one comma with it."""
        self.assertEqual(span(b'{"a":1 , "usage":null , "b":2}', 9, 21), (6, 21))
        self.assertEqual(span(b'{"usage":null , "b":2}', 1, 13), (1, 16))
        self.assertEqual(span(b'{ "usage":null }', 2, 14), (1, 15))
