"""Content codings are undone piece by piece, at once, and never without a bound."""

import gzip
import os
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Callable, Iterable
from types import MappingProxyType
from typing import Final

import brotli  # type: ignore[import-untyped]
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.accounting.decoding import (
    OUT_BYTES_MAX,
    PIECE_BYTES_MAX,
    RATIO_FREE_BYTES,
    RATIO_MAX,
    CannotDecode,
    Decoder,
    decoder_for,
)

TEXT: Final = b'data: {"delta": "\xe4\xbd\xa0"}\n\n' * 20 + b"data: [DONE]\n\n"
MIB: Final = 1024 * 1024


def bare(data: bytes) -> bytes:
    return zlib.compress(data, wbits=-15)


CODED: Final = MappingProxyType(
    {
        "gzip": gzip.compress,
        "x-gzip": gzip.compress,
        "GZip": gzip.compress,
        "deflate": zlib.compress,
        " deflate ": bare,
        "br": brotli.compress,
        "zstd": zstandard.compress,
        "gzip, br": lambda data: brotli.compress(gzip.compress(data)),
        "deflate,identity, zstd , gzip": lambda data: gzip.compress(zstandard.compress(zlib.compress(data))),
    }
)


def made(coding: str) -> Decoder:
    decoder = decoder_for(coding.encode())
    assert decoder is not None
    return decoder


def decoded(coding: str, pieces: Iterable[bytes]) -> bytes:
    decoder = made(coding)
    out = [each for piece in pieces for each in decoder.decode(piece)]
    return b"".join([*out, *decoder.finish()])


def failure(coding: str, pieces: Iterable[bytes]) -> tuple[str, int]:
    """Why it could not be decoded, and how many bytes had come out."""
    decoder, came = made(coding), 0
    try:
        for piece in pieces:
            for each in decoder.decode(piece):
                assert len(each) <= PIECE_BYTES_MAX
                came += len(each)
    except CannotDecode as error:
        return error.reason, came
    raise AssertionError("it could be decoded")


class RoundTripTests(SynchronousTestCase):
    """What was coded comes out as it was."""

    def test_split_at_every_byte(self) -> None:
        """However the network cuts an answer in two, it is read the same."""
        for coding, encode in CODED.items():
            coded = encode(TEXT)
            for at in range(len(coded) + 1):
                self.assertEqual(decoded(coding, (coded[:at], coded[at:])), TEXT, (coding, at))

    def test_byte_by_byte(self) -> None:
        """An answer that drips is read the same."""
        for coding, encode in CODED.items():
            coded = encode(TEXT)
            self.assertEqual(decoded(coding, (coded[at : at + 1] for at in range(len(coded)))), TEXT, coding)

    @settings(max_examples=50, deadline=None)
    @given(st.sampled_from(sorted(CODED)), st.binary(max_size=300), st.integers(1, 900), st.integers(1, 70_000))
    def test_any_bytes(self, coding: str, unit: bytes, times: int, step: int) -> None:
        """Any content, in pieces of any size, whatever its ratio below a mebibyte."""
        data = unit * times
        coded = CODED[coding](data)
        pieces = (coded[at : at + step] for at in range(0, len(coded), step))
        self.assertEqual(decoded(coding, pieces), data)

    def test_large_and_ordinary(self) -> None:
        """A long answer in one piece is whole, in pieces of a bounded size."""
        data = b"".join(b"data: %s\n\n" % os.urandom(6).hex().encode() for _ in range(100_000))
        for coding in ("gzip", "deflate", "br", "zstd"):
            coded = brotli.compress(data, quality=3) if coding == "br" else CODED[coding](data)
            pieces = list(made(coding).decode(coded))
            self.assertEqual(b"".join(pieces), data, coding)
            self.assertLessEqual(max(map(len, pieces)), PIECE_BYTES_MAX, coding)

    def test_several_members_and_frames(self) -> None:
        """Gzip members and zstd frames in a row are one body; zeros between members are padding."""
        for coded, coding in (
            (gzip.compress(b"one ") + b"\0\0\0" + gzip.compress(b"") + gzip.compress(b"two"), "gzip"),
            (zstandard.compress(b"one ") + zstandard.compress(b"") + zstandard.compress(b"two"), "zstd"),
        ):
            for at in range(len(coded) + 1):
                self.assertEqual(decoded(coding, (coded[:at], coded[at:])), b"one two", (coding, at))

    def test_nothing_to_undo(self) -> None:
        """Without a coding, or with one that changes nothing, there is no decoder."""
        for value in (None, b"", b"identity", b"Identity , ", b" , "):
            self.assertIsNone(decoder_for(value), value)


class FlushTests(SynchronousTestCase):
    """Each event that the sender flushed."""

    def test_an_event_is_seen_when_it_arrives(self) -> None:
        """The tokens of a compressed stream are counted while it runs, not at its end."""
        packer, deflater = zlib.compressobj(wbits=31), zlib.compressobj()
        brotlier, zstander = brotli.Compressor(), zstandard.ZstdCompressor().compressobj()
        senders: tuple[tuple[str, Callable[[bytes], bytes]], ...] = (
            ("gzip", lambda event: packer.compress(event) + packer.flush(zlib.Z_SYNC_FLUSH)),
            ("deflate", lambda event: deflater.compress(event) + deflater.flush(zlib.Z_SYNC_FLUSH)),
            ("br", lambda event: brotlier.process(event) + brotlier.flush()),
            ("zstd", lambda event: zstander.compress(event) + zstander.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)),
        )
        for coding, send in senders:
            decoder = made(coding)
            for number in range(50):
                event = b'data: {"number": %d}\n\n' % number
                self.assertEqual(b"".join(decoder.decode(send(event))), event, coding)


class HostileTests(SynchronousTestCase):
    """What is no honest answer."""

    def test_a_bomb_is_stopped_within_one_piece(self) -> None:
        """A few KiB that would be hundreds of MiB are given up, and take no more than a few MiB of memory."""
        zeros = bytes(300 * MIB)
        bombs = {
            "br": brotli.compress(zeros, quality=1),
            "zstd": zstandard.compress(zeros),
            "gzip, gzip": gzip.compress(gzip.compress(zeros, 9), 9),
            "gzip, gzip, gzip": gzip.compress(gzip.compress(gzip.compress(zeros, 9), 9), 9),
            "deflate": zlib.compress(zeros, 9),
        }
        # RFC 8878 3.1.1: magic, a window of 8 MiB, then blocks of one byte 128 KiB times: no input is smaller.
        block = (0 | 1 << 1 | 131_072 << 3).to_bytes(3, "little") + b"a"
        bombs[" zstd"] = b"\x28\xb5\x2f\xfd\x00\x68" + block * 2_300
        del zeros
        for coding, bomb in bombs.items():
            tracemalloc.start()
            try:
                reason, came = failure(coding, (bomb,))
                peak_bytes = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
            self.assertIn(reason, ("ratio", "too_large"), coding)
            # By the ratio of what came to what is read, over all codings together.
            self.assertLessEqual(came, max(RATIO_FREE_BYTES, RATIO_MAX * len(bomb)) + 4 * MIB, coding)
            self.assertLess(peak_bytes, 12 * MIB, coding)

    def test_too_large_at_an_honest_ratio(self) -> None:
        """More than 64 MiB are not read, however well-behaved they come."""
        unit = os.urandom(4096)
        once = gzip.compress(unit * 256)  # 1 MiB, about 1:200
        self.assertEqual(failure("gzip", (once for _ in range(257))), ("too_large", OUT_BYTES_MAX))

    def test_many_empty_members_are_cheap(self) -> None:
        """A body of nothing but empty gzip members is not read in the square of its length."""
        empty = gzip.compress(b"")
        self.assertEqual(decoded("gzip", (empty * 20_000 + gzip.compress(b"end"),)), b"end")

    def test_garbage(self) -> None:
        """What is not what its header says is given up, not guessed at."""
        for coding in ("gzip", "deflate", "br", "zstd", "gzip, br"):
            self.assertEqual(failure(coding, (b"\xff\xfe<html>not coded at all</html>" * 5,))[0], "corrupt", coding)
        self.assertEqual(failure("gzip", (zlib.compress(TEXT),))[0], "corrupt")
        self.assertEqual(failure("zstd", (gzip.compress(TEXT),))[0], "corrupt")

    def test_damage_in_the_middle(self) -> None:
        """A wrong checksum is found, and what came before it had been given."""
        coded = bytearray(gzip.compress(TEXT))
        coded[-8] ^= 1
        self.assertEqual(failure("gzip", (bytes(coded[:-8]), bytes(coded[-8:]))), ("corrupt", len(TEXT)))

    def test_what_came_with_the_damage(self) -> None:
        """What was good before it is not lost, however much of it comes in one piece with it."""
        text = os.urandom(8_000).hex().encode()  # some 9,000 bytes when compressed
        for coding in ("gzip", "deflate", " deflate "):
            body = bytearray(CODED[coding](text))
            middle = len(body) // 2
            body[middle : middle + 64] = b"\xff" * 64
            decoder, out = made(coding), b""
            try:
                for piece in decoder.decode(bytes(body)):
                    out += piece
            except CannotDecode as error:
                self.assertEqual(error.reason, "corrupt")
            good = next((at for at, both in enumerate(zip(out, text, strict=False)) if both[0] != both[1]), len(out))
            self.assertGreater(good, len(text) * 0.4, coding)

    def test_a_window_that_http_forbids(self) -> None:
        """A zstd frame that asks for more than 8 MiB of memory is refused (RFC 9659)."""
        parameters = zstandard.ZstdCompressionParameters(window_log=27, write_content_size=False)
        packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
        self.assertEqual(failure("zstd", (packer.compress(TEXT) + packer.flush(),))[0], "corrupt")

    def test_cut_off(self) -> None:
        """Of an answer that breaks off what had come is read, and its end is no error."""
        data = os.urandom(100_000).hex().encode()
        for coding in ("gzip", "deflate", " deflate ", "br", "zstd"):
            coded = CODED[coding](data)
            out = decoded(coding, (coded[: len(coded) * 3 // 4],))
            self.assertGreater(len(out), len(data) // 3, coding)
            self.assertTrue(data.startswith(out), coding)

    def test_after_the_end(self) -> None:
        """What follows a finished body and is none of it is passed over."""
        for coding in ("gzip", "deflate", " deflate ", "br"):
            self.assertEqual(decoded(coding, (CODED[coding](TEXT), b"trailing", b"more")), TEXT, coding)

    def test_unknown_codings(self) -> None:
        """A coding that nobody here knows, or more than three, are said to be unknown."""
        for value in (b"compress", b"gzip, aws-chunked", b"gzip,gzip,gzip,gzip", b"gzip;q=1", b"\xff"):
            self.assertEqual(self.assertRaises(CannotDecode, decoder_for, value).reason, "unknown_coding", value)

    @settings(max_examples=100, deadline=None)
    @given(st.sampled_from(("gzip", "deflate", "br", "zstd", "zstd, gzip")), st.binary(max_size=200))
    def test_anything(self, coding: str, data: bytes) -> None:
        """Any bytes at all are decoded or refused; nothing else happens."""
        try:
            decoded(coding, (data[:7], data[7:]))
        except CannotDecode as error:
            self.assertIn(error.reason, ("corrupt", "ratio", "too_large"))


class LazyTests(SynchronousTestCase):
    """The start of the proxy."""

    def test_the_libraries_are_loaded_when_they_are_needed(self) -> None:
        """The proxy starts without the codings that it may never meet."""
        code = (
            "import sys; from llmproxy.accounting.decoding import decoder_for; decoder_for(b'gzip'); "
            "print(sorted({'brotli', 'zstandard'} & set(sys.modules)))"
        )
        out = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=60)
        self.assertEqual(out.stdout.strip(), b"[]")
