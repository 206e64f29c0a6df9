"""A log event as one line: JSON for machines, text for people.

The rule: one event is one line, whatever is in it, and a line holds no control character but its end. Nothing
here has an effect; `log` writes what is made here.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from twisted.logger import LogEvent, formatEvent
from twisted.python.failure import Failure

from llmproxy.observe.access import AccessRecord, as_mapping
from llmproxy.observe.redact import may_hold_key, without_keys

_TRACEBACK_CHARACTERS_MAX: Final = 16384
_MESSAGE_CHARACTERS_MAX: Final = 8192

_SEEN_MAX: Final = 64

_encode = msgspec.json.Encoder(enc_hook=str).encode

# Controls, line ends that are not LF, what turns the direction of writing, halves of surrogate pairs.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def rfc3339(seconds: float) -> str:
    """A POSIX time as `2026-11-23T12:01:02.345Z` (RFC 3339, UTC, milliseconds)."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def json_line(record: Mapping[str, object]) -> bytes:
    """A flat record as a line of JSON, keys masked. Values that JSON does not know are written as text."""
    return without_keys(_json(record)) + b"\n"


def access_json(record: AccessRecord, seen: set[object]) -> bytes:
    """An access record as a line of JSON. Only the fields that callers and providers fill can hold a key.

    :param seen: what such a caller was seen to fill the fields with before, and holds no key. Added to.
    """
    free = (record.user, record.model, record.path, record.method, record.sdk)
    upstream_id = record.upstream_request_id
    clean = free in seen
    if not clean and not may_hold_key(" ".join(map(str, free))):
        if len(seen) >= _SEEN_MAX:
            seen.clear()
        seen.add(free)
        clean = True
    if clean and upstream_id is not None:
        clean = not may_hold_key(upstream_id)
    if clean and record.error_detail is not None:
        clean = not may_hold_key(record.error_detail)
    try:
        line = _encode(record)
        if not line.isascii():
            line = _escaped(line)
    except (UnicodeEncodeError, TypeError):
        return json_line(as_mapping(record))
    return (line if clean else without_keys(line)) + b"\n"


def _json(record: Mapping[str, object]) -> bytes:
    try:
        line = _encode(record)
    except (UnicodeEncodeError, TypeError):
        # Half a surrogate pair, or a key that is no text: written all the same, as well as it can be.
        line = _encode({_safe(str(name)): _tame(value) for name, value in record.items()})
    return line if line.isascii() else _escaped(line)


def _escaped(line: bytes) -> bytes:
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", line.decode()).encode()


def event_record(event: LogEvent, seconds: float) -> dict[str, object]:
    """An ordinary event of twisted.logger: time, level, source, message, and the failure if there is one."""
    level = event.get("log_level")
    record: dict[str, object] = {
        "time": rfc3339(seconds),
        "event": "log",
        "level": level.name if level is not None else "error" if event.get("isError") else "info",
        "logger": event.get("log_namespace") or event.get("system") or "-",
        "message": _message(event)[:_MESSAGE_CHARACTERS_MAX],
    }
    failure = event.get("log_failure") or event.get("failure")
    if isinstance(failure, Failure):
        kind = failure.type
        record["error"] = kind.__qualname__ if isinstance(kind, type) else str(kind)
        record["error_message"] = failure.getErrorMessage()[:_MESSAGE_CHARACTERS_MAX]
        record["traceback"] = failure.getTraceback()[-_TRACEBACK_CHARACTERS_MAX:]
    return record


def event_text(record: Mapping[str, object], seconds: float) -> bytes:
    """What `event_record` made, as a line for people."""
    line = f"{_clock(seconds)} {record['level']} [{record['logger']}] {record['message']}"
    if "error" in record:
        line += f" | {record['error']}: {record['error_message']} | {record['traceback']}"
    return _text_line(line)


def access_text(record: Mapping[str, Any], seconds: float) -> bytes:
    """An access record as a line for people: `12:01:02 200 POST openai gpt-4o 1.20s ...`."""
    words = [
        _clock(seconds),
        _word(record.get("status")),
        _word(record.get("method")),
        _word(record.get("provider")),
        _word(record.get("model")),
        _seconds(record.get("duration_ms")),
    ]
    if (ttfb_ms := record.get("ttfb_ms")) is not None:
        words.append(f"first={_seconds(ttfb_ms)}")
    words.append(f"in={_size(record.get('request_bytes'))} out={_size(record.get('response_bytes'))}")
    if record.get("streamed"):
        words.append(f"chunks={_word(record.get('chunks'))}")
    if (end_reason := record.get("end_reason")) not in (None, "ok"):
        words.append(f"end={end_reason}")
    for name in ("error_class", "retries", "user", "sdk"):
        if value := record.get(name):
            words.append(f"{name}={value}")
    if detail := record.get("error_detail"):
        words.append(f'error_detail="{detail}"')
    words.append(_word(record.get("path")))
    if request_id := record.get("request_id"):
        words.append(f"id={request_id}")
    return _text_line(" ".join(words))


def _message(event: LogEvent) -> str:
    if event.get("isError"):
        # twisted.python.log.err: its text repeats the traceback, which is written by itself.
        return str(event.get("why") or "unhandled error")
    if event.get("log_format") is None and "message" in event:
        return " ".join(map(str, event["message"]))
    return formatEvent(event)


def _text_line(line: str) -> bytes:
    return without_keys(_safe(line).encode()) + b"\n"


def _safe(text: str) -> str:
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def _tame(value: object) -> object:
    return value if value is None or isinstance(value, int | float) else _safe(str(value))


def _clock(seconds: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(seconds))


def _word(value: object) -> str:
    return "-" if value is None or value == "" else str(value)


def _seconds(milliseconds: float | None) -> str:
    return "-" if milliseconds is None else f"{milliseconds / 1000:.2f}s"


def _size(size_bytes: int | None) -> str:
    if size_bytes is None:
        return "-"
    if size_bytes < 1000:
        return f"{size_bytes}B"
    return f"{size_bytes / 1000:.1f}kB" if size_bytes < 1_000_000 else f"{size_bytes / 1_000_000:.1f}MB"
