"""Chat completions and the older completions, whole and streamed: OpenAI's, Groq's, and the answers that Anthropic and
Gemini give in that shape.

The rules: the last usage counts, for some providers send one with each chunk, counting up. It is the whole of it if the
answer had nothing more to say when it came: no choices in its chunk, or a finish reason before. All choices are text
that is billed; the first one has the finish reason.

How it is quick: nearly all chunks of a stream are a piece of content and nothing else. `_PlainChunk` is just that, by
its types, so that decoding a run of chunks is the test. Of a run with anything else in it the plain part is looked for
between its ends, and the others are decoded in full. Chunks that differ in their text alone are not decoded at all
(core/reading/repetition.py).
A whole answer is most often a `PlainAnswer` (core/reading/openai_chat_plain.py).

Sources: OpenAI API reference, "Chat", "Streaming" and "Completions"; Groq API reference, "Chat" (x_groq,
usage_breakdown); Gemini API, "OpenAI compatibility"; Anthropic, "OpenAI SDK compatibility".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from llmproxy.core.reading.events import FEW_EVENTS, plain_part
from llmproxy.core.reading.openai_chat_plain import PLAIN_ANSWER, PlainAnswer, plain_usage
from llmproxy.core.reading.openai_usage import (
    LARGE_CHARACTERS_MAX,
    breakdown_parts,
    error_kind,
    is_counted,
    left_over,
    usage_of,
)
from llmproxy.core.reading.repetition import TextRun
from llmproxy.core.reading.shape import Members, Path
from llmproxy.core.reading.values import as_object, object_at, object_of, word
from llmproxy.core.usage import NO_USAGE, Counters, Reading, Usage


class _PlainDelta(msgspec.Struct, gc=False):
    content: str
    tool_calls: None = None
    function_call: None = None
    refusal: None = None
    reasoning: None = None
    reasoning_content: None = None
    audio: None = None


class _PlainChoice(msgspec.Struct, gc=False):
    delta: _PlainDelta
    finish_reason: None = None
    text: None = None


class _PlainChunk(msgspec.Struct, gc=False):
    """A piece of the content of one choice, and nothing else that matters."""

    choices: tuple[_PlainChoice]
    usage: None = None
    usage_breakdown: None = None
    x_groq: None = None
    error: None = None


class _Delta(msgspec.Struct):
    content: Any = None
    refusal: Any = None
    reasoning: Any = None
    reasoning_content: Any = None
    tool_calls: Any = None
    function_call: Any = None
    audio: Any = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    message: _Delta | None = None
    text: Any = None
    finish_reason: Any = None
    index: Any = 0


class _Chunk(msgspec.Struct):
    """A chunk or a whole answer. What is Any may be of any type, so that decoding does not fail for it."""

    choices: list[_Choice] | None = None
    usage: Any = None
    x_groq: Any = None
    usage_breakdown: Any = None
    error: Any = None
    id: Any = None
    model: Any = None
    service_tier: Any = None


_PLAIN: Final = msgspec.json.Decoder(list[_PlainChunk])
_FULL: Final = msgspec.json.Decoder(list[_Chunk])
_ONE_PLAIN: Final = msgspec.json.Decoder(_PlainChunk)
_ONE: Final = msgspec.json.Decoder(_Chunk)
_REFUSED: Final = (msgspec.MsgspecError, ValueError, RecursionError)

# A member of an enumeration is slow to get from its class.
_FINAL: Final = Counters.FINAL
_RUNNING: Final = Counters.RUNNING
_ABSENT: Final = Counters.ABSENT

_OBJECTS: Final = frozenset({b'"chat.completion"', b'"chat.completion.chunk"', b'"text_completion"'})


class OpenAIChat:
    """One answer of chat completions or the older completions. A `Shape`."""

    __slots__ = (
        "_breakdown",
        "_characters",
        "_characters_then",
        "_error",
        "_events",
        "_events_then",
        "_finish_reason",
        "_model",
        "_response_id",
        "_service_tier",
        "_settled",
        "_usage",
    )

    name = "openai-chat"
    watched: frozenset[Path] = frozenset(
        (key,)
        for key in ("choices", "error", "id", "model", "object", "service_tier", "usage", "usage_breakdown", "x_groq")
    )

    def __init__(self) -> None:
        self._model: str | None = None
        self._response_id: str | None = None
        self._finish_reason: str | None = None
        self._service_tier: str | None = None
        self._error: str | None = None
        self._usage: dict[str, Any] | Usage | None = None  # as written; that of a plain answer is read straight away
        self._breakdown: object = None
        self._settled = False
        self._characters = self._characters_then = 0
        self._events = self._events_then = 0

    @classmethod
    def recognises(cls, keys: Mapping[str, bytes]) -> bool:
        """Azure's first chunk has an empty object and model; it still has choices."""
        return "choices" in keys or keys.get("object") in _OBJECTS

    def take_body(self, body: bytes) -> None:
        """A whole answer."""
        try:
            plain = PLAIN_ANSWER.decode(body)
        except _REFUSED:
            pass
        else:
            self._take_plain(plain)
            return
        chunk = _chunk(body)
        if chunk is not None:
            self._take((chunk,))
            self._settled = self._usage is not None

    def take_array(self, text: bytes, count: int) -> bool:
        """The chunks of a stream, as the text of a JSON array of so many; False if nothing of it was taken."""
        if self._model is None:  # of a plain chunk it is not decoded
            return count <= FEW_EVENTS and self._take_full(text, count)
        try:
            plain = _PLAIN.decode(text)
        except _REFUSED:
            return count <= FEW_EVENTS and self._take_full(text, count)
        if len(plain) != count:
            return False
        pieces = [chunk.choices[0].delta.content for chunk in plain]
        self._characters += len("".join(pieces))
        self._events += count - pieces.count("")
        return True

    def plain_text(self, event: bytes) -> str | None:
        """The piece of text that an event is, if it is nothing else; see core/reading/repetition.py."""
        try:
            return None if self._model is None else _ONE_PLAIN.decode(event).choices[0].delta.content
        except _REFUSED:
            return None

    def take_text(self, run: TextRun) -> None:
        """Events that are such pieces."""
        self._characters += run.characters
        self._events += run.brought

    def take_events(self, events: Sequence[bytes]) -> None:
        """The chunks of a stream, each its JSON text."""
        if self._model is None and events:
            self._take_each(events[:1])
            events = events[1:]
        begin, end = plain_part(events, _ONE_PLAIN)
        if begin:
            self._take_each(events[:begin])
        middle = events[begin:end]
        text = b"[%b]" % b",".join(middle)
        if middle and not (self.take_array(text, len(middle)) or self._take_full(text, len(middle))):
            self._take_each(middle)
        if end < len(events):
            self._take_each(events[end:])

    def _take_full(self, text: bytes, count: int) -> bool:
        try:
            chunks = _FULL.decode(text)
        except _REFUSED:
            return False
        if len(chunks) != count:
            return False
        self._take(chunks)
        return True

    def _take_each(self, events: Sequence[bytes]) -> None:
        self._take([chunk for chunk in map(_chunk, events) if chunk is not None])

    def take_large(self, members: Members, skipped_bytes: int) -> None:
        """A chunk or an answer that was too large to keep."""
        found = object_of(members)
        chunk = _convert(found)
        events_before, usage_before = self._events, self._usage
        self._take((chunk,))
        if self._events == events_before and not chunk.choices:  # the choices were what was so large
            self._characters += min(skipped_bytes, LARGE_CHARACTERS_MAX)
            self._events += 1
            if self._usage is not usage_before:
                self._characters_then, self._events_then = self._characters, self._events
        if found.get("object") != "chat.completion.chunk":
            self._settled = self._usage is not None

    def reading(self, whole: bool) -> Reading:
        """What is known so far."""
        counters = _ABSENT
        reason: str | None = "no_usage" if whole else "stream_cut"
        usage = NO_USAGE
        if self._usage is not None:
            usage = self._counted(self._usage)
            # Text that came after the counters is not in them, whatever they seemed to be.
            if whole or (self._settled and self._characters == self._characters_then):
                counters, reason = _FINAL, None
            else:
                counters = _RUNNING
        elif self._error is not None:
            reason = "error"
        return Reading(
            shape=self.name,
            usage=usage,
            counters=counters,
            reason=reason,
            model=self._model,
            response_id=self._response_id,
            finish_reason=self._finish_reason,
            service_tier=self._service_tier,
            text_characters=self._characters,
            text_events=self._events,
            text_characters_after=0 if self._usage is None else self._characters - self._characters_then,
            text_events_after=0 if self._usage is None else self._events - self._events_then,
            error=self._error,
        )

    def _counted(self, found: dict[str, Any] | Usage) -> Usage:
        usage = found if isinstance(found, Usage) else usage_of(found)
        return usage if self._breakdown is None else left_over(usage, breakdown_parts(self._breakdown))

    def _take_plain(self, answer: PlainAnswer) -> None:
        characters = 0
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
                self._finish_reason = word(choice.finish_reason) or self._finish_reason
        if characters:
            self._characters += characters
            self._events += 1
        if self._model is None:
            self._model = word(answer.model)
        if self._response_id is None:
            self._response_id = word(answer.id)
        self._service_tier = word(answer.service_tier) or self._service_tier
        self._usage = plain_usage(answer.usage)
        self._settled = True
        self._characters_then, self._events_then = self._characters, self._events

    def _take(self, chunks: Sequence[_Chunk]) -> None:
        for chunk in chunks:
            characters = 0
            for choice in chunk.choices or ():
                if type(choice.text) is str:
                    characters += len(choice.text)
                delta = choice.delta or choice.message
                if delta is not None:
                    characters += _text_characters(delta)
                if choice.finish_reason is not None and choice.index == 0:
                    self._finish_reason = word(choice.finish_reason) or self._finish_reason
            if characters:
                self._characters += characters
                self._events += 1
            # A plain chunk is not asked for these, so none of its like is: what is read is the same for every split.
            if self._model is None or chunk.usage is not None or chunk.x_groq is not None:
                if self._response_id is None:
                    self._response_id = word(chunk.id)
                if chunk.service_tier is not None:
                    self._service_tier = word(chunk.service_tier) or self._service_tier
                if self._model is None:
                    self._model = word(chunk.model)
            if chunk.error is not None:
                self._error = error_kind(chunk.error) or self._error
            usage, breakdown = chunk.usage, chunk.usage_breakdown
            if chunk.x_groq is not None:
                groq = as_object(chunk.x_groq)
                usage = usage if is_counted(usage) else groq.get("usage")
                breakdown = breakdown or groq.get("usage_breakdown")
                self._error = error_kind(groq.get("error")) or self._error
            if breakdown is not None:
                self._breakdown = breakdown
            if usage is not None and is_counted(usage):
                self._usage = usage
                self._settled = not chunk.choices or self._finish_reason is not None
                self._characters_then, self._events_then = self._characters, self._events


def _text_characters(delta: _Delta) -> int:
    characters = 0
    if type(delta.content) is str:
        characters = len(delta.content)
    # Where a server writes its reasoning under both names, it is the same text.
    reasoning = delta.reasoning_content or delta.reasoning
    if type(reasoning) is str:
        characters += len(reasoning)
    if type(delta.refusal) is str:
        characters += len(delta.refusal)
    if delta.tool_calls is not None and isinstance(delta.tool_calls, list):
        for call in delta.tool_calls:
            if isinstance(call, dict):
                characters += _call_characters(call.get("function") or call.get("custom"))
    if delta.function_call is not None:
        characters += _call_characters(delta.function_call)
    if delta.audio is not None:
        transcript = as_object(delta.audio).get("transcript")
        characters += len(transcript) if type(transcript) is str else 0
    return characters


def _call_characters(call: object) -> int:
    """A call of a function {name, arguments}, or of a custom tool {name, input}."""
    characters = 0
    if isinstance(call, dict):
        for name in ("name", "arguments", "input"):
            value = call.get(name)
            if type(value) is str:
                characters += len(value)
    return characters


def _chunk(text: bytes) -> _Chunk | None:
    try:
        return _ONE.decode(text)
    except _REFUSED:
        found = object_at(text)
        return None if found is None else _convert(found)


def _convert(found: dict[str, Any]) -> _Chunk:
    """The object as a chunk, without those of its choices that are of another form than they should have."""
    choices = found.get("choices")
    fitting = [each for each in choices if _fits(each)] if isinstance(choices, list) else None
    return msgspec.convert({**found, "choices": fitting}, _Chunk)


def _fits(choice: object) -> bool:
    try:
        msgspec.convert(choice, _Choice)
    except _REFUSED:
        return False
    return True
