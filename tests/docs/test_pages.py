"""What the pages name is there: links, files, make targets, configuration keys, fields, reasons, examples."""

import ast
import dataclasses
import re
import shutil
import subprocess
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pytest

from llmproxy.config import ConfigError, load
from llmproxy.config.model import Server, Settings, Upstream
from llmproxy.core.end import EndReason
from llmproxy.core.errors import ERROR_CLASSES
from llmproxy.observe.access import ACCESS_FIELDS
from tests.docs.pages import PAGES, README, ROOT, Fence, anchors, fences, links, name_of, prose, words

DOCS: Final = ROOT / "docs"
SECTIONS: Final = frozenset(each.name for each in dataclasses.fields(Settings))
_KEY: Final = re.compile(r"([a-z_]+)(?:\.[a-z_<>]+)+(?=$|: )")
_FILE: Final = re.compile(r"[\w./-]+/[\w.-]+\.(?:py|mjs|md|yml|toml|txt|sh)$")
_MAKE: Final = re.compile(r"\bmake ([a-z][a-z-]*)")
_EXAMPLES: Final = sorted((ROOT / "examples").glob("*.py")) + sorted((ROOT / "examples").glob("*.mjs"))

# Files that a page tells its reader to write.
_TO_BE_WRITTEN: Final = frozenset({"llmproxy/providers/mistral.py"})


def ids(page: Path) -> str:
    return name_of(page)


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_every_link_leads_somewhere(page: Path) -> None:
    """A click on a link of the documentation ends at a file, and at the heading that it names."""
    broken = []
    for link in links(page):
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_every_file_that_is_named_exists(page: Path) -> None:
    """Who looks for a file that a page names finds it: below the project, the package, or beside the page."""
    named = {each for each in words(page) if _FILE.match(each)} - _TO_BE_WRITTEN
    places = (ROOT, ROOT / "llmproxy", page.parent)
    assert sorted(each for each in named if not any((place / each).exists() for place in places)) == []


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_every_make_target_that_is_named_exists(page: Path) -> None:
    """Each `make ...` of a page can be typed."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = {target for line in re.findall(r"^([a-z][a-z -]*):", makefile, re.M) for target in line.split()}
    code = "\n".join([*words(page), *(each.text for each in fences(page))])
    assert sorted(set(_MAKE.findall(code)) - targets) == []


def is_a_key(path: str) -> bool:
    """Whether a dotted path leads to something in the configuration; ``<name>`` stands for any name."""
    kind: Any = Settings
    for part in path.split("."):
        if typing.get_origin(kind) is Mapping:
            kind = typing.get_args(kind)[1]
        elif dataclasses.is_dataclass(kind) and part in {each.name for each in dataclasses.fields(kind)}:
            kind = typing.get_type_hints(kind)[part]
        else:
            return False
    return True


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_every_configuration_key_that_is_named_exists(page: Path) -> None:
    """A key copied from a page is understood by the program."""
    named = {found[0] for each in words(page) if (found := _KEY.match(each)) and found[1] in SECTIONS}
    assert sorted(each for each in named if not is_a_key(each)) == []


def test_a_key_that_does_not_exist_is_noticed() -> None:
    """The check of the keys can fail."""
    assert is_a_key("features.rate_limiting.overrides.per_user.<name>.tokens_per_day")
    assert is_a_key("providers.<name>.base_url")
    assert not is_a_key("server.pool_size")
    assert not is_a_key("log.level.info")


@pytest.mark.parametrize("fence", [each for page in PAGES for each in fences(page, "yaml")], ids=str)
def test_every_configuration_that_is_shown_is_accepted(fence: Fence, tmp_path: Path) -> None:
    """A configuration copied from a page loads, or is refused with the words that the page promises."""
    file = tmp_path / "copied.yml"
    file.write_text(fence.text, encoding="utf-8")
    if fence.mark.startswith("refused: "):
        with pytest.raises(ConfigError, match=re.escape(fence.mark.removeprefix("refused: "))):
            load(environ={}, cwd=str(tmp_path), config_file=str(file))
    else:
        assert load(environ={}, cwd=str(tmp_path), config_file=str(file)).files


def rows(page: Path, heading: str) -> list[str]:
    """The first column of the tables in a section, without its backticks."""
    section = prose(page).partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"^\| `([^`]+)` \|", section.partition("\n|---")[2], re.M)


def test_the_access_event_is_described_field_by_field() -> None:
    """docs/logging.md has every field of the access event, in its order, and no other."""
    assert rows(DOCS / "logging.md", "The access event") == list(ACCESS_FIELDS)


def test_every_end_reason_is_described() -> None:
    """Who finds an end reason in a log finds it in docs/operations.md, and the way there in docs/logging.md."""
    assert sorted(rows(DOCS / "operations.md", "End reasons")) == sorted(EndReason)
    assert "operations.md#end-reasons" in set(links(DOCS / "logging.md"))


@pytest.mark.parametrize("reason", [each for each in EndReason if each is not EndReason.OK], ids=str)
def test_the_status_of_every_end_reason_is_told(reason: EndReason) -> None:
    """The statuses beside an end reason in docs/operations.md are those that callers get."""
    row = next(line for line in prose(DOCS / "operations.md").splitlines() if line.startswith(f"| `{reason}` |"))
    got = {int(each) for each in re.findall(r"\d{3}", row.split("|")[2])}
    assert got == {each.status for each in ERROR_CLASSES.values() if each.end_reason is reason}


def test_every_deadline_is_in_the_operators_page() -> None:
    """Who wonders which time cut a request finds all of them side by side in docs/operations.md."""
    named = set(words(DOCS / "operations.md"))
    times = {
        f"{section}.{each.name}"
        for section, kind in (("server", Server), ("upstream", Upstream))
        for each in dataclasses.fields(kind)
        if each.name.endswith("_s")
    }
    assert len(times) > 8
    assert sorted(times - named) == []


def test_every_error_class_that_is_named_exists() -> None:
    """The error classes in docs/operations.md are those of the program."""
    named = {
        each for each in words(DOCS / "operations.md") if re.match(r"upstream_(name|connect|tls|first)_\w+$", each)
    }
    assert named and named <= set(ERROR_CLASSES)


def test_every_switch_of_fidelity_is_described() -> None:
    """docs/fidelity.md names each switch that there is, so that nothing is changed in secret."""
    switches = {f"fidelity.{name}" for name in Settings().fidelity.__slots__}
    named = {each.partition(":")[0] for each in words(DOCS / "fidelity.md")}
    assert sorted((switches | {"identity.strip", "cors.enabled"}) - named) == []


def test_every_page_is_in_the_index() -> None:
    """Who opens docs/ finds every page from its index."""
    listed = {link.partition("#")[0] for link in links(DOCS / "README.md")}
    assert {page.name for page in DOCS.glob("*.md")} - {"README.md"} <= listed


@pytest.mark.parametrize("fence", [each for page in PAGES for each in fences(page, "python")], ids=str)
def test_python_that_is_shown_compiles(fence: Fence) -> None:
    """Python copied from a page is Python."""
    compile(fence.text, str(fence), "exec")


def parses_in_node(file: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed: the JavaScript of the documentation is not parsed")
    done = subprocess.run([node, "--check", str(file)], capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("fence", [each for page in PAGES for each in fences(page, "js")], ids=str)
def test_javascript_that_is_shown_parses(fence: Fence, tmp_path: Path) -> None:
    """JavaScript copied from a page is JavaScript."""
    file = tmp_path / "copied.mjs"
    file.write_text(fence.text, encoding="utf-8")
    parses_in_node(file)


@pytest.mark.slow
@pytest.mark.parametrize("example", _EXAMPLES, ids=ids)
def test_an_example_is_a_program_that_can_be_pointed_at_the_proxy(example: Path) -> None:
    """Each example parses, says what it needs, and takes the proxy's address from the environment."""
    text = example.read_text(encoding="utf-8")
    assert "LLMPROXY_URL" in text
    if example.suffix == ".py":
        assert "pip install " in (ast.get_docstring(ast.parse(text)) or "")
    else:
        assert "npm install " in text.partition("\n")[0]
        parses_in_node(example)


def test_every_sdk_has_an_example() -> None:
    """Four SDKs for Python and three for Node, and the README of the examples lists each."""
    assert len(_EXAMPLES) == 7
    assert {each.name for each in _EXAMPLES} <= set(links(ROOT / "examples" / "README.md"))


def test_the_readme_shows_first_what_a_bare_machine_can_do() -> None:
    """The first commands of the README are make demo and make test."""
    first = fences(README)[0].text
    assert re.findall(r"^make \w+", first, re.M) == ["make demo", "make test"]
