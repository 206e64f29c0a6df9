"""The proxy's process, seen from outside: memory and descriptors, from /proc (proc(5))."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Sample:
    """at_s: since the beginning. resident_bytes: memory. descriptors: open files and sockets."""

    at_s: float
    resident_bytes: int
    descriptors: int


def sample(pid: int, at_s: float) -> Sample:
    """The process now."""
    proc = Path("/proc", str(pid))
    pages = int((proc / "statm").read_text().split()[1])
    return Sample(at_s, pages * _PAGE_BYTES, descriptors(pid))


def descriptors(pid: int) -> int:
    """How many the process has open now."""
    return sum(1 for _ in Path("/proc", str(pid), "fd").iterdir())


def growth_bytes(samples: list[Sample]) -> float:
    """By how much memory grew from the first to the last of these, along the straight line that fits them best."""
    n = len(samples)
    if n < 3:
        return 0.0
    mean_t = sum(each.at_s for each in samples) / n
    mean_y = sum(each.resident_bytes for each in samples) / n
    spread = sum((each.at_s - mean_t) ** 2 for each in samples)
    slope = sum((each.at_s - mean_t) * (each.resident_bytes - mean_y) for each in samples) / spread
    return slope * (samples[-1].at_s - samples[0].at_s)
