"""What a shape is told by: the members of the top level; and what is an error, if it is of no shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from twisted.trial.unittest import SynchronousTestCase

from llmproxy.core.reading.json_scan import KEY_VALUE_BYTES_MAX
from llmproxy.core.reading.recognition import choose, error_kind, keys_of, watched_by
from llmproxy.core.reading.shape import Members, Path
from llmproxy.core.usage import Reading


class _Letter:
    name = "letter"
    watched: frozenset[Path] = frozenset({("a",)})
    letter: ClassVar[str] = "a"

    @classmethod
    def recognises(cls, keys: Mapping[str, bytes]) -> bool:
        return cls.letter in keys

    def take_body(self, body: bytes) -> None: ...

    def take_events(self, events: Sequence[bytes]) -> None: ...

    def take_large(self, members: Members, skipped_bytes: int) -> None: ...

    def reading(self, whole: bool) -> Reading:
        return Reading()


class _Other(_Letter):
    watched = frozenset({("a",), ("b", "c")})
    letter = "b"


class KeysTests(SynchronousTestCase):
    """The members of an object."""

    def test_members_as_they_are_written(self) -> None:
        """A shape sees the members of an answer as the provider wrote them."""
        self.assertEqual(
            keys_of(b' {"a" : "x\\u0061", "b":[ 1, 2 ], "c":null, "a\\u0062":{} }\r\n'),
            {"a": b'"x\\u0061"', "b": b"[ 1, 2 ]", "c": b"null", "ab": b"{}"},
        )

    def test_long_values(self) -> None:
        """The text of a long answer is not copied to see what it is."""
        for more, is_given in ((0, True), (1, False)):
            value = b'"%b"' % (b"x" * (KEY_VALUE_BYTES_MAX - 2 + more))
            self.assertEqual(keys_of(b'{"a":%b}' % value), {"a": value if is_given else b""})

    def test_half_a_surrogate_pair(self) -> None:
        """An emoji that was cut in two does not hide what an answer is. RFC 8259, section 8.2."""
        for half in (b"\\ud83d", b"\\uDE00", b"\\ude00\\ud83d"):
            text = b'{"type":"message","id":"m","content":[{"text":"a\\\\%b"}],"s":"%b"}' % (half, half)
            keys = keys_of(text)
            assert keys is not None
            self.assertEqual((keys["type"], keys["id"]), (b'"message"', b'"m"'))
            self.assertEqual(list(keys), ["type", "id", "content", "s"])
        self.assertIsNone(keys_of(b'{"a":"\\ud83d"'))
        self.assertEqual(keys_of(b'{"a\xff":1,"b":2}'), {"a\ufffd": b"1", "b": b"2"})

    def test_what_is_no_object(self) -> None:
        """What is no whole JSON object has no members, however it is wrong."""
        for text in (b"", b"[]", b"1", b"{", b'{"a":1}x', b'{"a":}', b"\xff", b'{"a":1}{', b'{"a":' * 100_000):
            self.assertIsNone(keys_of(text), text[:20])


class ChoiceTests(SynchronousTestCase):
    """The choice of a shape."""

    def test_the_first_that_recognises(self) -> None:
        """The order decides where two would do."""
        shapes = (_Letter, _Other)
        self.assertIs(type(choose({"a": b"1", "b": b"1"}, shapes)), _Letter)
        self.assertIs(type(choose({"b": b"1"}, shapes)), _Other)
        self.assertIsNone(choose({"c": b"1"}, shapes))

    def test_what_all_of_them_watch(self) -> None:
        """Before the shape is known, what any of them wants is kept."""
        self.assertEqual(watched_by((_Letter, _Other)), {("a",), ("b", "c")})
        self.assertEqual(watched_by(()), frozenset())


class ErrorTests(SynchronousTestCase):
    """The kind of an error."""

    def test_kinds(self) -> None:
        """Each provider says the kind of an error in a place of its own."""
        for text, kind in (
            # https://platform.openai.com/docs/guides/error-codes
            (b'{"error":{"message":"m","type":"server_error","param":null,"code":"x"}}', "server_error"),
            (b'{"error":{"message":"m","type":null,"code":"rate_limit_exceeded"}}', "rate_limit_exceeded"),
            (b'{"type":"error","code":"server_error","message":"m","sequence_number":1}', "server_error"),
            # https://docs.claude.com/en/api/errors
            (b'{"type":"error","error":{"type":"overloaded_error","message":"m"}}', "overloaded_error"),
            # https://ai.google.dev/gemini-api/docs/troubleshooting
            (b'{"error":{"code":503,"message":"m","status":"UNAVAILABLE"}}', "UNAVAILABLE"),
            (b'{"error":{"code":503}}', "503"),
            (b'{"error":"a sentence of somebody"}', "error"),
            (b'{"error":{}}', "error"),
            (b'{"error":null}', None),
            (b'{"error":false,"type":"x"}', None),
            (b'{"type":"error"}', "error"),
            (b'{"type":"message"}', None),
        ):
            self.assertEqual(error_kind(keys_of(text) or {}), kind, text)

    def test_a_kind_is_short(self) -> None:
        """What a provider writes in place of a kind does not fill the log."""
        self.assertEqual(error_kind({"error": b'{"type":"%b"}' % (b"x" * 900)}), "x" * 64)
        self.assertEqual(error_kind({"error": b""}), "error")
