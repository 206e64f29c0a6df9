"""Writing to a transport at once, instead of on the next turn of the reactor.

Twisted's ``transport.write`` appends to a buffer and waits until epoll says the socket is writable: three system
calls and one more turn of the loop for each piece. A proxy writes one piece per read and the socket is nearly
always writable, so the piece is sent right here, and only what the kernel does not take goes the usual way.

The second reason is knowledge. ``sent_bytes`` says how many bytes were handed to the socket. A request of which
no byte was handed over can be sent again on another connection; any other may have been read, and paid for.

This is the one module that looks into Twisted's write buffer (``dataBuffer``, ``offset``, ``_tempDataLen``): a
test names the Twisted version that it was read from.
"""

from __future__ import annotations

import errno
import fcntl
import select
import socket
import termios
from array import array
from collections.abc import Callable
from typing import Any, Final

from twisted.internet.interfaces import ITransport
from twisted.internet.tcp import Connection
from twisted.logger import Logger

_log = Logger()

_DEAD = frozenset((errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.ESHUTDOWN))
"""Errors after which nothing of what was given to ``send`` can have been, or will be, sent."""


OUTBOX: Final = "llmproxy_outbox"
"""The attribute of a reactor that holds its :class:`Outbox`, if its turns are ours (``wire/polling.py``)."""

HERE: Final = "here"
HALF_CLOSED: Final = "half closed"
GONE: Final = "gone"
"""What can be known of the other end of a connection: see :func:`peer_state`."""

COPIED_BYTES: Final = 8 * 1024
"""Up to here what was gathered is copied together."""

GATHERED_BYTES: Final = 64 * 1024
"""How much one writer gathers within a turn before it sends."""


class Writer:
    """Writes to ``transport`` through its own buffer: for transports that have no socket to send on (TLS, tests).

    :ivar sent_bytes: bytes given to :meth:`write` so far; as nothing is known about the socket, they count as sent.
    """

    __slots__ = ("_transport", "sent_bytes")

    def __init__(self, transport: ITransport) -> None:
        self._transport: Any = transport
        self.sent_bytes = 0

    @property
    def pending(self) -> bool:
        """Whether bytes wait in our own process, where the transport can tell."""
        return bool(getattr(self._transport, "pending", False))

    @property
    def buffered_bytes(self) -> int:
        """Bytes that wait in our own process for the socket to take them; those of TLS count as encrypted."""
        return unsent_bytes(self._transport)

    def write(self, data: bytes) -> None:
        """Write all of ``data``; the transport buffers what it cannot send."""
        self.sent_bytes += len(data)
        self._transport.write(data)

    def flush(self) -> None:
        """Nothing is kept here."""


class Outbox:
    """The writers that have something to send at the end of this turn of the reactor.

    When one turn brings many events, the sends are made one after the other when all have been dealt with: the first
    wakes the program at the other end, and the others find it awake. Measured with 16 connections: a sixth of the
    processor time of a small request. A turn of one event sends at once, so that the other end begins while we are
    still busy with the rest.

    :ivar gathering: whether writers wait for the end of the turn.
    """

    def __init__(self) -> None:
        self.gathering = False
        self._writers: list[DirectWriter] = []

    def add(self, writer: DirectWriter) -> None:
        """``writer`` has something to send."""
        self._writers.append(writer)

    def send(self) -> None:
        """The turn is over."""
        self.gathering = False
        writers, self._writers = self._writers, []
        for writer in writers:
            try:
                writer.flush()
            except Exception:  # noqa: BLE001 - a fault at one connection keeps nothing of another's back
                _log.failure("what was written to a connection could not be sent")


class DirectWriter(Writer):
    """Writes to a TCP or UNIX socket at once where nothing is queued before it, or at the end of the turn.

    :ivar sent_bytes: bytes that the kernel has taken from :meth:`write`; what went through the transport's buffer
        counts from the moment it was queued there, and what waits for the end of the turn does not count.

    It is the only one that writes to its transport, so it knows when there can be something before it.
    """

    __slots__ = ("_outbox", "_queued", "_send", "_send_pieces", "_waiting", "_waiting_bytes")

    def __init__(self, transport: Connection) -> None:
        super().__init__(transport)
        self._queued = True  # whether the transport may hold something back, so that it has to be asked
        # Bound now: the socket of a connection that was lost meanwhile is closed, which is an OSError, and not missing.
        self._send = transport.getHandle().send
        self._send_pieces = transport.getHandle().sendmsg
        self._outbox: Outbox | None = getattr(transport.reactor, OUTBOX, None)
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0

    @property
    def pending(self) -> bool:
        """Whether bytes wait in our own process for the socket to take them."""
        transport = self._transport
        return bool(self._waiting or transport._tempDataLen or len(transport.dataBuffer) > transport.offset)

    @property
    def buffered_bytes(self) -> int:
        """Bytes of :meth:`write` that the kernel has not taken."""
        return self._waiting_bytes + unsent_bytes(self._transport)

    def write(self, data: bytes) -> None:
        """Send ``data``, now or at the end of this turn of the reactor."""
        outbox = self._outbox
        if outbox is None or not outbox.gathering:
            if self._waiting:  # as when the outbox is being sent at this moment
                self.flush()
            self._send_now(data)
            return
        if not self._waiting:
            outbox.add(self)
        self._waiting.append(data)
        self._waiting_bytes += len(data)
        if self._waiting_bytes > GATHERED_BYTES:
            self.flush()

    def flush(self) -> None:
        """Send what waits for the end of the turn. To be called before the connection is closed."""
        waiting = self._waiting
        size, self._waiting_bytes = self._waiting_bytes, 0
        if len(waiting) == 1:
            data = waiting[0]
            waiting.clear()
            self._send_now(data)
        elif waiting and not self._transport._aborting:
            self._waiting = []
            if size < COPIED_BYTES or self._queued:
                self._send_now(b"".join(waiting))
            else:
                self._send_together(waiting, size)
        else:
            waiting.clear()

    def _send_together(self, pieces: list[bytes], size: int) -> None:
        """Send large pieces without copying them into one (sendmsg(2)); nothing is queued before them."""
        try:
            send = self._send_pieces
            taken = send(pieces)
        except BlockingIOError:
            taken = 0
        except OSError:
            self._send_now(b"".join(pieces))  # which meets the same error, and knows what to do
            return
        self.sent_bytes += size
        if taken < size:
            self._queued = True
            self._transport.write(b"".join(pieces)[taken:])

    def _send_now(self, data: bytes) -> None:
        """Send ``data`` now as far as the kernel takes it; the rest is queued in the transport.

        A dead socket is not reported from here: the data goes to the transport, whose next write finds the same
        error and tells the protocol through ``connectionLost``, outside of the caller's stack.
        """
        transport = self._transport
        if transport._aborting:
            return
        if self._queued:
            if transport._tempDataLen or len(transport.dataBuffer) > transport.offset:
                self.sent_bytes += len(data)
                transport.write(data)
                return
            self._queued = False
        try:
            send = self._send
            taken = send(data)
        except BlockingIOError:
            taken = 0
        except OSError as error:
            # The transport meets the same error and tells of it; or, if it passes (ENOBUFS), sends the data. One
            # that is closed drops it.
            if error.errno not in _DEAD:
                self.sent_bytes += len(data)
            self._queued = True
            transport.write(data)
            return
        self.sent_bytes += len(data)
        if taken < len(data):
            self._queued = True
            transport.write(data[taken:])


def writer_for(transport: ITransport) -> Writer:
    """The fastest writer that ``transport`` allows."""
    return DirectWriter(transport) if isinstance(transport, Connection) else Writer(transport)


def quiet_check(transport: Any) -> Callable[[], bool]:
    """A function that says whether an idle connection still looks alive.

    It does if the other end has neither closed it nor sent bytes that nobody asked for. The kernel is asked, because
    the reactor may not have come round to tell yet; ``poll(2)`` answers without raising, unlike a look at the bytes.
    (To trust the events of the present turn instead saves half a microsecond, and loses the request whose connection
    dies while the turn lasts: a test of that race failed.)
    """
    connection = _socket_of(transport)
    if connection is None:
        return lambda: True
    poller = select.poll()
    poller.register(connection.fileno(), select.POLLIN | select.POLLRDHUP)

    def is_quiet() -> bool:
        return bool(
            connection.connected and not connection.disconnecting and not connection._aborting and not poller.poll(0)
        )

    return is_quiet


def has_unread(transport: Any) -> bool:
    """Whether bytes have come that nobody has read; of TLS nothing can be said, as its own messages are among them."""
    if not isinstance(transport, Connection) or not transport.connected:
        return False
    try:
        return bool(transport.getHandle().recv(1, socket.MSG_PEEK))
    except OSError:
        return False


def peer_state(transport: Any) -> str:
    """What the kernel knows of the other end of a connection that we are not reading from: HERE, HALF_CLOSED or GONE.

    Its FIN stands behind the bytes that are not read yet, so only the kernel knows (``poll(2)``, POLLRDHUP). One that
    itself waits behind bytes for which there is no room is not seen by anybody.
    """
    connection = _socket_of(transport)
    if connection is None or not connection.connected:
        return HERE
    poller = select.poll()
    poller.register(connection.fileno(), select.POLLRDHUP)
    for _, event in poller.poll(0):
        return GONE if event & (select.POLLERR | select.POLLHUP) else HALF_CLOSED
    return HERE


def unsent_bytes(transport: Any) -> int:
    """How many bytes the transport at the bottom of ``transport`` keeps because its socket has not taken them."""
    connection = _socket_of(transport)
    if connection is None:
        return int(getattr(transport, "buffered_bytes", 0))
    unsent = len(connection.dataBuffer) - connection.offset + connection._tempDataLen
    return int(unsent)


def unacknowledged_bytes(transport: Any) -> int:
    """How many bytes the kernel holds for the other end, which has not taken them yet (tcp(7), SIOCOUTQ)."""
    connection = _socket_of(transport)
    if connection is None:
        return 0
    held = array("i", (0,))
    try:
        fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, held)
    except OSError:  # a UNIX socket may not know
        return 0
    return held[0]


def _socket_of(transport: Any) -> Any:
    """The TCP or UNIX transport at the bottom of ``transport``, which may be a TLS layer; None in tests."""
    while transport is not None and not isinstance(transport, Connection):
        transport = getattr(transport, "transport", None)
    return transport
