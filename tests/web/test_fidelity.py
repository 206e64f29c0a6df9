"""What is the same on both sides of the proxy, and what is not."""

from __future__ import annotations

import itertools
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.config.model import Cors, Fidelity, Identity
from tests.web.proxy_in_memory import (
    ProxyInMemory,
    chunked,
    field,
    fields_of,
    get,
    head_and_body,
    ok,
    post,
    request,
)

_QUIET: dict[str, Any] = {"cors": Cors(enabled=False), "fidelity": Fidelity(request_id=False, server_timing=False)}

_OURS = {
    b"access-control-allow-origin",
    b"x-llm-proxy-request-id",
    b"x-accel-buffering",
}
_SPECIAL = {
    *(b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection", b"te"),
    *(b"transfer-encoding", b"upgrade", b"content-length", b"host", b"expect", b"trailer", b"content-encoding"),
    *(b"x-goog-upload-url", b"origin", b"access-control-request-method", b"date", b"content-type"),
}
_names = (
    st.text("abcdefgXYZ-_.!#$%&'*+^`|~0123456789", min_size=1, max_size=12)
    .map(str.encode)
    .filter(
        lambda name: (
            name.lower() not in _SPECIAL | _OURS and not name.lower().startswith((b"x-llm-proxy", b"access-control"))
        )
    )
)
_values = st.binary(max_size=20).map(
    lambda raw: bytes(each for each in raw if each == 9 or 32 <= each < 127 or each > 127).strip(b" \t")
)
_fields = st.lists(st.tuples(_names, _values), max_size=8)


def _pieces(message: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted({cut % (len(message) + 1) for cut in cuts}), len(message)]
    return [message[a:b] for a, b in itertools.pairwise(edges) if a < b]


class RequestFields(SynchronousTestCase):
    """From the caller to the provider."""

    @given(_fields, st.lists(st.integers(0, 2000), max_size=6))
    def test_exact(self, fields: list[tuple[bytes, bytes]], cuts: list[int]) -> None:
        """Names keep their case, fields their order, number and bytes, however the request is cut on its way."""
        proxy = ProxyInMemory()
        caller = proxy.caller()
        raw = request("POST", "/openai/v1/x?a=%2F", *(n + b": " + v for n, v in fields), body=b"a body")
        caller.says(*_pieces(raw, cuts))
        head, body = head_and_body(proxy.provider().heard())
        self.assertEqual(head.split(b"\r\n")[0], b"POST /v1/x?a=%2F HTTP/1.1")
        self.assertEqual(fields_of(head + b"\r\n\r\n"), [(b"Host", b"openai.test"), *fields, (b"Content-Length", b"6")])
        self.assertEqual(body, b"a body")

    def test_hop_by_hop(self) -> None:
        """Fields for this connection only stay here, and so do those that Connection names."""
        sent, _ = ProxyInMemory().exchange(
            get(
                "/openai/v1/models",
                b"Connection: keep-alive, X-Secret , close",
                b"Keep-Alive: timeout=5",
                b"x-secret: 1",
                b"Proxy-Authorization: Basic eA==",
                b"Proxy-Connection: keep-alive",
                b"TE: trailers",
                b"X-Kept: 1",
            ),
            ok(),
        )
        self.assertEqual(fields_of(sent), [(b"Host", b"openai.test"), (b"X-Kept", b"1")])

    def test_connection_cannot_take_away_what_matters(self) -> None:
        """`Connection: Host, Content-Length` takes neither away: the provider reads the same request as we do."""
        sent, _ = ProxyInMemory().exchange(
            post("/openai/v1/x", b"12345", b"Connection: Host, Content-Length, Content-Type", b"Content-Type: a/b"),
            ok(),
        )
        self.assertEqual(
            fields_of(sent), [(b"Host", b"openai.test"), (b"Content-Type", b"a/b"), (b"Content-Length", b"5")]
        )

    def test_h2c_is_dropped(self) -> None:
        """An offer to speak HTTP/2 is not passed on; the request is served as it is, its body too."""
        for body in (None, b"", b"12345"):
            sent, answer = ProxyInMemory().exchange(
                request(
                    "POST",
                    "/openai/v1/x",
                    b"Connection: Upgrade, HTTP2-Settings",
                    b"Upgrade: h2c",
                    b"HTTP2-Settings: AAMAAABkAAQAAP__",
                    body=body,
                ),
                ok(),
            )
            self.assertNotIn(b"h2c", sent)
            self.assertNotIn(b"HTTP2", sent)
            self.assertTrue(sent.endswith(b"\r\n\r\n" + (body or b"")), sent)
            self.assertTrue(answer.startswith(b"HTTP/1.1 200 "))

    def test_control_fields(self) -> None:
        """Words to the proxy stay with the proxy, unless the switch says otherwise."""
        ask = get("/openai/v1/models", b"X-LLM-Proxy-Something: 1", b"x-llm-proxy-other: 2")
        self.assertEqual(fields_of(ProxyInMemory().exchange(ask, ok())[0]), [(b"Host", b"openai.test")])
        sent, _ = ProxyInMemory(fidelity=Fidelity(strip_control_fields=False)).exchange(ask, ok())
        self.assertIn(b"\r\nX-LLM-Proxy-Something: 1\r\nx-llm-proxy-other: 2\r\n", sent)

    def test_host(self) -> None:
        """The provider's own name is in Host, in the place where the caller had one, or the caller's if so switched."""
        ask = b"GET /openai/v1/models HTTP/1.1\r\nA: 1\r\nhOST: evil.test:1\r\nB: 2\r\n\r\n"
        sent, _ = ProxyInMemory().exchange(ask, ok())
        self.assertEqual(fields_of(sent), [(b"A", b"1"), (b"hOST", b"openai.test"), (b"B", b"2")])
        sent, _ = ProxyInMemory(fidelity=Fidelity(preserve_host=True)).exchange(ask, ok())
        self.assertEqual(fields_of(sent), [(b"A", b"1"), (b"hOST", b"evil.test:1"), (b"B", b"2")])

    def test_http_1_0_without_host(self) -> None:
        """An HTTP/1.0 caller need not send Host; the provider gets one all the same."""
        sent, answer = ProxyInMemory().exchange(b"GET /openai/v1/models HTTP/1.0\r\n\r\n", ok())
        self.assertEqual(sent, b"GET /v1/models HTTP/1.1\r\nHost: openai.test\r\n\r\n")
        self.assertTrue(answer.startswith(b"HTTP/1.1 200 OK\r\n"))
        self.assertTrue(answer.endswith(b"\r\n\r\nhi"))

    def test_forwarding_fields(self) -> None:
        """Via and X-Forwarded-For are added only where the operator asked for them; a caller's own pass."""
        ask = get("/openai/v1/models", b"X-Forwarded-For: 1.2.3.4")
        sent, _ = ProxyInMemory().exchange(ask, ok())
        self.assertEqual(fields_of(sent)[1:], [(b"X-Forwarded-For", b"1.2.3.4")])
        sent, answer = ProxyInMemory(fidelity=Fidelity(via=True, x_forwarded_for=True)).exchange(ask, ok())
        self.assertEqual(
            fields_of(sent)[1:],
            [(b"X-Forwarded-For", b"1.2.3.4"), (b"X-Forwarded-For", b"192.0.2.7"), (b"Via", b"1.1 llmproxy")],
        )
        self.assertEqual(field(answer, b"via"), b"1.1 llmproxy")

    def test_user_fields(self) -> None:
        """X-User-ID and llm_user_id pass on as in the original, and are taken out when that is switched on."""
        ask = get("/openai/v1/models?a=1&llm_user_id=bob&b=2", b"X-User-ID: bob")
        sent, _ = ProxyInMemory().exchange(ask, ok())
        self.assertTrue(sent.startswith(b"GET /v1/models?a=1&llm_user_id=bob&b=2 "))
        self.assertEqual(field(sent, b"x-user-id"), b"bob")
        sent, _ = ProxyInMemory(identity=Identity(strip=True)).exchange(ask, ok())
        self.assertTrue(sent.startswith(b"GET /v1/models?a=1&b=2 "))
        self.assertIsNone(field(sent, b"x-user-id"))


class RequestBody(SynchronousTestCase):
    """The body on its way up."""

    @given(st.binary(max_size=300), st.lists(st.integers(0, 600), max_size=8))
    def test_sized(self, body: bytes, cuts: list[int]) -> None:
        """A body with a length reaches the provider byte for byte, with that length, whatever its bytes are."""
        proxy = ProxyInMemory()
        proxy.caller().says(*_pieces(post("/openai/v1/x", body), cuts))
        head, sent = head_and_body(proxy.provider().heard())
        self.assertEqual(sent, body)
        self.assertEqual(field(head, b"content-length"), b"%d" % len(body))
        self.assertIsNone(field(head, b"transfer-encoding"))

    @given(st.lists(st.binary(min_size=1, max_size=60), max_size=5), st.lists(st.integers(0, 800), max_size=8))
    def test_chunked(self, pieces: list[bytes], cuts: list[int]) -> None:
        """A chunked body stays chunked and means the same; its extensions stay here, its trailers pass."""
        proxy = ProxyInMemory()
        raw = request("POST", "/openai/v1/x", b"Transfer-Encoding: chunked")
        raw += b"".join(b"%x;ext=1\r\n%b\r\n" % (len(each), each) for each in pieces)
        raw += b"0\r\nX-Sum: 1\r\nHost: evil\r\n\r\n"
        proxy.caller().says(*_pieces(raw, cuts))
        heard = proxy.provider().heard()
        head, sent = head_and_body(heard)
        self.assertEqual(field(head, b"transfer-encoding"), b"chunked")
        self.assertIsNone(field(head, b"content-length"))
        self.assertNotIn(b"ext=1", sent)
        self.assertEqual(_unchunked(sent), (b"".join(pieces), b"X-Sum: 1\r\n"))

    def test_trailers(self) -> None:
        """What may not pass at the head of a request may not pass behind its body either: words to the proxy, the
        user where that is switched on, and keys, which belong at the head alone."""
        ask = request("POST", "/openai/v1/x", b"Transfer-Encoding: chunked", b"Content-Type: a/b")
        trailers = b"X-Sum: 1\r\nX-LLM-Proxy-Something: 1\r\nx-llm-proxy-other: 2\r\nX-API-Key: k\r\nX-User-ID: bob\r\n"
        for together in (True, False):
            for strip in (True, False):
                proxy = ProxyInMemory(identity=Identity(strip=strip))
                caller = proxy.caller()
                body = chunked(b"hello", trailers=trailers)
                caller.says(*((ask + body,) if together else (ask, body)))
                sent = head_and_body(proxy.provider().heard())[1]
                kept = b"X-Sum: 1\r\n" if strip else b"X-Sum: 1\r\nX-User-ID: bob\r\n"
                self.assertEqual(sent, chunked(b"hello", trailers=kept))

    def test_as_it_arrives(self) -> None:
        """An upload reaches the provider while the caller still sends it."""
        proxy = ProxyInMemory()
        caller = proxy.caller()
        caller.says(
            b"PUT /openai/v1/f HTTP/1.1\r\nHost: h\r\nContent-Type: text/plain\r\nContent-Length: 9\r\n\r\n", b"abc"
        )
        provider = proxy.provider()
        self.assertTrue(provider.heard().endswith(b"\r\n\r\nabc"))
        caller.says(b"def")
        self.assertEqual(provider.heard(), b"def")
        caller.says(b"ghi")
        self.assertEqual(provider.heard(), b"ghi")

    def test_held_until_it_is_known(self) -> None:
        """A JSON body is held back while the model is not known, then goes on; it is never held beyond the limit."""
        from llmproxy.config.model import Server

        proxy = ProxyInMemory(server=Server(peek_bytes=64))
        caller = proxy.caller()
        body = b'{"messages":["' + b"x" * 100 + b'"],"model":"gpt-4o"}'
        raw = post("/openai/v1/chat/completions", body)
        start = raw.index(b"{")
        caller.says(raw[: start + 20])
        self.assertEqual(proxy.connections(), 0)
        caller.says(raw[start + 20 : start + 70])
        self.assertTrue(proxy.provider().heard().endswith(body[:70]))
        caller.says(raw[start + 70 :])
        proxy.provider().says(ok())
        self.assertEqual(proxy.access[0]["model"], "unknown")

    def test_back_pressure(self) -> None:
        """A provider that does not read holds the caller back; nothing piles up here, and all arrives in the end."""
        proxy = ProxyInMemory()
        caller = proxy.caller()
        total = 2_000_000
        caller.says(
            b"PUT /openai/v1/f HTTP/1.1\r\nHost: h\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\nx" % total
        )
        provider = proxy.provider()
        provider.stops_reading()
        received = len(head_and_body(provider.heard())[1])
        caller.says(b"x" * (total - 1))
        self.assertGreater(caller.unread_bytes, total - 300_000)
        provider.reads_on()
        received += len(provider.heard())
        self.assertEqual(received, total)
        self.assertEqual(caller.unread_bytes, 0)


def _unchunked(data: bytes) -> tuple[bytes, bytes]:
    """The content of a chunked body, and its trailers."""
    content = b""
    while True:
        size, _, data = data.partition(b"\r\n")
        length = int(size, 16)
        if not length:
            return content, data.removesuffix(b"\r\n")
        content, data = content + data[:length], data[length + 2 :]


class AnswerFields(SynchronousTestCase):
    """From the provider to the caller."""

    @given(_fields, st.lists(st.integers(0, 2000), max_size=6))
    def test_exact(self, fields: list[tuple[bytes, bytes]], cuts: list[int]) -> None:
        """Status, reason, names, order and repetition are the provider's, however the answer is cut on its way."""
        proxy = ProxyInMemory(**_QUIET)
        caller = proxy.caller()
        caller.says(get("/openai/v1/models"))
        answer = b"HTTP/1.1 299 Quite Fine\r\n" + b"".join(n + b": " + v + b"\r\n" for n, v in fields)
        answer += b"Content-Length: 3\r\n\r\nabc"
        proxy.provider().says(*_pieces(answer, cuts))
        self.assertEqual(caller.heard(), answer)

    def test_added(self) -> None:
        """Added are CORS, the time it took, the request id and, on streams, what keeps nginx from buffering."""
        answer = ProxyInMemory().exchange(
            get("/openai/v1/models"),
            ok(b"data: 1\n\n", b"content-type: Text/Event-Stream; charset=utf-8", b"X-Request-ID: r1"),
        )[1]
        self.assertEqual(
            fields_of(answer),
            [
                (b"content-type", b"Text/Event-Stream; charset=utf-8"),
                (b"X-Request-ID", b"r1"),
                (b"Content-Length", b"9"),
                (b"X-Accel-Buffering", b"no"),
                (b"Access-Control-Allow-Origin", b"*"),
                (b"Server-Timing", b"proxy;dur=0.0, upstream;dur=0.0"),
                (b"X-LLM-Proxy-Request-ID", b"llmp-000102030405-00000001"),
            ],
        )

    def test_switched_off(self) -> None:
        """Each addition has its switch."""
        off = Fidelity(request_id=False, accel_buffering=False, server_timing=False)
        proxy = ProxyInMemory(cors=Cors(enabled=False), fidelity=off)
        raw = ok(b"data: 1\n\n", b"Content-Type: text/event-stream")
        self.assertEqual(proxy.exchange(get("/openai/v1/models"), raw)[1], raw)

    def test_hop_by_hop(self) -> None:
        """The provider's connection fields stay on its side, and so does what its Connection names."""
        proxy = ProxyInMemory(**_QUIET)
        answer = proxy.exchange(
            get("/openai/v1/models"),
            ok(b"hi", b"Connection: close, X-Hop", b"X-Hop: 1", b"Keep-Alive: timeout=1", b"Proxy-Authenticate: Basic"),
        )[1]
        self.assertEqual(answer, ok())

    def test_no_forged_words_of_the_proxy(self) -> None:
        """A provider cannot speak in the proxy's name."""
        answer = ProxyInMemory().exchange(
            get("/openai/v1/models"), ok(b"hi", b"X-LLM-Proxy-Error-Source: proxy", b"x-llm-proxy-request-id: forged")
        )[1]
        self.assertEqual(field(answer, b"x-llm-proxy-request-id"), b"llmp-000102030405-00000001")
        self.assertIsNone(field(answer, b"x-llm-proxy-error-source"))

    def test_no_forged_words_elsewhere(self) -> None:
        """Nor can it do so, or loosen a browser's rules, in an early hint or in what follows the body."""
        forged = (
            b"X-LLM-Proxy-Error-Source: proxy\r\nx-llm-proxy-request-id: forged\r\n"
            b"Access-Control-Allow-Origin: https://evil.test\r\naccess-control-allow-credentials: true\r\n"
        )
        answer = ProxyInMemory().exchange(
            get("/openai/v1/models"),
            b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n" + forged + b"\r\n"
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
            + chunked(b"hi", trailers=b"X-Sum: 1\r\n" + forged),
        )[1]
        hint, rest = head_and_body(answer)
        head, body = head_and_body(rest)
        self.assertEqual(hint, b"HTTP/1.1 103 Early Hints\r\nLink: </a>")
        self.assertEqual(field(head, b"x-llm-proxy-request-id"), b"llmp-000102030405-00000001")
        self.assertEqual(body, chunked(b"hi", trailers=b"X-Sum: 1\r\n"))
        self.assertNotIn(b"evil", answer)

    def test_redirects(self) -> None:
        """A redirect is the caller's to follow; nobody is asked on its behalf."""
        for status in (301, 302, 303, 307, 308):
            proxy = ProxyInMemory()
            answer = proxy.exchange(
                get("/openai/v1/x"),
                b"HTTP/1.1 %d Go\r\nLocation: http://evil.test/\r\nContent-Length: 0\r\n\r\n" % status,
            )[1]
            self.assertEqual(field(answer, b"location"), b"http://evil.test/")
            self.assertEqual(proxy.connections(), 1)

    def test_without_a_reason(self) -> None:
        """A status line without a reason phrase stays without one."""
        answer = ProxyInMemory(**_QUIET).exchange(get("/openai/v1/x"), b"HTTP/1.1 200 \r\nContent-Length: 0\r\n\r\n")[1]
        self.assertTrue(answer.startswith(b"HTTP/1.1 200 \r\n"), answer)


class AnswerBody(SynchronousTestCase):
    """The answer's body on its way down."""

    @given(st.binary(max_size=300), st.lists(st.integers(0, 600), max_size=8))
    def test_sized(self, body: bytes, cuts: list[int]) -> None:
        """Bodies with a length are the same bytes with the same length."""
        proxy = ProxyInMemory()
        caller = proxy.caller()
        caller.says(get("/openai/v1/x"))
        proxy.provider().says(*_pieces(ok(body), cuts))
        self.assertEqual(head_and_body(caller.heard())[1], body)
        self.assertEqual(proxy.access[0]["response_bytes"], len(body))

    @given(st.lists(st.binary(min_size=1, max_size=60), max_size=5), st.lists(st.integers(0, 800), max_size=8))
    def test_chunked(self, pieces: list[bytes], cuts: list[int]) -> None:
        """A stream means the same on both sides, trailers with it, and what a trailer must not carry left out."""
        proxy = ProxyInMemory()
        caller = proxy.caller()
        caller.says(get("/openai/v1/x"))
        raw = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        raw += chunked(*pieces, trailers=b"X-Sum: 1\r\nSet-Cookie: a\r\n")
        proxy.provider().says(*_pieces(raw, cuts))
        head, body = head_and_body(caller.heard())
        self.assertEqual(field(head, b"transfer-encoding"), b"chunked")
        self.assertEqual(_unchunked(body), (b"".join(pieces), b"X-Sum: 1\r\n"))
        self.assertEqual(proxy.access[0]["end_reason"], "ok")

    def test_event_by_event(self) -> None:
        """An event is on the caller's socket before the provider writes the next one, each in one piece."""
        proxy = ProxyInMemory()
        caller = proxy.caller()
        caller.says(get("/openai/v1/x"))
        provider = proxy.provider()
        provider.says(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        self.assertTrue(caller.heard().endswith(b"\r\n\r\n"))
        for number in range(5):
            event = b"data: %d\n\n" % number
            provider.says(b"%x\r\n%b\r\n" % (len(event), event))
            self.assertEqual(caller.writes, [b"%x\r\n%b\r\n" % (len(event), event)])
            caller.heard()
        provider.says(b"0\r\n\r\n")
        self.assertEqual(caller.heard(), b"0\r\n\r\n")

    def test_until_close(self) -> None:
        """An answer that ends with the connection ends properly for the caller, in the caller's own framing."""
        for version, end in ((b"1.1", b"4\r\nmore\r\n0\r\n\r\n"), (b"1.0", b"more")):
            proxy = ProxyInMemory()
            caller = proxy.caller()
            caller.says(b"GET /openai/v1/x HTTP/" + version + b"\r\nHost: h\r\n\r\n")
            provider = proxy.provider()
            provider.says(b"HTTP/1.1 200 OK\r\n\r\n")
            caller.heard()
            provider.says(b"more")
            provider.ends()
            self.assertEqual(caller.heard(), end)
            self.assertEqual(proxy.access[0]["end_reason"], "ok")
            self.assertEqual(caller.closed, version == b"1.0")

    def test_no_body(self) -> None:
        """HEAD, 204 and 304 have no body whatever their fields say: nobody waits, and the next request works."""
        for ask, answer in (
            (request("HEAD", "/openai/v1/x"), b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n"),
            (request("HEAD", "/openai/v1/x"), b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
            (request("HEAD", "/openai/v1/x"), b"HTTP/1.1 200 OK\r\n\r\n"),
            (get("/openai/v1/x"), b"HTTP/1.1 204 No Content\r\n\r\n"),
            (get("/openai/v1/x"), b"HTTP/1.1 304 Not Modified\r\nContent-Length: 900\r\n\r\n"),
            (get("/openai/v1/x"), b"HTTP/1.1 304 Not Modified\r\n\r\n"),
        ):
            proxy = ProxyInMemory()
            caller = proxy.caller()
            caller.says(ask)
            proxy.provider().says(answer)
            head, body = head_and_body(caller.heard())
            self.assertEqual(body, b"")
            self.assertEqual(field(head, b"content-length"), field(answer, b"content-length"))
            self.assertEqual(proxy.access[0]["end_reason"], "ok")
            caller.says(get("/openai/v1/next"))
            self.assertEqual(len(proxy.endpoints["openai"].connections), 1)
            proxy.provider().says(ok(b"next"))
            self.assertTrue(caller.heard().endswith(b"\r\n\r\nnext"))

    def test_interim(self) -> None:
        """103 passes on before the answer, 100 is ours to give, and HTTP/1.0 callers get neither."""
        answer = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\nConnection: x\r\n\r\n" + ok()
        got = ProxyInMemory().exchange(get("/openai/v1/x"), answer)[1]
        self.assertTrue(got.startswith(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\n"), got)
        got = ProxyInMemory().exchange(b"GET /openai/v1/x HTTP/1.0\r\n\r\n", answer)[1]
        self.assertTrue(got.startswith(b"HTTP/1.1 200 OK\r\n"), got)

    def test_back_pressure(self) -> None:
        """A caller that does not read holds the provider back; all arrives once it reads on."""
        proxy = ProxyInMemory()
        caller = proxy.caller()
        caller.says(get("/openai/v1/x"))
        caller.stops_reading()
        total = 3_000_000
        provider = proxy.provider()
        provider.says(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % total, b"x" * total)
        self.assertGreater(provider.unread_bytes, total - 200_000)
        caller.reads_on()
        self.assertEqual(len(head_and_body(caller.heard())[1]), total)
        self.assertEqual(proxy.access[0]["end_reason"], "ok")
