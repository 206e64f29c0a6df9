"""A process that is killed at any moment leaves a ledger that opens, is in order, and has all that was written."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llmproxy.state.ledger.query import BackendName, Question, ask
from llmproxy.state.ledger.reprice import reprice
from llmproxy.state.ledger.row import Row
from llmproxy.state.ledger.verify import verify
from tests.state.ledger_cases import BACKENDS, Clock, made, row

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = 6


def _start(backend: BackendName, path: Path, first: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.live.ledger_child", backend, str(path), str(first)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_kill_at_any_moment(backend: BackendName, tmp_path: Path) -> None:
    """kill -9, again and again: the ledger is in order each time, and only rows that were not yet written are gone."""
    path = tmp_path / "ledger"
    chance = random.Random(7)
    first, at_least, at_most = 0, 0, 0
    for _ in range(ROUNDS):
        child = _start(backend, path, first)
        assert child.stdout is not None
        lines = [child.stdout.readline()]
        end = time.monotonic() + chance.uniform(0.05, 0.4)
        while time.monotonic() < end:
            lines.append(child.stdout.readline())
        child.send_signal(signal.SIGKILL)
        lines += child.stdout.readlines()
        child.wait()
        taken, written = map(int, next(line for line in reversed(lines) if line.endswith("\n")).split())
        at_least, at_most = at_least + written, at_most + taken + 20 - first
        first = taken + 20  # some may have been taken after the last line
        if written:
            assert verify(backend, str(path)) == []
            requests = ask(backend, str(path), Question(by="day")).total.requests
            assert at_least <= requests <= at_most
    assert at_least > 1000


@pytest.mark.parametrize("backend", BACKENDS)
def test_questions_and_prices_while_it_is_written(backend: BackendName, tmp_path: Path) -> None:
    """Reports and new prices while the proxy writes: each report is whole, and no row is lost."""

    def two(row: Row) -> tuple[int | None, str | None]:
        return 2, "two"

    path = tmp_path / "ledger"
    child = _start(backend, path, 0)
    assert child.stdout is not None
    requests = [0]
    try:
        while int(child.stdout.readline().split()[1]) < 500:
            pass
        for _ in range(4):
            requests.append(ask(backend, str(path), Question(by="day")).total.requests)
            reprice(backend, str(path), 0, 2**63 - 1, two)
            assert verify(backend, str(path)) == []
        written = 0
        end = time.monotonic() + 0.3
        while time.monotonic() < end:
            written = int(child.stdout.readline().split()[1])
    finally:
        child.kill()
        child.wait()
    assert requests == sorted(requests)
    total = ask(backend, str(path), Question(by="day")).total
    assert total.requests >= written > 500
    assert verify(backend, str(path)) == []
    assert not [name for name in os.listdir(tmp_path) if "broken" in name]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_disk_that_is_full(backend: BackendName, tmp_path: Path) -> None:
    """The file may not grow any more: writing fails, and goes on with nothing lost and nothing twice."""
    ledger, path = made(backend, str(tmp_path), Clock(), keep_days=0)
    ledger.write([row(n) for n in range(100)])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    more = [row(n) for n in range(100, 4000)]
    # Python ignores SIGXFSZ, so that a file that is too large is an error and not the end.
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, before[1]))
    try:
        with pytest.raises(Exception, match=r"full|large|I/O|space"):
            ledger.write(more)
        assert ask(backend, path, Question()).total.requests == 100
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    ledger.write(more)
    assert ask(backend, path, Question(by="day")).total.requests == 4000
    assert verify(backend, path) == []
    ledger.close()
