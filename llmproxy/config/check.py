"""A tree held against the schema: values with the place each came from, and every complaint at once.

It is run over each file alone, so that a mistake is found even where a later file covers it, and then over
the sum of the files. Only the sum has to know the environment: a ``${NAME}`` that nothing uses may stay
unset.
"""

from collections.abc import Mapping as Environ
from dataclasses import dataclass
from typing import Final

from llmproxy.config.complaint import Complaint, Path, Place, shown_name
from llmproxy.config.document import Mapping, Node, Scalar, Sequence
from llmproxy.config.expansion import NotSetError, expand
from llmproxy.config.hints import unknown_key
from llmproxy.config.schema import SCHEMA, Either, Kind, ListOf, Named, Section, Tree
from llmproxy.config.values import Value, is_word


@dataclass(frozen=True, slots=True)
class Found:
    """One value that was set, and where."""

    value: object
    place: Place


@dataclass(frozen=True, slots=True)
class Group:
    """What was set below one map: only keys that exist, only values that are right."""

    place: Place
    entries: dict[str, "Checked"]


Checked = Found | Group


class Check:
    """One walk. Complaints are added to ``complaints``.

    ``in_use`` says that the tree is the sum of the files: an unset ``${NAME}`` is then an error, not a reason
    to leave the value for later.
    """

    def __init__(self, environ: Environ[str, str], complaints: list[Complaint], *, in_use: bool) -> None:
        self._environ = environ
        self._complaints = complaints
        self._in_use = in_use

    def tree(self, root: Mapping) -> Group:
        """The whole of ``root`` against the schema."""
        return self._section(root, SCHEMA, ())

    def node(self, node: Node, kind: Kind, path: Path) -> Checked | None:
        """``node`` against ``kind``; None when not set: null, unusable, or expanding to nothing."""
        if isinstance(node, Scalar) and node.is_null:
            return None
        match kind:
            case Value():
                return self._value(node, kind, path)
            case ListOf():
                return self._list(node, kind, path)
            case Either():
                either = kind.section if isinstance(node, Mapping) else kind.word
                return self.node(node, either, path)
            case Tree():
                return self._tree(node, path)
            case Section() | Named() if not isinstance(node, Mapping):
                self._complain(node.place, path, f"must be a map of keys, not {_shown(node)}")
                return None
            case Section():
                return self._section(node, kind, path)
            case Named():
                return self._named(node, kind, path)

    def _section(self, node: Mapping, kind: Section, path: Path) -> Group:
        entries: dict[str, Checked] = {}
        for key, below in node.entries.items():
            if key not in kind.keys:
                self._complain(below.place, (*path, key), unknown_key(key, kind, path))
            elif (checked := self.node(below, kind.keys[key], (*path, key))) is not None:
                entries[key] = checked
        return Group(node.place, entries)

    def _named(self, node: Mapping, kind: Named, path: Path) -> Group:
        entries: dict[str, Checked] = {}
        for name, below in node.entries.items():
            if not kind.name.fullmatch(name):
                self._complain(below.place, (*path, name), f"a {kind.what} {kind.name_rule}")
            elif name in kind.reserved:
                self._complain(below.place, (*path, name), f"{name!r} is reserved for the proxy itself")
            elif (checked := self.node(below, kind.item, (*path, name))) is not None:
                entries[name] = checked
        return Group(node.place, entries)

    def _tree(self, node: Node, path: Path) -> Checked | None:
        """Whatever it is, with its places and with ``${...}`` replaced; in a list the places are the list's."""
        if isinstance(node, Mapping):
            below = {key: self._tree(one, (*path, key)) for key, one in node.entries.items()}
            return Group(node.place, {key: one for key, one in below.items() if one is not None})
        if isinstance(node, Sequence):
            items = [self._tree(item, (*path, f"[{n}]")) for n, item in enumerate(node.items)]
            return Found([plain(item) for item in items if item is not None], node.place)
        return None if node.is_null else self._value(node, _ANYTHING, path)

    def _list(self, node: Node, kind: ListOf, path: Path) -> Found | None:
        if not isinstance(node, Sequence):
            self._complain(node.place, path, f"must be a list, not {_shown(node)}")
            return None
        # An item that expands to nothing is left out: `- ${ONE_MORE_ORIGIN:-}`.
        items = [self._value(item, kind.item, (*path, f"[{n}]")) for n, item in enumerate(node.items)]
        return Found(tuple(item.value for item in items if item is not None), node.place)

    def _value(self, node: Node, kind: Value, path: Path) -> Found | None:
        if not isinstance(node, Scalar):
            self._complain(node.place, path, f"must be {kind.type}, not {_shown(node)}")
            return None
        try:
            text = expand(node.text, self._environ)
            expanded = text != node.text
            if expanded and not text:
                return None
            # What came from the environment has no quotes to tell text from numbers: its type is the key's.
            if not expanded:
                _check_quotes(node, kind)
            value = kind.parse(text)
        except NotSetError as error:
            if self._in_use:
                self._complain(node.place, path, str(error))
            return None
        except ValueError as error:
            self._complain(node.place, path, str(error) or f"must be {kind.type}{_instead(node, kind)}")
            return None
        return None if value is None else Found(value, node.place)

    def _complain(self, place: Place, path: Path, message: str) -> None:
        self._complaints.append(Complaint(place, path, message))


def plain(checked: Checked) -> object:
    """What was set, without its places: a dict, or a value."""
    if isinstance(checked, Group):
        return {key: plain(one) for key, one in checked.entries.items()}
    return checked.value


_ANYTHING: Final = Value("text", lambda text: text, "any")


def _check_quotes(node: Scalar, kind: Value) -> None:
    """Raise ValueError when ``node`` is text where a number or boolean belongs, or the other way round."""
    # A key that is null is not set, and does not come here. An item of a list that is null is a mistake.
    if node.is_null or (kind.takes == "word" and not node.plain):
        raise ValueError
    if kind.takes == "text" and node.plain and is_word(node.text):
        raise ValueError(f"must be {kind.type}{_instead(node, kind)}; what reads as a number or a boolean needs quotes")


def _instead(node: Scalar, kind: Value) -> str:
    if kind.secret:
        return ""
    if "${" in node.text:
        # As written, because what it expands to may be a secret that landed in the wrong place.
        return f", not what {node.text!r} expands to"
    return f", not {_shown(node)}"


def _shown(node: Node) -> str:
    match node:
        case Mapping():
            return "a map"
        case Sequence():
            return "a list"
        case Scalar(text=text) if node.is_null:
            return "null"
        case Scalar(text=text) if len(text) > 60:
            return "a long text"
        case Scalar(text=text):
            return shown_name(text) if node.plain and is_word(text) else f"the text {shown_name(text)!r}"


def place_of(found: Group, path: Path) -> Place:
    """Where ``path`` was set, or else the nearest map around it."""
    place = found.place
    within: Checked | None = found
    for name in path:
        within = within.entries.get(name) if isinstance(within, Group) else None
        if within is None:
            break
        place = within.place
    return place
