"""The relay: the body of an answer, from the upstream's connection to the caller's.

It is a push producer's consumer on one side and writes to the request on the other. Bytes go out first. What was
read at once is written at once. If the caller does not read, the upstream is not read either; if the caller leaves,
the upstream's connection is dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IProtocol
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from llmproxy.wire.request import Request
from llmproxy.wire.response import Response


@implementer(IProtocol)
class Relay:
    """Give this to ``IResponse.deliverBody``.

    :param request: the caller's request, whose head has been written.
    :param ended: called once with the reason of the body's end.
    :ivar read_done: called when one read of the upstream is through: what it gave is sent.
    :ivar chunks: pieces of the body relayed so far.
    :ivar body_bytes: bytes of the body relayed so far.
    """

    __slots__ = ("_ended", "_request", "_write", "body_bytes", "chunks", "read_done", "transport")

    def __init__(self, request: Request, ended: Callable[[Failure], None]) -> None:
        self._request = request
        self._write = request.write
        self.read_done = request.flush
        self._ended = ended
        self.chunks = 0
        self.body_bytes = 0

    def makeConnection(self, transport: Any) -> None:
        """The caller's pace becomes the upstream's."""
        self.transport: Response | None = transport
        self.connectionMade()
        transport.forget_head()

    def connectionMade(self) -> None:
        """See :meth:`makeConnection`."""
        self._request.registerProducer(self.transport, True)  # type: ignore[arg-type]

    def dataReceived(self, data: bytes) -> None:
        """A piece of the body."""
        self.chunks += 1
        self.body_bytes += len(data)
        self._write(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The body has ended, one way or another."""
        self._request.unregisterProducer()
        self.transport = None
        self._ended(reason)
