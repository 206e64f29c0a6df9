"""The model that a form names."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.core.form_peek import FormPeek

LIMIT_BYTES = 1 << 20


def part(name: str, value: bytes, more: bytes = b"") -> bytes:
    """One field, as the SDKs write it."""
    return b'--b0\r\nContent-Disposition: form-data; name="%b"\r\n%b\r\n%b\r\n' % (name.encode(), more, value)


FILE = b'--b0\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\nContent-Type: audio/wav\r\n\r\n'
FORM = part("model", b"whisper-1") + part("language", b"en") + FILE + b"\x00\r\n" * 3000 + b"\r\n--b0--\r\n"
TURNED = FILE + b"\x00\r\n" * 3000 + b"\r\n" + part("model", b"gpt-4o-transcribe") + b"--b0--\r\n"


def looked_at(pieces: list[bytes], limit_bytes: int = LIMIT_BYTES) -> FormPeek:
    """A peek that has seen these pieces."""
    peek = FormPeek(limit_bytes)
    for piece in pieces:
        peek.feed(piece)
    return peek


class Model(SynchronousTestCase):
    """Where it stands."""

    def test_before_and_behind_the_file(self) -> None:
        """The model is found wherever the SDK put it, and nothing is looked at behind it."""
        for form, model in ((FORM, "whisper-1"), (TURNED, "gpt-4o-transcribe")):
            peek = looked_at([form])
            self.assertEqual((peek.model, peek.done), (model, True))

    @given(st.integers(1, 2000), st.booleans())
    def test_in_pieces(self, size: int, turned: bool) -> None:
        """It is found in whatever pieces the form comes."""
        form, model = (TURNED, "gpt-4o-transcribe") if turned else (FORM, "whisper-1")
        self.assertEqual(looked_at([form[at : at + size] for at in range(0, len(form), size)]).model, model)

    def test_other_spellings(self) -> None:
        """Names without quotes, heads of any case, a type before the value."""
        typed = part("model", b"m", b"Content-Type: text/plain\r\n")
        for form in (typed, typed.lower(), typed.replace(b'"', b"")):
            self.assertEqual(looked_at([form + b"--b0--\r\n"]).model, "m")

    def test_no_model(self) -> None:
        """A form without one, one that is not whole, one that is too long, another field of that name in a file."""
        for form in (
            part("purpose", b"model") + b"--b0--\r\n",
            part("model", b"whisper-1")[:-4],
            part("model", b"m" * 300) + b"--b0--\r\n",
            part("my-model", b"m") + b"--b0--\r\n",
            b"",
        ):
            self.assertIsNone(looked_at([form]).model)

    def test_bounded(self) -> None:
        """No more is looked at than may be, and little is kept."""
        peek = looked_at([b"x" * 70_000] * 3, 200_000)
        self.assertTrue(peek.done)
        self.assertIsNone(looked_at([b"x" * 200_000 + part("model", b"m") + b"--"], 200_000).model)
        peek = FormPeek(LIMIT_BYTES)
        peek.feed(b"x" * 100_000)
        self.assertLess(len(peek._tail), 2000)
        self.assertTrue(FormPeek(0).done)
