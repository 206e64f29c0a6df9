"""The account of one call: what it comes to, by what was read of it."""

from __future__ import annotations

import json
import zlib
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from llmproxy.accounting.account import Account, Charge
from llmproxy.accounting.books import COUNTED_MAX, WARNED_MAX, Books
from llmproxy.accounting.token_fields import dollars, token_fields
from llmproxy.config.model import Estimation
from llmproxy.core.end import EndReason
from llmproxy.core.pricing import PriceBook
from llmproxy.core.usage import Reading, Source, Usage
from llmproxy.pricing import load_shipped
from llmproxy.state.ledger.row import storable_once

ASKED = b'{"model":"claude-sonnet-4-20250514","max_tokens":99,"messages":[{"role":"user","content":"Say hello."}]}'
JSON = {b"content-type": b"application/json"}
STREAM = {b"content-type": b"text/event-stream"}


def event(**value: Any) -> bytes:
    """One event of Anthropic's stream."""
    return f"event: {value['type']}\ndata: {json.dumps(value)}\n\n".encode()


def delta(text: str) -> bytes:
    """A piece of text."""
    return event(type="content_block_delta", index=0, delta={"type": "text_delta", "text": text})


# Claude API reference, "Streaming messages": message_start has the input, message_delta the output so far.
START = event(
    type="message_start",
    message={
        "id": "msg_1",
        "type": "message",
        "model": "claude-sonnet-4-20250514",
        "usage": {"input_tokens": 25, "cache_read_input_tokens": 100, "output_tokens": 1},
    },
)
STOP = event(type="message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 15})


class _Case(SynchronousTestCase):
    def setUp(self) -> None:
        """Books with the shipped prices."""
        self.warnings: list[str] = []
        self.books = Books(PriceBook([load_shipped()]), Estimation(), self.warnings.append)

    def account(self, body: bytes | None = ASKED, *, post: bool = True, target: bytes = b"/v1/messages") -> Account:
        """The account of a call."""
        model = json.loads(body)["model"] if body else None
        length = len(body) if body is not None else 0
        made = Account(self.books, "anthropic", post, model, body, length, body is not None, target)
        made.measure_request()
        return made

    def streamed(self, *pieces: bytes, whole: bool = True, end: EndReason = EndReason.OK) -> Charge:
        """What a stream of these pieces comes to."""
        account = self.account()
        self.assertTrue(account.answered(200, STREAM))
        for piece in pieces:
            account.take(piece)
        account.ended(whole)
        return account.charge(end, True, 0)


class Cut(_Case):
    """Streams that end early."""

    def test_whole(self) -> None:
        """A stream that came to its end is exact."""
        charge = self.streamed(START, delta("Hello there!"), STOP)
        self.assertEqual((charge.source, charge.usage.total_input, charge.usage.total_output), (Source.EXACT, 125, 15))

    def test_partial(self) -> None:
        """One that was cut has the counters that were seen, and an estimate for the text that came after them."""
        charge = self.streamed(START, delta("x" * 300), whole=False, end=EndReason.UPSTREAM_TRUNCATED)
        self.assertEqual((charge.source, charge.usage.total_input), (Source.PARTIAL, 125))
        # Three characters make a token of Anthropic's unless more is known (features.rate_limiting.estimation).
        self.assertEqual(charge.usage.total_output, 100)
        self.assertEqual(charge.reason, "stream_cut")
        nothing = self.streamed(START, whole=False, end=EndReason.CLIENT_GONE)
        self.assertEqual((nothing.source, nothing.usage.total_output), (Source.PARTIAL, 0))

    def test_learned(self) -> None:
        """What was learned from exact answers makes the estimates of the next ones."""
        for _ in range(5):
            self.streamed(START, delta("x" * 60), STOP)  # four characters a token
        charge = self.streamed(START, delta("x" * 300), whole=False)
        self.assertTrue(70 <= charge.usage.total_output <= 80, charge.usage.total_output)

    def test_nothing_came(self) -> None:
        """A stream of which nothing came is charged with an estimate of its input."""
        charge = self.streamed(whole=False, end=EndReason.CLIENT_GONE)
        self.assertEqual((charge.source, charge.usage.total_output), (Source.ESTIMATED, 0))
        self.assertGreater(charge.usage.total_input, 3)

    def test_an_error_at_once(self) -> None:
        """An error in place of an answer costs nothing; one after some text does not make that text free."""
        error = event(type="error", error={"type": "overloaded_error", "message": "Overloaded"})
        self.assertEqual(self.streamed(error).source, Source.NONE)
        self.assertEqual(self.streamed(START, delta("x" * 30), error).usage.total_output, 10)

    def test_what_was_never_sent(self) -> None:
        """A call that did not reach the provider, or that the provider failed, costs nothing."""
        for end, sent in (
            (EndReason.CONNECT_FAILED, False),
            (EndReason.CLIENT_GONE, False),
            (EndReason.UPSTREAM_RESET, True),
        ):
            charge = self.account().charge(end, sent, 0)
            self.assertEqual((charge.source, charge.reason), (Source.NONE, "not_answered"))

    def test_made_once(self) -> None:
        """What a call comes to stays what it is, whatever is asked again."""
        account = self.account()
        account.answered(200, STREAM)
        account.take(START + delta("x" * 30))
        first = account.charge(EndReason.CLIENT_GONE, True, 0)
        account.take(STOP)
        self.assertIs(account.charge(EndReason.OK, True, 0), first)


class Learned(_Case):
    """What is learned of inputs."""

    def test_short_prompts_teach_nothing(self) -> None:
        """A greeting does not teach how many tokens a long text has, nor does a prompt with sound in it."""
        long = json.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": "word " * 8000}]}).encode()

        def estimate() -> int:
            account = Account(self.books, "openai", True, "gpt-4o", long, len(long), True, b"/v1/chat/completions")
            account.answered(200, JSON)
            account.read_whole(b"?")
            return account.charge(EndReason.OK, True, 0).usage.total_input

        before = estimate()
        for text, details in (("hi", {}), ("x" * 300, {"audio_tokens": 5000})):
            for _ in range(5):
                asked = json.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": text}]}).encode()
                account = Account(self.books, "openai", True, "gpt-4o", asked, 99, True, b"/v1/chat/completions")
                account.answered(200, JSON)
                usage = {"prompt_tokens": 5050, "completion_tokens": 2, "total_tokens": 5052}
                usage["prompt_tokens_details"] = details  # type: ignore[assignment]
                account.read_whole(json.dumps({"object": "chat.completion", "choices": [], "usage": usage}).encode())
                account.charge(EndReason.OK, True, 0)
            self.assertEqual(estimate(), before)


class Gemini(_Case):
    """Whose paths name the model."""

    def test_cut(self) -> None:
        """A stream of Gemini's own that is cut is charged, although its path has /models/ in it."""
        path = b"/v1beta/models/gemini-2.5-flash:streamGenerateContent?alt=sse"
        account = Account(self.books, "gemini", True, "gemini-2.5-flash", b"{}", 2, True, path)
        account.answered(200, STREAM)
        account.take(
            b'data: {"candidates":[{"content":{"parts":[{"text":"Hello"}]}}],"usageMetadata":{"promptTokenCount":4,'
            b'"candidatesTokenCount":7,"totalTokenCount":11},"modelVersion":"gemini-2.5-flash"}\r\n\r\n'
        )
        charge = account.charge(EndReason.CLIENT_GONE, True, 0)
        self.assertEqual((charge.source, charge.usage.total_output), (Source.PARTIAL, 7))
        listing = Account(self.books, "gemini", True, "m", b"{}", 2, True, b"/v1beta/models/m")
        self.assertEqual(listing.charge(EndReason.CLIENT_GONE, True, 0).source, Source.NONE)


class Coded(_Case):
    """Answers with a content coding."""

    def test_gzip(self) -> None:
        """The copy is decoded, in whatever pieces it comes."""
        coded = zlib.compressobj(wbits=31)
        data = coded.compress(START + delta("Hello!") + STOP) + coded.flush()
        account = self.account()
        account.answered(200, STREAM | {b"content-encoding": b"gzip"})
        for at in range(len(data)):
            account.take(data[at : at + 1])
        account.ended(True)
        self.assertEqual(account.charge(EndReason.OK, True, 0).usage.total_output, 15)

    def test_what_cannot_be_decoded(self) -> None:
        """A coding that is not known, and one that is broken, are charged at an estimate, with the reason."""
        account = self.account()
        self.assertFalse(account.answered(200, STREAM | {b"content-encoding": b"zip"}))
        charge = account.charge(EndReason.OK, True, 0)
        self.assertEqual((charge.source, charge.reason), (Source.ESTIMATED, "unknown_coding"))
        account = self.account()
        account.answered(200, STREAM | {b"content-encoding": b"gzip"})
        account.take(b"no gzip at all, and a bit more of it")
        account.ended(True)
        charge = account.charge(EndReason.OK, True, 0)
        self.assertEqual((charge.source, charge.reason), (Source.ESTIMATED, "corrupt"))


class Once(_Case):
    """Answers that are given again and again."""

    RESULT = json.dumps(
        {
            "custom_id": "a",
            "result": {
                "type": "succeeded",
                "message": {
                    "id": "msg_1",
                    "type": "message",
                    "model": "claude-sonnet-4-20250514",
                    "content": [{"type": "text", "text": "Hi"}],
                    "usage": {"input_tokens": 1_000_000, "output_tokens": 0},
                },
            },
        }
    ).encode()

    def results(self, batch: str, body: bytes = RESULT + b"\n" + RESULT + b"\n") -> Charge:
        """What fetching the results of a batch comes to."""
        account = self.account(None, post=False, target=f"/v1/messages/batches/{batch}/results".encode())
        account.answered(200, {b"content-type": b"application/x-jsonl"})
        account.take(body)
        account.ended(body.endswith(b"\n"))
        return account.charge(EndReason.OK, True, 0)

    def test_batch_results(self) -> None:
        """The results of a batch are charged when they are first fetched, at half the price, and not again."""
        charge = self.results("b1")
        # 3 dollars for a million tokens of input (Anthropic, Pricing); half of it in a batch.
        self.assertEqual((charge.source, charge.cost_nano_usd), (Source.EXACT, 3_000_000_000))
        again = self.results("b1")
        self.assertEqual((again.source, again.reason, again.cost_nano_usd), (Source.NONE, "already_counted", None))
        self.assertEqual(self.results("b2").source, Source.EXACT)

    def test_a_download_that_breaks_off(self) -> None:
        """Results that did not come to their end are not counted, and are when they do."""
        self.assertEqual(self.results("b3", self.RESULT + b"\n" + self.RESULT[:50]).reason, "batch_incomplete")
        self.assertEqual(self.results("b3").source, Source.EXACT)

    def test_an_interaction_that_is_fetched_later(self) -> None:
        """One whose stream was cut was charged for what was seen; whoever fetches its end pays the rest, and once."""
        counted = {"total_input_tokens": 50_000, "total_output_tokens": 8_000}
        begun = {"id": "i-1", "object": "interaction", "model": "gemini-2.5-flash", "status": "in_progress"}
        piece = {"event_type": "step.delta", "index": 0, "delta": {"type": "text", "text": "x" * 300}}

        def fetched(name: str) -> Charge:
            account = self.account(None, post=False, target=b"/v1beta/interactions/" + name.encode())
            account.answered(200, JSON)
            account.read_whole(json.dumps(begun | {"id": name, "status": "completed", "usage": counted}).encode())
            return account.charge(EndReason.OK, True, 0)

        cut = self.streamed(
            event(type="-", event_type="interaction.created", interaction=begun), event(type="-", **piece), whole=False
        )
        self.assertEqual((cut.source, cut.once), (Source.ESTIMATED, None))
        self.assertGreater(cut.usage.total_output, 50)
        rest, whole = fetched("i-1"), fetched("i-2")
        self.assertEqual((rest.source, rest.reason, whole.reason), (Source.EXACT, "rest", None))
        for charge in (rest, whole):
            self.assertEqual(charge.source, Source.EXACT)
        self.assertEqual(rest.usage.total_input + cut.usage.total_input, 50_000)
        self.assertEqual(rest.usage.total_output + cut.usage.total_output, 8_000)
        self.assertEqual((whole.usage.total_input, whole.usage.total_output), (50_000, 8_000))
        again = fetched("i-1")
        self.assertEqual((again.source, again.reason), (Source.NONE, "already_counted"))

    def test_a_cut_interaction_was_charged_more(self) -> None:
        """Where the estimate was more than it comes to, nothing is given back, and nothing is charged."""
        begun = {"id": "i-3", "object": "interaction", "model": "gemini-2.5-flash", "status": "in_progress"}
        piece = {"event_type": "step.delta", "index": 0, "delta": {"type": "text", "text": "x" * 900}}
        self.streamed(
            event(type="-", event_type="interaction.created", interaction=begun), event(type="-", **piece), whole=False
        )
        account = self.account(None, post=False, target=b"/v1beta/interactions/i-3")
        account.answered(200, JSON)
        usage = {"total_input_tokens": 2, "total_output_tokens": 3}
        account.read_whole(json.dumps(begun | {"status": "completed", "usage": usage}).encode())
        charge = account.charge(EndReason.OK, True, 0)
        self.assertEqual((charge.source, charge.usage.total_input, charge.usage.total_output), (Source.EXACT, 0, 0))
        self.assertEqual(charge.cost_nano_usd, 0)

    def test_after_a_restart(self) -> None:
        """What the ledger knows to have been counted is not counted again."""
        once = self.results("b4").once
        assert once is not None
        self.books = Books(PriceBook([load_shipped()]), Estimation(), self.warnings.append)
        self.books.counted_before([once])
        self.assertEqual(self.results("b4").reason, "already_counted")

    def test_named_as_in_the_ledger(self) -> None:
        """A name that the ledger would change is the changed one from the beginning."""
        self.books = Books(PriceBook([load_shipped()]), Estimation(), self.warnings.append, storable_once)
        name = "x" * 2000 + "sk-ant-api03-0123456789"
        once = self.results(name).once
        assert once is not None
        self.assertEqual(storable_once(once), once)
        self.assertNotIn("0123456789", once)
        self.assertEqual(self.results(name).reason, "already_counted")

    def test_bounded(self) -> None:
        """However many there are, so many are remembered: those asked for last."""
        for number in range(COUNTED_MAX + 10):
            self.books.count(f"{number}")
        self.assertTrue(self.books.is_counted(f"{COUNTED_MAX}"))
        self.assertFalse(self.books.is_counted("0"))


class Unlooked(_Case):
    """Requests that could not be looked at."""

    def test_charged_by_its_length(self) -> None:
        """A body that nobody can read is taken for a call, by its length; one whose length is not known too."""
        for length in (4000, None):
            account = Account(self.books, "openai", True, None, None, length, False, b"/v1/x")
            account.answered(200, JSON)
            account.read_whole(b'{"what": "is this"}')
            charge = account.charge(EndReason.OK, True, 0)
            self.assertEqual((charge.source, charge.usage.total_input), (Source.ESTIMATED, 1000))
            self.assertTrue(charge.unpriced)

    def test_no_call(self) -> None:
        """One that was read, and names no model, is none."""
        account = Account(self.books, "openai", True, None, b'{"file": "f"}', 13, True, b"/v1/x")
        account.answered(200, JSON)
        account.read_whole(b'{"what": "is this"}')
        self.assertEqual(account.charge(EndReason.OK, True, 0).source, Source.NONE)


class Warnings(_Case):
    """Models without a price."""

    def test_bounded(self) -> None:
        """Made-up models do not fill the log, nor the memory; all are counted."""
        for number in range(WARNED_MAX + 5):
            reading = Reading(model=f"made-up-{number}")
            self.books.cost(Usage(input_tokens=1), "openai", None, reading)
            self.books.cost(Usage(input_tokens=1), "openai", None, reading)
        self.assertEqual((len(self.warnings), self.books.unpriced), (WARNED_MAX, 2 * WARNED_MAX + 10))


class Told(SynchronousTestCase):
    """The fields of an answer."""

    def names(self, reading: Reading) -> list[bytes]:
        """The names of the fields for an exact usage with this reading."""
        charge = Charge(Usage(input_tokens=1), Source.EXACT, None, reading, 5)
        return [name for name, _ in token_fields(charge, "openai")]

    def test_what_may_not_be_in_a_field(self) -> None:
        """A model or an id of the provider's that is no plain text, or looks like a key, is left out."""
        self.assertIn(b"X-LLM-Model", self.names(Reading(model="gpt-4o", response_id="r1")))
        for model in ("a\r\nSet-Cookie: x", "m\x00", "m\x7f", "caf\xe9", "sk-proj-0123456789abcdef", "m" * 300):
            with self.subTest(model):
                self.assertNotIn(b"X-LLM-Model", self.names(Reading(model=model)))
                self.assertNotIn(b"X-LLM-Request-ID", self.names(Reading(response_id=model)))

    def test_only_what_is_exact(self) -> None:
        """An estimate is not told as if it were a count."""
        for source in (Source.PARTIAL, Source.ESTIMATED, Source.NONE):
            self.assertEqual(token_fields(Charge(Usage(input_tokens=1), source), "openai"), [])

    def test_dollars(self) -> None:
        """A cost has all its digits and no more."""
        for nano, text in ((0, b"0"), (1, b"0.000000001"), (1_972_500, b"0.0019725"), (12 * 10**9, b"12")):
            self.assertEqual(dollars(nano), text)
