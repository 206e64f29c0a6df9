"""The file in a multipart body."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.simulate.multipart import file_of

_TYPE = "multipart/form-data; boundary=bound-7f3"


def form(content: bytes, filename: str = "a.bin") -> bytes:
    """A form with a purpose and a file."""
    return (
        b'--bound-7f3\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        b'--bound-7f3\r\nContent-Disposition: form-data; name="file"; filename="' + filename.encode() + b'"\r\n'
        b"Content-Type: application/octet-stream\r\n\r\n" + content + b"\r\n--bound-7f3--\r\n"
    )


class MultipartTests(SynchronousTestCase):
    """What an SDK uploads."""

    @given(st.binary(max_size=300) | st.lists(st.sampled_from([b"\r\n", b"--", b"\r\n--bound", b"x"])).map(b"".join))
    def test_bytes_come_out_as_they_went_in(self, content: bytes) -> None:
        """Whatever is in the file, line ends and dashes included, it is the same afterwards."""
        body = form(content)
        sent = file_of(_TYPE, body, len(body))
        assert sent is not None
        self.assertEqual((sent.content, sent.size_bytes), (content, len(content)))
        self.assertEqual((sent.filename, sent.values), ("a.bin", {"purpose": "batch"}))

    def test_the_size_of_a_file_that_was_not_kept_whole(self) -> None:
        """Of a huge upload only the beginning is kept, and the size is still right."""
        body = form(b"x" * 1000)
        sent = file_of(_TYPE, body[:600], len(body))
        assert sent is not None
        self.assertEqual(sent.size_bytes, 1000)

    def test_without_a_file(self) -> None:
        """A form without a file, and what is no form, give nothing."""
        self.assertIsNone(file_of("application/json", b"{}", 2))
        self.assertIsNone(file_of(_TYPE, b'--bound-7f3\r\nContent-Disposition: form-data; name="a"\r\n\r\nb\r\n', 50))

    def test_names_with_spaces_and_letters_of_any_alphabet(self) -> None:
        """The file's name comes out as it was sent."""
        body = form(b"x", "Müller 7.txt")
        sent = file_of(_TYPE, body, len(body))
        assert sent is not None
        self.assertEqual(sent.filename, "Müller 7.txt")
