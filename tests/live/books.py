"""Requests of every kind to keep books of, and the comparison of the books with what the simulator served.

`calls(seed, count)` gives requests as plain data: every dialect and shape, streamed or not, coded, cut, reset, failing,
left by their callers, large and small. The same seed gives the same requests. `compare(rows, served)` holds the rows of
a ledger against the simulator's record, which knows no proxy. The rule: the two share nothing but the field
`X-Books-Id`, which is sent as the user too.

What is not exact is compared within a tolerance. A proxy learns how many tokens a text of a model has, so the models
whose answers are broken speak in words of one token alone (`_STEADY`), and the first WARM_UP requests break nothing:
send them first, and wait for them.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

WARM_UP: Final = 200
TOLERANCE: Final = 0.15
TOLERANCE_TOKENS: Final = 3

_WORDS: Final = "river stone lamp green count paper window seven honest quiet under morning table".split()
_TOOL: Final = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}
_OPENAI: Final = {"Authorization": "Bearer sk-books"}
_ANTHROPIC: Final = {"x-api-key": "sk-ant-books", "anthropic-version": "2023-06-01"}
_GEMINI: Final = {"x-goog-api-key": "AIza-books"}
_JSON: Final = {"Content-Type": "application/json"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request, and what is to be done with it.

    books_id: in `X-Books-Id` and `X-User-ID`. path: behind the proxy's address, the provider's name first.
    leave_after_bytes: of the answer's body the caller reads so many, and closes the connection; None: it reads all.
    breaks: the answer is broken, by the provider or by the caller, or tells no usage.
    """

    books_id: str
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    leave_after_bytes: int | None = None
    breaks: bool = False


@dataclass(slots=True, kw_only=True)
class _Asked:
    """A request before its wishes. `stream`: whether it is answered event by event."""

    path: str
    headers: Mapping[str, str]
    body: dict[str, Any] | bytes | None
    stream: bool = False
    wishes: tuple[str, ...] = ()


_Kind = Callable[[random.Random], _Asked]


def calls(seed: int, count: int) -> Iterator[Call]:
    """So many requests. Each depends on the seed and its place alone."""
    for number in range(count):
        yield _call(random.Random(f"{seed}:{number}"), f"books-{seed}-{number}", may_break=number >= WARM_UP)


def _call(rng: random.Random, books_id: str, *, may_break: bool) -> Call:
    steady = rng.random() < 0.6
    asked = rng.choice(_STEADY if steady else _OTHERS)(rng)
    wishes = ["delay=0", *asked.wishes, *_shape_wishes(rng, asked.stream)]
    interval, leave_after_bytes, breaks = "0", None, steady and may_break and rng.random() < 0.5
    if steady and not breaks:
        wishes.append(f"events={rng.randint(1, 200)}")
    if breaks and asked.stream and rng.random() < 0.3:
        leave_after_bytes, interval = rng.randint(1, 4000), "0.02"
        # Events at a pace, not writes: what is on its way when the caller leaves is little then.
        wishes = [wish for wish in wishes if not wish.startswith("chunk=")] + ["events=300"]
    elif breaks:
        fault = _fault(rng, asked.stream)
        wishes += [f"events={rng.randint(1, 120)}", fault]
        if fault.startswith("reset="):
            interval = "0.005"  # a reset throws away what its receiver has not read yet
    field = ",".join([*wishes, f"interval={interval}"])
    headers = {"X-Books-Id": books_id, "X-User-ID": books_id, "X-Simulate": field, **asked.headers}
    if isinstance(asked.body, dict):
        headers |= _JSON
    return Call(
        books_id=books_id,
        method="GET" if asked.body is None else "POST",
        path=asked.path,
        headers=headers,
        body=json.dumps(asked.body).encode() if isinstance(asked.body, dict) else asked.body or b"",
        leave_after_bytes=leave_after_bytes,
        breaks=breaks,
    )


def _shape_wishes(rng: random.Random, stream: bool) -> Iterator[str]:
    """How the answer goes over the wire; nothing of it changes what it costs."""
    if rng.random() < 0.3:
        yield "encoding=" + rng.choice(("gzip", "deflate", "br", "zstd"))
    if rng.random() < 0.15:
        yield f"chunk={rng.choice((7, 64, 500, 1460, 16_384))}"
    if stream and rng.random() < 0.15:
        yield "crlf=1"
    if rng.random() < 0.05:
        yield "close=1"


def _fault(rng: random.Random, stream: bool) -> str:
    place = rng.randint(0, 9000 if stream else 1500)
    faults = [f"cut={place}", f"cut={place}", f"reset={place}", "usage=none", "reset=head", "status=429", "status=500"]
    return rng.choice([*faults, *([f"error_event={rng.randint(0, 40)}"] * 2 if stream else [])])


# -- what is asked


def _text(rng: random.Random) -> str:
    """Most are short; some are long enough for a cache of prompts (1,024 tokens)."""
    return " ".join(rng.choice(_WORDS) for _ in range(rng.choice((1, 5, 20, 20, 100, 1500))))


def _size(rng: random.Random) -> tuple[str, ...]:
    """An answer by its bytes, up to a megabyte; sometimes all of it in one event."""
    size = int(10 ** rng.uniform(0, 6))
    return (f"bytes={size}", "events=1") if rng.random() < 0.2 else (f"bytes={size}",)


def _chat(rng: random.Random, path: str, model: str, headers: Mapping[str, str], *wishes: str, **more: Any) -> _Asked:
    """Chat completions, whole or streamed; half of the streams ask for the usage themselves."""
    body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": _text(rng)}], **more}
    stream = rng.random() < 0.7
    if stream:
        body["stream"] = True
        if rng.random() < 0.5:
            body["stream_options"] = {"include_usage": True}
    return _Asked(path=path, headers=headers, body=body, stream=stream, wishes=wishes)


def _function() -> dict[str, Any]:
    return {
        "tools": [{"type": "function", "function": {"name": "get_weather", "parameters": _TOOL}}],
        "tool_choice": "required",
    }


def _completions(rng: random.Random) -> _Asked:
    stream = rng.random() < 0.5
    body = {"model": "gpt-3.5-turbo-instruct", "prompt": _text(rng), "stream": stream}
    return _Asked(path="/openai/v1/completions", headers=_OPENAI, body=body, stream=stream)


def _responses(rng: random.Random, model: str, *wishes: str, **more: Any) -> _Asked:
    stream = rng.random() < 0.7
    body = {"model": model, "input": _text(rng), "stream": stream, **more}
    return _Asked(path="/openai/v1/responses", headers=_OPENAI, body=body, stream=stream, wishes=wishes)


def _message(rng: random.Random, model: str, *wishes: str, **more: Any) -> _Asked:
    stream = rng.random() < 0.7
    body = {
        "model": model,
        "max_tokens": 4096,
        "messages": [{"role": "user", "content": _text(rng)}],
        "stream": stream,
        **more,
    }
    return _Asked(path="/anthropic/v1/messages", headers=_ANTHROPIC, body=body, stream=stream, wishes=wishes)


def _cached_message(rng: random.Random) -> _Asked:
    """What is written to a cache for an hour comes before what is written for five minutes."""

    def block(ttl: str) -> dict[str, Any]:
        return {"type": "text", "text": _text(rng), "cache_control": {"type": "ephemeral", "ttl": ttl}}

    turn = {"role": "user", "content": [block("5m"), {"type": "text", "text": _text(rng)}]}
    system = {"system": [block("1h")]} if rng.random() < 0.6 else {}
    return _message(rng, "claude-sonnet-4-5-20250929", f"cached={rng.choice((0, 1, 30))}", messages=[turn], **system)


def _generate(rng: random.Random, model: str, *wishes: str) -> _Asked:
    verb = rng.choice(("generateContent", "streamGenerateContent", "streamGenerateContent?alt=sse"))
    body = {"contents": [{"role": "user", "parts": [{"text": _text(rng)}]}]}
    path = f"/gemini/v1beta/models/{model}:{verb}"
    return _Asked(path=path, headers=_GEMINI, body=body, stream=verb != "generateContent", wishes=wishes)


def _interaction(rng: random.Random, model: str, *wishes: str) -> _Asked:
    stream = rng.random() < 0.7
    body = {"model": model, "input": _text(rng), "stream": stream}
    return _Asked(path="/gemini/v1beta/interactions", headers=_GEMINI, body=body, stream=stream, wishes=wishes)


def _embeddings(rng: random.Random) -> _Asked:
    body = {"model": "text-embedding-3-small", "input": [_text(rng) for _ in range(rng.randint(1, 4))]}
    return _Asked(path="/openai/v1/embeddings", headers=_OPENAI, body=body)


def _image(rng: random.Random) -> _Asked:
    stream = rng.random() < 0.5
    body = {"model": "gpt-image-1", "prompt": _text(rng), "quality": rng.choice(("low", "high")), "stream": stream}
    wishes = (f"bytes={int(10 ** rng.uniform(2, 6))}",)
    return _Asked(
        path="/openai/v1/images/generations",
        headers=_OPENAI,
        body=body | ({"partial_images": rng.randint(0, 3)} if stream else {}),
        stream=stream,
        wishes=wishes,
    )


def _transcription(rng: random.Random) -> _Asked:
    stream = rng.random() < 0.5
    values = {"model": rng.choice(("gpt-4o-transcribe", "whisper-1")), "stream": "true" if stream else "false"}
    parts = [
        f'--books\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in values.items()
    ]
    head = '--books\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
    body = "".join(parts).encode() + head.encode() + rng.randbytes(rng.randint(1, 100_000)) + b"\r\n--books--\r\n"
    headers = _OPENAI | {"Content-Type": "multipart/form-data; boundary=books"}
    return _Asked(path="/openai/v1/audio/transcriptions", headers=headers, body=body, stream=stream)


def _free(rng: random.Random) -> _Asked:
    """What bills nothing."""
    turn = [{"role": "user", "content": _text(rng)}]
    contents = [{"parts": [{"text": _text(rng)}]}]
    return rng.choice(
        (
            _Asked(path="/openai/v1/models", headers=_OPENAI, body=None),
            _Asked(path="/groq/openai/v1/models", headers=_OPENAI, body=None),
            _Asked(path="/anthropic/v1/models", headers=_ANTHROPIC, body=None),
            _Asked(path="/gemini/v1beta/models", headers=_GEMINI, body=None),
            _Asked(path="/openai/v1/moderations", headers=_OPENAI, body={"input": _text(rng)}),
            _Asked(
                path="/anthropic/v1/messages/count_tokens",
                headers=_ANTHROPIC,
                body={"model": "claude-3-haiku-20240307", "messages": turn},
            ),
            _Asked(
                path="/gemini/v1beta/models/gemini-2.5-flash:countTokens", headers=_GEMINI, body={"contents": contents}
            ),
        )
    )


_OPENAI_CHAT: Final = "/openai/v1/chat/completions"
_GROQ_CHAT: Final = "/groq/openai/v1/chat/completions"

_STEADY: Final[tuple[_Kind, ...]] = (
    lambda rng: _chat(rng, _OPENAI_CHAT, "gpt-4o-mini", _OPENAI),
    lambda rng: _chat(rng, _GROQ_CHAT, "llama-3.1-8b-instant", _OPENAI),
    lambda rng: _chat(rng, "/anthropic/v1/chat/completions", "claude-3-5-sonnet-20241022", _ANTHROPIC),
    lambda rng: _chat(rng, "/gemini/v1beta/openai/chat/completions", "gemini-1.5-pro", _GEMINI),
    _completions,
    lambda rng: _responses(rng, "gpt-4.1"),
    lambda rng: _message(rng, "claude-3-5-haiku-20241022"),
    lambda rng: _message(rng, "claude-3-5-haiku-20241022"),
    lambda rng: _generate(rng, "gemini-1.5-flash"),
    lambda rng: _interaction(rng, "gemini-2.0-flash"),
)
"""Each with a model of its own, whose every event of text is one word and one token."""

_OTHERS: Final[tuple[_Kind, ...]] = (
    lambda rng: _chat(rng, _OPENAI_CHAT, "gpt-4o", _OPENAI, *_size(rng)),
    lambda rng: _chat(rng, _OPENAI_CHAT, "gpt-4o", _OPENAI, n=rng.randint(2, 4)),
    lambda rng: _chat(rng, _OPENAI_CHAT, "gpt-4o", _OPENAI, **_function()),
    lambda rng: _chat(rng, _OPENAI_CHAT, "gpt-4o", _OPENAI, "audio=50", "image=170", "written=40"),
    lambda rng: _chat(rng, _OPENAI_CHAT, "o3", _OPENAI, f"reasoning={rng.randint(0, 900)}"),
    lambda rng: _chat(rng, _GROQ_CHAT, "qwen/qwen3-32b", _OPENAI, f"reasoning={rng.randint(0, 90)}"),
    lambda rng: _chat(rng, _GROQ_CHAT, "groq/compound", _OPENAI),
    lambda rng: _chat(rng, "/gemini/v1beta/openai/chat/completions", "gemini-2.5-flash", _GEMINI, "reasoning=40"),
    lambda rng: _responses(rng, "gpt-5", *_size(rng)),
    lambda rng: _responses(rng, "gpt-5", reasoning={"summary": "auto"}),
    _cached_message,
    lambda rng: _message(rng, "claude-opus-4-1-20250805", *_size(rng)),
    lambda rng: _message(rng, "claude-sonnet-4-20250514", thinking={"type": "enabled", "budget_tokens": 1024}),
    lambda rng: _message(
        rng, "claude-sonnet-4-20250514", tools=[{"type": "web_search_20250305", "name": "web_search"}]
    ),
    lambda rng: _message(rng, "claude-sonnet-5-5", f"iterations={rng.choice(('compaction', 'advisor'))}"),
    lambda rng: _generate(rng, "gemini-2.5-flash", "tool_tokens=70", "audio=30", "cached=9"),
    lambda rng: _generate(rng, "gemini-2.5-pro", *_size(rng)),
    lambda rng: _interaction(rng, "gemini-2.5-pro", "tool_tokens=12", "image=258"),
    _embeddings,
    _image,
    _transcription,
    _free,
)


# -- the books


def read_record(get: Callable[[str], Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Everything that the simulator remembers. get: takes a target of the simulator, returns its JSON."""
    found: list[dict[str, Any]] = []
    while page := get(f"/_simulator/requests?after={found[-1]['number'] if found else 0}")["requests"]:
        found += page
    return found


def compare(rows: Iterable[Mapping[str, Any]], served: Iterable[Mapping[str, Any]]) -> list[str]:
    """What is different between a ledger and what the simulator served; one sentence each, none if all is well.

    rows: of the ledger, as mappings with the names of its columns; what is missing is nothing. `user` matches a row to
    the field `X-Books-Id` of a request. served: entries of `/_simulator/requests`; those without the field are passed
    over. A request that was sent to the provider twice counts as its last try, unless an earlier one served something.
    """
    rows_of: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        if row.get("user"):
            rows_of[str(row["user"])].append(row)
    tries: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for entry in served:
        books_id = next((value for name, value in entry["fields"] if name.lower() == "x-books-id"), None)
        if books_id is not None:
            tries[books_id].append(entry)
    differences: list[str] = []
    for books_id, entries in tries.items():
        found = rows_of.pop(books_id, [])
        billed = [entry for entry in entries[:-1] if (entry["usage"] or {}).get("sent_output_tokens")]
        if billed:
            differences.append(f"{books_id}: served {len(billed) + 1} times")
        if len(found) != 1:
            differences.append(f"{books_id}: {len(found)} rows")
        else:
            differences += (f"{books_id}: {said}" for said in _differences(found[0], entries[-1]))
    for books_id, unknown in rows_of.items():
        if any(_number(row, "total_input") or _number(row, "total_output") for row in unknown):
            differences.append(f"{books_id}: billed, but no provider saw it")
    return differences


def _differences(row: Mapping[str, Any], entry: Mapping[str, Any]) -> Sequence[str]:
    """Between one row and one request."""
    usage: Mapping[str, Any] | None = entry["usage"]
    source = str(row.get("source", "none"))
    if usage is None:
        free = source == "none" and not _number(row, "total_input") and not _number(row, "total_output")
        what = f"{entry['method']} {entry['target']}, status {entry['status']}"
        return () if free else (f"{source}, though it costs nothing: {what}",)
    if source == "exact":
        if usage["complete"] and not usage["counted"]:
            return ("exact, but the answer had no counters",)
        # Of an answer that was cut the counters may have come before the cut.
        return [f"{name} is {have!r}, served was {want!r}" for name, have, want in _pairs(row, usage) if have != want]
    if usage["complete"] and usage["counted"] and row.get("end_reason", "ok") == "ok":
        return (f"{source} ({row.get('reason')}), though the answer was whole and told its usage",)
    if not usage["stream"]:
        return _rough(row, usage)
    return _rough(row, usage) or _near(row, usage)


def _pairs(row: Mapping[str, Any], usage: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """What an exact row must have: the name, what it has, what was served."""
    yield "total_input", _number(row, "total_input"), usage["input_tokens"]
    yield "total_output", _number(row, "total_output"), usage["output_tokens"]
    yield "model", row.get("model") or row.get("model_asked"), usage["model"]
    if "other_models" in usage:
        return  # the classes of a row are those of the model that answers alone
    written = "cache_write_5m_tokens", "cache_write_1h_tokens"
    for name in ("cache_read_tokens", *written, "reasoning_tokens"):
        yield name, _number(row, name), usage[name]
    if "audio_s" in usage:
        yield "audio_ms", _number(row, "audio_ms"), round(usage["audio_s"] * 1000)


def _rough(row: Mapping[str, Any], usage: Mapping[str, Any]) -> Sequence[str]:
    """What holds of any row that is not exact: what was served is not free, and not far more than there was."""
    if not usage["sent_output_tokens"]:
        return ()
    if row.get("source", "none") == "none":
        return (f"free ({row.get('reason')}), though {usage['sent_output_tokens']} tokens were sent",)
    return () if _number(row, "total_input") else ("the input is free",)


def _near(row: Mapping[str, Any], usage: Mapping[str, Any]) -> Sequence[str]:
    """A stream that was broken: its output is near what was sent of it."""
    have, sent = _number(row, "total_output"), int(usage["sent_output_tokens"])
    if abs(have - sent) <= max(TOLERANCE_TOKENS, TOLERANCE * sent):
        return ()
    return (f"{row.get('source')}: total_output is {have}, sent was {sent}",)


def _number(row: Mapping[str, Any], name: str) -> int:
    return int(row.get(name) or 0)
