"""An answer of an upstream: a ``twisted.web`` ``IResponse`` with the raw header fields beside it.

``deliverBody`` gives the pieces of the body, without framing, to any protocol. A protocol that has a method
``read_done`` is told after each read of the socket that no more comes from this one, so that it can write once for
each read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from twisted.internet.interfaces import IProtocol, IPushProducer
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import UNKNOWN_LENGTH, IResponse
from zope.interface import implementer

from llmproxy.core import framing
from llmproxy.core.fields import Fields, Index
from llmproxy.core.framing import BodyFraming

if TYPE_CHECKING:
    from llmproxy.wire.client import ClientConnection

ENDED: Final = Failure(ResponseDone())
ENDED_WITH_CONNECTION: Final = Failure(PotentialDataLoss())

_NO_FIELDS: Final[Fields] = []


@implementer(IResponse, IPushProducer)
class Response:
    """An answer: its head, and the body while it comes. Also the producer of that body, until it has ended.

    :ivar fields: the raw header fields in order, until :meth:`forget_head`.
    :ivar index: the same as a look-up table.
    :ivar trailers: the raw trailer fields, once the body has ended.
    :ivar body: how the body ends.
    """

    # One for each answer that is under way: slots keep an idle stream small, and are quicker than a dictionary.
    __slots__ = (
        "_connection",
        "_early",
        "_ended",
        "_is_http_1_1",
        "_protocol",
        "body",
        "code",
        "fields",
        "index",
        "phrase",
        "trailers",
    )

    previousResponse = None
    request: Any = None

    def __init__(
        self,
        connection: ClientConnection,
        is_http_1_1: bool,
        status: int,
        reason: bytes,
        fields: Fields,
        index: Index,
        body: BodyFraming,
    ) -> None:
        self._is_http_1_1 = is_http_1_1
        self.code = status
        self.phrase = reason
        self.fields = fields
        self.index = index
        self.body = body
        self.trailers: Fields = _NO_FIELDS
        self._connection: ClientConnection | None = connection
        self._early: list[bytes] | None = None
        self._protocol: IProtocol | None = None
        self._ended: Failure | None = None

    @property
    def version(self) -> tuple[bytes, int, int]:
        """``(b"HTTP", 1, 1)``, or 0 in the last place."""
        return (b"HTTP", 1, 1 if self._is_http_1_1 else 0)

    @property
    def length(self) -> object:
        """The length of the body in bytes, or UNKNOWN_LENGTH."""
        if self.body.kind == framing.LENGTH:
            return self.body.length_bytes
        return 0 if self.body.kind == framing.NONE else UNKNOWN_LENGTH

    @property
    def headers(self) -> Headers:
        """The header fields as twisted.web has them; made anew at each use."""
        headers = Headers()
        for name, value in self.fields:
            headers.addRawHeader(name, value)
        return headers

    def setPreviousResponse(self, response: IResponse) -> None:
        """There is none: redirects are handed to the caller."""
        raise NotImplementedError("redirects are not followed")

    def forget_head(self) -> None:
        """Let go of the header fields: whoever relays the body has made use of them. A stream may last for hours."""
        self.fields = _NO_FIELDS
        self.index = {}

    def deliverBody(self, protocol: IProtocol) -> None:
        """Give the body to ``protocol``, whose transport is this object (an IPushProducer).

        Its ``connectionLost`` gets a Failure of ``ResponseDone``, of ``PotentialDataLoss`` (the body ended with the
        connection, in peace), or of ``ResponseFailed`` with an UpstreamError among its reasons.
        """
        self._protocol = protocol
        connection = self._connection
        if connection is not None:
            connection.deliver = protocol.dataReceived
            connection.read_done = getattr(protocol, "read_done", None)
        protocol.makeConnection(self)  # type: ignore[arg-type]
        early, self._early = self._early, None
        if early is not None:
            for data in early:
                protocol.dataReceived(data)
        if self._ended is not None:
            protocol.connectionLost(self._ended)
        elif early is not None:
            self.resumeProducing()

    def whole_body(self) -> list[bytes] | None:
        """The pieces of the body, if it came with the head, to its proper end; instead of :meth:`deliverBody`."""
        if self._ended is not ENDED or self._protocol is not None:
            return None
        early, self._early = self._early, None
        return early or []

    # -- from the connection ---------------------------------------------------------------------------------

    def keep(self, data: bytes) -> None:
        """A piece of the body that nobody has asked for yet; the connection reads no more until somebody does."""
        if self._early is None:
            self._early = []
        self._early.append(data)

    @property
    def is_kept(self) -> bool:
        """Whether pieces of the body wait for somebody who asks for them."""
        return self._early is not None

    def end(self, reason: Failure) -> None:
        """Nothing more comes. From here on this producer cannot touch the connection, which may serve another."""
        self._connection = None
        self._ended = reason
        protocol, self._protocol = self._protocol, None
        if protocol is not None:
            protocol.connectionLost(reason)

    # -- IPushProducer ---------------------------------------------------------------------------------------

    def pauseProducing(self) -> None:
        """Stop reading from the upstream."""
        if self._connection is not None:
            self._connection.pause_reading()

    def resumeProducing(self) -> None:
        """Read on."""
        if self._connection is not None:
            self._connection.resume_reading()

    def stopProducing(self) -> None:
        """The body is not wanted any more: drop the connection now, so that the upstream stops working for us."""
        if self._connection is not None:
            self._connection.abort()

    loseConnection = abortConnection = stopProducing

    # What a protocol may ask of its transport; nothing is ever written through a response.
    def write(self, data: bytes) -> None:
        """A response cannot be written to."""
        raise TypeError("a response has no way back")
