"""The look at a request body: what json.loads would say, however the body is cut."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.core.peek import BodyPeek, look_at_whole

LIMIT_BYTES = 1 << 20

_scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=12),
    st.text(alphabet='\\"[]{}:,/u\U0001f600é', max_size=12),
)
_names = "model stream user max_tokens max_completion_tokens metadata user_id messages"
_names += " generationConfig maxOutputTokens"
_keys = st.sampled_from([*_names.split(), "a\\", 'b"', "", "é"])
_values = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_keys, inner, max_size=4),
    max_leaves=12,
)
_objects = st.dictionaries(_keys, _values, max_size=8)
_user_paths = st.sampled_from([("user",), ("metadata", "user_id"), (), ("model",), ("a\\", "é", "")])


@st.composite
def _texts(draw: st.DrawFn) -> bytes:
    """A JSON object, written in one of the ways that JSON writers write."""
    separators = draw(st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", "\t:\r\n")]))
    indent = draw(st.sampled_from([None, 1]))
    text = json.dumps(draw(_objects), ensure_ascii=draw(st.booleans()), indent=indent, separators=separators)
    return draw(st.sampled_from(["", " \n"])).encode() + text.encode()


@st.composite
def _pieces(draw: st.DrawFn, text: bytes) -> list[bytes]:
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=6)))
    return [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


def _answer(peek: BodyPeek) -> tuple[object, ...]:
    return (peek.model, peek.stream, peek.user, peek.max_tokens, peek.complete)


def _looked_at(pieces: list[bytes], user_path: tuple[str, ...] = ("user",), limit_bytes: int = LIMIT_BYTES) -> BodyPeek:
    peek = BodyPeek(limit_bytes, user_path)
    for piece in pieces:
        peek.feed(piece)
    peek.finish()
    return peek


def _slowly(text: bytes, user_path: tuple[str, ...] = ("user",)) -> BodyPeek:
    """The scan without the one-go decode: the first piece is only the brace, or the space before it."""
    start = text.find(b"{") + 1
    return _looked_at([text[:start], text[start:]], user_path)


def _reference(value: dict[str, Any], user_path: tuple[str, ...]) -> tuple[object, ...]:
    """What a program that reads the whole body would find."""

    def at(*path: str) -> Any:
        found: Any = value
        for name in path:
            found = found.get(name) if isinstance(found, dict) else None
        return found

    def text(*path: str) -> str | None:
        found = at(*path)
        return found if path and isinstance(found, str) else None

    limits = [at("max_tokens"), at("max_completion_tokens"), at("max_output_tokens")]
    limits.append(at("generationConfig", "maxOutputTokens"))
    stream = at("stream")
    whole = [each for each in limits if type(each) is int and 0 <= each < 2**63]
    return (
        text("model"),
        stream if isinstance(stream, bool) else None,
        text(*user_path),
        whole[0] if whole else None,
        True,
    )


class AnyObject(SynchronousTestCase):
    """Generated bodies."""

    @given(st.data())
    def test_same_as_json_loads(self, data: st.DataObject) -> None:
        """Whatever the object and wherever the body is cut, the fields are those that json.loads finds."""
        text = data.draw(_texts())
        user_path = data.draw(_user_paths)
        peek = _looked_at(data.draw(_pieces(text)), user_path)
        self.assertEqual(_answer(peek), _reference(json.loads(text), user_path))

    @given(_texts(), _user_paths)
    def test_at_one_look(self, text: bytes, user_path: tuple[str, ...]) -> None:
        """A body that is all here is looked at in another way, and says the same."""
        expected = _reference(json.loads(text), user_path)[:5]
        self.assertEqual(look_at_whole(text, LIMIT_BYTES, user_path), expected)

    @given(_texts(), _user_paths, st.integers(0, 40))
    def test_part_at_one_look(self, text: bytes, user_path: tuple[str, ...], cut: int) -> None:
        """So does one that is cut short, or goes on, or is longer than may be looked at."""
        for body, limit in ((text[:-cut] if cut else text, LIMIT_BYTES), (text + b"}", LIMIT_BYTES), (text, cut)):
            self.assertEqual(look_at_whole(body, limit, user_path), _answer(_looked_at([body], user_path, limit))[:5])

    @given(_texts(), _user_paths)
    def test_byte_by_byte(self, text: bytes, user_path: tuple[str, ...]) -> None:
        """A body that comes one byte at a time reads the same as one that comes at once."""
        peek = _looked_at([bytes([byte]) for byte in text], user_path)
        self.assertEqual(_answer(peek), _reference(json.loads(text), user_path))

    @given(_texts(), st.data())
    def test_fast_way_same_as_slow_way_on_damaged_bodies(self, text: bytes, data: st.DataObject) -> None:
        """Where a byte of the body is wrong, the one-go decode never claims what the scan would not."""
        at = data.draw(st.integers(0, len(text) - 1))
        damaged = text[:at] + data.draw(st.binary(max_size=3)) + text[at + data.draw(st.integers(0, 2)) :]
        self.assertEqual(_answer(_looked_at([damaged])), _answer(_slowly(damaged)))

    @given(st.binary(max_size=200), st.integers(0, 100))
    def test_never_raises(self, text: bytes, limit_bytes: int) -> None:
        """Any bytes at all under any limit are looked at without an error, and the look ends."""
        peek = _looked_at([b"{" + text[:7], text[7:], b"}"], limit_bytes=limit_bytes)
        self.assertTrue(peek.done)

    @given(st.lists(st.tuples(_keys, _values), max_size=8), st.data())
    def test_repeated_keys(self, members: list[tuple[str, Any]], data: st.DataObject) -> None:
        """Of a key that is there twice the last one counts, also when the last is of the wrong type."""
        text = b"{%b}" % b",".join(b"%b:%b" % (_json(key), _json(value)) for key, value in members)
        peek = _looked_at(data.draw(_pieces(text)), ("metadata", "user_id"))
        self.assertEqual(_answer(peek), _reference(json.loads(text), ("metadata", "user_id")))

    @given(st.text(alphabet="ab\U0001f600é\\", max_size=600), st.data())
    def test_long_names(self, name: str, data: st.DataObject) -> None:
        """A model of up to 256 and a user of up to 512 characters is told whole, a longer one not at all."""
        text = json.dumps({"model": name, "user": name}).encode()
        peek = _looked_at(data.draw(_pieces(text)))
        self.assertEqual(peek.model, name if len(name) <= 256 else None)
        self.assertEqual(peek.user, name if len(name) <= 512 else None)


class OneBody(SynchronousTestCase):
    """Single cases with a story."""

    def test_last_of_repeated_keys(self) -> None:
        """A later value of another type takes the earlier one's place: no provider would read the earlier."""
        for value in (b"[1]", b"{}", b"null", b'"' + b"x" * 9000 + b'"'):
            text = b'{"model": "a", "metadata": {"user_id": "u"}, "model": ' + value + b', "metadata": ' + value + b"}"
            for peek in (_looked_at([text], ("metadata", "user_id")), _slowly(text, ("metadata", "user_id"))):
                self.assertEqual((peek.model, peek.user, peek.complete), (None, None, True))

    def test_done_when_the_object_ends(self) -> None:
        """The look is over with the last brace; a field that was not found is known not to be there."""
        peek = BodyPeek(LIMIT_BYTES)
        self.assertFalse(peek.feed(b'{"model": "gpt-4o", "messages": [{"content": "}"}'))
        self.assertEqual(peek.model, "gpt-4o")
        self.assertFalse(peek.complete)
        self.assertTrue(peek.feed(b"]}"))
        self.assertTrue(peek.complete)

    def test_stream_as_text_is_no_stream(self) -> None:
        """Only the JSON boolean asks for a stream, as at the providers: "true" and 1 do not."""
        for value in (b'"true"', b"1", b"null", b"[true]"):
            with self.subTest(value=value):
                self.assertIsNone(_looked_at([b'{"stream": ' + value + b"}"]).stream)
        self.assertIs(_looked_at([b'{"stream": true}']).stream, True)
        self.assertIs(_slowly(b'{"stream": false}').stream, False)

    def test_nested_fields_do_not_count(self) -> None:
        """A `model` inside a message or a tool is not the request's model."""
        text = b'{"messages": [{"model": "a", "stream": true}], "x": {"model": "b"}}'
        self.assertEqual(_answer(_slowly(text)), (None, None, None, None, True))
        self.assertEqual(_answer(_looked_at([text])), (None, None, None, None, True))

    def test_limit(self) -> None:
        """No byte behind the limit is looked at; what was found before it stays found."""
        text = b'{"model": "a", "padding": "' + b"x" * 100 + b'", "stream": true}'
        peek = BodyPeek(60)
        self.assertTrue(peek.feed(text))
        self.assertEqual((peek.model, peek.stream, peek.complete), ("a", None, False))
        whole = BodyPeek(len(text))
        self.assertTrue(whole.feed(text))
        self.assertEqual((whole.stream, whole.complete), (True, True))
        self.assertTrue(BodyPeek(0).done)

    def test_not_an_object(self) -> None:
        """Multipart, an array or text ends the look at the first byte: nothing is held back for it."""
        for text in (b"--boundary\r\n", b'[{"model": "a"}]', b'"model"', b"\xef\xbb\xbf{}", b"\x1f\x8b"):
            with self.subTest(text=text):
                peek = BodyPeek(LIMIT_BYTES)
                self.assertTrue(peek.feed(text))
                self.assertFalse(peek.complete)

    def test_syntax_not_understood(self) -> None:
        """Broken JSON ends the look; what was found before the break stays found."""
        for rest in (b"model: 1}", b'"a" 1}', b'"a": 1 "b": 2}', b'"a": NaN}', b'"a": }', b'"a": 1,}', b",}"):
            with self.subTest(rest=rest):
                peek = BodyPeek(LIMIT_BYTES)
                self.assertTrue(peek.feed(b'{"model": "m", ' + rest))
                self.assertEqual((peek.model, peek.complete), ("m", False))

    def test_not_unicode(self) -> None:
        """A name that is no valid text (bad UTF-8, half a surrogate pair) is not told."""
        for name in (rb'"\ud800"', rb'"\udc00x"', b'"\xff"', b'"a\nb"', rb'"\x"'):
            with self.subTest(name=name):
                text = b'{"model": ' + name + b', "stream": true}'
                self.assertIsNone(_looked_at([text]).model)
                self.assertIs(_looked_at([text]).stream, True)

    def test_megabytes_of_brackets(self) -> None:
        """Nesting is counted, not followed: millions of open brackets neither fail nor take memory."""
        depth = 2_000_000
        peek = BodyPeek(1 << 30)
        for piece in (b'{"a": ', b"[" * depth, b'{"b": "]"}', b"]" * depth, b', "model": "m"}'):
            peek.feed(piece)
        self.assertEqual((peek.model, peek.complete), ("m", True))
        nested = b'{"a": ' + b"[" * 20_000 + b"]" * 20_000 + b', "model": "m"}'
        self.assertEqual(_looked_at([nested]).model, "m")

    def test_many_small_arrays(self) -> None:
        """Brackets that open and close by the thousand are followed exactly."""
        text = b'{"a": [' + b"[{}]," * 30_000 + b'[]], "model": "m"}'
        self.assertEqual(_answer(_looked_at([text])), ("m", None, None, None, True))

    def test_many_short_strings(self) -> None:
        """A long list of words, brackets among them, is skipped exactly, wherever the blocks begin."""
        words = ["a", "]", '\\"]', "\\", {"}": ["["]}, [], "{"] * 1200
        for padding in range(45):
            text = _json({"x": "é" * padding, "a": [words], "model": "m", "b": words, "stream": True})
            for piece_bytes in (len(text), 30_000, 997):
                pieces = [text[at : at + piece_bytes] for at in range(0, len(text), piece_bytes)]
                self.assertEqual(_answer(_looked_at(pieces)), ("m", True, None, None, True), padding)

    def test_too_many_members(self) -> None:
        """A body of a hundred thousand tiny members is given up early: others are waiting."""
        peek = BodyPeek(LIMIT_BYTES)
        self.assertTrue(peek.feed(b'{"model": "m"' + b',"a":1' * 100_000))
        self.assertEqual((peek.model, peek.complete), ("m", False))

    def test_backslashes(self) -> None:
        """A string that ends in backslashes ends where it ends, also when the cut is between them."""
        for count in range(6):
            text = b'{"a": "' + b"\\\\" * count + b'\\"", "b": ["' + b"\\\\" * count + b'"], "model": "m"}'
            for cut in range(len(text)):
                peek = _looked_at([text[:cut], text[cut:]])
                self.assertEqual((peek.model, peek.complete), ("m", True), (text, cut))

    def test_which_limit_counts(self) -> None:
        """The bound on the answer is found under every provider's name; a number that is no count is none."""
        for name in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
            self.assertEqual(_looked_at([json.dumps({name: 7}).encode()]).max_tokens, 7)
        self.assertEqual(_looked_at([b'{"generationConfig": {"maxOutputTokens": 9}}']).max_tokens, 9)
        self.assertEqual(_looked_at([b'{"max_tokens": null, "max_completion_tokens": 3}']).max_tokens, 3)
        for value in (b"-1", b"1.0", b"true", b'"5"', b"1e3", b"9" * 30, b"9" * 7000):
            with self.subTest(value=value[:30]):
                self.assertIsNone(_slowly(b'{"max_tokens": ' + value + b"}").max_tokens)

    def test_an_object_that_is_entered_is_decoded_once(self) -> None:
        """A small body with objects that are looked into is decoded the quick way."""
        for body in (
            b'{"model":"m","generationConfig":{"maxOutputTokens":9},"metadata":{"user_id":"u"}}',
            b'{"model":"m","generationConfig":null,"max_tokens":9,"metadata":{"user_id":"u"}}',
        ):
            peek = _Quick(LIMIT_BYTES, ("metadata", "user_id"))
            peek.feed(body)
            self.assertEqual(_answer(peek), ("m", None, "u", 9, True))


class _Quick(BodyPeek):
    """Fails where values have to be looked at one by one."""

    def _take_members(self, data: bytes, prefix: tuple[str, ...]) -> None:
        raise AssertionError(f"{prefix}: {data!r}")
