"""How an exchange can end: what the caller sees, what becomes of the upstream connection, what the log says."""

from __future__ import annotations

import errno
import gc
import json

from twisted.internet.error import ConnectionRefusedError as Refused
from twisted.internet.error import DNSLookupError
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.config.model import Log, Server, Upstream
from llmproxy.observe.access import ACCESS_FIELDS
from tests.web.proxy_in_memory import ProxyInMemory, answers, chunked, field, get, head_and_body, ok, post, request
from tests.wire.far_end import FarEnd

_STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_CHAT = "/openai/v1/chat/completions"
_QUICK = Upstream(first_byte_timeout_s=30, idle_timeout_s=20)


class _Case(SynchronousTestCase):
    def assertTold(self, proxy: ProxyInMemory, end_reason: str, phase: str, status: int | None) -> None:
        """One access event, which says this."""
        told = [(each["end_reason"], each["phase"], each["status"]) for each in proxy.access]
        self.assertEqual(told, [(end_reason, phase, status)])
        self.assertEqual(self.flushLoggedErrors(), [])

    def assertError(self, answer: bytes, status: int, error_class: str, source: str) -> None:
        """An error of ours, whole, in OpenAI's shape."""
        head, body = head_and_body(answer)
        self.assertEqual(head.split(b" ")[1], b"%d" % status)
        self.assertEqual(field(head, b"x-llm-proxy-error-class"), error_class.encode())
        self.assertEqual(field(head, b"x-llm-proxy-error-source"), source.encode())
        self.assertEqual(field(head, b"content-length"), b"%d" % len(body))
        self.assertEqual(json.loads(body)["error"]["code"], error_class)
        self.assertNotIn(b".test", body)


class Whole(_Case):
    """Exchanges that go well."""

    def test_the_event(self) -> None:
        """The log says who asked what of whom, how it went, how much and how long, in the names that are promised."""
        proxy = ProxyInMemory()
        caller = proxy.caller()
        body = b'{"model":"gpt-4o","stream":true,"user":"alice"}'
        caller.says(post(_CHAT + "?key=AIzaSecretSecret", body, b"User-Agent: OpenAI/Python 3.54.0"))
        proxy.pass_time(0.5)
        proxy.provider().says(_STREAM_HEAD.replace(b"\r\n\r\n", b"\r\nX-Request-ID: req_1\r\n\r\n"))
        proxy.pass_time(1)
        proxy.provider().says(chunked(b"data: 1\n\n", b"data: 2\n\n"))
        (event,) = proxy.access
        self.assertLessEqual(set(event), set(ACCESS_FIELDS))
        said = {name: event.get(name) for name in ACCESS_FIELDS}
        del said["time"], said["credential_id"]
        taken = said["input_tokens"]
        assert isinstance(taken, int)
        self.assertEqual(
            said,
            {
                "event": "access",
                "request_id": "llmp-000102030405-00000001",
                "upstream_request_id": "req_1",
                "user": "alice",
                "provider": "openai",
                "route": "openai",
                "method": "POST",
                "path": _CHAT,
                "model": "gpt-4o",
                "stream_requested": True,
                "streamed": True,
                "status": 200,
                "request_bytes": len(body),
                "response_bytes": 18,
                "chunks": 2,
                "ttfb_ms": 500.0,
                "connect_ms": 0.0,
                "overhead_ms": 0.0,
                "duration_ms": 1500.0,
                "end_reason": "ok",
                "phase": "done",
                "sdk": "openai-python/3.54.0",
                "retries": 0,
                "error_class": None,
                "error_detail": None,
                "client": "192.0.2.7",
                # A stream of nothing that is known: charged, as a model was asked, at an estimate.
                "usage_source": "estimated",
                "usage_reason": "not_json",
                "input_tokens": taken,
                "output_tokens": 1,
                "cache_read_tokens": 0,
                "cache_write_tokens": 0,
                "reasoning_tokens": 0,
                "cost_nano_usd": taken * 2500 + 10_000,
                "unpriced": False,
                "response_model": None,
                "finish_reason": None,
                "include_usage": "added",
            },
        )
        self.assertGreater(taken, 0)

    def test_errors_of_the_provider_pass(self) -> None:
        """A provider's own error is an answer like any other: untouched, and no mark of ours on it."""
        proxy = ProxyInMemory()
        raw = b'{"error":{"message":"slow down"}}'
        answer = proxy.exchange(
            post(_CHAT, b"{}"),
            b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 7\r\nContent-Length: %d\r\n\r\n%b" % (len(raw), raw),
        )[1]
        head, body = head_and_body(answer)
        self.assertTrue(head.startswith(b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 7\r\n"))
        self.assertEqual(body, raw)
        self.assertNotIn(b"Error-Source", head)
        self.assertTold(proxy, "ok", "done", 429)

    def test_the_connection_is_used_again(self) -> None:
        """The next request goes over the connection that is there."""
        proxy = ProxyInMemory()
        for _ in range(3):
            proxy.exchange(post(_CHAT, b"{}"), ok())
        self.assertEqual(proxy.connections(), 1)
        self.assertEqual([each["connect_ms"] for each in proxy.access], [0.0, None, None])

    def test_early_answer(self) -> None:
        """An answer that comes before the upload is through reaches the caller at once; neither connection is fit for
        another request while the rest is not read."""
        proxy = ProxyInMemory()
        caller = proxy.caller()
        caller.says(b"PUT /openai/v1/f HTTP/1.1\r\nHost: h\r\nContent-Type: a/b\r\nContent-Length: 90000\r\n\r\nsome")
        provider = proxy.provider()
        provider.says(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
        self.assertTrue(caller.heard().endswith(b"\r\n\r\nno"))
        self.assertTrue(provider.closed)
        self.assertTold(proxy, "ok", "done", 413)
        caller.says(b"x" * 89_996 + get("/openai/v1/next"))
        self.assertEqual(len(proxy.endpoints["openai"].connections), 2)
        self.assertTrue(proxy.provider().heard().startswith(b"GET /v1/next HTTP/1.1\r\n"))

    def test_many_quick_answers_behind_a_slow_one(self) -> None:
        """Two hundred health checks that wait behind one slow answer are all answered, in the order they were asked;
        so are their lines in the log."""
        proxy = ProxyInMemory()
        caller = proxy.caller()
        caller.says(get("/openai/v1/slow") + get("/health/live") * 200)
        self.assertEqual((caller.heard(), proxy.access), (b"", []))
        proxy.provider().says(ok(b"slow"))
        _, *heard = caller.heard().split(b"HTTP/1.1 200 OK\r\n")
        self.assertEqual([head_and_body(each)[1] for each in heard], [b"slow"] + [b'{"status":"live"}'] * 200)
        ids = [each.partition(b"X-LLM-Proxy-Request-ID: ")[2].partition(b"\r\n")[0].decode() for each in heard]
        self.assertEqual(len(set(ids)), 201)
        self.assertEqual([each["request_id"] for each in proxy.access], ids)
        self.assertEqual({each["end_reason"] for each in proxy.access}, {"ok"})
        self.assertEqual(self.flushLoggedErrors(), [])
        caller.says(get("/health/live"))
        self.assertEqual(answers(caller.heard()), 1)

    def test_events_in_the_order_of_the_answers(self) -> None:
        """Requests that were sent together have their lines in the log in the order in which they were answered,
        whether a provider, the proxy itself or an error answers."""
        paths = ["/openai/v1/a", "/health/live", "/nowhere", "/openai/v1/b", "/health/live", "/groq/openai/v1/c"]
        proxy = ProxyInMemory()
        caller = proxy.caller()
        caller.says(b"".join(get(path) for path in paths))
        for name in ("openai", "openai", "groq"):
            proxy.provider(name).says(ok())
        self.assertEqual(answers(caller.heard()), len(paths))
        self.assertEqual([each["path"] for each in proxy.access], paths)
        ids = [each["request_id"] for each in proxy.access]
        self.assertEqual(ids, sorted(ids))

    def test_log_switched_off(self) -> None:
        """`log.access: false` writes no access events."""
        proxy = ProxyInMemory(log=Log(access=False))
        proxy.exchange(get("/openai/v1/models"), ok())
        self.assertEqual(proxy.access, [])

    def test_trusted_proxy(self) -> None:
        """Behind a balancer that is trusted, the log has the address of the caller and not of the balancer."""
        from ipaddress import ip_network

        ask = get("/openai/v1/models", b"X-Forwarded-For: 9.9.9.9, 198.51.100.3")
        proxy = ProxyInMemory(server=Server(trusted_proxies=(ip_network("192.0.2.0/24"),)))
        proxy.exchange(ask, ok())
        self.assertEqual((proxy.access[0]["client"], proxy.access[0]["user"]), ("198.51.100.3", "ip:198.51.100.3"))
        proxy = ProxyInMemory()
        proxy.exchange(ask, ok())
        self.assertEqual(proxy.access[0]["client"], "192.0.2.7")

    def test_model_in_path(self) -> None:
        """Gemini names its model in the path, and that is what the log says."""
        proxy = ProxyInMemory()
        proxy.exchange(post("/gemini/v1/models/gemini-2.5-pro:generateContent", b"{}"), ok(), "gemini")
        self.assertEqual(proxy.access[0]["model"], "gemini-2.5-pro")

    def test_compressed_body(self) -> None:
        """A body that the caller has compressed is not looked into, and goes on untouched."""
        proxy = ProxyInMemory()
        sent, _ = proxy.exchange(post(_CHAT, b"\x1f\x8b\x08", b"Content-Encoding: gzip"), ok())
        self.assertTrue(sent.endswith(b"\x1f\x8b\x08"))
        self.assertTold(proxy, "ok", "done", 200)


class CallerGone(_Case):
    """Callers that leave."""

    def test_before_the_answer(self) -> None:
        """A caller that leaves while the provider is silent has its upstream connection dropped at once."""
        for leave in (FarEnd.ends, FarEnd.resets):
            proxy = ProxyInMemory()
            caller = proxy.caller()
            caller.says(post(_CHAT, b"{}"))
            leave(caller)
            self.assertTrue(proxy.provider().was_reset)
            self.assertTold(proxy, "client_gone", "waiting", None)

    def test_before_the_connection(self) -> None:
        """A caller that leaves while a connection is opened stops the opening."""
        proxy = ProxyInMemory()
        endpoint = proxy.endpoints["openai"]
        endpoint.slow = True
        caller = proxy.caller()
        caller.says(get("/openai/v1/models"))
        caller.resets()
        self.assertEqual(endpoint.waiting, [])
        self.assertTold(proxy, "client_gone", "connecting", None)
        proxy.clock.advance(1.0)  # the sweep of deadlines finds nothing to do, and is not set again
        self.assertEqual(proxy.clock.getDelayedCalls(), [])

    def test_within_the_body(self) -> None:
        """A caller that leaves in mid-upload: the provider must not take what it has for the whole."""
        proxy = ProxyInMemory()
        caller = proxy.caller()
        caller.says(request("POST", _CHAT, b"Transfer-Encoding: chunked", b"Content-Type: a/b") + b"5\r\nhello\r\n")
        provider = proxy.provider()
        self.assertTrue(provider.heard().endswith(b"5\r\nhello\r\n"))
        caller.resets()
        self.assertEqual(provider.heard(), b"")
        self.assertTrue(provider.was_reset)
        self.assertTold(proxy, "client_gone", "waiting", None)

    def test_before_the_body_is_looked_at(self) -> None:
        """A caller that leaves while its body is looked at never reaches a provider."""
        proxy = ProxyInMemory()
        caller = proxy.caller()
        caller.says(post(_CHAT, b'{"model":"gpt-4o"}')[:-5])
        caller.ends()
        self.assertEqual(proxy.connections(), 0)
        self.assertTold(proxy, "client_gone", "receiving", None)

    def test_within_the_answer(self) -> None:
        """A caller that leaves a stream has the upstream connection dropped at once; so much was delivered."""
        proxy = ProxyInMemory()
        caller = proxy.caller()
        caller.says(post(_CHAT, b"{}"))
        proxy.provider().says(_STREAM_HEAD, b"9\r\ndata: 1\n\n\r\n")
        caller.resets()
        self.assertTrue(proxy.provider().was_reset)
        self.assertTold(proxy, "client_gone", "relaying", 200)
        self.assertEqual(proxy.access[0]["response_bytes"], 9)

    def test_while_it_does_not_read(self) -> None:
        """A caller that first stops reading and then leaves: the same."""
        proxy = ProxyInMemory()
        caller = proxy.caller()
        caller.says(get("/openai/v1/models"))
        caller.stops_reading()
        proxy.provider().says(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n", b"x" * 900_000)
        caller.resets()
        self.assertTrue(proxy.provider().was_reset)
        self.assertTold(proxy, "client_gone", "relaying", 200)


class UpstreamFails(_Case):
    """Providers that let us down."""

    def test_no_connection(self) -> None:
        """Each way of not getting a connection has its own class and sentence, and says that nothing was sent."""
        for error, status, error_class in (
            (Refused(111), 502, "upstream_connect_failed"),
            (OSError(errno.ENETUNREACH, "unreachable"), 502, "upstream_connect_failed"),
            (DNSLookupError(), 502, "upstream_name_failed"),
            (UnicodeError("not a name"), 502, "upstream_name_failed"),
        ):
            proxy = ProxyInMemory()
            proxy.endpoints["openai"].error = error
            answer = proxy.ask(post(_CHAT, b"{}"))
            self.assertError(answer, status, error_class, "upstream")
            self.assertIn(b"nothing was sent", answer)
            self.assertTold(proxy, "connect_failed", "connecting", status)
            detail = proxy.access[0]["error_detail"]
            reasons = {111: "Connection refused", errno.ENETUNREACH: "Network is unreachable"}
            number = getattr(error, "osError", None) or getattr(error, "errno", None)
            self.assertTrue(detail.endswith(reasons.get(number or 0, "the name could not be resolved")), detail)

    def test_a_fault_instead_of_a_connection(self) -> None:
        """What has nothing to do with a network is a fault of ours, and is told as one."""
        proxy = ProxyInMemory()
        proxy.endpoints["openai"].error = RuntimeError("a bug")
        self.assertError(proxy.ask(post(_CHAT, b"{}")), 500, "proxy_error", "proxy")
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.assertTold(proxy, "proxy_error", "connecting", 500)

    def test_what_was_wrong_in_particular(self) -> None:
        """The event says it, before the head of an answer, within its body, and of a request that is refused."""
        for answer, words in (
            (b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", "the answer is not well-formed HTTP/1.1"),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n", "the answer is not well-formed HTTP/1.1"),
        ):
            proxy = ProxyInMemory()
            proxy.exchange(get("/openai/v1/models"), answer)
            proxy.pass_time(1)
            self.assertEqual(proxy.access[0]["error_detail"], words)
        proxy = ProxyInMemory()
        proxy.ask(b"GET /openai/v1/models HTTP/1.1\r\n\r\n")
        self.assertEqual(proxy.access[0]["error_detail"], "A request has exactly one Host field.")

    def test_time_of_a_first_try(self) -> None:
        """What a provider took before it closed a kept connection is its time, and not the proxy's own."""
        proxy = ProxyInMemory()
        proxy.exchange(get("/openai/v1/models"), ok())
        caller = proxy.caller()
        caller.says(get("/openai/v1/models"))
        proxy.pass_time(5)
        proxy.provider().resets()
        proxy.pass_time(0)
        proxy.provider().says(ok())
        self.assertEqual((proxy.access[1]["retries"], proxy.access[1]["overhead_ms"]), (1, 0.0))

    def test_no_connection_while_uploading(self) -> None:
        """A caller in mid-upload gets the error, the rest of its upload is read and dropped, and the next request on
        that connection is served: closing on unread bytes could take the answer out of the caller's hands."""
        proxy = ProxyInMemory()
        endpoint = proxy.endpoints["openai"]
        endpoint.slow = True
        caller = proxy.caller()
        upload = request("PUT", "/openai/v1/f", b"Content-Type: a/b", body=b"x" * 100_000)
        caller.says(upload[:70_000])
        self.assertGreater(caller.unread_bytes, 0)
        endpoint.refuse(Refused())
        self.assertError(caller.heard(), 502, "upstream_connect_failed", "upstream")
        self.assertEqual(caller.unread_bytes, 0)
        caller.says(upload[70_000:] + get("/health/live"))
        self.assertTrue(caller.heard().endswith(b'{"status":"live"}'))
        self.assertEqual([each["end_reason"] for each in proxy.access], ["connect_failed", "ok"])

    def test_no_connection_in_time(self) -> None:
        """An address that never answers is given up after the connect timeout, with a 504."""
        proxy = ProxyInMemory(connect_timeout_s=10)
        proxy.endpoints["openai"].slow = True
        caller = proxy.caller()
        caller.says(post(_CHAT, b"{}"))
        proxy.pass_time(9.9)
        self.assertEqual(caller.heard(), b"")
        proxy.pass_time(0.2)
        self.assertError(caller.heard(), 504, "upstream_connect_timeout", "upstream")
        self.assertTold(proxy, "connect_timeout", "connecting", 504)

    def test_dies_before_it_answers(self) -> None:
        """A connection that dies without an answer, or within its head, is a 502; a POST is not sent again."""
        for said in (b"", b"HTTP/1.1 200 OK\r\nContent-Le"):
            for die in (FarEnd.ends, FarEnd.resets):
                proxy = ProxyInMemory()
                caller = proxy.caller()
                caller.says(post(_CHAT, b"{}"))
                proxy.provider().says(said)
                die(proxy.provider())
                self.assertError(caller.heard(), 502, "upstream_reset", "upstream")
                self.assertEqual(proxy.connections(), 1)
                self.assertTold(proxy, "upstream_reset", "waiting", 502)

    def test_dies_within_its_answer(self) -> None:
        """A cut answer stays visibly cut: no last chunk, no missing bytes made up, the connection closed."""
        for head, part in (
            (_STREAM_HEAD, b"9\r\ndata: 1\n\n\r\n"),
            (_STREAM_HEAD, b"9\r\ndata"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n", b"data"),
        ):
            for die in (FarEnd.ends, FarEnd.resets):
                proxy = ProxyInMemory()
                caller = proxy.caller()
                caller.says(post(_CHAT, b"{}"))
                proxy.provider().says(head, part)
                die(proxy.provider())
                body = head_and_body(caller.heard())[1]
                self.assertFalse(body.endswith(b"0\r\n\r\n"), body)
                self.assertIn(b"data", body)
                self.assertTrue(caller.closed)
                self.assertTold(proxy, "upstream_truncated", "relaying", 200)

    def test_reset_of_an_answer_until_close(self) -> None:
        """Where only the end of the connection ends an answer, a reset is passed on as a cut and not as an end."""
        for version in (b"1.1", b"1.0"):
            proxy = ProxyInMemory()
            caller = proxy.caller()
            caller.says(b"GET /openai/v1/x HTTP/" + version + b"\r\nHost: h\r\n\r\n")
            proxy.provider().says(b"HTTP/1.1 200 OK\r\n\r\nsome")
            proxy.provider().resets()
            self.assertFalse(caller.heard().endswith(b"0\r\n\r\n"))
            self.assertTrue(caller.closed)
            self.assertEqual(caller.was_reset, version == b"1.0")
            self.assertTold(proxy, "upstream_truncated", "relaying", 200)

    def test_garbage(self) -> None:
        """What is no HTTP answer becomes a clean 502, and the connection is never used again."""
        for garbage in (
            b"SSH-2.0-OpenSSH_9.9\r\n",
            b"HTTP/0.9 200 OK\r\n\r\n",
            b"HTTP/1.1 99 Low\r\n\r\n",
            b"HTTP/1.1 2000 High\r\n\r\n",
            b"HTTP/1.1 abc\r\n\r\n",
            b"HTTP/1.1 600 Beyond\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello",
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nX: a\x00b\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nX: a\rb\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nX : a\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * 70_000,
            b"HTTP/1.1 200 " + b"O" * 70_000,
            b"HTTP/1.1 103 Early Hints\r\n\r\n" * 200,
        ):
            proxy = ProxyInMemory()
            caller = proxy.caller()
            caller.says(post(_CHAT, b"{}"))
            proxy.provider().says(garbage)
            heard = caller.heard()
            while heard.startswith(b"HTTP/1.1 103 "):
                heard = heard.partition(b"\r\n\r\n")[2]
            self.assertTrue(heard.startswith(b"HTTP/1.1 502 "), (garbage[:60], heard[:60]))
            self.assertError(heard, 502, "upstream_invalid_answer", "upstream")
            self.assertTrue(proxy.provider().was_reset, garbage[:60])
            self.assertEqual(proxy.access[0]["end_reason"], "upstream_invalid", garbage[:60])
            caller.says(get("/openai/v1/next"))
            self.assertEqual(proxy.connections(), 2)

    def test_garbage_within_the_body(self) -> None:
        """Garbage where a chunk should be cuts the answer visibly, and nothing of it reaches the caller."""
        proxy = ProxyInMemory()
        caller = proxy.caller()
        caller.says(post(_CHAT, b"{}"))
        proxy.provider().says(_STREAM_HEAD, b"9\r\ndata: 1\n\n\r\nEVIL\r\n0\r\n\r\n")
        heard = caller.heard()
        self.assertNotIn(b"EVIL", heard)
        self.assertFalse(heard.endswith(b"0\r\n\r\n"))
        self.assertTrue(caller.closed)
        self.assertTold(proxy, "upstream_invalid", "relaying", 200)

    def test_bytes_after_the_end(self) -> None:
        """Bytes after a complete answer reach nobody, and the connection that sent them serves nobody."""
        evil = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nEVIL"
        for answer in (ok(b"good") + evil, ok(b"good") + b"x", ok(b"good") + b"\r\n" + evil):
            proxy = ProxyInMemory()
            caller = proxy.caller()
            caller.says(get("/openai/v1/a"))
            proxy.provider().says(answer)
            self.assertTrue(caller.heard().endswith(b"\r\n\r\ngood"))
            caller.says(get("/openai/v1/b"))
            self.assertEqual(proxy.connections(), 2)
            self.assertEqual(caller.heard(), b"")
            proxy.provider().says(ok(b"also good"))
            self.assertTrue(caller.heard().endswith(b"also good"))

    def test_bytes_on_an_idle_connection(self) -> None:
        """What an idle connection says unasked never answers the next request."""
        proxy = ProxyInMemory()
        proxy.exchange(get("/openai/v1/a"), ok())
        proxy.provider().says(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 4\r\n\r\nEVIL")
        answer = proxy.exchange(get("/openai/v1/b"), ok(b"good"))[1]
        self.assertTrue(answer.endswith(b"good"))
        self.assertEqual(proxy.connections(), 2)

    def test_silence_before_the_answer(self) -> None:
        """No answer within the first-byte timeout is a 504; until then nine minutes of thinking are fine."""
        proxy = ProxyInMemory(limits=Upstream(first_byte_timeout_s=600))
        caller = proxy.caller()
        caller.says(post(_CHAT, b"{}"))
        for _ in range(598):
            proxy.clock.advance(1)
        self.assertEqual(caller.heard(), b"")
        for _ in range(4):
            proxy.clock.advance(1)
        self.assertError(caller.heard(), 504, "upstream_first_byte_timeout", "upstream")
        self.assertTrue(proxy.provider().was_reset)
        self.assertTold(proxy, "first_byte_timeout", "waiting", 504)

    def test_silence_within_the_answer(self) -> None:
        """An answer that stops coming is cut after the idle timeout; one that drips is not."""
        proxy = ProxyInMemory(limits=_QUICK)
        caller = proxy.caller()
        caller.says(post(_CHAT, b"{}"))
        proxy.provider().says(_STREAM_HEAD)
        for _ in range(5):
            proxy.pass_time(18)
            proxy.provider().says(b"2\r\n: \r\n")
        self.assertFalse(caller.closed)
        proxy.pass_time(22)
        self.assertTrue(caller.closed)
        self.assertFalse(caller.heard().endswith(b"0\r\n\r\n"))
        self.assertTold(proxy, "idle_timeout", "relaying", 200)

    def test_a_slow_reader_is_no_silence(self) -> None:
        """While the caller holds the answer back, the provider is not blamed for silence."""
        proxy = ProxyInMemory(limits=_QUICK)
        caller = proxy.caller()
        caller.says(get("/openai/v1/x"))
        caller.stops_reading()
        proxy.provider().says(b"HTTP/1.1 200 OK\r\nContent-Length: 600000\r\n\r\n", b"x" * 600_000)
        proxy.pass_time(120)
        self.assertFalse(caller.closed)
        caller.reads_on()
        self.assertEqual(len(head_and_body(caller.heard())[1]), 600_000)
        self.assertTold(proxy, "ok", "done", 200)


class Refused_(_Case):
    """Requests that are refused here."""

    def test_websocket(self) -> None:
        """A WebSocket is answered 426 at once, so that Codex goes on with plain HTTP; nothing is forwarded, and what
        follows on that connection is no request."""
        proxy = ProxyInMemory()
        caller = proxy.caller()
        caller.says(
            get(
                "/openai/v1/responses",
                b"Connection: keep-alive, Upgrade",
                b"Upgrade: websocket",
                b"Sec-WebSocket-Key: x",
            )
            + b"\x81\x85frame"
            + get("/openai/v1/models")
        )
        answer = caller.heard()
        self.assertEqual(answers(answer), 1)
        head = head_and_body(answer)[0]
        self.assertTrue(head.startswith(b"HTTP/1.1 426 Upgrade Required\r\n"), head)
        self.assertIn(b"\r\nUpgrade: ", head)
        self.assertEqual(proxy.connections(), 0)
        self.assertTrue(caller.closed)
        self.assertTold(proxy, "bad_request", "receiving", 426)

    def test_bad_body_before_it_is_forwarded(self) -> None:
        """A body that is not chunked as announced is refused; nothing whole reaches the provider."""
        proxy = ProxyInMemory()
        answer = proxy.ask(request("POST", _CHAT, b"Transfer-Encoding: chunked") + b"ZZ\r\n")
        self.assertError(answer, 400, "bad_request", "proxy")
        self.assertTold(proxy, "bad_request", "receiving", 400)
        self.assertTrue(proxy.callers[-1].closed)

    def test_bad_body_after_it_is_forwarded(self) -> None:
        """A body that breaks off in its framing: the provider's connection is cut, the caller told."""
        proxy = ProxyInMemory()
        caller = proxy.caller()
        caller.says(request("POST", _CHAT, b"Transfer-Encoding: chunked", b"Content-Type: a/b") + b"5\r\nhello\r\n")
        caller.says(b"ZZ\r\n")
        self.assertFalse(proxy.provider().heard().endswith(b"0\r\n\r\n"))
        self.assertTrue(proxy.provider().was_reset)
        self.assertError(caller.heard(), 400, "bad_request", "proxy")
        self.assertEqual([each["end_reason"] for each in proxy.access], ["bad_request"])

    def test_bad_body_after_the_answer_has_begun(self) -> None:
        """If an answer has begun when the caller's body turns out broken, the answer is cut, not doubled."""
        proxy = ProxyInMemory()
        caller = proxy.caller()
        caller.says(request("POST", _CHAT, b"Transfer-Encoding: chunked", b"Content-Type: a/b") + b"5\r\nhello\r\n")
        proxy.provider().says(_STREAM_HEAD, b"9\r\ndata: 1\n\n\r\n")
        caller.says(b"ZZ\r\n")
        heard = caller.heard()
        self.assertEqual(answers(heard), 1)
        self.assertFalse(heard.endswith(b"0\r\n\r\n"))
        self.assertTrue(caller.closed)
        self.assertTrue(proxy.provider().was_reset)
        self.assertTold(proxy, "bad_request", "relaying", 200)

    def test_bad_body_after_the_answer_has_ended(self) -> None:
        """If the answer is complete when the rest of the body turns out broken, nothing more is said."""
        proxy = ProxyInMemory()
        caller = proxy.caller()
        caller.says(request("POST", "/nowhere", b"Transfer-Encoding: chunked") + b"5\r\nhello\r\n")
        caller.says(b"ZZ\r\n")
        self.assertEqual(answers(caller.heard()), 1)
        self.assertTrue(caller.closed)
        self.assertTold(proxy, "bad_request", "receiving", 404)


class Faults(_Case):
    """Faults of our own."""

    def test_a_fault_before_the_answer(self) -> None:
        """If something of ours raises, the caller gets a 500 that says so and the upstream connection is dropped."""
        proxy = ProxyInMemory()
        caller = proxy.caller()
        caller.says(get("/openai/v1/x"))
        # A fault injected where the answer's fields are made.
        object.__setattr__(proxy.context, "response_prefixes", 1)
        proxy.provider().says(ok()[:-1])
        self.assertError(caller.heard(), 500, "proxy_error", "proxy")
        self.assertTrue(proxy.provider().was_reset)
        self.assertEqual(len(self.flushLoggedErrors()), 1)
        self.assertTold(proxy, "proxy_error", "relaying", 500)

    def test_a_fault_in_every_answer(self) -> None:
        """If even the error cannot be written, the connection is closed, and the exchange has its one end."""
        proxy = ProxyInMemory()
        caller = proxy.caller()
        caller.says(get("/openai/v1/x"))

        def broken(*_: object) -> None:
            raise RuntimeError("a bug")

        vars(proxy.context.cors)["answer_fields"] = broken
        proxy.provider().says(ok()[:-1])
        self.assertTrue(caller.closed)
        self.assertTrue(proxy.provider().was_reset)
        self.assertEqual([each["end_reason"] for each in proxy.access], ["proxy_error"])
        gc.collect()
        self.assertGreaterEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        caller = proxy.caller()
        caller.says(get("/health"))
        self.assertTrue(caller.closed)
        self.assertEqual([each["end_reason"] for each in proxy.access], ["proxy_error", "proxy_error"])
        gc.collect()
        self.assertGreaterEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_a_fault_behind_the_answer(self) -> None:
        """If what is done with the provider's connection raises, the answer is still whole, and the exchange ends."""

        def broken(_: object) -> None:
            raise RuntimeError("a bug")

        proxy = ProxyInMemory()
        caller = proxy.caller()
        caller.says(get("/openai/v1/x"))
        proxy.provider().protocol._on_idle = broken
        self.assertRaises(RuntimeError, proxy.provider().says, ok())
        self.assertTrue(caller.heard().endswith(b"hi"))
        self.assertEqual([each["end_reason"] for each in proxy.access], ["ok"])
        self.assertEqual(proxy.site.in_flight, 0)

    def test_a_fault_in_the_tree(self) -> None:
        """If routing raises, the same, and the connection goes on."""
        proxy = ProxyInMemory()
        object.__setattr__(proxy.context, "routes", None)
        caller = proxy.caller()
        caller.says(get("/openai/v1/x"))
        self.assertError(caller.heard(), 500, "proxy_error", "proxy")
        self.assertEqual(len(self.flushLoggedErrors()), 1)
        self.assertTold(proxy, "proxy_error", "receiving", 500)
        caller.says(get("/health/live"))
        self.assertTrue(caller.heard().endswith(b'{"status":"live"}'))

    def test_a_log_that_fails(self) -> None:
        """If the log cannot be written, that is logged, and nobody's answer or connection suffers."""
        proxy = ProxyInMemory()

        def broken(_: object) -> None:
            raise OSError("no space left")

        object.__setattr__(proxy.context, "write_access", broken)
        caller = proxy.caller()
        caller.says(get("/openai/v1/a"))
        proxy.provider().says(ok(b"first"))
        self.assertTrue(caller.heard().endswith(b"\r\n\r\nfirst"))
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 1)
        caller.says(get("/health/live") + get("/nowhere") + get("/openai/v1/b"))
        proxy.provider().says(ok(b"last"))
        heard = caller.heard()
        self.assertEqual(answers(heard), 3)
        self.assertTrue(heard.endswith(b"\r\n\r\nlast"))
        self.assertEqual((caller.closed, proxy.connections()), (False, 1))
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 3)
        caller.says(get("/openai/v1/c"))
        caller.ends()
        self.assertTrue(proxy.provider().was_reset)
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 1)
        self.assertEqual(self.flushLoggedErrors(), [])
