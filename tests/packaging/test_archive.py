"""What lies in the wheel and in the source archive, and what does not."""

import tarfile
import zipfile

import pytest
from twisted.trial.unittest import SynchronousTestCase

from tests.packaging.workshop import ROOT, workshop

pytestmark = pytest.mark.slow


def in_archive() -> set[str]:
    """The files of the source archive, without the folder that is named for the version."""
    with tarfile.open(workshop().archive) as archive:
        return {each.name.partition("/")[2] for each in archive.getmembers() if each.isfile()}


def in_wheel() -> set[str]:
    """The files of the wheel."""
    with zipfile.ZipFile(workshop().wheel) as wheel:
        return set(wheel.namelist())


class ContentTests(SynchronousTestCase):
    """The files that a user gets."""

    def test_the_source_archive_is_the_whole_project(self) -> None:
        """Who has only the source archive can run the demo and the tests, and build again."""
        for folder, pattern in (
            ("configs", "*.yml"),
            ("tests", "*.py"),
            ("scripts", "*.py"),
            ("requirements", "*.txt"),
        ):
            expected = {
                str(path.relative_to(ROOT))
                for path in (ROOT / folder).rglob(pattern)
                if not any(part.startswith(".") or part == "node_modules" for part in path.parts[1:])
            }
            self.assertEqual(expected - in_archive(), set())
        top = {"Makefile", "setup.py", "pyproject.toml", "LICENSE", "README.md", ".dockerignore"}
        self.assertEqual(top - in_archive(), set())

    def test_the_wheel_holds_every_module(self) -> None:
        """No module is forgotten, and the plugin, the types and the build note are there."""
        ours = {str(path.relative_to(ROOT)) for path in (ROOT / "llmproxy").rglob("*.py")}
        extra = {"llmproxy/py.typed", "llmproxy/_build.py", "twisted/plugins/llmproxy_plugin.py"}
        self.assertEqual((ours | extra) - in_wheel(), set())

    def test_the_wheel_holds_nothing_else(self) -> None:
        """No tests, no configuration and no package of Twisted's gets into anybody's site-packages."""
        strangers = {
            name
            for name in in_wheel()
            if not name.startswith(("llmproxy/", "llmproxy-")) and name != "twisted/plugins/llmproxy_plugin.py"
        }
        self.assertEqual(strangers, set())
