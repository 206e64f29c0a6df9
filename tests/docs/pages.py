"""The pages of the documentation and what stands in them: fences, links, words in backticks."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent.parent
README: Final = ROOT / "README.md"
PAGES: Final = (
    README,
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "examples" / "README.md",
    ROOT / "benchmarks" / "README.md",
)

# A comment in the line before a fence says what the test does with it; readers of the page do not see it.
_FENCE: Final = re.compile(r"(?:^<!-- (?P<mark>[^\n]*?) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S)
_LINK: Final = re.compile(r"\[[^\]\n]*\]\(([^)\s]+)\)")
_WORD: Final = re.compile(r"`([^`\n]+)`")
_HEADING: Final = re.compile(r"^#+ +(.+)$", re.M)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fence:
    """A block of code: where it stands, what it is written in, and the mark in front of it (or "")."""

    page: str
    line: int
    language: str
    mark: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def fences(page: Path, language: str = "") -> list[Fence]:
    """The fences of a page, all or those in one language."""
    text = page.read_text(encoding="utf-8")
    found = (
        Fence(
            page=name_of(page),
            line=text.count("\n", 0, match.start("language")) + 1,
            language=match["language"],
            mark=match["mark"] or "",
            text=match["text"],
        )
        for match in _FENCE.finditer(text)
    )
    return [each for each in found if not language or each.language == language]


def prose(page: Path) -> str:
    """A page without its fences."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def links(page: Path) -> Iterator[str]:
    """The targets of the links that lead to other files of the project, or within the page."""
    return (each for each in _LINK.findall(prose(page)) if "://" not in each)


def words(page: Path) -> list[str]:
    """What stands in backticks."""
    return _WORD.findall(prose(page))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in _HEADING.findall(prose(page))}
