"""A request of a caller, and the answer to it: ``twisted.web``'s Request, as a proxy needs it.

It differs from its parent in what a proxy needs:

* It is rendered as soon as its **head** is in. The body arrives afterwards, through :meth:`Request.receive_body`,
  at the pace of whoever takes it.
* The header fields are kept as they came, in :attr:`Request.fields`. ``requestHeaders`` is a view, made when used.
* An answer can be begun with a raw head (:meth:`Request.write_head`); ``responseHeaders`` and ``setResponseCode``
  work as everywhere for resources that use them.

The rule: an answer is either complete, as its framing says, or visibly cut. Nothing is ever added to one that broke.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IPushProducer
from twisted.python.failure import Failure
from twisted.web import server
from twisted.web.http import datetimeToString
from twisted.web.http_headers import Headers
from twisted.web.resource import IResource, getChildForRequest
from twisted.web.server import NOT_DONE_YET

from llmproxy.core import fields as f
from llmproxy.core import framing
from llmproxy.core.fields import Fields, Index
from llmproxy.core.framing import BodyFraming, FramingError
from llmproxy.wire.body import BodyReceiver

if TYPE_CHECKING:
    from llmproxy.wire.channel import Channel
    from llmproxy.wire.repeat import RepeatedHead

_BODYLESS = frozenset((204, 304))

_NO_FIELDS: Fields = []

MAX_LEADING_ZEROS = 4
"""How often :meth:`Request.probe` writes one before a chunk: some clients bound the digits of a size at 16."""


class Request(server.Request):
    """One request, and the answer to it.

    :ivar fields: the raw header fields in order.
    :ivar index: the same as a look-up table.
    :ivar method: the method, as sent.
    :ivar uri: the request target, as sent.
    :ivar path: the target without its query.
    :ivar clientproto: ``b"HTTP/1.1"`` or ``b"HTTP/1.0"``.
    :ivar body: how the body ends (:class:`~llmproxy.core.framing.BodyFraming`).
    :ivar body_done: whether the whole body has arrived.
    :ivar repeat: the head that this one is the same as, if it was recognised.
    :ivar refusal: why it is not processed when its turn comes, but refused.
    :ivar sent_body_bytes: bytes of the answer's body written so far, without framing.
    :ivar sent_pieces: how many pieces they were written in.
    :ivar copy: what somebody gathers of the answer; None: nobody does. When a flush finds ``copy_enough`` bytes in it,
        or any after the caller has left, ``look_at_copy`` is called, which takes them out. To be set together.
    :ivar copies_written: whether each piece of the body that is written is added to it, also after the caller has left.
    """

    # More attributes than CPython shares the keys of: without slots each request would pay for a dictionary of its own.
    # What twisted.web gives a class attribute is among them, as it is set for each request anyway.
    __slots__ = (
        "_came_whole",
        "_close_delimited",
        "_continue_owed",
        "_corked",
        "_disconnected",
        "_early",
        "_early_error",
        "_early_trailers",
        "_leading_zeros",
        "_pending",
        "_receiver",
        "_suppress_body",
        "body",
        "body_done",
        "channel",
        "chunked",
        "clientproto",
        "close_after",
        "code",
        "copies_written",
        "copy",
        "copy_enough",
        "fields",
        "finished",
        "head_written",
        "index",
        "look_at_copy",
        "method",
        "path",
        "producer",
        "refusal",
        "repeat",
        "sent_body_bytes",
        "sent_pieces",
        "site",
        "startedWriting",
        "status",
        "transport",
        "uri",
    )

    defaultContentType = None
    copy_enough: int
    look_at_copy: Callable[[], None] | None

    # super().__init__ is not called: it builds two Headers, and much else, that a relayed request never uses.
    def __init__(
        self,
        channel: Channel,
        method: bytes,
        target: bytes,
        version: bytes,
        fields: Fields,
        index: Index,
        body: BodyFraming,
    ) -> None:
        self.channel: Channel | None = channel  # type: ignore[assignment]
        self.transport = channel.transport
        self.method = method
        self.uri = target
        self.path = target.partition(b"?")[0]
        self.clientproto = b"HTTP/1.1" if version == b"1.1" else b"HTTP/1.0"
        self.fields = fields
        self.index = index
        self.body = body
        self.body_done = body is framing.NO_BODY
        self.close_after = framing.wants_close(version, index)
        self.refusal: FramingError | None = None
        self.repeat: RepeatedHead | None = None
        self.producer = None
        self.code = 200
        self.status = 0
        self.finished = self.startedWriting = self.chunked = 0
        self.sent_body_bytes = self.sent_pieces = self._leading_zeros = 0
        self.head_written = self._corked = self._came_whole = self._disconnected = False
        self._suppress_body = self._close_delimited = self._continue_owed = False
        self._receiver: BodyReceiver | None = None
        self._early: list[bytes] = []
        self._early_error: FramingError | None = None
        self._early_trailers: Fields = _NO_FIELDS
        self._pending: list[bytes] = []
        self.copy: bytearray | None = None
        self.copies_written = False

    # The parts that twisted.web's Request builds in its constructor, built when first used. (A ``__getattr__`` would be
    # shorter, and make every attribute of a request several times dearer to read: CPython then looks each one up.)

    @cached_property
    def requestHeaders(self) -> Headers:  # type: ignore[override]
        """The header fields as twisted.web has them."""
        headers = Headers()
        for name, value in self.fields:
            headers.addRawHeader(name, value)
        return headers

    @cached_property
    def responseHeaders(self) -> Headers:  # type: ignore[override]
        """What a resource answers with, if it does not begin with :meth:`write_head`."""
        return Headers()

    @cached_property
    def client(self) -> IAddress:
        """The other end of the connection."""
        return self._open_channel().getPeer()

    @cached_property
    def host(self) -> IAddress:
        """Our end of the connection."""
        return self._open_channel().getHost()

    @cached_property
    def cookies(self) -> list[bytes]:  # type: ignore[override]
        """Cookies that are set by the answer."""
        return []

    @cached_property
    def received_cookies(self) -> dict[bytes, bytes]:  # type: ignore[override]
        """Not parsed: a proxy has no use for them."""
        return {}

    @cached_property
    def notifications(self) -> list[Deferred[None]]:  # type: ignore[override]
        """Who waits for the end."""
        return []

    @cached_property
    def _adapterCache(self) -> dict[Any, Any]:  # type: ignore[override]
        return {}

    def _open_channel(self) -> Channel:
        if self.channel is None:
            raise AttributeError("the connection is gone, and its addresses with it")
        return self.channel

    def __repr__(self) -> str:
        """Names the method only: a target may hold a key."""
        return f"<Request {self.method!r} at {id(self):#x}>"

    # -- from the channel ------------------------------------------------------------------------------------

    def process(self) -> None:
        """Find the resource for the path and render it. Called once, when the head is in."""
        channel = self.channel
        if channel is None:
            return
        self.site = channel.site  # type: ignore[assignment]
        self.prepath = []
        segments = self.path[1:].split(b"/")
        self.postpath = [unquote_to_bytes(s) for s in segments] if b"%" in self.path else segments
        self._continue_owed = (
            b"expect" in self.index
            and not self.body_done
            and self.clientproto == b"HTTP/1.1"
            and b"100-continue" in f.tokens(self.index.get(b"expect"))
        )
        try:
            resource = getChildForRequest(channel.site.resource, self)
            self.render(resource)
        except Exception:  # noqa: BLE001 - whatever a resource raises is one request's end
            self.processingFailed(Failure())

    def render(self, resrc: IResource) -> None:
        """Render ``resrc``; what it returns is the whole body, unless it is ``NOT_DONE_YET``."""
        body = resrc.render(self)
        if body is NOT_DONE_YET:
            return
        self.setHeader(b"content-length", b"%d" % len(body))
        self.write(body)
        self.finish()

    def processingFailed(self, reason: Failure) -> Failure:
        """A resource raised: log it, answer 500 if nothing was answered yet, else cut the connection."""
        self._log.failure("a resource failed", failure=reason)
        if self.head_written:
            self.abort()
        else:
            self.setResponseCode(500)
            self.setHeader(b"content-length", b"0")
            self.write(b"")
            self.finish()
        return reason

    def refuse(self, error: FramingError) -> None:
        """Answer a head that could not be accepted; nothing else of it is used. The connection closes afterwards."""
        text = f"{error}\n".encode()
        self.setResponseCode(error.status)
        self.setHeader(b"content-type", b"text/plain; charset=utf-8")
        self.setHeader(b"content-length", b"%d" % len(text))
        self.write(text)
        self.finish()

    def body_is_here(self, data: bytes) -> None:
        """The whole body came with the head."""
        self._early.append(data)
        self.body_done = self._came_whole = True

    def whole_body(self) -> bytes | None:
        """The body, if all of it came with the head; then it is handed out here, and once."""
        if self._came_whole:
            self._came_whole = False
            return self._early.pop()
        return None

    def body_arrived(self, data: bytes) -> None:
        """The parser has a piece of the body."""
        if self._receiver is None:
            self._early.append(data)
            if self.channel is not None:
                self.channel.hold_reading()
        else:
            self._receiver.body_received(data)

    def body_ended(self, trailers: Fields) -> None:
        """The parser has seen the end of the body."""
        self.body_done = True
        if self._receiver is None:
            self._early_trailers = trailers
        else:
            self._receiver.body_complete(trailers)

    def body_failed(self, error: FramingError) -> None:
        """What the parser got for a body is none; the connection cannot go on after this request."""
        self.close_after = True
        if self._receiver is None:
            self._early_error = error
        else:
            self._receiver.body_broken(error)

    def connectionLost(self, reason: Failure) -> None:
        """The connection ended before the answer did."""
        self._disconnected = True
        self.channel = None
        for waiting in self.__dict__.pop("notifications", ()):
            waiting.errback(reason)

    def not_taken(self) -> None:
        """The caller has long taken nothing of what waits for it; the connection is about to be cut. For subclasses."""

    def can_probe(self) -> bool:
        """Whether something can be sent that changes no answer, to see if the caller is still there."""
        if self.clientproto != b"HTTP/1.1" or self.finished:
            return False
        return not self.head_written or bool(self.chunked)

    def probe(self) -> None:
        """Send something that changes no answer.

        Before the head that is an interim answer (RFC 9110 15.2: "A client MUST be able to parse one or more 1xx
        responses received prior to a final response, even if the client does not expect one"). Between two chunks it
        is the leading zero of the next one's size (RFC 9112 7.1: ``chunk-size = 1*HEXDIG``).
        """
        if self.channel is None or self._pending or not self.can_probe():
            return
        if not self.head_written:
            self.channel.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        elif self._leading_zeros < MAX_LEADING_ZEROS:
            self._leading_zeros += 1
            self.channel.write(b"0")

    # -- the body of the request -----------------------------------------------------------------------------

    def receive_body(self, receiver: BodyReceiver) -> None:
        """Give the body to ``receiver``, beginning with what has arrived; may be called again to change it.

        This is also when a caller that waits for ``100 Continue`` gets it (RFC 9110 section 10.1.1).
        """
        if self._continue_owed and self.channel is not None:
            self._continue_owed = False
            if not self._early and not self.head_written:
                self.channel.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._receiver = receiver
        early, self._early = self._early, []
        for data in early:
            receiver.body_received(data)
        if self._early_error is not None:
            receiver.body_broken(self._early_error)
        elif self.body_done:
            receiver.body_complete(self._early_trailers)
        elif self.channel is not None:
            self.channel.resume_reading()

    def pause_body(self) -> None:
        """Stop reading the body: whoever takes it cannot take more now."""
        if self.channel is not None and not self.body_done:
            self.channel.hold_reading()

    def resume_body(self) -> None:
        """Go on reading the body."""
        if self.channel is not None:
            self.channel.resume_reading()

    # -- the answer ------------------------------------------------------------------------------------------

    def write_interim(self, status: int, reason: bytes, fields: Fields) -> None:
        """Pass on an interim (1xx) answer; HTTP/1.0 callers do not get it (RFC 9110 section 15.2)."""
        if self.channel is None or self.head_written or self.clientproto != b"HTTP/1.1":
            return
        self.channel.write(f.serialize(b"HTTP/1.1 %d %b" % (status, reason), fields))

    def write_head(self, status: int, reason: bytes, fields: Fields) -> None:
        """Begin the answer with a final status and these end-to-end fields, in this order; the list is taken over.

        The framing is added here: a ``Content-Length`` among the fields is kept and says how the body ends; without
        one the body is chunked for HTTP/1.1 and ends with the connection for HTTP/1.0 (RFC 9112 section 6.3).
        """
        self.head_written = True
        self.startedWriting = 1
        self.status = self.code = status
        if self.channel is None:
            return
        sized = False
        for name, _ in fields:
            if len(name) == 14 and name.lower() == b"content-length":
                sized = True
                break
        self._suppress_body = self.method == b"HEAD" or status in _BODYLESS
        if status == 204:
            # RFC 9110 8.6: "A server MUST NOT send a Content-Length header field in any response with a status
            # code of 1xx (Informational) or 204 (No Content)."
            fields = [pair for pair in fields if pair[0].lower() != b"content-length"]
        elif not sized and status != 304:
            if self.clientproto == b"HTTP/1.1":
                fields.append((b"Transfer-Encoding", b"chunked"))
                self.chunked = not self._suppress_body
            elif not self._suppress_body:
                self.close_after = self._close_delimited = True
        channel = self.channel
        if channel.site.draining:
            self.close_after = True
        if self._continue_owed:
            # The caller may or may not send the body it announced; what follows cannot be told apart.
            self.close_after = True
        if self.close_after:
            fields.append((b"Connection", b"close"))
        self._pending.append(f.serialize(b"HTTP/1.1 %d %b" % (status, reason), fields))
        if not self._corked:
            self.flush()

    def cork(self) -> None:
        """Gather what is written until :meth:`flush`: one system call for all that one read of the upstream gave."""
        self._corked = True

    def flush(self) -> None:
        """Send what was gathered."""
        pending = self._pending
        if pending:
            data = pending[0] if len(pending) == 1 else b"".join(pending)
            pending.clear()
            channel = self.channel
            if channel is not None:
                channel.write(data)
        copy = self.copy
        if copy is not None and (len(copy) >= self.copy_enough or self._disconnected):
            look_at_copy = self.look_at_copy
            if look_at_copy is not None:
                look_at_copy()

    def write(self, data: bytes) -> None:
        """Write a piece of the body; the first write begins the answer with ``responseHeaders`` if nothing has."""
        if self.copies_written:
            copy = self.copy
            if copy is not None:
                copy += data
        if self._disconnected or self.finished:
            return
        if not self.head_written:
            self._write_own_head()
        if not data or self._suppress_body:
            return
        self.sent_pieces += 1
        self.sent_body_bytes += len(data)
        if self.chunked:
            self._leading_zeros = 0
            self._pending.append(b"%x\r\n%b\r\n" % (len(data), data))
        else:
            self._pending.append(data)
        if not self._corked:
            self.flush()

    def _write_own_head(self) -> None:
        fields: Fields = [(name, value) for name, values in self.responseHeaders.getAllRawHeaders() for value in values]
        if not self.responseHeaders.hasHeader(b"date"):
            # RFC 9110 6.6.1: an origin server with a clock sends Date; for our own answers we are the origin.
            fields.insert(0, (b"Date", datetimeToString()))
        fields.extend((b"Set-Cookie", cookie) for cookie in self.cookies)
        self.write_head(self.code, self.code_message, fields)

    def finish(self) -> None:
        """End the answer properly; without a body begun, it is begun and ended."""
        self.finish_with([])

    def finish_with(self, trailers: Fields) -> None:
        """End the answer properly, with ``trailers`` where the body is chunked (RFC 9112 section 7.1.2)."""
        if self._disconnected or self.finished:
            return
        if not self.head_written:
            if not self.responseHeaders.hasHeader(b"content-length") and self.code not in _BODYLESS:
                self.setHeader(b"content-length", b"0")
            self.write(b"")
        if self.chunked:
            self._pending.append(f.serialize_trailers(trailers))
        self._corked = False
        self.flush()
        self.finished = 1
        if self.body_done:
            self._receiver = None
        channel, self.channel = self.channel, None
        self.completed()
        for waiting in self.__dict__.pop("notifications", ()):
            waiting.callback(None)
        if channel is not None:
            channel.answered(self)

    def completed(self) -> None:
        """The answer has been written to its end; the next request of the connection has not begun. For subclasses."""

    def abort(self) -> None:
        """End the answer visibly unfinished: the connection closes without the last chunk or the missing bytes.

        What was written before is still sent. A caller can tell such an end from a complete answer, unless its
        body was to end with the connection; then the connection is reset, which is the only sign left.
        """
        channel = self.channel
        if channel is None or self.finished:
            return
        self._corked = False
        if self._leading_zeros:
            # A zero stands there alone, and some readers take a zero and the end for the last chunk. Announce a byte.
            self._pending.append(b"1\r\n")
        self.flush()
        self.finished = 1
        if self._close_delimited:
            channel.abortConnection()
        else:
            channel.loseConnection()

    def registerProducer(self, producer: IPushProducer, streaming: bool) -> None:
        """Let ``producer`` be paused while the caller does not read; push producers only."""
        if not streaming:
            raise ValueError("only push producers can feed an answer here")
        self.producer = producer
        if self.channel is not None:
            self.channel.registerProducer(producer, True)

    def unregisterProducer(self) -> None:
        """``producer`` has nothing more to write."""
        self.producer = None
        if self.channel is not None:
            self.channel.unregisterProducer()

    def getClientAddress(self) -> IAddress:
        """The address of the other end of the connection."""
        return self.client
