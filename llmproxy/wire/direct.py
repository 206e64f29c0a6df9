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
import select
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import ITransport
from twisted.internet.tcp import Connection

_DEAD = frozenset((errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.ESHUTDOWN))
"""Errors after which nothing of what was given to ``send`` can have been, or will be, sent."""


class Writer:
    """Writes to ``transport`` through its own buffer: for transports that have no socket to send on (TLS, tests).

    :ivar sent_bytes: bytes given to :meth:`write` so far; as nothing is known about the socket, they count as sent.
    """

    def __init__(self, transport: ITransport) -> None:
        self._transport: Any = transport
        self.sent_bytes = 0

    @property
    def pending(self) -> bool:
        """Whether bytes wait in our own process; unknown, and so no, where there is no socket."""
        return False

    def write(self, data: bytes) -> None:
        """Write all of ``data``; the transport buffers what it cannot send."""
        self.sent_bytes += len(data)
        self._transport.write(data)


class DirectWriter(Writer):
    """Writes to a TCP or UNIX socket at once where nothing is queued before it.

    :ivar sent_bytes: bytes that the kernel has taken from :meth:`write`; what went through the transport's buffer
        counts from the moment it was queued.
    """

    def __init__(self, transport: Connection) -> None:
        super().__init__(transport)
        self._send = transport.getHandle().send

    @property
    def pending(self) -> bool:
        """Whether bytes wait in our own process for the socket to take them."""
        transport = self._transport
        return bool(transport._tempDataLen or len(transport.dataBuffer) > transport.offset)

    def write(self, data: bytes) -> None:
        """Send ``data`` now as far as the kernel takes it; the rest is queued in the transport.

        A dead socket is not reported from here: the data goes to the transport, whose next write finds the same
        error and tells the protocol through ``connectionLost``, outside of the caller's stack.
        """
        transport = self._transport
        if (
            transport.connected
            and not transport.disconnecting
            and not transport._aborting
            and transport._tempDataLen == 0
            and len(transport.dataBuffer) == transport.offset
        ):
            try:
                taken = self._send(data)
            except BlockingIOError:
                taken = 0
            except OSError as error:
                # The transport meets the same error and tells of it; or, if it passes (ENOBUFS), sends the data.
                if error.errno not in _DEAD:
                    self.sent_bytes += len(data)
                transport.write(data)
                return
            self.sent_bytes += len(data)
            if taken == len(data):
                return
            data = data[taken:]
        else:
            self.sent_bytes += len(data)
        transport.write(data)


def writer_for(transport: ITransport) -> Writer:
    """The fastest writer that ``transport`` allows."""
    return DirectWriter(transport) if isinstance(transport, Connection) else Writer(transport)


def quiet_check(transport: Any) -> Callable[[], bool]:
    """A function that says whether an idle connection still looks alive.

    It does if the other end has neither closed it nor sent bytes that nobody asked for. The kernel is asked, because
    the reactor may not have come round to tell yet; ``poll(2)`` answers without raising, unlike a look at the bytes.
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


def has_left(transport: Any) -> bool:
    """Whether the other end has closed a connection that we are not reading from.

    The end stands behind the bytes that are not read yet, so only the kernel knows (``poll(2)``, POLLRDHUP). An end
    that itself waits behind bytes for which we have no room is not seen by anybody.
    """
    connection = _socket_of(transport)
    if connection is None or not connection.connected:
        return False
    poller = select.poll()
    poller.register(connection.fileno(), select.POLLRDHUP)
    return bool(poller.poll(0))


def _socket_of(transport: Any) -> Any:
    """The TCP or UNIX transport at the bottom of ``transport``, which may be a TLS layer; None in tests."""
    while transport is not None and not isinstance(transport, Connection):
        transport = getattr(transport, "transport", None)
    return transport
