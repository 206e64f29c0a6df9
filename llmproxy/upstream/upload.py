"""The body of a request on its way upstream, as it arrives.

First it is looked at: pieces are held back while ``look`` wants to see more. Then it waits, unread, until a
connection is there. Then every piece goes on at the upstream's pace. A small body that is all there when it is
started is given away in one piece, and can be given again; once streaming has begun it cannot.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IConsumer
from twisted.web.iweb import UNKNOWN_LENGTH, IBodyProducer
from zope.interface import implementer

from llmproxy.core import fields as f
from llmproxy.core import framing
from llmproxy.core.fields import Fields
from llmproxy.core.framing import FramingError
from llmproxy.wire.body import Discard
from llmproxy.wire.request import Request

IN_ONE_PIECE_BYTES = 64 * 1024
"""Up to here a body that is all there is joined and written with the head; a larger one is not copied together."""

SMALL_BYTES = 4096
"""Pieces below this are joined while they are held: as objects of their own they would cost many times their size."""


@implementer(IBodyProducer)
class WholeBody:
    """A small body that was all there from the start.

    :ivar data: the body, until it is not needed any more.
    :ivar length: bytes; UNKNOWN_LENGTH for one that is sent in chunks.
    :ivar received_bytes: the same.
    """

    __slots__ = ("data", "length", "received_bytes")
    complete = True

    def __init__(self, data: bytes) -> None:
        self.data: bytes | None = data
        self.length: Any = len(data)
        self.received_bytes = len(data)

    def whole(self, limit_bytes: int) -> bytes | None:
        """The body, if it has at most ``limit_bytes`` and is still here."""
        return self.data if self.data is not None and len(self.data) <= limit_bytes else None

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        """Write it."""
        consumer.write(self.data or b"")
        return succeed(None)

    def pauseProducing(self) -> None:
        """It has been written."""

    def resumeProducing(self) -> None:
        """It has been written."""

    def stopProducing(self) -> None:
        """It is not needed any more."""
        self.data = None


class EditedBody(WholeBody):
    """What is sent in the place of a body that was all here.

    :param instead_of: the body as the caller sent it.
    :ivar trailers: those of that body.
    """

    __slots__ = ("trailers",)

    def __init__(self, data: bytes, instead_of: WholeBody | Upload) -> None:
        super().__init__(data)
        self.received_bytes = instead_of.received_bytes
        self.trailers: Fields = []
        if isinstance(instead_of, Upload):
            self.trailers = instead_of.trailers
            instead_of.stopProducing()  # what it holds is not needed any more
            if instead_of.length is UNKNOWN_LENGTH:
                self.length = UNKNOWN_LENGTH


@implementer(IBodyProducer)
class Upload:
    """Receives the body from a :class:`~llmproxy.wire.request.Request` and produces it for a client connection.

    :param request: whose body this is; it is paused when the upstream is behind.
    :param look: gets every piece while it returns False; True means that it has seen enough. None: nothing to see.
    :param looked: called once when ``look`` has seen enough or the body has ended.
    :param broken: called if the rest of the body is malformed.
    :param keep_trailers: picks the trailer fields that may be passed on.
    :ivar length: bytes, or UNKNOWN_LENGTH for a chunked body.
    :ivar received_bytes: bytes of the body that have arrived.
    :ivar trailers: trailer fields that may be passed on, known once the body has ended.
    """

    __slots__ = (
        "_broken",
        "_consumer",
        "_done",
        "_held",
        "_keep_trailers",
        "_look",
        "_looked",
        "_looking",
        "_paused",
        "_request",
        "_started",
        "complete",
        "length",
        "received_bytes",
        "trailers",
    )

    def __init__(
        self,
        request: Request,
        look: Callable[[bytes], bool] | None,
        looked: Callable[[], None],
        broken: Callable[[FramingError], None],
        keep_trailers: Callable[[Fields], Fields] = f.trailers,
    ) -> None:
        self._request = request
        self._look = look
        self._looked = looked
        self._broken = broken
        self._keep_trailers = keep_trailers
        self._looking = True
        self._held: list[bytes | bytearray] = []
        self._paused = False
        self._consumer: Any = None
        self._done: Deferred[None] | None = None
        self._started = False
        self.complete = False
        self.received_bytes = 0
        self.trailers: Fields = []
        sized = request.body.kind == framing.LENGTH
        self.length: Any = request.body.length_bytes if sized else UNKNOWN_LENGTH

    @property
    def data(self) -> bytes | None:
        """The whole body, if all of it is here, none of it has been streamed, and it is small."""
        return self.whole(IN_ONE_PIECE_BYTES)

    def whole(self, limit_bytes: int) -> bytes | None:
        """The same for one of at most ``limit_bytes``."""
        if self._started or not self.complete or self.received_bytes > limit_bytes:
            return None
        if len(self._held) > 1:
            self._held = [b"".join(self._held)]
        return bytes(self._held[0]) if self._held else b""

    # -- BodyReceiver ----------------------------------------------------------------------------------------

    def body_received(self, data: bytes) -> None:
        """A piece from the caller."""
        self.received_bytes += len(data)
        if self._consumer is not None and not self._held:
            self._consumer.write(data)
            return
        if self._held:
            self._hold(data)
        else:
            self._held.append(data)
        if self.received_bytes == self.length:
            self.complete = True
        if self._looking and (self._look is None or self._look(data)):
            self._seen()
        if not self._looking and self._held and not self.complete:
            self._request.pause_body()

    def _hold(self, data: bytes) -> None:
        held = self._held
        if len(data) < SMALL_BYTES and len(held[-1]) < SMALL_BYTES:
            last = held[-1]
            if not isinstance(last, bytearray):
                last = held[-1] = bytearray(last)
            last += data
        else:
            held.append(data)

    def body_complete(self, trailers: Fields) -> None:
        """The caller has sent all of it."""
        self.complete = True
        self.trailers = self._keep_trailers(trailers)
        if self._consumer is not None:
            self._drain()
        elif self._looking:
            self._seen()

    def body_broken(self, error: FramingError) -> None:
        """The caller's framing is broken: what was sent upstream must not be taken for a whole body."""
        self._looking = False
        self._broken(error)

    def _seen(self) -> None:
        self._looking = False
        self._looked()

    # -- IBodyProducer ---------------------------------------------------------------------------------------

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        """Write what is held, then every piece as it comes; fires when the body has ended."""
        self._started = True
        self._consumer = consumer
        done = self._done = Deferred()
        self._drain()
        return done

    def _drain(self) -> None:
        """Write what is held at the upstream's pace; then the caller may go on, or the body is over."""
        held = self._held
        while held and not self._paused and self._consumer is not None:
            self._consumer.write(bytes(held.pop(0)))
        if held or self._consumer is None:
            return
        if self.complete:
            done, self._done = self._done, None
            self._consumer = None
            if done is not None:
                done.callback(None)
        elif not self._paused:
            self._request.resume_body()

    def pauseProducing(self) -> None:
        """The upstream does not take more now."""
        self._paused = True
        self._request.pause_body()

    def resumeProducing(self) -> None:
        """The upstream takes more."""
        self._paused = False
        if self._consumer is not None:
            self._drain()

    def stopProducing(self) -> None:
        """The upstream wants no more of it, or has had all; what is held or the caller still sends is dropped."""
        self._started = True
        self._consumer = self._done = None
        self._held.clear()
        self._looking = False
        if not self.complete:
            self._request.receive_body(Discard())
