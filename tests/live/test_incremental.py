"""Both directions, as bytes arrive: proven in lock-step.

The upstream sends an event only after the caller has the one before it in its hands, and the caller sends a piece of
an upload only after the upstream has confirmed the one before. A proxy that holds anything back stands still here.
"""

from __future__ import annotations

import threading
import zlib

import pytest

from tests.live.conversation import END, OK, STREAM_HEAD, Stage, answer, get, post, request
from tests.live.proxy import all_providers, running_proxy
from tests.live.upstream import Upstream
from tests.live.wire import LIMIT_S, Wire, chunk

MIB = 1 << 20

ROUTES = {
    "openai": b"/openai/v1/chat/completions",
    "anthropic": b"/anthropic/v1/messages",
    "gemini": b"/gemini/v1beta/models/gemini-pro:streamGenerateContent?alt=sse",
    "groq": b"/groq/v1/chat/completions",
    "meta": b"/meta/bob/openai/v1/responses",
}

EVENTS = [
    b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n',
    b"event: ping\ndata: {}\n\n",
    b": a comment\n\n",
    b"d",  # an event that is not yet whole: it is not the proxy's to gather
    b"ata: rest\n\n",
    b"data: " + b"x" * 20_000 + b"\n\n",
    b"data: [DONE]\n\n",
]


# -- answers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", ROUTES.values(), ids=ROUTES)
def test_events(either_stage: Stage, route: bytes) -> None:
    """An event is on the caller's socket before the provider writes the next one."""
    body = b'{"model":"m","stream":true,"stream_options":{"include_usage":true}}'
    caller, upstream = either_stage.sends(post(body, route))
    upstream.read_message()
    upstream.send(STREAM_HEAD)
    assert caller.read_head().status == 200
    for event in EVENTS:
        upstream.send_chunk(event)
        read = b""
        while len(read) < len(event):
            read += caller.read_chunk()
        assert read == event
    upstream.send(END)
    assert (caller.read_chunk(), caller.read_trailers()) == (b"", [])


def test_events_of_a_stream_that_was_asked_for_its_usage(either_stage: Stage) -> None:
    """The same for a stream from which something may have to be taken out: each event as soon as it is whole, and what
    cannot be a chunk with usage before."""
    caller, upstream = either_stage.sends(post(b'{"model":"m","stream":true}'))
    upstream.read_message()
    upstream.send(STREAM_HEAD)
    assert caller.read_head().status == 200
    chunk_with_null = b'data: {"choices":[{"delta":{"content":"a"}}],"usage":null}\n\n'
    for event, given in (
        (b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n', None),
        (chunk_with_null, chunk_with_null.replace(b',"usage":null', b"")),
        (b"event: ping\ndata: {}\n\n", None),
        (b": a comment\n\n", None),
        (b"data: no object, and not yet whole", None),
        (b", but now\n\n", None),
        (b"other", None),
        (b"\n\n", None),
        (b"data: " + b"x" * 20_000 + b"\n\n", None),
        (b"data: [DONE]\n\n", None),
    ):
        upstream.send_chunk(event)
        read = b""
        while len(read) < len(given or event):
            read += caller.read_chunk()
        assert read == (given or event)
    upstream.send(END)
    assert (caller.read_chunk(), caller.read_trailers()) == (b"", [])


@pytest.mark.parametrize("route", ROUTES.values(), ids=ROUTES)
def test_events_in_gzip(either_stage: Stage, route: bytes) -> None:
    """The same for a stream that the provider compresses and flushes event by event."""
    caller, upstream = either_stage.sends(post(b'{"model":"m","stream":true}', route, b"Accept-Encoding: gzip"))
    upstream.read_message()
    upstream.send(STREAM_HEAD.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n"))
    assert caller.read_head().value("content-encoding") == b"gzip"
    coder, decoder = zlib.compressobj(wbits=31), zlib.decompressobj(wbits=31)
    for event in EVENTS:
        upstream.send_chunk(coder.compress(event) + coder.flush(zlib.Z_SYNC_FLUSH))
        read = b""
        while len(read) < len(event):
            read += decoder.decompress(caller.read_chunk())
        assert read == event
    upstream.send_chunk(coder.flush())
    upstream.send(END)
    caller.read_chunk()
    assert caller.read_chunk() == b""


def test_events_with_a_length(either_stage: Stage) -> None:
    """A body of known length is no file either: it comes as it is sent."""
    caller, upstream = either_stage.sends(get())
    upstream.read_message()
    upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % sum(map(len, EVENTS)))
    caller.read_head()
    for event in EVENTS:
        upstream.send(event)
        assert caller.read(len(event)) == event


def test_events_until_close(either_stage: Stage) -> None:
    """Nor is one that ends with its connection; over TLS the end is the closing alert."""
    caller, upstream = either_stage.sends(get())
    upstream.read_message()
    upstream.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
    caller.read_head()
    for event in (b"data: 1\n\n", b"data: 2\n\n"):
        upstream.send(event)
        assert caller.read_chunk() == event
    either_stage.upstream.connections.remove(upstream)
    upstream.end()
    assert caller.read_chunk() == b""


def test_head_before_body(either_stage: Stage) -> None:
    """The head of an answer does not wait for its first byte of body."""
    caller, upstream = either_stage.sends(get())
    upstream.read_message()
    upstream.send(STREAM_HEAD)
    assert caller.read_head().status == 200
    assert caller.is_quiet(0.02)


def test_a_burst_is_one_piece(stage: Stage) -> None:
    """Events that the provider writes at once reach the caller at once: nothing is spread out either."""
    caller, upstream = stage.sends(get())
    upstream.read_message()
    upstream.send(STREAM_HEAD + b"".join(chunk(b"data: %d\n\n" % number) for number in range(50)) + END)
    assert caller.read_message().body == b"".join(b"data: %d\n\n" % number for number in range(50))


# -- uploads -----------------------------------------------------------------------------------------------------------

PIECES = [b"first", b"\x00" * 10_000, b"third", b"x", b"last"]


def test_upload_with_a_length(either_stage: Stage) -> None:
    """Each piece of an upload is with the provider before the caller sends the next."""
    total = sum(map(len, PIECES))
    caller = either_stage.caller()
    caller.send(request(b"POST", b"/gemini/upload/v1/files", b"Content-Length: %d" % total), PIECES[0])
    upstream = either_stage.upstream.receive()
    assert upstream.read_head().value("content-length") == b"%d" % total
    assert upstream.read(len(PIECES[0])) == PIECES[0]
    for piece in PIECES[1:]:
        caller.send(piece)
        assert upstream.read(len(piece)) == piece
    upstream.send(OK)
    assert caller.read_message().status == 200


def test_upload_in_chunks(either_stage: Stage) -> None:
    """The same for a chunked upload, up to its end."""
    caller = either_stage.caller()
    lines = (b"Content-Type: audio/wav", b"Transfer-Encoding: chunked")
    caller.send(request(b"POST", b"/openai/v1/audio/transcriptions", *lines), chunk(PIECES[0]))
    upstream = either_stage.upstream.receive()
    assert upstream.read_head().value("transfer-encoding") == b"chunked"
    assert upstream.read_chunk() == PIECES[0]
    for piece in PIECES[1:]:
        caller.send_chunk(piece)
        assert upstream.read_chunk() == piece
    caller.send(END)
    assert (upstream.read_chunk(), upstream.read_trailers()) == (b"", [])
    upstream.send(OK)
    assert caller.read_message().status == 200


def test_large_json(either_stage: Stage) -> None:
    """JSON is held back while the model is not known, at most 1 MiB; from there on it goes as it comes."""
    start = b'{"messages":[{"role":"user","content":"' + b"a" * MIB
    pieces = [b"b" * 1000, b"c" * 1000, b'"}],"model":"late"}']
    length = len(start) + sum(map(len, pieces))
    caller = either_stage.caller()
    caller.send(request(b"POST", b"/openai/v1/chat/completions", b"Content-Length: %d" % length), start)
    upstream = either_stage.upstream.receive()
    upstream.read_head()
    assert upstream.read(len(start)) == start
    for piece in pieces:
        caller.send(piece)
        assert upstream.read(len(piece)) == piece
    upstream.send(answer(b"X-Of: large JSON"))
    request_id = caller.read_message().value("x-llm-proxy-request-id") or b""
    assert either_stage.proxy.access_event(request_id=request_id.decode())["model"] == "unknown"


def test_small_json_is_held_until_it_is_known(stage: Stage) -> None:
    """Below that bound, a JSON body of which the end is missing waits in the proxy: its model may still come."""
    caller = stage.caller()
    body = b'{"messages":[{"role":"user","content":"hi"}],"model":"m"}'
    caller.send(request(b"POST", b"/openai/v1/chat/completions", b"Content-Length: %d" % len(body)), body[:20])
    assert stage.upstream.is_untouched(0.05)
    caller.send(body[20:])
    assert stage.upstream.receive().read_message().body == body


def test_both_ways_at_once(stage: Stage) -> None:
    """An answer that begins while the upload goes on is relayed at once, and the upload goes on beside it."""
    caller, upstream = stage.sends(request(b"POST", b"/openai/v1/x", b"Transfer-Encoding: chunked"), chunk(b"up 1"))
    upstream.read_head()
    assert upstream.read_chunk() == b"up 1"
    upstream.send(STREAM_HEAD)
    assert caller.read_head().status == 200
    for number in range(5):
        upstream.send_chunk(b"down %d" % number)
        assert caller.read_chunk() == b"down %d" % number
        caller.send_chunk(b"up %d" % number)
        assert upstream.read_chunk() == b"up %d" % number
    caller.send(END)
    assert upstream.read_chunk() == b""
    upstream.send(END)
    assert caller.read_chunk() == b""
    assert stage.is_served()


@pytest.mark.slow
@pytest.mark.parametrize(("size_mib", "in_chunks"), [(1024, False), (256, True)], ids=["length", "chunks"])
def test_large_upload_costs_no_memory_and_no_disk(size_mib: int, in_chunks: bool) -> None:
    """A gibibyte passes through: the proxy grows by less than 16 MiB and writes no file."""
    upstream = Upstream()
    with running_proxy({"providers": all_providers(upstream.url)}) as proxy:
        stage = Stage(proxy, upstream)
        assert stage.is_served()
        piece = bytes(range(256)) * (MIB // 256)
        framing = b"Transfer-Encoding: chunked" if in_chunks else b"Content-Length: %d" % (size_mib * MIB)
        caller = stage.caller()
        upload = threading.Thread(target=_send_many, args=(caller, chunk(piece) if in_chunks else piece, size_mib))
        with proxy.memory_bounded(16 * MIB):
            caller.send(request(b"PUT", b"/openai/v1/files/f", framing))
            upload.start()
            arriving = upstream.receive()
            arriving.read_head()
            content = _Content(arriving, in_chunks)
            for number in range(size_mib):
                assert content.read(MIB) == piece
                if number == size_mib // 2:
                    assert proxy.files_on_disk() == []
            upload.join(LIMIT_S)
            if in_chunks:
                caller.send(END)
                assert arriving.read_chunk() == b""
            arriving.send(OK)
            assert caller.read_message().body == b"ok"
        stage.clear()
    upstream.close()


def _send_many(caller: Wire, data: bytes, count: int) -> None:
    for _ in range(count):
        caller.send(data)


class _Content:
    """The content of a body; chunks end where they like."""

    def __init__(self, wire: Wire, in_chunks: bool) -> None:
        self._wire = wire
        self._in_chunks = in_chunks
        self._rest = b""

    def read(self, count: int) -> bytes:
        if not self._in_chunks:
            return self._wire.read(count)
        parts = [self._rest]
        have = len(self._rest)
        while have < count:
            parts.append(self._wire.read_chunk())
            have += len(parts[-1])
        content = b"".join(parts)
        self._rest = content[count:]
        return content[:count]
