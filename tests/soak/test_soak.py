"""The soak, short: `make soak SECONDS=300` is the long one."""

from __future__ import annotations

import pytest

from tests.soak.process import Sample, growth_bytes
from tests.soak.run import Report, soak


@pytest.mark.slow
def test_ten_seconds() -> None:
    """Ten seconds of everything at once: one event for each request, nothing is left open, no fault is logged."""
    report = soak(10.0)
    print(report.text())  # noqa: T201 - pytest -s shows it
    assert list(report.faults()) == []
    assert len(report.tally.due) > 300
    assert report.reloads >= 2


def test_growth_is_that_of_the_line() -> None:
    """A leak of 1 KiB a second is seen through noise of ten times that; noise alone is no growth."""
    noise = [0, 10240, 2048, 8192, 4096] * 40
    leaking = [Sample(float(at), 10**8 + at * 1024 + extra, 9) for at, extra in enumerate(noise)]
    flat = [Sample(float(at), 10**8 + extra, 9) for at, extra in enumerate(noise)]
    assert abs(growth_bytes(leaking) - 199 * 1024) < 2048
    assert abs(growth_bytes(flat)) < 2048


def test_what_is_a_fault() -> None:
    """Two events for a request, none, one that nobody asked for, an error in the log, what is left: each is told."""
    good = {"event": "access", "level": "info", "end_reason": "ok"}
    report = Report(1.0, exit_code=0)
    report.tally.due |= {"r1", "r2", "r3"}
    report.tally.perhaps["r4"] += 1
    report.log = [{**good, "path": f"/openai/v1/soak/{name}"} for name in ("r1", "r2", "r3")]
    assert list(report.faults()) == []
    wrong = (
        ({**good, "path": "/openai/v1/soak/r1"}, "2 access events for the request r1"),
        ({**good, "path": "/elsewhere"}, "'elsewhere'"),
        ({"level": "error", "message": "x"}, "in the log"),
        ({"level": "warn", "message": "Unhandled error in Deferred"}, "in the log"),
        ({**good, "path": "/openai/v1/soak/r4", "end_reason": "proxy_error"}, "a fault of the proxy's own"),
        ({"level": "info", "message": "the configuration is reloaded"}, "0 reloads"),
    )
    whole = report.log
    for line, words in wrong:
        report.log = [*whole, line]
        faults = list(report.faults())
        assert len(faults) == 1 and words in faults[0], faults
    report.log = whole[1:]
    assert list(report.faults()) == ["0 access events for the request r1"]
    report.log = whole
    report.samples = [Sample(float(at), at << 20, 9) for at in range(20)]
    report.descriptors_after, report.provider_after, report.exit_code = 1, 2, 3
    assert len(list(report.faults())) == 4
