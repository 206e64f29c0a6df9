"""What every container of an answer comes apart into: runs of JSON texts, and values that were too large to keep.

A container is the outer form of a body: server-sent events, JSON lines, a JSON array, an AWS event stream. Each takes
its pieces in any split, gives the same for every split, never raises, and keeps no more than EVENT_BYTES_MAX of an
event.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol, TypeAlias

import msgspec

from llmproxy.core.reading.repetition import TextRun
from llmproxy.core.reading.shape import Members, Path

EVENT_BYTES_MAX: Final = 64 * 1024
"""An event longer than this is not kept: only the members of it that are watched."""

FEW_EVENTS: Final = 20
"""So many are decoded in full where not all are plain; of more, the ends are looked at one by one."""

_ODD_MAX: Final = 4  # FEW_EVENTS have room for both
_ODD_BYTES: Final = 150

Watching: TypeAlias = Callable[[], frozenset[Path]]
"""The members to watch in an event that is too large to keep; asked when there is one."""


class EventRun(NamedTuple):
    """Events that follow one another. texts: the JSON text of each, as it came. array: a JSON array of them."""

    texts: Sequence[bytes]
    array: bytes


class LargeEvent(NamedTuple):
    """An event that was too large to keep.

    members: those that were watched. keys: the members of its top level, as `keys_of` would give them.
    size_bytes: the length of its JSON text.
    """

    members: Members
    keys: Mapping[str, bytes]
    size_bytes: int


class Body(NamedTuple):
    """A whole JSON answer. text: one JSON object. keys: the members of its top level."""

    text: bytes
    keys: Mapping[str, bytes]


Item: TypeAlias = EventRun | TextRun | LargeEvent | Body


class Container(Protocol):
    """Takes a body apart. After `finish` nothing more is fed."""

    def feed(self, data: bytes) -> list[Item]:
        """The next piece of the body; what came to an end in it, in order."""

    def finish(self) -> list[Item]:
        """The body is over; what it was cut in, as far as it can be of use."""

    @property
    def done(self) -> bool:
        """The body has said that it is over: whatever may be lost after that was of no interest."""

    @property
    def trouble(self) -> str | None:
        """Why not all of the body could be read, in a word or two with underscores; None if it could."""


def is_odd(texts: Sequence[bytes]) -> bool:
    """Whether the last event of a run looks unlike the others: it is most often the one that ends the stream.

    It is a guess that saves time, and decides nothing.
    """
    return len(texts) > FEW_EVENTS and abs(len(texts[-1]) - len(texts[0])) > _ODD_BYTES


def plain_part(texts: Sequence[bytes], decoder: msgspec.json.Decoder[Any]) -> tuple[int, int]:
    """Which of the texts are likely to be all plain: what is not is most often at the beginning and the end of a run.

    :param decoder: decodes what is plain, and nothing else.
    """
    begin, end = 0, len(texts)
    if end <= FEW_EVENTS:
        return begin, end
    while begin < _ODD_MAX and not _decodes(decoder, texts[begin]):
        begin += 1
    while len(texts) - end < _ODD_MAX and not _decodes(decoder, texts[end - 1]):
        end -= 1
    return begin, end


def _decodes(decoder: msgspec.json.Decoder[Any], text: bytes) -> bool:
    try:
        decoder.decode(text)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return False
    return True


def run_of(texts: Sequence[bytes]) -> EventRun:
    """A run of these texts."""
    return EventRun(texts, b"[%b]" % b",".join(texts))
