"""The plan of the house, checked against the sources: who may import whom, and what no room may hold.

The tables below are the plan (docs/architecture.md tells it in words). A new room fails these tests until
somebody has said here where it stands.
"""

import ast
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Final

from twisted.trial.unittest import SynchronousTestCase

ROOT: Final = Path(__file__).resolve().parent.parent
PACKAGE: Final = ROOT / "llmproxy"

# A room (the first name under llmproxy) and what it may import of ours, besides itself. "config.model" is the
# frozen configuration alone; "config" is all of the room.
ARROWS: Final = MappingProxyType(
    {
        here: frozenset(allowed.split())
        for here, allowed in (
            ("__init__", ""),
            ("__main__", "tap commands pricing simulate state config core version"),
            ("tap", "service assembly lifecycle wire simulate config observe version"),
            ("service", "assembly lifecycle web config.model"),
            ("lifecycle", "assembly web config"),
            ("assembly", "web accounting pricing upstream wire state config.model config.paths observe core"),
            ("admin", "upstream wire providers state config.model observe core version"),
            ("web", "accounting upstream wire providers state config.model observe core version"),
            ("accounting", "config.model observe core"),
            ("pricing", "core"),
            ("commands", "state pricing config observe core"),
            ("upstream", "wire config.model observe core version"),
            ("wire", "config.model observe core"),
            ("state", "config.model observe core"),
            ("simulate", "wire observe core"),
            ("config", "providers pricing core"),
            ("providers", "core"),
            ("observe", ""),
            ("core", ""),
            ("version", ""),
        )
    }
)

# The core is told the time and given the bytes. What would fetch either by itself is out.
CORE_MAY_NOT_IMPORT: Final = frozenset(
    {
        "asyncio",
        "datetime",
        "http",
        "os",
        "pathlib",
        "select",
        "selectors",
        "signal",
        "socket",
        "ssl",
        "subprocess",
    }
    | {"threading", "time", "urllib.request"}
)
# Files of the core that hold no rule: a package's docstring, and a protocol for others to follow.
RULELESS: Final = frozenset({"__init__.py", "shape.py"})
CORE_PACKAGES: Final = frozenset({"msgspec"})

# Folders of tests outside pyproject's testpaths: `make test` runs each in a process of its own.
OWN_RUNS: Final = frozenset({"live", "sdk"})


@dataclass(frozen=True, slots=True)
class Import:
    """One import: the full dotted name that is asked for, where, and whether only inside a function."""

    name: str
    line: int
    lazy: bool


def modules(folder: Path = PACKAGE) -> Iterator[Path]:
    """Every Python file of ours below ``folder``, in a stable order. ``_build.py`` is written by a build."""
    return (path for path in sorted(folder.rglob("*.py")) if path.name != "_build.py")


def files_of_tests() -> list[Path]:
    """The files of our tests; the environments that tests/sdk makes for itself hold others' tests."""
    found = sorted((ROOT / "tests").rglob("test_*.py"))
    return [path for path in found if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)]


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def where(path: Path, line: int = 0) -> str:
    return f"{path.relative_to(ROOT)}:{line}" if line else str(path.relative_to(ROOT))


def room(path: Path) -> str:
    """``core`` for llmproxy/core/..., ``tap`` for llmproxy/tap.py."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> list[Import]:
    """Every import of a file. ``from a.b import c`` counts as ``a.b.c``: c may be a module."""
    found: list[Import] = []

    def visit(node: ast.AST, lazy: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, node.lineno, lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.extend(Import(f"{node.module or ''}.{alias.name}", node.lineno, lazy) for alias in node.names)
        inside = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for child in ast.iter_child_nodes(node):
            visit(child, inside)

    visit(tree(path), False)
    return found


def is_or_is_in(name: str, parents: frozenset[str]) -> bool:
    """Whether a dotted name is one of ``parents`` or lies inside one."""
    return any(name == parent or name.startswith(f"{parent}.") for parent in parents)


class ArrowsTests(SynchronousTestCase):
    """Which room may know which."""

    def test_each_room_imports_only_what_stands_to_its_right(self) -> None:
        """A reader who opens a file never has to know a layer that stands above it."""
        broken: list[str] = []
        for path in modules():
            here = room(path)
            allowed = ARROWS.get(here)
            if allowed is None:
                broken.append(f"{where(path)}: the room {here!r} has no place in ARROWS")
                continue
            broken.extend(
                f"{where(path, line)}: {here} imports {name}"
                for name, line, _ in ((each.name, each.line, each.lazy) for each in imports(path))
                if name.startswith("llmproxy.") and not is_or_is_in(name.removeprefix("llmproxy."), allowed | {here})
            )
        self.assertEqual(broken, [])

    def test_the_plan_itself_has_no_circle(self) -> None:
        """The table above is an order: from no room do the arrows lead back to it."""

        def reachable(start: str) -> set[str]:
            seen: set[str] = set()
            todo = [start]
            while todo:
                for name in ARROWS[todo.pop()]:
                    target = name.partition(".")[0]
                    if target not in seen:
                        seen.add(target)
                        todo.append(target)
            return seen

        self.assertEqual([name for name in ARROWS if name in reachable(name)], [])

    def test_the_core_needs_the_standard_library_and_msgspec_only(self) -> None:
        """The rules of the protocol can be read, tested and reused without Twisted."""
        allowed = sys.stdlib_module_names | CORE_PACKAGES | {"llmproxy"}
        self.assertEqual(
            [
                f"{where(path, each.line)}: {each.name}"
                for path in modules(PACKAGE / "core")
                for each in imports(path)
                if each.name.partition(".")[0] not in allowed
            ],
            [],
        )

    def test_the_core_has_no_clock_and_no_socket(self) -> None:
        """Whatever the core decides depends on its arguments alone, so a test can replay any moment."""
        self.assertEqual(
            [
                f"{where(path, each.line)}: {each.name}"
                for path in modules(PACKAGE / "core")
                for each in imports(path)
                if is_or_is_in(each.name, CORE_MAY_NOT_IMPORT)
            ],
            [],
        )

    def test_only_the_tap_imports_the_reactor(self) -> None:
        """`twistd --reactor=...` works, and every other part can be run in memory."""
        importers = {
            where(path)
            for path in modules()
            for each in imports(path)
            if is_or_is_in(each.name, frozenset({"twisted.internet.reactor"}))
        }
        self.assertEqual(importers, {"llmproxy/tap.py"})

    def test_the_command_imports_its_parts_when_it_needs_them(self) -> None:
        """`llmproxy --version` and `llmproxy key-id` start at once, and `run` chooses its reactor first."""
        heavy = frozenset({"llmproxy.tap", "llmproxy.service", "llmproxy.simulate", "llmproxy.web", "twisted"})
        path = PACKAGE / "__main__.py"
        self.assertEqual(
            [
                f"{where(path, each.line)}: {each.name}"
                for each in imports(path)
                if not each.lazy and is_or_is_in(each.name, heavy)
            ],
            [],
        )

    def test_the_plugin_names_the_tap_and_loads_nothing(self) -> None:
        """`twistd --help` in any project on this machine does not load the whole proxy."""
        path = ROOT / "twisted" / "plugins" / "llmproxy_plugin.py"
        self.assertEqual([each.name for each in imports(path) if each.name.startswith("llmproxy")], [])


class RoomsTests(SynchronousTestCase):
    """What each file holds."""

    def test_the_twisted_folders_are_no_packages(self) -> None:
        """From the project's folder `import twisted` still finds the real Twisted."""
        self.assertEqual(list((ROOT / "twisted").rglob("__init__.py")), [])

    def test_every_module_opens_with_what_it_is_for(self) -> None:
        """Each file says in its first lines why it exists."""
        paths = [*modules(), *modules(ROOT / "scripts"), *modules(ROOT / "twisted")]
        self.assertEqual([where(path) for path in paths if not ast.get_docstring(tree(path))], [])

    def test_an_init_file_holds_no_code(self) -> None:
        """Nothing happens in an `__init__.py`: a docstring, and names handed on."""
        broken: list[str] = []
        for path in modules():
            if path.name != "__init__.py":
                continue
            for node in tree(path).body[1:]:
                names_all = isinstance(node, ast.Assign) and [ast.unparse(each) for each in node.targets] == ["__all__"]
                if not (names_all or isinstance(node, ast.Import | ast.ImportFrom)):
                    broken.append(where(path, node.lineno))
        self.assertEqual(broken, [])

    def test_the_core_keeps_nothing_between_calls(self) -> None:
        """Two proxies in one process never share a list, a dict or a set of the core's."""
        makers = {"list", "dict", "set", "bytearray", "defaultdict", "OrderedDict", "Counter", "deque"}
        kinds = ast.List | ast.Dict | ast.Set | ast.ListComp | ast.DictComp | ast.SetComp
        broken: list[str] = []
        for path in modules(PACKAGE / "core"):
            for node in tree(path).body:
                if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
                    continue
                if ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.target) == "__all__":
                    continue
                made = ast.unparse(node.value.func).split(".")[-1] if isinstance(node.value, ast.Call) else ""
                if isinstance(node.value, kinds) or made in makers:
                    broken.append(where(path, node.lineno))
            broken.extend(where(path, node.lineno) for node in ast.walk(tree(path)) if isinstance(node, ast.Global))
        self.assertEqual(broken, [])

    def test_every_rule_of_the_core_has_its_own_tests(self) -> None:
        """core/framing.py is proven by tests/core/test_framing.py, and so on for each file, in folders likewise."""
        names = [path.relative_to(PACKAGE) for path in modules(PACKAGE / "core") if path.name not in RULELESS]
        untested = [str(name) for name in names if not (ROOT / "tests" / name).with_name(f"test_{name.name}").exists()]
        self.assertEqual(untested, [])


class TestsTests(SynchronousTestCase):
    """The tests themselves."""

    def test_no_folder_of_tests_is_forgotten(self) -> None:
        """Whoever adds a folder of tests sees them run."""
        pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
        patterns = pyproject["tool"]["pytest"]["ini_options"]["testpaths"]
        listed = {path.name for pattern in patterns for path in ROOT.glob(pattern)}
        holding = {path.relative_to(ROOT / "tests").parts[0] for path in files_of_tests()}
        self.assertEqual(holding - OWN_RUNS - listed, set())

    def test_every_folder_of_tests_is_a_package(self) -> None:
        """Files of one name in two folders do not hide each other, and trial finds them all."""
        folders = {path.parent for path in files_of_tests()}
        self.assertEqual([where(each) for each in sorted(folders) if not (each / "__init__.py").exists()], [])

    def test_every_test_says_what_it_proves(self) -> None:
        """A failing test tells a user what no longer works, in words."""
        self.assertEqual(
            [
                f"{where(path, node.lineno)}: {node.name}"
                for path in files_of_tests()
                for node in ast.walk(tree(path))
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
                and node.name.startswith("test_")
                and not ast.get_docstring(node)
            ],
            [],
        )
