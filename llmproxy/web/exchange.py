"""The Exchange: one request from admission to settlement. This is the story of the program.

    begun -> (provider known) -> looked at -> forwarded -> answered -> relayed -> settled

It has one end. Whatever happens, :meth:`Exchange.settle` runs once, with one end reason, and writes one access
event; everything that is learned on the way is kept on the object, not in header fields. Every request has one,
also those that never reach a provider.

Three rules about bytes: what the caller sent goes upstream as it is, but for the changes that docs/fidelity.md
lists; what the upstream answers goes to the caller likewise; and once the head of an answer is out, a failure is
shown by cutting the connection, never by adding text or a proper end.
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss, datetimeToString

from llmproxy.accounting.account import KEPT_BODY_BYTES, NO_CALL, UNKNOWN_CHARGE, Account, Charge
from llmproxy.core import errors, framing
from llmproxy.core import fields as f
from llmproxy.core.end import EndReason
from llmproxy.core.errors import ProxyError
from llmproxy.core.fields import Fields
from llmproxy.core.form_peek import FormPeek
from llmproxy.core.framing import FramingError
from llmproxy.core.peek import BodyPeek, Seen, look_at_whole
from llmproxy.core.target import split_query
from llmproxy.providers import dialect_of, model_in_path
from llmproxy.upstream.origin import NotWellFormed, Progress, RawHeaders
from llmproxy.upstream.upload import Upload, WholeBody
from llmproxy.web import failures
from llmproxy.web.delivery import deliver
from llmproxy.web.forms import is_form, names_model_in_form
from llmproxy.web.heads import body_length, request_fields, response_fields, upstream_rest
from llmproxy.web.plan import Plan, with_codings
from llmproxy.web.settlement import write_down
from llmproxy.web.usage_request import ADDED, LookToTheEnd, ask_for_usage, may_be_asked
from llmproxy.wire.response import Response

if TYPE_CHECKING:
    from llmproxy.web.context import Context, Route
    from llmproxy.web.site import ProxyRequest

RECEIVING = "receiving"
CONNECTING = "connecting"
WAITING = "waiting"
RELAYING = "relaying"
DONE = "done"

_MAX_DETAIL_CHARACTERS = 300


class Exchange:
    """One request and what became of it.

    :param request: the caller's side.
    :param context: what the configuration gives; it stays the same for this exchange whatever is reloaded.
    :ivar request_id: our own id for it.
    :ivar phase: how far it has come: receiving, connecting, waiting, relaying, done.
    :ivar upload: the request's body; peek: what it says.
    :ivar account: what the call used and costs, where that is kept.
    :ivar include_usage: as in the access event.
    :ivar reading_on: the time that is left, where the answer is read to its end although its caller has left.
    :ivar answer_at, head_at: when the upstream's head came, and when ours was written; 0.0 before.
    """

    _log = Logger()

    # An idle stream keeps its exchange for minutes: slots make it small, and are quicker than defaults of the class.
    __slots__ = (
        "_end_reason",
        "_in_flight",
        "_most_tokens",
        "_pending",
        "_response",
        "account",
        "answer_at",
        "answer_here_at",
        "began",
        "context",
        "error_class",
        "error_detail",
        "head_at",
        "include_usage",
        "meta_user",
        "model",
        "peek",
        "phase",
        "plan",
        "progress",
        "reading_on",
        "ready_at",
        "request",
        "request_id",
        "rest",
        "route",
        "route_name",
        "settled",
        "stream_requested",
        "streamed",
        "upload",
        "upstream_request_id",
    )

    def __init__(self, request: ProxyRequest, context: Context) -> None:
        now, next_request_id = context.now, context.next_request_id
        self.request = request
        self.context = context
        self.request_id = next_request_id()
        self.began = self.ready_at = now()
        self.progress = Progress()
        # What is not known yet.
        self.phase = RECEIVING
        self.route: Route | None = None
        self.route_name = self.error_class = self.error_detail = self.upstream_request_id = ""
        self.meta_user: str | None = None
        self.rest = b""
        self.model: str | None = None
        self.stream_requested: bool | None = None
        self.include_usage: str | None = None
        self.account: Account | None = None
        self.reading_on: object | None = None
        self._most_tokens = 0
        self.streamed = self._in_flight = self.settled = False
        self._end_reason = EndReason.OK
        self.peek: BodyPeek | FormPeek | Seen | None = None
        self.upload: Upload | WholeBody | None = None
        self.plan: Plan | None = None
        self.answer_at = self.head_at = self.answer_here_at = 0.0
        self._pending: Deferred[Any] | None = None
        self._response: Response | None = None

    # -- towards the provider --------------------------------------------------------------------------------

    def forward_to(self, route: Route, meta_user: str | None, rest: bytes) -> None:
        """The provider is known: look at the body as far as needed, then send the request on.

        :param rest: the target behind the provider's prefix, as it was sent.
        """
        request = self.request
        self.route = route
        self.meta_user = meta_user
        self.rest = rest
        if b"websocket" in f.tokens(request.index.get(b"upgrade")):
            self._refuse_websocket()
            return
        if not self._enter():
            return
        self._take_body(b"content-encoding" not in request.index)

    def forward_again(self, plan: Plan) -> None:
        """As :meth:`forward_to`, for a request with the same head as one before it on the connection."""
        self.route = plan.route
        self.meta_user = plan.meta_user
        self.rest = plan.rest
        self.route_name = plan.route_name
        self.plan = plan
        if self._enter():
            self._take_body(plan.looks)

    def _take_body(self, looks: bool) -> None:
        request = self.request
        route = self.route
        if request.body is framing.NO_BODY or route is None:
            self._forward()
            return
        if looks and names_model_in_form(request.index, self.rest):
            self._look_at_form()
            return
        whole = request.whole_body()
        if whole is not None:
            self.upload = WholeBody(whole)
            if looks:
                self.peek = look_at_whole(whole, self.context.config.server.peek_bytes, route.provider.user_path)
            self._forward()
            return
        look: Callable[[bytes], bool] | None = None
        if looks:
            limit_bytes = self.context.config.server.peek_bytes
            peek = self.peek = BodyPeek(limit_bytes, route.provider.user_path)
            look = peek.feed
            if request.body.length_bytes <= limit_bytes and may_be_asked(self):  # 0: one in chunks
                look = LookToTheEnd(peek, limit_bytes)
        upload = self.upload = Upload(request, look, self._forward, self.body_broken, self.context.request_trailers)
        request.receive_body(upload)

    def _look_at_form(self) -> None:
        """A form names its model in a field: what comes before that is held, as with JSON."""
        request = self.request
        peek = self.peek = FormPeek(self.context.config.server.peek_bytes)
        upload = self.upload = Upload(
            request, peek.feed, self._forward, self.body_broken, self.context.request_trailers
        )
        request.receive_body(upload)

    def _enter(self) -> bool:
        """Count this exchange among those in flight, unless there are as many as there may be."""
        site = self.request.site
        most = self.context.config.server.max_requests
        if most and site.in_flight >= most:
            self.fail(ProxyError(errors.OVERLOADED, retry_after_s=failures.RETRY_AFTER_S))
            return False
        site.in_flight += 1
        self._in_flight = True
        return True

    def _refuse_websocket(self) -> None:
        # A client that asks for a WebSocket falls back to plain requests at once on 426, and on nothing else as
        # fast. RFC 9110 15.5.22: "The server MUST send an Upgrade header field in a 426 response".
        self.request.close_after = True
        self.fail(ProxyError(errors.UPGRADE_REQUIRED), [(b"Upgrade", b"HTTP/1.1"), (b"Connection", b"Upgrade")])

    def guess_route(self) -> None:
        """For a request that is refused by its head: whose dialect its path asks for."""
        parts = split_query(self.request.uri)[0].split(b"/", 4)
        segment = 3 if len(parts) > 3 and parts[1] == b"meta" else 1
        name = parts[segment].decode("latin-1") if len(parts) > segment else ""
        self.route = self.context.routes.get(name)
        self.rest = self.request.uri

    def body_broken(self, error: FramingError) -> None:
        """The caller's body is not what its head announced."""
        self.fail(failures.refused(error))
        self._drop_upstream()

    def _forward(self) -> None:
        """All that has to be known before sending is known."""
        if self.settled or self.route is None:
            return
        peek = self.peek
        if peek is not None:
            self.model, self.stream_requested = peek.model, peek.stream
        route = self.route
        request = self.request
        plan = self.plan
        if self.upload is not None and (self.stream_requested or peek is None or not peek.complete):
            self._ask_for_usage()
        if self.model is None:
            self.model = plan.path_model if plan is not None else model_in_path(route.provider, self.rest)
        self.phase = CONNECTING
        self._open_account(route)
        now = self.context.now
        self.ready_at = now()
        self.progress.on_interim = self._pass_on_interim
        if plan is not None:
            url = plan.url
            headers = RawHeaders([], self.progress, plan.head(body_length(self), self.include_usage == ADDED))
        else:
            url = route.root + route.provider.upstream_target(upstream_rest(self))
            headers = RawHeaders(request_fields(self, route), self.progress)
        try:
            pending = self._pending = route.client.request(request.method, url, headers=headers, data=self.upload)
        except NotWellFormed as error:
            self.fail(failures.refused(FramingError(400, str(error))))
            return
        if plan is None and request.repeat is not None and headers.head is not None:
            self._keep_plan(route, url, headers.head)
        self.phase = WAITING if self.progress.sent_at is not None else CONNECTING
        pending.addCallbacks(self._answered, self._not_answered)

    def _keep_plan(self, route: Route, url: bytes, head: bytes) -> None:
        repeat = self.request.repeat
        if repeat is None:
            return
        path_model = model_in_path(route.provider, self.rest)
        looks = self.peek is not None
        if self.include_usage == ADDED:
            head = with_codings(head, self.request.fields)
        self.plan = repeat.plan = Plan(
            self.context, route, self.meta_user, self.rest, self.route_name, looks, path_model, url, head
        )

    def _open_account(self, route: Route) -> None:
        """Begin to keep account of the call."""
        books, upload, peek = self.context.books, self.upload, self.peek
        if books is None or not route.accounting.enabled:
            return
        body, form, looked = None, False, peek is not None and peek.complete
        if upload is not None and looked:
            body = upload.whole(self.context.config.server.peek_bytes)
        elif upload is not None:
            # A form that names no model is a file to be kept, and no call.
            form = isinstance(peek, FormPeek)
            looked = not form and is_form(self.request.index)
        post, length = self.request.method == b"POST", 0 if upload is None else None
        model, name = self.model, route.provider.name
        account = self.account = Account(books, name, post, model, body, length, looked, self.rest, form)
        if body is not None and len(body) > KEPT_BODY_BYTES:
            try:
                account.measure_request()
            except Exception:  # noqa: BLE001 - a bug in accounting ends no request
                self._log.failure("the request {request_id} could not be measured", request_id=self.request_id)
                account.broke()

    def _ask_for_usage(self) -> None:
        try:
            ask_for_usage(self)
        except Exception:  # noqa: BLE001 - likewise: it goes out as it came
            self._log.failure("the request {request_id} could not be edited", request_id=self.request_id)

    def _pass_on_interim(self, status: int, reason: bytes, fields: Fields) -> None:
        self.request.write_interim(status, reason, f.end_to_end(fields, prefixes=self.context.response_prefixes))

    # -- the answer ------------------------------------------------------------------------------------------

    def _answered(self, response: Response) -> None:
        """The head of the upstream's final answer: write it to the caller, then let the body flow."""
        self._pending = None
        if self.settled:
            response.stopProducing()
            return
        self._response = response
        self.phase = RELAYING
        now = self.context.now
        self.answer_at = self.answer_here_at = now()
        self.request.cork()
        try:
            deliver(self, response, response_fields(self, response))
        except Exception:  # noqa: BLE001 - whatever it is, it is a fault of ours and this exchange's end
            self.broke(Failure())

    def write_head(self, fields: Fields) -> None:
        """Begin to answer as the upstream did, with these fields."""
        response = self._response
        if response is not None:
            self.request.write_head(response.code, response.phrase, fields)
            self.head_at = self.context.now()

    def answer_is_here(self) -> None:
        """The body of an answer that had to be complete first is here; the time until now was the provider's."""
        self.answer_here_at = self.context.now()

    def body_ended(self, reason: Failure) -> None:
        """The upstream's body is over, one way or another."""
        response = self._response
        self._response = None
        if self.settled or response is None:
            return
        if self.reading_on is not None:
            self.settle(EndReason.CLIENT_GONE)
        elif isinstance(reason.value, ResponseDone | PotentialDataLoss):
            trailers = response.trailers
            if trailers:
                trailers = f.trailers(trailers, prefixes=self.context.response_prefixes)
            self.request.finish_with(trailers)
            self.settle(EndReason.OK)
        else:
            self.request.abort()
            self.error_detail = failures.detail(reason)
            self.settle(failures.within_the_body(reason))

    def _not_answered(self, reason: Failure) -> None:
        self._pending = None
        if self.settled:
            return
        if self.reading_on is not None:
            self.settle(EndReason.CLIENT_GONE)
            return
        error_class = failures.before_the_head(reason)
        if error_class is None:
            self.broke(reason)
            return
        title = self.route.provider.title if self.route is not None else "The provider"
        self.error_detail = failures.detail(reason)
        retry_after_s = failures.RETRY_AFTER_S if error_class is errors.UPSTREAM_BUSY else None
        self.fail(ProxyError(error_class, upstream=title, retry_after_s=retry_after_s))

    def broke(self, reason: Failure) -> None:
        """A fault of ours."""
        self._log.failure("exchange {request_id} failed", failure=reason, request_id=self.request_id)
        self.fail(ProxyError(errors.PROXY_ERROR))
        self._drop_upstream()

    # -- ends ------------------------------------------------------------------------------------------------

    def fail(self, error: ProxyError, fields: Fields | None = None) -> None:
        """End with an error of our own: an answer in the caller's dialect, or a cut if an answer has begun."""
        if self.settled:
            return
        self.error_class = error.error_class.name
        self.error_detail = self.error_detail or error.detail[:_MAX_DETAIL_CHARACTERS]
        self._end_reason = error.error_class.end_reason
        if self.request.head_written:
            self.request.abort()
        else:
            try:
                self._write_error(error, fields or [])
            except Exception:  # noqa: BLE001 - if even the error cannot be written, the connection must still end
                self._log.failure("exchange {request_id}: the error could not be written", request_id=self.request_id)
                self.request.abort()
        self.settle(error.error_class.end_reason)

    def _write_error(self, error: ProxyError, fields: Fields) -> None:
        request = self.request
        status = error.error_class.status
        dialect = dialect_of(self.route.provider, self.rest) if self.route is not None else errors.OPENAI
        body = errors.error_body(dialect, error, self.request_id)
        head = [(b"Date", datetimeToString()), *errors.error_fields(error, dialect), *fields]
        head.append((b"Content-Length", b"%d" % len(body)))
        request.cork()
        request.write_head(status, HTTPStatus(status).phrase.encode("ascii"), head)
        request.write(body)
        request.finish_with([])

    def client_gone(self) -> None:
        """The caller has left: whatever the upstream still does for it is waste, and may cost money."""
        if not self.settled and not self._may_read_on():
            self.settle(EndReason.CLIENT_GONE)
            self._drop_upstream()

    def not_taken(self) -> None:
        """The caller is there, and takes nothing of its answer."""
        if self.settled:
            return
        self.settle(EndReason.WRITE_IDLE_TIMEOUT)
        self._drop_upstream()

    def drained(self) -> None:
        """The proxy stops and cannot wait: an answer that has begun is cut; where none has, that is the answer."""
        if not self.settled:
            self.fail(ProxyError(errors.DRAINING, retry_after_s=failures.RETRY_AFTER_S))
            self._drop_upstream()

    def _may_read_on(self) -> bool:
        """The caller has left: whether the answer is read to its end, so that it is known what it used.

        It is for what the provider has, whole, and has begun on; and where there is something to read.
        """
        account, route, upload = self.account, self.route, self.upload
        if account is None or route is None or self.request.site.draining or not self.model:
            return False
        bounds = route.accounting.on_disconnect.drain
        if bounds is None or (self._pending is None and self._response is None):
            return False
        if self.progress.sent_at is None or (upload is not None and not upload.complete) or not account.may_be_read:
            return False
        self._most_tokens = self._tokens_so_far(account) + bounds.max_tokens if bounds.max_tokens else 0
        self.reading_on = self.request.site.read_on(self, bounds.max_s)
        if self._response is not None:
            self._response.resumeProducing()
        return True

    def look_at_bounds(self, account: Account) -> None:
        """More has come of an answer that is read on without its caller."""
        if not account.may_be_read or (self._most_tokens and self._tokens_so_far(account) >= self._most_tokens):
            self.read_no_more()

    def _tokens_so_far(self, account: Account) -> int:
        try:
            return account.output_so_far()
        except Exception:  # noqa: BLE001 - a bug in accounting ends no connection
            self._log.failure("the answer of {request_id} could not be read", request_id=self.request_id)
            account.broke()
            return 0

    def read_no_more(self) -> None:
        """Enough was read without its caller."""
        if not self.settled:
            self.settle(EndReason.CLIENT_GONE)
            self._drop_upstream()

    def finished(self) -> None:
        """The answer is complete, whoever gave it."""
        if not self.error_class:
            self.phase = DONE
        self.settle(self._end_reason)

    def _drop_upstream(self) -> None:
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.cancel()
        if self._response is not None:
            response, self._response = self._response, None
            response.stopProducing()

    def charge_for(self, end_reason: EndReason) -> Charge:
        """What the call comes to. It is made once, at the first time that it is asked for."""
        account, upload = self.account, self.upload
        if account is None:
            return NO_CALL
        if upload is not None:
            account.length_bytes = upload.received_bytes
        try:
            return account.charge(end_reason, self.progress.sent_at is not None, self.request.sent_body_bytes)
        except Exception:  # noqa: BLE001 - a bug in accounting ends no connection
            self._log.failure("what {request_id} used could not be worked out", request_id=self.request_id)
            account.made = UNKNOWN_CHARGE
            return UNKNOWN_CHARGE

    def settle(self, end_reason: EndReason) -> None:
        """The one end: write the access event and the ledger's row."""
        if self.settled:
            return
        self.settled = True
        if self.phase == CONNECTING and self.progress.sent_at is not None:
            self.phase = WAITING
        if self._in_flight:
            self.request.site.in_flight -= 1
        if self.reading_on is not None:
            self.request.site.reads_no_more(self, self.reading_on)
        account = self.account
        charge = (account.made if account is not None else NO_CALL) or self.charge_for(end_reason)
        write_down(self, end_reason, charge)
        # The circle is opened here, so that all of it is freed at once and the collector has nothing to look for.
        self.upload = self.peek = self.plan = self.account = None
        self.progress.on_interim = None
