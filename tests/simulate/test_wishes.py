"""The grammar of wishes."""

from __future__ import annotations

from dataclasses import fields

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.simulate.wishes import GRAMMAR, HEAD, BadWish, Wishes, split_model, wishes_of

_GOOD = {
    "delay": "0.5", "interval": "0", "events": "50", "bytes": "1000", "cached": "7", "reasoning": "9",
    "status": "529", "retry_after": "3", "silence": "head", "cut": "10", "reset": "head", "garbage": "4",
    "error_event": "2", "written": "5", "tool_tokens": "6", "audio": "8", "image": "11", "usage": "none",
    "iterations": "advisor", "crlf": "1", "encoding": "gzip", "chunk": "1", "close": "1", "early": "1",
}  # fmt: skip


class GrammarTests(SynchronousTestCase):
    """What a caller may write."""

    def test_every_wish_is_read(self) -> None:
        """Each wish of the grammar can be asked for, and sets something of its own."""
        self.assertEqual(set(_GOOD), set(GRAMMAR))
        for name, value in _GOOD.items():
            changed = [f.name for f in fields(Wishes)
                       if getattr(wishes_of(f"{name}={value}"), f.name) != getattr(Wishes(), f.name)]  # fmt: skip
            self.assertEqual(changed, [GRAMMAR[name][0]])

    def test_every_field_can_be_asked_for(self) -> None:
        """There is no pacing or fault in the code that nobody can ask for."""
        self.assertEqual({f.name for f in fields(Wishes)}, {field for field, _ in GRAMMAR.values()})

    def test_the_same_grammar_behind_a_model(self) -> None:
        """What the field says with commas, the model's name says with plus signs."""
        name, behind = split_model("gpt-4o+events=50+interval=0+reset=head")
        self.assertEqual(name, "gpt-4o")
        self.assertEqual(wishes_of("", behind), wishes_of("events=50, interval=0,reset=head"))
        self.assertEqual(wishes_of("", behind).reset, HEAD)

    def test_the_field_wins(self) -> None:
        """Where both speak, the field decides, and the rest of the model's wishes stays."""
        self.assertEqual(wishes_of("events=1", "events=2+chunk=3"), wishes_of("events=1,chunk=3"))

    def test_a_plus_sign_in_a_name(self) -> None:
        """A model whose name has a plus sign keeps it."""
        self.assertEqual(split_model("llama+lora-7"), ("llama+lora-7", ""))
        self.assertEqual(split_model("llama+lora+events=3"), ("llama+lora", "events=3"))

    def test_what_is_not_understood_is_said(self) -> None:
        """A misspelt wish or a bad value is refused with its name, and with what would be right."""
        for text, says in (
            ("event=3", "'event' is not known"),
            ("events=x", "events takes a whole number"),
            ("events=-1", "events takes"),
            ("status=99", "from 200 to 599"),
            ("delay=nan", "a time in seconds"),
            ("delay=1e9", "a time in seconds"),
            ("encoding=rot13", "gzip, deflate, br, zstd"),
            ("silence=tail", "the word head"),
            ("close=yes", "0 or 1"),
            ("chunk=0", "from 1"),
            ("events", "events takes"),
            ("=3", "is not known"),
        ):
            with self.subTest(text), self.assertRaises(BadWish) as caught:
                wishes_of(text)
            self.assertIn(says, str(caught.exception))

    def test_empty_parts_mean_nothing(self) -> None:
        """Doubled and trailing commas are allowed, as in every list field."""
        self.assertEqual(wishes_of(" ,events=3,, "), wishes_of("events=3"))
        self.assertEqual(wishes_of(""), Wishes())

    @given(st.text(max_size=60))
    def test_any_text_is_read_or_refused(self, text: str) -> None:
        """No text breaks the reader: it is understood, or refused with a sentence."""
        try:
            wishes_of(text)
        except BadWish as complaint:
            self.assertTrue(str(complaint).startswith("X-Simulate: "))

    def test_pauses(self) -> None:
        """Events come 20 ms apart; sized writes come at once; both as asked when asked."""
        self.assertEqual(wishes_of("").pause_s, 0.02)
        self.assertEqual(wishes_of("chunk=1").pause_s, 0.0)
        self.assertEqual(wishes_of("chunk=1,interval=0.5").pause_s, 0.5)
