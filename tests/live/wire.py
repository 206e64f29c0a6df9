"""One end of a connection, byte by byte, and the HTTP/1.1 messages that are read from it.

The rule of this folder: a test plays both ends itself, one step after the other, on blocking sockets. The kernel
holds what was sent until the test comes round to read it, so no threads and no callbacks are needed, and a step that
does not happen is a timeout in the line that waits for it.
"""

from __future__ import annotations

import select
import socket
import ssl
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

LIMIT_S: Final = 5.0
"""How long any one step may take before the test fails."""


@dataclass(frozen=True, slots=True)
class Message:
    """A request or an answer as it was on the wire.

    start: the first line. lines: the header lines, each as it was sent, without its CRLF. body: the content, without
    framing. chunks: the chunks it came in, if it was chunked. trailers: like lines.
    """

    start: bytes
    lines: list[bytes]
    body: bytes = b""
    chunks: list[bytes] = field(default_factory=list)
    trailers: list[bytes] = field(default_factory=list)

    @property
    def status(self) -> int:
        return int(self.start.split(b" ")[1])

    def values(self, name: str) -> list[bytes]:
        """The values of every line of this name, in order."""
        split = (line.partition(b":") for line in self.lines)
        return [value.strip() for key, _, value in split if key.decode("latin-1").lower() == name.lower()]

    def value(self, name: str) -> bytes | None:
        """The value of the one line of this name; None if there is no such line."""
        values = self.values(name)
        assert len(values) < 2, f"{name} came {len(values)} times"
        return values[0] if values else None


class Wire:
    """A connected socket. Whatever waits longer than LIMIT_S raises TimeoutError.

    :ivar ended: whether the other end has closed the connection, and all that it sent was received.
    :ivar owes_answer: whether a request came of which a test knows, and nothing was sent since.
    """

    owes_answer = False

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        connected.settimeout(LIMIT_S)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1) if connected.family != socket.AF_UNIX else None
        self._buffer = b""
        self.ended = False

    def fileno(self) -> int:
        return self.socket.fileno()

    def start_tls(self, context: ssl.SSLContext) -> None:
        """Speak TLS from here on, as the server."""
        self.socket = context.wrap_socket(self.socket, server_side=True)

    # -- sending -----------------------------------------------------------------------------------------------

    def send(self, *pieces: bytes) -> None:
        """Send each piece with a system call of its own."""
        self.owes_answer = False
        for piece in pieces:
            self.socket.sendall(piece)

    def send_chunk(self, data: bytes) -> None:
        """Send ``data`` as one chunk of a chunked body."""
        self.send(chunk(data))

    def fill(self, piece: bytes, for_s: float = 0.3, limit_bytes: int = 1 << 40) -> int:
        """Send ``piece`` again and again until nothing more is taken for ``for_s``; returns the bytes taken."""
        taken = 0
        self.socket.settimeout(for_s)
        try:
            while taken < limit_bytes:
                taken += self.socket.send(piece)
        except TimeoutError:
            pass
        finally:
            self.socket.settimeout(LIMIT_S)
        return taken

    # -- receiving ---------------------------------------------------------------------------------------------

    def poll(self, within_s: float) -> bool:
        """Whether there is something to read, an end of the connection included, within ``within_s``."""
        if self._buffer or self.ended:
            return True
        if isinstance(self.socket, ssl.SSLSocket) and self.socket.pending():
            return True
        poll = select.poll()  # select() knows no descriptor beyond 1023
        poll.register(self.socket, select.POLLIN)
        return bool(poll.poll(within_s * 1000))

    def is_quiet(self, for_s: float = 0.15) -> bool:
        """Whether nothing comes for ``for_s``: no byte, and no end of the connection."""
        return not self.poll(for_s)

    def _more(self) -> bool:
        data = b"" if self.ended else self.socket.recv(1 << 18)
        self.ended = not data
        self._buffer += data
        return bool(data)

    def look(self) -> bool:
        """Read what has come; False if that is the end of the connection."""
        return bool(self._buffer) or self._more()

    def read_some(self) -> bytes:
        """What has come, at least a byte; nothing at the end of the connection."""
        self.look()
        data, self._buffer = self._buffer, b""
        return data

    def read(self, count: int) -> bytes:
        """Exactly ``count`` bytes."""
        parts = [self._buffer]
        have = len(self._buffer)
        while have < count:
            self._buffer = b""
            if not self._more():
                raise EOFError(f"the connection ended after {b''.join(parts)!r}, {count} bytes were due")
            parts.append(self._buffer)
            have += len(self._buffer)
        data = b"".join(parts)
        self._buffer = data[count:]
        return data[:count]

    def read_until(self, mark: bytes) -> bytes:
        """All up to and including ``mark``."""
        while mark not in self._buffer:
            if not self._more():
                raise EOFError(f"the connection ended after {self._buffer!r}")
        data, _, self._buffer = self._buffer.partition(mark)
        return data + mark

    def read_head(self) -> Message:
        """A start line and header lines."""
        start, *lines = self.read_until(b"\r\n\r\n")[:-4].split(b"\r\n")
        return Message(start, lines)

    def read_chunk(self) -> bytes:
        """The content of one chunk; empty for the last one, whose trailers are left to be read."""
        size = int(self.read_until(b"\r\n")[:-2], 16)
        if not size:
            return b""
        data = self.read(size)
        assert self.read(2) == b"\r\n"
        return data

    def read_trailers(self) -> list[bytes]:
        """The trailer lines behind the last chunk."""
        lines = []
        while (line := self.read_until(b"\r\n")[:-2]) != b"":
            lines.append(line)
        return lines

    def read_message(self, *, bodyless: bool = False) -> Message:
        """A whole message; ``bodyless`` for an answer that has no body whatever its fields say.

        An answer that has neither a length nor chunks is read up to the end of the connection.
        """
        head = self.read_head()
        is_answer = head.start.startswith(b"HTTP/")
        if bodyless or (is_answer and (head.status < 200 or head.status in (204, 304))):
            return head
        if head.value("transfer-encoding") is not None:
            chunks = []
            while (data := self.read_chunk()) != b"":
                chunks.append(data)
            return Message(head.start, head.lines, b"".join(chunks), chunks, self.read_trailers())
        length = head.value("content-length")
        if length is not None:
            return Message(head.start, head.lines, self.read(int(length)))
        return Message(head.start, head.lines, self.read_to_end()) if is_answer else head

    def read_to_end(self) -> bytes:
        """All that comes until the other end closes; ConnectionResetError if that is with a reset."""
        while self._more():
            pass
        return self.read_some()

    def is_closed_within(self, limit_s: float) -> bool:
        """Whether the other end closes or resets the connection in time; what it still sends is dropped."""
        deadline_s = time.monotonic() + limit_s
        try:
            while self.poll(max(0.0, deadline_s - time.monotonic())):
                self._buffer = b""
                if not self._more():
                    return True
                self._buffer = b""
        except (ConnectionError, ssl.SSLError):
            return True
        return False

    # -- ending ------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the connection: a FIN, or a reset if something was not read."""
        self.socket.close()

    def end(self) -> None:
        """Close the connection in peace: over TLS with its closing alert."""
        if isinstance(self.socket, ssl.SSLSocket):
            try:
                self.socket.unwrap()
            except (OSError, ValueError):
                pass  # the other end need not answer the alert
        self.socket.close()

    def reset(self) -> None:
        """Close the connection with a reset (RST)."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


def chunk(data: bytes) -> bytes:
    """One chunk (RFC 9112 section 7.1)."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def wait_until(true: Callable[[], bool], limit_s: float = LIMIT_S) -> None:
    """Return as soon as ``true()`` is; AssertionError when it is not in time."""
    deadline_s = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < deadline_s, "it did not happen in time"
        time.sleep(0.01)
