"""The corpus: bytes that are known to have deceived somebody, and what we make of each.

`corpus/README.md` has a line for each file: its name, what must become of it, and why it is there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.laboratory import Outcome
from tests.fuzz.readers import Answer

FOLDER = Path(__file__).parent / "corpus"

_ROW = re.compile(r"\| `([^`]+)` \| ([^|]+) \| (.+) \|$")
_REFUSALS = frozenset((400, 408, 413, 414, 417, 431, 501, 505))


@dataclass(frozen=True, slots=True)
class Entry:
    """One file. `expected` is what must become of it, in the words of the README."""

    name: str
    data: bytes
    expected: str


def entries(kind: str) -> list[Entry]:
    """Those of `kind`: requests or responses.

    :raises AssertionError: when a file has no line, or a line no file.
    """
    found: list[Entry] = []
    section = ""
    for line in (FOLDER / "README.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            section = line.removeprefix("## ").lower()
        row = _ROW.match(line)
        if row is not None and section == kind:
            found.append(Entry(row[1], (FOLDER / kind / f"{row[1]}.http").read_bytes(), row[2]))
    files = sorted(path.stem for path in (FOLDER / kind).glob("*"))
    assert sorted(entry.name for entry in found) == files, "the table and the files differ"
    return found


def halves(data: bytes) -> list[list[bytes]]:
    """`data` in two, at each byte."""
    return [[data[:at], data[at:]] for at in range(1, len(data))]


def verdict(outcome: Outcome) -> str:
    """What became of what a caller said: one word for each request, in the words of the README."""
    words = [_word(answer) for answer in outcome.answers]
    if any(event["status"] is None for event in outcome.events):
        words.append("cut")
    if words.count("one") != len(outcome.received):
        return f"{len(outcome.received)} requests upstream, and {words}"
    if "reject" in words and not outcome.closed_by_us:
        return "refused, and the connection goes on"
    return ", ".join(words)


def _word(answer: Answer) -> str:
    if answer.get(b"x-llm-proxy-request-id") is None:
        return "an answer without an id"
    if answer.get(b"x-llm-proxy-error-source") is None and re.match(rb"[0-9]+ bytes, [0-9a-f]{8}\Z", answer.body):
        return "one"
    return "reject" if answer.status in _REFUSALS else "own"
