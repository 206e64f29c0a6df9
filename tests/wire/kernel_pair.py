"""Twisted's own TCP transport on a real pair of sockets, with the test in the reactor's place.

For what only the kernel and Twisted's buffers decide: how much a socket takes, what a dead one does.
"""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.internet.tcp import Connection
from twisted.python.failure import Failure


class HandReactor(Clock):
    """A clock that remembers who wants to read and to write; the test says when."""

    def __init__(self) -> None:
        super().__init__()
        self.readers: set[Any] = set()
        self.writers: set[Any] = set()

    def addReader(self, reader: Any) -> None:
        self.readers.add(reader)

    def addWriter(self, writer: Any) -> None:
        self.writers.add(writer)

    def removeReader(self, reader: Any) -> None:
        self.readers.discard(reader)

    def removeWriter(self, writer: Any) -> None:
        self.writers.discard(writer)

    def turn(self) -> None:
        """One turn: who can be written is written, who can be read is read."""
        turns = [(each, "doWrite") for each in self.writers] + [(each, "doRead") for each in self.readers]
        for each, act in turns:
            why = getattr(each, act)() if each.connected else None
            if why is not None:
                self.removeReader(each)
                self.removeWriter(each)
                each.connectionLost(Failure(why))
        self.advance(0)


class KernelTransport(Connection):
    """A connected transport."""

    logstr = "test"

    def getPeer(self) -> IPv4Address:
        return IPv4Address("TCP", "127.0.0.1", 1)

    getHost = getPeer


class KernelPair:
    """`protocol` on one end of a connection, the plain socket `far` on the other."""

    def __init__(self, protocol: Protocol, *, tcp: bool = False) -> None:
        self.reactor = HandReactor()
        self._near, self.far = _tcp_pair() if tcp else socket.socketpair()
        self.far.setblocking(False)
        self.transport = KernelTransport(self._near, protocol, self.reactor)  # type: ignore[arg-type]
        self.transport.connected = True
        self.transport.startReading()

    def connect(self) -> KernelPair:
        """Give the protocol its transport."""
        self.transport.protocol.makeConnection(self.transport)
        return self

    def heard(self) -> bytes:
        """What has arrived at the far end."""
        heard = b""
        try:
            while data := self.far.recv(65536):
                heard += data
        except BlockingIOError:
            pass
        return heard

    def close(self) -> None:
        """Close both."""
        self.far.close()
        self._near.close()


def _tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        far = socket.create_connection(listening.getsockname())
        near, _ = listening.accept()
    return near, far
