"""JSON values that follow one another in a body: the lines of JSON lines, and the elements of a JSON array.

Batches answer with JSON lines; Gemini's streamGenerateContent answers with one array, whose elements come as they are
made, unless server-sent events are asked for. Elements that are no objects are passed over.
"""

from __future__ import annotations

import re
from typing import Final

from llmproxy.core.reading.events import EVENT_BYTES_MAX, Item, LargeEvent, Watching, run_of
from llmproxy.core.reading.json_scan import MemberScan, ValueEnd, blinded

_OPEN, _END = b"{]"
NOT_JSON: Final = "not_json"
_ELEMENT: Final = re.compile(rb'["\[\]{]')
_BLANK: Final = b" \t\r"


class JSONLines:
    """Takes JSON lines apart: one JSON text each, ended by LF or by the end of the body. Empty lines are none.

    :param watching: what to keep of a line longer than EVENT_BYTES_MAX.
    """

    __slots__ = ("_large", "_rest", "_watching")

    done = False
    trouble: str | None = None

    def __init__(self, watching: Watching) -> None:
        self._watching = watching
        self._rest = b""  # of the line that has begun
        self._large: MemberScan | None = None  # that line, where it is too large to keep

    def feed(self, data: bytes) -> list[Item]:
        """The next piece of the body. Returns the lines that it ends."""
        items: list[Item] = []
        if self._large is not None:
            line, ended, data = data.partition(b"\n")
            self._large.feed(line)
            if not ended:
                return items
            self._end_large(items)
        else:
            data = self._rest + data
        texts: list[bytes] = []
        *lines, rest = data.split(b"\n")
        for line in lines:
            line = line.lstrip(_BLANK)
            if len(line) > EVENT_BYTES_MAX:
                if texts:
                    items.append(run_of(texts))
                    texts = []
                self._begin_large(line)
                self._end_large(items)
            elif line:
                texts.append(line)
        if texts:
            items.append(run_of(texts))
        self._rest = rest.lstrip(_BLANK)
        if len(self._rest) > EVENT_BYTES_MAX:
            self._begin_large(self._rest)
            self._rest = b""
        return items

    def finish(self) -> list[Item]:
        """The body is over. Returns the line that has no end, if one has begun."""
        return self.feed(b"\n")

    def _begin_large(self, text: bytes) -> None:
        self._large = MemberScan(self._watching())
        self._large.feed(text)

    def _end_large(self, items: list[Item]) -> None:
        scan, self._large = self._large, None
        if scan is not None:
            items.append(LargeEvent(scan.values, scan.keys, scan.size_bytes))


class JSONArray:
    """Takes a JSON array apart as its elements come.

    :param watching: what to keep of an element longer than EVENT_BYTES_MAX.

    done: the array came to its end; what follows is not looked at.
    """

    __slots__ = (
        "_end",
        "_escaped",
        "_large",
        "_rest",
        "_started",
        "_wanted",
        "_watching",
        "_within",
        "done",
        "trouble",
    )

    def __init__(self, watching: Watching) -> None:
        self.done = False
        self.trouble: str | None = None
        self._watching = watching
        self._started = False  # past the bracket that opens it
        self._end = ValueEnd()  # of the element that has begun
        self._within = False  # one has
        self._wanted = False  # and it is an object
        self._escaped = False  # the last piece ended with a backslash that escapes the next byte
        self._rest = bytearray()  # of that element
        self._large: MemberScan | None = None  # that element, where it is too large to keep

    def feed(self, data: bytes) -> list[Item]:
        """The next piece of the body. Returns the elements that it ends."""
        items: list[Item] = []
        if not self._started:
            data = data.lstrip()
            if not data:
                return items
            self._started, data = True, data[1:]
        while data and not (self.done or self.trouble):
            if self._large is None:
                data = self._take_elements(data, items)
            else:
                data = self._take_large(self._large, data, items)
        return items

    def finish(self) -> list[Item]:
        """The body is over. An element that has no end is none, but of a large one there is what was seen."""
        scan, self._large = self._large, None
        return [] if scan is None else [LargeEvent(scan.values, scan.keys, scan.size_bytes)]

    def _take_large(self, scan: MemberScan, data: bytes, items: list[Item]) -> bytes:
        if not scan.feed(data):
            if scan.broken:
                self.trouble = NOT_JSON  # where it ends is not known any more
            return b""
        self._large = None
        items.append(LargeEvent(scan.values, scan.keys, scan.size_bytes))
        return scan.rest

    def _take_elements(self, data: bytes, items: list[Item]) -> bytes:
        """Take the elements of this piece; what follows the first large one is returned."""
        texts: list[bytes] = []
        text, self._escaped = blinded(data, self._escaped)
        at = 0
        while at < len(text):
            begin = at
            if not self._within:
                found = _ELEMENT.search(text, at)
                if found is None:
                    break
                begin, first = found.start(), text[found.start()]
                if first == _END:
                    self.done = True
                    break
                self._end.begin(first)
                self._within, self._wanted = True, first == _OPEN
                at = begin + 1
            end = self._end.find(text, at)
            self._within = end < 0
            at = len(text) if end < 0 else end
            if not self._wanted:
                continue
            if len(self._rest) + at - begin > EVENT_BYTES_MAX:
                if texts:
                    items.append(run_of(texts))
                return self._begin_large(begin, data, items)
            if end < 0:
                self._rest += data[begin:]
            elif self._rest:
                texts.append(bytes(self._rest) + data[begin:end])
                self._rest.clear()
            else:
                texts.append(data[begin:end])
        if texts:
            items.append(run_of(texts))
        return b""

    def _begin_large(self, begin: int, data: bytes, items: list[Item]) -> bytes:
        """The element that has begun is too large; `data` has more of it from `begin`. The scan finds its end."""
        scan = self._large = MemberScan(self._watching())
        scan.feed(bytes(self._rest))
        self._rest.clear()
        self._within = self._escaped = False
        return self._take_large(scan, data[begin:], items)
