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

from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss, datetimeToString

from llmproxy.core import errors, framing
from llmproxy.core import fields as f
from llmproxy.core.end import EndReason
from llmproxy.core.errors import ProxyError
from llmproxy.core.fields import Fields
from llmproxy.core.framing import FramingError
from llmproxy.core.peek import BodyPeek, Seen, look_at_whole
from llmproxy.core.target import split_query, without_query_item
from llmproxy.observe.access import AccessRecord
from llmproxy.providers import dialect_of, model_in_path
from llmproxy.upstream.origin import NotWellFormed, Progress, RawHeaders
from llmproxy.upstream.relay import Relay
from llmproxy.upstream.upload import Upload, WholeBody
from llmproxy.web import failures, uploads
from llmproxy.web.plan import Plan
from llmproxy.wire.response import ENDED, Response

if TYPE_CHECKING:
    from llmproxy.web.context import Context, Route
    from llmproxy.web.site import ProxyRequest

RECEIVING = "receiving"
CONNECTING = "connecting"
WAITING = "waiting"
RELAYING = "relaying"
DONE = "done"

_STREAMS = (b"text/event-stream", b"application/vnd.amazon.eventstream")
_MAX_ID_CHARACTERS = 256
_MAX_DETAIL_CHARACTERS = 300


class Exchange:
    """One request and what became of it.

    :param request: the caller's side.
    :param context: what the configuration gives; it stays the same for this exchange whatever is reloaded.
    :ivar request_id: our own id for it.
    :ivar phase: how far it has come: receiving, connecting, waiting, relaying, done.
    """

    _log = Logger()

    # An idle stream keeps its exchange for minutes: slots make it small, and are quicker than defaults of the class.
    __slots__ = (
        "_answer_at",
        "_end_reason",
        "_head_at",
        "_in_flight",
        "_peek",
        "_pending",
        "_plan",
        "_progress",
        "_ready_at",
        "_relay",
        "_response",
        "_settled",
        "_upload",
        "began",
        "context",
        "error_class",
        "error_detail",
        "meta_user",
        "model",
        "phase",
        "request",
        "request_id",
        "rest",
        "route",
        "route_name",
        "stream_requested",
        "streamed",
        "upstream_request_id",
    )

    def __init__(self, request: ProxyRequest, context: Context) -> None:
        now, next_request_id = context.now, context.next_request_id
        self.request = request
        self.context = context
        self.request_id = next_request_id()
        self.began = self._ready_at = now()
        self._progress = Progress()
        # What is not known yet.
        self.phase = RECEIVING
        self.route: Route | None = None
        self.route_name = self.error_class = self.error_detail = self.upstream_request_id = ""
        self.meta_user: str | None = None
        self.rest = b""
        self.model: str | None = None
        self.stream_requested: bool | None = None
        self.streamed = self._in_flight = self._settled = False
        self._end_reason = EndReason.OK
        self._peek: BodyPeek | Seen | None = None
        self._upload: Upload | WholeBody | None = None
        self._plan: Plan | None = None
        self._answer_at = self._head_at = 0.0
        self._pending: Deferred[Any] | None = None
        self._response: Response | None = None
        self._relay: Relay | None = None

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
        self._plan = plan
        if self._enter():
            self._take_body(plan.looks)

    def _take_body(self, looks: bool) -> None:
        request = self.request
        route = self.route
        if request.body is framing.NO_BODY or route is None:
            self._forward()
            return
        whole = request.whole_body()
        if whole is not None:
            self._upload = WholeBody(whole)
            if looks:
                self._peek = look_at_whole(whole, self.context.config.server.peek_bytes, route.provider.user_path)
            self._forward()
            return
        look = None
        if looks:
            peek = self._peek = BodyPeek(self.context.config.server.peek_bytes, route.provider.user_path)
            look = peek.feed
        upload = self._upload = Upload(request, look, self._forward, self.body_broken, self.context.request_trailers)
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
        if self._settled or self.route is None:
            return
        peek = self._peek
        if peek is not None:
            self.model, self.stream_requested = peek.model, peek.stream
        route = self.route
        request = self.request
        plan = self._plan
        if self.model is None:
            self.model = plan.path_model if plan is not None else model_in_path(route.provider, self.rest)
        self.phase = CONNECTING
        now = self.context.now
        self._ready_at = now()
        self._progress.on_interim = self._pass_on_interim
        if plan is not None:
            url = plan.url
            headers = RawHeaders([], self._progress, plan.head(request.index.get(b"content-length")))
        else:
            url = route.root + route.provider.upstream_target(self._upstream_rest())
            headers = RawHeaders(self._request_fields(route), self._progress)
        try:
            pending = self._pending = route.client.request(request.method, url, headers=headers, data=self._upload)
        except NotWellFormed as error:
            self.fail(failures.refused(FramingError(400, str(error))))
            return
        if plan is None and request.repeat is not None and headers.head is not None:
            self._keep_plan(route, url, headers.head)
        self.phase = WAITING if self._progress.sent_at is not None else CONNECTING
        pending.addCallbacks(self._answered, self._not_answered)

    def _keep_plan(self, route: Route, url: bytes, head: bytes) -> None:
        repeat = self.request.repeat
        if repeat is None:
            return
        path_model = model_in_path(route.provider, self.rest)
        looks = self._peek is not None
        self._plan = repeat.plan = Plan(
            self.context, route, self.meta_user, self.rest, self.route_name, looks, path_model, url, head
        )

    def _upstream_rest(self) -> bytes:
        if self.context.config.identity.strip:
            return without_query_item(self.rest, b"llm_user_id")
        return self.rest

    def _request_fields(self, route: Route) -> Fields:
        """The caller's fields with the changes that docs/fidelity.md lists."""
        context = self.context
        switches = context.config.fidelity
        host = None if switches.preserve_host else route.authority
        fields = f.end_to_end(self.request.fields, context.request_drop, context.request_prefixes, host)
        if b"host" not in self.request.index:  # HTTP/1.0
            fields.insert(0, (b"Host", route.authority))
        if switches.x_forwarded_for:
            fields.append((b"X-Forwarded-For", self.request.caller.peer_host.encode()))
        if switches.via:
            fields.append((b"Via", self.request.clientproto[5:] + b" llmproxy"))
        return fields

    def _pass_on_interim(self, status: int, reason: bytes, fields: Fields) -> None:
        self.request.write_interim(status, reason, f.end_to_end(fields, prefixes=self.context.response_prefixes))

    # -- the answer ------------------------------------------------------------------------------------------

    def _answered(self, response: Response) -> None:
        """The head of the upstream's final answer: write it to the caller, then let the body flow."""
        self._pending = None
        if self._settled:
            response.stopProducing()
            return
        self._response = response
        self.phase = RELAYING
        now = self.context.now
        self._answer_at = now()
        request = self.request
        request.cork()
        try:
            request.write_head(response.code, response.phrase, self._response_fields(response))
            self._head_at = now()
            pieces = response.whole_body()
            if pieces is not None:
                for data in pieces:
                    request.write(data)
                self._body_ended(ENDED)
                return
            relay = self._relay = Relay(request, self._body_ended)
            response.deliverBody(relay)
        except Exception:  # noqa: BLE001 - whatever it is, it is a fault of ours and this exchange's end
            self.broke(Failure())

    def _response_fields(self, response: Response) -> Fields:
        """The upstream's fields with the changes that docs/fidelity.md lists."""
        config = self.context.config
        index = response.index
        fields = f.end_to_end(response.fields, prefixes=self.context.response_prefixes)
        content_type = index.get(b"content-type")
        self.streamed = content_type is not None and content_type.lower().startswith(_STREAMS)
        upstream_id = index.get(b"x-request-id") or index.get(b"request-id")
        if upstream_id is not None:
            self.upstream_request_id = upstream_id[:_MAX_ID_CHARACTERS].decode("latin-1")
        if self.streamed and config.fidelity.accel_buffering and b"x-accel-buffering" not in index:
            # nginx in front of us would otherwise gather events before it sends them on.
            fields.append((b"X-Accel-Buffering", b"no"))
        if config.fidelity.rewrite_upload_urls and self.route is not None and uploads.concerned(index):
            fields = uploads.rewritten(fields, self.route, self._provider_url())
        if config.fidelity.via:
            fields.append((b"Via", b"1.1 llmproxy"))
        return fields

    def _body_ended(self, reason: Failure) -> None:
        """The upstream's body is over, one way or another."""
        response = self._response
        self._response = None
        if self._settled or response is None:
            return
        if isinstance(reason.value, ResponseDone | PotentialDataLoss):
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
        if self._settled:
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
        if self._settled:
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
        if self._settled:
            return
        self.settle(EndReason.CLIENT_GONE)
        self._drop_upstream()

    def not_taken(self) -> None:
        """The caller is there, and takes nothing of its answer."""
        if self._settled:
            return
        self.settle(EndReason.WRITE_IDLE_TIMEOUT)
        self._drop_upstream()

    def drained(self) -> None:
        """The proxy stops and cannot wait: an answer that has begun is cut; where none has, that is the answer."""
        if not self._settled:
            self.fail(ProxyError(errors.DRAINING, retry_after_s=failures.RETRY_AFTER_S))
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

    def settle(self, end_reason: EndReason) -> None:
        """The one end: write the access event."""
        if self._settled:
            return
        self._settled = True
        if self.phase == CONNECTING and self._progress.sent_at is not None:
            self.phase = WAITING
        if self._in_flight:
            self.request.site.in_flight -= 1
        if self.context.config.log.access:
            write_access = self.context.write_access
            try:
                write_access(self._access_event(end_reason))
            except Exception:  # noqa: BLE001 - a log that cannot be written ends no connection
                self._log.failure("the access event of {request_id} could not be written", request_id=self.request_id)
        # The circle is opened here, so that all of it is freed at once and the collector has nothing to look for.
        self._upload = self._relay = self._peek = self._plan = None
        self._progress.on_interim = None

    # -- what the access event says --------------------------------------------------------------------------

    def _provider_url(self) -> bytes:
        """The URL of the provider's root as this caller reaches it, for URLs that must come back through the proxy."""
        request = self.request
        prefix = request.uri[: len(request.uri) - len(self.rest)]
        return uploads.public_base(request, self.context.config.server, self.request.caller.peer_host) + prefix

    def _said_by_head(self) -> tuple[Any, ...]:
        """What follows from the head alone: credential id, user but for the body's, path, sdk, client, method."""
        plan = self._plan
        if plan is not None and plan.said is not None:
            return plan.said
        request = self.request
        caller = request.caller
        query = request.uri.partition(b"?")[2]
        credential_id = caller.credential_id(request, query, self.context.credential_ids)
        client = caller.address(request.fields, self.context.config.server)
        said = (
            credential_id,
            caller.user(request, query, self.meta_user, None, client),
            caller.path(request.path),
            caller.sdk(request.index.get(b"user-agent")),
            client,
            request.method.decode("latin-1"),
        )
        if plan is not None:
            plan.said = said
        return said

    def _user(self, user: str, client: str) -> str:
        """The user, where the body names one; ``user`` is who it is without the body."""
        in_body = self._peek.user if self._peek is not None else None
        if not in_body:
            return user
        request = self.request
        return request.caller.user(request, request.uri.partition(b"?")[2], self.meta_user, in_body, client)

    def _access_event(self, end_reason: EndReason) -> AccessRecord:
        request = self.request
        clock = self.context.now
        now = clock()
        began = self.began
        progress = self._progress
        credential_id, user, path, sdk, client, method = self._said_by_head()
        own = 0.0
        if progress.sent_at is not None:
            own = progress.sent_at - self._ready_at - progress.held_s
            if self._head_at:
                own += self._head_at - self._answer_at
        upload = self._upload
        return AccessRecord(
            "",  # time: for the observer to fill in
            "access",
            self.request_id,
            self.upstream_request_id or None,
            self._user(user, client),
            credential_id,
            self.route.provider.name if self.route is not None else None,
            self.route_name or None,
            method,
            path,
            self.model or ("unknown" if upload is not None else None),
            self.stream_requested,
            self.streamed,
            request.status or None,
            upload.received_bytes if upload is not None else 0,
            request.sent_body_bytes,
            request.sent_pieces if self._head_at else 0,
            int((self._answer_at - began) * 1e6) / 1000 if self._answer_at else None,
            int(progress.connect_s * 1e6) / 1000 if progress.connect_s is not None else None,
            int(own * 1e6) / 1000 if own > 0.0 else 0.0,
            int((now - began) * 1e6) / 1000,
            end_reason,
            self.phase,
            sdk,
            progress.retries,
            self.error_class or None,
            self.error_detail or None,
            client,
        )
