"""What goes into the package, and the note of where a build came from. Everything else is in pyproject.toml.

Three things need code:

* the list of packages. ``twisted.plugins`` is named by hand: its folders must not hold an ``__init__.py``
  (they would hide the real Twisted), so no search for packages finds them, and none should.
* ``package_dir``. With it an editable install is a plain path entry. Without it setuptools installs an import
  hook instead, which twistd's search for plugins cannot see.
* ``llmproxy/_build.py``: commit and build time, written into what is built and never into the checkout. A
  source archive carries it on, so that a wheel made from it far from any git still knows its commit.
"""

import os
import runpy
from datetime import UTC, datetime
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

ROOT = Path(__file__).resolve().parent
NOTE = Path("llmproxy", "_build.py")


def packages() -> list[str]:
    """Ours, found by their ``__init__.py``, and the folder where Twisted looks for plugins."""
    return [*find_packages(str(ROOT), include=["llmproxy", "llmproxy.*"]), "twisted.plugins"]


def write_note(target: Path) -> None:
    """Write commit and build time to ``target``; SOURCE_DATE_EPOCH fixes the time for reproducible builds."""
    epoch_s = os.environ.get("SOURCE_DATE_EPOCH")
    made = datetime.fromtimestamp(int(epoch_s), UTC) if epoch_s else datetime.now(UTC)
    commit = runpy.run_path(str(ROOT / "llmproxy" / "version.py"))["git_commit"](ROOT)
    target.unlink(missing_ok=True)  # the archive may hold hard links to the checkout's files
    target.write_text(
        f'"""Written by setup.py when this was built."""\n\nCOMMIT = "{commit}"\nTIME = "{made:%Y-%m-%dT%H:%M:%SZ}"\n',
        encoding="utf-8",
    )


class BuildWithNote(build_py):
    """build_py that adds the note, unless the sources bring one (a source archive does)."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode and not (ROOT / NOTE).exists():
            write_note(Path(self.build_lib) / NOTE)


class SdistWithNote(sdist):
    """sdist that adds the note to the archive, and hands on the one that it was itself unpacked with."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        super().make_release_tree(base_dir, files)
        if not (ROOT / NOTE).exists():
            write_note(Path(base_dir) / NOTE)


setup(
    packages=packages(),
    package_dir={"": "."},
    package_data={"llmproxy": ["py.typed", "pricing/prices.json"]},
    cmdclass={"build_py": BuildWithNote, "sdist": SdistWithNote},
)
