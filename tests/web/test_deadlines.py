"""What a caller may not do: take for ever, send without end, come too often. And what it may: think, and be slow.

Each deadline and bound of the caller's side, with a clock in hand. Each ends with its own reason in the log and,
where an answer can still be given, with one that says what happened.
"""

from __future__ import annotations

from typing import Any
from unittest import mock

from twisted.internet.address import IPv4Address
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.config.model import Server
from llmproxy.wire.channel import Channel
from llmproxy.wire.server import MAX_SURPLUS
from tests.web.proxy_in_memory import ProxyInMemory, answers, chunked, field, get, head_and_body, ok, post, request
from tests.wire.far_end import FarEnd

_CHAT = "/openai/v1/chat/completions"
_STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


class _Case(SynchronousTestCase):
    def proxy(self, **server: Any) -> ProxyInMemory:
        """A proxy with these keys under ``server``."""
        return ProxyInMemory(server=Server(**server))

    def assertEnded(self, proxy: ProxyInMemory, *reasons: str) -> None:
        """There is one event for each request, with these reasons, in order."""
        self.assertEqual([str(event["end_reason"]) for event in proxy.access], list(reasons))

    def assertRefused(self, answer: bytes, status: int, error_class: str) -> None:
        """The answer is our own error of this class, and says that the connection closes."""
        self.assertEqual(int(answer.split(b" ", 2)[1]), status)
        self.assertEqual(field(answer, b"X-LLM-Proxy-Error-Class"), error_class.encode())
        self.assertEqual(field(answer, b"Connection"), b"close")


class Heads(_Case):
    """server.header_timeout_s: for a head, all of it."""

    def test_drips(self) -> None:
        """A head that comes byte by byte is not given more time for each byte; the caller is told what was wrong."""
        proxy = self.proxy(header_timeout_s=20)
        caller = proxy.caller()
        for byte in get(_CHAT)[:22]:
            caller.says(bytes((byte,)))
            proxy.pass_time(1)
        self.assertRefused(caller.heard(), 408, "header_timeout")
        proxy.pass_time(3)
        self.assertTrue(caller.closed)
        self.assertEnded(proxy, "header_timeout")

    def test_silence(self) -> None:
        """A connection on which nothing is ever asked is closed without a word, and is no request in the log."""
        proxy = self.proxy(header_timeout_s=20)
        caller = proxy.caller()
        proxy.pass_time(19)
        self.assertFalse(caller.closed)
        proxy.pass_time(3)
        self.assertTrue(caller.closed)
        self.assertEqual(caller.heard(), b"")
        self.assertEnded(proxy)

    def test_later_heads(self) -> None:
        """The time of a later head begins with its first byte, however long the connection has idled before."""
        proxy = self.proxy(header_timeout_s=20, keepalive_timeout_s=400)
        caller = proxy.caller()
        caller.says(get("/health/live"))
        caller.heard()
        proxy.pass_time(300)
        caller.says(b"GET /health")
        proxy.pass_time(19)
        caller.says(b"/live HTTP/1.1\r\nHost: h\r\n\r\n")
        self.assertTrue(caller.heard().startswith(b"HTTP/1.1 200 "))
        caller.says(b"GET /health")
        proxy.pass_time(22)
        self.assertRefused(caller.heard(), 408, "header_timeout")
        self.assertEnded(proxy, "ok", "ok", "header_timeout")

    def test_behind_another(self) -> None:
        """A head that stops behind a request that is being answered is refused after that answer, which is whole."""
        proxy = self.proxy(header_timeout_s=20)
        caller = proxy.caller()
        caller.says(get("/openai/v1/models"))
        caller.says(b"GET /open")
        proxy.pass_time(25)
        self.assertEqual(caller.heard(), b"")
        proxy.provider().says(ok(b"<first>"))
        first, second = caller.heard().split(b"<first>")
        self.assertTrue(first.startswith(b"HTTP/1.1 200 "))
        self.assertRefused(second, 408, "header_timeout")
        self.assertEnded(proxy, "ok", "header_timeout")

    def test_off(self) -> None:
        """0 waits for ever."""
        proxy = self.proxy(header_timeout_s=0, keepalive_timeout_s=0)
        caller = proxy.caller()
        caller.says(b"GET /health/live HTTP/1.1\r\n")
        proxy.pass_time(100)
        proxy.clock.advance(100_000)
        caller.says(b"Host: h\r\n\r\n")
        self.assertTrue(caller.heard().startswith(b"HTTP/1.1 200 "))
        proxy.clock.advance(100_000)
        self.assertFalse(caller.closed)


class Bodies(_Case):
    """server.body_idle_timeout_s: between two reads of an upload."""

    def test_stalls(self) -> None:
        """An upload that stops coming ends the request at both ends; the provider cannot take it for whole."""
        for head in (b"Content-Length: 100000", b"Transfer-Encoding: chunked"):
            proxy = self.proxy(body_idle_timeout_s=60)
            caller = proxy.caller()
            caller.says(request("POST", "/anthropic/v1/messages", b"Content-Type: a/b", head) + b"5\r\nhello\r\n")
            proxy.pass_time(59)
            self.assertFalse(proxy.provider("anthropic").closed)
            proxy.pass_time(4)
            answer = caller.heard()
            self.assertRefused(answer, 408, "body_idle_timeout")
            self.assertIn(b'"type":"error"', answer)
            self.assertTrue(proxy.provider("anthropic").was_reset)
            self.assertEnded(proxy, "body_idle_timeout")

    def test_slow_and_steady(self) -> None:
        """A caller that sends a little now and then may take as long as it likes."""
        proxy = self.proxy(body_idle_timeout_s=60)
        caller = proxy.caller()
        caller.says(request("POST", _CHAT, b"Content-Type: a/b", b"Content-Length: 20"))
        for _ in range(20):
            proxy.pass_time(50)
            caller.says(b"x")
        proxy.provider().says(ok())
        self.assertEnded(proxy, "ok")

    def test_held_back(self) -> None:
        """While the provider does not take the upload, the caller's time stands still."""
        proxy = self.proxy(body_idle_timeout_s=60)
        caller = proxy.caller()
        caller.says(request("POST", _CHAT, b"Content-Type: a/b", b"Content-Length: 1000000") + b"x" * 1000)
        proxy.provider().stops_reading()
        caller.says(b"x" * 500_000)
        proxy.pass_time(300)
        self.assertGreater(caller.unread_bytes, 0)
        self.assertEnded(proxy)
        proxy.provider().reads_on()
        proxy.pass_time(50)
        caller.says(b"x" * 499_000)
        proxy.provider().says(ok())
        self.assertEnded(proxy, "ok")

    def test_too_large(self) -> None:
        """A body that is announced as too large is refused before a byte of it is asked for or sent on."""
        proxy = self.proxy(max_body_bytes=1000)
        caller = proxy.caller()
        caller.says(request("POST", _CHAT, b"Content-Length: 1001", b"Expect: 100-continue"))
        self.assertRefused(caller.heard(), 413, "body_too_large")
        self.assertEqual(proxy.connections(), 0)
        self.assertEnded(proxy, "body_too_large")
        proxy.exchange(post(_CHAT, b"x" * 1000, b"Content-Type: a/b"), ok())
        self.assertEnded(proxy, "body_too_large", "ok")

    def test_grows_too_large(self) -> None:
        """A chunked body is refused at the byte that is one too many, and the provider never gets its end."""
        proxy = self.proxy(max_body_bytes=1000)
        caller = proxy.caller()
        caller.says(request("POST", _CHAT, b"Content-Type: a/b", b"Transfer-Encoding: chunked"))
        caller.says(b"3e8\r\n" + b"x" * 1000 + b"\r\n")
        self.assertEqual(caller.heard(), b"")
        caller.says(b"1\r\nx\r\n0\r\n\r\n")
        self.assertRefused(caller.heard(), 413, "body_too_large")
        self.assertTrue(proxy.provider().was_reset)
        self.assertFalse(proxy.provider().heard().endswith(b"0\r\n\r\n"))
        self.assertEnded(proxy, "body_too_large")

    def test_as_large_as_it_likes(self) -> None:
        """0 is no bound."""
        proxy = self.proxy(max_body_bytes=0)
        sent, _ = proxy.exchange(
            request("POST", _CHAT, b"Content-Type: a/b", b"Transfer-Encoding: chunked") + chunked(b"x" * 5000), ok()
        )
        self.assertTrue(sent.endswith(b"0\r\n\r\n"))
        self.assertEnded(proxy, "ok")


class Readers(_Case):
    """server.write_idle_timeout_s: for a caller that takes nothing of what waits for it."""

    def stalled(self) -> tuple[ProxyInMemory, FarEnd]:
        """A caller that has stopped reading in mid-stream, with more waiting than it is given at once."""
        proxy = self.proxy(write_idle_timeout_s=120)
        caller = proxy.caller()
        caller.says(post(_CHAT, b"{}"))
        proxy.provider().says(_STREAM_HEAD)
        caller.stops_reading()
        for _ in range(10):
            proxy.provider().says(b"4000\r\n" + b"x" * 0x4000 + b"\r\n")
        return proxy, caller

    def test_stalled(self) -> None:
        """A reader that takes nothing for two minutes is cut, and the provider with it."""
        proxy, caller = self.stalled()
        proxy.pass_time(110)
        self.assertFalse(caller.was_reset)
        proxy.pass_time(50)
        self.assertTrue(caller.was_reset)
        self.assertTrue(proxy.provider().was_reset)
        self.assertEnded(proxy, "write_idle_timeout")

    def test_slow_and_steady(self) -> None:
        """A reader that takes a little now and then is never cut."""
        proxy, caller = self.stalled()
        for _ in range(5):
            proxy.pass_time(100)
            caller.takes = True
            caller.transport.flushed()
            caller.takes = False
            proxy.provider().says(b"4000\r\n" + b"x" * 0x4000 + b"\r\n", b"4000\r\n" + b"x" * 0x4000 + b"\r\n")
        self.assertFalse(caller.was_reset)
        self.assertEnded(proxy)

    def test_the_end_is_not_taken(self) -> None:
        """A caller that does not take the end of a complete answer does not hold its connection for ever."""
        proxy = self.proxy(write_idle_timeout_s=120)
        caller = proxy.caller()
        caller.says(get("/openai/v1/models", b"Connection: close"))
        caller.stops_reading()
        proxy.provider().says(ok(b"x" * 20_000))
        self.assertFalse(caller.closed)
        proxy.pass_time(150)
        self.assertTrue(caller.closed)
        self.assertEqual(proxy.site.channels, set())

    def test_silence_is_no_stall(self) -> None:
        """A model that thinks for nine minutes, before its answer and within it, is waited for."""
        proxy = self.proxy()
        caller = proxy.caller()
        caller.says(post(_CHAT, b"{}"))
        proxy.pass_time(540)
        proxy.provider().says(_STREAM_HEAD, b"1\r\nx\r\n")
        proxy.pass_time(540)
        proxy.provider().says(b"0\r\n\r\n")
        self.assertTrue(caller.heard().endswith(b"x\r\n0\r\n\r\n"))
        self.assertEnded(proxy, "ok")


class Connections(_Case):
    """server.keepalive_timeout_s, max_connections, max_connections_per_ip, max_requests."""

    def test_keepalive(self) -> None:
        """A connection that waits for a next request is closed in peace after its time."""
        proxy = self.proxy(keepalive_timeout_s=400)
        caller = proxy.caller()
        caller.says(get("/health/live"))
        proxy.pass_time(399)
        self.assertFalse(caller.closed)
        proxy.pass_time(3)
        self.assertTrue(caller.closed)
        self.assertFalse(caller.was_reset)

    def test_too_many(self) -> None:
        """Where every connection is in use, one more gets a 503 that says when to come again, in its own dialect, and
        is closed. Health is told all the same: a full proxy is not to be started anew."""
        proxy = self.proxy(max_connections=2)
        for _ in range(2):
            proxy.caller().says(post(_CHAT, b"{}"))
        answer = proxy.ask(post("/anthropic/v1/messages", b"{}"))
        self.assertRefused(answer, 503, "too_many_connections")
        self.assertEqual(field(answer, b"Retry-After"), b"1")
        self.assertIn(b'"type":"error"', answer)
        self.assertIn(b"server.max_connections", answer)
        proxy.pass_time(3)
        for path in ("/health", "/health/live?x", "/health/ready"):
            caller = proxy.caller()
            caller.says(get(path) + get("/openai/v1/models"))
            answer = caller.heard()
            self.assertTrue(answer.startswith(b"HTTP/1.1 200 "), answer)
            self.assertEqual((field(answer, b"Connection"), answers(answer), caller.closed), (b"close", 1, True))
        self.assertEqual(proxy.connections(), 2)
        self.assertEnded(proxy, "overloaded", "ok", "ok", "ok")
        proxy.callers[0].resets()
        proxy.caller().says(get("/openai/v1/models"))
        self.assertEqual(proxy.connections(), 3)

    def test_too_many_silent_ones(self) -> None:
        """One too many that asks nothing is closed soon; of those there is a bound; and how many were refused is told,
        at once and every ten seconds, to the last."""
        said: list[str] = []

        def hear(event: Any) -> None:
            if "is reached" in str(event.get("log_format")):
                said.append(f"{event['limit']} {event['count']}")

        globalLogPublisher.addObserver(hear)  # type: ignore[arg-type]
        self.addCleanup(globalLogPublisher.removeObserver, hear)  # type: ignore[arg-type]
        proxy = self.proxy(max_connections=1)
        proxy.caller().says(post(_CHAT, b"{}"))
        taken = [proxy.site.buildProtocol(IPv4Address("TCP", "192.0.2.1", 1)) for _ in range(3)]
        silent = [FarEnd(proxy.clock, each).connect() for each in taken]
        proxy.pass_time(3)
        self.assertEqual([far.closed for far in silent], [True] * 3)
        crowd: list[Any] = []
        while (more := proxy.site.buildProtocol(IPv4Address("TCP", "192.0.2.1", 1))) is not None:
            crowd.append(FarEnd(proxy.clock, more).connect())
        self.assertEqual(len(crowd), MAX_SURPLUS)
        self.assertEqual(said, ["1 1"])
        proxy.pass_time(10)
        self.assertEqual(said, ["1 1", f"1 {MAX_SURPLUS + 3}"])
        proxy.caller()
        proxy.site.stop()
        self.assertEqual(said[2:], ["1 1"])

    def test_the_idle_make_room(self) -> None:
        """The connection that has waited longest for a next request is closed for a new one."""
        proxy = self.proxy(max_connections=2)
        first, second = proxy.caller(), proxy.caller()
        first.says(get("/health/live"))
        proxy.pass_time(1)
        second.says(get("/health/live"))
        third = proxy.caller()
        third.says(get("/health/live"))
        self.assertTrue(third.heard().startswith(b"HTTP/1.1 200 "))
        self.assertEqual((first.closed, second.closed), (True, False))

    def test_per_address(self) -> None:
        """One address may have so many; what it gives back, it may have again."""
        proxy = self.proxy(max_connections_per_ip=2)

        def come(host: str) -> Any:
            far = FarEnd(proxy.clock, proxy.site.buildProtocol(IPv4Address("TCP", host, 1)))
            return far.connect()

        one, _, three, other = come("192.0.2.1"), come("192.0.2.1"), come("192.0.2.1"), come("192.0.2.2")
        for far, status in ((three, 503), (one, 404), (other, 404)):
            far.says(get("/nowhere"))
            self.assertEqual(int(far.heard().split(b" ", 2)[1]), status)
        one.ends()
        four = come("192.0.2.1")
        four.says(get("/nowhere"))
        self.assertTrue(four.heard().startswith(b"HTTP/1.1 404 "))

    def test_too_many_requests(self) -> None:
        """One request too many in flight is refused in its own dialect; health is still told."""
        proxy = self.proxy(max_requests=1)
        proxy.caller().says(post(_CHAT, b"{}"))
        answer = proxy.ask(post("/anthropic/v1/messages", b"{}"))
        self.assertEqual(field(answer, b"X-LLM-Proxy-Error-Class"), b"overloaded")
        self.assertEqual(field(answer, b"Retry-After"), b"1")
        self.assertTrue(answer.startswith(b"HTTP/1.1 503 "))
        self.assertIn(b'"type":"error"', answer)
        self.assertTrue(proxy.ask(get("/health/live")).startswith(b"HTTP/1.1 200 "))
        proxy.provider().says(ok())
        self.assertEqual(proxy.site.in_flight, 0)
        proxy.exchange(post(_CHAT, b"{}"), ok())
        self.assertEnded(proxy, "overloaded", "ok", "ok", "ok")


class HalfClosed(_Case):
    """Callers that send nothing more after their request, and read on."""

    def test_answered(self) -> None:
        """The answer is given all the same, whole, and the connection closed."""
        proxy = self.proxy()
        caller = proxy.caller()
        caller.says(post(_CHAT, b"{}"))
        caller.half_closes()
        proxy.pass_time(5)
        proxy.provider().says(_STREAM_HEAD, b"1\r\nx\r\n")
        proxy.pass_time(5)
        proxy.provider().says(b"0\r\n\r\n")
        heard = caller.heard()
        while heard.startswith(b"HTTP/1.1 100 Continue\r\n\r\n"):
            heard = head_and_body(heard)[1]
        self.assertTrue(heard.startswith(b"HTTP/1.1 200 OK\r\n"))
        self.assertTrue(caller.closed)
        self.assertFalse(caller.was_reset)
        self.assertEnded(proxy, "ok")

    def test_pipelined(self) -> None:
        """So are several requests, in order."""
        proxy = self.proxy()
        caller = proxy.caller()
        caller.says(get("/openai/v1/models") + get("/health/live") + get("/health/ready"))
        caller.half_closes()
        proxy.pass_time(1)
        proxy.provider().says(ok(b"first"))
        heard = caller.heard()
        self.assertEqual(heard.count(b"HTTP/1.1 200 OK\r\n"), 3)
        self.assertLess(heard.index(b"first"), heard.index(b"live"))
        self.assertTrue(caller.closed)
        self.assertEnded(proxy, "ok", "ok", "ok")

    def test_within_a_body_that_has_its_answer(self) -> None:
        """A caller that stops in the middle of a body which was answered early still gets that answer."""
        proxy = self.proxy()
        caller = proxy.caller()
        caller.stops_reading()
        caller.says(request("POST", "/nowhere", b"Content-Length: 5000") + b"x" * 100)
        caller.half_closes()
        caller.reads_on()
        self.assertTrue(caller.heard().startswith(b"HTTP/1.1 404 "))
        self.assertEqual((caller.closed, caller.was_reset), (True, False))

    def test_left_altogether(self) -> None:
        """A caller that has closed altogether is found out by the next thing that is sent to it, which is sent at once:
        before the answer, and within one that has stopped for a while."""
        for answered in (False, True):
            proxy = self.proxy()
            caller = proxy.caller()
            caller.says(post(_CHAT, b"{}"))
            if answered:
                proxy.provider().says(_STREAM_HEAD, b"1\r\nx\r\n")
            caller.ends()
            self.assertTrue(proxy.provider().was_reset)
            self.assertEnded(proxy, "client_gone")

    def test_leaves_later(self) -> None:
        """A caller that half-closes and leaves afterwards is found out within seconds."""
        proxy = self.proxy()
        caller = proxy.caller()
        caller.says(post(_CHAT, b"{}"))
        caller.half_closes()
        caller.is_gone()
        proxy.pass_time(3)
        self.assertTrue(proxy.provider().was_reset)
        self.assertEnded(proxy, "client_gone")

    def test_probes_change_nothing(self) -> None:
        """What is sent to see whether the caller is there leaves the answer what it is: chunk sizes may begin with
        zeros, and interim answers are skipped."""
        proxy = self.proxy()
        caller = proxy.caller()
        caller.says(post(_CHAT, b"{}"))
        proxy.provider().says(_STREAM_HEAD)
        caller.half_closes()
        proxy.pass_time(120)
        proxy.provider().says(b"1a\r\n" + b"x" * 26 + b"\r\n")
        proxy.pass_time(60)
        proxy.provider().says(b"0\r\n\r\n")
        body = head_and_body(caller.heard())[1]
        self.assertRegex(body, rb"\A0{1,5}1a\r\nx{26}\r\n0{1,5}\r\n\r\n\Z")
        self.assertEnded(proxy, "ok")

    def test_left_in_a_head(self) -> None:
        """A caller that leaves in the middle of its next request frees the provider of the one before it."""
        proxy = self.proxy()
        caller = proxy.caller()
        caller.says(get("/openai/v1/models"), b"GET /open")
        caller.ends()
        proxy.pass_time(1)
        self.assertTrue(proxy.provider().was_reset)
        self.assertEqual(proxy.site.channels, set())

    def test_cut_after_a_probe(self) -> None:
        """An answer that is cut behind a leading zero does not look as if that were its last chunk."""
        proxy = self.proxy()
        caller = proxy.caller()
        caller.says(post(_CHAT, b"{}"))
        proxy.provider().says(_STREAM_HEAD, b"1\r\nx\r\n")
        caller.half_closes()
        proxy.provider().resets()
        self.assertTrue(caller.heard().endswith(b"x\r\n01\r\n"))
        self.assertEnded(proxy, "upstream_truncated")

    def test_in_mid_request(self) -> None:
        """A request that is not complete never will be: a head is answered with 400, an upload ends both sides."""
        proxy = self.proxy()
        caller = proxy.caller()
        caller.says(b"GET /openai/v1/mod")
        caller.half_closes()
        self.assertRefused(caller.heard(), 400, "bad_request")
        caller = proxy.caller()
        caller.says(post(_CHAT, b"x" * 100, b"Content-Type: a/b")[:-1])
        caller.half_closes()
        self.assertTrue(proxy.provider().was_reset)
        self.assertEnded(proxy, "bad_request", "client_gone")

    def test_http_1_0(self) -> None:
        """To an HTTP/1.0 caller nothing can be sent before the answer; it counts as gone, as it nearly always is."""
        proxy = self.proxy()
        caller = proxy.caller()
        caller.says(b"GET /openai/v1/models HTTP/1.0\r\n\r\n")
        caller.half_closes()
        self.assertTrue(proxy.provider().was_reset)
        self.assertEnded(proxy, "client_gone")


class Malformed(_Case):
    """Heads that are refused."""

    def test_behind_another(self) -> None:
        """A malformed head behind a good request is answered in its turn, and has its line in the log."""
        proxy = self.proxy()
        caller = proxy.caller()
        caller.says(
            get("/openai/v1/models")
            + b"GET /anthropic/v1/messages HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"
            + get("/health")
        )
        self.assertEqual(caller.heard(), b"")
        proxy.provider().says(ok(b"<first>"))
        first, second = caller.heard().split(b"<first>")
        self.assertTrue(first.startswith(b"HTTP/1.1 200 "))
        self.assertRefused(second, 400, "bad_request")
        self.assertIn(b'"type":"error"', second)
        proxy.pass_time(4)
        self.assertTrue(caller.closed)
        self.assertEnded(proxy, "ok", "bad_request")

    def test_behind_the_last(self) -> None:
        """What comes behind a request that closes the connection is no request, has no answer and no line."""
        for last in (get("/openai/v1/models", b"Connection: close"), get("/health/live", b"Connection: close")):
            for behind in (get("/openai/v1/other"), b"\x00\x00", b"GET"):
                for cut in (0, len(last)):
                    proxy = self.proxy()
                    caller = proxy.caller()
                    caller.says(*((last[:cut], last[cut:] + behind) if not cut else (last, behind)))
                    if proxy.connections():
                        proxy.provider().says(ok(b"the answer"))
                    self.assertEqual(caller.heard().count(b"HTTP/1.1 "), 1)
                    proxy.pass_time(4)
                    self.assertTrue(caller.closed)
                    self.assertEnded(proxy, "ok")

    def test_fields(self) -> None:
        """Too many fields, too large a head, too long a target: each has its status."""
        proxy = self.proxy(max_headers=20, max_header_bytes=4096)
        many = get("/openai/v1/x", *(b"X-%d: y" % n for n in range(20)))
        for sent, status, error_class in (
            (many, 431, "header_fields_too_large"),
            (get("/openai/v1/x", *(b"X-%d: y" % n for n in range(25)))[:-2], 431, "header_fields_too_large"),
            (get("/openai/v1/x", b"X: " + b"y" * 4096), 431, "header_fields_too_large"),
            (get("/openai/v1/" + "x" * 4096), 414, "uri_too_long"),
            (b"GET /openai/v1/" + b"x" * 4096, 414, "uri_too_long"),
        ):
            self.assertRefused(proxy.ask(sent), status, error_class)
        self.assertEqual({event["end_reason"] for event in proxy.access}, {"header_too_large"})
        self.assertEqual(proxy.connections(), 0)

    def test_absolute_form(self) -> None:
        """An absolute target is taken if it names this proxy, and forwarded as a path; any other is refused."""
        proxy = ProxyInMemory(server=Server(public_url="https://llm.example:8443"))
        caller = proxy.caller()
        caller.says(b"GET http://LLM.example:8443/openai/v1/models?a=/b HTTP/1.1\r\nHost: llm.example:8443\r\n\r\n")
        self.assertTrue(proxy.provider().heard().startswith(b"GET /v1/models?a=/b HTTP/1.1\r\nHost: openai.test\r\n"))
        for target, host in (
            (b"http://evil.example/openai/v1/models", b"evil.example"),
            (b"http://llm.example:8443/openai/v1/models", b"evil.example"),
            (b"http://llm.example:8443@evil.example/openai/v1/models", b"llm.example:8443"),
            (b"ftp://llm.example:8443/openai/v1/models", b"llm.example:8443"),
            (b"llm.example:8443", b"llm.example:8443"),
        ):
            answer = proxy.ask(b"GET %b HTTP/1.1\r\nHost: %b\r\n\r\n" % (target, host))
            self.assertTrue(answer.startswith(b"HTTP/1.1 400 "), target)
        self.assertEqual(proxy.connections(), 1)


class Ends(_Case):
    """Connections that end in odd moments."""

    def test_broken_after_an_early_answer(self) -> None:
        """A body that breaks behind its early answer does not leave its connection open for ever."""
        proxy = self.proxy()
        caller = proxy.caller()
        caller.says(request("POST", "/nowhere", b"Transfer-Encoding: chunked"))
        caller.says(b"zz\r\n")
        proxy.pass_time(15)
        self.assertEqual(proxy.site.channels, set())
        self.assertEnded(proxy, "bad_request")

    def test_refused_once(self) -> None:
        """A malformed head behind an answer that takes long is refused once, however long that takes."""
        proxy = self.proxy(header_timeout_s=5)
        caller = proxy.caller()
        caller.says(get("/openai/v1/models") + b"GET /openai/v1/x HTTP/1.1\r\nHost: a\r\nBad Field: x\r\n\r\n")
        proxy.pass_time(20)
        proxy.provider().says(ok(b"<first>"))
        self.assertEqual(caller.heard().count(b"\r\nX-LLM-Proxy-Request-ID: "), 2)
        proxy.pass_time(15)
        self.assertEnded(proxy, "ok", "bad_request")

    def test_two_in_one_read(self) -> None:
        """Two requests in one read teach nothing: the bytes of one are never taken for the fields of the other."""
        proxy = self.proxy()
        caller = proxy.caller()
        caller.says(get("/health/live"))
        preflight = request(
            "OPTIONS", "/openai/m", b"Origin: https://a.example", b"Access-Control-Request-Method: GET", body=b"12345"
        )
        caller.says(preflight + request("OPTIONS", "/openai/m", b"Authorization: Bearer sk-other"))
        proxy.provider().says(ok())
        (channel,) = proxy.site.channels
        self.assertIsNone(channel._repeat)


class Reloading(_Case):
    """Other deadlines while somebody waits."""

    def reload(self, proxy: ProxyInMemory, **server: Any) -> None:
        """The same proxy with these keys under ``server``."""
        other = self.proxy(**server)
        proxy.site.replace(other.site.resource, other.context)

    def test_switched_on(self) -> None:
        """A deadline that is switched on holds for those who wait already: for a next request, a head and a body."""
        proxy = self.proxy(keepalive_timeout_s=0, header_timeout_s=0, body_idle_timeout_s=0)
        idle, in_head, in_body = proxy.caller(), proxy.caller(), proxy.caller()
        idle.says(get("/health/live"))
        in_head.says(b"GET / HT")
        in_body.says(request("POST", _CHAT, b"Content-Length: 100") + b"{")
        proxy.pass_time(1000)
        self.reload(proxy, keepalive_timeout_s=5, header_timeout_s=5, body_idle_timeout_s=5)
        proxy.pass_time(4)
        self.assertEqual([each.closed for each in (idle, in_head, in_body)], [False] * 3)
        proxy.pass_time(6)
        self.assertEqual([each.closed for each in (idle, in_head, in_body)], [True] * 3)

    def test_one_too_many(self) -> None:
        """A connection that is one too many has its short time whatever the limits are."""
        proxy = self.proxy(max_connections=1)
        proxy.caller().says(post(_CHAT, b"{}"))
        surplus = proxy.caller()
        self.reload(proxy, max_connections=1, header_timeout_s=0)
        proxy.pass_time(5)
        self.assertTrue(surplus.closed)

    def test_shorter(self) -> None:
        """A shorter one holds from now on; a longer one does not make a wait longer that has begun."""
        proxy = self.proxy(keepalive_timeout_s=400)
        caller = proxy.caller()
        caller.says(get("/health/live"))
        self.reload(proxy, keepalive_timeout_s=5)
        self.reload(proxy, keepalive_timeout_s=300)
        proxy.pass_time(4)
        self.assertFalse(caller.closed)
        proxy.pass_time(4)
        self.assertTrue(caller.closed)

    def test_switched_off(self) -> None:
        """One that is switched off ends nobody any more."""
        proxy = self.proxy(keepalive_timeout_s=5)
        caller = proxy.caller()
        caller.says(get("/health/live"))
        self.reload(proxy, keepalive_timeout_s=0)
        proxy.pass_time(1000)
        self.assertFalse(caller.closed)


class Faults(_Case):
    """A fault of ours at one connection."""

    def test_the_others(self) -> None:
        """It does not keep the time of the others from running."""
        proxy = self.proxy(header_timeout_s=5)
        callers = [proxy.caller() for _ in range(3)]
        for caller in callers:
            caller.says(b"GET / HT")

        def broken(*_: object) -> None:
            raise RuntimeError("a bug")

        with mock.patch.object(Channel, "too_late", broken):
            self.assertRaises(RuntimeError, proxy.pass_time, 7)
        proxy.pass_time(3)
        self.assertEqual([each.closed for each in callers], [True] * 3)


class Draining(_Case):
    """A proxy that is about to stop."""

    def test_order(self) -> None:
        """Ready says no; idle connections close; an answer under way is finished, one to come says that it is the
        last; when all is done, that is told."""
        proxy = self.proxy()
        idle, streaming, waiting = proxy.caller(), proxy.caller(), proxy.caller()
        idle.says(get("/health/ready"))
        self.assertTrue(idle.heard().startswith(b"HTTP/1.1 200 "))
        streaming.says(post(_CHAT, b"{}"))
        proxy.provider().says(_STREAM_HEAD)
        waiting.says(post(_CHAT, b"{}"))
        proxy.site.begin_drain()
        self.assertTrue(proxy.ask(get("/health/ready")).startswith(b"HTTP/1.1 503 "))
        self.assertTrue(proxy.ask(get("/health/live")).startswith(b"HTTP/1.1 200 "))
        proxy.site.close_idle()
        proxy.pass_time(0.25)
        self.assertTrue(idle.closed)
        drained = proxy.site.when_drained()
        proxy.provider(number=0).says(b"1\r\nx\r\n0\r\n\r\n")
        self.assertTrue(streaming.heard().endswith(b"x\r\n0\r\n\r\n"))
        self.assertTrue(streaming.closed)
        self.assertNoResult(drained)
        proxy.provider(number=1).says(ok(b"last"))
        answer = waiting.heard()
        self.assertEqual(field(answer, b"Connection"), b"close")
        self.assertTrue(answer.endswith(b"last"))
        self.successResultOf(drained)

    def test_rest_of_a_body(self) -> None:
        """A connection that reads away the rest of a body after an early answer is closed without a reset, which could
        take that answer out of the caller's hands."""
        proxy = self.proxy()
        caller = proxy.caller()
        caller.says(request("POST", "/nowhere", b"Content-Length: 100000") + b"x" * 1000)
        self.assertTrue(caller.heard().startswith(b"HTTP/1.1 404 "))
        proxy.site.close_idle()
        caller.turn()
        self.assertTrue(caller.closed)
        caller.says(b"x" * 1000)
        self.assertEqual((caller.transport.connected, caller.unread_bytes), (True, 0))
        proxy.pass_time(3)
        self.assertEqual((caller.transport.connected, caller.was_reset), (False, False))

    def test_cut(self) -> None:
        """What cannot be waited for is cut visibly, and the log says why."""
        proxy = self.proxy()
        caller = proxy.caller()
        caller.says(post(_CHAT, b"{}"))
        proxy.provider().says(_STREAM_HEAD, b"1\r\nx\r\n")
        proxy.site.close_idle()
        proxy.site.stop()
        proxy.pass_time(0.25)
        self.assertTrue(caller.closed)
        self.assertFalse(caller.heard().endswith(b"0\r\n\r\n"))
        self.assertTrue(proxy.provider().was_reset)
        self.assertEnded(proxy, "drain")

    def test_behind_a_last_answer(self) -> None:
        """A request in line behind the answer with which its connection ends was ended by the proxy, not the caller."""
        proxy = self.proxy()
        caller = proxy.caller()
        caller.says(post(_CHAT, b"{}") + get("/openai/v1/models"))
        proxy.site.begin_drain()
        proxy.provider().says(ok(b"last"))
        proxy.pass_time(0.25)
        self.assertTrue(caller.heard().endswith(b"last"))
        self.assertTrue(caller.closed)
        self.assertEnded(proxy, "ok", "drain")

    def test_cut_with_others_in_line(self) -> None:
        """Requests that wait behind one that is cut have an end too, and the connection is forgotten."""
        proxy = self.proxy()
        caller = proxy.caller()
        caller.says(post(_CHAT, b"{}") + get("/openai/v1/models") + get("/health/live"))
        proxy.site.stop()
        caller.resets()
        self.assertEqual(proxy.site.channels, set())
        self.assertEnded(proxy, "drain", "drain", "drain")
