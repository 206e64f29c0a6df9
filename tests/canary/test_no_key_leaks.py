"""No key gets out: each place where a caller may put a key gets one of its own, everything that can go wrong is made
to go wrong, and all that was written is searched.

The keys have the shapes of real ones, because in a path or in a provider's own words a key is known by its shape
alone. Searched is for the part that makes a key secret, not for its well-known beginning.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
from twisted.internet.error import ConnectionRefusedError as Refused
from twisted.internet.error import DNSLookupError
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from llmproxy import assembly
from llmproxy.config.model import Upstream
from llmproxy.observe.access import AccessRecord
from llmproxy.observe.log import FORMATS, LogObserver
from llmproxy.state.identity_secret import load_or_create
from llmproxy.state.ledger.row import make_storable
from tests.web.proxy_in_memory import ProxyInMemory, get, ok, post, request
from tests.wire.far_end import FarEnd

SECRETS = {
    place: f"{place:x<8}Canary{number:02d}Zq7"
    for number, place in enumerate(
        (
            "bearer",
            "basic",
            "xapikey",
            "apikey",
            "goog",
            "querykey",
            "token",
            "websock",
            "path",
            "proxyaut",
            "cookie",
            "metauser",
            "userid",
            "agent",
            "model",
            "bodyuser",
            "bodykey",
            "llmuser",
        )
    )
}
"""The secret part of each key, by the place where it stands."""


def _key(place: str, beginning: str = "sk-proj-") -> bytes:
    return (beginning + SECRETS[place]).encode()


FIELDS = (
    b"Authorization: Bearer " + _key("bearer"),
    b"x-api-key: " + _key("xapikey", "sk-ant-api03-"),
    b"api-key: " + _key("apikey", ""),
    b"X-Goog-Api-Key: " + _key("goog", "AIza"),
    b"Sec-WebSocket-Protocol: realtime, openai-insecure-api-key." + _key("websock"),
    b"Proxy-Authorization: Basic " + _key("proxyaut", ""),
    b"Cookie: session=" + _key("cookie", ""),
    b"X-User-ID: " + _key("userid"),
    b"User-Agent: " + _key("agent"),
)
BASIC = b"Authorization: Basic " + _key("basic", "")
QUERY = f"?key={_key('querykey', 'AIza').decode()}&access_token={_key('token', 'ya29.').decode()}"
QUERY += f"&llm_user_id={_key('llmuser').decode()}"
PATH = "/openai/v1/files/" + _key("path").decode() + QUERY
META = "/meta/" + _key("metauser").decode() + PATH
BODY = (
    b'{"model":"'
    + _key("model")
    + b'","user":"'
    + _key("bodyuser")
    + b'","api_key":"'
    + _key("bodykey")
    + b'","x":"y"}'
)
EVERYTHING = b" ".join((*FIELDS, BASIC, QUERY.encode(), PATH.encode(), META.encode(), BODY))

POST = post(PATH, BODY, *FIELDS)
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def found_in(written: bytes) -> list[str]:
    """The places whose key is in `written`."""
    return [place for place, secret in SECRETS.items() if secret.encode() in written]


def _whole(proxy: ProxyInMemory, caller: FarEnd) -> None:
    caller.says(POST)
    proxy.provider().says(ok())


def _meta(proxy: ProxyInMemory, caller: FarEnd) -> None:
    caller.says(post(META, BODY, *FIELDS))
    proxy.provider().says(ok())


def _basic(proxy: ProxyInMemory, caller: FarEnd) -> None:
    caller.says(post(PATH, BODY, BASIC))
    proxy.provider().says(ok())


def _no_route(proxy: ProxyInMemory, caller: FarEnd) -> None:
    caller.says(post(f"/{_key('path').decode()}{PATH}", BODY, *FIELDS))
    caller.says(post(f"/meta/{_key('metauser').decode()}/{_key('path').decode()}/x", BODY, *FIELDS))


def _two_hosts(proxy: ProxyInMemory, caller: FarEnd) -> None:
    caller.says(post(PATH, BODY, *FIELDS, b"Host: " + _key("path")))


def _absolute(proxy: ProxyInMemory, caller: FarEnd) -> None:
    caller.says(post("http://evil.test" + PATH, BODY, *FIELDS))


def _bad_line(proxy: ProxyInMemory, caller: FarEnd) -> None:
    caller.says(
        b"\r\n".join((b"GET " + PATH.encode() + b" HTTP/1.1", *FIELDS, b"bad field " + _key("bearer"), b"", b""))
    )


def _not_http(proxy: ProxyInMemory, caller: FarEnd) -> None:
    caller.says(_key("bearer") + b" " + EVERYTHING + b"\r\n\r\n")


def _bad_version(proxy: ProxyInMemory, caller: FarEnd) -> None:
    caller.says(POST.replace(b"HTTP/1.1", b"HTTP/" + _key("bearer"), 1))


def _too_large(proxy: ProxyInMemory, caller: FarEnd) -> None:
    caller.says(get(PATH, *FIELDS, b"X: " + _key("bearer") * 4000))


def _bad_chunk(proxy: ProxyInMemory, caller: FarEnd) -> None:
    caller.says(
        request("POST", PATH, *FIELDS, b"Transfer-Encoding: chunked") + b"5\r\nhello\r\n" + _key("bearer") + b"\r\n"
    )


def _websocket(proxy: ProxyInMemory, caller: FarEnd) -> None:
    caller.says(get(PATH, *FIELDS, b"Connection: Upgrade", b"Upgrade: websocket"))


def _refused(proxy: ProxyInMemory, caller: FarEnd) -> None:
    proxy.endpoints["openai"].error = Refused(111, EVERYTHING.decode())
    caller.says(POST)


def _no_name(proxy: ProxyInMemory, caller: FarEnd) -> None:
    proxy.endpoints["openai"].error = DNSLookupError(EVERYTHING.decode())
    caller.says(POST)


def _reset(proxy: ProxyInMemory, caller: FarEnd) -> None:
    caller.says(POST)
    proxy.provider().resets()


def _reset_in_stream(proxy: ProxyInMemory, caller: FarEnd) -> None:
    caller.says(POST)
    proxy.provider().says(STREAM, b"9\r\ndata: 1\n\n\r\n")
    proxy.provider().resets()


def _silence(proxy: ProxyInMemory, caller: FarEnd) -> None:
    caller.says(POST)
    proxy.pass_time(40)


def _gone(proxy: ProxyInMemory, caller: FarEnd) -> None:
    caller.says(POST)
    caller.resets()


def _echo(proxy: ProxyInMemory, caller: FarEnd) -> None:
    """A provider that puts what it got into a field that the log takes from it."""
    caller.says(POST)
    proxy.provider().says(ok(b"{}", b"X-Request-ID: " + b" ".join(FIELDS)))


def _garbage(garbage: bytes) -> Callable[[ProxyInMemory, FarEnd], None]:
    def run(proxy: ProxyInMemory, caller: FarEnd) -> None:
        caller.says(POST)
        proxy.provider().says(garbage)

    return run


def _fault(proxy: ProxyInMemory, caller: FarEnd) -> None:
    """Something of ours raises, with all it has in its text."""
    caller.says(POST)

    def broken(*_: object) -> Any:
        raise RuntimeError(EVERYTHING.decode())

    vars(proxy.context.cors)["answer_fields"] = broken
    try:
        proxy.provider().says(ok())
    finally:
        del vars(proxy.context.cors)["answer_fields"]


def _fault_in_the_tree(proxy: ProxyInMemory, caller: FarEnd) -> None:
    routes = proxy.context.routes
    object.__setattr__(proxy.context, "routes", None)
    caller.says(POST)
    object.__setattr__(proxy.context, "routes", routes)


def _bad_field(proxy: ProxyInMemory, caller: FarEnd) -> None:
    """A field that cannot be forwarded."""
    caller.says(get(PATH, *FIELDS, b"X: a\x01b"))


MISHAPS: dict[str, Callable[[ProxyInMemory, FarEnd], None]] = {
    "nothing": _whole,
    "a user in the path": _meta,
    "Basic": _basic,
    "no route": _no_route,
    "two hosts": _two_hosts,
    "absolute form": _absolute,
    "bad line": _bad_line,
    "not HTTP": _not_http,
    "bad version": _bad_version,
    "too large": _too_large,
    "bad chunk": _bad_chunk,
    "WebSocket": _websocket,
    "refused": _refused,
    "no name": _no_name,
    "reset": _reset,
    "reset in a stream": _reset_in_stream,
    "silence": _silence,
    "caller gone": _gone,
    "echo": _echo,
    "garbage": _garbage(EVERYTHING + b"\r\n\r\n"),
    "garbage in the status": _garbage(b"HTTP/1.1 " + _key("bearer") + b"\r\n\r\n"),
    "garbage in the head": _garbage(b"HTTP/1.1 200 OK\r\n" + b"\r\n ".join(FIELDS) + b"\x00\r\n\r\n"),
    "garbage in a length": _garbage(b"HTTP/1.1 200 OK\r\nContent-Length: " + _key("bearer") + b"\r\n\r\n"),
    "garbage in the body": _garbage(STREAM + _key("bearer") + b"\r\n"),
    "two answers": _garbage(ok(b"hi") + EVERYTHING),
    "a fault": _fault,
    "a fault in the tree": _fault_in_the_tree,
    "bad field": _bad_field,
}


def _own_objects() -> Iterator[object]:
    """Every object of ours that is alive."""
    for each in gc.get_objects():
        module = type(each).__module__
        if isinstance(module, str) and module.startswith("llmproxy."):
            yield each


class NoKeyLeaks(SynchronousTestCase):
    """Keys in every place, mishaps of every kind."""

    def setUp(self) -> None:
        """A proxy, and a log of everything down to debug, in both forms, as the program would write it."""
        self.proxy = ProxyInMemory(limits=Upstream(first_byte_timeout_s=30))
        self.written: list[bytes] = []
        self.observers = [LogObserver(self.written.append, self.proxy.clock, form, "debug") for form in FORMATS]
        for observer in self.observers:
            globalLogPublisher.addObserver(observer)
            self.addCleanup(globalLogPublisher.removeObserver, observer)

        def write_access(record: AccessRecord) -> None:
            for observer in self.observers:
                observer.access(record)

        object.__setattr__(self.proxy.context, "write_access", write_access)

    def log(self) -> bytes:
        """All that was logged, also what is only noticed when the last reference goes."""
        gc.collect()
        self.flushLoggedErrors()
        for observer in self.observers:
            observer.flush()
        return b"".join(self.written)

    def test_the_canaries_would_be_found(self) -> None:
        """A log that repeated what came would be noticed: each key is where a caller puts it, and each is found."""
        self.assertEqual(found_in(EVERYTHING), list(SECRETS))

    def test_log_and_answers(self) -> None:
        """Whatever goes wrong, no key is in the log or in an answer of ours; the log does tell of each mishap."""
        for what, mishap in MISHAPS.items():
            self.written.clear()
            caller = self.proxy.caller()
            self.proxy.endpoints["openai"].error = None
            mishap(self.proxy, caller)
            answer = caller.heard()
            if what != "echo":  # that one is the provider's own answer, which is none of our business
                self.assertEqual(found_in(answer), [], f"{what}: in the answer")
            caller.resets()
            for provider in self.proxy.endpoints["openai"].connections:
                provider.resets()
            log = self.log()
            self.assertIn(b'"event":"access"', log, what)
            self.assertEqual(found_in(log), [], f"{what}: in the log")
        self.assertGreater(len(self.proxy.rows), 10)
        for row in self.proxy.rows:
            make_storable(row)  # as the ledger's writer does with each
            self.assertEqual(found_in(msgspec.json.encode(row)), [], "in the ledger")
        caller = self.proxy.caller()
        caller.says(post("/openai/v1/chat/completions", BODY, *FIELDS))
        self.proxy.provider().says(ok())
        # A model that has no price is warned about by its name, whatever a caller writes there.
        self.assertNotEqual(self.proxy.warnings, [])
        for words in self.proxy.warnings:
            assembly._warn(words)
        self.assertEqual(found_in(self.log()), [], "in a warning")
        self.assertEqual(found_in(self.proxy.ask(get("/health/accounting"))), [])

    def test_representations(self) -> None:
        """No object of ours shows a key when it is printed, as a debugger or an error report would, at any point of an
        exchange."""
        self.proxy.endpoints["openai"].slow = True
        waiting = [self.proxy.caller() for _ in range(4)]
        waiting[0].says(POST[:40])
        waiting[1].says(POST[:-3])
        waiting[2].says(POST)
        waiting[3].says(
            request("POST", PATH, *FIELDS, b"Transfer-Encoding: chunked") + b"%x\r\n%b\r\n" % (len(BODY), BODY)
        )
        self.proxy.endpoints["openai"].accept().says(STREAM, b"%x\r\n%b\r\n" % (len(EVERYTHING), EVERYTHING))
        self.proxy.endpoints["openai"].accept().says(b"HTTP/1.1 200 OK\r\nX: " + EVERYTHING)
        kinds = set()
        for each in _own_objects():
            kinds.add(type(each).__name__)
            self.assertEqual(found_in(repr(each).encode()), [], f"repr of a {type(each).__name__}")
        self.assertGreaterEqual(kinds, {"ProxyRequest", "Exchange", "ClientConnection", "Origin", "_Sending", "Upload"})

    def test_tracebacks(self) -> None:
        """A traceback of ours, with the objects in its frames left out, holds no key of an ordinary failure."""
        caller = self.proxy.caller()
        MISHAPS["a fault"](self.proxy, caller)
        failure, *_ = self.flushLoggedErrors(RuntimeError)
        log = self.log()
        self.assertIn(b"RuntimeError", log)
        self.assertIn(b"Traceback", log)
        self.assertEqual(found_in(log), [])
        self.assertEqual(found_in(failure.getBriefTraceback().replace(EVERYTHING.decode(), "").encode()), [])

    def test_state_files(self) -> None:
        """What is kept on disk holds no key, and only its owner can read it."""
        path = os.path.join(self.mktemp(), "identity-secret")
        secret = load_or_create(path)
        with open(path, "rb") as file:
            kept = file.read()
        self.assertEqual(found_in(kept + secret), [])
        self.assertEqual(os.stat(path).st_mode & 0o077, 0)

    def test_credential_id(self) -> None:
        """The log knows a key by an id that holds no character of it in order, and the same key by the same id."""
        for _ in range(2):
            self.proxy.caller().says(POST)
            self.proxy.provider().says(ok())
        log = self.log()
        ids = {
            line.partition(b'"credential_id":"')[2][:64] for line in log.split(b"\n") if b'"credential_id":"' in line
        }
        self.assertEqual(len(ids), 1)
        self.assertRegex(ids.pop().decode(), r"\A[0-9a-f]{64}\Z")
