"""Values of JSON that may be of any type."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from llmproxy.core.reading import values
from llmproxy.core.usage import ModelUsage, Usage


class ValuesTests(SynchronousTestCase):
    """What is taken, and what counts as absent."""

    def test_counts(self) -> None:
        """Only a whole number that is at least 0 and exact in JSON is a count."""
        odd: tuple[object, ...] = (None, -1, 1.0, True, "3", [], 2**53)
        for value in odd:
            self.assertEqual(values.count(value), 0)
        self.assertEqual((values.count(7), values.count(2**53 - 1)), (7, 2**53 - 1))

    def test_words(self) -> None:
        """A name that could not be written to a log, or is too long for one, is none."""
        for value in (None, 3, "", "x" * 257, "a\ud83d"):
            self.assertIsNone(values.word(value))
        self.assertEqual(values.word("\u00e9"), "\u00e9")

    def test_objects(self) -> None:
        """A text that is no JSON object is none, and half a surrogate pair does not make it one."""
        for text in (b"", b"[]", b"3", b"{", b"[" * 100_000):
            self.assertIsNone(values.object_at(text))
        self.assertEqual(values.object_at(b'{"a":"\\ud83d"}'), {"a": "\ud83d"})

    def test_members(self) -> None:
        """Watched members are put back where they were; where one is inside of what is no object, it is left."""
        members = {("a", "b"): b"1", ("a", "f"): b"[2]", ("c",): b"2", ("c", "d"): b"3", ("e",): b"{"}
        self.assertEqual(values.object_of(members), {"a": {"b": 1, "f": [2]}, "c": 2})

    def test_sums(self) -> None:
        """Usages are added class by class, tools by name; parts stay apart. No class falls below 0."""
        part = ModelUsage("m", Usage(output_tokens=1))
        one = Usage(input_tokens=1, audio_ms=5, server_tools=(("web_search", 1),), parts=(part,))
        two = Usage(input_tokens=2, output_tokens=3, server_tools=(("web_fetch", 1), ("web_search", 2)))
        tools = (("web_fetch", 1), ("web_search", 3))
        self.assertEqual(
            values.add(one, two), Usage(input_tokens=3, output_tokens=3, audio_ms=5, server_tools=tools, parts=(part,))
        )
        self.assertEqual(values.subtract(two, (one, one, one)), Usage(output_tokens=3, server_tools=two.server_tools))

    def test_what_is_left_in_its_classes(self) -> None:
        """What does not fit in its class is taken off the others, so that the sum of both is what it was."""
        whole = Usage(input_tokens=10, cache_read_tokens=20, output_tokens=9, reasoning_tokens=9, input_audio_tokens=8)
        other = Usage(input_tokens=4, cache_write_5m_tokens=3, tool_use_tokens=5, output_tokens=2)
        left = Usage(cache_read_tokens=18, output_tokens=7, reasoning_tokens=7)
        self.assertEqual(values.subtract(whole, (other,)), left)

    def test_named_counts(self) -> None:
        """Requests of tools are told by their names without the ending; none, and other members, are left."""
        found = {"web_search_requests": 2, "web_fetch_requests": 0, "other": 3, "x_requests": "1"}
        self.assertEqual(values.named_counts(found, "_requests"), {"web_search": 2})
