"""Tests of llmproxy.config.overlay: files laid over each other."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.config.complaint import Place
from llmproxy.config.document import Mapping, Node, Scalar
from llmproxy.config.overlay import lay_over

Tree = dict[str, Any]

# Few names, so that trees meet each other.
_LEAVES = st.sampled_from(["a", "b", None])
TREES: st.SearchStrategy[Tree] = st.dictionaries(
    st.sampled_from("xyz"),
    st.recursive(_LEAVES, lambda below: st.dictionaries(st.sampled_from("xyz"), below, max_size=3), max_leaves=8),
    max_size=3,
)


def node(tree: Tree | str | None, file: str) -> Node:
    """A tree of plain values as nodes of one file."""
    place = Place(file, 1)
    if isinstance(tree, dict):
        return Mapping(place, {key: node(below, file) for key, below in tree.items()})
    return Scalar(place, "null" if tree is None else tree)


def plain(tree: Node) -> Tree | str | None:
    """Back again, without what is null."""
    if isinstance(tree, Mapping):
        below = {key: plain(one) for key, one in tree.entries.items()}
        return {key: one for key, one in below.items() if one is not None}
    assert isinstance(tree, Scalar)
    return None if tree.is_null else tree.text


def sum_of(*trees: Tree) -> Tree | str | None:
    files = [node(tree, f"{number}.yml") for number, tree in enumerate(trees)]
    return plain(lay_over([file for file in files if isinstance(file, Mapping)]))


class OverlayTests(SynchronousTestCase):
    @given(TREES)
    def test_an_empty_file_changes_nothing(self, tree: Tree) -> None:
        """A file that says nothing can stand anywhere."""
        self.assertEqual(sum_of(tree, {}), sum_of(tree))
        self.assertEqual(sum_of({}, tree), sum_of(tree))

    @given(TREES)
    def test_saying_it_twice_changes_nothing(self, tree: Tree) -> None:
        """The same file laid over itself is the same configuration."""
        self.assertEqual(sum_of(tree, tree), sum_of(tree))

    @given(TREES, TREES)
    def test_the_last_word_counts(self, below: Tree, above: Tree) -> None:
        """Every value of the last file is in the sum, and every null of it is not."""

        def look(said: Tree, total: object) -> None:
            assert isinstance(total, dict)
            for key, value in said.items():
                if value is None:
                    self.assertNotIn(key, total)
                elif isinstance(value, dict):
                    look(value, total[key])
                else:
                    self.assertEqual(total[key], value)

        look(above, sum_of(below, above))

    @given(TREES, TREES)
    def test_what_is_not_mentioned_stays(self, below: Tree, above: Tree) -> None:
        """A key that the last file does not name is as it was."""
        total, before = sum_of(below, above), sum_of(below)
        assert isinstance(total, dict) and isinstance(before, dict)
        for key in below:
            if key not in above:
                self.assertEqual(total.get(key), before.get(key))

    def test_each_value_keeps_its_place(self) -> None:
        """After merging, a value still knows the file that said it."""
        files = [node({"x": {"a": "1", "b": "1"}}, "base.yml"), node({"x": {"b": "2"}}, "dev.yml")]
        total = lay_over([file for file in files if isinstance(file, Mapping)])
        within = total.entries["x"]
        assert isinstance(within, Mapping)
        self.assertEqual(
            {key: one.place.file for key, one in within.entries.items()}, {"a": "base.yml", "b": "dev.yml"}
        )
