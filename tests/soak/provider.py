"""The provider's end of the soak: each request says in its query how it wants to be treated.

``/v1/soak/ID?do=WHAT&n=NUMBER`` has an answer of the kind ``do``; most are of the kinds that nobody wants.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import socket
import struct
from typing import Final

HOST: Final = "127.0.0.1"
PATTERN: Final = b"0123456789abcdef" * 4096

_TARGET: Final = re.compile(rb" \S*/soak/([a-z0-9]+)\?do=([a-z]+)&n=([0-9]+) ")
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *([0-9]+)\r\n", re.IGNORECASE)
_CHUNKED: Final = re.compile(rb"\r\ntransfer-encoding: *chunked\r\n", re.IGNORECASE)

SSE_HEAD: Final = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
GAP_S: Final = 0.01
LATE_S: Final = 2.6
"""Later than the proxy under test waits for an answer."""


def event(number: int) -> bytes:
    """One event of a stream."""
    return b'data: {"number": %d}\n\n' % number


def receipt(body: bytes) -> bytes:
    """What the provider says to a body."""
    return b'{"bytes": %d, "sha256": "%b"}' % (len(body), hashlib.sha256(body).hexdigest().encode())


def reset_on_close(writer: asyncio.StreamWriter) -> None:
    """Have the end of this connection be a reset."""
    connected: socket.socket | None = writer.get_extra_info("socket")
    if connected is not None:
        with contextlib.suppress(OSError):
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class Provider:
    """Listens on a port of the loopback interface.

    :ivar port: where.
    :ivar open: connections that are open.
    :ivar most: how many there were at the same time.
    :ivar arrived: the ids of the requests whose heads have come.
    """

    def __init__(self) -> None:
        self.port = 0
        self.open = self.most = 0
        self.arrived: set[bytes] = set()
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        """A base_url that leads here."""
        return f"http://{HOST}:{self.port}"

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._connected, HOST, 0, backlog=1024)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Listen no more."""
        if self._server is not None:
            self._server.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        self.most = max(self.most, self.open)
        try:
            while await self._serve(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError):
            pass  # the proxy has dropped the connection
        finally:
            self.open -= 1
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request; whether the connection goes on."""
        head = await reader.readuntil(b"\r\n\r\n")
        found = _TARGET.search(head)
        if found is None:
            raise AssertionError(f"nobody sent this: {head!r}")
        self.arrived.add(found[1])
        what, number = found[2], int(found[3])
        if what == b"early":
            writer.write(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")
            await _ends(reader, 0.2)
            return False
        body = await _body(head, reader)
        if what == b"echo":
            return await _answer(writer, receipt(body))
        if what == b"late":
            return not await _ends(reader, LATE_S) and await _answer(writer, b"{}")
        if what == b"stream":
            writer.write(SSE_HEAD)
            for each in range(number):
                writer.write(_chunk(event(each)))
                await writer.drain()
                await asyncio.sleep(GAP_S)
            writer.write(b"0\r\n\r\n")
            await writer.drain()
            return True
        if what == b"big":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (number * len(PATTERN)))
            for _ in range(number):
                writer.write(PATTERN)
                await writer.drain()
            return True
        if what == b"surplus":
            await _answer(writer, receipt(body), b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nothers")
            return not await _ends(reader, 1.0)
        if what == b"garbage":
            writer.write(b"\x00\x01 good morning\r\n\r\n")
        elif what == b"short":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" + event(0))
        elif what in (b"cut", b"break"):
            writer.write(SSE_HEAD + _chunk(event(0)))
        elif what != b"reset":
            raise AssertionError(f"there is no {what!r}")
        if what in (b"break", b"reset"):
            await writer.drain()
            await asyncio.sleep(GAP_S)
            reset_on_close(writer)
        return False


async def _answer(writer: asyncio.StreamWriter, body: bytes, more: bytes = b"") -> bool:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    writer.write(head + body + more)
    await writer.drain()
    return True


async def _body(head: bytes, reader: asyncio.StreamReader) -> bytes:
    length = _LENGTH.search(head)
    if length is not None:
        return await reader.readexactly(int(length[1]))
    if _CHUNKED.search(head) is None:
        return b""
    pieces = []
    while size := int((await reader.readuntil(b"\r\n"))[:-2], 16):
        pieces.append((await reader.readexactly(size + 2))[:-2])
    await reader.readuntil(b"\r\n")
    return b"".join(pieces)


async def _ends(reader: asyncio.StreamReader, within_s: float) -> bool:
    """Whether the proxy ends the connection in time; what it still sends is dropped."""
    try:
        async with asyncio.timeout(within_s):
            while await reader.read(1 << 16):
                pass
        return True
    except TimeoutError:
        return False


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)
