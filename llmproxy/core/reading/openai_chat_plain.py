"""The common whole chat completion, by its types alone, so that decoding a text is the test whether it is one.

It has texts, calls of functions, and counters that are all there. The rule: what is read of a plain answer is what
core/reading/openai_chat.py would read of it without this, only quicker. So whatever it would look at is a member here,
of the one type that is plain; a text with any other is refused, and read there.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from llmproxy.core.reading.values import COUNT_MAX, word
from llmproxy.core.usage import Counters, Reading, Usage

_Count = Annotated[int, msgspec.Meta(ge=0, le=COUNT_MAX)]


class PlainInput(msgspec.Struct, gc=False):
    cached_tokens: _Count = 0
    audio_tokens: _Count = 0
    cache_write_tokens: _Count = 0
    image_tokens: _Count = 0
    cache_write_tokens_details: None = None
    cached_tokens_details: None = None


class PlainOutput(msgspec.Struct, gc=False):
    reasoning_tokens: _Count = 0
    audio_tokens: _Count = 0
    image_tokens: _Count = 0


class PlainUsage(msgspec.Struct, gc=False):
    """The counters of a chat completion. There are no details by other names, which would stand in for empty ones."""

    prompt_tokens: _Count
    completion_tokens: _Count
    total_tokens: _Count
    prompt_tokens_details: PlainInput | None = None
    completion_tokens_details: PlainOutput | None = None
    input_tokens_details: None = None
    input_token_details: None = None
    output_tokens_details: None = None
    output_token_details: None = None


class PlainFunction(msgspec.Struct, gc=False):
    name: str
    arguments: str
    input: None = None


class PlainCall(msgspec.Struct, gc=False):
    function: PlainFunction


class PlainMessage(msgspec.Struct, gc=False):
    content: str | None = None
    refusal: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[PlainCall] | None = None
    function_call: None = None
    audio: None = None


class PlainEnd(msgspec.Struct, gc=False):
    """A choice of a whole answer."""

    message: PlainMessage
    index: int = 0
    finish_reason: str | None = None
    delta: None = None
    text: None = None


class PlainGroq(msgspec.Struct, gc=False):
    usage_breakdown: None = None
    error: None = None


class PlainAnswer(msgspec.Struct, gc=False):
    """A whole answer that is plain. Groq's x_groq is often in it and says nothing of what was used."""

    choices: list[PlainEnd]
    usage: PlainUsage
    id: str | None = None
    model: str | None = None
    service_tier: str | None = None
    x_groq: PlainGroq | None = None
    usage_breakdown: None = None
    error: None = None


PLAIN_ANSWER: Final = msgspec.json.Decoder(PlainAnswer)


def plain_usage(found: PlainUsage) -> Usage:
    """As `usage_of`, where every counter is there and of its type."""
    given, made = found.prompt_tokens, found.completion_tokens
    beyond = found.total_tokens - given - made
    if beyond < 0:
        beyond = 0
    made += beyond
    fresh, reasoning = given, beyond
    read = written = audio = image = made_audio = made_image = 0
    details = found.prompt_tokens_details
    if details is not None:
        # Most counts are 0, and `min` is a call.
        if details.cached_tokens or details.cache_write_tokens:
            read = min(details.cached_tokens, given)
            written = min(details.cache_write_tokens, given - read)
            fresh = given - read - written
        if details.audio_tokens or details.image_tokens:
            audio = min(details.audio_tokens, fresh)
            image = min(details.image_tokens, fresh - audio)
    output = found.completion_tokens_details
    if output is not None:
        if output.audio_tokens or output.image_tokens:
            made_audio = min(output.audio_tokens, made)
            made_image = min(output.image_tokens, made - made_audio)
        if output.reasoning_tokens or beyond:
            reasoning = min(max(output.reasoning_tokens, beyond), made - made_audio - made_image)
    # By position, which is quicker: in the order of its fields.
    return Usage(fresh, read, written, 0, 0, made, reasoning, audio, image, made_audio, made_image)


class PlainChat:
    """The quickest way for the most frequent answer: a `PlainShape`.

    Such an answer has `choices` at its top level, and the shape of chat completions is asked first for that (in
    core/reading/catalog.py), so no other one would have taken it.
    """

    plain_sign = b'"chat.completion"'

    @staticmethod
    def read_plain(body: bytes) -> Reading | None:
        """As OpenAIChat reads it; None if it is not plain."""
        try:
            answer = PLAIN_ANSWER.decode(body)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return None
        characters = 0
        finish_reason = None
        for choice in answer.choices:
            message = choice.message
            if message.content is not None:
                characters += len(message.content)
            reasoning = message.reasoning_content or message.reasoning
            if reasoning is not None:
                characters += len(reasoning)
            if message.refusal is not None:
                characters += len(message.refusal)
            if message.tool_calls is not None:
                for call in message.tool_calls:
                    characters += len(call.function.name) + len(call.function.arguments)
            if choice.index == 0:
                why = choice.finish_reason
                finish_reason = why if why in _FINISH_REASONS else word(why) or finish_reason
        events = 1 if characters else 0
        return Reading(
            shape="openai-chat",
            usage=plain_usage(answer.usage),
            counters=_FINAL,
            model=word(answer.model),
            response_id=word(answer.id),
            finish_reason=finish_reason,
            service_tier=None if answer.service_tier is None else word(answer.service_tier),
            text_characters=characters,
            text_events=events,
        )


_FINISH_REASONS: Final = frozenset(("stop", "length", "tool_calls", "content_filter"))
_FINAL: Final = Counters.FINAL  # an enumeration is slow to look up
