"""What a caller may ask of the simulator: pacing, sizes and faults, in one small grammar.

The grammar is `name=value` pairs. They come in the request field `X-Simulate`, divided by commas
(`X-Simulate: delay=0.2,events=50`), or behind the model's name, divided by plus signs
(`gpt-4o+delay=0.2+events=50`). Where both speak, the field wins. The rule kept here: a wish that is
not understood is a `BadWish` with a sentence, never ignored, because a test that asks for a fault and
gets none would pass for the wrong reason.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

HEAD: Final = -1
"""The place before the response head, where other places are counts of events or of body bytes."""

CODINGS: Final = ("gzip", "deflate", "br", "zstd")
ITERATIONS: Final = ("compaction", "advisor")
LONGEST_S: Final = 86_400.0
LARGEST: Final = 1 << 40


class BadWish(ValueError):
    """A wish that the simulator does not understand. Its text is a sentence for the person who wrote it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What one request asked for. Counts are of events or bytes as sent on the wire, times are seconds.

    `None` means: not asked, do as the provider would.
    """

    delay_s: float = 0.05
    interval_s: float | None = None
    events: int | None = None
    text_bytes: int | None = None
    cached_tokens: int | None = None
    written_tokens: int = 0
    reasoning_tokens: int | None = None
    tool_use_tokens: int = 0
    audio_tokens: int = 0
    image_tokens: int = 0
    without_usage: bool = False
    iterations: str | None = None
    crlf: bool = False
    status: int | None = None
    retry_after_s: float | None = None
    silence: int | None = None
    cut: int | None = None
    reset: int | None = None
    garbage: int | None = None
    error_event: int | None = None
    encoding: str | None = None
    chunk: int | None = None
    close: bool = False
    early: bool = False

    @property
    def pause_s(self) -> float:
        """The time between two writes: as asked; else 20 ms, and none where the caller sized the writes."""
        if self.interval_s is not None:
            return self.interval_s
        return 0.0 if self.chunk is not None else 0.02


def _seconds(text: str) -> float:
    # Not float() alone: it takes "nan", "inf" and "1_0".
    if re.fullmatch(r"\d+(\.\d*)?|\.\d+", text) and float(text) <= LONGEST_S:
        return float(text)
    raise BadWish(f"a time in seconds from 0 to {LONGEST_S:.0f}, such as 0.2")


def _count(least: int, most: int = LARGEST) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if re.fullmatch(r"[0-9]{1,15}", text) and least <= int(text) <= most:
            return int(text)
        raise BadWish(f"a whole number from {least} to {most}")

    return parse


def _place(text: str) -> int:
    if text == "head":
        return HEAD
    try:
        return _count(0)(text)
    except BadWish:
        raise BadWish("the word head, or a whole number of events or bytes") from None


def _one_of(words: tuple[str, ...]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text in words:
            return text
        raise BadWish(f"one of {', '.join(words)}")

    return parse


def _none(text: str) -> bool:
    if text == "none":
        return True
    raise BadWish("the word none")


def _yes(text: str) -> bool:
    if text in ("0", "1"):
        return text == "1"
    raise BadWish("0 or 1")


GRAMMAR: Final[Mapping[str, tuple[str, Callable[[str], object]]]] = {
    "delay": ("delay_s", _seconds),
    "interval": ("interval_s", _seconds),
    "events": ("events", _count(0)),
    "bytes": ("text_bytes", _count(0)),
    "cached": ("cached_tokens", _count(0)),
    "written": ("written_tokens", _count(0)),
    "reasoning": ("reasoning_tokens", _count(0)),
    "tool_tokens": ("tool_use_tokens", _count(0)),
    "audio": ("audio_tokens", _count(0)),
    "image": ("image_tokens", _count(0)),
    "usage": ("without_usage", _none),
    "iterations": ("iterations", _one_of(ITERATIONS)),
    "crlf": ("crlf", _yes),
    "status": ("status", _count(200, 599)),
    "retry_after": ("retry_after_s", _seconds),
    "silence": ("silence", _place),
    "cut": ("cut", _count(0)),
    "reset": ("reset", _place),
    "garbage": ("garbage", _place),
    "error_event": ("error_event", _count(0)),
    "encoding": ("encoding", _one_of(CODINGS)),
    "chunk": ("chunk", _count(1)),
    "close": ("close", _yes),
    "early": ("early", _yes),
}
"""Every wish: its name on the wire, the field of `Wishes` it sets, and what reads its value."""


def read(text: str, separator: str = ",") -> dict[str, object]:
    """The fields of `Wishes` that `text` sets. Raises `BadWish`."""
    asked: dict[str, object] = {}
    for pair in text.split(separator):
        name, equals, value = (part.strip() for part in pair.partition("="))
        if not name and not equals:
            continue  # "a=1,,b=2" and an empty field are what list syntax allows: RFC 9110 section 5.6.1
        if name not in GRAMMAR:
            raise BadWish(f"X-Simulate: {name[:40]!r} is not known; known are {', '.join(GRAMMAR)}.")
        field, parse = GRAMMAR[name]
        try:
            asked[field] = parse(value)
        except BadWish as complaint:
            message = f"X-Simulate: {name}={value[:40]!r} is not valid; {name} takes {complaint}."
            raise BadWish(message) from None
    return asked


def split_model(model: str) -> tuple[str, str]:
    """A model's name and the wishes behind it. A plus sign alone is part of the name."""
    found = re.search(r"\+(?=[a-z_]+=)", model)
    if found is None:
        return model, ""
    return model[: found.start()], model[found.end() :]


def wishes_of(field: str, behind_model: str = "") -> Wishes:
    """The wishes of a request, from its `X-Simulate` field and from behind its model's name.

    Raises `BadWish`.
    """
    asked = read(behind_model, "+") | read(field)
    return replace(Wishes(), **asked)  # type: ignore[arg-type]  # GRAMMAR pairs each field with its reader
