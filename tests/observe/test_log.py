"""The log observer: what is written, when, and what happens when it cannot be."""

from __future__ import annotations

import json
import re
import time
from threading import Thread
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.interfaces import IReactorFromThreads
from twisted.internet.task import Clock
from twisted.logger import Logger, LogLevel, LogPublisher
from twisted.python import log as legacy
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from llmproxy.observe.access import ACCESS_FIELDS, AccessRecord
from llmproxy.observe.log import LogObserver

_NOON = 1795435262.345  # 2026-11-23T12:01:02.345Z
_ACCESS: dict[str, Any] = {
    "event": "access",
    "request_id": "r1",
    "user": "alice",
    "credential_id": "5bdcc146bf60",
    "provider": "openai",
    "method": "POST",
    "path": "/openai/v1/chat/completions",
    "model": "gpt-4o",
    "stream_requested": True,
    "streamed": True,
    "status": 200,
    "request_bytes": 512,
    "response_bytes": 4500,
    "chunks": 12,
    "ttfb_ms": 310.0,
    "duration_ms": 1240.0,
    "end_reason": "ok",
}


def _record(**fields: Any) -> AccessRecord:
    """A record of its own, as the log takes them over."""
    return AccessRecord(**{**dict.fromkeys(ACCESS_FIELDS), **_ACCESS, **fields})


class _Writer:
    """A log's reader, which may refuse."""

    def __init__(self) -> None:
        self.batches: list[bytes] = []
        self.error: Exception | None = None
        self.takes_bytes: int | None = None

    def __call__(self, data: bytes) -> int | None:
        if self.error is not None:
            raise self.error
        taken = data if self.takes_bytes is None else data[: self.takes_bytes]
        self.batches.append(taken)
        return len(taken)

    @property
    def text(self) -> str:
        return b"".join(self.batches).decode()

    @property
    def records(self) -> list[Any]:
        return [json.loads(line) for line in self.text.split("\n")[:-1]]


class _Case(SynchronousTestCase):
    def setUp(self) -> None:
        """A writer, a clock and a publisher of events."""
        self.writer = _Writer()
        self.clock = Clock()
        self.clock.advance(_NOON)

    def _made(self, format: str = "json", level: str = "info", **bounds: Any) -> LogObserver:
        return LogObserver(self.writer, self.clock, format, level, **bounds)

    def _logger(self, observer: LogObserver) -> Logger:
        return Logger("test.source", observer=LogPublisher(observer))


class Lines(_Case):
    """What a line holds."""

    def test_access_as_json(self) -> None:
        """An access record is one flat JSON object, the time first."""
        observer = self._made()
        observer.access(_record())
        observer.flush()
        self.assertEqual(
            self.writer.records,
            [{**dict.fromkeys(ACCESS_FIELDS), **_ACCESS, "time": "2026-11-23T12:01:02.345Z"}],
        )
        self.assertTrue(self.writer.text.startswith('{"time":"2026-11-23T12:01:02.345Z","event":"access",'))

    def test_keys_in_any_case(self) -> None:
        """What a caller gives as a user is masked where it is a key or a cookie, however the word before it is
        written."""
        for user in ("bEARer abcdefghij", "BEARER abcdefghij", "bAsIc abcdefghij", "CoOkie: session=abcdefgh"):
            for form in ("json", "text"):
                self.setUp()
                observer = self._made(form)
                observer.access(_record(user=user))
                observer.flush()
                self.assertNotIn("abcdefgh", self.writer.text)
                self.assertIn("***", self.writer.text)
                self.assertIn("gpt-4o", self.writer.text)

    def test_own_time(self) -> None:
        """A record that has a time keeps it."""
        observer = self._made()
        observer.access(_record(time="2026-01-01T00:00:00.000Z"))
        observer.flush()
        self.assertEqual(self.writer.records[0]["time"], "2026-01-01T00:00:00.000Z")

    def test_access_as_text(self) -> None:
        """In text form it is a terse line for people."""
        observer = self._made("text")
        observer.access(_record())
        nothing: dict[str, Any] = dict.fromkeys(_ACCESS)
        observer.access(_record(**nothing | {"end_reason": "client_gone", "error_class": "x", "duration_ms": 3}))
        observer.flush()
        clock = time.strftime("%H:%M:%S", time.localtime(_NOON))
        self.assertEqual(
            self.writer.text,
            f"{clock} 200 POST openai gpt-4o 1.24s first=0.31s in=512B out=4.5kB chunks=12 user=alice "
            "/openai/v1/chat/completions id=r1\n"
            f"{clock} - - - - 0.00s in=- out=- end=client_gone error_class=x -\n",
        )

    def test_ordinary_event(self) -> None:
        """An event of any library is written with level, source and message."""
        observer = self._made()
        self._logger(observer).warn("listening on {port}", port=9002)
        observer.flush()
        record = self.writer.records[0]
        self.assertRegex(record.pop("time"), r"\A\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z\Z")
        self.assertEqual(
            record, {"event": "log", "level": "warn", "logger": "test.source", "message": "listening on 9002"}
        )

    def test_ordinary_event_as_text(self) -> None:
        """The same for people."""
        observer = self._made("text")
        self._logger(observer).warn("listening on {port}", port=9002)
        observer.flush()
        self.assertRegex(self.writer.text, r"\A\d\d:\d\d:\d\d warn \[test.source\] listening on 9002\n\Z")

    def test_failure(self) -> None:
        """A failure is written with its class, message and traceback, on one line, and at once."""
        for format in ("json", "text"):
            self.writer.batches.clear()
            logger = self._logger(self._made(format))
            try:
                raise ValueError("no\nsuch thing")
            except ValueError:
                logger.failure("while serving")
            self.assertEqual(self.writer.text.count("\n"), 1)
            for words in ("ValueError", "while serving", "such thing", "test_failure"):
                self.assertIn(words, self.writer.text)

    def test_legacy_error(self) -> None:
        """`log.err` of older code is an error too, with its traceback once."""
        observer = self._made()
        publisher = legacy.LogPublisher(publishPublisher=LogPublisher(observer))
        publisher.msg(failure=Failure(KeyError("lost")), why="while looking", isError=1)
        record = self.writer.records[0]
        self.assertEqual((record["level"], record["error"]), ("critical", "KeyError"))
        self.assertEqual(record["message"], "while looking")

    def test_legacy_dictionaries(self) -> None:
        """An event in the old form is understood, whether or not Twisted converted it."""
        observer = self._made()
        observer({"isError": 1, "failure": Failure(KeyError("lost")), "message": (), "why": None})
        observer({"isError": 0, "message": ("two", "words"), "system": "old", "time": 1.0})
        observer.flush()
        error, message = self.writer.records
        self.assertEqual((error["level"], error["message"]), ("error", "unhandled error"))
        self.assertEqual((message["logger"], message["message"]), ("old", "two words"))

    def test_levels(self) -> None:
        """What is below the level is left out; access records are of level info."""
        for level, words in (("debug", "dDA iwec"), ("info", "A iwec"), ("warn", "wec"), ("critical", "c")):
            self.writer.batches.clear()
            observer = self._made("text", level)
            logger = self._logger(observer)
            observer({"log_level": LogLevel.debug, "log_format": "<d>"})
            logger.debug("<D>")
            observer.access(_record(path="<A>"))
            observer({"message": ("< >",)})
            for name in ("info", "warn", "error", "critical"):
                logger.emit(LogLevel.lookupByName(name), f"<{name[0]}>")
            observer.flush()
            found = "".join(re.findall("<(.)>|(?<= )<", self.writer.text))
            self.assertEqual(found, words, level)

    def test_bad_settings(self) -> None:
        """A level or a format that does not exist is refused when the observer is made."""
        self.assertRaises(ValueError, self._made, "xml")
        self.assertRaises(ValueError, self._made, "json", "loud")


class Hostile(_Case):
    """What callers and libraries put into a log."""

    @given(st.text(alphabet=st.characters(), max_size=60))
    def test_one_line_whatever_is_in_it(self, text: str) -> None:
        """No line end, escape sequence or half character in a value breaks the line, in either form."""
        for format in ("json", "text"):
            writer = _Writer()
            observer = LogObserver(writer, Clock(), format)
            observer.access(_record(user=text, path=text, model=text))
            observer({"log_level": LogLevel.info, "log_format": "{it}", "it": text})
            observer.flush()
            self.assertEqual(len(writer.text.splitlines()), 2)
            self.assertNotRegex(writer.text, "[\x00-\x09\x0b-\x1f\x80-\x9f\u202e]")
            self.assertEqual(observer.dropped, 0)

    def test_unicode_comes_back(self) -> None:
        """In JSON, text of any script is what it was."""
        observer = self._made()
        observer.access(_record(user="jö\u2028\x85\u202e\U0001f600 \x1b[31m"))
        observer.flush()
        self.assertEqual(self.writer.records[0]["user"], "jö\u2028\x85\u202e\U0001f600 \x1b[31m")

    def test_keys_are_masked(self) -> None:
        """A key in a message, an exception or a field is not written."""
        for format in ("json", "text"):
            observer = self._made(format)
            logger = self._logger(observer)
            for name in ("user", "model", "path", "sdk", "upstream_request_id", "method"):
                observer.access(_record(**{name: "sk-proj-c4n4ry012345"}))
            logger.info("GET {url}", url="https://x.test/v1?key=c4n4ry012345")
            try:
                raise ValueError({"x-api-key": "c4n4ry012345", "a": "Bearer c4n4ry012345"})
            except ValueError:
                logger.failure("sent AIzac4n4ry012345")
            observer.flush()
        self.assertNotIn("c4n4ry", self.writer.text)
        self.assertIn("***", self.writer.text)

    def test_unwritable_values(self) -> None:
        """An object that JSON does not know, half a character or a value without text costs no request."""

        class Mute:
            def __str__(self) -> str:
                raise RuntimeError("no text")

        observer = self._made()
        observer.access(_record(path=object, user="\ud800", retries=2, status=float("nan")))
        observer.access(_record(path=Mute()))
        self._logger(observer).info("{it}", it=Mute())
        self._logger(observer).info("{missing}")
        observer.access(_record(path="/after"))
        observer.flush()
        records = self.writer.records
        self.assertEqual((records[0]["user"], records[0]["retries"]), ("\\ud800", 2))
        self.assertEqual([each["path"] for each in records if "path" in each][1:], ["/after"])
        self.assertEqual(records[-1]["event"], "log")
        self.assertIn("1 log lines were lost", records[-1]["message"])


class Batches(_Case):
    """When lines are written."""

    def test_waits_then_writes_once(self) -> None:
        """Lines wait a quarter of a second for company, then go out in one write."""
        observer = self._made()
        for _ in range(3):
            observer.access(_record())
        self.clock.advance(0.24)
        self.assertEqual(self.writer.batches, [])
        self.clock.advance(0.02)
        self.assertEqual(len(self.writer.batches), 1)
        self.assertEqual(len(self.writer.records), 3)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_full_batch(self) -> None:
        """A full batch does not wait, and leaves no timer behind."""
        observer = self._made(batch=10)
        for _ in range(10):
            observer.access(_record())
        self.assertEqual(len(self.writer.batches), 1)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_error_does_not_wait(self) -> None:
        """An error takes the lines before it along at once: the process may be about to die."""
        observer = self._made()
        observer.access(_record())
        self._logger(observer).error("bad")
        self.assertEqual([each["event"] for each in self.writer.records], ["access", "log"])

    def test_flush_when_nothing_waits(self) -> None:
        """Stopping a quiet proxy writes nothing."""
        self._made().flush()
        self.assertEqual(self.writer.batches, [])

    def test_other_threads(self) -> None:
        """A line from another thread is handed to the reactor's own, which has the timer."""

        @implementer(IReactorFromThreads)
        class Reactor(Clock):
            def __init__(self) -> None:
                super().__init__()
                self.handed: list[tuple[Any, ...]] = []

            def callFromThread(self, callable: Any, *args: object, **kwargs: object) -> None:
                self.handed.append((callable, *args))

        reactor = Reactor()
        observer = LogObserver(self.writer, reactor)
        thread = Thread(target=observer, args=({"log_level": LogLevel.info, "log_format": "found"},))
        thread.start()
        thread.join()
        self.assertEqual(reactor.getDelayedCalls(), [])
        ((call, *args),) = reactor.handed
        call(*args)
        observer.flush()
        self.assertEqual(len(self.writer.records), 1)


class SlowReader(_Case):
    """Nobody takes the lines."""

    def test_blocked_then_not(self) -> None:
        """While the reader blocks, lines wait; afterwards all are there, whole and in order."""
        observer = self._made(batch=2)
        self.writer.error = BlockingIOError()
        for number in range(5):
            observer.access(_record(path=str(number)))
        self.clock.advance(1)
        self.writer.error = None
        self.clock.advance(1)
        self.assertEqual([each["path"] for each in self.writer.records], ["0", "1", "2", "3", "4"])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_partial_writes(self) -> None:
        """A reader that takes a few bytes at a time still gets whole lines."""
        observer = self._made()
        self.writer.takes_bytes = 7
        for number in range(3):
            observer.access(_record(path=str(number)))
        for _ in range(400):
            self.clock.advance(0.25)
        self.assertEqual([each["path"] for each in self.writer.records], ["0", "1", "2"])

    def test_partly_blocked(self) -> None:
        """What a buffer took before it blocked is not written twice."""
        observer = self._made()
        blocked = BlockingIOError(11, "again", 0)
        blocked.characters_written = 5
        observer.access(_record())
        self.writer.error = blocked
        observer.flush()
        self.writer.error = None
        observer.flush()
        self.assertTrue(self.writer.text.startswith(':"2026') or self.writer.text.startswith('e":'))

    def test_at_the_end(self) -> None:
        """When the process ends, a reader that is behind is waited for, and gets every line; so do lines that come
        still later. One that never comes costs two seconds."""
        observer = self._made()
        self.writer.takes_bytes = 50
        for number in range(5):
            observer.access(_record(path=str(number)))
        waited: list[float] = []
        observer.close(waited.append)
        self.assertEqual([each["path"] for each in self.writer.records], ["0", "1", "2", "3", "4"])
        self.assertLess(sum(waited), 1)
        self.writer.takes_bytes = 100_000
        observer.access(_record(path="5"))
        self.assertEqual(self.writer.records[-1]["path"], "5")
        self.writer.error = BlockingIOError()
        observer.access(_record(path="6"))
        waited.clear()
        observer.close(waited.append)
        self.assertAlmostEqual(sum(waited), 2)
        self.writer.error = None
        observer.access(_record(path="7"))
        self.assertEqual([each["path"] for each in self.writer.records[-2:]], ["6", "7"])

    def test_bound(self) -> None:
        """A reader that stays away costs a bounded amount of memory; what is dropped is counted and told."""
        observer = self._made(pending_bytes_max=2000)
        self.writer.error = BlockingIOError()
        for _ in range(1000):
            observer.access(_record(path="x" * 50))
        self.clock.advance(1)
        self.assertGreater(observer.dropped, 900)
        kept = 1000 - observer.dropped
        self.writer.error = None
        self.clock.advance(1)
        records = self.writer.records
        self.assertEqual(len(records), kept + 1)
        self.assertIn(f"{1000 - kept} log lines were lost", records[-1]["message"])
        self.assertEqual(observer.dropped, 0)

    def test_broken_writer(self) -> None:
        """A full disk or a closed pipe raises nothing into a request, keeps nothing, and is told later."""
        observer = self._made()
        for error in (OSError(28, "full"), ValueError("closed file"), BrokenPipeError()):
            self.writer.error = error
            observer.access(_record())
            observer.access(_record())
            observer.flush()
        self.assertEqual(observer.dropped, 6)
        self.writer.error = None
        observer.access(_record())
        observer.flush()
        self.assertIn("6 log lines were lost", self.writer.records[-1]["message"])


class _FullDisk:
    """A disk that takes a part of what is written, or nothing, as it is told; then all.

    :ivar taken: what is on it.
    """

    def __init__(self) -> None:
        self.taken = b""
        self.takes: list[int | Exception] = []

    def __call__(self, data: bytes) -> int:
        part = self.takes.pop(0) if self.takes else len(data)
        if isinstance(part, Exception):
            raise part
        self.taken += data[:part]
        return min(part, len(data))

    def read(self) -> tuple[list[str], int]:
        """The messages in it, and how many lines it says were lost; halves of lines are left out."""
        messages, lost = [], 0
        for line in self.taken.decode().split("\n")[:-1]:
            try:
                message = json.loads(line)["message"]
            except ValueError:
                continue
            if found := re.match(r"(\d+) log lines were lost", message):
                lost += int(found[1])
            else:
                messages.append(message)
        return messages, lost


_FULL = OSError(28, "No space left on device")


class FullDisk(_Case):
    """The disk is full for a moment."""

    def setUp(self) -> None:
        """A disk, and a log on it."""
        super().setUp()
        self.disk = _FullDisk()
        self.observer = LogObserver(self.disk, self.clock)

    def write(self, *messages: str) -> None:
        """Log these, and wait."""
        for message in messages:
            self.observer({"log_level": LogLevel.info, "log_format": "{it}", "it": message, "log_time": 0.0})
        self.clock.advance(0.3)

    def test_half_a_line(self) -> None:
        """After a line of which only half was taken the next one begins on a new line, and one is told as lost."""
        self.disk.takes = [40, _FULL]
        self.write("a")
        self.clock.advance(0.3)
        self.write("b")
        self.assertEqual(self.disk.read(), (["b"], 1))
        self.assertEqual(self.disk.taken.count(b"\n"), 3)
        self.write("c")
        self.assertEqual(self.disk.read(), (["b", "c"], 1))
        self.assertEqual(self.disk.taken.count(b"\n"), 4)

    def test_many_lines_behind_half_a_line(self) -> None:
        """All the lines that were waiting behind the half one are counted."""
        self.disk.takes = [40, _FULL]
        self.write(*map(str, range(50)))
        self.clock.advance(0.3)
        self.write("b")
        self.assertEqual(self.disk.read(), (["b"], 50))

    def test_the_count_is_not_lost(self) -> None:
        """When the line that says how many were lost is lost too, whole or by half, a later one says it."""
        for last in ([_FULL], [40, _FULL], [BlockingIOError(), _FULL]):
            self.setUp()
            self.disk.takes = [_FULL, 1 << 20, *last]
            self.write(*map(str, range(50)))
            self.assertEqual(self.observer.dropped, 50)
            self.write("b")
            self.clock.advance(0.3)
            self.assertEqual(self.disk.read(), (["b"], 0))
            self.write("c")
            self.assertEqual(self.disk.read(), (["b", "c"], 50))
            self.assertEqual(self.observer.dropped, 0)

    @given(st.lists(st.tuples(st.integers(0, 3), st.none() | st.just(_FULL) | st.integers(0, 700))))
    def test_nothing_is_lost_in_silence(self, moments: list[tuple[int, int | Exception | None]]) -> None:
        """However much the disk takes and when, each line is on it, or in the number of those that were lost."""
        self.setUp()
        logged = 0
        for count, takes in moments:
            self.disk.takes = [BlockingIOError() if takes is None else takes]
            self.write(*(str(logged + number) for number in range(count)))
            logged += count
        self.disk.takes = []
        self.clock.advance(0.3)
        self.write("the last one")
        messages, lost = self.disk.read()
        self.assertEqual(messages[-1], "the last one")
        self.assertEqual(len(messages) - 1 + lost, logged)
        self.assertEqual(messages[:-1], sorted(set(messages[:-1]), key=int))
        self.assertEqual(self.observer.dropped, 0)
