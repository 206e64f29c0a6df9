"""A body that begins with a JSON object: most often it is all of it, sometimes others follow it, as JSON lines.

The rule: an object of at most BODY_BYTES_MAX is kept and given whole. Of a larger one, and of one that was cut, there
are the members that are watched.
"""

from __future__ import annotations

from typing import Final

from llmproxy.core.reading.events import Body, Item, LargeEvent, Watching
from llmproxy.core.reading.json_runs import NOT_JSON, JSONLines
from llmproxy.core.reading.json_scan import MemberScan
from llmproxy.core.reading.recognition import keys_of

BODY_BYTES_MAX: Final = 256 * 1024
INCOMPLETE_JSON: Final = "incomplete_json"


class JSONObject:
    """Takes such a body. What is no JSON after the object is not looked at.

    :param watching: what to keep of an object longer than BODY_BYTES_MAX.
    """

    __slots__ = ("_kept", "_lines", "_scan", "_watching", "trouble")

    done = False

    def __init__(self, watching: Watching) -> None:
        self.trouble: str | None = None
        self._watching = watching
        self._kept = bytearray()  # as long as it may be the whole
        self._scan: MemberScan | None = None  # an object that is too large to keep
        self._lines: JSONLines | None = None  # where more than one object comes

    def feed(self, data: bytes) -> list[Item]:
        """The next piece of the body. Returns what came to an end in it, where it is not one small object."""
        if self._lines is not None:
            return self._lines.feed(data)
        if self._scan is not None:
            return self._take_large(self._scan, data)
        kept = self._kept
        kept += data
        if len(kept) <= BODY_BYTES_MAX:
            return []
        # The first BODY_BYTES_MAX bytes decide, so that it is the same for every split.
        text, more = bytes(kept[:BODY_BYTES_MAX]), bytes(kept[BODY_BYTES_MAX:])
        kept.clear()
        if _are_lines(text):
            return self._take_lines(text + more)
        self._scan = MemberScan(self._watching())
        return self._take_large(self._scan, text + more)

    def finish(self) -> list[Item]:
        """The body is over."""
        if self._lines is not None:
            return self._lines.finish()
        if self._scan is not None:
            return [] if self._scan.complete else self._cut(self._scan)
        text = bytes(self._kept)
        self._kept.clear()
        keys = keys_of(text)
        if keys is not None:
            return [Body(text, keys)]
        if _are_lines(text):
            self._lines = lines = JSONLines(self._watching)
            return lines.feed(text) + lines.finish()
        scan = MemberScan(self._watching())
        scan.feed(text)
        text = text[: scan.size_bytes]
        keys = keys_of(text) if scan.complete else None
        return self._cut(scan) if keys is None else [Body(text, keys)]

    def _take_large(self, scan: MemberScan, data: bytes) -> list[Item]:
        items: list[Item] = []
        if not scan.complete:
            if not scan.feed(data):
                return items
            items.append(LargeEvent(scan.values, scan.keys, scan.size_bytes))
            data = scan.rest
        if data.lstrip().startswith(b"{"):
            items += self._take_lines(data)
        return items

    def _take_lines(self, data: bytes) -> list[Item]:
        self._lines = JSONLines(self._watching)
        return self._lines.feed(data)

    def _cut(self, scan: MemberScan) -> list[Item]:
        self.trouble = INCOMPLETE_JSON if scan.keys else NOT_JSON
        return [LargeEvent(scan.values, scan.keys, scan.size_bytes)]


def _are_lines(text: bytes) -> bool:
    """Whether the first line is an object by itself."""
    line, ended, _ = text.partition(b"\n")
    return bool(ended) and keys_of(line) is not None
