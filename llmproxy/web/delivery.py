"""How the body of an answer reaches the caller, and how a copy of it reaches the account of the call.

Three ways: it came whole with its head; it is JSON of a known, small length and waits for its end, so that the head
can carry its tokens; or it flows. The rules: what flows is written first and read afterwards; whatever reading does, it
is the account that breaks and not the answer; and of an answer that waited and broke off, the caller gets what it would
have had without the wait: the head, what came, and a cut.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from twisted.internet.interfaces import IProtocol
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss
from zope.interface import implementer

from llmproxy.accounting.account import Account
from llmproxy.accounting.token_fields import token_fields
from llmproxy.core import framing
from llmproxy.core.end import EndReason
from llmproxy.core.fields import Fields
from llmproxy.core.usage_removal import UsageRemoval
from llmproxy.upstream.relay import Relay
from llmproxy.web.usage_request import ADDED, TOO_LARGE
from llmproxy.wire.response import ENDED, Response

if TYPE_CHECKING:
    from llmproxy.web.exchange import Exchange

_log: Final = Logger()
_JSON: Final = b"application/json"


def deliver(exchange: Exchange, response: Response, fields: Fields) -> None:
    """Begin to answer with ``fields``, and see to it that the body follows."""
    account = _reader(exchange, response)
    if exchange.include_usage == TOO_LARGE and not exchange.streamed:
        exchange.include_usage = None
    removal = None
    if exchange.include_usage == ADDED and 200 <= response.code < 300 and not _is_json(response):
        # Whatever it is called: what is no event with a chunk in it passes as it is.
        if response.index.get(b"content-encoding", b"identity").lower() != b"identity":
            exchange.include_usage = "coded_answer"
        else:
            removal = UsageRemoval()
            fields = [pair for pair in fields if pair[0].lower() != b"content-length"]
    pieces = response.whole_body()
    if pieces is not None:
        _at_once(exchange, pieces, fields, account, removal)
    elif account is not None and _waits(exchange, response):
        response.deliverBody(Waiting(exchange, account, fields))
    else:
        exchange.write_head(fields)
        response.deliverBody(_relay(exchange, account, removal))


def _reader(exchange: Exchange, response: Response) -> Account | None:
    """The account that is to read the body; None where nothing is to be read."""
    account = exchange.account
    if account is None or exchange.request.method == b"HEAD":
        return None
    try:
        return account if account.answered(response.code, response.index) else None
    except Exception:  # noqa: BLE001 - whatever it is, the answer goes on
        _broke(exchange, account)
        return None


def _waits(exchange: Exchange, response: Response) -> bool:
    """Whether this is a JSON answer that is held until its end."""
    length = response.body.length_bytes if response.body.kind == framing.LENGTH else None
    return length is not None and length <= _held_at_most(exchange) and _is_json(response)


def _held_at_most(exchange: Exchange) -> int:
    return exchange.route.accounting.hold_json_bytes if exchange.route is not None else 0


def _is_json(response: Response) -> bool:
    content_type = response.index.get(b"content-type")
    return content_type is not None and content_type.lower().startswith(_JSON)


def _at_once(
    exchange: Exchange, pieces: list[bytes], fields: Fields, account: Account | None, removal: UsageRemoval | None
) -> None:
    """The body is here already, all of it."""
    if account is not None:
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        _read(exchange, account, body)
        if not exchange.streamed and len(body) <= _held_at_most(exchange):
            fields += _told(exchange)
    exchange.write_head(fields)
    if removal is not None:
        pieces = _without_usage(removal, pieces)
    write = exchange.request.write
    for data in pieces:
        write(data)
    exchange.body_ended(ENDED)


def _without_usage(removal: UsageRemoval, pieces: list[bytes]) -> list[bytes]:
    try:
        return [removal.feed(b"".join(pieces)), removal.finish()]
    except Exception:  # noqa: BLE001 - nothing is taken out then
        _log.failure("a stream could not be filtered")
        return pieces


def _read(exchange: Exchange, account: Account, body: bytes) -> None:
    try:
        account.read_whole(body)
    except Exception:  # noqa: BLE001 - whatever it is, the answer goes on
        _broke(exchange, account)


def _told(exchange: Exchange) -> Fields:
    """The fields that tell the caller what the call used."""
    charge = exchange.charge_for(EndReason.OK)
    try:
        return token_fields(charge, exchange.route.provider.name) if exchange.route is not None else []
    except Exception:  # noqa: BLE001 - whatever it is, the answer goes on
        _log.failure("what {request_id} used could not be told", request_id=exchange.request_id)
        return []


def _broke(exchange: Exchange, account: Account) -> None:
    _log.failure("the answer of {request_id} could not be read", request_id=exchange.request_id)
    account.broke()


def _relay(exchange: Exchange, account: Account | None, removal: UsageRemoval | None) -> Relay:
    if removal is not None:
        return FilteredRelay(exchange, account, removal)
    return Relay(exchange.request, exchange.body_ended) if account is None else ReadRelay(exchange, account)


class ReadRelay(Relay):
    """A relay whose bytes are read, after they were sent. What is read is a copy, which is looked at when there is
    enough of it: most pieces cost no more than being copied."""

    __slots__ = ("_account", "_exchange")

    def __init__(self, exchange: Exchange, account: Account) -> None:
        Relay.__init__(self, exchange.request, exchange.body_ended)
        self._read(exchange, account)
        exchange.request.copies_written = True

    def _read(self, exchange: Exchange, account: Account | None) -> None:
        self._exchange = exchange
        self._account = account
        if account is not None:
            request = self._request
            request.copy, request.copy_enough, request.look_at_copy = account.begin_copy(), 1, self._look

    def _look(self) -> None:
        account, request = self._account, self._request
        if account is None:
            request.copy = None
            return
        try:
            account.look()
        except Exception:  # noqa: BLE001 - whatever it is, the bytes go on
            self._account = None
            _broke(self._exchange, account)
        request.copy, request.copy_enough = account.copy, account.enough
        if self._exchange.reading_on is not None:
            self._exchange.look_at_bounds(account)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The body has ended, one way or another: what was copied is read to its end."""
        account, request = self._account, self._request
        request.copy = request.look_at_copy = None  # the circle is opened here
        if account is not None:
            try:
                account.ended(reason is ENDED or bool(reason.check(ResponseDone, PotentialDataLoss)))
            except Exception:  # noqa: BLE001 - likewise
                _broke(self._exchange, account)
        Relay.connectionLost(self, reason)  # not super(), which is a look-up more for each answer


class FilteredRelay(ReadRelay):
    """One that takes out of the stream what is there because the proxy asked for it."""

    __slots__ = ("_removal", "_write")

    # Without the parent's: the caller gets something else than what is read.
    def __init__(self, exchange: Exchange, account: Account | None, removal: UsageRemoval) -> None:
        self._request = request = exchange.request
        self._write = request.write
        self.read_done = request.flush
        self._ended = exchange.body_ended
        self._read(exchange, account)
        self._removal: UsageRemoval | None = removal

    def dataReceived(self, data: bytes) -> None:
        """A piece of the body."""
        copy = self._request.copy
        if copy is not None:
            copy += data
        removal = self._removal
        if removal is not None:
            try:
                data = removal.feed(data)
            except Exception:  # noqa: BLE001 - from here on nothing is taken out
                _log.failure("a stream could not be filtered")
                data = removal.give_up() + data
                self._removal = None
        if data:
            write = self._write
            write(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """What was held for a decision goes on, also of a stream that was cut."""
        removal = self._removal
        if removal is not None:
            try:
                rest = removal.finish()
            except Exception:  # noqa: BLE001 - likewise
                _log.failure("a stream could not be filtered")
                rest = removal.give_up()
            if rest:
                write = self._write
                write(rest)
        ReadRelay.connectionLost(self, reason)


@implementer(IProtocol)
class Waiting:
    """Takes a JSON answer to its end, then writes it, with what it used in its head."""

    __slots__ = ("_account", "_exchange", "_fields", "_pieces", "dataReceived", "transport")

    def __init__(self, exchange: Exchange, account: Account, fields: Fields) -> None:
        self._exchange = exchange
        self._account = account
        self._fields = fields
        self._pieces = pieces = account.waiting = []
        self.dataReceived = pieces.append

    def makeConnection(self, transport: Any) -> None:
        """The answer is bounded, so its upstream is never held back."""
        self.transport = transport
        transport.forget_head()

    def connectionMade(self) -> None:
        """There is nothing to do besides :meth:`makeConnection`."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """It is all here, or will never be."""
        self.transport = None
        if not self._exchange.settled:
            try:
                self._answer(reason)
            except Exception:  # noqa: BLE001 - whatever it is, it is a fault of ours and this exchange's end
                self._exchange.broke(Failure())

    def _answer(self, reason: Failure) -> None:
        exchange = self._exchange
        exchange.answer_is_here()
        if reason is ENDED or reason.check(ResponseDone):
            _at_once(exchange, self._pieces, self._fields, self._account, None)
            return
        exchange.write_head(self._fields)
        for data in self._pieces:
            exchange.request.write(data)
        exchange.body_ended(reason)
