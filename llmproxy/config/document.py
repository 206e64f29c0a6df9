"""A YAML file as a tree in which every node knows its line.

PyYAML's own constructor forgets where things stood, lets the second of two equal keys win in silence, and
turns ``12:30`` into 750 and ``010`` into 8. So only its composer is used, and a scalar stays the text that
was written until the schema says what it should be. The rule: nothing is guessed and nothing is lost here;
what does not fit is a complaint with its line.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from llmproxy.config.complaint import Complaint, Path, Place, shown_name

_NULLS: Final = frozenset(("", "~", "null", "Null", "NULL"))

# What YAML itself gives to a value. Any other tag was written by hand, and asks for something that is not
# here.
_TAGS: Final = frozenset(
    f"tag:yaml.org,2002:{name}"
    for name in ("str", "int", "float", "bool", "null", "timestamp", "value", "merge", "seq", "map")
)

# Files are written by people. Deeper than this is a mistake. Far deeper would end the process: PyYAML's composer for
# libyaml calls itself for each level, and nothing bounds the stack that it takes.
_MAX_DEPTH: Final = 32
_TOO_DEEP: Final = f"nested more than {_MAX_DEPTH} levels deep"

# Aliases let a few lines stand for a great many nodes. No honest configuration comes near this.
_MAX_NODES: Final = 100_000


@dataclass(frozen=True, slots=True)
class Scalar:
    """One value as it was written. ``plain``: without quotes, so perhaps a number, a boolean or null."""

    place: Place
    text: str
    plain: bool = True

    @property
    def is_null(self) -> bool:
        return self.plain and self.text in _NULLS


@dataclass(frozen=True, slots=True)
class Sequence:
    """A list."""

    place: Place
    items: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Mapping:
    """A map. ``place`` is where its key stood."""

    place: Place
    entries: dict[str, "Node"]


Node = Scalar | Sequence | Mapping


def parse(content: bytes, file: str, complaints: list[Complaint]) -> Mapping:
    """The tree of one file, named ``file`` in complaints. An empty file is an empty map."""
    # Here, because it takes 25 ms and an installation without files needs none of it.
    import yaml

    make_loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    start = Place(file, 1)
    nesting = _Nesting(start)
    try:
        loader = make_loader(content.decode("utf-8-sig"))
        # The composer calls these two around each node, for resolvers by path. There are none of those here.
        loader.descend_resolver, loader.ascend_resolver = nesting.descend, nesting.ascend
        # This composes nodes and constructs nothing: no tag is ever acted upon.
        root = loader.get_single_node()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        complaints.append(Complaint(Place(file, line), (), "not UTF-8 text"))
        return Mapping(start, {})
    except yaml.YAMLError as error:
        complaints.append(_not_yaml(error, file))
        return Mapping(start, {})
    except _TooDeepError:
        complaints.append(Complaint(nesting.place, nesting.path[:2], _TOO_DEEP))
        return Mapping(start, {})
    if root is None:
        return Mapping(start, {})
    node = _Reader(yaml, file, complaints).node(root, (), start)
    if isinstance(node, Mapping):
        return node
    if not (isinstance(node, Scalar) and node.is_null):
        complaints.append(Complaint(start, (), "the file must be a map of keys, such as 'server:'"))
    return Mapping(start, {})


def _not_yaml(error: Any, file: str) -> Complaint:
    """The parser's own words, without the excerpt of the file that its full text carries."""
    mark = getattr(error, "problem_mark", None)
    words = getattr(error, "problem", None) or getattr(error, "reason", None) or "cannot be read"
    return Complaint(Place(file, mark.line + 1 if mark else 1), (), f"not valid YAML: {words}")


class _TooDeepError(Exception):
    pass


class _Nesting:
    """How deep the composer is, and where. Raises _TooDeepError before it goes deeper than _MAX_DEPTH."""

    def __init__(self, start: Place) -> None:
        self.place = start
        self._within: list[Any] = []

    def descend(self, parent: Any, index: Any) -> None:
        """``index``: the key, as a node; the number of a list's item; None of a key itself and of the root."""
        self._within.append(index)
        if len(self._within) - 1 > _MAX_DEPTH:
            # Of an item, no more than its list is known yet.
            above = parent if index is None or isinstance(index, int) else index
            self.place = Place(self.place.file, above.start_mark.line + 1)
            raise _TooDeepError

    def ascend(self) -> None:
        self._within.pop()

    @property
    def path(self) -> Path:
        """As far as it has names: a key that is no word has none."""
        named = [f"[{each}]" if isinstance(each, int) else getattr(each, "value", None) for each in self._within]
        return tuple(each for each in named if isinstance(each, str))


class _Reader:
    """Turns PyYAML's nodes into ours."""

    def __init__(self, yaml: Any, file: str, complaints: list[Complaint]) -> None:
        self._yaml = yaml
        self._file = file
        self._complaints = complaints
        self._nodes = 0

    def node(self, node: Any, path: Path, place: Place) -> Node | None:
        """``node`` as ours; None when a complaint was made instead. ``place``: where its key stood."""
        if len(path) > _MAX_DEPTH:
            self._complaints.append(Complaint(place, path[:2], _TOO_DEEP))
            return None
        self._nodes += 1
        if self._nodes > _MAX_NODES:
            if self._nodes == _MAX_NODES + 1:
                words = f"more than {_MAX_NODES} values in one file"
                self._complaints.append(Complaint(place, path[:2], words))
            return None
        if node.tag not in _TAGS:
            self._complaints.append(Complaint(place, path, f"the tag {node.tag} is not supported"))
            return None
        if isinstance(node, self._yaml.ScalarNode):
            # A line of its own: a value may stand below its key.
            return Scalar(self._place(node), node.value, plain=not node.style)
        if isinstance(node, self._yaml.SequenceNode):
            numbered = enumerate(node.value)
            items = (self.node(item, (*path, f"[{n}]"), self._place(item)) for n, item in numbered)
            return Sequence(place, tuple(item for item in items if item is not None))
        return Mapping(place, dict(self._entries(node, path)))

    def _entries(self, node: Any, path: Path) -> Iterator[tuple[str, Node]]:
        seen: dict[str, Place] = {}
        for key, value in node.value:
            place = self._place(key)
            if not isinstance(key, self._yaml.ScalarNode):
                self._complaints.append(Complaint(place, path, "a key must be one word, not a list or a map"))
                continue
            name = key.value
            if name == "<<" and not key.style:
                words = "merge keys (<<) are not supported: write the keys out, or use an overlay file"
                self._complaints.append(Complaint(place, path, words))
                continue
            if name in seen:
                words = f"{shown_name(name)!r} stands here twice, first in line {seen[name].line}"
                self._complaints.append(Complaint(place, (*path, name), f"duplicate key: {words}"))
                continue
            seen[name] = place
            made = self.node(value, (*path, name), place)
            if made is not None:
                yield name, made

    def _place(self, node: Any) -> Place:
        return Place(self._file, node.start_mark.line + 1)
