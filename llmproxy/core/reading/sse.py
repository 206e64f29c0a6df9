"""The events of a server-sent event stream (HTML standard, section 9.2.6), from a body that arrives in pieces.

The rule: what is given is what the standard says, and as fast as C can take it apart. So there are two ways, which
mean the same. The streams of the big providers have one line of data for each event, with or without the name of the
event before it: their events are split in one go, which is then proved to have been right. All else goes line by line.
Before both, events of a form that was learned are only counted (core/reading/repetition.py).

Lines end in LF, CR or CRLF, and in nothing else: U+2028, U+2029 and U+0085 are text. Fields other than `data` are
ignored, because the type of an event is in its data too. An event without data is none.

An accountant wants more than a browser: an event that the stream was cut in is given at the end, for its data may be
whole. `[DONE]`, by which OpenAI's streams end, is noted and not given.
"""

from __future__ import annotations

import re
from typing import Final

from llmproxy.core.reading.events import EVENT_BYTES_MAX, EventRun, Item, LargeEvent, Watching, run_of
from llmproxy.core.reading.json_scan import MemberScan
from llmproxy.core.reading.repetition import Repetition

_BOM: Final = b"\xef\xbb\xbf"
# A byte is looked for as a number: in CPython 3.11 `b"\r" in data` is four times as slow.
_LF: Final = 10
_CR: Final = 13
_DONE: Final = b"[DONE]"
_DATA: Final = b"data: "
_BETWEEN: Final = b"\n\ndata: "
_NAMED: Final = re.compile(rb"event: [^\n]*+\ndata: ")
_BETWEEN_NAMED: Final = re.compile(rb"\n\nevent: [^\n]*+\ndata: ")
_FIELD_BYTES: Final = len(_DATA)  # as many bytes of a line tell whether it is one of data


class SSEReader:
    """Takes events apart. It is fastest when a piece has many of them: gather some KiB before `feed`.

    :param watching: what to keep of an event longer than EVENT_BYTES_MAX.

    done: `[DONE]` was seen.
    repetition: a form that most of the events have; None as soon as some came that do not have it.
    """

    __slots__ = (
        "_data_lines",
        "_in_data",
        "_in_line",
        "_large",
        "_rest",
        "_started",
        "_watching",
        "done",
        "repetition",
    )

    trouble: str | None = None

    def __init__(self, watching: Watching) -> None:
        self.done = False
        self.repetition: Repetition | None = None
        self._watching = watching
        self._started = False  # past the byte order mark
        self._rest = b""  # of the event that has begun; of a large one only what is not decided yet
        self._large: MemberScan | None = None  # the data of the event that has begun and is too large to keep
        self._data_lines = 0  # of that event
        self._in_line = False  # past the name of the field of its line
        self._in_data = False  # and that line is one of data

    def feed(self, data: bytes) -> list[Item]:
        """The next piece of the body. Returns the events whose blank line it has."""
        data = self._rest + data
        if not self._started:
            if len(data) < len(_BOM) and _BOM.startswith(data):
                self._rest = data
                return []
            data = data.removeprefix(_BOM)
            self._started = True
        items: list[Item] = []
        if self.repetition is not None and self._large is None and len(data) <= EVENT_BYTES_MAX:
            taken = self.repetition.take(data)
            if taken is None:
                self.repetition = None
            else:
                run, size = taken
                if size:
                    items.append(run)
                    data = data[size:]
        held = b""
        if _CR in data:
            data = self._take_crlf(data, items)
            if data.endswith(b"\r"):
                data, held = data[:-1], b"\r"  # it may be half of a CRLF
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        self._rest = b""
        if self._large is not None:
            data = self._take_large(data, items)
        end = data.rfind(b"\n\n") + 2
        if end >= 2:
            self._take_events(data[:end], items)
            data = data[end:]
        self._rest += data.lstrip(b"\n") if self._large is None else data
        self._rest += held
        # Two more, because a line end and half of another may be among them.
        if self._large is None and len(self._rest) > EVENT_BYTES_MAX + 2:
            data, self._rest = self._rest.removesuffix(held), b""
            self._begin_large(data, items)
            self._rest += held
        return items

    def finish(self) -> list[Item]:
        """The body is over. Returns the event that has no blank line, if one has begun: the standard drops it."""
        if not self._rest and self._large is None:
            return []
        # Two line ends make it one that ends; where there is a CR already, the first is half of that.
        return self.feed(b"\n\n\n")

    # -- whole events, all lines ended by LF

    def _take_crlf(self, data: bytes, items: list[Item]) -> bytes:
        """Take whole events whose lines end in CRLF, where each is one line of data. Returns what is left to take."""
        end = data.rfind(b"\r\n\r\n")
        if end < 0 or end > EVENT_BYTES_MAX or self._large is not None or not data.startswith(_DATA):
            return data
        run = self._run(data[len(_DATA) : end].split(b"\r\n\r\ndata: "))
        if run is None:
            return data
        if run.texts:
            items.append(run)
        return data[end + 4 :]

    def _take_events(self, text: bytes, items: list[Item]) -> None:
        run = self._split(text)
        if run is None or len(text) > EVENT_BYTES_MAX:
            self._take_lines(text, items)
        elif run.texts:
            items.append(run)

    def _split(self, text: bytes) -> EventRun | None:
        """The events of a text that has a line of data for each, maybe after one with its name; None if it has not."""
        if text.startswith(_DATA):
            return self._run(text[len(_DATA) : -2].split(_BETWEEN))
        named = _NAMED.match(text)
        return None if named is None else self._run(_BETWEEN_NAMED.split(text[named.end() : -2]))

    def _run(self, texts: list[bytes]) -> EventRun | None:
        """The events whose data was split so; None if that was not right.

        Why what is given is right: between two texts was a separator, and no line end is left in them. So the whole is
        texts without line ends and separators, and says what the standard says of such lines.
        """
        is_done = texts[-1] == _DONE
        if is_done:
            texts.pop()
        array = b"[%b]" % b",".join(texts)
        if _LF in array or _CR in array or _DONE in texts or b"" in texts:
            return None
        self.done = self.done or is_done
        return EventRun(texts, array)

    def _take_lines(self, text: bytes, items: list[Item]) -> None:
        texts: list[bytes] = []
        for block in text.split(b"\n\n"):
            if len(block) > EVENT_BYTES_MAX:
                block = block.lstrip(b"\n")
            if len(block) > EVENT_BYTES_MAX:
                if texts:
                    items.append(run_of(texts))
                    texts = []
                self._begin_large(block + b"\n\n", items)
                continue
            lines = block.split(b"\n")
            data = b"\n".join([_value(line) for line in lines if line[:5] == b"data:" or line == b"data"])
            if data == _DONE:
                self.done = True
            elif data:
                texts.append(data)
        if texts:
            items.append(run_of(texts))

    # -- an event that is too large to keep

    def _begin_large(self, text: bytes, items: list[Item]) -> None:
        """`text` is the beginning of such an event, or all of it with its blank line."""
        self._large = MemberScan(self._watching())
        self._data_lines = 0
        self._in_line = self._in_data = False
        self._take_large(text, items)

    def _take_large(self, data: bytes, items: list[Item]) -> bytes:
        """Go on with it. Returns what follows its blank line."""
        scan = self._large
        if scan is None:
            return data
        at = 0
        while at < len(data):
            if not self._in_line:
                if data[at] == 0x0A:
                    self._large = None
                    if self._data_lines:
                        items.append(LargeEvent(scan.values, scan.keys, scan.size_bytes))
                    return data[at + 1 :]
                end = data.find(b"\n", at, at + _FIELD_BYTES)
                if end < 0 and len(data) - at < _FIELD_BYTES:
                    self._rest = data[at:]
                    return b""
                self._in_line = True
                self._in_data = data.startswith(b"data:", at)
                if self._in_data:
                    if self._data_lines:
                        scan.feed(b"\n")
                    self._data_lines += 1
                    at += 6 if data.startswith(_DATA, at) else 5
            end = data.find(b"\n", at)
            stop = end if end >= 0 else len(data)
            if self._in_data:
                scan.feed(data[at:stop])
            if end < 0:
                return b""
            at = end + 1
            self._in_line = False
        return b""


def _value(line: bytes) -> bytes:
    return line[6:] if line[5:6] == b" " else line[5:]
