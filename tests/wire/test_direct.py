"""Writing at once: what the kernel takes, what is queued, what is known about it."""

from __future__ import annotations

import errno
import socket
from typing import Any

from twisted.internet.error import ConnectionLost
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.config.model import Upstream
from llmproxy.wire.client import ClientConnection, OutgoingRequest
from llmproxy.wire.direct import (
    COPIED_BYTES,
    GONE,
    HALF_CLOSED,
    HERE,
    DirectWriter,
    Outbox,
    Writer,
    peer_state,
    quiet_check,
    writer_for,
)
from llmproxy.wire.upstream_error import NeverAnswered
from tests.wire.far_end import FarEnd
from tests.wire.kernel_pair import KernelPair
from twisted import version  # type: ignore[attr-defined]


class _Silent(Protocol):
    lost: Failure | None = None

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost = reason


def _failing(number: int) -> Any:
    def send(data: bytes) -> int:
        raise OSError(number, "as the test says")

    return send


class _Case(SynchronousTestCase):
    def pair(self, protocol: Any = None, tcp: bool = False) -> KernelPair:
        """A connection whose sockets are closed after the test."""
        pair = KernelPair(protocol or _Silent(), tcp=tcp)
        self.addCleanup(pair.close)
        return pair.connect()


class Direct(_Case):
    """On a socket."""

    def test_the_twisted_that_it_was_read_from(self) -> None:
        """The writer looks into Twisted's write buffer, whose names were read in Twisted 26.10. Another version: look
        whether `dataBuffer`, `offset`, `_tempDataLen` and `writeSomeData` still mean the same, then change this."""
        self.assertEqual((version.major, version.minor), (26, 10))
        transport = self.pair().transport
        self.assertEqual((transport.dataBuffer, transport.offset, transport._tempDataLen), (b"", 0, 0))
        transport.write(b"queued")
        self.assertEqual(transport._tempDataLen, 6)
        self.assertEqual(transport.writeSomeData(b"sent"), 4)

    def test_at_once(self) -> None:
        """What is written is on the wire before the reactor turns."""
        pair = self.pair()
        writer = writer_for(pair.transport)
        self.assertIsInstance(writer, DirectWriter)
        writer.write(b"at ")
        writer.write(b"once")
        self.assertEqual(pair.heard(), b"at once")
        self.assertEqual(writer.sent_bytes, 7)
        self.assertEqual(pair.reactor.writers, set())

    def test_behind_what_is_queued(self) -> None:
        """What is queued before is sent before."""
        pair = self.pair()
        writer = writer_for(pair.transport)
        pair.transport.write(b"first ")
        writer.write(b"second")
        self.assertEqual(pair.heard(), b"")
        pair.reactor.turn()
        self.assertEqual(pair.heard(), b"first second")
        writer.write(b" third")
        self.assertEqual(pair.heard(), b" third")

    def test_more_than_the_socket_takes(self) -> None:
        """All of a large write arrives, in order, and all of it counts as handed over; a producer is held back."""
        pair = self.pair()
        calls: list[str] = []

        class Producer:
            def pauseProducing(self) -> None:
                calls.append("pause")

            def resumeProducing(self) -> None:
                calls.append("resume")

            def stopProducing(self) -> None:
                calls.append("stop")

        pair.transport.registerProducer(Producer(), True)
        writer = writer_for(pair.transport)
        data = bytes(range(256)) * 20_000
        writer.write(data)
        writer.write(b"end")
        self.assertEqual(set(calls), {"pause"})
        self.assertEqual(writer.sent_bytes, len(data) + 3)
        heard = b""
        for _ in range(2000):
            heard += pair.heard()
            pair.reactor.turn()
        self.assertEqual(heard, data + b"end")
        self.assertEqual(calls[-1], "resume")
        self.assertEqual(calls.count("resume"), 1)

    def test_dead_socket(self) -> None:
        """On a socket that is dead nothing counts as sent, and the end is told later, not within the write."""
        protocol = _Silent()
        pair = self.pair(protocol)
        pair.transport.socket.shutdown(socket.SHUT_WR)
        writer = writer_for(pair.transport)
        writer.write(b"nobody hears this")
        self.assertEqual(writer.sent_bytes, 0)
        self.assertIsNone(protocol.lost)
        pair.reactor.turn()
        self.assertIsNotNone(protocol.lost)

    def test_dead_socket_at_the_end_of_a_turn(self) -> None:
        """The same for large pieces that were gathered within a turn."""
        protocol = _Silent()
        pair = self.pair(protocol)
        writer = writer_for(pair.transport)
        assert isinstance(writer, DirectWriter)
        outbox = writer._outbox = Outbox()
        writer.write(b"first")
        pair.transport.socket.shutdown(socket.SHUT_WR)
        outbox.gathering = True
        for _ in range(2):
            writer.write(b"x" * COPIED_BYTES)
        self.assertEqual(writer.buffered_bytes, 2 * COPIED_BYTES)
        outbox.send()
        self.assertEqual(writer.sent_bytes, 5)
        self.assertIsNone(protocol.lost)
        pair.reactor.turn()
        self.assertIsNotNone(protocol.lost)

    def test_lost_within_the_turn(self) -> None:
        """A connection that is lost after pieces were gathered for it, in the same turn, keeps nothing of the others'
        back; nor does a fault of ours at one of them."""
        pairs = [self.pair() for _ in range(3)]
        writers = [writer_for(pair.transport) for pair in pairs]
        outbox = Outbox()
        outbox.gathering = True
        for writer in writers:
            assert isinstance(writer, DirectWriter)
            writer._queued = False
            writer._outbox = outbox
            for _ in range(2):
                writer.write(b"x" * COPIED_BYTES)
        pairs[0].transport.connectionLost(Failure(ConnectionLost()))
        writers[1]._send_pieces = None  # type: ignore[attr-defined]
        outbox.send()
        self.assertEqual(len(pairs[2].heard()), 2 * COPIED_BYTES)
        self.assertEqual(len(self.flushLoggedErrors(TypeError)), 1)

    def test_an_error_that_passes(self) -> None:
        """If the kernel is short of memory for a moment, what was written is sent a little later, and so counts as
        sent: a request of which it is a part must not be sent once more."""
        pair = self.pair()
        writer = writer_for(pair.transport)
        assert isinstance(writer, DirectWriter)
        send, writer._send = writer._send, _failing(errno.ENOBUFS)
        writer.write(b"a little ")
        self.assertEqual((writer.sent_bytes, writer.pending, pair.heard()), (9, True, b""))
        writer._send = send
        writer.write(b"later")
        pair.reactor.turn()
        self.assertEqual((writer.sent_bytes, writer.pending, pair.heard()), (14, False, b"a little later"))

    def test_an_error_that_stays(self) -> None:
        """If the other end is gone, nothing counts as sent."""
        for number in (errno.EPIPE, errno.ECONNRESET):
            writer = writer_for(self.pair().transport)
            assert isinstance(writer, DirectWriter)
            writer._send = _failing(number)
            writer.write(b"nobody hears this")
            self.assertEqual(writer.sent_bytes, 0)

    def test_aborted(self) -> None:
        """A connection that we have dropped gets nothing more, and is not fit for another request, from that moment
        on and not only when the reactor has come round to it."""
        pair = self.pair()
        writer = writer_for(pair.transport)
        is_quiet = quiet_check(pair.transport)
        self.assertTrue(is_quiet())
        pair.transport.abortConnection()
        self.assertFalse(is_quiet())
        writer.write(b"too late")
        self.assertEqual(pair.heard(), b"")
        pair.reactor.turn()
        self.assertEqual(pair.heard(), b"")
        self.assertFalse(is_quiet())

    def test_elsewhere(self) -> None:
        """On a transport without a socket everything written counts as handed over, as nothing better is known."""
        far = FarEnd(Clock(), _Silent())
        writer = writer_for(far.transport)  # type: ignore[arg-type]
        self.assertIs(type(writer), Writer)
        writer.write(b"123")
        self.assertEqual((writer.sent_bytes, far.heard()), (3, b"123"))


class NothingSent(_Case):
    """The one case in which a POST may be sent again."""

    def test_never_answered(self) -> None:
        """A request on a socket that was already dead says that not one byte of it was handed over."""
        connection = ClientConnection(Clock(), Upstream(), lambda _: None, lambda _: None)
        pair = self.pair(connection, tcp=True)
        pair.transport.socket.shutdown(socket.SHUT_WR)
        result = connection.request(OutgoingRequest(b"POST", b"POST / HTTP/1.1\r\n\r\n"))
        pair.reactor.turn()
        error = self.failureResultOf(result, NeverAnswered).value
        self.assertEqual(error.sent_bytes, 0)


class Looking(_Case):
    """What the kernel knows of a connection that we do not read."""

    def test_quiet(self) -> None:
        """An idle connection is fit for use until the other end has closed it or said something."""
        pair = self.pair()
        self.assertTrue(quiet_check(pair.transport)())
        pair.far.send(b"x")
        self.assertFalse(quiet_check(pair.transport)())
        pair = self.pair()
        pair.far.close()
        self.assertFalse(quiet_check(pair.transport)())
        pair = self.pair()
        pair.transport.loseConnection()
        self.assertFalse(quiet_check(pair.transport)())

    def test_quiet_behind_a_layer(self) -> None:
        """The same through a TLS layer, which has the socket below it."""

        class Layer:
            def __init__(self, transport: object) -> None:
                self.transport = transport

        pair = self.pair()
        self.assertTrue(quiet_check(Layer(pair.transport))())
        pair.far.close()
        self.assertFalse(quiet_check(Layer(pair.transport))())

    def test_left(self) -> None:
        """A caller that has left is seen although bytes of it wait to be read, and one that has not left is not."""
        for leave in (lambda far: far.close(), lambda far: far.shutdown(socket.SHUT_RDWR)):
            pair = self.pair(tcp=True)
            pair.transport.pauseProducing()
            pair.far.send(b"a second request, and half of a third")
            self.assertEqual(peer_state(pair.transport), HERE)
            leave(pair.far)
            self.assertIn(peer_state(pair.transport), (GONE, HALF_CLOSED))
