"""A connection without a socket: our protocol at one end, the test at the other.

`MemoryTransport` does what Twisted's TCP transport does, and when it does it: nothing arrives while reading is
paused, a connection is lost in a later turn of the reactor and not within `loseConnection`, a producer is paused
above `bufferSize` and asked again when all is taken. `FarEnd` is what the test holds: what it says arrives at our
protocol, what our protocol writes it hears.
"""

from __future__ import annotations

from collections import deque
from typing import Any, cast

from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IAddress, IHalfCloseableProtocol
from twisted.internet.task import Clock
from twisted.python.failure import Failure

PEER_HOST = "192.0.2.7"


class MemoryTransport:
    """Our end. Everything here behaves as `twisted.internet.tcp.Connection` does."""

    def __init__(self, far: FarEnd, clock: Clock, protocol: Any) -> None:
        self.bufferSize = 64 * 1024
        self.protocol = protocol
        self.connected = True
        self.disconnecting = False
        self.reading = True
        self._far = far
        self._clock = clock
        self._producer: Any = None
        self._producer_paused = False
        self._half_closing = self._half_closed = False
        self._aborting = False
        self._unsent = bytearray()

    @property
    def buffered_bytes(self) -> int:
        """What the other end has not taken."""
        return len(self._unsent)

    # -- ITransport and IConsumer

    def write(self, data: bytes) -> None:
        """Take `data` for the other end."""
        if not isinstance(data, bytes):
            raise TypeError("Data must be bytes")
        if not data or not self.connected or self._half_closed or self._aborting:
            return
        self._unsent += data
        if self._far.takes:
            self._far.take(data)
            self._unsent.clear()
        elif len(self._unsent) > self.bufferSize and self._producer is not None:
            self._producer_paused = True
            self._producer.pauseProducing()

    def writeSequence(self, data: Any) -> None:
        """Take all of them."""
        self.write(b"".join(data))

    def loseConnection(self) -> None:
        """Close when all is sent and no producer is registered; not now, but in the next turn."""
        if not self.connected or self.disconnecting:
            return
        self.disconnecting = True
        self.reading = False
        self._clock.callLater(0, self.flushed)

    def loseWriteConnection(self) -> None:
        """Close our half when all is sent."""
        self._half_closing = True
        self._clock.callLater(0, self.flushed)

    def abortConnection(self) -> None:
        """Reset, in the next turn."""
        if not self.connected or self._aborting:
            return
        self._aborting = True
        self.reading = False
        self._clock.callLater(0, self.lost, ConnectionAborted())

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """One producer at a time."""
        if self._producer is not None:
            raise RuntimeError(f"cannot register {producer!r}: {self._producer!r} was never unregistered")
        if not self.connected:
            producer.stopProducing()
            return
        self._producer = producer
        self._producer_paused = False

    def unregisterProducer(self) -> None:
        """There may be none."""
        self._producer = None
        if self.connected and self.disconnecting:
            self._clock.callLater(0, self.flushed)

    def pauseProducing(self) -> None:
        """Read nothing."""
        self.reading = False

    def resumeProducing(self) -> None:
        """Read again, from the next turn on."""
        if self.connected and not self.disconnecting and not self._aborting:
            self.reading = True
            self._clock.callLater(0, self._far.arrive)

    def stopProducing(self) -> None:
        """As Twisted has it."""
        self.loseConnection()

    def getPeer(self) -> IAddress:
        """A caller from the documentation's network (RFC 5737)."""
        return cast(IAddress, IPv4Address("TCP", PEER_HOST, 40000))

    def getHost(self) -> IAddress:
        """Us."""
        return cast(IAddress, IPv4Address("TCP", "192.0.2.1", 9002))

    # -- what the reactor would do

    def flushed(self) -> None:
        """The socket is writable: all is sent if the other end takes it."""
        if not self.connected:
            return
        if self._unsent:
            if not self._far.takes:
                return
            self._far.take(bytes(self._unsent))
            self._unsent.clear()
        if self._producer is not None and self._producer_paused:
            self._producer_paused = False
            self._producer.resumeProducing()
        elif self.disconnecting and self._producer is None:
            self._far.sees_end()
            self.lost(ConnectionDone())
        elif self._half_closing and not self._half_closed:
            self._half_closed = True
            self._far.sees_end()

    def lost(self, error: Exception) -> None:
        """The connection is gone, for both."""
        if not self.connected:
            return
        self.connected = False
        self.disconnecting = False
        self.reading = False
        if isinstance(error, ConnectionAborted):
            self._far.was_reset = True
        self._far.sees_end()
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.stopProducing()
        self.protocol.connectionLost(Failure(error))


class FarEnd:
    """The other end, in the test's hands. Each call lets the reactor turn until nothing is left to do at once.

    takes: whether what our side writes is taken; False is a reader that has stopped.
    closed: our side has closed its half, or all of it. was_reset: it did so by a reset.
    writes: what our side has written since the last `heard`, one item for each write.
    """

    def __init__(self, clock: Clock, protocol: Any) -> None:
        self.takes = True
        self.closed = False
        self._gone = False
        self.was_reset = False
        self.writes: list[bytes] = []
        self._clock = clock
        self._arriving: deque[bytes | Exception] = deque()
        self.transport = MemoryTransport(self, clock, protocol)

    @property
    def protocol(self) -> Any:
        """Our protocol on this connection."""
        return self.transport.protocol

    def connect(self) -> FarEnd:
        """Give our protocol its transport."""
        self.protocol.makeConnection(self.transport)
        self.turn()
        return self

    def says(self, *pieces: bytes) -> None:
        """Send; each piece arrives as one read of its own, if it is not larger than our side reads at once."""
        self._arriving.extend(pieces)
        self.turn()

    def ends(self) -> None:
        """Close properly (FIN), after all that was said. What our side sends after that is answered with a reset."""
        self._gone = True
        self.half_closes()

    def half_closes(self) -> None:
        """Send nothing more (FIN), and go on reading."""
        self._arriving.append(ConnectionDone())
        self.turn()

    def is_gone(self) -> None:
        """Read nothing more either: what our side sends from now on is answered with a reset."""
        self._gone = True

    def resets(self) -> None:
        """Reset the connection: what was said and not read yet is lost."""
        self._arriving.clear()
        self._arriving.append(ConnectionLost())
        self.turn()

    def stops_reading(self) -> None:
        """Take nothing any more."""
        self.takes = False

    def reads_on(self) -> None:
        """Take what has piled up, and all that follows."""
        self.takes = True
        self.transport.flushed()
        self.turn()

    def heard(self) -> bytes:
        """All that our side has written since the last call."""
        heard = b"".join(self.writes)
        self.writes.clear()
        return heard

    @property
    def unread_bytes(self) -> int:
        """How much has been said that our side has not read."""
        return sum(len(piece) for piece in self._arriving if isinstance(piece, bytes))

    def turn(self) -> None:
        """Let the reactor turn."""
        self.arrive()
        self._clock.advance(0)

    # -- called by the transport

    def take(self, data: bytes) -> None:
        """Our side has written."""
        if self._gone:
            self._clock.callLater(0, self.transport.lost, ConnectionLost())
        else:
            self.writes.append(data)

    def sees_end(self) -> None:
        """Our side has closed."""
        self.closed = True

    def arrive(self) -> None:
        """Let our side read once, if it reads."""
        transport = self.transport
        if not self._arriving or not transport.reading or not transport.connected:
            return
        piece = self._arriving.popleft()
        if isinstance(piece, Exception):
            half = isinstance(piece, ConnectionDone) and IHalfCloseableProtocol.providedBy(transport.protocol)
            if half:
                transport.reading = False
                transport.protocol.readConnectionLost()
            else:
                transport.lost(piece)
            return
        if len(piece) > transport.bufferSize:
            self._arriving.appendleft(piece[transport.bufferSize :])
            piece = piece[: transport.bufferSize]
        if piece:
            transport.protocol.dataReceived(piece)
        self._clock.callLater(0, self.arrive)
