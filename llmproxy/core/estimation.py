"""How much a request asks a model to read, when the provider did not say: its text, measured; tokens, estimated.

The rules: an estimate is never zero where there is a body, and rather too high than too low. What is looked at is one
body that is all here, and what it costs is bounded: no recursion, and from some number of values on the length of the
body is taken instead. The members of all dialects are looked for, wherever the request goes: chat completions,
Responses, completions, embeddings, messages, generateContent.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

MESSAGE_TOKENS: Final = 4
"""Around each message. OpenAI counts 3, and 1 more for a name: cookbook.openai.com, "How to count tokens with
tiktoken"."""
REPLY_TOKENS: Final = 3
"""What the answer is begun with (the same page)."""
TOOL_TOKENS: Final = 12
"""Around each tool, beside its schema: the same page has 7 for a function, 3 for its properties, 12 at the end."""
IMAGE_TOKENS: Final = 1_600
"""Of an image: the most that Anthropic counts for one (about 1,600 at 1568 pixels; docs.anthropic.com, "Vision"). Most
are less: 258 for a tile of Gemini's, 85 to about 1,100 of OpenAI's. How many pixels there are is not looked at."""
FILE_TOKENS: Final = 1_600
FILE_BYTES_PER_TOKEN: Final = 16
"""Of a document, a sound or a film: a page of a PDF is 1,500 to 3,000 tokens (docs.anthropic.com, "PDF support"), at
about 50 KB; a second of sound 32 tokens (ai.google.dev, "Understand and count tokens"), at 2 to 32 KB."""
UNKNOWN_TOKENS: Final = 1_000
"""Of a body that nothing is known of, not even its length."""

_VALUES_MAX: Final = 20_000
_CHARACTERS_PER_TOKEN_MIN: Final = 0.2

# Names, kinds and switches: a model is not charged for them by their letters.
_NOT_TEXT: Final = frozenset(
    "role type id name status model phase index detail format filename tool_use_id tool_call_id call_id "
    "item_id response_id media_type mime_type mimeType cache_control signature thoughtSignature "
    "thought_signature file_id custom_id container taskType safety_identifier".split()
)
# What is JSON for the model too: the arguments of a call, its result, a schema.
_JSON: Final = frozenset(
    ("arguments", "args", "parameters", "input_schema", "input", "response", "action", "schema", "tools", "functions")
)
_URLS: Final = frozenset(("url", "image_url", "file_url", "file_uri", "fileUri", "video_url", "audio_url"))
_IMAGE_URLS: Final = frozenset(("url", "image_url"))
_DATA: Final = frozenset(("data", "file_data", "bytesBase64Encoded"))
# The kinds of values that bring a file by its id; in chat completions they have no kind.
_FILES: Final = ("file", "input_file", "input_image", None)
_MEDIA_TYPES: Final = ("media_type", "mimeType", "mime_type")


class RequestText(msgspec.Struct, frozen=True, gc=False):
    """What is in a request for the model to read.

    characters: of all text, in Unicode characters: messages, system text, tools and schemas as the JSON they are.
        Of a body that is no JSON object, or too deep, its bytes.
    messages, tools: how many there are.
    token_ids: text that is given as ids of tokens, one each.
    attachments: images, sounds, documents: inline or by URL. images: how many of them are images.
    attachment_bytes, image_bytes: of those that are inline, when decoded; the second is part of the first.
    max_tokens: how much may be answered, if the body says so.
    unread: the text could not be taken out of the body, and its bytes were counted.
    """

    characters: int = 0
    messages: int = 0
    tools: int = 0
    token_ids: int = 0
    attachments: int = 0
    images: int = 0
    attachment_bytes: int = 0
    image_bytes: int = 0
    max_tokens: int | None = None
    unread: bool = False


class _Body(msgspec.Struct, gc=False):
    """The members of a body that hold something to read. What stays Raw is measured as it is written."""

    messages: Any = None
    system: Any = None
    input: Any = None
    instructions: Any = None
    prompt: Any = None
    suffix: Any = None
    contents: Any = None
    content: Any = None
    requests: Any = None
    instances: Any = None
    systemInstruction: Any = None
    system_instruction: Any = None
    tools: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    functions: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    response_format: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    text: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    output_format: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    max_tokens: Any = None
    max_completion_tokens: Any = None
    max_output_tokens: Any = None
    generationConfig: Any = None


_BODY: Final = msgspec.json.Decoder(_Body)
_LIST: Final = msgspec.json.Decoder(list[msgspec.Raw])
_ENCODER: Final = msgspec.json.Encoder()


def request_text(body: bytes) -> RequestText:
    """Measure what a request's body holds. It takes any bytes; see :class:`RequestText`."""
    try:
        found = _BODY.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return RequestText(len(body), 1 if body else 0, unread=True)
    characters = messages = tools = 0
    rest: list[object] = []
    for several in (found.messages, found.input, found.contents):
        if several is None:
            continue
        if type(several) is str:
            characters += len(several)
            messages += 1
        elif type(several) is list and several and type(several[0]) is not int:
            messages += len(several)
            for each in several:
                # The commonest by far: a role, and a text or parts of text.
                if type(each) is dict and len(each) == 2 and (content := each.get("content", each.get("parts"))):
                    if type(content) is str:
                        characters += len(content)
                    elif type(content) is list and len(content) == 1:
                        part = content[0]
                        if type(part) is dict and _is_text(part):
                            characters += len(part["text"])
                        else:
                            rest.append(part)
                    else:
                        rest.append(content)
                else:
                    rest.append(each)
        else:
            messages += 1
            rest.append(several)
    for one in (found.system, found.instructions, found.prompt, found.systemInstruction):
        if one is not None:
            if type(one) is str:
                characters += len(one)
            else:
                rest.append(one)
    for one in (
        found.suffix, found.content, found.requests, found.instances, found.system_instruction
    ):  # fmt: skip
        if one is not None:
            rest.append(one)
    for schemas in (found.tools, found.functions):
        if schemas is not msgspec.UNSET:
            characters += _json_characters(schemas)
            try:
                tools += len(_LIST.decode(schemas))
            except msgspec.MsgspecError:
                pass  # null, or nothing that a provider takes
    for schema in (found.response_format, found.text, found.output_format):
        if schema is not msgspec.UNSET:
            characters += _json_characters(schema)
    max_tokens = _max_tokens(found)
    if not rest:
        return RequestText(characters, messages or 1, tools, 0, 0, 0, 0, 0, max_tokens)
    walk = _Walk()
    if not walk.over(rest):
        return RequestText(len(body), messages or 1, tools, max_tokens=max_tokens, unread=True)
    return RequestText(
        characters + walk.characters,
        messages or 1,
        tools,
        walk.token_ids,
        walk.attachments,
        walk.images,
        walk.attachment_bytes,
        walk.image_bytes,
        max_tokens,
    )


def estimated_input_tokens(
    text: RequestText,
    characters_per_token: float,
    image_tokens: int = IMAGE_TOKENS,
    file_bytes_per_token: int = FILE_BYTES_PER_TOKEN,
) -> int:
    """About how many tokens a request is; 0 only for an empty body.

    :param characters_per_token: above 0; what is configured, or what was learned.
    :param image_tokens: for each image, whatever its size.
    :param file_bytes_per_token: of what is attached and no image; each is FILE_TOKENS at least.
    """
    if not text.messages:
        return 0
    tokens = overhead_tokens(text) + text.token_ids
    tokens -= int(-text.characters // max(characters_per_token, _CHARACTERS_PER_TOKEN_MIN))
    if text.attachments:
        files = text.attachments - text.images
        file_bytes = text.attachment_bytes - text.image_bytes
        tokens += text.images * image_tokens + max(files * FILE_TOKENS, file_bytes // file_bytes_per_token)
    return tokens


def overhead_tokens(text: RequestText) -> int:
    """What a provider adds around the text: for messages, for tools, and before the answer."""
    return text.messages * MESSAGE_TOKENS + text.tools * TOOL_TOKENS + REPLY_TOKENS


def body_estimate(length_bytes: int | None, bytes_per_token: int, unknown_tokens: int = UNKNOWN_TOKENS) -> int:
    """About how many tokens a body is that was not looked at: compressed, chunked, or too large. Never 0.

    :param length_bytes: None if the body's length is not known.
    :param unknown_tokens: what such a body is taken for.
    """
    if length_bytes is None:
        return max(1, unknown_tokens)
    return max(1, -(-length_bytes // max(1, bytes_per_token)))


def _max_tokens(found: _Body) -> int | None:
    generation = found.generationConfig
    for value in (
        found.max_tokens,
        found.max_completion_tokens,
        found.max_output_tokens,
        generation.get("maxOutputTokens") if type(generation) is dict else None,
    ):
        if type(value) is int and value >= 0:
            return value
    return None


def _is_text(part: dict[str, Any]) -> bool:
    """Whether this is a part of text and nothing else: {"type", "text"}, or {"text"} alone."""
    return type(part.get("text")) is str and len(part) - ("type" in part) == 1


def _json_characters(raw: msgspec.Raw) -> int:
    written = bytes(raw)
    return len(written) if written.isascii() else len(written.decode("utf-8", "replace"))


class _Walk:
    """What is found in values of any form, without recursion."""

    __slots__ = ("attachment_bytes", "attachments", "characters", "image_bytes", "images", "token_ids")

    def __init__(self) -> None:
        self.characters = self.token_ids = 0
        self.attachments = self.images = self.attachment_bytes = self.image_bytes = 0

    def over(self, stack: list[object]) -> bool:
        """Walk over these values and all in them. False: there were too many, and what was found is not all."""
        left = _VALUES_MAX - len(stack)
        if left < 0:
            return False
        while stack:
            value = stack.pop()
            kind = type(value)
            if kind is str:
                self._text(value)  # type: ignore[arg-type]
            elif kind is list:
                items: list[object] = value  # type: ignore[assignment]
                if items and type(items[0]) is int:
                    self.token_ids += len(items)
                    continue
                left -= len(items)
                if left < 0:
                    return False
                stack.extend(items)
            elif kind is dict:
                members: dict[str, object] = value  # type: ignore[assignment]
                left -= len(members)
                if left < 0:
                    return False
                if _is_text(members):
                    self.characters += len(members["text"])  # type: ignore[arg-type]
                    continue
                for key, member in members.items():
                    inner = type(member)
                    if key == "text" and inner is str:
                        self.characters += len(member)  # type: ignore[arg-type]
                    elif key in _NOT_TEXT or member is None:
                        if key == "name" and inner is str:  # a call of a function is read by its name
                            self.characters += len(member)  # type: ignore[arg-type]
                        elif key == "file_id" and inner is str and (sort := members.get("type")) in _FILES:
                            self._attach(sort == "input_image", "")
                    elif inner is str:
                        self._member(key, member, members)  # type: ignore[arg-type]
                    elif inner is dict or inner is list:
                        if key in _JSON:
                            self.characters += len(_ENCODER.encode(member).decode())
                        else:
                            stack.append(member)
        return True

    def _text(self, text: str) -> None:
        if text.startswith("data:") and ";base64," in text[:256]:
            self._attach(text[5:].startswith("image/"), text)
        else:
            self.characters += len(text)

    def _member(self, key: str, text: str, members: dict[str, object]) -> None:
        """A string that is no plain text: by its key it may be an attachment, or lead to one."""
        if key in _URLS:
            inline = text.startswith("data:")
            # A citation or a result of a search has a URL too, beside its title.
            if inline or key != "url" or (members.get("type", "url") == "url" and "title" not in members):
                media = _media_type(members) or (text[5:64] if inline else "image/" if key in _IMAGE_URLS else "")
                self._attach(media.startswith("image/"), text if inline else "")
                return
        elif key in _DATA and members.get("type") != "text":
            media = _media_type(members)
            if media or key != "data" or "format" in members:
                self._attach(media.startswith("image/") or text.startswith("data:image/"), text)
                return
        self._text(text)

    def _attach(self, image: bool, encoded: str) -> None:
        in_bytes = len(encoded) * 3 // 4
        self.attachments += 1
        self.attachment_bytes += in_bytes
        if image:
            self.images += 1
            self.image_bytes += in_bytes


def _media_type(members: dict[str, object]) -> str:
    for name in _MEDIA_TYPES:
        if name in members:
            return str(members[name])
    return ""
