"""Reading what an answer used from a copy of its body: `UsageReader` for one that comes in pieces, `read_whole`.

The rules: the container is told by the first bytes, the shape by the first object, neither by what was asked or by a
header. Nothing that a provider can send raises, and what is kept is bounded. The reading is the same for every split.

How it is fast: `UsageReader.feed` only gathers. When some KiB are there, they are taken apart at once, and the shape
gets some dozens of events in one call, which it can decode in one go. Where the events of a stream differ in their text
alone, that is learned from the first ones, and the others are not even decoded (core/reading/repetition.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import msgspec

from llmproxy.core.reading.aws_event_stream import PRELUDE_BYTES, AWSEventStream, is_prelude
from llmproxy.core.reading.events import Container, EventRun, Item, LargeEvent, Watching, is_odd, run_of
from llmproxy.core.reading.json_object import BODY_BYTES_MAX, JSONObject
from llmproxy.core.reading.json_runs import NOT_JSON, JSONArray
from llmproxy.core.reading.recognition import Keys, PlainShape, Shapes, choose, error_kind, keys_of, watched_by
from llmproxy.core.reading.repetition import PlainText, TextRun, learned
from llmproxy.core.reading.shape import Shape
from llmproxy.core.reading.sse import SSEReader
from llmproxy.core.usage import Counters, Reading

BATCH_BYTES: Final = 16 * 1024
"""What is gathered before it is taken apart. A stream keeps this much more than the event that has begun."""

FIRST_BYTES: Final = 2 * 1024
"""Less is gathered at first: from a few events it can be learned how to read the others."""

EVENTS_LOOKED_AT: Final = 16
"""Comments, pings and errors may come before the first event that tells the shape; more than this is another matter."""

EMPTY: Final = "empty"
NO_EVENTS: Final = "no_events"
UNKNOWN_SHAPE: Final = "unknown_shape"
ERROR: Final = "error"

_BOM: Final = b"\xef\xbb\xbf"
_SPACE: Final = b" \t\r\n"
_SSE: Final = re.compile(rb"(?:data|event|id|retry)?:")
_SIGN_WITHIN_BYTES: Final = 256
_LEAST_BYTES: Final = PRELUDE_BYTES  # as many tell the container

LEARNED_MAX: Final = 16
"""A form is learned so often at most: where it changes all the time it is not worth it."""

TakeText = Callable[[TextRun], None]
"""What a shape has as `take_text` if it has `plain_text`: takes events of which the latter told that they are plain."""

TakeArray = Callable[[bytes, int], bool]
"""What a shape may have as `take_array`: takes a run of events as the text of a JSON array and their number. False:
nothing was taken, and `take_events` is to take them."""


def read_whole(body: bytes, shapes: Shapes, plain: Sequence[PlainShape] = ()) -> Reading:
    """What an answer used that is all here. It says the same as a UsageReader; a JSON object is read straight away.

    :param plain: shapes whose plain answers are known by decoding them.
    """
    if body.startswith(b"{") and len(body) <= BODY_BYTES_MAX:
        for each in plain:
            if body.find(each.plain_sign, 0, _SIGN_WITHIN_BYTES) >= 0:
                reading = each.read_plain(body)
                if reading is not None:
                    return reading
        keys = keys_of(body)
        if keys is not None:
            shape = choose(keys, shapes)
            if shape is None:
                return _of_no_shape(error_kind(keys), UNKNOWN_SHAPE)
            shape.take_body(body)
            return shape.reading(True)
    reader = UsageReader(shapes)
    reader.feed(body)
    return reader.finish(True)


class UsageReader:
    """Reads an answer that comes in pieces, in its identity coding.

    :param shapes: the classes of shapes that it may have, in the order in which they are asked.

    gathered: what was fed and not taken apart. Whoever has a piece in hand may add it there instead of calling `feed`,
        and then calls `take_apart` as soon as `batch_bytes` are there.
    """

    __slots__ = (
        "_container",
        "_error",
        "_learned",
        "_looked_at",
        "_over",
        "_reason",
        "_shape",
        "_shapes",
        "batch_bytes",
        "gathered",
    )

    def __init__(self, shapes: Shapes) -> None:
        self._shapes = shapes
        self.gathered = bytearray()
        self._container: Container | None = None
        self._shape: Shape | None = None
        self.batch_bytes = FIRST_BYTES
        self._learned = 0  # how often it was tried to learn the form of the events
        self._looked_at = 0  # events that no shape knew
        self._error: str | None = None  # the kind of an error among them
        self._reason = EMPTY  # why there is no shape
        self._over = False  # no more is read

    def feed(self, data: bytes) -> None:
        """The next piece of the body."""
        gathered = self.gathered
        gathered += data
        if len(gathered) >= self.batch_bytes:
            self.take_apart()

    def snapshot(self) -> Reading:
        """What is known so far. Of a JSON object that is nothing before its end."""
        self.take_apart()
        return self._reading(False)

    def finish(self, whole: bool) -> Reading:
        """The body is over, and nothing more is fed. whole: it came to its proper end."""
        self.take_apart(True)
        container = self._container
        if container is not None and not self._over:
            for item in container.finish():
                self._take(item)
            self._over = True
        return self._reading(whole)

    # -- from bytes to events

    def take_apart(self, last: bool = False) -> None:
        """Take apart what was gathered. last: nothing will come after it."""
        gathered = self.gathered
        if len(gathered) >= FIRST_BYTES:
            self.batch_bytes = BATCH_BYTES
        if self._over:
            gathered.clear()
            return
        data = bytes(gathered)
        container = self._container
        if container is None:
            data = data.removeprefix(_BOM).lstrip(_SPACE)
            if not data or (len(data) < _LEAST_BYTES and not last):
                if not _BOM.startswith(gathered):
                    gathered[:] = data
                return
            container = self._container = _container(data, partial(watched_by, self._shapes))
            if container is None:
                self._over = True
                self._reason = NOT_JSON
            else:
                self._reason = NO_EVENTS
        gathered.clear()
        if container is not None:
            for item in container.feed(data):
                self._take(item)
            if isinstance(container, SSEReader) and container.repetition is None and len(data) >= FIRST_BYTES:
                self._learn(container, data)

    def _learn(self, container: SSEReader, data: bytes) -> None:
        """Learn the form of the events, if they have one."""
        plain_text: PlainText | None = getattr(self._shape, "plain_text", None)
        if plain_text is not None and self._learned < LEARNED_MAX:
            form = container.repetition = learned(data, plain_text)
            # A stream that has no form does not get one later.
            self._learned += 1 if form is not None else LEARNED_MAX // 2

    # -- from events to the shape

    def _take(self, item: Item) -> None:
        shape = self._shape
        if shape is None:
            if self._over:
                return
            recognised = self._recognise(item)
            shape = self._shape
            if recognised is None or shape is None:
                return
            item = recognised
        if isinstance(item, EventRun):
            take_array: TakeArray | None = getattr(shape, "take_array", None)
            texts = item.texts
            if take_array is None or is_odd(texts) or not take_array(item.array, len(texts)):
                shape.take_events(texts)
        elif isinstance(item, TextRun):
            take_text: TakeText = shape.take_text  # type: ignore[attr-defined]  # it has learned the form
            take_text(item)
        elif isinstance(item, LargeEvent):
            shape.take_large(item.members, item.size_bytes)
        else:
            shape.take_body(item.text)

    def _recognise(self, item: Item) -> Item | None:
        """Look for the shape. Returns what of the item begins with the event that told it; None if none did."""
        if isinstance(item, TextRun):  # of a form that a shape has told
            return None
        if not isinstance(item, EventRun):
            return item if self._look_at(item.keys) else None
        for number, text in enumerate(item.texts):
            keys = keys_of(text)
            if self._look_at(keys):
                return run_of(item.texts[number:]) if number else item
            if self._over:
                break
        return None

    def _look_at(self, keys: Keys | None) -> bool:
        """Whether an object with these members tells the shape. None: it is no object."""
        if keys:
            shape = self._shape = choose(keys, self._shapes)
            if shape is not None:
                return True
            if self._error is None:
                self._error = error_kind(keys)
        self._reason = UNKNOWN_SHAPE if keys is not None else NOT_JSON
        self._looked_at += 1
        self._over = self._looked_at >= EVENTS_LOOKED_AT
        return False

    # -- the reading

    def _reading(self, whole: bool) -> Reading:
        container, shape = self._container, self._shape
        trouble = None if container is None else container.trouble
        if shape is None:
            return _of_no_shape(self._error, trouble or self._reason)
        done = container is not None and container.done
        reading = shape.reading((whole or done) and trouble is None)
        if trouble is not None and reading.counters in (Counters.RUNNING, Counters.ABSENT):
            reading = msgspec.structs.replace(reading, reason=trouble)
        return reading


def _container(data: bytes, watching: Watching) -> Container | None:
    """Takes a body apart that begins with this; None: it is in no container that we know."""
    if data.startswith(b"{"):
        return JSONObject(watching)
    if data.startswith(b"["):
        return JSONArray(watching)
    if _SSE.match(data):
        return SSEReader(watching)
    return AWSEventStream() if is_prelude(data) else None


def _of_no_shape(error: str | None, reason: str) -> Reading:
    return Reading(reason=reason) if error is None else Reading(reason=ERROR, error=error)
