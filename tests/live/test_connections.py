"""Connections to providers: which are kept, which are used again, which are given up."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from tests.live.conversation import END, OK, STREAM_HEAD, Stage, answer, error_of, get, id_of, post, request
from tests.live.proxy import all_providers, running_proxy
from tests.live.upstream import Upstream
from tests.live.wire import Wire, chunk

POOL_SIZE = 3
FIRST_BYTE_S = 1.0
IDLE_S = 1.0
POOL_IDLE_S = 2.0
SWEEP_S = 1.0
"""How much later than due a deadline may be seen."""


@pytest.fixture(scope="module")
def _impatient_stage() -> Iterator[Stage]:
    upstream = Upstream()
    config = {
        "providers": all_providers(upstream.url),
        "upstream": {
            "pool_size": POOL_SIZE,
            "pool_idle_s": POOL_IDLE_S,
            "first_byte_timeout_s": FIRST_BYTE_S,
            "idle_timeout_s": IDLE_S,
        },
    }
    with running_proxy(config) as proxy:
        yield Stage(proxy, upstream)
    upstream.close()


@pytest.fixture
def impatient(_impatient_stage: Stage) -> Iterator[Stage]:
    """A proxy with short deadlines and a small pool."""
    yield _impatient_stage
    _impatient_stage.clear()


def ask(stage: Stage, caller: Wire, data: bytes, reply: bytes = OK) -> Wire:
    """One request on ``caller`` that is answered; returns the upstream's connection that it came on."""
    caller.send(data)
    upstream = stage.upstream.receive()
    upstream.read_message()
    upstream.send(reply)
    caller.read_message()
    return upstream


# -- kept connections --------------------------------------------------------------------------------------------------


def test_connections_are_kept(stage: Stage) -> None:
    """One request after the other goes over one connection, whoever sends them."""
    first = ask(stage, stage.caller(), get())
    for data in (get(), post(), get(b"/openai/x"), request(b"DELETE", b"/openai/x")):
        assert ask(stage, stage.caller(), data) is first
    caller = stage.caller()
    for _ in range(20):
        assert ask(stage, caller, post()) is first
    assert stage.upstream.is_untouched(0.02)


def test_connections_are_kept_after_streams(stage: Stage) -> None:
    """Also after a stream that ended properly, and after an error of the provider's."""
    stream = STREAM_HEAD + chunk(b"data: 1\n\n") + END
    first = ask(stage, stage.caller(), get(), stream)
    for reply in (answer(status=b"500 X"), stream, answer(status=b"429 Y"), OK):
        assert ask(stage, stage.caller(), get(), reply) is first


def test_one_request_at_a_time(stage: Stage) -> None:
    """A connection that is in use is not shared: the second request gets one of its own."""
    caller, busy = stage.sends(get())
    busy.read_message()
    other = ask(stage, stage.caller(), get())
    assert other is not busy
    busy.send(OK)
    assert caller.read_message().body == b"ok"


def test_each_origin_has_its_own(stage: Stage) -> None:
    """A connection that one provider's key was sent over is not used for another provider, even at one address."""
    first = ask(stage, stage.caller(), get(b"/openai/v1/x"))
    assert ask(stage, stage.caller(), get(b"/anthropic/v1/x")) is not first
    assert ask(stage, stage.caller(), get(b"/openai/v1/x")) is first


def test_pool_size(impatient: Stage) -> None:
    """No more idle connections are kept than the configuration says."""
    callers = []
    for _ in range(POOL_SIZE + 2):
        caller, upstream = impatient.sends(get())
        upstream.read_message()
        callers.append((caller, upstream))
    for caller, upstream in callers:
        upstream.send(OK)
        assert caller.read_message().body == b"ok"
    closed = [upstream.is_closed_within(0.2) for _, upstream in callers]
    assert closed.count(False) == POOL_SIZE


def test_pool_idle(impatient: Stage) -> None:
    """An idle connection is closed after `pool_idle_s`, and not before."""
    upstream = ask(impatient, impatient.caller(), get())
    assert not upstream.is_closed_within(POOL_IDLE_S - 0.3)
    assert upstream.is_closed_within(SWEEP_S + 0.6)


@pytest.mark.parametrize(
    "reply",
    [
        answer(b"Connection: close"),
        answer(b"connection: foo, CLOSE"),
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        OK + b"more than was announced",
        OK + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nEVIL",
        STREAM_HEAD + END + b"\x00",
    ],
    ids=["close", "close in a list", "HTTP/1.0", "surplus", "a second answer", "surplus after chunks"],
)
def test_not_kept(stage: Stage, reply: bytes) -> None:
    """A connection that the provider wants closed, or on which it said more than was asked, serves nobody else."""
    upstream = ask(stage, stage.caller(), get(), reply)
    assert upstream.is_closed_within(1.0)
    for _ in range(5):
        assert stage.is_served()


def test_unasked_bytes_on_an_idle_connection(either_stage: Stage) -> None:
    """What a provider says on an idle connection is nobody's answer."""
    upstream = ask(either_stage, either_stage.caller(), get())
    upstream.send(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 4\r\n\r\nEVIL")
    assert upstream.is_closed_within(1.0)
    assert either_stage.is_served()


def test_an_answer_before_the_question(stage: Stage) -> None:
    """Not even when it comes in the same moment as the next request."""
    for _ in range(20):
        caller = stage.caller()
        upstream = ask(stage, caller, get())
        upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nEVIL")
        caller.send(get())
        again = stage.upstream.receive()
        assert again is not upstream
        again.read_message()
        again.send(OK)
        assert caller.read_message().body == b"ok"


# -- a kept connection that is dead ----------------------------------------------------------------------------------


@pytest.mark.parametrize("leave", [Wire.end, Wire.reset])
def test_closed_while_idle(either_stage: Stage, leave: Callable[[Wire], None]) -> None:
    """A kept connection that the provider has closed is not used: also a POST just works, and is sent once."""
    for _ in range(5):
        upstream = ask(either_stage, either_stage.caller(), get())
        either_stage.upstream.connections.remove(upstream)
        leave(upstream)
        caller, again = either_stage.sends(post(b"once"))
        assert again.read_message().body == b"once"
        again.send(OK)
        assert caller.read_message().body == b"ok"


@pytest.mark.parametrize("leave", [Wire.close, Wire.reset])
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PUT", "DELETE"])
def test_idempotent_requests_are_sent_once_more(stage: Stage, method: str, leave: Callable[[Wire], None]) -> None:
    """If a kept connection dies under an idempotent request, it is sent again on a new one; the log counts it."""
    ask(stage, stage.caller(), get())
    body = b"held" if method == "PUT" else None
    caller, dying = stage.sends(request(method.encode(), b"/openai/v1/x", b"A: 1", body=body))
    first = dying.read_message()
    stage.upstream.connections.remove(dying)
    leave(dying)
    again = stage.upstream.receive()
    assert again.read_message() == first
    again.send(OK if method != "HEAD" else answer(body=None))
    returned = caller.read_message(bodyless=method == "HEAD")
    assert returned.status == 200
    request_id = id_of(returned)
    assert stage.proxy.access_event(request_id=request_id)["retries"] == 1


def test_once_more_and_no_more(stage: Stage) -> None:
    """If the new connection dies as well, that is the end."""
    ask(stage, stage.caller(), get())
    caller, dying = stage.sends(get())
    dying.read_message()
    stage.upstream.forget(dying)
    again = stage.upstream.receive()
    again.read_message()
    stage.upstream.forget(again)
    assert error_of(caller.read_message()) == (502, b"upstream_reset", b"upstream")
    assert stage.upstream.is_untouched()


@pytest.mark.parametrize("leave", [Wire.close, Wire.reset])
@pytest.mark.parametrize("method", ["POST", "PATCH"])
def test_a_post_is_never_sent_twice(stage: Stage, method: str, leave: Callable[[Wire], None]) -> None:
    """A POST that may have been read is answered 502: it would be paid for twice."""
    for body in (b"{}", b"", b'{"messages":"' + b"x" * 50_000 + b'"}'):
        ask(stage, stage.caller(), get())
        caller, dying = stage.sends(request(method.encode(), b"/openai/v1/x", body=body))
        dying.read_message()
        stage.upstream.connections.remove(dying)
        leave(dying)
        assert error_of(caller.read_message()) == (502, b"upstream_reset", b"upstream")
        assert stage.upstream.is_untouched(0.05)


def test_a_new_connection_that_dies(stage: Stage) -> None:
    """On a new connection nothing was stale: not even a GET is sent again, the provider has just refused it."""
    caller, dying = stage.sends(get())
    dying.read_message()
    stage.upstream.forget(dying)
    assert error_of(caller.read_message()) == (502, b"upstream_reset", b"upstream")
    assert stage.upstream.is_untouched()


def test_an_answer_that_had_begun(stage: Stage) -> None:
    """After the first byte of an answer nothing is sent again, on a kept connection neither."""
    ask(stage, stage.caller(), get())
    caller, dying = stage.sends(get())
    dying.read_message()
    dying.send(b"H")
    stage.upstream.forget(dying)
    assert error_of(caller.read_message())[0] == 502
    assert stage.upstream.is_untouched()


def test_an_upload_that_had_begun(stage: Stage) -> None:
    """A PUT of which a part is gone cannot be sent again."""
    ask(stage, stage.caller(), get())
    caller, dying = stage.sends(request(b"PUT", b"/openai/v1/f", b"Content-Length: 100"), b"x" * 50)
    dying.read_head()
    dying.read(50)
    stage.upstream.forget(dying)
    assert error_of(caller.read_message()) == (502, b"upstream_reset", b"upstream")
    assert stage.upstream.is_untouched()


# -- deadlines ---------------------------------------------------------------------------------------------------------


def test_first_byte_timeout(impatient: Stage) -> None:
    """A provider that does not begin to answer in time: 504, its connection closed, the request not sent again."""
    caller, upstream = impatient.sends(get())
    upstream.read_message()
    started_s = time.monotonic()
    assert error_of(caller.read_message()) == (504, b"upstream_first_byte_timeout", b"upstream")
    assert FIRST_BYTE_S - 0.1 <= time.monotonic() - started_s <= FIRST_BYTE_S + SWEEP_S + 0.5
    assert upstream.is_closed_within(0.5)
    assert impatient.upstream.is_untouched()


def test_first_byte_in_time(impatient: Stage) -> None:
    """The deadline is for the first byte: a stream may take as long as it wants, if it is never silent for too long."""
    caller, upstream = impatient.sends(get())
    upstream.read_message()
    time.sleep(FIRST_BYTE_S * 0.7)
    upstream.send(STREAM_HEAD)
    for number in range(4):
        time.sleep(IDLE_S * 0.6)
        upstream.send_chunk(b"%d" % number)
    upstream.send(END)
    assert caller.read_message().body == b"0123"


def test_a_slow_upload_is_not_a_late_answer(impatient: Stage) -> None:
    """The wait for an answer begins when the request is sent, however long the caller takes to send it."""
    caller, upstream = impatient.sends(request(b"POST", b"/openai/v1/f", b"Content-Length: 5"), b"1")
    upstream.read_head()
    for digit in (b"2", b"3", b"4", b"5"):
        time.sleep(FIRST_BYTE_S * 0.6)
        caller.send(digit)
    assert upstream.read(5) == b"12345"
    upstream.send(OK)
    assert caller.read_message().status == 200


def test_idle_timeout(impatient: Stage) -> None:
    """A stream that falls silent for too long is cut on both sides, visibly."""
    caller, upstream = impatient.sends(get())
    upstream.read_message()
    upstream.send(STREAM_HEAD, chunk(b"data: 1\n\n"))
    head = caller.read_head()
    assert caller.read_chunk() == b"data: 1\n\n"
    started_s = time.monotonic()
    assert caller.read_to_end() == b""
    assert time.monotonic() - started_s <= IDLE_S + SWEEP_S + 0.5
    assert upstream.is_closed_within(0.5)
    request_id = id_of(head)
    assert impatient.proxy.access_event(request_id=request_id)["end_reason"] == "idle_timeout"


def test_a_reader_that_pauses_is_no_silent_upstream(impatient: Stage) -> None:
    """While the caller is the one who does not read, the provider is not blamed for silence."""
    caller, upstream = impatient.sends(get())
    upstream.read_message()
    size = 16 * 1024 * 1024
    upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
    taken = upstream.fill(b"x" * 65_536, for_s=IDLE_S + SWEEP_S + 0.5, limit_bytes=size)
    assert taken < size
    rest = threading.Thread(target=upstream.send, args=(b"y" * (size - taken),))
    rest.start()
    caller.read_head()
    assert caller.read(size) == b"x" * taken + b"y" * (size - taken)
    rest.join()
