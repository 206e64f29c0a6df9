"""The whole proxy in memory: callers at one side, providers at the other, a clock in the middle.

It is put together as `llmproxy.tap` does it; only the endpoints that connections are opened through are replaced,
and each provider is reached over plain HTTP. So a test is a conversation::

    proxy = ProxyInMemory()
    caller = proxy.caller()
    caller.says(get("/openai/v1/models"))
    provider = proxy.provider("openai")
    provider.heard()
    provider.says(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\nhi")
    caller.heard()
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from llmproxy.accounting.books import Books
from llmproxy.config.model import Config, Upstream
from llmproxy.core.identity import CredentialIds
from llmproxy.core.pricing import PriceBook
from llmproxy.observe.access import as_mapping
from llmproxy.pricing import load_shipped
from llmproxy.providers import CATALOG, Provider
from llmproxy.state.ledger.row import Row
from llmproxy.upstream.client import ExactClient
from llmproxy.upstream.origin import Origin
from llmproxy.web.context import Context, Route, request_ids
from llmproxy.web.cors import CorsPolicy
from llmproxy.web.site import ProxySite
from llmproxy.web.tree import Root
from llmproxy.wire.dial import Dialer
from tests.wire.far_end import FarEnd

NOON = 1_795_521_600.0
REQUEST_ID = b"llmp-000102030405-00000001"


class MemoryEndpoint:
    """Where connections are opened to, without a socket.

    error: what the next attempts fail with. slow: attempts wait for `accept` or `refuse`.
    connections: the far ends of all that were opened, in order. attempts: how many were tried.
    """

    def __init__(self, clock: Clock) -> None:
        self.error: Exception | None = None
        self.slow = False
        self.connections: list[FarEnd] = []
        self.attempts = 0
        self.waiting: list[tuple[Any, Deferred[Any]]] = []
        self._clock = clock

    def connect(self, factory: Any) -> Deferred[Any]:
        """See IStreamClientEndpoint."""
        self.attempts += 1
        result: Deferred[Any] = Deferred(self._given_up)
        if self.error is not None:
            result.errback(Failure(self.error))
        elif self.slow:
            self.waiting.append((factory, result))
        else:
            self._open(factory, result)
        return result

    def accept(self) -> FarEnd:
        """Let the attempt that waits longest succeed."""
        factory, result = self.waiting.pop(0)
        self._open(factory, result)
        self._clock.advance(0)
        return self.connections[-1]

    def refuse(self, error: Exception) -> None:
        """Let the attempt that waits longest fail."""
        result = self.waiting.pop(0)[1]
        result.errback(Failure(error))
        self._clock.advance(0)

    def _given_up(self, result: Deferred[Any]) -> None:
        self.waiting = [each for each in self.waiting if each[1] is not result]

    def _open(self, factory: Any, result: Deferred[Any]) -> None:
        protocol = factory.buildProtocol(None)
        far = FarEnd(self._clock, protocol)
        self.connections.append(far)
        protocol.makeConnection(far.transport)
        result.callback(protocol)


class ProxyInMemory:
    """A proxy with its four providers.

    sections: sections of the configuration, such as ``cors=Cors(...)``.
    providers: instead of the four.
    access: the access events so far. endpoints: one for each provider, by name.
    """

    def __init__(
        self,
        providers: Mapping[str, Provider] | None = None,
        limits: Upstream | None = None,
        connect_timeout_s: float = 10.0,
        **sections: Any,
    ) -> None:
        self.clock = Clock()
        self.clock.advance(NOON)
        self.access: list[dict[str, Any]] = []
        self.rows: list[Row] = []
        self.warnings: list[str] = []
        self.endpoints: dict[str, MemoryEndpoint] = {}
        self.origins: list[Origin] = []
        self.callers: list[FarEnd] = []
        if providers is None:
            providers = {name: replace(one, base_url=f"http://{name}.test") for name, one in CATALOG.items()}
        self.config = Config(providers=providers, **sections)
        self.books = Books(
            PriceBook([load_shipped()]), self.config.features.rate_limiting.estimation, self.warnings.append
        )
        routes: dict[str, Route] = {}
        accounting = self.config.accounting
        for name, provider in self.config.providers.items():
            endpoint = self.endpoints[name] = MemoryEndpoint(self.clock)
            dialer = Dialer(
                self.clock,
                f"{name}.test",
                80,
                tls=None,
                proxy=None,
                timeout_s=connect_timeout_s,
                endpoint=endpoint,  # type: ignore[arg-type]
            )
            origin = Origin(provider.base_url.encode(), dialer, self.clock, limits or Upstream())
            self.origins.append(origin)
            routes[name] = Route.to(provider, ExactClient(origin), accounting)
        self.context = Context(
            config=self.config,
            routes=routes,
            cors=CorsPolicy(self.config.cors),
            credential_ids=CredentialIds(b"a secret for tests"),
            now=self.clock.seconds,
            wall_time=self.clock.seconds,
            next_request_id=request_ids(bytes(range(6))),
            write_access=lambda record: self.access.append(as_mapping(record)),
            books=self.books,
            write_row=self.rows.append,
        )
        self.site = ProxySite(Root(self.context), self.context, self.clock)

    def caller(self) -> FarEnd:
        """A new connection from a caller."""
        far = FarEnd(self.clock, self.site.buildProtocol(None))
        self.callers.append(far)
        return far.connect()

    def provider(self, name: str = "openai", number: int = -1) -> FarEnd:
        """The far end of a connection to a provider; the newest unless `number` says which."""
        return self.endpoints[name].connections[number]

    def connections(self) -> int:
        """How many connections were opened to all providers together."""
        return sum(len(endpoint.connections) for endpoint in self.endpoints.values())

    def pass_time(self, seconds: float) -> None:
        """Let the clock run, an eighth of a second at a time: fractions that add up exactly."""
        for _ in range(round(seconds * 8)):
            self.clock.advance(0.125)

    def ask(self, request: bytes) -> bytes:
        """What a new caller gets for `request` when no provider has to say anything."""
        caller = self.caller()
        caller.says(request)
        return caller.heard()

    def exchange(self, request: bytes, answer: bytes, name: str = "openai") -> tuple[bytes, bytes]:
        """One request of a new caller and the answer to it; returns what the provider and the caller got."""
        caller = self.caller()
        caller.says(request)
        provider = self.provider(name)
        sent = provider.heard()
        provider.says(answer)
        return sent, caller.heard()


def request(method: str, target: str, *fields: bytes, body: bytes | None = None) -> bytes:
    """A request as an SDK writes it, with Host and, if there is a body, its length."""
    head = [f"{method} {target} HTTP/1.1".encode(), b"Host: proxy.test", *fields]
    if body is not None:
        head.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join(head) + b"\r\n\r\n" + (body or b"")


def get(target: str, *fields: bytes) -> bytes:
    """A GET."""
    return request("GET", target, *fields)


def post(target: str, body: bytes, *fields: bytes) -> bytes:
    """A POST."""
    return request("POST", target, *fields, body=body)


def chunked(*pieces: bytes, trailers: bytes = b"") -> bytes:
    """A chunked body with its end."""
    return b"".join(b"%x\r\n%b\r\n" % (len(each), each) for each in pieces) + b"0\r\n" + trailers + b"\r\n"


def ok(body: bytes = b"hi", *fields: bytes) -> bytes:
    """A provider's answer."""
    head = [b"HTTP/1.1 200 OK", *fields, b"Content-Length: %d" % len(body)]
    return b"\r\n".join(head) + b"\r\n\r\n" + body


def answers(heard: bytes) -> int:
    """How many final answers are in what a caller heard: each carries one id."""
    return heard.count(b"\r\nX-LLM-Proxy-Request-ID: ")


def head_and_body(message: bytes) -> tuple[bytes, bytes]:
    """A message cut behind its head."""
    head, _, body = message.partition(b"\r\n\r\n")
    return head, body


def fields_of(message: bytes) -> list[tuple[bytes, bytes]]:
    """The fields of the first head in `message`, in order."""
    lines = message.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]
    return [(name, value) for name, _, value in (line.partition(b": ") for line in lines)]


def field(message: bytes, name: bytes) -> bytes | None:
    """The value of the only field with this name; None if there is none."""
    values = [value for key, value in fields_of(message) if key.lower() == name.lower()]
    if len(values) > 1:
        raise AssertionError(f"{name!r} is there {len(values)} times")
    return values[0] if values else None
