"""Messages that nobody thought of: made up by hypothesis, split anywhere, and the same on both sides of the proxy."""

from __future__ import annotations

import random
import re

from hypothesis import given
from hypothesis import strategies as st

from tests.live.conversation import END, OK, Stage, answer, pieces, post, request, without_added
from tests.live.test_identity import METHODS
from tests.live.wire import chunk

_token = st.text("abcxyzABCXYZ0189!#$%&'*+-.^_`|~", min_size=1, max_size=12).map(str.encode)
_name = _token.filter(
    lambda name: (
        not re.fullmatch(
            rb"(?i)(access-control-|x-llm-proxy-).*|x-goog-upload-(control-)?url|x-accel-buffering|host|expect|origin"
            rb"|connection|keep-alive|proxy-(connection|authenticate|authorization)|te|upgrade"
            rb"|content-(length|type|encoding)|transfer-encoding",
            name,
        )
    )
)
# Bytes are made of text throughout: hypothesis compares its choices with each other, and under -b text and bytes
# that look alike must not meet.
_bytes = st.text(st.characters(max_codepoint=255), max_size=400).map(lambda text: text.encode("latin-1"))
_value = st.text(
    st.characters(max_codepoint=255, exclude_categories=["Cc"], include_characters="\t\x80\x9f"), max_size=20
).map(lambda text: text.encode("latin-1").strip(b" \t"))
_lines = st.lists(st.tuples(_name, _value).map(lambda pair: pair[0] + b": " + pair[1]), max_size=8)
_cuts = st.lists(st.integers(0, 2000), max_size=6)
_body = st.one_of(
    _bytes,
    st.text('{}[]",:\\ abmodelstreamtrue0123\u00e9\U0001f600', max_size=200).map(str.encode),
)
_target = st.one_of(
    st.text("/abc%2Ff.:;?&=+[]@!~", max_size=40),
    st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="#"), max_size=40),
).map(str.encode)


@given(target=_target, lines=_lines, cuts=_cuts, method=st.sampled_from(METHODS))
def test_any_request_head(stage: Stage, target: bytes, lines: list[bytes], cuts: list[int], method: str) -> None:
    """Whatever the head is and however it is split on its way, the provider reads the caller's bytes."""
    ask = request(method.encode(), b"/openai/" + target, *lines)
    arrived, _ = stage.exchange(pieces(ask, cuts), (OK,), bodyless=method == "HEAD")
    assert arrived.start == b"%b /%b HTTP/1.1" % (method.encode(), target)
    assert arrived.lines == [b"Host: " + stage.upstream.host, *lines]


@given(status=st.integers(200, 599), lines=_lines, cuts=_cuts, body=_body)
def test_any_answer(stage: Stage, status: int, lines: list[bytes], cuts: list[int], body: bytes) -> None:
    """Whatever the answer is and however it is split on its way, the caller reads the provider's bytes."""
    if status in (204, 304):
        status = 200
    reply = answer(*lines, status=b"%d Any Reason" % status, body=body)
    returned = stage.returns(*pieces(reply, cuts))
    assert returned.start == b"HTTP/1.1 %d Any Reason" % status
    assert without_added(returned) == [*lines, b"Content-Length: %d" % len(body)]
    assert returned.body == body


@given(body=_body, cuts=_cuts, borders=_cuts, in_chunks=st.booleans())
def test_any_bodies(stage: Stage, body: bytes, cuts: list[int], borders: list[int], in_chunks: bool) -> None:
    """Whatever the bodies are, both ways, in chunks or not, and however they are split, they arrive."""
    if in_chunks:
        framed = b"".join(chunk(piece) for piece in pieces(body, borders)) + END
        ask = request(b"POST", b"/openai/v1/x", b"Transfer-Encoding: chunked") + framed
        reply = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + framed
    else:
        ask, reply = post(body), answer(body=body)
    arrived, returned = stage.exchange(pieces(ask, cuts), pieces(reply, cuts))
    assert (arrived.body, returned.body) == (body, body)


@given(asks=st.lists(st.tuples(_target, _body), min_size=2, max_size=5), cuts=_cuts)
def test_any_pipeline(stage: Stage, asks: list[tuple[bytes, bytes]], cuts: list[int]) -> None:
    """Requests that are sent without waiting are answered in order, each with its own answer."""
    caller = stage.caller()
    caller.send(*pieces(b"".join(post(body, b"/openai/" + target) for target, body in asks), cuts))
    for target, body in asks:
        upstream = stage.upstream.receive()
        arrived = upstream.read_message()
        assert (arrived.start, arrived.body) == (b"POST /%b HTTP/1.1" % target, body)
        upstream.send(answer(body=body + target))
        assert caller.read_message().body == body + target


def test_large_bodies_split_at_random(stage: Stage) -> None:
    """300 KiB each way, in random pieces, with a length and in chunks: the same bytes arrive."""
    chance = random.Random(3)
    body = chance.randbytes(300_000)
    cuts = [chance.randrange(len(body)) for _ in range(40)]
    in_chunks = b"".join(chunk(piece) for piece in pieces(body, cuts)) + END
    for way in ("length", "chunks"):
        if way == "length":
            ask, reply = post(body), answer(body=body)
        else:
            ask = request(b"POST", b"/openai/v1/x", b"Transfer-Encoding: chunked") + in_chunks
            reply = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + in_chunks
        arrived, returned = stage.exchange(pieces(ask, cuts), pieces(reply, cuts))
        assert arrived.body == body
        assert returned.body == body
