"""A provider, or whoever sits in its place, that does not mean well: over real sockets, at full speed.

What each malformed byte does to the parser is tested in memory (tests/wire, tests/fuzz). Here: how much it costs the
proxy, what the caller sees, and that nothing of it ever answers somebody else.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Final

import pytest

from tests.fuzz.corpus import Entry, entries
from tests.fuzz.readers import read_answers
from tests.live.conversation import END, OK, STREAM, STREAM_HEAD, Stage, answer, error_of, get, id_of, post
from tests.live.proxy import running_proxy
from tests.live.upstream import HOST
from tests.live.wire import Wire, chunk

MIB: Final = 1 << 20
EVIL: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nEVIL"
INVALID: Final = (502, b"upstream_invalid_answer", b"upstream")
LEAVE: Final = {"FIN": Wire.close, "RST": Wire.reset}


def asked(stage: Stage, data: bytes = STREAM) -> tuple[Wire, Wire]:
    """A caller that has asked, and the provider's connection on which the request was read."""
    caller, upstream = stage.sends(data)
    upstream.read_message()
    return caller, upstream


def five_follow(stage: Stage, caller: Wire) -> None:
    """Five more requests of this caller, and one of another, are each answered by their own answer."""
    for number in range(5):
        caller.send(get(b"/openai/v1/%d" % number))
        upstream = stage.upstream.receive()
        assert upstream.read_message().start == b"GET /v1/%d HTTP/1.1" % number
        upstream.send(answer(body=b"%d" % number))
        assert caller.read_message().body == b"%d" % number
    assert stage.is_served()


# -- what is no answer -------------------------------------------------------------------------------------------------


def _entry_id(entry: Entry) -> str:
    return entry.name


@pytest.mark.parametrize("entry", entries("responses"), ids=_entry_id)
def test_corpus(stage: Stage, entry: Entry) -> None:
    """Every broken answer of the corpus is a 502 or visibly cut, and what follows it answers nobody."""
    caller, upstream = asked(stage, get(b"/openai/v1/models"))
    upstream.send(entry.data)
    stage.upstream.connections.remove(upstream)
    upstream.close()
    heard = caller.read_until(b"\r\n\r\n")
    while heard.startswith(b"HTTP/1.1 1"):
        heard = caller.read_until(b"\r\n\r\n")
    head, *_ = heard.split(b"\r\n")
    if entry.expected == "502":
        assert head.startswith(b"HTTP/1.1 502 ")
        assert b"\r\nX-LLM-Proxy-Error-Source: upstream\r\n" in heard
    closed = False
    answers, error = read_answers(heard, [b"GET"], closed=False)
    while error is None and not closed and not (answers and answers[0].whole):
        try:
            data = caller.read_some()
        except ConnectionResetError:
            break
        closed = not data
        heard += data
        answers, error = read_answers(heard, [b"GET"], closed=closed)
    whole = error is None and answers[0].whole
    assert whole == (entry.expected != "cut")
    assert b"EVIL" not in heard
    assert caller.is_quiet(0.0) or caller.is_closed_within(0.5)
    assert stage.is_served()


def test_nothing_but_http_1(stage: Stage) -> None:
    """A banner that comes as soon as the connection is there, before the request was read, is no answer either."""
    for banner in (
        b"SSH-2.0-OpenSSH_9\r\n",
        b"220 mail.test ESMTP\r\n",
        b"<html>HTTP/0.9</html>",
        b"\x00" * 4096,
        EVIL,
    ):
        stage.upstream.hang_up()
        caller = stage.caller()
        caller.send(post())
        upstream = stage.upstream.accept()
        upstream.send(banner)
        if banner is EVIL:
            # Before the request is out, nothing is sent; behind it, it is an answer to that one and no other.
            returned = caller.read_message()
            assert returned.status == 200 or error_of(returned) == INVALID
        else:
            assert error_of(caller.read_message()) == INVALID
            assert upstream.is_closed_within(1.0)
        stage.upstream.hang_up()
        five_follow(stage, stage.caller())


def test_101_that_nobody_asked_for(stage: Stage) -> None:
    """A change of protocol that nobody asked for is a 502; what follows it is no tunnel to the caller."""
    caller, upstream = asked(stage)
    upstream.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", EVIL)
    returned = caller.read_message()
    assert error_of(returned) == INVALID
    assert b"EVIL" not in returned.body
    assert upstream.is_closed_within(1.0)
    stage.upstream.hang_up()
    five_follow(stage, caller)


# -- what has no end ---------------------------------------------------------------------------------------------------

ENDLESS: Final[dict[str, tuple[bytes, bytes]]] = {
    "a status line": (b"HTTP/1.1 200 ", b"x" * 65_536),
    "a name": (b"HTTP/1.1 200 OK\r\n", b"x" * 65_536),
    "a value": (b"HTTP/1.1 200 OK\r\nX: ", b"x" * 65_536),
    "fields": (b"HTTP/1.1 200 OK\r\n", b"X-A: " + b"b" * 100 + b"\r\n"),
    "short fields": (b"HTTP/1.1 200 OK\r\n", b"a:\r\n" * 10_000),
    "no line": (b"", b"x" * 65_536),
    "empty lines": (b"", b"\r\n" * 32_768),
    "100": (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
    "103": (b"", b"HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\n\r\n" * 1000),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_endless_head(stage: Stage, name: str) -> None:
    """A head without end at full speed: a 502 soon, the connection dropped, and no memory spent on it."""
    assert stage.is_served()
    start, piece = ENDLESS[name]
    caller, upstream = asked(stage)
    began_s = time.monotonic()
    with stage.proxy.memory_bounded(2 * MIB):
        sent = 0
        try:
            upstream.send(start)
            while sent < 64 * MIB:
                upstream.send(piece)
                sent += len(piece)
        except ConnectionError:
            pass
        returned = caller.read_head()
        while returned.status < 200:
            returned = caller.read_head()
    assert error_of(returned) == INVALID
    assert sent < 64 * MIB, "somebody read all of it"
    assert time.monotonic() - began_s < 3.0
    stage.upstream.forget(upstream)
    five_follow(stage, stage.caller())


@pytest.mark.parametrize("piece", [b"X-A: b\r\n", b"x"], ids=["trailers", "a chunk extension"])
def test_endless_framing(stage: Stage, piece: bytes) -> None:
    """So are trailers or a chunk extension without end: the stream is cut, visibly."""
    assert stage.is_served()
    caller, upstream = asked(stage)
    upstream.send(STREAM_HEAD, chunk(b"data: 1\n\n"), b"0\r\n" if b":" in piece else b"1;")
    head = caller.read_head()
    assert caller.read_chunk() == b"data: 1\n\n"
    with stage.proxy.memory_bounded(4 * MIB):
        sent = 0
        try:
            while sent < 64 * MIB:
                upstream.send(piece * 4096)
                sent += len(piece) * 4096
        except ConnectionError:
            pass
    assert sent < 64 * MIB
    assert not _rest(caller).endswith(END)
    assert stage.proxy.access_event(request_id=id_of(head))["end_reason"] == "upstream_invalid"


def _rest(caller: Wire) -> bytes:
    got = b""
    try:
        while data := caller.read_some():
            got += data
    except ConnectionResetError:
        pass
    return got


def test_a_head_byte_by_byte(stage: Stage) -> None:
    """A head that comes one byte in each packet is read like any other, and costs no more than that."""
    caller, upstream = asked(stage)
    for byte in answer(b"X-A: " + b"b" * 500):
        upstream.send(bytes((byte,)))
    assert caller.read_message().body == b"ok"


# -- what nobody asked for ---------------------------------------------------------------------------------------------

SURPLUS: Final = {
    "behind a length": answer(body=b"whole") + EVIL,
    "behind chunks": STREAM_HEAD + chunk(b"whole") + END + EVIL,
    "behind a trailer": STREAM_HEAD + chunk(b"whole") + b"0\r\nX-Sum: 1\r\n\r\n" + EVIL,
    "behind a 204": b"HTTP/1.1 204 No Content\r\n\r\n" + EVIL,
    "behind a 204 with a length": b"HTTP/1.1 204 No Content\r\nContent-Length: %d\r\n\r\n" % len(EVIL) + EVIL,
    "behind a 304": b"HTTP/1.1 304 Not Modified\r\nContent-Length: %d\r\n\r\n" % len(EVIL) + EVIL,
    "behind an error": answer(status=b"429 Slow", body=b"whole") + EVIL,
    "half of it": answer(body=b"whole") + EVIL[:20],
}


@pytest.mark.parametrize("pause_s", [0.0, 0.05], ids=["at once", "later"])
@pytest.mark.parametrize("name", SURPLUS)
def test_surplus(stage: Stage, name: str, pause_s: float) -> None:
    """An answer behind the answer, at once or a moment later, never answers any of the next five requests."""
    caller, upstream = asked(stage, get(b"/openai/v1/models"))
    whole = SURPLUS[name]
    cut = whole.index(EVIL[:20], 10)
    upstream.send(whole[:cut]) if pause_s else upstream.send(whole)
    returned = caller.read_message()
    assert returned.body in (b"whole", b"")
    if pause_s:
        time.sleep(pause_s)
        upstream.send(whole[cut:])
    assert upstream.is_closed_within(1.0)
    five_follow(stage, caller)


def test_surplus_to_head(stage: Stage) -> None:
    """Nor does the body that a provider sends to HEAD, where there is none."""
    caller, upstream = stage.sends(get().replace(b"GET", b"HEAD"))
    upstream.read_message()
    upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(EVIL), EVIL)
    assert caller.read_message(bodyless=True).status == 200
    assert upstream.is_closed_within(1.0)
    five_follow(stage, caller)


@pytest.mark.parametrize("said", [EVIL, b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\n\r\n", b"\r\n", b"\x00"])
def test_words_on_an_idle_connection(stage: Stage, said: bytes) -> None:
    """What comes on a connection that waits for its next request is nobody's answer, and ends the connection."""
    caller, upstream = asked(stage, get())
    upstream.send(OK)
    assert caller.read_message().body == b"ok"
    upstream.send(said)
    if said.startswith(b"HTTP/1.1 408"):
        stage.upstream.connections.remove(upstream)
        upstream.close()  # as a server does that has waited long enough
    else:
        assert upstream.is_closed_within(1.0)
    five_follow(stage, caller)


# -- the end at each phase ---------------------------------------------------------------------------------------------

PHASES: Final = {
    "nothing": (b"", "502"),
    "an empty line": (b"\r\n", "502"),
    "an interim answer": (b"HTTP/1.1 103 Early Hints\r\n\r\n", "502"),
    "half a line": (b"HTTP/1.1 20", "502"),
    "half a field": (b"HTTP/1.1 200 OK\r\nContent-Le", "502"),
    "all but the last LF": (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r", "502"),
    "no body": (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", "cut"),
    "half a body": (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel", "cut"),
    "no chunk": (STREAM_HEAD, "cut"),
    "half a size": (STREAM_HEAD + chunk(b"data") + b"1", "cut"),
    "half a chunk": (STREAM_HEAD + b"10\r\ndata", "cut"),
    "no end of a chunk": (STREAM_HEAD + b"4\r\ndata", "cut"),
    "no last chunk": (STREAM_HEAD + chunk(b"data"), "cut"),
    "half a last chunk": (STREAM_HEAD + chunk(b"data") + b"0", "cut"),
    "no end": (STREAM_HEAD + chunk(b"data") + b"0\r\n", "cut"),
    "half a trailer": (STREAM_HEAD + chunk(b"data") + b"0\r\nX-Sum: ", "cut"),
    "all but the end's LF": (STREAM_HEAD + chunk(b"data") + b"0\r\n\r", "cut"),
    "a bad size": (STREAM_HEAD + chunk(b"data") + b"0x4\r\ndata\r\n0\r\n\r\n", "cut"),
    "a chunk too long": (STREAM_HEAD + b"4\r\ndata and more\r\n0\r\n\r\n", "cut"),
    "a chunk too short": (STREAM_HEAD + b"8\r\ndata\r\n0\r\n\r\n", "cut"),
    "a negative size": (STREAM_HEAD + chunk(b"data") + b"-1\r\n\r\n0\r\n\r\n", "cut"),
    "a size of 17 digits": (STREAM_HEAD + chunk(b"data") + b"10000000000000004\r\ndata\r\n0\r\n\r\n", "cut"),
}


@pytest.mark.parametrize("how", LEAVE)
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("data", [STREAM, get()], ids=["POST", "GET"])
def test_ends(stage: Stage, data: bytes, phase: str, how: str) -> None:
    """A provider that goes away at any point: a 502 before an answer has begun, a visible cut within it; never a whole
    answer, never a second try, never the connection for the next request."""
    said, becomes = PHASES[phase]
    caller, upstream = asked(stage, data)
    upstream.send(said)
    stage.upstream.connections.remove(upstream)
    if becomes == "cut":
        head = caller.read_head()
        _leaves(LEAVE[how], upstream)
        rest = _rest(caller)
        assert head.status == 200
        assert len(rest) < 5 if head.value("content-length") else not rest.endswith(END), rest
        assert b"upstream" not in rest  # no error of ours is written into it
        caller = stage.caller()
    else:
        if phase == "an interim answer":
            assert caller.read_head().status == 103
        _leaves(LEAVE[how], upstream)
        returned = caller.read_message()
        assert returned.status == 502
        assert returned.value("x-llm-proxy-error-class") in (b"upstream_reset", b"upstream_invalid_answer")
    assert stage.upstream.is_untouched(0.01)
    five_follow(stage, caller)


def _leaves(leave: Callable[[Wire], None], upstream: Wire) -> None:
    try:
        leave(upstream)
    except OSError:
        pass  # the proxy was first


def test_back_again() -> None:
    """A provider that was away is used again with the first request that comes after its return."""
    with socket.create_server((HOST, 0)) as probe:
        port = probe.getsockname()[1]
    with running_proxy({"providers": {"openai": {"base_url": f"http://{HOST}:{port}"}}}) as proxy:
        for _ in range(3):
            caller = proxy.connect()
            caller.send(post())
            assert caller.read_message().status == 502
            with socket.create_server((HOST, port)) as listener:
                caller.send(post())  # on the same connection
                connected, _ = listener.accept()
                upstream = Wire(connected)
                assert upstream.read_message().body == b"{}"
                upstream.send(OK)
                assert caller.read_message().body == b"ok"
                upstream.close()
            caller.close()
