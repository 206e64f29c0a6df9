"""What is another way in one configuration than in another, in lines for the log.

The rule is that of ``show-config``: a secret is ``***``, before and after.
"""

from __future__ import annotations

from dataclasses import dataclass

from llmproxy.config.complaint import Path, one_line, shown_path
from llmproxy.config.loading import Loaded
from llmproxy.config.report import MASK, rows, value_text
from llmproxy.config.schema import SCHEMA

_ABSENT = object()


@dataclass(frozen=True, slots=True)
class Change:
    """One key that is another way; the text is ``upstream.pool_size: 256 -> 16``."""

    path: Path
    text: str


def difference(old: Loaded, new: Loaded) -> list[Change]:
    """Every key that is another way in ``new``, and every provider that came or went.

    A provider's own upstream settings are left out where they only follow those for all.
    """
    before, after = _flat(old), _flat(new)
    changes = [
        Change(path, one_line(f"{shown_path(path)}: {_of(path, before)} -> {_of(path, after)}"))
        for path in dict.fromkeys((*before, *after))
        if before.get(path, _ABSENT) != after.get(path, _ABSENT) and not _follows(path, before, after)
    ]
    ours, theirs = old.config.providers, new.config.providers
    for name in (name for name in theirs if name not in ours):
        changes.append(Change(("providers", name), f"the provider {name} is added"))
    for name in (name for name in ours if name not in theirs):
        changes.append(Change(("providers", name), f"the provider {name} is removed"))
    return changes


_Flat = dict[Path, tuple[bool, object]]


def _flat(loaded: Loaded) -> _Flat:
    """Every path with whether it is a secret, and its value."""
    all_rows = rows(SCHEMA, loaded.settings, loaded.found, (), loaded)
    return {path: (secret, value) for path, secret, value, _ in all_rows}


def _of(path: Path, flat: _Flat) -> str:
    if path not in flat:
        return "(not there)"
    secret, value = flat[path]
    return MASK if secret and value is not None else value_text(value)


def _follows(path: Path, before: _Flat, after: _Flat) -> bool:
    if len(path) != 4 or path[0] != "providers" or path[2] not in ("upstream", "accounting"):
        return False
    for_all = (path[2], path[3])
    return before.get(path) == before[for_all] and after.get(path) == after[for_all]
