"""The content codings of an answer, undone for the reader of its usage: gzip, deflate, br and zstd.

The rule: memory is bounded whatever comes. A decoder gives its output in pieces of at most 64 KiB while it works, and
stops a bomb in the middle of a piece of input. What the sender flushed comes out at once, so that each event of a
compressed stream is seen when it arrives. The names of the codings: RFC 9110 8.4.1; br: RFC 7932; zstd: RFC 8878, and
RFC 9659 for the largest window that HTTP allows.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from types import MappingProxyType
from typing import Final, Protocol, TypeAlias

PIECE_BYTES_MAX: Final = 65_536
OUT_BYTES_MAX: Final = 64 * 1024 * 1024
RATIO_MAX: Final = 100
"""Over all codings of a body together. Text is made a tenth or a twentieth of its size; what is read costs time."""
RATIO_FREE_BYTES: Final = 4 * 1024 * 1024
"""Up to here any ratio will do: a short answer may well be one letter, many times."""
CODINGS_MAX: Final = 3

# The input is given in slices. Where it is corrupt, a decoder gives nothing of what it took in that call, and what came
# before in the same slice is lost. Besides, each empty member of gzip makes zlib copy what is left of the input.
_SLICE_BYTES: Final = 512
# A block of zstd is at least four bytes and at most 128 KiB when decoded, and the binding has no limit for the output
# of one call: this much input is at most 2 MiB.
_ZSTD_SLICE_BYTES: Final = 64
_ZSTD_WINDOW_BYTES_MAX: Final = 8 * 1024 * 1024
_BROTLI_STEP_BYTES: Final = 32_768
_GZIP_MAGIC: Final = b"\x1f\x8b"

_Coding: TypeAlias = Callable[[bytes], Iterator[bytes]]


class CannotDecode(Exception):
    """The body, or the rest of it, cannot be read.

    reason: "unknown_coding" (or more than three of them), "corrupt", "too_large", or "ratio": too much from too little.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Decoder:
    """Undoes the codings of one body.

    :param codings: the names in the order in which they are undone.
    """

    __slots__ = ("_in_bytes", "_out_bytes", "_stages")

    def __init__(self, codings: Iterable[bytes]) -> None:
        self._stages = [_CODINGS[name]() for name in codings]
        self._in_bytes = self._out_bytes = 0

    def decode(self, data: bytes) -> Iterator[bytes]:
        """What this piece of the body gives, in pieces of at most 64 KiB. Use it up before the next call.

        :raises CannotDecode: while it is used; what came before is good, and what comes after is not to be asked for.
        """
        self._in_bytes += len(data)
        pieces: Iterable[bytes] = (data,)
        for coding in self._stages:
            pieces = _through(coding, pieces)
        for piece in pieces:
            out_bytes = self._out_bytes = self._out_bytes + len(piece)
            if out_bytes > RATIO_FREE_BYTES:
                if out_bytes > OUT_BYTES_MAX:
                    raise CannotDecode("too_large")
                if out_bytes > RATIO_MAX * self._in_bytes:
                    raise CannotDecode("ratio")
            yield piece

    def finish(self) -> tuple[bytes, ...]:
        """The body is over. Whatever could be decoded has come out before: nothing is kept back, so this is empty.

        A coded body that ends too early is no error: many servers that compress a stream never write its last block.
        """
        self._stages = []
        return ()


def decoder_for(content_encoding: bytes | None) -> Decoder | None:
    """The decoder for the value of Content-Encoding; None if there is nothing to undo.

    :raises CannotDecode: "unknown_coding".
    """
    if not content_encoding:
        return None
    names = [each.strip(b" \t") for each in content_encoding.lower().split(b",")]
    codings = [each for each in names if each and each != b"identity"]
    if len(codings) > CODINGS_MAX or not _CODINGS.keys() >= set(codings):
        raise CannotDecode("unknown_coding")
    return Decoder(reversed(codings)) if codings else None


def _through(coding: _Coding, pieces: Iterable[bytes]) -> Iterator[bytes]:
    for data in pieces:
        yield from filter(None, coding(data))


def _gzip() -> _Coding:
    """One member or several (RFC 1952 2.2). What follows the last one and begins no other is passed over, as
    gzip(1) does."""
    member = zlib.decompressobj(zlib.MAX_WBITS | 16)
    between = b""  # after a member: the first byte of what may be the next one
    begun = over = False

    def decode(data: bytes) -> Iterator[bytes]:
        nonlocal member, between, begun, over
        for left in _sliced(data):
            while left and not over:
                if member.eof:
                    left = between + left
                    left, between = left.lstrip(b"\0"), b""
                    if len(left) < len(_GZIP_MAGIC):
                        between = left
                        break
                    if not left.startswith(_GZIP_MAGIC):
                        over = True
                        break
                    member = zlib.decompressobj(zlib.MAX_WBITS | 16)
                yield from _inflated(member, left)
                left = member.unused_data

    return decode


def _deflate() -> _Coding:
    """The zlib format, as RFC 9110 says, or bare deflate, which some servers send instead."""
    stream = None
    first = b""

    def decode(data: bytes) -> Iterator[bytes]:
        nonlocal stream, first
        if stream is None:
            data = first + data
            if len(data) < 2:
                first = data
                return
            # RFC 1950 2.2: method 8, a window of at most 32 KiB, and the two bytes are a multiple of 31.
            wrapped = data[0] & 0x0F == 8 and data[0] >> 4 <= 7 and int.from_bytes(data[:2], "big") % 31 == 0
            stream = zlib.decompressobj(zlib.MAX_WBITS if wrapped else -zlib.MAX_WBITS)
        for part in _sliced(data):
            if not stream.eof:
                yield from _inflated(stream, part)

    return decode


class _Inflating(Protocol):
    @property
    def unconsumed_tail(self) -> bytes: ...

    @property
    def eof(self) -> bool: ...

    def decompress(self, data: bytes, max_length: int = ..., /) -> bytes: ...


def _inflated(stream: _Inflating, data: bytes) -> Iterator[bytes]:
    while True:
        try:
            piece = stream.decompress(data, PIECE_BYTES_MAX)
        except zlib.error:
            raise CannotDecode("corrupt") from None
        data = stream.unconsumed_tail
        yield piece
        # A full piece: there may be more, even if all of the input is taken.
        if stream.eof or (not data and len(piece) < PIECE_BYTES_MAX):
            return


def _brotli() -> _Coding:
    # Loaded when it is needed: most answers have no coding, and a proxy starts in milliseconds.
    import brotli  # type: ignore[import-untyped]

    stream = brotli.Decompressor()
    error: type[Exception] = brotli.error

    def decode(data: bytes) -> Iterator[bytes]:
        for part in _sliced(data):
            while not stream.is_finished():
                try:
                    piece: bytes = stream.process(part, output_buffer_limit=_BROTLI_STEP_BYTES)
                except error:
                    raise CannotDecode("corrupt") from None
                part = b""
                yield from _split(piece)
                # It says that it can accept more as soon as the input is taken, even if there is output left.
                if not piece and stream.can_accept_more_data():
                    break

    return decode


def _zstd() -> _Coding:
    """One frame or several (RFC 8878 3)."""
    import zstandard  # see _brotli

    stream = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES_MAX).decompressobj(
        write_size=16_384, read_across_frames=True
    )

    def decode(data: bytes) -> Iterator[bytes]:
        decompress = stream.decompress
        for at in range(0, len(data), _ZSTD_SLICE_BYTES):
            try:
                piece = decompress(data[at : at + _ZSTD_SLICE_BYTES])
            except zstandard.ZstdError:
                raise CannotDecode("corrupt") from None
            yield from _split(piece)

    return decode


def _sliced(data: bytes) -> Iterable[bytes]:
    if len(data) <= _SLICE_BYTES:
        return (data,)
    return (data[at : at + _SLICE_BYTES] for at in range(0, len(data), _SLICE_BYTES))


def _split(piece: bytes) -> Iterable[bytes]:
    if len(piece) <= PIECE_BYTES_MAX:
        return (piece,)
    return (piece[at : at + PIECE_BYTES_MAX] for at in range(0, len(piece), PIECE_BYTES_MAX))


_CODINGS: Final = MappingProxyType(
    {b"gzip": _gzip, b"x-gzip": _gzip, b"deflate": _deflate, b"br": _brotli, b"zstd": _zstd}
)
