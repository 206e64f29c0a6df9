"""Whatever happens in whatever order: one request, one end, one access event, and nothing left behind."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.error import ConnectError
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.config.model import Upstream
from llmproxy.core.end import EndReason
from tests.web.proxy_in_memory import ProxyInMemory, chunked, get, post, request
from tests.wire.far_end import FarEnd

_JSON = b'{"model":"gpt-4o","stream":true,"messages":[{"role":"user","content":"hello"}]}'

REQUESTS = {
    "get": get("/openai/v1/models"),
    "head": request("HEAD", "/openai/v1/models"),
    "delete": request("DELETE", "/openai/v1/files/f1"),
    "post": post("/openai/v1/chat/completions", _JSON),
    "post, expecting": post("/openai/v1/chat/completions", _JSON, b"Expect: 100-continue"),
    "post, chunked": request("POST", "/openai/v1/chat/completions", b"Transfer-Encoding: chunked")
    + chunked(_JSON[:9], _JSON[9:]),
    "post in HTTP/1.0": b"POST /openai/v1/chat/completions HTTP/1.0\r\nContent-Length: 2\r\n\r\n{}",
    "upload": request("PUT", "/openai/v1/files/f1", b"Content-Type: text/plain", body=b"x" * 40_000),
    "health": get("/health"),
    "nowhere": get("/nowhere"),
    "post to nowhere": post("/nowhere", b"a body that nobody reads"),
    "websocket": get("/openai/v1/realtime", b"Connection: Upgrade", b"Upgrade: websocket"),
    "no host": b"GET /openai/v1/models HTTP/1.1\r\n\r\n",
    "bad chunk": request("POST", "/openai/v1/x", b"Transfer-Encoding: chunked") + b"5\r\nhello\r\nZZ\r\n",
    "tls": b"\x16\x03\x01\x02\x00 a TLS hello is no request",
}

ANSWERS = {
    "sized": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    "stream": b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    + chunked(b"data: 1\n\n", b"x"),
    "until close": b"HTTP/1.1 200 OK\r\n\r\nuntil the end of the connection",
    "hints, then 204": b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
    "401 and close": b"HTTP/1.1 401 Unauthorized\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno",
    "304": b"HTTP/1.1 304 Not Modified\r\nContent-Length: 900\r\n\r\n",
    "too much": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello, and more than was announced",
    "bad chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnot a chunk",
    "101": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
    "ssh": b"SSH-2.0-OpenSSH_9.9\r\n",
    "large": b"HTTP/1.1 200 OK\r\nContent-Length: 70000\r\n\r\n" + b"x" * 70_000,
}


class _Story:
    """One proxy, one caller and what happens to them."""

    def __init__(self) -> None:
        limits = Upstream(pool_size=2, pool_idle_s=45, first_byte_timeout_s=30, idle_timeout_s=20)
        self.proxy = ProxyInMemory(limits=limits)
        self.endpoint = self.proxy.endpoints["openai"]
        self.caller = self.proxy.caller()

    def newest(self) -> FarEnd | None:
        return self.endpoint.connections[-1] if self.endpoint.connections else None

    def on_newest(self, act: Callable[[FarEnd], object]) -> None:
        provider = self.newest()
        if provider is not None:
            act(provider)

    def caller_says(self, data: bytes) -> None:
        if not self.caller.transport.connected:
            self.caller = self.proxy.caller()
        self.caller.says(data)

    def dialled(self, accepted: bool) -> None:
        if self.endpoint.waiting:
            if accepted:
                self.endpoint.accept()
            else:
                self.endpoint.refuse(ConnectError())

    def dial_slowly(self) -> None:
        self.endpoint.slow = True

    def _connected(self) -> list[FarEnd]:
        return [far for far in self.endpoint.connections if far.transport.connected]

    def end(self) -> None:
        """Everybody leaves, the callers first. One whose connection is not being read is seen to have left when the
        provider's side ends."""
        for caller in self.proxy.callers:
            caller.reads_on()
            caller.resets()
        while self.proxy.site.channels and (self.endpoint.waiting or self._connected()):
            for provider in self._connected():
                provider.reads_on()
                provider.resets()
            while self.endpoint.waiting:
                self.endpoint.refuse(ConnectError())
        self.proxy.clock.advance(0)


_event = st.one_of(
    st.tuples(st.just("caller_says"), st.sampled_from(sorted(REQUESTS))),
    st.tuples(st.just("caller_says_some"), st.sampled_from(sorted(REQUESTS)), st.integers(1, 200)),
    st.tuples(st.just("provider_says"), st.sampled_from(sorted(ANSWERS))),
    st.tuples(st.just("provider_says_some"), st.sampled_from(sorted(ANSWERS)), st.integers(1, 120)),
    st.sampled_from(
        [
            ("caller_ends",),
            ("caller_resets",),
            ("caller_stops_reading",),
            ("caller_reads_on",),
            ("provider_ends",),
            ("provider_resets",),
            ("provider_stops_reading",),
            ("provider_reads_on",),
            ("dial_slowly",),
            ("dial_succeeds",),
            ("dial_fails",),
            ("a_second",),
            ("half_a_minute",),
        ]
    ),
)


def _happen(story: _Story, event: tuple[object, ...]) -> None:
    match event:
        case ("caller_says", str(what)):
            story.caller_says(REQUESTS[what])
        case ("caller_says_some", str(what), int(size)):
            story.caller_says(REQUESTS[what][:size])
        case ("provider_says", str(what)):
            story.on_newest(lambda far: far.says(ANSWERS[what]))
        case ("provider_says_some", str(what), int(size)):
            story.on_newest(lambda far: far.says(ANSWERS[what][:size]))
        case ("caller_ends",):
            story.caller.ends()
        case ("caller_resets",):
            story.caller.resets()
        case ("caller_stops_reading",):
            story.caller.stops_reading()
        case ("caller_reads_on",):
            story.caller.reads_on()
        case ("provider_ends",):
            story.on_newest(FarEnd.ends)
        case ("provider_resets",):
            story.on_newest(FarEnd.resets)
        case ("provider_stops_reading",):
            story.on_newest(FarEnd.stops_reading)
        case ("provider_reads_on",):
            story.on_newest(FarEnd.reads_on)
        case ("dial_slowly",):
            story.dial_slowly()
        case ("dial_succeeds",):
            story.dialled(True)
        case ("dial_fails",):
            story.dialled(False)
        case ("a_second",):
            story.proxy.pass_time(1)
        case ("half_a_minute",):
            story.proxy.pass_time(31)
        case _:
            raise AssertionError(event)


class AnyOrder(SynchronousTestCase):
    """Callers and providers do what they like."""

    @settings(max_examples=400)
    @given(st.lists(_event, min_size=1, max_size=14))
    def test_one_end_each(self, events: list[tuple[object, ...]]) -> None:
        """Every request that was begun is told in the log exactly once, with a known reason; nothing is logged as
        a fault of ours; no connection, no timer and no wait is left over when everybody has gone."""
        story = _Story()
        proxy = story.proxy
        for event in events:
            _happen(story, event)
        story.end()

        ids = [record["request_id"] for record in proxy.access]
        self.assertEqual(len(ids), len(set(ids)), "an exchange was told twice")
        begun = int(proxy.context.next_request_id().rpartition("-")[2], 16) - 1
        self.assertEqual(len(ids), begun, "an exchange was begun and never told")
        self.assertLessEqual({record["end_reason"] for record in proxy.access}, set(EndReason))
        self.assertNotIn(EndReason.PROXY_ERROR, [record["end_reason"] for record in proxy.access])
        self.assertEqual(self.flushLoggedErrors(), [])

        self.assertEqual(proxy.site.channels, set())
        # Whoever may still be connected upstream is idle, and gone when the pool's time is over.
        proxy.pass_time(50)
        still = [far for far in story.endpoint.connections if far.transport.connected]
        self.assertEqual([far.takes for far in still], [False] * len(still), "an upstream connection was left open")
        if not still:
            self.assertEqual(proxy.clock.getDelayedCalls(), [])

    @settings(max_examples=150)
    @given(st.sampled_from(sorted(REQUESTS)), st.sampled_from(sorted(ANSWERS)), st.data())
    def test_a_caller_may_leave_at_any_byte(self, asks: str, gets: str, data: st.DataObject) -> None:
        """A caller that leaves at any point of an exchange has its upstream connection dropped at once, unless the
        answer was complete, and is told in the log once."""
        story = _Story()
        asked, answer = REQUESTS[asks], ANSWERS[gets]
        sent = data.draw(st.integers(0, len(asked)), "bytes of the request")
        answered = data.draw(st.integers(0, len(answer)), "bytes of the answer")
        story.caller.says(asked[:sent])
        story.on_newest(lambda far: far.says(answer[:answered]))
        story.caller.resets()
        self.assertLessEqual(len(story.proxy.access), 1)
        provider = story.newest()
        if provider is not None and provider.transport.connected:
            self.assertEqual([record["end_reason"] for record in story.proxy.access], ["ok"])
        self.assertEqual(self.flushLoggedErrors(), [])
