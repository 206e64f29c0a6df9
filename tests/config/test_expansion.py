"""Tests of llmproxy.config.expansion: environment variables in strings."""

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.config.expansion import NotSetError, expand


class ExpansionTests(SynchronousTestCase):
    def test_forms(self) -> None:
        """Each form gives what a shell gives; a dollar in front of anything else stays."""
        environ = {"A": "one", "B_2": "two", "EMPTY": "", "NEST": "${A}"}
        for text, expected in (
            ("${A}", "one"),
            ("x${A}y${B_2}z", "xoneytwoz"),
            ("${NOPE:-d}", "d"),
            ("${NOPE:-}", ""),
            ("${A:-d}", "one"),
            ("${EMPTY}", ""),
            ("${EMPTY:-d}", "d"),
            ("${NOPE:-a b:-c/$1}", "a b:-c/$1"),
            ("$${A}", "${A}"),
            ("$$", "$"),
            ("$$$$", "$$"),
            ("$$${A}", "$one"),
            ("$A $5 $", "$A $5 $"),
            ("${NEST}", "${A}"),
            ("", ""),
        ):
            with self.subTest(text):
                self.assertEqual(expand(text, environ), expected)

    def test_not_set(self) -> None:
        """A name that is not set is an error that names it."""
        error = self.assertRaises(NotSetError, expand, "a${NOPE}", {"A": "1"})
        self.assertEqual(str(error), "NOPE is not set in the environment, and has no default here")

    def test_broken_forms(self) -> None:
        """What is neither form is an error, not text that goes on its way with a brace in it."""
        for text in ("${", "${}", "${A", "${1A}", "${A-b}", "${A:+b}", "${A:-${B}}", "${ A }", "${a.b}"):
            with self.subTest(text):
                error = self.assertRaises(ValueError, expand, text, {"A": "1", "B": "2"})
                self.assertIn("must be ${NAME} or ${NAME:-default}", str(error))

    @given(st.text())
    def test_dollars_doubled_are_literal(self, text: str) -> None:
        """Any text comes through when its dollars are doubled."""
        self.assertEqual(expand(text.replace("$", "$$"), {}), text)

    @given(st.text())
    def test_a_value_is_not_expanded_again(self, value: str) -> None:
        """What a variable holds is taken as it is."""
        self.assertEqual(expand("<${V}>", {"V": value}), f"<{value}>")
