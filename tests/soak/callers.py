"""The callers of the soak: what each kind does, and what it must see.

A caller that sees something else raises AssertionError. Each request has an id of its own in its path, and tells the
tally whether there must be exactly one access event of it, or may be (a reset can overtake what was sent before it).
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

from tests.soak.provider import PATTERN, Provider, event, receipt, reset_on_close

LIMIT_S: Final = 20.0
MAX_BODY_BYTES: Final = 1 << 20
"""The proxy under test takes no larger ones."""

_HOST: Final = b"Host: soak.test"


Kind = Callable[["Caller"], Awaitable[None]]


@dataclass
class Tally:
    """What was begun, and what went wrong.

    :ivar due: ids of which there must be exactly one access event.
    :ivar perhaps: how many there may be of others.
    """

    due: set[str] = field(default_factory=set)
    perhaps: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


@dataclass
class Answer:
    """An answer as it came. whole: its framing says that nothing is missing."""

    status: int
    head: bytes
    body: bytes
    whole: bool

    @property
    def error_class(self) -> str:
        """The proxy's own error, if it is one."""
        _, found, rest = self.head.partition(b"X-LLM-Proxy-Error-Class: ")
        return rest.partition(b"\r")[0].decode() if found else ""

    def text(self) -> str:
        return f"{self.status} {self.error_class} {self.body[:100]!r}{'' if self.whole else ', cut'}"


class Wire:
    """One connection to the proxy."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, *data: bytes) -> None:
        self.writer.write(b"".join(data))

    async def read_head(self) -> tuple[int, bytes]:
        """Status and head of the final answer; interim ones are passed over."""
        while True:
            head = await self.reader.readuntil(b"\r\n\r\n")
            status = int(head[9:12])
            if status >= 200:
                return status, head

    async def read_answer(self) -> Answer:
        status, head = await self.read_head()
        lower = head.lower()
        pieces: list[bytes] = []
        try:
            if b"\r\ntransfer-encoding: chunked\r\n" in lower:
                while size := int((await self.reader.readuntil(b"\r\n"))[:-2], 16):
                    pieces.append((await self.reader.readexactly(size + 2))[:-2])
                await self.reader.readuntil(b"\r\n")
            else:
                length = int(lower.partition(b"\r\ncontent-length: ")[2].partition(b"\r\n")[0] or b"0")
                pieces.append(await self.reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError):
            return Answer(status, head, b"".join(pieces), whole=False)
        return Answer(status, head, b"".join(pieces), whole=True)

    async def close(self) -> None:
        """End the connection: a FIN, or a reset if something was not read."""
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except OSError:
            pass

    async def reset(self) -> None:
        """End the connection with a reset."""
        reset_on_close(self.writer)
        self.writer.transport.abort()


class Caller:
    """One after the other, requests of every kind.

    :param chance: what it does at random.
    """

    def __init__(self, address: tuple[str, int], provider: Provider, tally: Tally, chance: random.Random) -> None:
        self._address = address
        self._provider = provider
        self._tally = tally
        self._chance = chance
        self._kept: Wire | None = None

    async def once(self, kind: Kind) -> None:
        """One of a kind. What it must not see is put down."""
        name = getattr(kind, "__name__", "")
        self._tally.kinds[name] += 1
        try:
            async with asyncio.timeout(LIMIT_S):
                await kind(self)
        except (AssertionError, OSError, asyncio.IncompleteReadError, TimeoutError) as error:
            self._tally.faults.append(f"{name}: {type(error).__name__} {error}")
            await self.leave()

    async def leave(self) -> None:
        """Close the connection that is kept."""
        if self._kept is not None:
            await self._kept.close()
            self._kept = None

    # -- parts -------------------------------------------------------------------------------------------------

    def _id(self) -> bytes:
        name = f"r{len(self._tally.due):08}"
        self._tally.due.add(name)
        return name.encode()

    def _head(self, do: bytes, *lines: bytes, n: int = 0, method: bytes = b"POST", id: bytes = b"") -> bytes:
        target = b"/openai/v1/soak/%b?do=%b&n=%d" % (id or self._id(), do, n)
        agent = b"Authorization: Bearer sk-soak-0123456789abcdef"
        return b"\r\n".join((b"%b %b HTTP/1.1" % (method, target), _HOST, agent, *lines, b"\r\n"))

    def _json(self, do: bytes, n: int = 0, id: bytes = b"") -> bytes:
        body = self._body()
        return self._head(do, b"Content-Type: application/json", b"Content-Length: %d" % len(body), n=n, id=id) + body

    def _body(self) -> bytes:
        return json.dumps({"model": "m", "stream": True, "input": "x" * self._chance.randrange(2000)}).encode()

    async def _new(self, receive_buffer_bytes: int = 0) -> Wire:
        if not receive_buffer_bytes:
            return Wire(*await asyncio.open_connection(*self._address))
        plain = socket.socket()
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        plain.setblocking(False)
        await asyncio.get_running_loop().sock_connect(plain, self._address)
        return Wire(*await asyncio.open_connection(sock=plain, limit=4096))

    async def _ask(self, data: bytes) -> Answer:
        """On the connection that is kept."""
        wire = self._kept = self._kept or await self._new()
        wire.send(data)
        answer = await wire.read_answer()
        if not answer.whole or b"\r\nconnection: close\r\n" in answer.head.lower() or self._chance.random() < 0.05:
            await self.leave()
        return answer

    async def _expect(self, data: bytes, status: int, error_class: str = "", whole: bool = True) -> Answer:
        answer = await self._ask(data)
        found = (answer.status, answer.error_class, answer.whole)
        assert found == (status, error_class, whole), answer.text()
        return answer

    async def _arrival(self, id: bytes) -> None:
        """Wait until the provider has the head of this request."""
        while id not in self._provider.arrived:
            await asyncio.sleep(0.005)

    async def _leave(self, wire: Wire) -> None:
        await (wire.reset() if self._chance.random() < 0.5 else wire.close())

    # -- kinds: what goes well ---------------------------------------------------------------------------------

    async def small(self) -> None:
        """A body and its answer, on a connection that is kept."""
        request = self._json(b"echo")
        answer = await self._expect(request, 200)
        assert answer.body == receipt(request.partition(b"\r\n\r\n")[2]), answer.text()

    async def stream(self) -> None:
        """A stream of events."""
        count = self._chance.randrange(1, 30)
        answer = await self._expect(self._json(b"stream", count), 200)
        assert answer.body == b"".join(map(event, range(count))), answer.text()

    async def long_stream(self) -> None:
        """A stream that goes on for a second."""
        answer = await self._expect(self._json(b"stream", 80), 200)
        assert answer.body == b"".join(map(event, range(80))), answer.text()

    async def pipelined(self) -> None:
        """Several requests at once."""
        wire = await self._new()
        wire.send(*(self._head(b"echo", method=b"GET") for _ in range(4)))
        for _ in range(4):
            answer = await wire.read_answer()
            assert (answer.status, answer.body) == (200, receipt(b"")), answer.text()
        await wire.close()

    async def upload(self) -> None:
        """A large body, with a length or in chunks, in pieces."""
        pieces = [self._chance.randbytes(self._chance.randrange(1, 60_000)) for _ in range(self._chance.randrange(12))]
        body = b"".join(pieces)
        wire = await self._new()
        chunked = self._chance.random() < 0.5
        wire.send(self._head(b"echo", b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % len(body)))
        for piece in pieces:
            wire.send(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
            await wire.writer.drain()
        wire.send(b"0\r\n\r\n" if chunked else b"")
        answer = await wire.read_answer()
        assert (answer.status, answer.body) == (200, receipt(body)), answer.text()
        await wire.close()

    async def half_closed(self) -> None:
        """Sends its request and no more, and reads its answer."""
        wire = await self._new()
        wire.send(self._json(b"stream", 5))
        wire.writer.write_eof()
        answer = await wire.read_answer()
        assert answer.whole and answer.body == b"".join(map(event, range(5))), answer.text()
        await wire.close()

    async def slow_reader(self) -> None:
        """Takes a large answer a little at a time."""
        wire = await self._new(receive_buffer_bytes=8192)
        wire.send(self._json(b"big", 24))
        await wire.read_head()
        for _ in range(24):
            assert await wire.reader.readexactly(len(PATTERN)) == PATTERN
            await asyncio.sleep(0.03)
        await wire.close()

    async def surplus(self) -> None:
        """The provider says more than was asked: the next caller must not get it."""
        await self._expect(self._json(b"surplus"), 200)
        await self.small()

    # -- kinds: the provider fails -------------------------------------------------------------------------------

    async def provider_resets(self) -> None:
        """No answer, but a reset."""
        await self._expect(self._json(b"reset"), 502, "upstream_reset")

    async def provider_cuts(self) -> None:
        """An answer that breaks off: it must look like one."""
        what = self._chance.choice((b"cut", b"short", b"break"))
        await self._expect(self._json(what), 200, whole=False)

    async def provider_talks_nonsense(self) -> None:
        """An answer that is none."""
        await self._expect(self._json(b"garbage"), 502, "upstream_invalid_answer")

    async def provider_is_late(self) -> None:
        """An answer after its time."""
        await self._expect(self._json(b"late"), 504, "upstream_first_byte_timeout")

    async def provider_says_no(self) -> None:
        """An answer in the middle of an upload."""
        body = bytes(900_000)
        wire = await self._new()
        wire.send(self._head(b"early", b"Content-Length: %d" % len(body)), body[:200_000])
        status, _ = await wire.read_head()
        assert status == 413, status
        await self._leave(wire)

    # -- kinds: the caller fails ---------------------------------------------------------------------------------

    async def leaves_while_waiting(self) -> None:
        """Goes before there is an answer."""
        wire = await self._new()
        id = self._id()
        wire.send(self._json(b"late", id=id))
        await self._arrival(id)
        await self._leave(wire)

    async def leaves_a_stream(self) -> None:
        """Goes in the middle of its answer."""
        wire = await self._new()
        wire.send(self._json(b"stream", 400))
        await wire.read_head()
        await wire.reader.read(self._chance.randrange(1, 200))
        await asyncio.sleep(self._chance.random() / 10)
        await self._leave(wire)

    async def leaves_an_upload(self) -> None:
        """Goes in the middle of its body."""
        wire = await self._new()
        id = self._id()
        wire.send(self._head(b"echo", b"Content-Length: 500000", id=id), bytes(self._chance.randrange(1, 400_000)))
        await self._arrival(id)
        await self._leave(wire)

    async def leaves_anywhere(self) -> None:
        """Goes at any byte of its request, or soon after."""
        wire = await self._new()
        tally = self._tally
        request = self._json(b"stream", 3, id=b"p%08d" % tally.perhaps.total())
        request = request[: self._chance.randrange(len(request) + 1)]
        # What of the path has come is what the event tells, if there is one.
        path = b"".join(request.split(b" ")[1:2]).partition(b"?")[0]
        tally.perhaps[path.rpartition(b"/")[2].decode()] += 1
        wire.send(request)
        await asyncio.sleep(self._chance.random() / 50)
        await self._leave(wire)

    async def leaves_half_read(self) -> None:
        """Takes a part of a large answer, then nothing, then goes."""
        wire = await self._new(receive_buffer_bytes=8192)
        wire.send(self._json(b"big", 40))
        await wire.read_head()
        await asyncio.sleep(0.3)
        await self._leave(wire)

    async def nowhere(self) -> None:
        """Asks for what is not there."""
        request = self._json(b"echo").replace(b"/openai/", b"/nowhere/", 1)
        await self._expect(request, 404, "unknown_route")

    async def too_large(self) -> None:
        """Announces a body that is too large, or sends one."""
        wire = await self._new()
        if self._chance.random() < 0.5:
            wire.send(self._head(b"echo", b"Content-Length: %d" % (MAX_BODY_BYTES + 1)))
        else:
            wire.send(self._head(b"echo", b"Transfer-Encoding: chunked"))
            wire.send(b"%x\r\n" % (MAX_BODY_BYTES + 1), bytes(MAX_BODY_BYTES + 1))
        answer = await wire.read_answer()
        assert (answer.status, answer.error_class) == (413, "body_too_large"), answer.text()
        await wire.close()

    async def malformed(self) -> None:
        """Sends a head that is none."""
        broken = self._chance.choice(
            (
                b"Host: two",
                b"Content-Length: 1, 2",
                b"Transfer-Encoding: gzip, chunked",
                b"Na me: x",
                b"X: a\x00b",
                b"Expect: the unexpected",
            )
        )
        wire = await self._new()
        wire.send(self._head(b"echo", broken))
        answer = await wire.read_answer()
        assert answer.status in (400, 417, 501) and answer.whole and answer.error_class, answer.text()
        await wire.close()


GOOD: Final = (Caller.small, Caller.stream, Caller.pipelined, Caller.upload, Caller.half_closed, Caller.surplus)
BAD: Final = (
    Caller.slow_reader,
    Caller.provider_resets,
    Caller.provider_cuts,
    Caller.provider_talks_nonsense,
    Caller.provider_is_late,
    Caller.provider_says_no,
    Caller.leaves_while_waiting,
    Caller.leaves_a_stream,
    Caller.leaves_an_upload,
    Caller.leaves_anywhere,
    Caller.leaves_half_read,
    Caller.nowhere,
    Caller.too_large,
    Caller.malformed,
)


def any_kind(chance: random.Random) -> Kind:
    """A small request or a stream more often than anything else."""
    if chance.random() < 0.4:
        return chance.choice((Caller.small, Caller.stream))
    return chance.choice((*GOOD, *BAD))
