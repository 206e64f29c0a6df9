"""Callers that shut their sending side after the request, as `nc -N` and some HTTP libraries do, and read on.

A caller that closed altogether looks the same at first, and costs money while it is not found out: it is, soon.
"""

from __future__ import annotations

import socket
import time
from typing import Final

import pytest

from tests.live.conversation import END, OK, STREAM, STREAM_HEAD, Stage, answer, get, id_of, post, request
from tests.live.wire import Message, Wire, chunk

NOTICED_S: Final = 2.0


def shut(caller: Wire) -> None:
    """Send nothing more from here on."""
    caller.socket.shutdown(socket.SHUT_WR)


def final(caller: Wire) -> Message:
    """The next final answer."""
    returned = caller.read_message()
    while returned.status == 100:
        returned = caller.read_message()
    return returned


@pytest.mark.parametrize(
    "data",
    [get(), post(b'{"model":"m"}'), request(b"DELETE", b"/openai/v1/x"), STREAM],
    ids=["GET", "POST", "DELETE", "stream"],
)
@pytest.mark.parametrize("pause_s", [0.0, 0.7], ids=["at once", "later"])
def test_answered(stage: Stage, data: bytes, pause_s: float) -> None:
    """The request is answered all the same, however long the provider takes, and then the connection is closed."""
    caller, upstream = stage.sends(data)
    shut(caller)
    upstream.read_message()
    time.sleep(pause_s)
    upstream.send(OK)
    assert final(caller).body == b"ok"
    assert caller.is_closed_within(1.0)


def test_shut_before_the_request_was_read(stage: Stage) -> None:
    """Also when request and end come in the same moment."""
    for data in (get(), post(), request(b"POST", b"/openai/f", b"Transfer-Encoding: chunked") + chunk(b"x") + END):
        caller = stage.caller()
        caller.send(data)
        shut(caller)
        upstream = stage.upstream.receive()
        upstream.read_message()
        upstream.send(OK)
        assert final(caller).body == b"ok"


def test_pipelined(stage: Stage) -> None:
    """Several requests before the end are all answered, in order."""
    caller = stage.caller()
    caller.send(get(b"/openai/1") + post(b"two", b"/openai/2", b"Content-Type: text/plain") + get(b"/health/live"))
    shut(caller)
    for number in (b"1", b"2"):
        upstream = stage.upstream.receive()
        assert upstream.read_message().start.endswith(b"/%b HTTP/1.1" % number)
        time.sleep(0.2)
        upstream.send(answer(body=number))
        assert final(caller).body == number
    assert b"live" in final(caller).body
    assert caller.is_closed_within(1.0)


def test_stream(stage: Stage) -> None:
    """A stream goes on for as long as it has events, with pauses in it, and ends whole."""
    caller, upstream = stage.sends(STREAM)
    upstream.read_message()
    upstream.send(STREAM_HEAD, chunk(b"data: 0\n\n"))
    assert final_head(caller).status == 200
    shut(caller)
    events = [caller.read_chunk()]
    for number in range(1, 8):
        time.sleep(0.25)
        upstream.send_chunk(b"data: %d\n\n" % number)
        events.append(caller.read_chunk())
    upstream.send(END)
    assert caller.read_chunk() == b""
    assert events == [b"data: %d\n\n" % number for number in range(8)]
    assert caller.read_trailers() == []
    assert caller.is_closed_within(1.0)


def final_head(caller: Wire) -> Message:
    """The head of the next final answer."""
    head = caller.read_head()
    while head.status == 100:
        head = caller.read_head()
    return head


def test_over_tls(tls_stage: Stage) -> None:
    """Over TLS a closing alert is the end of both ways: such a caller has left, and the work for it ends."""
    caller, upstream = tls_stage.sends(STREAM)
    upstream.read_message()
    caller.end()
    assert upstream.is_closed_within(NOTICED_S)


def test_in_mid_request(stage: Stage) -> None:
    """A request that is not complete never will be: a head gets a 400, an upload ends visibly broken."""
    caller = stage.caller()
    caller.send(b"GET /openai/v1/mod")
    shut(caller)
    assert caller.read_message().status == 400
    assert caller.is_closed_within(1.0)
    caller, upstream = stage.sends(request(b"POST", b"/openai/f", b"Transfer-Encoding: chunked"), chunk(b"a part"))
    upstream.read_head()
    shut(caller)
    with pytest.raises((ConnectionError, EOFError)):
        upstream.read_until(END)


# -- callers that have closed altogether -------------------------------------------------------------------------------

PLACES: Final = ("before the head", "in a silent stream", "in a busy stream", "behind another request")


@pytest.mark.parametrize("place", PLACES)
def test_left(stage: Stage, place: str) -> None:
    """A caller that closes is noticed within two seconds wherever its request is, and its provider is told."""
    caller, upstream = stage.sends(STREAM + (get(b"/openai/v1/next") if place == "behind another request" else b""))
    upstream.read_message()
    request_id = ""
    if "stream" in place:
        upstream.send(STREAM_HEAD, chunk(b"data: 0\n\n"))
        request_id = id_of(caller.read_head())
        caller.read_chunk()
    caller.close()
    left_s = time.monotonic()
    if place == "in a busy stream":
        with pytest.raises(ConnectionError):
            while time.monotonic() - left_s < NOTICED_S:
                upstream.send_chunk(b"data: x\n\n")
                time.sleep(0.02)
    else:
        assert upstream.is_closed_within(NOTICED_S)
    assert time.monotonic() - left_s < NOTICED_S
    if request_id:
        event = stage.proxy.access_event(request_id=request_id)
        assert event["end_reason"] == "client_gone"


def test_shut_and_later_left(stage: Stage) -> None:
    """One that reads on for a while and then leaves is noticed as soon, in silence too."""
    caller, upstream = stage.sends(STREAM)
    upstream.read_message()
    upstream.send(STREAM_HEAD, chunk(b"data: 0\n\n"))
    caller.read_head()
    caller.read_chunk()
    shut(caller)
    assert upstream.is_quiet(0.7)
    caller.close()
    assert upstream.is_closed_within(2 * NOTICED_S)
