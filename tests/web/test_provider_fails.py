"""What a caller is told when it is the way to the provider that fails, and what the log says."""

from __future__ import annotations

from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.client import ResponseFailed

from llmproxy.config.model import Upstream
from llmproxy.core import errors
from llmproxy.core.end import EndReason
from llmproxy.web import failures
from llmproxy.wire import dial, upstream_error
from llmproxy.wire.dial import DialError
from llmproxy.wire.upstream_error import (
    AnswerCut,
    FirstByteTimeout,
    IdleTimeout,
    InvalidAnswer,
    NeverAnswered,
    UploadTimeout,
    UpstreamBusy,
    UpstreamError,
)
from tests.web.proxy_in_memory import ProxyInMemory, fields_of, get, head_and_body, ok, post, request

_PATH = "/openai/v1/chat/completions"


class Mapping(SynchronousTestCase):
    """Each way to fail has its own error and its own end reason."""

    def test_before_the_head(self) -> None:
        """While nothing has been answered, the caller gets the error that says what happened."""
        for error, error_class in (
            (DialError(dial.NAME, ""), errors.UPSTREAM_NAME_FAILED),
            (DialError(dial.CONNECT, ""), errors.UPSTREAM_CONNECT_FAILED),
            (DialError(dial.TIMEOUT, ""), errors.UPSTREAM_CONNECT_TIMEOUT),
            (DialError(dial.TLS, ""), errors.UPSTREAM_TLS_FAILED),
            (DialError(dial.PROXY, ""), errors.UPSTREAM_CONNECT_FAILED),
            (NeverAnswered(0, False), errors.UPSTREAM_RESET),
            (AnswerCut(), errors.UPSTREAM_RESET),
            (FirstByteTimeout(), errors.UPSTREAM_FIRST_BYTE_TIMEOUT),
            (InvalidAnswer(), errors.UPSTREAM_INVALID_ANSWER),
            (UploadTimeout(), errors.UPSTREAM_UPLOAD_TIMEOUT),
            (UpstreamBusy(), errors.UPSTREAM_BUSY),
        ):
            self.assertIs(failures.before_the_head(Failure(error)), error_class)

    def test_a_fault_of_ours(self) -> None:
        """What is none of these is not blamed on the provider."""
        self.assertIsNone(failures.before_the_head(Failure(RuntimeError())))

    def test_every_kind(self) -> None:
        """No kind of failure was forgotten."""
        for kind in vars(upstream_error).values():
            if isinstance(kind, type) and issubclass(kind, UpstreamError) and kind is not UpstreamError:
                error = kind(0, False) if kind is NeverAnswered else kind()
                self.assertIsNotNone(failures.before_the_head(Failure(error)), kind)

    def test_within_the_body(self) -> None:
        """Once an answer has begun, the log says why it broke off."""
        for error, end in (
            (IdleTimeout(), EndReason.IDLE_TIMEOUT),
            (InvalidAnswer(), EndReason.UPSTREAM_INVALID),
            (UploadTimeout(), EndReason.UPLOAD_TIMEOUT),
            (AnswerCut(), EndReason.UPSTREAM_TRUNCATED),
        ):
            self.assertEqual(failures.within_the_body(Failure(ResponseFailed([Failure(error)]))), end)


class Told(SynchronousTestCase):
    """The same through the whole proxy."""

    def test_busy(self) -> None:
        """With all connections to a provider in use and the line full, a caller is told at once to come again in a
        second; nothing is sent for it. One that waited too long is told the same."""
        proxy = ProxyInMemory(limits=Upstream(max_connections=1, connect_timeout_s=5.0))
        first, second, third = (proxy.caller() for _ in range(3))
        for caller in (first, second, third):
            caller.says(get("/openai/v1/models"))
        self.assertBusy(third.heard())
        self.assertEqual(second.heard(), b"")
        proxy.pass_time(6.5)
        self.assertBusy(second.heard())
        proxy.provider().says(ok(b"hello"))
        self.assertTrue(first.heard().endswith(b"hello"))
        self.assertEqual(len(proxy.endpoints["openai"].connections), 1)
        self.assertEqual([event["end_reason"] for event in proxy.access], ["upstream_busy", "upstream_busy", "ok"])

    def assertBusy(self, answer: bytes) -> None:
        """`answer` is the 503 of a provider whose connections are all in use."""
        head, _ = head_and_body(answer)
        fields = dict(fields_of(head + b"\r\n\r\n"))
        self.assertTrue(answer.startswith(b"HTTP/1.1 503 "), answer[:100])
        self.assertEqual(fields[b"X-LLM-Proxy-Error-Class"], b"upstream_busy")
        self.assertEqual(fields[b"Retry-After"], b"1")

    def test_a_caller_that_leaves_the_line(self) -> None:
        """A caller that leaves while it waits makes room for the next, and nothing is ever sent for it."""
        proxy = ProxyInMemory(limits=Upstream(max_connections=1))
        first, second, third = (proxy.caller() for _ in range(3))
        first.says(get("/openai/v1/models?1"))
        second.says(get("/openai/v1/models?2"))
        second.resets()
        third.says(get("/openai/v1/models?3"))
        proxy.provider().says(ok(b"one"))
        proxy.provider().says(ok(b"three"))
        self.assertTrue(third.heard().endswith(b"three"))
        self.assertNotIn(b"?2", proxy.provider().heard())

    def test_an_upload_that_is_not_taken(self) -> None:
        """A provider that stops reading in mid-upload is given up with a 504 that says so; the caller is told at once
        and not when its own patience ends."""
        proxy = ProxyInMemory(limits=Upstream(idle_timeout_s=30.0, first_byte_timeout_s=600.0))
        caller = proxy.caller()
        caller.says(request("POST", _PATH, b"Content-Length: 1000000", b"Content-Type: a/b"))
        caller.says(b"x" * 1000)
        proxy.provider().stops_reading()
        caller.says(b"x" * 100_000)
        proxy.pass_time(29)
        self.assertEqual(caller.heard(), b"")
        proxy.pass_time(4)
        answer = caller.heard()
        self.assertTrue(answer.startswith(b"HTTP/1.1 504 "), answer[:100])
        self.assertIn(b"upstream_upload_timeout", answer)
        self.assertTrue(proxy.provider().was_reset)
        self.assertEqual([event["end_reason"] for event in proxy.access], ["upload_timeout"])

    def test_a_slow_steady_upload(self) -> None:
        """An upload that makes way is never cut, however slow: a caller on a phone line, a provider that is busy."""
        proxy = ProxyInMemory(limits=Upstream(idle_timeout_s=30.0, first_byte_timeout_s=40.0))
        caller = proxy.caller()
        caller.says(request("POST", _PATH, b"Content-Length: 30", b"Content-Type: a/b"))
        for _ in range(30):
            caller.says(b"x")
            proxy.pass_time(25)
        proxy.pass_time(10)
        proxy.provider().says(ok(b"done"))
        self.assertTrue(caller.heard().endswith(b"done"))

    def test_large_body_at_once(self) -> None:
        """A body that was all there is held to the same."""
        proxy = ProxyInMemory(limits=Upstream(idle_timeout_s=30.0))
        caller = proxy.caller()
        caller.says(post(_PATH, b"{}"))
        proxy.provider().says(ok(b""))
        caller.heard()
        proxy.provider().stops_reading()
        caller.says(post(_PATH, b'{"model":"' + b"m" * 20_000 + b'"}'))
        proxy.pass_time(33)
        self.assertIn(b"upstream_upload_timeout", caller.heard())
