"""Several requests on one connection: in order, as the caller takes its answers, and none behind the last."""

from __future__ import annotations

from typing import Any
from unittest import mock

from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import ISSLTransport
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import alsoProvides

from llmproxy.config.model import Server
from llmproxy.core.peek import BodyPeek
from llmproxy.web.exchange import Exchange
from tests.web.proxy_in_memory import ProxyInMemory, answers, get, ok, post, request

_CHAT = "/openai/v1/chat/completions"
_LONG = b'{"model": "m", "x": "' + b"a" * 200 + b'"}'
_CHUNK = b"9c40\r\n" + b"z" * 40_000 + b"\r\n"
_HIGH_WATER_BYTES = 32 * 1024


class Taken(SynchronousTestCase):
    """Answers are made as fast as they are taken."""

    def test_own_answers(self) -> None:
        """Of a caller that sends on and takes nothing, no more is read than its answers have room; it gets them all, in
        order, when it reads on, and the connection goes on."""
        proxy = ProxyInMemory()
        caller = proxy.caller()
        caller.stops_reading()
        for _ in range(100):
            caller.says(get("/nowhere") * 200)
        self.assertLess(caller.transport.buffered_bytes, 3 * _HIGH_WATER_BYTES)
        self.assertLess(len(proxy.access), 300)
        self.assertGreater(caller.unread_bytes, 0)
        caller.reads_on()
        while caller.unread_bytes:
            caller.turn()
        heard = caller.heard()
        self.assertEqual(answers(heard), 20_000)
        self.assertEqual(len(proxy.access), 20_000)
        caller.says(get("/health/live"))
        self.assertTrue(caller.heard().startswith(b"HTTP/1.1 200 "))

    def test_answers_of_a_provider(self) -> None:
        """Nor is a provider asked for what nobody takes."""
        proxy = ProxyInMemory()
        caller = proxy.caller()
        caller.stops_reading()
        caller.says(get("/openai/v1/models") * 100)
        asked = 0
        while proxy.provider().heard():
            asked += 1
            proxy.provider().says(ok(b"x" * 30_000))
        self.assertLess(asked, 4)
        caller.reads_on()
        while proxy.provider().heard():
            asked += 1
            proxy.provider().says(ok(b"x" * 30_000))
        self.assertEqual(asked, 100)
        self.assertEqual(answers(caller.heard()), 100)

    def test_others_in_between(self) -> None:
        """Answers of the proxy's own are not all made in one turn of the reactor: others have theirs in between."""
        proxy = ProxyInMemory()
        caller = proxy.caller()
        turns: list[int] = []
        proxy.clock.callLater(0, lambda: turns.append(len(proxy.access)))
        caller.protocol.dataReceived(get("/nowhere") * 200)
        self.assertLess(len(proxy.access), 50)
        caller.turn()
        self.assertLess(turns[0], 50)
        for _ in range(10):
            caller.turn()
        self.assertEqual((answers(caller.heard()), len(proxy.access)), (200, 200))
        caller.says(get("/health/live"))
        self.assertEqual(answers(caller.heard()), 1)

    def test_lost_in_between(self) -> None:
        """A caller that leaves in between gets no more, and each request has its one event."""
        proxy = ProxyInMemory()
        caller = proxy.caller()
        caller.protocol.dataReceived(get("/nowhere") * 200)
        caller.transport.lost(ConnectionLost())
        caller.turn()
        self.assertEqual(len(proxy.access), 200)
        self.assertEqual({str(each["end_reason"]) for each in proxy.access}, {"bad_request", "client_gone"})
        self.assertEqual((proxy.site.channels, proxy.site.held), (set(), set()))

    def test_one_that_never_takes(self) -> None:
        """Whoever takes nothing at all is cut in its time; the requests that were not begun are no answers."""
        proxy = ProxyInMemory(server=Server(write_idle_timeout_s=10))
        caller = proxy.caller()
        caller.stops_reading()
        caller.says(get("/nowhere") * 200)
        proxy.pass_time(30)
        self.assertTrue(caller.was_reset)
        self.assertEqual(proxy.site.channels, set())

    def test_half_a_head(self) -> None:
        """The time for a head does not run while it is the proxy that does not read: behind answers that are not taken,
        and behind a slow one whose successor has sent its body."""
        for slow in (False, True):
            proxy = ProxyInMemory(server=Server(header_timeout_s=20, write_idle_timeout_s=0))
            caller = proxy.caller()
            if slow:
                caller.says(get("/openai/v1/models") + post("/nowhere", b"hello") + b"GET /nowhere HTTP/1.1\r\nHo")
            else:
                caller.stops_reading()
                caller.says(get("/nowhere") * 200 + b"GET /nowhere HTTP/1.1\r\nHo")
            caller.says(b"st: a\r\n\r\n")
            proxy.pass_time(60)
            if slow:
                proxy.provider().says(ok())
            else:
                caller.reads_on()
            self.assertNotIn(b" 408 ", caller.heard())
            self.assertEqual({each["status"] for each in proxy.access}, {200, 404} if slow else {404})

    def test_a_close_that_lingers(self) -> None:
        """A caller that takes its last answer late keeps the connection no longer than any other, over TLS too."""
        for tls in (False, True):
            proxy = ProxyInMemory()
            caller = proxy.caller()
            if tls:
                alsoProvides(caller.transport, ISSLTransport)
            caller.stops_reading()
            caller.says(get("/nowhere") * 60 + b"GARBAGE\r\n\r\n")
            caller.reads_on()
            proxy.pass_time(3)
            self.assertTrue(caller.closed)
            self.assertEqual(proxy.site.channels, set())

    def test_an_early_answer_that_is_taken_late(self) -> None:
        """The rest of a body that was answered early is read away also while the caller is behind with its answers;
        then the next request has its turn."""
        for size in range(31_000, 34_000, 300):
            proxy = ProxyInMemory()
            caller = proxy.caller()
            caller.says(get("/openai/v1/models") + post("/nowhere", b"x" * 3000)[:-1000])
            caller.stops_reading()
            proxy.provider().says(ok(b"z" * size))
            caller.reads_on()
            caller.says(b"x" * 1000 + get("/health/live"))
            proxy.pass_time(5)
            self.assertEqual((answers(caller.heard()), caller.closed), (3, False), size)

    def test_the_rest_of_a_body(self) -> None:
        """Nor is the rest of a body behind an early answer read for longer because that was taken late."""
        proxy = ProxyInMemory()
        caller = proxy.caller()
        caller.stops_reading()
        caller.says(request("POST", _CHAT, b"Transfer-Encoding: chunked", b"Content-Encoding: x") + _CHUNK)
        proxy.provider().says(b"HTTP/1.1 413 Too large\r\nContent-Length: 40000\r\n\r\n" + b"e" * 40_000)
        caller.reads_on()
        for _ in range(5):
            proxy.pass_time(1)
            caller.says(_CHUNK)
        self.assertTrue(caller.closed)


class Last(SynchronousTestCase):
    """RFC 9112 9.6: nothing behind a request that closes its connection is a request."""

    def test_in_a_later_read(self) -> None:
        """However the closing request and what follows it are cut into reads, it is the only one in the log."""
        for head in (post(_CHAT, _LONG, b"Connection: close"), post(_CHAT, _LONG).replace(b"HTTP/1.1", b"HTTP/1.0")):
            for cut in range(len(head) - len(_LONG), len(head)):
                for behind in (b"", get("/openai/v1/models")):
                    proxy = ProxyInMemory()
                    caller = proxy.caller()
                    caller.says(head[:cut], head[cut:] + behind, get("/openai/v1/files"))
                    proxy.provider().says(ok())
                    proxy.pass_time(15)
                    self.assertEqual([each["end_reason"] for each in proxy.access], ["ok"], (cut, behind))
                    self.assertEqual(answers(caller.heard()), 1)


class Counted(SynchronousTestCase):
    """A body of known length is counted from its second read on."""

    def test_any_cut(self) -> None:
        """It is the same body, and the next request is the next request, wherever the reads end."""
        raw = post(_CHAT, _LONG) + get("/openai/v1/models")
        for first in range(0, len(raw), 7):
            for second in range(first, len(raw), 31):
                proxy = ProxyInMemory()
                caller = proxy.caller()
                caller.says(*filter(None, (raw[:first], raw[first:second], raw[second:])))
                heard = proxy.provider().heard()
                self.assertTrue(heard.endswith(b"\r\n\r\n" + _LONG), (first, second))
                proxy.provider().says(ok())
                self.assertTrue(proxy.provider().heard().startswith(b"GET /v1/models HTTP/1.1\r\n"), (first, second))
                proxy.provider().says(ok())
                self.assertEqual([each["request_bytes"] for each in proxy.access], [len(_LONG), 0])

    def test_a_fault(self) -> None:
        """A fault of ours while a body is read ends the request with a 500, in whichever read it comes; the log has its
        cause."""

        def broken(self: Any, data: bytes) -> bool:
            if b"}" in data:
                raise RuntimeError("a bug")
            return False

        raw = post(_CHAT, _LONG)
        for cut in (len(raw) - 1, len(raw)):
            proxy = ProxyInMemory()
            caller = proxy.caller()
            with mock.patch.object(BodyPeek, "feed", broken):
                caller.says(*filter(None, (raw[:cut], raw[cut:])))
            self.assertTrue(caller.heard().startswith(b"HTTP/1.1 500 "))
            self.assertEqual([each["end_reason"] for each in proxy.access], ["proxy_error"])
            self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
            proxy.pass_time(5)
            self.assertTrue(caller.closed)

    def test_a_fault_at_its_end(self) -> None:
        """The same where the fault is that of whoever was waiting for the end."""

        def broken(self: Any) -> None:
            raise RuntimeError("a bug")

        raw = post(_CHAT, b'{"a": "' + _LONG)  # never complete, so it is looked at until its end
        with mock.patch.object(Exchange, "_forward", broken):
            for pieces in (
                (raw,),
                (raw[:-9], raw[-9:]),
                (request("POST", _CHAT, b"Transfer-Encoding: chunked") + b"2\r\n{ \r\n", b"0\r\n\r\n"),
            ):
                proxy = ProxyInMemory()
                caller = proxy.caller()
                caller.says(*pieces)
                proxy.pass_time(5)
                self.assertTrue(caller.heard().startswith(b"HTTP/1.1 500 "))
                self.assertTrue(caller.closed)
                self.assertEqual([each["end_reason"] for each in proxy.access], ["proxy_error"])
                self.assertEqual(proxy.site.in_flight, 0)
                self.flushLoggedErrors(RuntimeError)

    def test_its_rest_is_no_idleness(self) -> None:
        """A connection whose caller still sends the body of a request that has its answer waits for no next request."""
        proxy = ProxyInMemory()
        caller = proxy.caller()
        caller.says(get("/openai/v1/models") + post("/nowhere", _LONG)[:-9])
        proxy.provider().says(ok())
        (channel,) = proxy.site.channels
        self.assertFalse(channel.is_kept_alive())
        caller.says(_LONG[-9:])
        self.assertTrue(channel.is_kept_alive())
