"""Files laid over each other: maps merge, scalars and lists replace, ``null`` takes away what was there.

The rule: what was taken away is back at the built-in default, and each value keeps the line of the file it
came from.
"""

from collections.abc import Iterable

from llmproxy.config.document import Mapping, Node, Scalar


def lay_over(files: Iterable[Mapping]) -> Mapping:
    """The sum of ``files``, the later winning."""
    total: Mapping | None = None
    for file in files:
        total = file if total is None else _merged(total, file)
    if total is None:
        raise ValueError("no files")
    return total


def _merged(below: Mapping, above: Mapping) -> Mapping:
    entries: dict[str, Node] = dict(below.entries)
    for key, node in above.entries.items():
        was = entries.get(key)
        if isinstance(node, Scalar) and node.is_null:
            entries.pop(key, None)
        elif isinstance(was, Mapping) and isinstance(node, Mapping):
            entries[key] = _merged(was, node)
        else:
            entries[key] = node
    return Mapping(above.place, entries)
