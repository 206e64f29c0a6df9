"""The provider's end: a listening socket that says nothing but what a test makes it say."""

from __future__ import annotations

import select
import socket
import ssl
import time
from typing import Final

from tests.live.wire import LIMIT_S, Wire

HOST: Final = "127.0.0.1"


class Upstream:
    """Listens on a port of the loopback interface.

    :param tls: speaks TLS with this context.
    :param backlog: connections that the kernel keeps for a test that does not accept them.
    :ivar port: where it listens.
    :ivar connections: those that are open, in the order in which they came.
    """

    def __init__(self, tls: ssl.SSLContext | None = None, *, backlog: int = 1024) -> None:
        self._tls = tls
        self._listener = socket.create_server((HOST, 0), backlog=backlog)
        self._listener.settimeout(LIMIT_S)
        self.connections: list[Wire] = []

    @property
    def port(self) -> int:
        port: int = self._listener.getsockname()[1]
        return port

    @property
    def url(self) -> str:
        """A base_url that leads here."""
        return f"{'http' if self._tls is None else 'https'}://{HOST}:{self.port}"

    @property
    def host(self) -> bytes:
        """What Host says in a request that comes here."""
        return f"{HOST}:{self.port}".encode()

    def accept_tcp(self) -> socket.socket:
        """The next new connection, before any TLS."""
        connected, _ = self._listener.accept()
        connected.settimeout(LIMIT_S)
        return connected

    def accept(self) -> Wire:
        """The next new connection."""
        connected = self.accept_tcp()
        if self._tls is not None:
            connected = self._tls.wrap_socket(connected, server_side=True)
        wire = Wire(connected)
        self.connections.append(wire)
        return wire

    def receive(self) -> Wire:
        """The connection on which the next request comes: a new one, or one that was kept.

        Not one that it was called for before, as long as nothing was answered there.
        """
        deadline_s = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline_s:
            self.connections = [wire for wire in self.connections if wire.fileno() >= 0]  # a test may have closed one
            free = [wire for wire in self.connections if not wire.owes_answer]
            speaking = next((wire for wire in free if wire.poll(0)), None)
            if speaking is not None:
                if self._asks(speaking):
                    speaking.owes_answer = True
                    return speaking
                self.forget(speaking)
            elif not self.is_untouched(0):
                self.accept()
            else:
                self._poll(self._listener, *free).poll(100)
        raise TimeoutError("no request reached the upstream")

    def is_untouched(self, for_s: float = 0.15) -> bool:
        """Whether no new connection comes for ``for_s``."""
        return not self._poll(self._listener).poll(for_s * 1000)

    @staticmethod
    def _asks(wire: Wire) -> bool:
        """Whether there is more on this connection than its end."""
        try:
            return wire.look()
        except (ConnectionError, ssl.SSLError):
            return False

    @staticmethod
    def _poll(*ends: socket.socket | Wire) -> select.poll:
        poll = select.poll()
        for end in ends:
            poll.register(end, select.POLLIN)
        return poll

    def forget(self, wire: Wire) -> None:
        """Close a connection."""
        self.connections.remove(wire)
        wire.close()

    def hang_up(self) -> None:
        """Close all connections, those that nobody accepted too."""
        while self.connections:
            self.forget(self.connections[-1])
        while not self.is_untouched(0):
            self._listener.accept()[0].close()

    def close(self) -> None:
        """Listen no more."""
        self.hang_up()
        self._listener.close()


def unused_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port
