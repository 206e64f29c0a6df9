"""A connection from a caller, read: llhttp's callbacks, and what is judged of a head before anything is done with it.

The half of :class:`~llmproxy.wire.channel.Channel` that takes bytes and makes requests of them; the other half answers
them. Two short cuts are taken here, and both are no second opinion: a head that is the same as the one before is not
parsed again (wire/repeat.py), and of a body whose length is known the rest is only counted.

The rule: a head is judged as soon as it is in. One that is refused is a request too, with its turn and its answer, and
nothing behind it on the connection is ever a request.
"""

from __future__ import annotations

from collections import deque
from math import inf
from typing import TYPE_CHECKING, Final

import httptools
from twisted.internet.protocol import Protocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from llmproxy.core import fields as f
from llmproxy.core import framing
from llmproxy.core.fields import Fields, Index
from llmproxy.core.framing import FramingError
from llmproxy.wire.repeat import RepeatedHead, learn
from llmproxy.wire.request import Request

if TYPE_CHECKING:
    from llmproxy.wire.server import Site

MAX_PIPELINED: Final = 256
"""How many requests may wait on one connection behind the one that is being answered."""

MAX_AT_ONCE: Final = 32
"""How many requests in line are begun in one turn of the reactor, if each is answered on the spot: others wait too."""

MAX_EMPTY_BYTES: Final = 128 * 1024
"""How much may come within a body that is no body: trailers and chunk extensions."""

MAX_LEARNT: Final = 16
"""How many heads one connection learns. A caller whose heads are never the same shall not pay for it for ever."""

# What the deadline of a channel is for.
NOTHING: Final = "nothing"
HEAD: Final = "a head"
BODY: Final = "more of a body"
NEXT: Final = "a next request"
CLOSE: Final = "the end"


class RequestReader(Protocol):
    """What a connection reads.

    ``_current`` is the request being answered, ``_arriving`` the one whose body the parser is in; they differ while a
    pipelined request arrives. Those in ``_waiting`` have not begun.

    :ivar surplus: why nothing is served here but what is always served, where the connection is one too many.
    """

    # More attributes than CPython shares the keys of: without slots each connection would pay for its own dictionary.
    __slots__ = (
        "_arriving",
        "_begun",
        "_body_bytes",
        "_body_left_bytes",
        "_current",
        "_deaf",
        "_empty_bytes",
        "_ending",
        "_fields",
        "_half_closed",
        "_head_begun",
        "_head_bytes",
        "_in_head",
        "_index",
        "_learning",
        "_method",
        "_parser",
        "_primed",
        "_reading_held",
        "_refusal",
        "_refused",
        "_repeat",
        "_served",
        "_target",
        "_throttled",
        "_trailers",
        "_upgrade",
        "_waiting",
        "_waits_for",
        "deadline",
        "site",
        "surplus",
    )

    _log = Logger()

    def __init__(self, site: Site) -> None:
        self.site = site
        self.surplus: FramingError | None = None
        self.deadline = inf
        self._waits_for = NOTHING
        self._parser = httptools.HttpRequestParser(self)
        self._current: Request | None = None
        self._arriving: Request | None = None
        self._begun = 0
        self._waiting: deque[Request] = deque()
        self._method = b""
        self._target = b""
        self._fields: Fields = []
        self._index: Index = {}
        self._trailers: Fields = []
        self._in_head = True
        self._head_begun = False
        self._head_bytes = 0
        self._body_bytes = 0
        self._body_left_bytes = 0
        self._empty_bytes = 0
        self._served = 0
        self._repeat: RepeatedHead | None = None
        self._learning = MAX_LEARNT if site.repeats else 0
        self._ending = False
        self._upgrade = False
        self._primed = False
        self._reading_held = False
        self._throttled = False
        self._deaf = False
        self._half_closed = False
        self._refusal: FramingError | None = None
        self._refused: tuple[bytes, bytes, Fields, Index] | None = None

    # -- what the other half does: see wire/channel.py ---------------------------------------------------------

    def own_authorities(self) -> set[bytes]:
        """The authorities of this server, as far as it can know."""
        raise NotImplementedError

    def hold_reading(self) -> None:
        """Read nothing more until told to."""
        raise NotImplementedError

    def _wait(self, for_what: str, timeout_s: float) -> None:
        raise NotImplementedError

    def _wait_no_more(self) -> None:
        raise NotImplementedError

    def _next(self) -> None:
        raise NotImplementedError

    def _go_on_later(self) -> None:
        raise NotImplementedError

    def _close_soon(self, linger: bool) -> None:
        raise NotImplementedError

    # -- bytes -------------------------------------------------------------------------------------------------

    def dataReceived(self, data: bytes) -> None:
        """Parse what came; the callbacks below do the rest."""
        if self._body_left_bytes and not self._deaf:
            try:
                data = self._count_body(data)
            except Exception as error:  # noqa: BLE001 - as the parser has it: the request ends, and is told why
                self._refusal = self._fault(error)
                self._refuse()
        if self._deaf or not data:
            return
        fresh = False
        served = self._served
        self._begun = 0
        if self._in_head:
            fresh = self._is_free() and not self._head_begun
            repeat = self._repeat
            if fresh and repeat is not None and self._is_repeated(data, repeat):
                return
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._feed_after_upgrade(data, upgrade)
        except httptools.HttpParserError as error:
            if self._ending or self._is_last():
                self._deaf = True
            elif self._refusal is None:
                self._refusal = self._refusal_for(error)
        if self._ending:
            return
        if self._in_head:
            if self._head_begun:
                self._check_head()
        elif self._arriving is not None:
            self._check_body(len(data))
        if self._refusal is not None:
            self._refuse()
        elif self._waiting:
            self.hold_reading()
        elif fresh and self._learning and served and self._served == served:
            self._learn(data)  # the first and only request of this read
        if self._waiting and self._current is None:
            self._go_on_later()

    def _count_body(self, data: bytes) -> bytes:
        """Take what ``data`` holds of a body of known length; returns what is behind it."""
        request = self._arriving
        left = self._body_left_bytes
        if request is None:  # never: there is a rest of a body only while it arrives
            return b""
        if len(data) < left:
            self._body_left_bytes = left - len(data)
            request.body_arrived(data)
            if not self._reading_held and not self._ending:
                self._wait(BODY, self.site.limits.body_idle_timeout_s)
            return b""
        self._body_left_bytes = 0
        self._parser = httptools.HttpRequestParser(self)  # the one before it still waits for the body
        behind = data[left:]
        request.body_arrived(data[:left] if behind else data)
        self.on_message_complete()
        if self._is_last():
            self._deaf = True
        return behind

    def _is_repeated(self, data: bytes, repeat: RepeatedHead) -> bool:
        """Take ``data`` for the same request as the last one, with another body, if it is that: see wire/repeat.py."""
        found = repeat.match(data)
        if found is None:
            return False
        at, digits = found
        site = self.site
        body = framing.NO_BODY
        if digits:
            body = framing.BodyFraming(framing.LENGTH, len(data) - at)
            if body.length_bytes > site.limits.max_body_bytes > 0:
                return False
        fields, index = repeat.fields(digits)
        request = site.requestFactory(self, repeat.method, repeat.target, b"1.1", fields, index, body)
        request.repeat = repeat
        if digits:
            request.body_is_here(data[at:])
        self._waits_for = NOTHING
        self.deadline = inf
        self._current = request
        request.process()
        return True

    def _learn(self, data: bytes) -> None:
        """``data`` began a request: if it holds all of it, keep its head for the next one."""
        request = self._current
        if request is None or self._arriving is not None or self._waiting or request.close_after or self._half_closed:
            return
        if len(data) - data.find(b"\r\n\r\n") - 4 != request.body.length_bytes:
            return
        self._repeat = learn(data, request.method, request.uri, request.fields, request.index)
        if self._repeat is not None:
            self._learning -= 1

    def _is_last(self) -> bool:
        """Whether what comes now is behind a request with which the connection ends, and so is nothing.

        RFC 9112 9.6: "A server that receives a "close" connection option MUST initiate closure of the connection after
        it sends the final response to the request that contained the "close" connection option. [...] The server MUST
        NOT process any further requests received on that connection."
        """
        last = self._waiting[-1] if self._waiting else self._current
        return last is not None and last.close_after and self._arriving is None and not self._head_begun

    def _check_head(self) -> None:
        """A part of a head is here, and more must come: not too much, and not too late."""
        limits = self.site.limits
        if self._refusal is None and self._head_bytes > limits.max_header_bytes:
            self._refusal = _too_large(self._fields, self._target, limits.max_header_bytes)
        elif self._refusal is None and len(self._fields) > limits.max_headers:
            self._refusal = _too_many(limits.max_headers)
        if self._waits_for != HEAD and not self._reading_held:
            self._wait(HEAD, limits.header_timeout_s)

    def _check_body(self, arrived_bytes: int) -> None:
        """A part of a body is here, and more must come.

        Of a body whose length is known the rest is only counted: a parser would copy each piece once more.
        """
        self._empty_bytes += arrived_bytes
        request = self._arriving
        if request is not None and request.body.kind == framing.LENGTH and not self._upgrade:
            self._body_left_bytes = request.body.length_bytes - self._body_bytes
        if self._refusal is None and self._empty_bytes > MAX_EMPTY_BYTES:
            self._refusal = FramingError(431, "the trailers or chunk extensions are too large")
        if not self._reading_held:
            self._wait(BODY, self.site.limits.body_idle_timeout_s)

    def forget_repeated(self) -> None:
        """Parse and judge the next head, whatever it is."""
        self._repeat = None

    # -- parsing ---------------------------------------------------------------------------------------------

    def _feed_after_upgrade(self, data: bytes, upgrade: httptools.HttpParserUpgrade) -> None:
        """llhttp has stopped at the head of a request with ``Connection: upgrade``: go on behind it.

        We are not changing protocols: a server MAY ignore Upgrade (RFC 9110 7.8), and then the body, if any, follows
        as announced.
        """
        while True:
            data = data[upgrade.args[0] :]
            self._after_upgrade()
            if self._is_last():
                self._deaf = True
            if not data or self._refusal is not None or self._deaf:
                return
            try:
                self._parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as another:
                upgrade = another
            except httptools.HttpParserError as error:
                if self._ending or self._is_last():
                    self._deaf = True
                else:
                    self._refusal = self._refusal or self._refusal_for(error)
                return

    def _after_upgrade(self) -> None:
        self._upgrade = False
        self._parser = httptools.HttpRequestParser(self)
        request = self._arriving
        if request is None:
            return
        if request.body_done:
            self._arriving = None
            self._in_head = True
            return
        # The new parser is told how the body ends with a head of our own; its callbacks are not ours to hear.
        self._primed = True
        head = b"POST / HTTP/1.1\r\n" + (b"Connection: close\r\n" if request.close_after else b"")
        if request.body.kind == framing.CHUNKED:
            self._parser.feed_data(head + b"Transfer-Encoding: chunked\r\n\r\n")
        else:
            self._parser.feed_data(head + b"Content-Length: %d\r\n\r\n" % request.body.length_bytes)
        self._primed = False
        self._in_head = False

    def on_message_begin(self) -> None:
        """llhttp: the first byte of a request."""
        if self._primed:
            return
        self._method = b""
        self._target = b""
        self._fields = []
        self._index = {}
        self._trailers = []
        self._in_head = True
        self._head_begun = True

    def on_url(self, target: bytes) -> None:
        """llhttp: a piece of the request target."""
        if not self._primed:
            self._target += target

    def on_header(self, name: bytes, value: bytes) -> None:
        """llhttp: a header field, or after the head a trailer field."""
        if self._primed:
            return
        if self._in_head:
            self._fields.append((name, value))
            lower = name.lower()
            if lower in self._index:
                f.add_to_index(self._index, name, value)
            else:  # as add_to_index does; this is called for every field of every message
                self._index[lower] = value.strip(b" \t")
        else:
            self._trailers.append((name, value))

    def on_headers_complete(self) -> None:
        """llhttp: the empty line after the header fields."""
        if self._primed or self._refusal is not None or self._deaf:
            return
        parser = self._parser
        method = self._method = parser.get_method()
        version = parser.get_http_version().encode("ascii")
        index = self._index
        site = self.site
        limits = site.limits
        self._in_head = self._head_begun = False
        head_bytes = self._head_bytes
        self._head_bytes = self._empty_bytes = self._body_bytes = 0
        self._waits_for = NOTHING
        self.deadline = inf
        try:
            if head_bytes > limits.max_header_bytes:  # of all that was read; that may be more than the head
                head_bytes = f.size_bytes(self._fields) + len(self._target) + 16
                if head_bytes > limits.max_header_bytes:
                    raise _too_large(self._fields, self._target, limits.max_header_bytes)
            if len(self._fields) > limits.max_headers:
                raise _too_many(limits.max_headers)
            if len(self._waiting) >= MAX_PIPELINED:
                raise FramingError(400, "too many requests were sent before the first was answered")
            if self._target[:1] != b"/":
                self._target = framing.origin_form(method, self._target, index, self.own_authorities)
            body = framing.judge_request(method, self._target, version, index)
            if self.surplus is not None and self._target.partition(b"?")[0] not in site.always_served:
                raise self.surplus
            if limits.max_body_bytes and body.length_bytes > limits.max_body_bytes:
                raise _body_too_large(limits.max_body_bytes)
        except FramingError as error:
            self._refusal = error
            self._refused = self._method, self._target, self._fields, index  # llhttp may go on to the next one
            return
        if body.kind == framing.LENGTH and body.length_bytes == 0:
            body = framing.NO_BODY
        request = site.requestFactory(self, method, self._target, version, self._fields, index, body)
        if self.surplus is not None:
            request.close_after = True
        self._arriving = request
        self._upgrade = parser.should_upgrade()
        if self._is_free():
            self._begin(request)
        else:
            self._waiting.append(request)

    def on_body(self, data: bytes) -> None:
        """llhttp: a piece of the body, without framing."""
        self._empty_bytes = 0
        request = self._arriving
        if request is None or self._deaf or self._refusal is not None:
            return
        self._body_bytes += len(data)
        if request.body is framing.CHUNKED_BODY:
            most = self.site.limits.max_body_bytes
            if most and self._body_bytes > most:
                self._refusal = _body_too_large(most)
                return
        request.body_arrived(data)

    def on_message_complete(self) -> None:
        """llhttp: the end of the message."""
        request = self._arriving
        if request is None or self._upgrade or self._deaf or self._refusal is not None:
            return
        if self._waits_for == BODY:
            self._wait_no_more()
        if not request.body_done:
            request.body_ended(self._trailers)  # if that raises, it is this request that has failed
        self._in_head = True
        self._arriving = None
        if request.finished and self._current is None:
            self._next()

    def _is_free(self) -> bool:
        """Whether a request would be the next to be answered, by a caller that takes its answers."""
        free = self._current is None and not self._waiting and not self._throttled
        return free and self._begun < MAX_AT_ONCE

    def _begin(self, request: Request) -> None:
        self._current = request
        self._begun += 1
        if request.refusal is not None:
            request.refuse(request.refusal)
        else:
            request.process()

    def _refusal_for(self, error: httptools.HttpParserError) -> FramingError:
        if isinstance(error, httptools.HttpParserInvalidMethodError):
            return FramingError(501, "this method is not known here")
        if isinstance(error, httptools.HttpParserCallbackError):
            return self._fault(error.__context__ or error)  # llhttp's own error says nothing of what was raised
        return FramingError(400, "the request is not well-formed HTTP/1.1")

    def _fault(self, error: BaseException) -> FramingError:
        """A fault of ours while a request is read."""
        self._log.failure("a request failed while it was read", failure=Failure(error))
        return FramingError(500, "the proxy failed while reading the request")

    def _refuse(self) -> None:
        """Nothing more on this connection is a request: end what is under way, then close."""
        error = self._refusal
        self._wait_no_more()
        self._deaf = True
        if error is None:
            return
        arriving = self._arriving
        if arriving is not None and not arriving.finished:
            arriving.body_failed(error)  # at once, or when its turn comes
        elif arriving is not None:
            self._close_soon(linger=True)  # what broke is the body of a request that has its answer
        else:
            # A head that is refused is a request too: it has its turn, its answer and its event.
            method, target, fields, index = self._refused or (self._method, self._target, self._fields, self._index)
            request = self.site.requestFactory(self, method, target or b"/", b"1.1", fields, index, framing.NO_BODY)
            request.close_after = True
            request.refusal = error
            if self._current is None and not self._waiting:
                self._begin(request)
            else:
                self._waiting.append(request)


def _too_large(fields: Fields, target: bytes, most_bytes: int) -> FramingError:
    allowed = f"a head may have {most_bytes} bytes (server.max_header_bytes)"
    if not fields or len(target) > most_bytes // 2:
        return FramingError(414, f"the request target is too long: {allowed}")
    return FramingError(431, allowed)


def _too_many(most: int) -> FramingError:
    return FramingError(431, f"a request may have {most} header fields (server.max_headers)")


def _body_too_large(most_bytes: int) -> FramingError:
    return FramingError(413, f"the body of a request may have {most_bytes} bytes")
