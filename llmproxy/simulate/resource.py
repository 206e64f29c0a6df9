"""The simulator's root resource: takes a request in, finds its endpoint, hands the answer to a `Performance`.

One request goes this way: wishes from its field; its body, received whole (and hashed); `routes.find`; the
endpoint's `Reply` or `Refusal`; `steps`; `Performance`. The rule kept here: whatever the endpoint does, the
request is answered, recorded, and counted once.
"""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Final
from urllib.parse import parse_qs

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.web.http import datetimeToString
from twisted.web.resource import IResource, Resource
from twisted.web.server import NOT_DONE_YET
from zope.interface import implementer

from llmproxy.core.fields import Fields
from llmproxy.core.framing import FramingError
from llmproxy.simulate import steps
from llmproxy.simulate.answer import dumps
from llmproxy.simulate.ask import LARGEST_BODY_BYTES, Ask, House, Refusal, Reply
from llmproxy.simulate.dialects import Gemini, guess
from llmproxy.simulate.performance import Performance, reason_of
from llmproxy.simulate.record import KEPT, Noted, Record
from llmproxy.simulate.routes import find
from llmproxy.simulate.wishes import Wishes
from llmproxy.wire.request import Request

_OWN: Final = "/_simulator/"


class _Body:
    """Receives a request's body: hashes and counts all of it, keeps the beginning."""

    def __init__(self, noted: Noted, received: Callable[[Noted], None]) -> None:
        self._noted = noted
        self._received = received
        self._hash = hashlib.sha256()
        self._kept: list[bytes] = []
        self._kept_bytes = 0
        self.size_bytes = 0
        self.answer: Callable[[bytes, int], None] | None = None

    def body_received(self, data: bytes) -> None:
        """The next piece."""
        self._hash.update(data)
        self.size_bytes += len(data)
        self._noted["body_bytes"] = self.size_bytes
        room = LARGEST_BODY_BYTES - self._kept_bytes
        if room > 0:
            self._kept.append(data[:room])
            self._kept_bytes += min(len(data), room)

    def body_broken(self, error: FramingError) -> None:
        """The rest will not come: the connection is closed, and nothing is answered."""

    def body_complete(self, trailers: Fields) -> None:
        """The body is whole."""
        self._noted["body_sha256"] = self._hash.hexdigest()
        self._noted["body_complete"] = True
        if self.answer is not None:
            self.answer(b"".join(self._kept), self.size_bytes)
        self._received(self._noted)


@implementer(IResource)
class SimulatorRoot(Resource):
    """All four providers under one root, to be served by `llmproxy.wire.server.Site`.

    :param clock: paces the answers, and gives their time stamps.
    :param keep: how many requests the record remembers, at most a million.
    """

    isLeaf = True
    _log = Logger()

    def __init__(self, clock: IReactorTime, keep: int = KEPT) -> None:
        Resource.__init__(self)
        self._clock = clock
        self._house = House()
        self._record = Record(keep)

    def render(self, request: Request) -> int:
        """Answer any method on any path."""
        channel = request.channel
        if request.path.startswith(_OWN.encode()):
            self._show(request)
            return NOT_DONE_YET
        number = self._record.connection_number(channel)
        noted = self._record.begin(request.method, request.uri, request.clientproto, request.fields, number)
        performance = Performance(request, self._clock, lambda gone: self._record.end(noted, gone=gone))
        ask = self._ask(request, b"", 0)
        try:
            ask.read_wishes()
        except Refusal:
            pass  # said when the body is in, as every other answer
        body = _Body(noted, self._record.received)
        if ask.wishes.early:
            self._answer(performance, ask, noted)
            if not request.body_done:
                request.receive_body(body)
            return NOT_DONE_YET
        body.answer = lambda data, size: self._answer(performance, self._ask(request, data, size), noted)
        request.receive_body(body)
        return NOT_DONE_YET

    def _ask(self, request: Request, body: bytes, size_bytes: int) -> Ask:
        secure = request.channel is not None and request.channel.isSecure()
        return Ask(
            method=request.method,
            target=request.uri,
            fields=request.fields,
            body=body,
            body_bytes=size_bytes,
            now_s=self._clock.seconds(),
            secure=secure,
        )

    def _answer(self, performance: Performance, ask: Ask, noted: Noted) -> None:
        reply, head = self._reply(ask)
        wishes = ask.wishes
        if wishes.crlf and not reply.content_type.startswith(b"text/event-stream"):
            wishes = replace(wishes, crlf=False)
        status = reply.status
        if wishes.status is not None and status == 200:
            status = wishes.status
        served = reply.served if status < 300 else None
        if served is not None:
            served.stream = reply.events is not None
        try:
            coded = steps.whole(reply.body, wishes.encoding) if reply.events is None else b""
            made = (
                steps.steps_of_body(coded, wishes, served)
                if reply.events is None
                else steps.steps_of_events(reply.events, wishes, ask.dialect.error_event, served)
            )
        except steps.CodingUnavailable as missing:
            status, wishes, served = 501, Wishes(), None
            reply = Reply(body=dumps({"error": {"message": str(missing), "type": "simulator", "code": None}}))
            coded = reply.body
            made = steps.steps_of_body(coded, wishes)
        fields: Fields = [
            (b"Date", datetimeToString()),
            (b"Content-Type", reply.content_type),
            *head,
            *reply.fields,
        ]
        if wishes.encoding is not None:
            fields.append((b"Content-Encoding", wishes.encoding.encode()))
        if 300 <= status < 400:
            fields.append((b"Location", b"https://simulator.invalid/moved"))
        if wishes.retry_after_s is not None and not isinstance(ask.dialect, Gemini):
            fields.append((b"Retry-After", f"{wishes.retry_after_s:g}".encode()))
        if reply.events is None:
            fields.append((b"Content-Length", b"%d" % len(coded)))
        noted["status"] = status
        noted.served = served
        performance.perform(status, fields, made, wishes, streamed=reply.events is not None, served=served)

    def _reply(self, ask: Ask) -> tuple[Reply, Fields]:
        """What the endpoint answers, or its refusal in the provider's shape; and the provider's fields."""
        ask.dialect = guess(ask)
        try:
            ask.read_wishes()
            endpoint = find(ask)
            if ask.wishes.status is not None and ask.wishes.status >= 400:
                raise Refusal(ask.wishes.status, "")
            reply = endpoint(ask, self._house)
            return reply, ask.dialect.head(ask)
        except Refusal as refusal:
            return self._refused(ask, refusal)
        except (AttributeError, TypeError, ValueError, KeyError, IndexError):
            # The body is JSON, but a value deep in it is not of the kind the endpoint reads.
            self._log.failure("the simulator could not read a request")
            return self._refused(ask, Refusal(400, "A value in the body is not of the expected type."))

    def _refused(self, ask: Ask, refusal: Refusal) -> tuple[Reply, Fields]:
        head = ask.dialect.head(ask)
        return Reply(status=refusal.status, body=ask.dialect.error_body(refusal, ask, head)), head

    def _show(self, request: Request) -> None:
        """`/_simulator/...`: not recorded itself."""
        name, _, query = request.uri.decode("latin-1").removeprefix(_OWN).partition("?")
        numbers = {what: int(given[-1]) for what, given in parse_qs(query).items() if given[-1].isdecimal()}
        status, body = 200, b"{}"
        if name == "requests" and request.method == b"DELETE":
            self._record.forget()
        elif name == "requests" and request.method == b"PUT":
            self._record.keep(numbers.get("keep", KEPT))
        elif name == "requests":
            body = self._record.page(numbers.get("last"), numbers.get("after"))
        elif name == "connections":
            channel = request.channel
            open_now = 0 if channel is None else len(channel.site.channels)
            body = dumps({"open": open_now, "used": self._record.connections} | self._record.counts)
        else:
            status = 404
            body = dumps({"error": "known are /_simulator/requests and /_simulator/connections"})
        request.write_head(
            status,
            reason_of(status),
            [(b"Content-Type", b"application/json"), (b"Content-Length", b"%d" % len(body))],
        )
        request.write(body)
        request.finish()
