"""The log observer: gathers lines, writes many at once, and never stands in the way of a request.

The rule: a log that cannot be written costs lines, not requests. It raises nothing into its caller, it does
not wait for a reader that is slow, and it keeps a bounded amount. What is lost is counted, and a later line
says how much.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from twisted.internet.interfaces import IDelayedCall, IReactorFromThreads, IReactorTime
from twisted.logger import ILogObserver, LogEvent, LogLevel
from zope.interface import implementer

from llmproxy.observe.access import AccessRecord, as_mapping
from llmproxy.observe.lines import access_json, access_text, event_record, event_text, json_line, rfc3339

LEVELS: Final = ("debug", "info", "warn", "error", "critical")
FORMATS: Final = ("json", "text")

_LINE_END: Final = ord("\n")

_RECORD_BYTES: Final = 1024
"""What an access record counts for among the pending bytes, before its line is made."""

CLOSE_S: Final = 2.0
CLOSE_STEP_S: Final = 0.01

_Waiting = tuple[AccessRecord, float]
"""An access record and its time, before it is a line."""


@implementer(ILogObserver)
class LogObserver:
    """Writes the events of twisted.logger, and access records, as lines.

    write: takes a batch of whole lines. May return how many bytes it took, like `os.write`; anything that is
        no int means all. May raise BlockingIOError: it is tried again later. After any other error the batch
        is lost, and the next one begins on a line of its own.
    clock: for the timer.
    format, level: see `follow`.
    flush_s: a line waits no longer than this; errors do not wait.
    batch: so many lines are written without waiting.
    pending_bytes_max: so much is kept for a reader that is slow; what comes on top is dropped.
    wall_time: seconds since 1970, where an event has no time of its own; without it, the clock's.
    """

    def __init__(
        self,
        write: Callable[[bytes], object],
        clock: IReactorTime,
        format: str = "json",
        level: str = "info",
        flush_s: float = 0.25,
        batch: int = 256,
        pending_bytes_max: int = 1 << 20,
        wall_time: Callable[[], float] | None = None,
    ) -> None:
        self.dropped = 0  # lines that were lost, and that no line which is out has told of
        self.follow(format, level)
        self._write = write
        self._clock = clock
        self._wall_time = wall_time or clock.seconds
        self._flush_s = flush_s
        self._batch = batch
        self._pending_bytes_max = pending_bytes_max
        self._pending: list[bytes | _Waiting] = []
        self._pending_bytes = 0  # in `_pending` and `_rest`
        self._rest = b""  # what the writer did not take, in the middle of a line perhaps
        self._in_line = False  # whether what the writer took last was no whole line
        self._telling = 0  # so many lost lines are told in the first line of `_rest`, or of what is being written
        self._timer: IDelayedCall | None = None
        self._closed = False
        self._thread = threading.get_ident()
        self._second = -1  # a second is formatted once, for all the records that end in it
        self._second_text = ""
        self._seen: set[object] = set()

    def follow(self, format: str, level: str) -> None:
        """Write lines of this format, and from this level up. Access records are of level info.

        format: one of FORMATS. level: one of LEVELS.
        """
        if format not in FORMATS:
            raise ValueError(f"log format {format!r} is none of {', '.join(FORMATS)}")
        if level not in LEVELS:
            raise ValueError(f"log level {level!r} is none of {', '.join(LEVELS)}")
        self._json = format == "json"
        self._wanted = frozenset(LogLevel.lookupByName(name) for name in LEVELS[LEVELS.index(level) :])
        self._access_wanted = LogLevel.info in self._wanted

    def __call__(self, event: LogEvent) -> None:
        """Take an event of twisted.logger, whichever library it is of."""
        level = event.get("log_level")
        if level is not None and level not in self._wanted:
            return
        if level is None and not event.get("isError") and not self._access_wanted:
            return
        urgent = level in (LogLevel.error, LogLevel.critical) or bool(event.get("isError"))
        self._take(event, urgent)

    def access(self, record: AccessRecord) -> None:
        """Take an access record; its `time` is filled in if empty.

        The record is taken over. It becomes a line when the batch is written: a hundred lines made one after the
        other cost half of what they cost between the requests. The event machinery would cost more than the line,
        so records come straight here. To be called in the thread of the clock.
        """
        if self._access_wanted:
            self._add((record, self._wall_time()), _RECORD_BYTES, False)

    def flush(self) -> None:
        """Write all that waits, now. Called by the timer, and by whoever stops the process."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None
        if not self._pending_bytes:
            return
        lines, self._pending = self._pending, []
        data = self._rest + b"".join([line if isinstance(line, bytes) else self._access_line(*line) for line in lines])
        if self._in_line and not self._rest:
            data = b"\n" + data  # the end of that line was lost; this one is to be read
        try:
            taken = self._write(data)
        except BlockingIOError as blocked:
            taken = getattr(blocked, "characters_written", 0)  # unset unless a buffer took a part
        except Exception:  # noqa: BLE001 - whatever the writer is: a full disk must not fail a request
            self._lose(data)
            return
        self._was_taken(data, taken if isinstance(taken, int) else len(data))
        if self._rest:
            self._timer = self._clock.callLater(self._flush_s, self.flush)
        elif self.dropped:
            self._tell_of_lost()

    def _was_taken(self, data: bytes, taken: int) -> None:
        self._rest = data[taken:]
        self._pending_bytes = len(self._rest)
        if taken:
            self._in_line = data[taken - 1] != _LINE_END
        if self._telling and b"\n" in data[:taken]:
            self.dropped -= self._telling
            self._telling = 0

    def _lose(self, data: bytes) -> None:
        """Count the lines that the writer failed to take, each by its end."""
        lost = data.count(b"\n")
        if data.startswith(b"\n"):
            lost -= 1  # all that is missing of the line before it is its end, and that comes with the next batch
            self.dropped -= self._telling
        elif self._telling:
            lost -= 1  # that line is no loss of its own: it is written again
        self.dropped += lost
        self._rest, self._pending_bytes, self._telling = b"", 0, 0

    def _tell_of_lost(self) -> None:
        """Write how many lines were lost. They count as lost until that line is out."""
        self._telling = self.dropped
        line = self._event_line(_dropped_event(self._telling), self._wall_time())
        self._pending.insert(0, line)
        self._pending_bytes += len(line)
        self.flush()

    def close(self, sleep: Callable[[float], None] = time.sleep) -> None:
        """Write all that waits, and from now on every line at once: the timer is about to be stopped for good.

        A reader that is behind gets CLOSE_S to catch up: nobody else is served any more who would wait with it.
        """
        self._batch = 1
        self._closed = True
        self.flush()
        for _ in range(int(CLOSE_S / CLOSE_STEP_S)):
            if not self._rest:
                return
            sleep(CLOSE_STEP_S)
            self.flush()

    # -- making lines

    def _take(self, event: LogEvent, urgent: bool) -> None:
        try:
            line = self._event_line(event, self._wall_time())
        except Exception:  # noqa: BLE001 - an event is any object of any library; its __str__ may do anything
            self.dropped += 1
            return
        if threading.get_ident() != self._thread and IReactorFromThreads.providedBy(self._clock):
            # From another thread: timer and batch belong to the reactor's thread.
            self._clock.callFromThread(self._add, line, len(line), urgent)
        else:
            self._add(line, len(line), urgent)

    def _event_line(self, event: LogEvent, seconds: float) -> bytes:
        seconds = event.get("log_time", seconds)
        record = event_record(event, seconds)
        return json_line(record) if self._json else event_text(record, seconds)

    def _access_line(self, record: AccessRecord, seconds: float) -> bytes:
        try:
            if not self._json:
                return access_text(as_mapping(record), seconds)
            if not record.time:
                record.time = self._time(seconds)
            return access_json(record, self._seen)
        except Exception:  # noqa: BLE001 - one record that cannot be written must not take the batch with it
            self.dropped += 1
            return b""

    def _time(self, seconds: float) -> str:
        second = int(seconds)
        if second != self._second:
            self._second, self._second_text = second, rfc3339(second)[:-4]
        milliseconds = int((seconds - second) * 1000)
        return f"{self._second_text}{milliseconds:03d}Z"

    # -- keeping and writing them

    def _add(self, line: bytes | _Waiting, size_bytes: int, urgent: bool) -> None:
        if self._pending_bytes + size_bytes > self._pending_bytes_max:
            self.dropped += 1
            return
        self._pending.append(line)
        self._pending_bytes += size_bytes
        if self._rest and not self._closed:
            return  # the reader is slow: the timer that is running tries again
        if urgent or len(self._pending) >= self._batch:
            self.flush()
        elif self._timer is None:
            self._timer = self._clock.callLater(self._flush_s, self.flush)


def _dropped_event(count: int) -> LogEvent:
    return {
        "log_level": LogLevel.warn,
        "log_namespace": __name__,
        "log_format": "{count} log lines were lost: nobody read them in time, or they could not be written",
        "count": count,
    }
