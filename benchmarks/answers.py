"""Answers for `accounting.py`, byte by byte as the providers' documentation shows them, and in which reads they come.

Sources: https://platform.openai.com/docs/api-reference/chat/streaming and /responses-streaming;
https://docs.anthropic.com/en/docs/build-with-claude/streaming; https://ai.google.dev/api/generate-content.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, cycle, islice, repeat
from typing import NamedTuple

#: A stream has so many pieces of text, as an answer of a paragraph or two has.
PIECES = 200
#: And as many has a long one, from which it is seen what each further event costs.
MANY_PIECES = 2000
#: One read of the provider's connection, where many events have come together.
TOGETHER = 20
READ_BYTES = 32 * 1024

IN, OUT = 19, 200
_WORDS = (" The", " answer", " is", " forty", "-two", ",", " as", " was", " found", " after", " a", " while", ".\n")


class Case(NamedTuple):
    """A request and its answer.

    off, on: the answer as the provider's connection gives it, read by read; "on" if the proxy asked for its usage.
    events: how many there are in it; 0 where the answer is one JSON object. tokens: what it says it used: in, out.
    """

    name: str
    provider: str
    request: bytes
    off: tuple[bytes, ...]
    on: tuple[bytes, ...]
    events: int
    tokens: tuple[int, int] = (IN, OUT)


def cases(pieces: int = PIECES) -> Iterator[Case]:
    """All that is timed; with so many pieces of text in a stream."""
    openai, anthropic, gemini = "/openai/v1/chat/completions", "/anthropic/v1/messages", "/gemini/v1beta/models/"
    stream: tuple[tuple[str, bytes, list[bytes], list[bytes]], ...] = (
        ("chat, the caller asks for usage", _post(openai, CHAT_ASKING), chat(True, pieces), chat(True, pieces)),
        ("chat, the proxy asks for usage", _post(openai, CHAT), chat(False, pieces), chat(True, pieces)),
        ("responses", _post("/openai/v1/responses", RESPONSES), responses(pieces), responses(pieces)),
        ("messages", _post(anthropic, MESSAGES), messages(pieces), messages(pieces)),
        (
            "gemini",
            _post(gemini + "gemini-2.5-flash:streamGenerateContent?alt=sse", GEMINI),
            generate_content(pieces),
            generate_content(pieces),
        ),
    )
    for name, request, off, on in stream:
        provider = request[6:].partition(b"/")[0].decode()
        for together, words in ((1, "one event a read"), (TOGETHER, f"{TOGETHER} events a read")):
            reads = _reads(off, together), _reads(on, together)
            yield Case(f"SSE {name}, {words}", provider, request, *reads, len(on))
    body = completion(b"The answer is forty-two.")
    whole = _json_head(len(body)) + body
    request = _post(openai, CHAT.replace(b',"stream":true', b""))
    for name, reads_of_it in (("one read", (whole,)), ("head and body", (_json_head(len(body)), body))):
        yield Case(f"JSON chat, {name}", "openai", request, reads_of_it, reads_of_it, 0)


def large_stream(size_bytes: int) -> tuple[Case, Iterator[bytes]]:
    """A chat stream of this size at least."""
    events = chat(True)
    plain = [_chunk(event) for event in events[1:101]]
    one = b"".join(plain)
    times = max(1, size_bytes // len(one))
    reads = chain((_SSE_HEAD, _chunk(events[0])), repeat(one, times), (*map(_chunk, events[-3:]), _END))
    return Case("large stream", "openai", _post("/openai/v1/chat/completions", CHAT_ASKING), (), (), 1), reads


def large_line(size_bytes: int) -> tuple[Case, Iterator[bytes]]:
    """A chat stream with one event of this size."""
    events = chat(True)
    before, after = events[1].split(_WORDS[0].encode())
    inner = chain((before,), _text(size_bytes), (after,))
    chunks = map(_chunk, chain((events[0],), inner, events[-3:]))
    reads = chain((_SSE_HEAD,), chunks, (_END,))
    return Case("large line", "openai", _post("/openai/v1/chat/completions", CHAT_ASKING), (), (), 1), reads


def large_json(size_bytes: int) -> tuple[Case, Iterator[bytes]]:
    """A chat completion with a text of this size."""
    before, after = completion(b"@").split(b"@")
    length = len(before) + len(after) + sum(map(len, _text(size_bytes)))
    reads = chain((_json_head(length), before), _text(size_bytes), (after,))
    request = _post("/openai/v1/chat/completions", CHAT.replace(b',"stream":true', b""))
    return Case("large JSON", "openai", request, (), (), 0), reads


def _text(size_bytes: int) -> Iterator[bytes]:
    one = (b"It was the best of times, it was the worst of times,\\n" * (READ_BYTES // 54 + 1))[:READ_BYTES]
    one = one.removesuffix(b"\\") + b"." * (READ_BYTES - len(one.removesuffix(b"\\")))
    return repeat(one, max(1, size_bytes // READ_BYTES))


# -- requests

_MESSAGE = b'{"role":"user","content":"What is the answer to the great question of life, the universe and everything?"}'
CHAT = b'{"model":"gpt-4o-mini","messages":[%b],"temperature":0.2,"stream":true}' % _MESSAGE
CHAT_ASKING = CHAT[:-1] + b',"stream_options":{"include_usage":true}}'
RESPONSES = b'{"model":"gpt-4o-mini","input":[%b],"stream":true}' % _MESSAGE
MESSAGES = b'{"model":"claude-sonnet-4-5","max_tokens":1024,"messages":[%b],"stream":true}' % _MESSAGE
GEMINI = b'{"contents":[{"role":"user","parts":[{"text":"What is the answer to the great question of life?"}]}]}'


def _post(target: str, body: bytes) -> bytes:
    fields = (
        f"POST {target} HTTP/1.1",
        "Host: proxy.test",
        "Authorization: Bearer sk-proj-0123456789abcdefghijklmnopqrstuvwxyz",
        "Content-Type: application/json",
        "Accept: application/json",
        "User-Agent: OpenAI/Python 2.8.1",
        f"Content-Length: {len(body)}",
    )
    return "\r\n".join(fields).encode() + b"\r\n\r\n" + body


# -- answers

_COMMON = b"Date: Tue, 24 Nov 2026 12:00:00 GMT\r\nx-request-id: req_0a1b2c3d4e5f60718293a4b5c6d7e8f9\r\n"
_SSE_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n%b\r\n"
    % _COMMON
)
_END = b"0\r\n\r\n"


def _json_head(length: int) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%b\r\n" % (length, _COMMON)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _reads(events: Sequence[bytes], together: int) -> tuple[bytes, ...]:
    """Each event is a chunk of its own, as it was flushed; so many of them are read at once."""
    chunks = [*map(_chunk, events), _END]
    return _SSE_HEAD, *(b"".join(chunks[at : at + together]) for at in range(0, len(chunks), together))


def _words(pieces: int) -> Iterable[str]:
    return islice(cycle(_WORDS), pieces)


def _data(value: object) -> bytes:
    return b"data: %b\n\n" % json.dumps(value, separators=(",", ":")).encode()


def _named(kind: str, **members: object) -> bytes:
    return b"event: %b\n%b" % (kind.encode(), _data({"type": kind, **members}))


def chat(usage: bool, pieces: int = PIECES) -> list[bytes]:
    """A stream of chat completions; `usage`: as it is if the usage is asked for."""

    def event(choices: list[object], counted: object = None) -> bytes:
        said: dict[str, object] = {
            "id": "chatcmpl-B9MBs8CjcvOU2jLn4n570S5qMJKcT",
            "object": "chat.completion.chunk",
            "created": 1741569952,
            "model": "gpt-4o-mini-2024-07-18",
            "service_tier": "default",
            "system_fingerprint": "fp_44709d6fcb",
            "choices": choices,
        }
        return _data(said | {"usage": counted} if usage else said)

    def choice(delta: object, finish: str | None = None) -> list[object]:
        return [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]

    events = [event(choice({"role": "assistant", "content": "", "refusal": None}))]
    events += [event(choice({"content": word})) for word in _words(pieces)]
    events.append(event(choice({}, "stop")))
    if usage:
        events.append(event([], _CHAT_USAGE))
    return [*events, b"data: [DONE]\n\n"]


_CHAT_USAGE = {
    "prompt_tokens": IN,
    "completion_tokens": OUT,
    "total_tokens": IN + OUT,
    "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
    "completion_tokens_details": {
        "reasoning_tokens": 0,
        "audio_tokens": 0,
        "accepted_prediction_tokens": 0,
        "rejected_prediction_tokens": 0,
    },
}


def completion(text: bytes) -> bytes:
    """A chat completion, written as OpenAI writes it."""
    said = {
        "id": "chatcmpl-B9MBs8CjcvOU2jLn4n570S5qMJKcT",
        "object": "chat.completion",
        "created": 1741569952,
        "model": "gpt-4o-mini-2024-07-18",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text.decode(), "refusal": None, "annotations": []},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": _CHAT_USAGE,
        "service_tier": "default",
        "system_fingerprint": "fp_44709d6fcb",
    }
    return json.dumps(said, indent=2).encode() + b"\n"


def responses(pieces: int = PIECES) -> list[bytes]:
    """A stream of Responses, its longest parts left out."""
    response = {
        "id": "resp_67c9fdcecf488190bdd9a0409de3a1ec07b8b0ad4e5eb654",
        "object": "response",
        "created_at": 1741487325,
        "status": "in_progress",
        "model": "gpt-4o-mini-2024-07-18",
        "output": [],
        "service_tier": "default",
        "usage": None,
    }
    usage = {
        "input_tokens": IN,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": OUT,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": IN + OUT,
    }
    place: dict[str, object] = {
        "item_id": "msg_67c9fdcf37fc8190ba82116e33fb28c507b8b0ad4e5eb654",
        "output_index": 0,
        "content_index": 0,
    }
    kind = "response.output_text.delta"
    return [
        _named("response.created", sequence_number=0, response=response),
        _named("response.in_progress", sequence_number=1, response=response),
        *(
            _named(kind, **place, delta=word, logprobs=[], sequence_number=number, obfuscation="lpyhmhGFFqyh")
            for number, word in enumerate(_words(pieces), 2)
        ),
        _named("response.output_text.done", **place, text="".join(_words(pieces)), sequence_number=pieces + 2),
        _named(
            "response.completed",
            sequence_number=pieces + 3,
            response=response | {"status": "completed", "usage": usage},
        ),
    ]


def messages(pieces: int = PIECES) -> list[bytes]:
    """A stream of Anthropic's messages."""
    message: dict[str, object] = {
        "id": "msg_01XFDUDYJgAACzvnptvVoYEL",
        "type": "message",
        "role": "assistant",
        "content": [],
        "model": "claude-sonnet-4-5-20250929",
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": IN, "output_tokens": 1, "cache_read_input_tokens": 0},
    }
    return [
        _named("message_start", message=message),
        _named("content_block_start", index=0, content_block={"type": "text", "text": ""}),
        _named("ping"),
        *(
            _named("content_block_delta", index=0, delta={"type": "text_delta", "text": word})
            for word in _words(pieces)
        ),
        _named("content_block_stop", index=0),
        _named("message_delta", delta={"stop_reason": "end_turn", "stop_sequence": None}, usage={"output_tokens": OUT}),
        _named("message_stop"),
    ]


def generate_content(pieces: int = PIECES) -> list[bytes]:
    """A stream of Gemini's; its lines end in CRLF, and each event has the usage so far."""
    events = []
    for number, word in enumerate(_words(pieces), 1):
        candidate: dict[str, object] = {"content": {"parts": [{"text": word * 4}], "role": "model"}, "index": 0}
        if number == pieces:
            candidate["finishReason"] = "STOP"
        usage = {
            "promptTokenCount": IN,
            "candidatesTokenCount": number * OUT // pieces,
            "totalTokenCount": IN + number * OUT // pieces,
            "promptTokensDetails": [{"modality": "TEXT", "tokenCount": IN}],
        }
        said = {
            "candidates": [candidate],
            "usageMetadata": usage,
            "modelVersion": "gemini-2.5-flash",
            "responseId": "mAitaLmkHPPlz7IPvtfUqQ4",
        }
        events.append(b"data: %b\r\n\r\n" % json.dumps(said).encode())
    return events
