"""Requests whose heads are the same but for their lengths: the short way gives what the long way gives.

The proxy recognises such a head and does not parse, judge and route it again (`wire/repeat.py`, `web/plan.py`). These
tests hold both ways against each other: what goes upstream, what comes back, and what is logged.
"""

from __future__ import annotations

import re
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.config.model import Fidelity, Identity, Server
from llmproxy.wire.repeat import learn
from tests.web.proxy_in_memory import ProxyInMemory, get, ok, post, request

_CHAT = "/openai/v1/chat/completions"
_SDK = (
    b"Accept: application/json",
    b"Connection: keep-alive",
    b"Authorization: Bearer sk-one",
    b"User-Agent: OpenAI/Python 3.54.0",
    b"X-Stainless-Lang: python",
)

_HEADS = st.sampled_from(
    (
        lambda body: post(_CHAT, body, *_SDK),
        lambda body: post(_CHAT, body, *_SDK[:3], b"X-User-ID: bob"),
        lambda body: post(_CHAT, body, b"Connection: X-One", b"X-One: 1", b"Origin: https://a.example"),
        lambda body: post("/meta/alice/anthropic/v1/messages?beta=true", body, *_SDK),
        lambda body: post("/gemini/v1beta/models/gemini-2.5-pro:generateContent?key=AIzaOne", body),
        lambda body: request("POST", _CHAT, b"Content-Encoding: gzip", body=body),
        lambda body: request("POST", _CHAT, b"content-LENGTH:\t%d" % len(body)) + body,
        lambda body: get("/openai/v1/models", *_SDK),
        lambda body: get("/health/live"),
        lambda body: get("/nowhere/at/all"),
        lambda body: post("/openai", body),
        lambda body: request("OPTIONS", _CHAT, b"Origin: https://a.example", b"Access-Control-Request-Method: POST"),
    )
)
_BODIES = st.sampled_from(
    (
        b"",
        b"{}",
        b'{"model":"gpt-4o","stream":true}',
        b'{"model":"other","user":"carol","metadata":{"user_id":"dave"}}',
        b'{"model":"' + b"m" * 400 + b'"}',
        b"x" * 5000,
    )
)


_SECTIONS: list[dict[str, Any]] = [
    {},
    {"fidelity": Fidelity(via=True, x_forwarded_for=True)},
    {"identity": Identity(strip=True)},
]


def _talk(proxy: ProxyInMemory, requests: list[bytes]) -> tuple[list[bytes], bytes, list[dict[str, object]]]:
    """Send the requests on one connection, each answered before the next; what was forwarded, heard, and logged."""
    caller = proxy.caller()
    forwarded: list[bytes] = []
    for sent in requests:
        before = len(proxy.access)
        if caller.closed:
            break  # a refused body closes the connection, whatever was asked behind it
        caller.says(sent)
        for name in proxy.endpoints:
            for far in proxy.endpoints[name].connections:
                heard = far.heard()
                if heard:
                    forwarded.append(heard)
                    far.says(ok(b"an answer", b"X-Request-ID: up"))
        assert len(proxy.access) == before + 1, sent
    heard = re.sub(rb"\r\nDate: [^\r]*", b"", caller.heard())  # the two ways may be taken in different seconds
    return forwarded, heard, [dict(event) for event in proxy.access]


class BothWays(SynchronousTestCase):
    """The short way against the long one."""

    @settings(max_examples=150, deadline=None)
    @given(
        st.lists(st.tuples(_HEADS, _BODIES), min_size=1, max_size=3),
        st.lists(st.integers(0, 2), min_size=2, max_size=10),
        st.sampled_from(
            ({}, {"fidelity": Fidelity(via=True, x_forwarded_for=True)}, {"identity": Identity(strip=True)})
        ),
        st.sampled_from((0, 1000)),
    )
    def test_any_sequence(
        self, asked: list[tuple[object, bytes]], order: list[int], sections: dict[str, Any], most: int
    ) -> None:
        """Whatever is asked in whatever order, nobody can tell which way was taken."""
        requests = []
        for turn, number in enumerate(order):
            head, body = asked[number % len(asked)]
            requests.append(head(body + b" " * turn if body else body))  # type: ignore[operator]
        results = []
        for repeats in (True, False):
            proxy = ProxyInMemory(server=Server(max_body_bytes=most), **sections)
            proxy.site.repeats = repeats
            results.append(_talk(proxy, requests))
        self.assertEqual(results[0], results[1])

    def test_it_is_taken(self) -> None:
        """The short way is taken from the third request on, also when the lengths differ."""
        proxy = ProxyInMemory()
        _talk(proxy, [post(_CHAT, b"{" + b" " * n + b"}", *_SDK) for n in range(5)])
        (channel,) = proxy.site.channels
        repeat = channel._repeat
        assert repeat is not None
        self.assertIsNotNone(repeat.plan)

    def test_a_new_configuration(self) -> None:
        """After a reload, the way is found anew."""
        proxy = ProxyInMemory()
        caller = proxy.caller()
        for _ in range(4):
            caller.says(post(_CHAT, b"{}", *_SDK))
            proxy.provider().says(ok())
        other = ProxyInMemory(fidelity=Fidelity(via=True))
        proxy.site.replace(other.site.resource, other.context)
        caller.says(post(_CHAT, b"{}", *_SDK))
        self.assertIn(b"\r\nVia: 1.1 llmproxy\r\n", other.provider().heard())

    def test_new_bounds(self) -> None:
        """A head that a reload has made too large is refused, also where it was accepted before."""
        proxy = ProxyInMemory()
        caller = proxy.caller()
        for _ in range(4):
            caller.says(post(_CHAT, b"{}", *_SDK))
            proxy.provider().says(ok())
        caller.heard()
        other = ProxyInMemory(server=Server(max_headers=4))
        proxy.site.replace(other.site.resource, other.context)
        caller.says(post(_CHAT, b"{}", *_SDK))
        self.assertTrue(caller.heard().startswith(b"HTTP/1.1 431 "))

    def test_not_quite_the_same(self) -> None:
        """A length that is no number, a head that is one byte longer, a body that is not all there or too long: the
        parser sees to them, and what is wrong is refused."""
        for sent, status in (
            (post(_CHAT, b"{}", *_SDK).replace(b"Length: 2", b"Length: +2"), 400),
            (post(_CHAT, b"{}", *_SDK).replace(b"Length: 2", b"Length: "), 400),
            (post(_CHAT, b"{}", *_SDK).replace(b"Length: 2", b"Length: 2\r\nContent-Length: 3"), 400),
            (post(_CHAT, b"{}", *_SDK).replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n"), 400),
            (post(_CHAT, b"{}", *_SDK).replace(b"Host: proxy.test", b"Host: proxy.test\r\nHost: b"), 400),
        ):
            proxy = ProxyInMemory()
            caller = proxy.caller()
            for _ in range(4):
                caller.says(post(_CHAT, b"{}", *_SDK))
                proxy.provider().heard()
                proxy.provider().says(ok())
            caller.heard()
            caller.says(sent)
            self.assertEqual(proxy.provider().heard(), b"")
            self.assertEqual(int(caller.heard().split(b" ", 2)[1]), status)

    def test_pieces(self) -> None:
        """The same request in two reads, cut anywhere, is the same request."""
        whole = post(_CHAT, b'{"model":"m"}', *_SDK)
        proxy = ProxyInMemory()
        caller = proxy.caller()
        for _ in range(3):
            caller.says(whole)
            proxy.provider().says(ok())
        proxy.provider().heard()
        for cut in range(1, len(whole)):
            caller.says(whole[:cut], whole[cut:])
            self.assertTrue(proxy.provider().heard().endswith(b'\r\n\r\n{"model":"m"}'))
            proxy.provider().says(ok())
        self.assertEqual({event["end_reason"] for event in proxy.access}, {"ok"})


class Recognising(SynchronousTestCase):
    """`match`, by itself."""

    @settings(max_examples=300, deadline=None)
    @given(st.binary(max_size=30), st.integers(0, 200), st.sampled_from((b"", b"0", b"00", b"+", b" ", b"_", b"\xb2")))
    def test_only_what_it_is(self, body: bytes, at: int, inserted: bytes) -> None:
        """One byte more anywhere in a head, and it is another head, unless it is a digit of the length."""
        head = b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\nA: b\r\n\r\n"
        fields = [(b"Host", b"h"), (b"Content-Length", b"2"), (b"A", b"b")]
        index = {b"host": b"h", b"content-length": b"2", b"a": b"b"}
        repeat = learn(head % 2 + b"{}", b"POST", b"/x", fields, index)
        assert repeat is not None
        plain = head % len(body) + body
        data = plain[:at] + inserted + plain[at:]
        found = repeat.match(data)
        if found is not None:
            start, digits = found
            self.assertTrue(digits.isdigit())
            self.assertEqual(data[:start], head.replace(b"%d", digits))
            self.assertEqual(len(data) - start, int(digits))
            self.assertGreater(int(digits), 0)
        elif not inserted and body:
            self.fail("the same head is not recognised")
