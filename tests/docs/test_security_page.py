"""The tables of docs/security.md: every promise names the place where it is kept, and tests that exist.

Tests are looked for in the sources and not imported: whether they can be run is the business of their own folder.
"""

import ast
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import pytest

from tests.docs.pages import ROOT, prose

PAGE: Final = ROOT / "docs" / "security.md"
_ROW: Final = re.compile(r"^\| (.+?) \| (.+?) \| (.+?) \|$", re.M)
_WORD: Final = re.compile(r"`([^`]+)`")


@dataclass(frozen=True, slots=True)
class Promise:
    """One row."""

    text: str
    kept_in: tuple[str, ...]
    tests: tuple[str, ...]


def promises(page: str) -> list[Promise]:
    """The rows of all tables of promises."""
    found = (
        Promise(text, tuple(_WORD.findall(kept_in)), tuple(_WORD.findall(tests)))
        for text, kept_in, tests in _ROW.findall(page)
    )
    return [each for each in found if each.text not in ("promise", "---") and not each.text.startswith("---")]


@cache
def names_in(path: Path) -> frozenset[str]:
    """``Class::test`` for each test method and ``test`` for each test function of a file; none if there is no file."""
    if not path.is_file():
        return frozenset()
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            found |= {f"{node.name}::{each.name}" for each in node.body if isinstance(each, ast.FunctionDef)}
    return frozenset(each for each in found if each.rpartition("::")[2].startswith("test"))


def is_there(test: str) -> bool:
    """Whether ``tests/file.py::Class::test`` or ``tests/file.py::test`` exists."""
    file, _, name = test.partition("::")
    return name in names_in(ROOT / file)


PROMISES: Final = promises(prose(PAGE))


def test_there_are_promises() -> None:
    """The page has its tables, each row of them is read, and none is there twice."""
    rows = [line for line in prose(PAGE).splitlines() if line.startswith("| ") and not line.startswith("| promise ")]
    assert len(PROMISES) == len(rows) > 50
    assert len({each.text for each in PROMISES}) == len(PROMISES)


@pytest.mark.parametrize("promise", PROMISES, ids=lambda each: each.text[:60])
def test_every_promise_is_kept_somewhere_and_tested(promise: Promise) -> None:
    """Who doubts a promise of docs/security.md finds the code that keeps it, and the test that would fail."""
    assert promise.kept_in and promise.tests
    assert [each for each in promise.kept_in if not (ROOT / "llmproxy" / each).is_file()] == []
    assert [each for each in promise.tests if not is_there(each)] == []


def test_a_test_that_does_not_exist_is_noticed() -> None:
    """The check can fail: for another file, class or name, and for a function that is no test."""
    assert is_there("tests/docs/test_security_page.py::test_there_are_promises")
    assert is_there("tests/core/test_framing.py::RequestBodies::test_both")
    assert not is_there("tests/core/test_framing.py::RequestBodies::test_bothh")
    assert not is_there("tests/core/test_framing.py::test_both")
    assert not is_there("tests/core/test_nothing.py::RequestBodies::test_both")
    assert not is_there("tests/docs/test_security_page.py::is_there")


def test_a_row_is_read_whole() -> None:
    """All names in a cell count, not the first one only."""
    page = "| promise | kept in | test |\n|---|---|---|\n| It `holds`. | `a.py`, `b.py` | `c.py::d`, `e.py::F::g` |\n"
    assert promises(page) == [Promise("It `holds`.", ("a.py", "b.py"), ("c.py::d", "e.py::F::g"))]
