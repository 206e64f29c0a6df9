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
    :ivar dataReceived: takes a piece of the body.
    :ivar read_done: called when one read of the upstream is through: what it gave is sent.
    """

    # What is called for each piece is the request's own: one call less, and one object less to touch.
    __slots__ = ("_ended", "_request", "dataReceived", "read_done", "transport")

    def __init__(self, request: Request, ended: Callable[[Failure], None]) -> None:
        self._request = request
        self.dataReceived = request.write
        self.read_done = request.flush
        self._ended = ended

    def makeConnection(self, transport: Any) -> None:
        """The caller's pace becomes the upstream's."""
        self.transport: Response | None = transport
        self._request.registerProducer(transport, True)
        transport.forget_head()

    def connectionMade(self) -> None:
        """There is nothing to do besides :meth:`makeConnection`."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The body has ended, one way or another."""
        self._request.unregisterProducer()
        self.transport = None
        self._ended(reason)
