"""What to say about a key that does not exist: where it belongs, or what was probably meant.

The rule: a key that is known elsewhere was misplaced, most often by its indentation; only then is it taken
for a misspelling, first of a key in the same place, then of any.
"""

from collections.abc import Iterable
from difflib import get_close_matches

from llmproxy.config.complaint import Path, shown_path
from llmproxy.config.schema import Section, every_key
from llmproxy.providers import CATALOG


def unknown_key(key: str, section: Section, path: Path) -> str:
    """The complaint about ``key``, which is not in ``section``. ``path``: where that section is."""
    known = [known_path for known_path, _ in every_key()]
    # The user's names for a provider are no keys, but the built-in ones are known just as well.
    known += [("providers", name) for name in CATALOG]
    if homes := [one[:-1] for one in known if one[-1] == key]:
        return f"misplaced key: it belongs {_places(homes)}"
    if (dotted := tuple(key.split("."))) in known:
        return f"unknown key: write it in levels, {dotted[-1]!r} under {'.'.join(dotted[:-1])!r}"
    if near := get_close_matches(key, section.keys, 1):
        return f"unknown key; did you mean {shown_path((*path, near[0]))}?"
    if near := get_close_matches(key, [one[-1] for one in known], 1, cutoff=0.8):
        return f"unknown key; did you mean {' or '.join(_shown(one for one in known if one[-1] == near[0]))}?"
    return f"unknown key; the keys here are {', '.join(section.keys)}"


def _places(homes: list[Path]) -> str:
    shown = [f"under {one}" if one else "at the top of the file" for one in _shown(homes)]
    return " or ".join(shown)


def _shown(paths: Iterable[Path]) -> list[str]:
    return [shown_path(path) for path in paths]
