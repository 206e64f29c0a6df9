"""Builds and environments for the tests of what is shipped.

All is done for real, on a copy of the sources with a git commit of its own, and nothing is fetched: the
new environments borrow the packages that are installed here. Twisted itself is copied, not linked, because a
wheel of ours puts its plugin into Twisted's own folder.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
from functools import cache
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent.parent

FOLDERS: Final = (
    "benchmarks",
    "configs",
    "docs",
    "examples",
    "llmproxy",
    "requirements",
    "scripts",
    "tests",
    "twisted",
)
PROGRAM_LIMIT_S: Final = 60

# The twistd script, for an environment that borrows Twisted and so has no script of it. -P: as with the real
# script, the current folder is not searched for modules.
TWISTD: Final = (
    "-P",
    "-c",
    "import sys; sys.argv[0] = 'twistd'; from twisted.scripts.twistd import run; run()",
)


def environment_variables() -> dict[str, str]:
    """Ours, but none that leads back to the project's own checkout or changes what the proxy does."""
    left_out = ("PYTHON", "GIT_", "LLM_PROXY_", "ENVIRONMENT", "PORT", "LOG_")
    return {name: value for name, value in os.environ.items() if not name.startswith(left_out)}


def run(*command: str | Path, cwd: Path) -> str:
    """What a program prints, errors included; a failing program fails the test and shows what it said."""
    done = subprocess.run(
        [str(each) for each in command],
        cwd=cwd,
        env=environment_variables(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PROGRAM_LIMIT_S,
        check=False,
    )
    if done.returncode != 0:
        raise AssertionError(f"{[str(each) for each in command]} ended with {done.returncode}:\n{done.stdout}")
    return done.stdout


class Workshop:
    """A clean copy of the project with one commit, and what is built from it."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="llmproxy-packaging-")
        self._path = Path(self._folder.name)
        self.sources = self._path / "sources"
        self.elsewhere = self._path / "elsewhere"
        self.elsewhere.mkdir()
        self._copy_sources()
        self.commit = self._commit_sources()
        dist = self._path / "dist"
        # Without isolation: with the pinned setuptools. The wheel is made from the archive, far from any git.
        run(
            sys.executable,
            "-m",
            "build",
            "--no-isolation",
            "--outdir",
            dist,
            self.sources,
            cwd=self.elsewhere,
        )
        (self.wheel,) = dist.glob("*.whl")
        (self.archive,) = dist.glob("*.tar.gz")

    def _copy_sources(self) -> None:
        self.sources.mkdir()
        unwanted = shutil.ignore_patterns("__pycache__", "node_modules", ".venv*", "_build.py", "dropin.cache")
        for name in FOLDERS:
            if (ROOT / name).exists():
                shutil.copytree(ROOT / name, self.sources / name, ignore=unwanted)
        for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "Makefile"):
            shutil.copy2(ROOT / name, self.sources)
        for name in ("README.md", "CHANGELOG.md", "LICENSE", ".gitignore", ".dockerignore"):
            shutil.copy2(ROOT / name, self.sources)

    def _commit_sources(self) -> str:
        who = (
            "-c",
            "user.name=A Tester",
            "-c",
            "user.email=tester@example.com",
            "-c",
            "commit.gpgsign=false",
        )
        run("git", "init", "--quiet", cwd=self.sources)
        run("git", "add", "--all", cwd=self.sources)
        run("git", *who, "commit", "--quiet", "--message", "A release", cwd=self.sources)
        return run("git", "rev-parse", "--short=12", "HEAD", cwd=self.sources).strip()

    def environment(self, name: str, *what: str | Path) -> Path:
        """The bin folder of a new virtual environment in which pip has installed ``what``."""
        folder = self._path / name
        venv.create(folder, symlinks=True)
        libraries = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)}))
        for path in Path(sysconfig.get_path("purelib")).iterdir():
            if path.name == "twisted":
                unwanted = shutil.ignore_patterns("__pycache__", "dropin.cache", "llmproxy_plugin.py", "test")
                shutil.copytree(path, libraries / path.name, ignore=unwanted)
            elif "llmproxy" not in path.name and path.suffix != ".pth":
                (libraries / path.name).symlink_to(path)
        python = folder / "bin" / "python"
        offline = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index")
        run(sys.executable, "-m", "pip", "--python", python, "install", *offline, *what, cwd=self.sources)
        return folder / "bin"


@cache
def workshop() -> Workshop:
    """The one workshop of this run; its folder goes when the process ends."""
    return Workshop()
