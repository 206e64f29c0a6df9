"""Whether the tests would notice: each breakage of the table is made in a copy of the project, and tests must fail.

What is proven is the tests, not the program. A breakage that survives is a promise that nothing holds.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final

import pytest

from tests.controls.table import BREAKAGES, Breakage

ROOT: Final = Path(__file__).resolve().parents[2]
AT_ONCE: Final = 2
LIMIT_S: Final = 60.0
"""A breakage may also make a test run for ever; that is no proof, as anything could be the cause."""

_FAILED: Final = re.compile(r"^FAILED tests/(\S+)", re.MULTILINE)

pytestmark = pytest.mark.slow


class Workshop:
    """Copies of the project, in which things are broken.

    :param folder: where.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._original = folder / "original"
        shutil.copytree(ROOT / "llmproxy", self._original / "llmproxy")
        shutil.copytree(
            ROOT / "tests", self._original / "tests", ignore=shutil.ignore_patterns("sdk", "live", "corpus")
        )
        shutil.copy(ROOT / "pyproject.toml", self._original)

    def failing(self, breakage: Breakage) -> set[str]:
        """Which of its tests fail with it."""
        folder = self._folder / str(BREAKAGES.index(breakage))
        shutil.copytree(self._original, folder)
        try:
            broken = folder / "llmproxy" / breakage.file
            source = broken.read_text(encoding="utf-8")
            found = source.count(breakage.old)
            if found != 1:
                raise AssertionError(f"{breakage.file} has {found} times, and not once: {breakage.old!r}")
            source = source.replace(breakage.old, breakage.new)
            compile(source, breakage.file, "exec")
            broken.write_text(source, encoding="utf-8")
            return self.run(folder, breakage.tests.split())
        finally:
            shutil.rmtree(folder)

    def failing_unbroken(self) -> set[str]:
        """Which of all the tests of the table fail without any breakage."""
        return self.run(self._original, sorted({test for each in BREAKAGES for test in each.tests.split()}))

    @staticmethod
    def run(folder: Path, tests: list[str]) -> set[str]:
        """Run these tests in this copy; returns those that failed. Every one has run."""
        # 4 GiB: what is broken may be what keeps memory bounded.
        bounded = ("sh", "-c", 'ulimit -v 4194304 2>/dev/null; exec "$@"', "sh")
        pytest_ = (sys.executable, "-b", "-m", "pytest", "-q", "--tb=no", "-p", "no:twisted", "-p", "no:cacheprovider")
        ran = subprocess.run(
            (*bounded, *pytest_, *(f"tests/{test}" for test in tests)),
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )
        failed = set(_FAILED.findall(ran.stdout))
        last = ran.stdout.splitlines()[-1:]
        counted = sum(int(number) for number in re.findall(r"(\d+) (?:passed|failed)", str(last)))
        # A file that cannot be imported, or a test that is not there, is no test that failed.
        assert ran.returncode in (0, 1) and counted == len(tests), ran.stdout + ran.stderr
        return failed


@pytest.fixture(scope="module")
def running(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[set[str]]]]:
    """Every breakage that was asked for, some at once; "" is none."""
    asked = {item.callspec.params.get("breakage") for item in request.session.items if hasattr(item, "callspec")}
    workshop = Workshop(tmp_path_factory.mktemp("controls"))
    with ThreadPoolExecutor(AT_ONCE) as pool:
        started = {"": pool.submit(workshop.failing_unbroken)}
        started.update((each.name, pool.submit(workshop.failing, each)) for each in BREAKAGES if each in asked)
        try:
            yield started
        finally:
            pool.shutdown(cancel_futures=True)


def test_unbroken(running: dict[str, Future[set[str]]]) -> None:
    """As the program is, all the tests of the table pass: so it is the breakage that they fail of."""
    assert running[""].result() == set()


@pytest.mark.parametrize("breakage", BREAKAGES, ids=lambda breakage: breakage.name)
def test_noticed(breakage: Breakage, running: dict[str, Future[set[str]]]) -> None:
    """The program broken in this way does not pass its tests."""
    assert running[breakage.name].result() == set(breakage.tests.split())


def test_every_group() -> None:
    """No promise is left out: for each there are ways of breaking it, no two with the same name."""
    groups = {each.name.partition(": ")[0] for each in BREAKAGES}
    promised = (
        "framing, routing, fields, callers' deadlines, providers' deadlines, bounds, cut, cancelling, back-pressure,"
        " sending again, kept connections, draining, TLS, events, accounting, secrets"
    )
    assert groups == set(promised.split(", "))
    assert len({each.name for each in BREAKAGES}) == len(BREAKAGES)
    assert all(each.tests for each in BREAKAGES)
