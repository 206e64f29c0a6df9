"""The proxy between a hostile caller and a strict provider, or a strict caller and a hostile provider, in memory.

Each run is one conversation, and ends with every connection closed. What must hold for every one, whatever was said,
is checked here, so that no test can forget it: no exception escapes, nothing is logged as an error, each request that
was begun has one access event, and nothing is left open.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

import httptools
from twisted.internet.error import ConnectionDone
from twisted.logger import LogLevel, capturedLogs, formatEvent

from llmproxy.config.model import Server, Upstream
from llmproxy.core.fields import Fields
from llmproxy.providers import CATALOG
from llmproxy.upstream.origin import RawHeaders
from llmproxy.web.heads import request_fields
from llmproxy.web.site import ProxyRequest
from llmproxy.wire import client
from tests.fuzz.readers import Answer, Message, Pairs, RequestReader, read_answers
from tests.web.proxy_in_memory import ProxyInMemory
from tests.wire.far_end import FarEnd

PROVIDERS = {"openai": replace(CATALOG["openai"], base_url="http://openai.test")}
ROOT = b"http://openai.test"
NEVER_UPSTREAM = frozenset(
    b"connection keep-alive te upgrade expect proxy-connection proxy-authorization proxy-authenticate".split()
)
NEVER_TRAILERS = NEVER_UPSTREAM | frozenset(
    b"host authorization cookie content-length transfer-encoding content-type x-api-key trailer".split()
)


class Watched(ProxyRequest):
    """A request of which is kept what the parser gave it."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.arrived = bytearray()
        self.arrived_trailers: Fields = []
        self.broken = False
        self.processed: Callable[[Watched], None] | None = None

    def process(self) -> None:
        """Noted before anything is made of it."""
        if self.processed is not None:
            self.processed(self)
        super().process()

    def body_is_here(self, data: bytes) -> None:
        """All of the body."""
        self.arrived += data
        super().body_is_here(data)

    def body_arrived(self, data: bytes) -> None:
        """A piece of the body."""
        self.arrived += data
        super().body_arrived(data)

    def body_ended(self, trailers: Fields) -> None:
        """Its end."""
        self.arrived_trailers = trailers
        super().body_ended(trailers)

    def body_failed(self, error: Any) -> None:
        """It is none."""
        self.broken = True
        super().body_failed(error)

    def as_message(self) -> Message:
        """What the parser made of it."""
        return Message(
            self.method, self.uri, stripped(self.fields), bytes(self.arrived), stripped(self.arrived_trailers)
        )


@dataclass
class Forwarded:
    """What the proxy believes to have sent to the provider."""

    method: bytes
    target: bytes
    fields: Pairs
    chunked: bool
    request: Watched

    def is_complete(self) -> bool:
        """Whether its end was sent too."""
        return self.request.body_done and not self.request.broken

    def as_message(self) -> Message:
        """As it should be read."""
        request = self.request
        return Message(
            self.method, self.target, self.fields, bytes(request.arrived), stripped(request.arrived_trailers)
        )


@dataclass
class Outcome:
    """One conversation.

    begun: every request that the proxy has made of what came. forwarded: what it believes to have sent on.
    received: the complete requests that the provider has read, in order. raw: the bytes of each connection to it.
    answers: what the caller has read. heard: the bytes of that.
    """

    begun: list[Watched] = field(default_factory=list)
    forwarded: list[Forwarded] = field(default_factory=list)
    received: list[Message] = field(default_factory=list)
    raw: list[bytes] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    heard: bytes = b""
    closed_by_us: bool = False

    def accepted(self) -> list[Message]:
        """The requests that were taken for good and complete, as the parser gave them."""
        found = []
        for request in self.begun:
            if request.refusal is not None or not request.body_done or request.broken:
                break
            found.append(request.as_message())
        return found

    def digest(self) -> object:
        """What may not depend on how the input was split into reads.

        `Connection: close` may: a body that is known to be broken when its request gets an answer is announced. So may
        the path of a head that is none: the parser has seen more or less of it before it stopped.
        """
        apart = (b"Date", b"Connection")
        end = self._time_tells()
        last = len(self.begun) if end is None else end
        answers = [
            (a.status, a.reason, [pair for pair in a.fields if pair[0] not in apart], a.body, a.trailers, a.whole)
            for a in self.answers[:last]
        ]
        events = self.events[:last]
        ends = [(e["status"], e["end_reason"], e["error_class"]) for e in events]
        paths = [e["path"] for e in events if e["error_class"] != "bad_request"]
        before = [told for told in self.forwarded if any(told.request is request for request in self.begun[:last])]
        received = [(m.method, m.target, m.fields, m.body, m.trailers) for m in self.received[: len(before)]]
        return received, answers, ends, paths, self.closed_by_us and end is None

    def _time_tells(self) -> int | None:
        """Which request is the last whose end does not depend on time; None if that is so for all.

        If a body that nobody has asked for (Expect) is here when its request is answered by the proxy itself, the
        connection goes on; if it is not, it may never come, and the connection ends.
        """
        forwarded = [told.request for told in self.forwarded]
        for number, request in enumerate(self.begun):
            own = request.refusal is None and not any(request is each for each in forwarded)
            if own and b"expect" in request.index:
                return number + 1
        return None


def stripped(fields: Fields) -> Pairs:
    """Fields without white space around their values, which has no meaning."""
    return [(name, value.strip(b" \t")) for name, value in fields]


@contextmanager
def watched_for_faults() -> Iterator[None]:
    """Nothing within is logged as an error or worse, and no callback of a parser fails silently."""
    failures: list[BaseException | None] = []
    invalid = client._invalid

    def spy(error: httptools.HttpParserError) -> Any:
        if isinstance(error, httptools.HttpParserCallbackError):
            failures.append(error.__context__)
        return invalid(error)

    with capturedLogs() as logs, mock.patch.object(client, "_invalid", spy):
        yield
    errors = [formatEvent(event) for event in logs if event["log_level"] >= LogLevel.error]
    if errors or failures:
        raise AssertionError(f"logged as errors: {errors}; failed within a parser: {failures}")


class _Laboratory:
    def __init__(self, limits: Server | None = None) -> None:
        self.proxy = ProxyInMemory(
            PROVIDERS, Upstream(first_byte_timeout_s=30, idle_timeout_s=30), server=limits or Server()
        )
        self.outcome = Outcome()
        site: Any = self.proxy.site
        site.requestFactory = self._request
        self._current: Watched | None = None
        origin: Any = self.proxy.origins[0]
        self._origin_request = origin.request
        origin.request = self._forward

    def _request(self, *args: Any) -> Watched:
        request = Watched(*args)
        request.processed = self._processes
        self.outcome.begun.append(request)
        return request

    def _processes(self, request: Watched) -> None:
        self._current = request

    def _forward(self, method: bytes, uri: bytes, headers: RawHeaders, body: Any) -> Any:
        assert self._current is not None
        chunked = body is not None and not isinstance(body.length, int)
        # What the long way makes of this request, where a head is given that was made for one like it.
        exchange: Any = self._current.exchange
        made = headers.fields or request_fields(exchange, exchange.route)
        fields = stripped(made) + ([(b"Transfer-Encoding", b"chunked")] if chunked else [])
        told = Forwarded(method, uri.removeprefix(ROOT), fields, chunked, self._current)
        self.outcome.forwarded.append(told)
        return self._origin_request(method, uri, headers, body)

    def _connections(self) -> list[FarEnd]:
        return self.proxy.endpoints["openai"].connections

    def _settle(self) -> None:
        """Everybody leaves."""
        for far in [*self.proxy.callers, *self._connections()]:
            if far.transport.connected:
                far.resets()
        for far in self.proxy.callers:  # one that was not read from has not seen it
            if far.transport.connected:
                far.transport.lost(ConnectionDone())
        self.proxy.clock.advance(0)
        outcome = self.outcome
        outcome.events = self.proxy.access
        assert not self.proxy.site.channels, "a connection of a caller is left"
        assert not any(far.transport.connected for far in self._connections()), "one to the provider is left"
        assert self.proxy.site.in_flight == 0, "an exchange is left"
        ids = [event["request_id"] for event in outcome.events]
        assert len(ids) == len(set(ids)) == len(outcome.begun), f"{len(outcome.begun)} requests, events of {ids}"


class CallerLaboratory(_Laboratory):
    """A caller that says anything; a provider that reads strictly, and answers what it has read completely."""

    def __init__(self, limits: Server | None = None) -> None:
        super().__init__(limits)
        self._readers: list[RequestReader] = []

    def run(self, pieces: Sequence[bytes]) -> Outcome:
        """Say these, each as one read; then send no more, and wait for what comes."""
        with watched_for_faults():
            caller = self.proxy.caller()
            for piece in pieces:
                caller.says(piece)
                self._provider_answers()
            self.outcome.closed_by_us = caller.closed
            caller.half_closes()
            self._provider_answers()
            for _ in range(4):
                self.proxy.clock.advance(1.0)
            self._provider_answers()
            self.outcome.heard = b"".join(caller.writes)
            unfinished = [reader for reader in self._readers if reader.begun is not None]
            self._settle()
        self._read_what_was_heard()
        self._compare(unfinished)
        return self.outcome

    def _provider_answers(self) -> None:
        """Until nothing is said any more."""
        connections = self._connections()
        busy = True
        while busy:
            busy = False
            for number, far in enumerate(connections):
                if number == len(self._readers):
                    self._readers.append(RequestReader())
                    self.outcome.raw.append(b"")
                data = far.heard()
                if data:
                    busy = True
                    self.outcome.raw[number] += data
                    reader = self._readers[number]
                    before = len(reader.requests)
                    out = reader.read(data)
                    assert reader.error is None, f"forwarded, and no request to h11: {reader.error}"
                    self.outcome.received += reader.requests[before:]
                    if out:
                        far.says(out)

    def _read_what_was_heard(self) -> None:
        outcome = self.outcome
        events = outcome.events
        outcome.answers, error = read_answers(outcome.heard, [method_of(event) for event in events], closed=True)
        statuses = [event["status"] for event in events]
        if statuses[-1:] == [None]:  # the caller did not end what it began; the proxy may have said 100 Continue
            error = None
            statuses.pop()
        assert error is None, f"no answers to h11: {error}"
        assert all(answer.whole for answer in outcome.answers), "a provider that answers properly was cut"
        assert [answer.status for answer in outcome.answers] == statuses

    def _compare(self, unfinished: list[RequestReader]) -> None:
        """What the provider has read is what the proxy believes to have sent."""
        outcome = self.outcome
        believed = [told.as_message() for told in outcome.forwarded if told.is_complete()]
        read = outcome.received
        assert len(believed) == len(read), f"sent {believed}, read {read}"
        for ours, theirs in zip(believed, read, strict=True):
            assert (ours.method, ours.target) == (theirs.method, theirs.target)
            assert ours.fields == theirs.fields, f"sent {ours.fields}, read {theirs.fields}"
            assert ours.body == theirs.body, f"sent {ours.body!r}, read {theirs.body!r}"
            names = [name.lower() for name, _ in theirs.fields]
            hosts = [value for name, value in theirs.fields if name.lower() == b"host"]
            assert hosts == [b"openai.test"], hosts
            assert NEVER_UPSTREAM.isdisjoint(names), names
            assert NEVER_TRAILERS.isdisjoint(name.lower() for name, _ in theirs.trailers), theirs.trailers
            assert all(pair in ours.trailers for pair in theirs.trailers), theirs.trailers
        cut = [told for told in outcome.forwarded if not told.is_complete()]
        assert len(unfinished) <= len(cut), "a request that is complete for us has no end upstream"


class ProviderLaboratory(_Laboratory):
    """A provider that says anything; a caller that reads strictly, and asks a second time."""

    SECOND = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nSECOND"

    def run(self, request: bytes, pieces: Sequence[bytes], ends: bool) -> tuple[Outcome, bytes | None]:
        """Ask; let the provider say these and, if `ends` or the answer is not complete, close; then ask again.

        Returns what came of the first request, and what the caller got for the second; None if it could not be asked.
        """
        outcome = self.outcome
        with watched_for_faults():
            caller = self.proxy.caller()
            caller.says(request)
            provider = self.proxy.provider("openai")
            provider.heard()
            for piece in pieces:
                provider.says(piece)
            if ends or not self.proxy.access:
                provider.ends()
            outcome.heard = caller.heard()
            outcome.closed_by_us = caller.closed
            reset = caller.was_reset
            second = None
            if not caller.closed:
                caller.says(b"GET /openai/v1/second HTTP/1.1\r\nHost: proxy.test\r\n\r\n")
                asked = self.proxy.provider("openai")
                asked.says(self.SECOND)
                second = caller.heard()
            self._settle()
        method = outcome.begun[0].method
        closed = outcome.closed_by_us and not reset
        outcome.answers, error = read_answers(outcome.heard, [method], closed)
        if error is not None:
            outcome.answers = [replace(answer, whole=False) for answer in outcome.answers]
        return outcome, second


def method_of(event: dict[str, Any]) -> bytes:
    """The method of a request for whoever reads its answer: one that is none is not HEAD, which is all that counts."""
    method = event["method"].encode("latin-1")
    return method if method == b"HEAD" else b"GET"
