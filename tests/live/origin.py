"""A provider that answers by itself, for tests of many requests: h11, strict, in a thread.

Everywhere else in this folder a test plays both ends; here there are more of them than it could play.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.fuzz.readers import Message, RequestReader
from tests.live.upstream import HOST


@dataclass
class Origin:
    """Answers each request with what `answer_to` makes of it.

    :ivar readers: what was read on each connection so far.
    :ivar open_connections: how many there are.
    """

    port: int
    readers: list[RequestReader] = field(default_factory=list)
    open_connections: int = 0

    @property
    def url(self) -> str:
        """A base_url that leads here."""
        return f"http://{HOST}:{self.port}"

    @property
    def received(self) -> list[Message]:
        """The complete requests, by connection."""
        return [request for reader in list(self.readers) for request in list(reader.requests)]


@contextlib.contextmanager
def serving() -> Iterator[Origin]:
    """An origin, for as long as the block runs."""
    listener = socket.create_server((HOST, 0), backlog=1024)
    listener.setblocking(False)
    origin = Origin(listener.getsockname()[1])
    stopped = threading.Event()
    thread = threading.Thread(target=_serve, args=(origin, listener, stopped))
    thread.start()
    try:
        yield origin
    finally:
        stopped.set()
        thread.join()
        listener.close()


def _serve(origin: Origin, listener: socket.socket, stopped: threading.Event) -> None:
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        while not stopped.is_set():
            for key, _ in selector.select(0.05):
                if key.fileobj is listener:
                    connected, _ = listener.accept()
                    connected.settimeout(5.0)
                    reader = RequestReader()
                    origin.readers.append(reader)
                    origin.open_connections += 1
                    selector.register(connected, selectors.EVENT_READ, reader)
                elif not _answers(key.fileobj, key.data):  # type: ignore[arg-type]
                    selector.unregister(key.fileobj)
                    key.fileobj.close()  # type: ignore[union-attr]
                    origin.open_connections -= 1
        for key in list(selector.get_map().values()):
            if key.fileobj is not listener:
                key.fileobj.close()  # type: ignore[union-attr]


def _answers(connected: socket.socket, reader: RequestReader) -> bool:
    """Read once and answer what is complete; False if that was the end of the connection."""
    try:
        data = connected.recv(1 << 18)
        if data:
            connected.sendall(reader.read(data))
    except OSError:
        return False
    return bool(data) and reader.error is None
