"""JSON documents with some values replaced, removed or added: what a provider might write, and what it would not."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy


def every_change(document: Any, names: Sequence[str], values: Sequence[Any]) -> Iterator[bytes]:
    """The JSON text of the document after each change of one member: replaced by each value, or added."""

    def changed(at: Any) -> Iterator[bytes]:
        for key in list(at) if isinstance(at, dict) else range(len(at)):
            before = at[key]
            for value in values:
                at[key] = value
                yield json.dumps(document).encode()
            at[key] = before
            if isinstance(before, dict | list):
                yield from changed(before)
        if isinstance(at, dict):
            for name in (name for name in names if name not in at):
                for value in values:
                    at[name] = value
                    yield json.dumps(document).encode()
                del at[name]

    document = copy.deepcopy(document)
    yield from changed(document)


@st.composite
def mutated(draw: DrawFn, documents: SearchStrategy[Any], names: Sequence[str], values: Sequence[Any]) -> bytes:
    """The JSON text of one of the documents, with up to three changes. names: what a member that is added is called."""
    document = copy.deepcopy(draw(documents))
    for _ in range(draw(st.integers(0, 3))):
        _change(draw, document, names, values)
    return json.dumps(document).encode()


def _change(draw: DrawFn, at: Any, names: Sequence[str], values: Sequence[Any]) -> None:
    while True:
        keys: Sequence[Any] = sorted(at) if isinstance(at, dict) else range(len(at))
        key = draw(st.sampled_from(keys)) if keys else None
        if key is not None and isinstance(at[key], dict | list) and draw(st.integers(0, 3)):
            at = at[key]
            continue
        what = draw(st.sampled_from(("replace", "replace", "remove", "add")))
        value = copy.deepcopy(draw(st.sampled_from(values)))
        if what == "add" and isinstance(at, dict):
            at[draw(st.sampled_from(names))] = value
        elif what == "remove" and key is not None:
            del at[key]
        elif key is not None:
            at[key] = value
        return
