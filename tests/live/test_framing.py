"""Messages that two readers could understand differently, and messages without end: over real sockets.

The same corpus is sent in memory, cut at every byte, by tests/fuzz. Here it meets the kernel, a strict origin and the
clock: what is refused is refused at once and closed, and nothing that hides in it reaches the provider.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import pytest

from tests.fuzz.corpus import Entry, entries, verdict
from tests.fuzz.laboratory import Outcome
from tests.fuzz.readers import answer_to, read_answers
from tests.live.conversation import END, Stage, error_of, get, post, request
from tests.live.origin import Origin, serving
from tests.live.proxy import Proxy, all_providers, running_proxy
from tests.live.wire import LIMIT_S, Wire, chunk

MIB: Final = 1 << 20


@dataclass
class Strict:
    """A proxy before an origin that reads strictly and answers by itself."""

    proxy: Proxy
    origin: Origin

    def heard(self, wire: Wire, answers: int) -> tuple[bytes, bool]:
        """What a caller gets until it has so many answers or its connection ends; whether it has ended."""
        heard, closed = b"", False
        while not closed and sum(each.whole for each in read_answers(heard, [b"GET"] * answers, False)[0]) < answers:
            try:
                data = wire.read_some()
            except ConnectionResetError:
                return heard, True
            closed = not data
            heard += data
        return heard, closed


@pytest.fixture(scope="module")
def strict() -> Iterator[Strict]:
    """See :class:`Strict`."""
    with serving() as origin, running_proxy({"providers": all_providers(origin.url)}) as proxy:
        yield Strict(proxy, origin)


def _entry_id(entry: Entry) -> str:
    return entry.name


@pytest.mark.parametrize("entry", entries("requests"), ids=_entry_id)
def test_corpus(strict: Strict, entry: Entry) -> None:
    """Every smuggled, split or broken request of the corpus is refused and its connection closed at once, or is exactly
    one clean request at the provider."""
    before = len(strict.origin.received)
    words = [word for word in entry.expected.split(", ") if word != "cut"]
    caller = strict.proxy.connect()
    caller.send(entry.data.replace(b"192.0.2.1:9002", strict.proxy.host))  # where "own" is this proxy's own name
    began_s = time.monotonic()
    heard, closed = strict.heard(caller, len(words)) if words else (b"", False)
    if not words:
        assert caller.is_quiet(0.05) or caller.ended
    if "reject" in words:
        closed = closed or caller.is_closed_within(1.0)
        assert time.monotonic() - began_s < 1.0
    elif words:
        assert caller.is_quiet(0.01) or caller.is_closed_within(1.0)  # not one answer more
    caller.close()
    methods = [entry.data.split(b" ", 1)[0] if b"HEAD" in entry.data[:5] else b"GET"] * max(1, len(words))
    outcome = Outcome(
        received=strict.origin.received[before:],
        answers=read_answers(heard, methods, closed)[0],
        closed_by_us=closed,
    )
    assert verdict(outcome) == ", ".join(words)
    assert all(b"smuggled" not in message.target for message in outcome.received)


# -- a body that nobody reads is no request ----------------------------------------------------------------------------


@pytest.mark.parametrize("pause_s", [0.0, 0.1], ids=["at once", "later"])
@pytest.mark.parametrize("framing", ["length", "chunks"])
@pytest.mark.parametrize("target", [b"/nowhere/v1/x", b"/health", b"/openai"])
def test_body_of_what_is_answered_here(stage: Stage, target: bytes, framing: str, pause_s: float) -> None:
    """The body of a request that we answer ourselves is never a request, also when it comes after the answer."""
    body = get(b"/openai/v1/smuggled")
    caller = stage.caller()
    if framing == "length":
        head, rest = request(b"POST", target, b"Content-Length: %d" % len(body)), body
    else:
        head, rest = request(b"POST", target, b"Transfer-Encoding: chunked"), chunk(body) + END
    caller.send(head) if pause_s else caller.send(head + rest)
    if pause_s:
        time.sleep(pause_s)
        caller.send(rest)
    status = caller.read_message().status
    assert status in (200, 404, 405)
    assert stage.upstream.is_untouched(0.05)
    assert caller.is_quiet(0.0) or caller.ended
    if not caller.ended:
        caller.send(get(b"/health/live"))
        assert b"live" in caller.read_message().body


def test_too_large_a_body_is_no_request() -> None:
    """Nor is a body that was refused for its size."""
    with serving() as origin:
        config = {"providers": all_providers(origin.url), "server": {"max_body_bytes": 1000}}
        with running_proxy(config) as proxy:
            caller = proxy.connect()
            smuggled = get(b"/openai/v1/smuggled") * 100
            caller.send(request(b"POST", b"/openai/v1/x", b"Content-Length: %d" % len(smuggled)), smuggled)
            assert error_of(caller.read_message()) == (413, b"body_too_large", b"proxy")
            assert caller.is_closed_within(1.0)
            assert origin.received == []


# -- many at once ------------------------------------------------------------------------------------------------------


def test_two_hundred_deep(strict: Strict) -> None:
    """Two hundred requests sent without waiting are answered in order, each with its own answer."""
    caller = strict.proxy.connect()
    before = len(strict.origin.received)
    for first in range(0, 200, 50):
        numbers = range(first, first + 50)
        caller.send(b"".join(post(b"%d" % n, b"/openai/v1/%d" % n, b"Content-Type: text/plain") for n in numbers))
    bodies = [caller.read_message().body for _ in range(200)]
    received = strict.origin.received[before:]
    assert [message.body for message in received] == [b"%d" % n for n in range(200)]
    assert [message.target for message in received] == [b"/v1/%d" % n for n in range(200)]
    assert len(set(bodies)) == 200
    caller.close()


def test_the_slow_one_first(stage: Stage) -> None:
    """A request that is quick to answer waits behind one that is slow, and is not answered in its place."""
    caller, slow = stage.sends(get(b"/openai/slow") + get(b"/health/live") + get(b"/anthropic/quick"))
    slow.read_message()
    assert caller.is_quiet(0.2)
    slow.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nsl")
    assert b"Content-Length: 4" in caller.read_until(b"\r\n\r\n")
    assert caller.read(2) == b"sl"
    assert caller.is_quiet(0.1)
    slow.send(b"ow")
    assert caller.read(2) == b"ow"
    assert b"live" in caller.read_message().body
    quick = stage.upstream.receive()
    assert quick.read_message().start == b"GET /quick HTTP/1.1"
    quick.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nquick")
    assert caller.read_message().body == b"quick"


def test_twenty_thousand_chunks(strict: Strict) -> None:
    """A body in twenty thousand chunks of a byte each takes a moment and arrives whole."""
    caller = strict.proxy.connect()
    began_s = time.monotonic()
    caller.send(request(b"POST", b"/openai/v1/x", b"Transfer-Encoding: chunked") + chunk(b"x") * 20_000 + END)
    assert caller.read_message().body.startswith(b"20000 bytes, ")
    assert time.monotonic() - began_s < 3.0
    caller.close()


# -- heads and framing without end -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "head",
    [
        request(b"GET", b"/openai/v1/x", b"X-A: " + b"a" * 8192),
        request(b"GET", b"/openai/v1/x?" + b"q" * 4096),
        request(b"GET", b"/openai/v1/x", *(b"X-%d: %d" % (n, n) for n in range(150))),
        request(b"GET", b"/openai/v1/x", b"Authorization: Bearer " + b"k" * 16_384, b"Cookie: " + b"c" * 16_384),
    ],
    ids=["a long field", "a long query", "many fields", "long tokens"],
)
def test_large_heads_pass(strict: Strict, head: bytes) -> None:
    """What SDKs really send passes: long tokens, long URLs, many fields."""
    caller = strict.proxy.connect()
    caller.send(head)
    assert caller.read_message().body.startswith(b"0 bytes, ")
    caller.close()


LINE: Final = b"GET /openai/v1/x HTTP/1.1\r\nHost: proxy.test\r\n"
ENDLESS: Final = {
    "a target": (414, b"GET /openai/v1/", b"x" * 32_768),
    "a query": (414, b"GET /openai/v1/x?", b"x" * 32_768),
    "a name": (431, LINE, b"x" * 32_768),
    "a value": (431, LINE + b"X-A: ", b"x" * 32_768),
    "fields": (431, LINE, b"X-A: b\r\n" * 4096),
    "large fields": (431, LINE, b"X-A: " + b"b" * 8000 + b"\r\n"),
    "a method": (501, b"", b"A" * 32_768),
    "trailers": (431, LINE + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n", b"X-A: b\r\n" * 4096),
    "a chunk extension": (431, LINE + b"Transfer-Encoding: chunked\r\n\r\n1;", b"x" * 32_768),
    "a chunk size": (431, LINE + b"Transfer-Encoding: chunked\r\n\r\n", b"0" * 32_768),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_endless(stage: Stage, name: str) -> None:
    """A head or framing without end at full speed is refused at once with the right status, and costs no memory."""
    assert stage.is_served()
    status, start, piece = ENDLESS[name]
    caller = stage.caller()
    began_s = time.monotonic()
    with stage.proxy.memory_bounded(3 * MIB):
        sent = 0
        try:
            caller.send(start)
            while sent < 64 * MIB and not caller.poll(0):
                caller.send(piece)
                sent += len(piece)
        except ConnectionError:
            pass
    assert sent < 8 * MIB
    assert caller.read_message().status == status
    assert caller.is_closed_within(3.0)
    assert time.monotonic() - began_s < 4.0
    stage.upstream.hang_up()
    assert stage.is_served()


def test_whoever_goes_on_sending(stage: Stage) -> None:
    """A caller that goes on sending after it was refused is cut off within seconds, and nobody waits for it."""
    caller = stage.caller()
    caller.send(b"GET / HTTP/9.9\r\n\r\n")
    began_s = time.monotonic()
    with pytest.raises(ConnectionError):
        while time.monotonic() - began_s < LIMIT_S:
            caller.send(get(b"/openai/v1/smuggled") * 100)
            time.sleep(0.01)
    assert time.monotonic() - began_s < 4.0
    assert stage.upstream.is_untouched(0.02)


OTHER: Final = {
    "a TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x01" * 500,
    "an HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
    "SSH": b"SSH-2.0-OpenSSH_9\r\n",
    "SOCKS": b"\x05\x01\x00",
    "RTSP": b"OPTIONS rtsp://proxy.test/ RTSP/1.0\r\nCSeq: 1\r\n\r\n",
    "Redis": b"*1\r\n$4\r\nPING\r\n",
    "HTTP/0.9": b"GET /openai/v1/x\r\n\r\n",
    "zeros": b"\x00" * 1000,
}


@pytest.mark.parametrize("name", OTHER)
def test_other_protocols(stage: Stage, name: str) -> None:
    """Who speaks something else is told so in HTTP and let go at once."""
    caller = stage.caller()
    caller.send(OTHER[name])
    assert caller.read_message().status in (400, 501, 505)
    assert caller.is_closed_within(1.0)
    assert stage.upstream.is_untouched(0.01)


# -- no cross-talk -----------------------------------------------------------------------------------------------------


def _ask(wire: Wire, name: bytes) -> None:
    wire.send(post(name, b"/openai/v1/" + name, b"Content-Type: text/plain"))


LEAVES: Final[tuple[Callable[[Wire], None] | None, ...]] = (None, None, Wire.close, Wire.reset)


def test_nobody_gets_the_answer_of_another(strict: Strict) -> None:
    """Forty callers, ten requests each, of which every second caller leaves at some point: whoever stays gets its own
    answers, and as many requests as were answered were sent, each once."""
    before = len(strict.origin.received)
    answered: list[tuple[bytes, bytes]] = []
    for turn in range(10):
        wires = [strict.proxy.connect() for _ in range(40)]
        for number, wire in enumerate(wires):
            _ask(wire, b"%d-%d" % (turn, number))
            leave = LEAVES[(turn + number) % len(LEAVES)]
            if leave is not None:
                leave(wire)
        for number, wire in enumerate(wires):
            if LEAVES[(turn + number) % len(LEAVES)] is None:
                answered.append((b"%d-%d" % (turn, number), wire.read_message().body))
                wire.close()
    received = {message.body: message for message in strict.origin.received[before:]}
    assert len(answered) == 200
    assert all(answer_to(received[name]) == body for name, body in answered)
    names = [message.body for message in strict.origin.received[before:]]
    assert len(names) == len(set(names))
