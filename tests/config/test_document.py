"""Tests of llmproxy.config.document: a YAML file as a tree of lines."""

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.config.complaint import Complaint
from llmproxy.config.document import Mapping, Node, Scalar, Sequence, parse


def read(content: bytes | str) -> tuple[Mapping, list[str]]:
    """The tree, and the complaints as text."""
    complaints: list[Complaint] = []
    tree = parse(content.encode() if isinstance(content, str) else content, "f.yml", complaints)
    return tree, [str(complaint) for complaint in complaints]


def plain(node: Node) -> object:
    """A tree without places and quotes."""
    match node:
        case Scalar():
            return node.text
        case Sequence():
            return [plain(item) for item in node.items]
        case Mapping():
            return {key: plain(below) for key, below in node.entries.items()}


class DocumentTests(SynchronousTestCase):
    def test_every_node_knows_its_line(self) -> None:
        """A complaint can name the line of each value, each list item and each map."""
        tree, complaints = read("a: 1\nb:\n  c:\n    two\n  d: [x,\n      y]\n")
        self.assertEqual(complaints, [])
        a, b = tree.entries["a"], tree.entries["b"]
        assert isinstance(b, Mapping)
        c, d = b.entries["c"], b.entries["d"]
        assert isinstance(d, Sequence)
        self.assertEqual([str(n.place) for n in (a, b, c, d, *d.items)], [f"f.yml:{n}" for n in (1, 2, 4, 5, 5, 6)])

    def test_scalars_stay_as_written(self) -> None:
        """Nothing is turned into 750, 8, a date or a boolean before the schema is asked."""
        tree, _ = read("a: 12:30\nb: 010\nc: 2026-01-01\nd: yes\ne: 1_0\n")
        self.assertEqual(plain(tree), {"a": "12:30", "b": "010", "c": "2026-01-01", "d": "yes", "e": "1_0"})

    def test_null_is_told_from_text(self) -> None:
        """An empty value, ~ and null unset a key; the same in quotes is text."""
        tree, _ = read("a:\nb: ~\nc: null\nd: 'null'\ne: \"\"\nf: nil\n")
        nulls = [key for key, node in tree.entries.items() if isinstance(node, Scalar) and node.is_null]
        self.assertEqual(nulls, ["a", "b", "c"])

    def test_duplicate_keys(self) -> None:
        """Of two equal keys neither wins in silence, wherever they are."""
        _, complaints = read("a: 1\nb:\n  c: 1\n  d: 2\n  c: 3\na: 2\n")
        self.assertEqual(
            complaints,
            [
                "f.yml:5: b.c: duplicate key: 'c' stands here twice, first in line 3",
                "f.yml:6: a: duplicate key: 'a' stands here twice, first in line 1",
            ],
        )

    def test_duplicate_keys_that_are_secrets(self) -> None:
        """A provider's key written twice by mistake is not shown."""
        _, complaints = read("per_key:\n  sk-abc: {}\n  sk-abc: {}\n")
        self.assertEqual(complaints, ["f.yml:3: per_key.***: duplicate key: '***' stands here twice, first in line 2"])

    def test_empty_files_are_empty_maps(self) -> None:
        """A file of nothing, of comments, of null or of a byte order mark sets nothing."""
        for content in (b"", b"# nothing\n", b"---\n", b"null\n", b"\xef\xbb\xbf", b"{}"):
            with self.subTest(content):
                self.assertEqual(read(content), (Mapping(read(content)[0].place, {}), []))

    def test_a_file_that_is_no_map(self) -> None:
        """A list or a word at the top of a file is refused."""
        for content in ("- a\n", "hello\n", "5\n", '""\n'):
            with self.subTest(content):
                self.assertEqual(read(content)[1], ["f.yml:1: the file must be a map of keys, such as 'server:'"])

    def test_broken_yaml(self) -> None:
        """What is no YAML is said with its line, and the tree is empty."""
        tree, complaints = read("a: 1\nb: [1, 2\nc: 3\n")
        self.assertEqual(tree.entries, {})
        self.assertEqual(complaints, ["f.yml:3: not valid YAML: did not find expected ',' or ']'"])

    def test_two_documents(self) -> None:
        """A second document in a file would be lost, so it is refused."""
        self.assertEqual(read("a: 1\n---\nb: 2\n")[1], ["f.yml:2: not valid YAML: but found another document"])

    def test_not_utf_8(self) -> None:
        """A file in Latin-1 is named with the line of the first wrong byte."""
        self.assertEqual(read(b"a: 1\nb: caf\xe9\n")[1], ["f.yml:2: not UTF-8 text"])

    def test_control_characters(self) -> None:
        """A binary file does not raise."""
        self.assertEqual(read(b"a: \x00\x01")[1], ["f.yml:1: not valid YAML: control characters are not allowed"])

    def test_tags_do_nothing(self) -> None:
        """A tag that makes objects in other programs is refused, and makes none here."""
        _, complaints = read("a: !!python/object/apply:os.system ['true']\nb: !mine 5\n")
        self.assertEqual(
            complaints,
            [
                "f.yml:1: a: the tag tag:yaml.org,2002:python/object/apply:os.system is not supported",
                "f.yml:2: b: the tag !mine is not supported",
            ],
        )

    def test_merge_keys(self) -> None:
        """A merge key is refused by name instead of being an unknown key."""
        _, complaints = read("a: &a {x: 1}\nb:\n  <<: *a\n")
        self.assertEqual(
            complaints,
            ["f.yml:3: b: merge keys (<<) are not supported: write the keys out, or use an overlay file"],
        )

    def test_aliases(self) -> None:
        """An alias stands for what it names."""
        tree, complaints = read("a: &big {x: 1}\nb: *big\n")
        self.assertEqual((plain(tree), complaints), ({"a": {"x": "1"}, "b": {"x": "1"}}, []))

    def test_aliases_that_multiply(self) -> None:
        """Ten lines of aliases that stand for a billion values end in a complaint, and soon."""
        lines = ["a0: &a0 [x]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
        complaints = read("\n".join(lines))[1]
        self.assertEqual(complaints, ["f.yml:1: a5[3]: more than 100000 values in one file"])

    def test_an_alias_that_holds_itself(self) -> None:
        """A map that contains itself ends in a complaint."""
        self.assertEqual(read("a: &a\n  b: *a\n")[1], ["f.yml:2: a.b: nested more than 32 levels deep"])

    def test_lists_within_lists(self) -> None:
        """A file of a hundred thousand brackets is one complaint; it used to end the process."""
        # The last list that may be has 32 around it: it is the 33rd. Where a line opens two, that is line 17.
        for opening, line in (("[", 1), ("- ", 1), ("[[ # comment\n", 17)):
            with self.subTest(opening):
                tree, complaints = read(opening * 100_000)
                self.assertEqual(tree.entries, {})
                self.assertEqual(complaints, [f"f.yml:{line}: [0][0]: nested more than 32 levels deep"])

    def test_maps_within_maps(self) -> None:
        """The complaint names where it went too deep: the key that is one too many, below the first two."""
        deep = "".join(f"{' ' * n}k{n}:\n" for n in range(1000))
        self.assertEqual(read(deep)[1], ["f.yml:33: k0.k1: nested more than 32 levels deep"])
        self.assertEqual(
            read("a: 1\nb: {c: " + "[{d: " * 100_000)[1], ["f.yml:2: b.c: nested more than 32 levels deep"]
        )

    def test_keys_within_keys(self) -> None:
        """Keys that are maps are counted like all else; they have no name to be told by."""
        for opening in ("{", "? "):
            with self.subTest(opening):
                self.assertEqual(read(opening * 100_000)[1], ["f.yml:1: nested more than 32 levels deep"])

    def test_a_secret_above_what_is_too_deep(self) -> None:
        """A provider's key above the mistake is not shown."""
        self.assertEqual(
            read("per_key:\n  sk-abc: " + "[" * 1000)[1], ["f.yml:2: per_key.***: nested more than 32 levels deep"]
        )

    def test_as_deep_as_allowed(self) -> None:
        """32 levels are read, in the C library and in its stand-in alike; one more is not."""
        import yaml

        def nested(levels: int) -> str:
            return "".join(f"{' ' * n}k{n}:\n" for n in range(levels))

        for without_libyaml in (False, True):
            if without_libyaml:
                self.patch(yaml, "CSafeLoader", yaml.SafeLoader)
            tree, complaints = read(nested(32))
            self.assertEqual(complaints, [])
            levels = 0
            node: Node = tree
            while isinstance(node, Mapping):
                (node,) = node.entries.values()
                levels += 1
            self.assertEqual(levels, 32)
            self.assertEqual(read(nested(33))[1], ["f.yml:33: k0.k1: nested more than 32 levels deep"])

    def test_a_chain_of_aliases(self) -> None:
        """Lists that name each other can be as deep as brackets, and are told in the same words."""
        lines = ["a0: &a0 [x]"] + [f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, 500)]
        complaints = read("\n".join(lines))[1]
        # The x in a0 has two above it, a0 and [0]; each list around it adds one.
        self.assertEqual(complaints[0], "f.yml:1: a31[0]: nested more than 32 levels deep")

    def test_keys_that_are_no_words(self) -> None:
        """A list as a key is refused."""
        self.assertEqual(read("[a, b]: 1\n")[1], ["f.yml:1: a key must be one word, not a list or a map"])

    @given(st.recursive(st.text(max_size=8), lambda inner: st.dictionaries(st.text(max_size=5), inner, max_size=4)))
    def test_any_map_comes_back(self, value: object) -> None:
        """Whatever text a person writes as keys and values is read as that text."""
        import yaml

        if not isinstance(value, dict):
            value = {"value": value}
        tree, complaints = read(yaml.safe_dump(value, default_style='"', allow_unicode=False))
        self.assertEqual((plain(tree), complaints), (value, []))
