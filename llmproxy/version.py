"""Which llmproxy this is: its version, the commit it was built from, and when.

The rule: the version number is written here and nowhere else (the build reads it from this file). Commit and
build time are written by setup.py into ``llmproxy/_build.py`` inside every wheel and source archive. In a
checkout there is no such file, and git is asked, but only when somebody wants to know. This module imports
nothing else of llmproxy: setup.py runs it before anything is installed.
"""

import importlib
import importlib.metadata
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

VERSION: Final = "0.1.0"

UNKNOWN: Final = "unknown"

_GIT_TIMEOUT_S: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """Where the running code comes from. Both fields are text for people and may be ``"unknown"``."""

    commit: str
    """The git commit, 12 characters, with ``-dirty`` behind it when files differed from that commit."""
    time: str
    """When the wheel was built, RFC 3339 in UTC; in a checkout a remark that there was no build."""


def git_commit(root: Path) -> str:
    """The commit of the checkout at ``root``, or ``"unknown"`` where there is no checkout or no usable git.

    ``root`` has to hold ``.git`` itself. Otherwise a copy that lies somewhere below another project's
    checkout would name that project's commit.
    """
    if not (root / ".git").exists():
        return UNKNOWN
    try:
        commit = _git(root, "rev-parse", "--short=12", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return UNKNOWN
    return f"{commit}-dirty" if changed else commit


def build() -> Build:
    """The commit and build time of the code that runs."""
    try:
        made = importlib.import_module("llmproxy._build")
    except ModuleNotFoundError:
        checkout = Path(__file__).resolve().parent.parent
        return Build(commit=git_commit(checkout), time="not built, runs from a checkout")
    return Build(commit=str(made.COMMIT), time=str(made.TIME))


def describe() -> str:
    """Five lines for a person: version, commit, build time, Python, Twisted."""
    here = build()
    return "\n".join(
        (
            f"llmproxy {VERSION}",
            f"Git commit: {here.commit}",
            f"Build time: {here.time}",
            f"Python:     {platform.python_version()} ({platform.python_implementation()})",
            f"Twisted:    {_installed('twisted')}",
        )
    )


def _git(root: Path, *arguments: str) -> str:
    answer = subprocess.run(
        ("git", "-C", str(root), *arguments),
        capture_output=True,
        check=True,
        text=True,
        timeout=_GIT_TIMEOUT_S,
    )
    return answer.stdout.strip()


def _installed(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return UNKNOWN
