"""What an exchange comes to, whichever way it ends, and what its caller is told of it."""

from __future__ import annotations

import gc
import json
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from llmproxy.accounting.account import Account
from llmproxy.accounting.books import Books
from llmproxy.config.model import Accounting, DrainBounds, Fidelity, OnDisconnect
from llmproxy.core.usage_removal import UsageRemoval
from llmproxy.web import delivery, usage_request
from tests.web.proxy_in_memory import (
    ProxyInMemory,
    chunked,
    field,
    fields_of,
    get,
    head_and_body,
    ok,
    post,
)

CHAT = "/openai/v1/chat/completions"
JSON = b"Content-Type: application/json"
STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"

# The shape of the API reference, chat completions, "The chat completion object".
COMPLETION = (
    b'{"id":"chatcmpl-B9MBs8CjcvOU2jLn4n570S5qMJKcT","object":"chat.completion","created":1741569952,'
    b'"model":"gpt-4o-2024-08-06","choices":[{"index":0,"message":{"role":"assistant","content":"Hello!"},'
    b'"finish_reason":"stop"}],"usage":{"prompt_tokens":1117,"completion_tokens":46,"total_tokens":1163,'
    b'"prompt_tokens_details":{"cached_tokens":1024,"audio_tokens":0},"completion_tokens_details":'
    b'{"reasoning_tokens":32}},"service_tier":"default"}'
)
ASKED = b'{"model":"gpt-4o","messages":[{"role":"user","content":"Say hello."}]}'
STREAMED = b'{"model": "gpt-4o", "stream": true, "messages": [{"role": "user", "content": "Say hello."}]}'


def chunk(text: str, *, usage: bytes = b"", finish: str = "null") -> bytes:
    """One event of a chat stream; ``usage``: a member to put behind the choices."""
    return (
        b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","model":"gpt-4o-2024-08-06","choices":[{"index":0,'
        b'"delta":{"content":"%b"},"finish_reason":%b}]%b}\n\n' % (text.encode(), finish.encode(), usage)
    )


LAST = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","model":"gpt-4o-2024-08-06","choices":[],'
    b'"usage":{"prompt_tokens":10,"completion_tokens":3,"total_tokens":13}}\n\n'
)
DONE = b"data: [DONE]\n\n"
NULL = b',"usage":null'


def tokens(event: dict[str, Any]) -> tuple[str, int, int]:
    """How the tokens of an access event are known, and how many they are."""
    return event["usage_source"], event["input_tokens"], event["output_tokens"]


class _Case(SynchronousTestCase):
    def assertOne(self, proxy: ProxyInMemory) -> dict[str, Any]:
        """One event and one row, which say the same; returns the event."""
        self.assertEqual((len(proxy.access), len(proxy.rows)), (1, 1))
        event, row = proxy.access[0], proxy.rows[0]
        self.assertEqual(
            (row.request_id, row.source, row.total_input, row.total_output, row.cost_nano_usd, row.end_reason),
            (
                event["request_id"],
                event["usage_source"],
                event["input_tokens"],
                event["output_tokens"],
                event["cost_nano_usd"],
                event["end_reason"],
            ),
        )
        return event


class Whole(_Case):
    """JSON answers."""

    def test_an_answer_in_one_piece(self) -> None:
        """Tokens and cost are in the head of the answer, in the log and in the ledger; the body is untouched."""
        proxy = ProxyInMemory()
        _, answer = proxy.exchange(post(CHAT, ASKED, JSON), ok(COMPLETION, JSON))
        head, body = head_and_body(answer)
        self.assertEqual(body, COMPLETION)
        told = {name: value for name, value in fields_of(head) if name.startswith(b"X-LLM-") and b"Proxy" not in name}
        # gpt-4o: 2.50 dollars for a million tokens of input, 1.25 for cached ones, 10 for output (OpenAI, Pricing):
        # 93 x 2.5 + 1024 x 1.25 + 46 x 10 = 1972.5 millionths of a dollar.
        self.assertEqual(
            told,
            {
                b"X-LLM-Input-Tokens": b"1117",
                b"X-LLM-Output-Tokens": b"46",
                b"X-LLM-Total-Tokens": b"1163",
                b"X-LLM-Thought-Tokens": b"32",
                b"X-LLM-Cache-Read-Tokens": b"1024",
                b"X-LLM-Cache-Write-Tokens": b"0",
                b"X-LLM-Provider": b"openai",
                b"X-LLM-Model": b"gpt-4o-2024-08-06",
                b"X-LLM-Request-ID": b"chatcmpl-B9MBs8CjcvOU2jLn4n570S5qMJKcT",
                b"X-LLM-Cost": b"0.0019725",
            },
        )
        event = self.assertOne(proxy)
        self.assertEqual(tokens(event), ("exact", 1117, 46))
        self.assertEqual(
            (event["cache_read_tokens"], event["reasoning_tokens"], event["cost_nano_usd"], event["unpriced"]),
            (1024, 32, 1_972_500, False),
        )
        self.assertEqual((event["response_model"], event["finish_reason"]), ("gpt-4o-2024-08-06", "stop"))
        row = proxy.rows[0]
        self.assertEqual((row.input_tokens, row.response_id), (93, "chatcmpl-B9MBs8CjcvOU2jLn4n570S5qMJKcT"))

    def test_waits_for_its_end(self) -> None:
        """A JSON answer whose length is known is sent when all of it is there, so that its head can tell the tokens."""
        proxy = ProxyInMemory()
        caller = proxy.caller()
        caller.says(post(CHAT, ASKED, JSON))
        provider = proxy.provider()
        whole = ok(COMPLETION, JSON)
        provider.says(whole[:-100])
        self.assertEqual(caller.heard(), b"")
        proxy.pass_time(2)
        provider.says(whole[-100:])
        answer = caller.heard()
        self.assertEqual(head_and_body(answer)[1], COMPLETION)
        self.assertEqual(field(answer, b"X-LLM-Output-Tokens"), b"46")
        # The two seconds were the provider's.
        self.assertEqual(field(answer, b"Server-Timing"), b"proxy;dur=0.0, upstream;dur=2000.0")
        event = self.assertOne(proxy)
        self.assertEqual((event["overhead_ms"], event["ttfb_ms"]), (0.0, 0.0))

    def test_does_not_wait(self) -> None:
        """With hold_json_bytes 0 nothing waits, and nothing is told; nor does what is larger, or has no length."""
        whole = ok(COMPLETION, JSON)
        without_length = b"HTTP/1.1 200 OK\r\n" + JSON + b"\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(COMPLETION)
        for most, answer in ((0, whole), (len(COMPLETION) - 1, whole), (1 << 20, without_length)):
            with self.subTest(most):
                proxy = ProxyInMemory(accounting=Accounting(hold_json_bytes=most))
                caller = proxy.caller()
                caller.says(post(CHAT, ASKED, JSON))
                proxy.provider().says(answer[:-100])
                begun = caller.heard()
                self.assertTrue(begun.startswith(b"HTTP/1.1 200 OK"))
                self.assertIsNone(field(begun, b"X-LLM-Input-Tokens"))
                proxy.provider().says(answer[-100:])
                caller.heard()
                self.assertEqual(tokens(self.assertOne(proxy)), ("exact", 1117, 46))

    def test_off(self) -> None:
        """With hold_json_bytes 0 an answer that came in one piece tells nothing either."""
        proxy = ProxyInMemory(accounting=Accounting(hold_json_bytes=0))
        _, answer = proxy.exchange(post(CHAT, ASKED, JSON), ok(COMPLETION, JSON))
        self.assertIsNone(field(answer, b"X-LLM-Input-Tokens"))

    def test_no_accounting(self) -> None:
        """Without accounting nothing is read and nothing is told, and the log says that there was no call to charge."""
        proxy = ProxyInMemory(accounting=Accounting(enabled=False))
        sent, answer = proxy.exchange(post(CHAT, STREAMED, JSON), ok(COMPLETION, JSON))
        self.assertEqual(head_and_body(sent)[1], STREAMED)
        self.assertIsNone(field(answer, b"X-LLM-Input-Tokens"))
        self.assertEqual((tokens(proxy.access[0]), proxy.rows), (("none", 0, 0), []))

    def test_breaks_off_while_it_waits(self) -> None:
        """What came of an answer that broke off reaches its caller with the head, as a cut; it is charged too."""
        proxy = ProxyInMemory()
        caller = proxy.caller()
        caller.says(post(CHAT, ASKED, JSON))
        provider = proxy.provider()
        whole = ok(COMPLETION, JSON)
        provider.says(whole[:-100])
        provider.ends()
        head, body = head_and_body(caller.heard())
        self.assertEqual(body, COMPLETION[:-100])
        self.assertEqual(field(head, b"Content-Length"), b"%d" % len(COMPLETION))
        self.assertIsNone(field(head, b"X-LLM-Input-Tokens"))
        event = self.assertOne(proxy)
        self.assertEqual((event["end_reason"], event["usage_source"]), ("upstream_truncated", "estimated"))
        self.assertGreater(event["input_tokens"], 0)
        self.assertGreater(event["cost_nano_usd"], 0)

    def test_caller_leaves_while_it_waits(self) -> None:
        """The provider's connection is dropped, and the call is charged at an estimate."""
        proxy = ProxyInMemory()
        caller = proxy.caller()
        caller.says(post(CHAT, ASKED, JSON))
        proxy.provider().says(ok(COMPLETION, JSON)[:-100])
        caller.resets()
        event = self.assertOne(proxy)
        self.assertEqual((event["end_reason"], event["usage_source"]), ("client_gone", "estimated"))
        self.assertGreater(event["output_tokens"], 0)

    def test_an_error_costs_nothing(self) -> None:
        """A provider's error is not charged."""
        proxy = ProxyInMemory()
        body = b'{"error":{"message":"slow down","type":"tokens","code":"rate_limit_exceeded"}}'
        proxy.exchange(
            post(CHAT, ASKED, JSON), b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )
        event = self.assertOne(proxy)
        self.assertEqual((tokens(event), event["usage_reason"]), (("none", 0, 0), "error_status"))
        self.assertIsNone(event["cost_nano_usd"])

    def test_what_was_made_before(self) -> None:
        """Asking once more for a stored completion is no second call."""
        proxy = ProxyInMemory()
        _, answer = proxy.exchange(get(CHAT + "/chatcmpl-1"), ok(COMPLETION, JSON))
        self.assertIsNone(field(answer, b"X-LLM-Cost"))
        event = self.assertOne(proxy)
        self.assertEqual((tokens(event), event["usage_reason"]), (("none", 0, 0), "retrieved"))

    def test_no_usage_is_not_free(self) -> None:
        """An answer of a model that tells no usage is charged at an estimate, which is marked as one, and not told."""
        proxy = ProxyInMemory()
        silent = COMPLETION.partition(b',"usage"')[0] + b"}"
        _, answer = proxy.exchange(post(CHAT, ASKED, JSON), ok(silent, JSON))
        self.assertIsNone(field(answer, b"X-LLM-Input-Tokens"))
        event = self.assertOne(proxy)
        self.assertEqual((event["usage_source"], event["usage_reason"]), ("estimated", "no_usage"))
        self.assertGreater(event["input_tokens"], 0)
        self.assertGreater(event["output_tokens"], 0)

    def test_nonsense_is_not_free(self) -> None:
        """So is a 200 that nobody can read."""
        for answer in (ok(b"\x00\x01nonsense"), ok(b"{", JSON), ok(b"zzz", b"Content-Encoding: gzip"), ok(b"")):
            with self.subTest(answer):
                proxy = ProxyInMemory()
                proxy.exchange(post(CHAT, ASKED, JSON), answer)
                event = self.assertOne(proxy)
                self.assertEqual(event["usage_source"], "estimated")
                self.assertGreater(event["cost_nano_usd"], 0)

    def test_a_lie_about_tokens(self) -> None:
        """A provider cannot put words into our mouth, whatever it names its fields."""
        proxy = ProxyInMemory()
        lie = (b"X-LLM-Input-Tokens: 1", b"x-llm-cost: 0", b"X-LLM-Anything: 1")
        _, answer = proxy.exchange(post(CHAT, ASKED, JSON, *lie), ok(COMPLETION, JSON, *lie))
        self.assertEqual(field(answer, b"X-LLM-Input-Tokens"), b"1117")
        self.assertEqual(field(answer, b"X-LLM-Cost"), b"0.0019725")
        self.assertIsNone(field(answer, b"X-LLM-Anything"))
        self.assertEqual(tokens(self.assertOne(proxy)), ("exact", 1117, 46))

    def test_a_model_without_a_price(self) -> None:
        """Tokens are counted, the cost is unknown and not 0, and a warning says so once for each model."""
        proxy = ProxyInMemory()
        body = COMPLETION.replace(b"gpt-4o-2024-08-06", b"made-up-model")
        asked = ASKED.replace(b"gpt-4o", b"made-up-model")
        for _ in range(2):
            _, answer = proxy.exchange(post(CHAT, asked, JSON), ok(body, JSON))
        self.assertIsNone(field(answer, b"X-LLM-Cost"))
        self.assertEqual(field(answer, b"X-LLM-Input-Tokens"), b"1117")
        event = proxy.access[1]
        self.assertEqual((event["cost_nano_usd"], event["unpriced"]), (None, True))
        self.assertEqual((len(proxy.warnings), proxy.books.unpriced), (1, 2))
        self.assertIn("made-up-model", proxy.warnings[0])

    def test_a_bug_in_reading(self) -> None:
        """If reading fails with an error of ours, the answer arrives all the same, and is charged at an estimate."""

        def broken(account: Account, body: bytes) -> None:
            raise RuntimeError("a bug")

        self.patch(Account, "read_whole", broken)
        proxy = ProxyInMemory()
        _, answer = proxy.exchange(post(CHAT, ASKED, JSON), ok(COMPLETION, JSON))
        self.assertEqual(head_and_body(answer)[1], COMPLETION)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        event = self.assertOne(proxy)
        self.assertEqual((event["usage_source"], event["usage_reason"]), ("estimated", "reading_failed"))


class Streams(_Case):
    """Event streams."""

    def test_usage_is_asked_for(self) -> None:
        """A stream whose caller did not ask for its usage is asked for it, and the caller sees nothing of that."""
        proxy = ProxyInMemory()
        caller = proxy.caller()
        caller.says(post(CHAT, STREAMED, JSON, b"Accept-Encoding: gzip, br"))
        provider = proxy.provider()
        head, body = head_and_body(provider.heard())
        changed = json.loads(STREAMED) | {"stream_options": {"include_usage": True}}
        self.assertEqual(json.loads(body), changed)
        self.assertEqual(field(head, b"Content-Length"), b"%d" % len(body))
        self.assertEqual(field(head, b"Accept-Encoding"), b"identity")
        events = [chunk("He", usage=NULL), chunk("llo", usage=NULL), chunk("", finish='"stop"', usage=NULL), LAST, DONE]
        provider.says(STREAM_HEAD)
        heard = caller.heard()
        for each in events:
            provider.says(b"%x\r\n%b\r\n" % (len(each), each))
            arrived = caller.heard()
            self.assertEqual(bool(arrived), each is not LAST)  # at once, or not at all
            heard += arrived
        provider.says(b"0\r\n\r\n")
        heard += caller.heard()
        plain = [chunk("He"), chunk("llo"), chunk("", finish='"stop"'), DONE]
        self.assertEqual(head_and_body(heard)[1], b"".join(b"%x\r\n%b\r\n" % (len(e), e) for e in plain) + b"0\r\n\r\n")
        event = self.assertOne(proxy)
        self.assertEqual((tokens(event), event["include_usage"]), (("exact", 10, 3), "added"))
        self.assertEqual(event["request_bytes"], len(STREAMED))

    def test_all_at_once(self) -> None:
        """The same where the whole stream comes with its head, and where it has a length."""
        body = b"".join([chunk("He", usage=NULL), chunk("llo", usage=NULL), LAST, DONE])
        for answer in (
            STREAM_HEAD + chunked(body),
            ok(body, b"Content-Type: text/event-stream"),
        ):
            proxy = ProxyInMemory()
            _, heard = proxy.exchange(post(CHAT, STREAMED, JSON), answer)
            plain = chunk("He") + chunk("llo") + DONE
            self.assertEqual(head_and_body(heard)[1], chunked(plain))
            self.assertIsNone(field(heard, b"Content-Length"))
            self.assertEqual(tokens(self.assertOne(proxy)), ("exact", 10, 3))

    def test_asked_by_the_caller(self) -> None:
        """Who asks itself gets the request and the answer through as they are."""
        proxy = ProxyInMemory()
        body = STREAMED[:-1] + b', "stream_options": {"include_usage": true}}'
        stream = b"".join([chunk("Hello", usage=NULL), LAST, DONE])
        sent, heard = proxy.exchange(post(CHAT, body, JSON, b"Accept-Encoding: gzip"), STREAM_HEAD + chunked(stream))
        self.assertEqual(head_and_body(sent)[1], body)
        self.assertEqual(field(sent, b"Accept-Encoding"), b"gzip")
        self.assertEqual(head_and_body(heard)[1], chunked(stream))
        event = self.assertOne(proxy)
        self.assertEqual((tokens(event), event["include_usage"]), (("exact", 10, 3), None))

    def test_not_asked_for(self) -> None:
        """Where it is off, or cannot be done exactly, the request is as it was, and the log says why."""
        twice = STREAMED[:-1] + b', "stream": true}'
        cases = (
            (Accounting(inject_include_usage=False), CHAT, STREAMED, (), None),
            (Accounting(), CHAT, twice, (), "repeated_key"),
            (Accounting(), CHAT, STREAMED, (b"Content-Encoding: br",), "coded_request"),
            (Accounting(), CHAT, STREAMED, (b"Content-Digest: sha-256=:AAAA:",), "sealed"),
            (Accounting(), "/openai/v1/responses", STREAMED, (), None),
            (Accounting(), "/groq/openai/v1/chat/completions", STREAMED, (), None),
            (Accounting(), "/anthropic/v1/messages", STREAMED, (), None),
        )
        for accounting, path, body, fields, reason in cases:
            with self.subTest(path, reason=reason):
                proxy = ProxyInMemory(accounting=accounting)
                stream = STREAM_HEAD + chunked(chunk("Hello", usage=NULL) + DONE)
                name = path.split("/")[1]
                sent, heard = proxy.exchange(post(path, body, JSON, *fields), stream, name)
                self.assertEqual(head_and_body(sent)[1], body)
                self.assertEqual(head_and_body(heard)[1], chunked(chunk("Hello", usage=NULL) + DONE))
                self.assertEqual(proxy.access[0]["include_usage"], reason)

    def test_a_body_in_chunks(self) -> None:
        """A request that comes in chunks is edited when all of it is there, and goes on in chunks."""
        proxy = ProxyInMemory()
        caller = proxy.caller()
        head = f"POST {CHAT} HTTP/1.1\r\nHost: p\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        caller.says(head + b"%x\r\n%b\r\n" % (30, STREAMED[:30]))
        self.assertEqual(proxy.connections(), 0)
        caller.says(b"%x\r\n%b\r\n0\r\n\r\n" % (len(STREAMED) - 30, STREAMED[30:]))
        head, body = head_and_body(proxy.provider().heard())
        self.assertEqual(field(head, b"Transfer-Encoding"), b"chunked")
        size, _, rest = body.partition(b"\r\n")
        edited = rest[: int(size, 16)]
        self.assertEqual(json.loads(edited)["stream_options"], {"include_usage": True})
        self.assertEqual(rest[len(edited) :], b"\r\n0\r\n\r\n")

    def test_its_end_comes_later(self) -> None:
        """A body whose object is here, and its last white space not yet, is edited when all is there."""
        proxy = ProxyInMemory()
        caller = proxy.caller()
        whole = post(CHAT, STREAMED + b"\n", JSON)
        caller.says(whole[:-1])
        self.assertEqual(proxy.connections(), 0)
        caller.says(whole[-1:])
        self.assertIn(b"include_usage", proxy.provider().heard())

    def test_a_large_body_is_let_go_of(self) -> None:
        """What was edited is not kept beside the edit for as long as the stream lasts."""
        proxy = ProxyInMemory()
        caller = proxy.caller()
        body = STREAMED[:-1] + b',"user":"' + b"x" * 200_000 + b'"}'
        whole = post(CHAT, body, JSON)
        caller.says(whole[:100_000])
        caller.says(whole[100_000:])
        proxy.provider().says(STREAM_HEAD)
        exchange = next(iter(proxy.site.channels)).requests()[0].exchange  # type: ignore[attr-defined]
        held = [each for each in gc.get_referents(exchange.request._receiver) if isinstance(each, list)]
        self.assertEqual([len(each) for each in held], [0] * len(held))

    def test_whatever_the_stream_is_called(self) -> None:
        """What was asked for is taken out whatever the provider says that its answer is, if not JSON."""
        for fields in (b"", b"Content-Type: text/plain\r\n", b"Content-Encoding: identity\r\n"):
            with self.subTest(fields):
                proxy = ProxyInMemory()
                head = b"HTTP/1.1 200 OK\r\n" + fields + b"Transfer-Encoding: chunked\r\n\r\n"
                stream = chunked(chunk("Hi", usage=NULL) + LAST + DONE)
                _, heard = proxy.exchange(post(CHAT, STREAMED, JSON), head + stream)
                self.assertEqual(head_and_body(heard)[1], chunked(chunk("Hi") + DONE))
                self.assertEqual(tokens(self.assertOne(proxy)), ("exact", 10, 3))

    def test_again_and_again(self) -> None:
        """On a connection that is used again each request is edited for itself, whatever the one before it was."""
        proxy = ProxyInMemory()
        caller = proxy.caller()
        quiet = ASKED + b" " * (len(STREAMED) - len(ASKED))
        for body in (STREAMED, STREAMED, quiet, STREAMED, quiet):
            caller.says(post(CHAT, body, JSON, b"Accept-Encoding: gzip", b"Accept: */*"))
            head, sent = head_and_body(proxy.provider().heard())
            self.assertEqual("stream_options" in json.loads(sent), body is STREAMED)
            self.assertEqual(field(head, b"Accept-Encoding"), b"identity" if body is STREAMED else b"gzip")
            self.assertEqual(field(head, b"Content-Length"), b"%d" % len(sent))
            self.assertEqual(field(head, b"Accept"), b"*/*")
            if body is STREAMED:
                proxy.provider().says(STREAM_HEAD + chunked(chunk("Hi", usage=NULL) + LAST + DONE))
                self.assertEqual(head_and_body(caller.heard())[1], chunked(chunk("Hi") + DONE))
            else:
                proxy.provider().says(ok(COMPLETION, JSON))
                self.assertEqual(head_and_body(caller.heard())[1], COMPLETION)
        self.assertEqual([each["usage_source"] for each in proxy.access], ["exact"] * 5)

    def test_a_stream_that_is_cut(self) -> None:
        """What was delivered is charged at an estimate, and what was held for a decision is delivered."""
        proxy = ProxyInMemory()
        caller = proxy.caller()
        caller.says(post(CHAT, STREAMED, JSON))
        provider = proxy.provider()
        first = chunk("Hello there, my friend", usage=NULL)
        half = chunk("and")[:40]
        provider.says(STREAM_HEAD + b"%x\r\n%b\r\n" % (len(first), first) + b"%x\r\n%b\r\n" % (len(half), half))
        provider.ends()
        self.assertIn(half, caller.heard())
        event = self.assertOne(proxy)
        self.assertEqual((event["end_reason"], event["usage_source"]), ("upstream_truncated", "estimated"))
        self.assertTrue(3 <= event["output_tokens"] <= 8, event["output_tokens"])

    def test_a_caller_that_leaves(self) -> None:
        """By default the provider's connection is dropped at once, and what came until then is charged."""
        proxy = ProxyInMemory()
        caller = proxy.caller()
        caller.says(post(CHAT, STREAMED, JSON))
        provider = proxy.provider()
        first = chunk("Hello there, my friend", usage=NULL)
        provider.says(STREAM_HEAD + b"%x\r\n%b\r\n" % (len(first), first))
        caller.resets()
        self.assertTrue(provider.closed)
        event = self.assertOne(proxy)
        self.assertEqual((event["end_reason"], event["usage_source"]), ("client_gone", "estimated"))
        self.assertTrue(3 <= event["output_tokens"] <= 8, event["output_tokens"])

    def test_a_caller_that_leaves_before_the_answer(self) -> None:
        """What the provider has begun on is charged with its input; what never reached it is not."""
        proxy = ProxyInMemory()
        caller = proxy.caller()
        caller.says(post(CHAT, ASKED, JSON))
        caller.resets()
        event = self.assertOne(proxy)
        self.assertEqual((event["usage_source"], event["usage_reason"]), ("estimated", "given_up"))
        self.assertEqual((event["input_tokens"] > 0, event["output_tokens"]), (True, 0))

    def test_a_caller_that_leaves_what_is_free(self) -> None:
        """Who gives up on what a model is not billed for is charged nothing."""
        for path in ("/openai/v1/moderations", "/anthropic/v1/messages/count_tokens", "/openai/v1/fine_tuning/jobs"):
            with self.subTest(path):
                proxy = ProxyInMemory()
                caller = proxy.caller()
                caller.says(post(path, ASKED, JSON))
                caller.resets()
                self.assertEqual(tokens(self.assertOne(proxy)), ("none", 0, 0))

    def test_a_file_is_no_call(self) -> None:
        """Nor is a file that is uploaded charged as if it were text."""
        proxy = ProxyInMemory()
        form = b"Content-Type: multipart/form-data; boundary=b"
        proxy.exchange(post("/openai/v1/other", b"--b\r\n" + b"x" * 5000, form), ok(b"{}", JSON))
        self.assertEqual(tokens(self.assertOne(proxy)), ("none", 0, 0))

    def test_framing_does_not_decide(self) -> None:
        """A body costs by its size, whether it came with a length or in chunks."""
        found = []
        body = ASKED[:-1] + b',"user":"' + b"x" * 300_000 + b'"}'
        head = f"POST {CHAT} HTTP/1.1\r\nHost: p\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        for asked in (post(CHAT, body, JSON), head + chunked(body)):
            proxy = ProxyInMemory()
            proxy.exchange(asked, ok(b"?"))
            found.append(tokens(self.assertOne(proxy)))
        self.assertEqual(found[0], found[1])
        self.assertGreater(found[0][1], 50_000)

    def test_a_bug_in_reading(self) -> None:
        """If reading fails with an error of ours, the stream goes on, and is charged at an estimate."""

        def broken(account: Account, data: bytes) -> None:
            raise RuntimeError("a bug")

        self.patch(Account, "take", broken)
        for inject in (True, False):
            proxy = ProxyInMemory(accounting=Accounting(inject_include_usage=inject))
            caller = proxy.caller()
            caller.says(post(CHAT, STREAMED, JSON))
            proxy.provider().says(STREAM_HEAD)
            proxy.provider().says(chunked(chunk("Hello"), DONE))
            self.assertEqual(head_and_body(caller.heard())[1], chunked(chunk("Hello"), DONE))
            self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
            self.assertEqual(self.assertOne(proxy)["usage_reason"], "reading_failed")


class ReadOn(_Case):
    """Where an answer is read to its end although its caller has left."""

    def begun(self, bounds: DrainBounds) -> tuple[ProxyInMemory, Any]:
        """A proxy that does so, with a stream whose caller has just left; the provider's end too."""
        proxy = ProxyInMemory(accounting=Accounting(on_disconnect=OnDisconnect(drain=bounds)))
        caller = proxy.caller()
        caller.says(post(CHAT, STREAMED, JSON))
        provider = proxy.provider()
        first = chunk("He", usage=NULL)
        provider.says(STREAM_HEAD + b"%x\r\n%b\r\n" % (len(first), first))
        caller.resets()
        self.assertFalse(provider.closed)
        self.assertEqual((proxy.access, proxy.site.in_flight), ([], 1))
        return proxy, provider

    def says(self, provider: Any, *events: bytes) -> None:
        """The provider says these events."""
        for each in events:
            provider.says(b"%x\r\n%b\r\n" % (len(each), each))

    def test_to_the_end(self) -> None:
        """Its usage is then exact; the event says that the caller has left, and is written when all is read."""
        proxy, provider = self.begun(DrainBounds())
        self.says(provider, chunk("llo", usage=NULL), LAST, DONE)
        provider.says(b"0\r\n\r\n")
        event = self.assertOne(proxy)
        self.assertEqual((event["end_reason"], tokens(event)), ("client_gone", ("exact", 10, 3)))
        self.assertEqual(proxy.site.in_flight, 0)
        self.assertFalse(provider.closed)  # the connection serves the next one

    def test_only_so_long(self) -> None:
        """After max_s it is dropped, and what came is charged."""
        proxy, provider = self.begun(DrainBounds(max_s=5))
        proxy.pass_time(4.5)
        self.assertEqual(proxy.access, [])
        proxy.pass_time(1)
        self.assertTrue(provider.closed)
        self.assertEqual(self.assertOne(proxy)["usage_source"], "estimated")

    def test_only_so_much(self) -> None:
        """After max_tokens more it is dropped."""
        proxy, provider = self.begun(DrainBounds(max_tokens=20))
        self.says(provider, *[chunk("word ", usage=NULL)] * 10)
        self.assertEqual(proxy.access, [])
        self.says(provider, *[chunk("some more words ", usage=NULL)] * 40)
        self.assertTrue(provider.closed)
        event = self.assertOne(proxy)
        self.assertTrue(20 <= event["output_tokens"] <= 60, event["output_tokens"])

    def test_before_the_answer(self) -> None:
        """It holds too for a caller that leaves before the answer has begun."""
        proxy = ProxyInMemory(accounting=Accounting(on_disconnect=OnDisconnect(drain=DrainBounds())))
        caller = proxy.caller()
        caller.says(post(CHAT, ASKED, JSON))
        caller.resets()
        self.assertEqual(proxy.access, [])
        proxy.provider().says(ok(COMPLETION, JSON))
        event = self.assertOne(proxy)
        self.assertEqual((event["end_reason"], tokens(event)), ("client_gone", ("exact", 1117, 46)))

    def test_only_what_the_provider_has(self) -> None:
        """A request that is not all there, or that has not gone out, is not sent on for nobody."""
        drain = Accounting(on_disconnect=OnDisconnect(drain=DrainBounds()))
        proxy = ProxyInMemory(accounting=drain)
        caller = proxy.caller()
        body = ASKED[:-1] + b',"user":"' + b"x" * 100_000 + b'"}'
        caller.says(post(CHAT, body, JSON)[:-10])
        caller.resets()
        self.assertEqual((len(proxy.access), proxy.site.in_flight), (1, 0))
        proxy = ProxyInMemory(accounting=drain)
        proxy.endpoints["openai"].slow = True
        caller = proxy.caller()
        caller.says(post(CHAT, ASKED, JSON))
        caller.resets()
        self.assertEqual(tokens(self.assertOne(proxy)), ("none", 0, 0))
        self.assertEqual(proxy.connections(), 0)

    def test_what_cannot_be_read(self) -> None:
        """An answer of which nothing can be known is not read to its end."""
        proxy = ProxyInMemory(accounting=Accounting(on_disconnect=OnDisconnect(drain=DrainBounds())))
        caller = proxy.caller()
        caller.says(post(CHAT, ASKED, JSON))
        coded = b"HTTP/1.1 200 OK\r\nContent-Encoding: zip\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n"
        proxy.provider().says(coded)
        caller.resets()
        self.assertTrue(proxy.provider().closed)
        self.assertEqual(self.assertOne(proxy)["usage_reason"], "unknown_coding")

    def test_the_provider_fails(self) -> None:
        """A provider that fails then ends it, and there is one event."""
        proxy, provider = self.begun(DrainBounds())
        provider.resets()
        self.assertEqual(self.assertOne(proxy)["end_reason"], "client_gone")

    def test_the_end_of_the_proxy(self) -> None:
        """When the proxy stops, what is read on ends with it, and is charged."""
        proxy, _ = self.begun(DrainBounds())
        proxy.site.stop()
        self.assertEqual(self.assertOne(proxy)["end_reason"], "client_gone")


class Told(_Case):
    """What every answer tells."""

    def test_server_timing(self) -> None:
        """An answer says how long the proxy took, and how long the provider where there was one."""
        proxy = ProxyInMemory()
        caller = proxy.caller()
        caller.says(post(CHAT, ASKED, JSON))
        proxy.pass_time(1.5)
        proxy.provider().says(ok(b"{}", JSON))
        self.assertEqual(field(caller.heard(), b"Server-Timing"), b"proxy;dur=0.0, upstream;dur=1500.0")
        self.assertEqual(field(proxy.ask(get("/health")), b"Server-Timing"), b"proxy;dur=0.0")
        off = ProxyInMemory(fidelity=Fidelity(server_timing=False))
        self.assertIsNone(field(off.ask(get("/health")), b"Server-Timing"))

    def test_the_proxys_own_pages(self) -> None:
        """A request that goes to no provider has no row in the ledger."""
        proxy = ProxyInMemory()
        proxy.ask(get("/health"))
        proxy.ask(get("/nowhere"))
        self.assertEqual((len(proxy.access), proxy.rows), (2, []))
        self.assertEqual(tokens(proxy.access[0]), ("none", 0, 0))


class Faults(_Case):
    """Errors of ours in accounting, wherever they are."""

    def test_nothing_breaks(self) -> None:
        """Whatever of it fails, the request goes out, the answer arrives, and the call is not free."""

        def broken(*_: object, **__: object) -> Any:
            raise RuntimeError("a bug")

        for owner, name in (
            (Account, "measure_request"),
            (Account, "answered"),
            (Account, "charge"),
            (usage_request, "with_include_usage"),
            (UsageRemoval, "feed"),
            (UsageRemoval, "finish"),
        ):
            with self.subTest(name):
                patch = self.patch(owner, name, broken)
                proxy = ProxyInMemory()
                stream = chunked(chunk("Hello") + DONE)
                sent, heard = proxy.exchange(post(CHAT, STREAMED, JSON), STREAM_HEAD + stream)
                self.assertEqual(json.loads(head_and_body(sent)[1])["model"], "gpt-4o")
                self.assertEqual(head_and_body(heard)[1], stream)
                self.assertGreaterEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
                event = self.assertOne(proxy)
                self.assertEqual((event["end_reason"], event["usage_source"]), ("ok", "estimated"))
                patch.restore()

    def test_telling_breaks(self) -> None:
        """Where only the telling fails, the answer arrives, at once or after its wait, and the count stands."""

        def broken(*_: object) -> Any:
            raise RuntimeError("a bug")

        self.patch(delivery, "token_fields", broken)
        for cut in (0, 100):
            proxy = ProxyInMemory()
            caller = proxy.caller()
            caller.says(post(CHAT, ASKED, JSON))
            whole = ok(COMPLETION, JSON)
            proxy.provider().says(whole[: len(whole) - cut])
            if cut:
                proxy.provider().says(whole[-cut:])
            self.assertEqual(head_and_body(caller.heard())[1], COMPLETION)
            self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
            self.assertEqual(tokens(self.assertOne(proxy)), ("exact", 1117, 46))

    def test_a_charge_that_cannot_be_made(self) -> None:
        """It stays unknown: it is not asked for again, and does not come out as counted before."""

        def broken(*_: object) -> Any:
            raise RuntimeError("a bug")

        self.patch(Books, "cost", broken)
        proxy = ProxyInMemory()
        done = (
            b'{"id":"resp_1","object":"response","background":true,"status":"completed","model":"gpt-4o","output":[],'
        )
        done += b'"usage":{"input_tokens":5,"output_tokens":6,"total_tokens":11}}'
        proxy.exchange(get("/openai/v1/responses/resp_1"), ok(done, JSON))
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        event = self.assertOne(proxy)
        self.assertEqual((event["usage_reason"], event["unpriced"]), ("accounting_failed", True))
        self.assertFalse(proxy.books.is_counted("openai resp_1"))
