"""The fuzz for as long as you like: `python -m tests.fuzz.longer SECONDS`, or `make fuzz SECONDS=600`.

Round after round with a seed of its own, each many times what the suite tries. It ends when the time is over, or with
the first failure: that example is kept in `.hypothesis`, and every later run tries it first.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from time import monotonic

TIMES = 4
"""How many times what the suite tries one round tries: about a minute of one processor."""


def main(seconds: float) -> int:
    """Run for about `seconds`: no round begins after them. Returns the exit code."""
    began = monotonic()
    # In CI hypothesis draws the same examples again and again, and keeps none.
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "TF_BUILD")}
    rounds = 0
    while rounds == 0 or monotonic() - began < seconds:
        rounds += 1
        seed = secrets.randbits(32)
        left = max(seconds - (monotonic() - began), 1.0)
        times = max(1, min(TIMES, int(left / 20)))
        environment["FUZZ_TIMES"] = str(times)
        _say(f"round {rounds}: seed {seed}, {times} times the suite's examples")
        command = [
            sys.executable,
            "-b",
            "-m",
            "pytest",
            "-p",
            "no:twisted",
            "-q",
            f"--hypothesis-seed={seed}",
            "tests/fuzz",
        ]
        if rounds > 1:  # the corpus is the same each time
            command.append("--ignore=tests/fuzz/test_corpus.py")
        code = subprocess.run(command, env=environment, check=False).returncode
        if code:
            _say(f"found something with seed {seed}; again: FUZZ_TIMES={times} {' '.join(command)}")
            return code
    _say(f"{rounds} rounds in {monotonic() - began:.0f} s, and nothing found")
    return 0


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else 600.0))
