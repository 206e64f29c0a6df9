"""Runs a command as at a terminal in the project's folder."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent.parent
LIMIT_S: Final = 60
KEYS: Final = ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY", "GROQ_API_KEY")


@dataclass(frozen=True, slots=True)
class Said:
    """How a command ended and what it printed."""

    status: int
    out: str
    err: str


def run(*command: str, **environ: str) -> Said:
    """Run to the end. No provider's key and nothing of an outer make is in the environment, unless given."""
    left_out = {*KEYS, "MAKEFLAGS", "MAKELEVEL", "MFLAGS", "PORT", "UPSTREAM"}
    kept = {name: value for name, value in os.environ.items() if name not in left_out}
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=kept | environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    return Said(done.returncode, done.stdout, done.stderr)


def script(name: str, *arguments: str, **environ: str) -> Said:
    """Run one of the scripts with the Python that runs this."""
    return run(sys.executable, f"scripts/{name}", *arguments, **environ)
