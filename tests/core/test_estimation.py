"""How much text a request holds, in every dialect, and the estimate that is made of it."""

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.core.estimation import RequestText, body_estimate, estimated_input_tokens, request_text

PIXELS = "iVBORw0KGgo" * 400  # 4400 characters of base64: 3300 bytes


def measured(**members: Any) -> RequestText:
    return request_text(json.dumps(members).encode())


class TextTests(SynchronousTestCase):
    """The characters. Expected values are counted by hand; the forms are those of the providers' references."""

    def test_chat_completions(self) -> None:
        """All text of a chat is counted: of strings, of parts, of calls of tools and their results."""
        # platform.openai.com/docs/api-reference/chat/create
        text = measured(
            model="gpt-4o",
            max_completion_tokens=7,
            messages=[
                {"role": "system", "content": "12345"},
                {"role": "user", "name": "Ann", "content": [{"type": "text", "text": "123"}]},
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {"id": "call_1", "type": "function", "function": {"name": "get", "arguments": '{"a":1}'}}
                    ],
                },
                {"role": "tool", "tool_call_id": "call_1", "content": "12"},
            ],
        )
        # 5; Ann and 3; get and 7; 2
        self.assertEqual(text, RequestText(characters=5 + 3 + 3 + 3 + 7 + 2, messages=4, max_tokens=7))

    def test_unicode_characters_and_not_bytes(self) -> None:
        """A text in Chinese is as many characters as it has, escaped or not."""
        body = {"messages": [{"role": "user", "content": "你好😀"}]}
        for ascii_only in (True, False):
            self.assertEqual(request_text(json.dumps(body, ensure_ascii=ascii_only).encode()).characters, 3)

    def test_responses(self) -> None:
        """Instructions, nested content and the outputs of tools are counted."""
        # platform.openai.com/docs/api-reference/responses/create
        text = measured(
            instructions="1234",
            max_output_tokens=9,
            input=[
                {"role": "user", "content": [{"type": "input_text", "text": "123"}]},
                {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "12"}]},
                {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c", "output": "12345"},
            ],
        )
        self.assertEqual(text, RequestText(characters=4 + 3 + 2 + 1 + 2 + 5, messages=4, max_tokens=9))
        self.assertEqual(measured(input="123"), RequestText(characters=3, messages=1))

    def test_messages(self) -> None:
        """System text in both forms, thoughts, calls of tools and their results are counted."""
        # docs.anthropic.com/en/api/messages
        text = measured(
            max_tokens=100,
            system=[{"type": "text", "text": "12345", "cache_control": {"type": "ephemeral"}}],
            messages=[
                {"role": "user", "content": "123"},
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "1234", "signature": "abc" * 100},
                        {"type": "tool_use", "id": "toolu_1", "name": "get", "input": {"a": "b"}},
                    ],
                },
                {
                    "role": "user",
                    "content": [
                        {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "12"}]}
                    ],
                },
            ],
        )
        # {"a":"b"} is 9
        self.assertEqual(text, RequestText(characters=5 + 3 + 4 + 3 + 9 + 2, messages=3, max_tokens=100))
        self.assertEqual(measured(system="12", messages=[{"role": "user", "content": "3"}]).characters, 3)

    def test_generate_content(self) -> None:
        """Gemini's parts, its system text under both names and the results of functions are counted."""
        # ai.google.dev/api/generate-content
        for name in ("systemInstruction", "system_instruction"):
            text = measured(
                **{name: {"parts": [{"text": "1234"}]}},
                generationConfig={"maxOutputTokens": 5},
                contents=[
                    {"role": "user", "parts": [{"text": "123"}]},
                    {"role": "user", "parts": [{"functionResponse": {"name": "f", "response": {"a": 1}}}]},
                ],
            )
            # f is 1, {"a":1} is 7
            self.assertEqual(text, RequestText(characters=4 + 3 + 1 + 7, messages=2, max_tokens=5))

    def test_prompts_and_embeddings(self) -> None:
        """A prompt is a string, strings, or ids of tokens, which are tokens already."""
        # platform.openai.com/docs/api-reference/completions/create and .../embeddings/create
        self.assertEqual(measured(prompt="123", suffix="4").characters, 4)
        self.assertEqual(measured(prompt=["12", "345"]).characters, 5)
        self.assertEqual(measured(input=["12", "345"]), RequestText(characters=5, messages=2))
        self.assertEqual(measured(input=[1, 2, 3]).token_ids, 3)
        self.assertEqual(measured(prompt=[[1, 2], [3, 4, 5]]).token_ids, 5)
        self.assertEqual(measured(content={"parts": [{"text": "123"}]}).characters, 3)

    def test_tools_are_counted_as_they_are_written(self) -> None:
        """A schema costs tokens by its JSON, and each tool is counted."""
        tools = '[{"name": "a", "input_schema": {"type": "object"}}, {"name": "\u00e9"}]'
        body = '{"messages": [], "tools": ' + tools + "}"
        self.assertEqual(request_text(body.encode()), RequestText(characters=len(tools), messages=1, tools=2))
        self.assertEqual(measured(functions=[{"name": "f"}]).tools, 1)
        self.assertEqual(measured(tools=None, messages=[]).tools, 0)

    def test_a_body_of_no_known_form(self) -> None:
        """What is no JSON, broken or far too deep is taken for text, every byte of it."""
        for body in (
            b"no JSON",
            b"[1]",
            b'{"messages": [',
            b'{"messages": ' + b"[" * 5000,
            b'{"a": "\\ud800"}',
            b"\xff",
        ):
            text = request_text(body)
            self.assertEqual((text.characters, text.messages, text.unread), (len(body), 1, True), body[:20])
        self.assertEqual(request_text(b""), RequestText(unread=True))

    def test_too_many_values(self) -> None:
        """A body of countless small values costs no more than some: then it is taken for text."""
        body = b'{"messages": [' + b"[],".join([b""] * 30_000) + b"[]]}"
        self.assertEqual(request_text(body).characters, len(body))

    def test_members_of_another_type(self) -> None:
        """A value of a type that no provider takes does no harm."""
        for value in (1, True, None, 1.5, {}, [], [None, 1.5, True], {"content": 1}):
            text = measured(messages=value, system=value, max_tokens="many", tools=value, generationConfig=value)
            self.assertIsNone(text.max_tokens)
            self.assertGreaterEqual(text.messages, 1)

    @settings(max_examples=200, deadline=None)
    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers(-5, 2**70) | st.text(max_size=20),
            lambda inner: (
                st.lists(inner, max_size=4)
                | st.dictionaries(
                    st.sampled_from(
                        ("messages", "content", "text", "data", "url", "type", "input", "source", "file_id")
                    )
                    | st.text(max_size=5),
                    inner,
                    max_size=4,
                )
            ),
            max_leaves=20,
        )
    )
    def test_anything(self, value: object) -> None:
        """Any JSON at all is measured, and never as free."""
        text = request_text(json.dumps({"messages": value, "contents": value, "input": value}).encode())
        self.assertGreaterEqual(min(text.characters, text.token_ids, text.images, text.image_bytes), 0)
        self.assertGreaterEqual(text.attachments, text.images)
        self.assertGreater(estimated_input_tokens(text, 4), 0)

    @given(st.lists(st.text(max_size=30), min_size=1, max_size=20))
    def test_every_form_of_a_text_is_the_same(self, texts: list[str]) -> None:
        """A text is as long in one dialect as in another."""
        texts = [each.encode("utf-8", "ignore").decode() for each in texts]
        length = sum(len(each) for each in texts)
        for text in (
            measured(messages=[{"role": "user", "content": each} for each in texts]),
            measured(messages=[{"role": "user", "content": [{"type": "text", "text": each}]} for each in texts]),
            measured(contents=[{"parts": [{"text": each}]} for each in texts]),
            measured(input=[{"role": "user", "content": [{"type": "input_text", "text": each}]} for each in texts]),
        ):
            self.assertEqual((text.characters, text.messages), (length, len(texts)))


class AttachmentTests(SynchronousTestCase):
    """Images, sounds and documents."""

    def test_inline_images(self) -> None:
        """The base64 of an image is no text, in any dialect."""
        data_url = "data:image/png;base64," + PIXELS
        for part in (
            {"type": "image_url", "image_url": {"url": data_url, "detail": "high"}},
            {"type": "input_image", "image_url": data_url},
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXELS}},
            {"inlineData": {"mimeType": "image/png", "data": PIXELS}},
            {"inline_data": {"mime_type": "image/png", "data": PIXELS}},
        ):
            text = measured(messages=[{"role": "user", "content": [part, {"type": "text", "text": "123"}]}])
            self.assertEqual((text.characters, text.attachments, text.images), (3, 1, 1), part)
            self.assertLessEqual(abs(text.image_bytes - 3300), 20, part)
            self.assertEqual(text.attachment_bytes, text.image_bytes)

    def test_inline_files(self) -> None:
        """Sounds and documents are counted by their bytes, not as text."""
        for part in (
            {"type": "input_audio", "input_audio": {"data": PIXELS, "format": "wav"}},
            {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64," + PIXELS}},
            {"type": "input_file", "filename": "a.pdf", "file_data": PIXELS},
            {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": PIXELS}},
            {"inlineData": {"mimeType": "audio/mp3", "data": PIXELS}},
        ):
            text = measured(messages=[{"role": "user", "content": [part]}])
            self.assertEqual((text.characters, text.attachments, text.images, text.image_bytes), (0, 1, 0, 0), part)
            self.assertLessEqual(abs(text.attachment_bytes - 3300), 24, part)

    def test_by_reference(self) -> None:
        """What the provider fetches or has stored is an attachment too."""
        for part, images in (
            ({"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}, 1),
            ({"type": "input_image", "image_url": "https://example.com/a.png"}, 1),
            ({"type": "input_image", "file_id": "file-1"}, 1),
            ({"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}}, 1),
            ({"type": "input_file", "file_url": "https://example.com/a.pdf"}, 0),
            ({"type": "file", "file": {"file_id": "file-1"}}, 0),
            ({"fileData": {"mimeType": "video/mp4", "fileUri": "https://example.com/a"}}, 0),
        ):
            text = measured(messages=[{"role": "user", "content": [part]}])
            self.assertEqual((text.characters, text.attachments, text.images), (0, 1, images), part)
            self.assertEqual(text.attachment_bytes, 0)

    def test_what_only_looks_like_one(self) -> None:
        """A document of plain text is text, and so is the URL of a result of a search."""
        document = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "12345"}}
        found = {"type": "web_search_result", "url": "http://a", "title": "12"}
        text = measured(messages=[{"role": "user", "content": [document, found]}])
        self.assertEqual((text.characters, text.attachments), (5 + 8 + 2, 0))


class EstimateTests(SynchronousTestCase):
    """From text to tokens."""

    def test_text_messages_and_tools(self) -> None:
        """Text is divided and rounded up; messages, tools and the answer's beginning are added."""
        # 4 a message, 12 a tool, 3 before the answer
        self.assertEqual(estimated_input_tokens(RequestText(characters=401, messages=2, tools=1), 4), 101 + 8 + 12 + 3)
        self.assertEqual(estimated_input_tokens(RequestText(characters=10, messages=1, token_ids=50), 5), 2 + 50 + 7)

    def test_attachments(self) -> None:
        """An image is 1,600 tokens, a file as its bytes are, and 1,600 at least."""
        picture = RequestText(messages=1, attachments=1, images=1, attachment_bytes=10**6, image_bytes=10**6)
        self.assertEqual(estimated_input_tokens(picture, 4), 1600 + 7)
        self.assertEqual(estimated_input_tokens(picture, 4, image_tokens=258), 258 + 7)
        large = RequestText(messages=1, attachments=1, attachment_bytes=160_000)
        self.assertEqual(estimated_input_tokens(large, 4), 10_000 + 7)
        linked = RequestText(messages=1, attachments=1)
        self.assertEqual(estimated_input_tokens(linked, 4), 1600 + 7)

    @given(st.binary(max_size=400), st.floats(0, 100))
    def test_never_free(self, body: bytes, ratio: float) -> None:
        """A request that has a body is never estimated at nothing, however odd the configuration."""
        tokens = estimated_input_tokens(request_text(body), ratio)
        self.assertEqual(tokens > 0, bool(body))

    def test_a_body_that_was_not_looked_at(self) -> None:
        """A chunked or compressed body does not dodge the count."""
        self.assertEqual(body_estimate(4001, 4), 1001)
        self.assertEqual(body_estimate(0, 4), 1)
        self.assertEqual(body_estimate(10, 0), 10)
        self.assertEqual(body_estimate(None, 4, 500), 500)
        self.assertEqual(body_estimate(None, 4, 0), 1)
