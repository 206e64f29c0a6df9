"""What is said when something is wrong, and where it is. All of it at once, one line each.

The rule: a complaint shows no value that may be a secret, and no key name that looks like one. It is a single
line whatever stood in the file.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

Path = tuple[str, ...]

# The shapes of keys of the built-in providers, and anything of the length of a key that has no word in it.
# They get into key names through `overrides.per_key`, and into wrong places by wrong indentation.
_LOOKS_SECRET = re.compile(r"(?:sk-|gsk_|AIza|AQ\.|Bearer\s|\$2[aby]\$)|(?=.*\d)[A-Za-z0-9_-]{32,}")


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where something was written: ``configs/dev.yml:12``, or an environment variable (line 0)."""

    file: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


@dataclass(frozen=True, slots=True)
class Complaint:
    """One thing that is wrong. ``path`` may be empty: then the whole file is meant."""

    place: Place
    path: Path
    message: str

    def __str__(self) -> str:
        parts = (str(self.place), shown_path(self.path), self.message)
        return one_line(": ".join(part for part in parts if part))


class ConfigError(Exception):
    """The configuration cannot be used. ``str()`` is one complaint per line, in the order of the files."""

    def __init__(self, complaints: Iterable[Complaint]) -> None:
        # One mistake may be met twice (in its own file, and in the sum of the files): say it once.
        self.complaints = tuple(dict.fromkeys(complaints))
        super().__init__("\n".join(str(each) for each in self.complaints))


def shown_path(path: Path) -> str:
    """``("upstream", "pool_size")`` as ``upstream.pool_size``."""
    # What stands below per_key is a key as often as the name of one.
    names = [shown_name(name) for name in path]
    if "per_key" in path[:-1]:
        names[path.index("per_key") + 1] = "***"
    return ".".join(names).replace(".[", "[")


def shown_name(name: str) -> str:
    """A name as it may be shown: ``***`` for what looks like a provider's key."""
    return "***" if _LOOKS_SECRET.match(name) else name


def one_line(text: str) -> str:
    """``text`` with everything that cannot be printed written as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
