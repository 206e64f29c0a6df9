"""Gemini's generateContent, whole and streamed.

The rules, from the Gemini API reference ("GenerateContentResponse", "UsageMetadata"), "Gemini API pricing" and
"Grounding with Google Search":

* usageMetadata is cumulative and in every chunk; the last one counts, and it counts the text of its own chunk.
* promptTokenCount includes the cached tokens; candidatesTokenCount leaves out the thoughts, which are billed as output.
* Image and video have one price and are one class; a document (PDF) has the price of text.
* Searches: Gemini 3 and later bill each query that is not empty and was not there before, older models each prompt that
  was grounded.

How it is quick: nearly all chunks of a stream are a piece of text, or of a thought, with counters. `_PlainChunk` is
just that, by its types, so that decoding a run of chunks is the test. Of a run with anything else in it the plain part
is looked for between its ends, and the others are decoded in full. The counters of a run are kept as text, and only the
last ones are decoded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from llmproxy.core.reading.events import FEW_EVENTS, plain_part
from llmproxy.core.reading.shape import Members, Path
from llmproxy.core.reading.values import (
    REFUSED,
    as_object,
    count,
    json_length,
    length,
    object_at,
    object_of,
    objects,
    tools,
    word,
)
from llmproxy.core.usage import NO_USAGE, Counters, Reading, Usage

LARGE_TEXT_BYTES_MAX: Final = 64 * 1024
"""What is cut and longer than this is an image in base64, or a sound: hardly any text is as long."""

IMAGE_CHARACTERS: Final = 8 * 1024
"""An image counts as this much text where no usage came with it: as text that is about 2,000 tokens, and Gemini bills
an image as 1,120 to 2,520. Source: "Gemini API pricing", image output."""

QUERIES_MAX: Final = 256

_PER_PROMPT: Final = ("gemini-1", "gemini-2", "gemini-pro", "gemini-flash-1", "gemini-flash-2")


_OTHERS: Final = frozenset(("embedding", "embeddings", "totalTokens", "name", "file", "cachedContents"))
_NO_USAGE: Final = msgspec.Raw(b"null")


class _PlainPart(msgspec.Struct, gc=False):
    text: str
    functionCall: None = None
    executableCode: None = None


class _PlainContent(msgspec.Struct, gc=False):
    parts: tuple[_PlainPart]


class _PlainCandidate(msgspec.Struct, gc=False):
    content: _PlainContent
    finishReason: None = None
    groundingMetadata: None = None


class _PlainChunk(msgspec.Struct, gc=False):
    """A piece of the text of one candidate with the counters so far, and nothing else that matters."""

    candidates: tuple[_PlainCandidate]
    usageMetadata: msgspec.Raw
    promptFeedback: None = None
    error: None = None


class _Part(msgspec.Struct, gc=False):
    text: Any = None
    functionCall: Any = None
    executableCode: Any = None


class _Content(msgspec.Struct, gc=False):
    parts: list[_Part] | None = None


class _Candidate(msgspec.Struct, gc=False):
    content: _Content | None = None
    finishReason: Any = None
    groundingMetadata: Any = None
    index: Any = 0


class _Chunk(msgspec.Struct, gc=False):
    """A GenerateContentResponse. usageMetadata is decoded only where it is the last."""

    candidates: list[_Candidate] | None = None
    usageMetadata: msgspec.Raw = _NO_USAGE
    modelVersion: Any = None
    responseId: Any = None
    promptFeedback: Any = None
    error: Any = None


_PLAIN: Final = msgspec.json.Decoder(list[_PlainChunk])
_COUNTERS: Final = msgspec.json.Decoder(dict[str, Any])
_CHUNKS: Final = msgspec.json.Decoder(list[_Chunk])
_ONE_PLAIN: Final = msgspec.json.Decoder(_PlainChunk)
_CHUNK: Final = msgspec.json.Decoder(_Chunk)


class Gemini:
    """One answer of generateContent or streamGenerateContent. A `Shape`."""

    __slots__ = (
        "_blocked",
        "_characters",
        "_characters_then",
        "_error",
        "_events",
        "_events_then",
        "_finish_reason",
        "_finished",
        "_grounded",
        "_model",
        "_queries",
        "_response_id",
        "_settled",
        "_usage",
    )

    name = "gemini"
    watched: frozenset[Path] = frozenset(
        (key,) for key in ("usageMetadata", "modelVersion", "responseId", "promptFeedback", "error")
    )

    def __init__(self) -> None:
        self._model: str | None = None
        self._response_id: str | None = None
        self._finish_reason: str | None = None
        self._blocked: str | None = None
        self._error: str | None = None
        self._usage: dict[str, Any] | None = None
        self._queries: set[str] = set()
        self._grounded = False
        self._finished = self._settled = False
        self._characters = self._characters_then = 0
        self._events = self._events_then = 0

    @classmethod
    def recognises(cls, keys: Mapping[str, bytes]) -> bool:
        """Embeddings and cached contents have usageMetadata too; they are other shapes."""
        if "candidates" in keys or "promptFeedback" in keys:
            return True
        if keys.keys() & _OTHERS:
            return False
        return "usageMetadata" in keys or ("modelVersion" in keys and "responseId" in keys)

    def take_body(self, body: bytes) -> None:
        """A whole answer."""
        chunk = _chunk(body)
        if chunk is not None:
            self._take((chunk,))
            self._settled = self._usage is not None

    def take_array(self, text: bytes, count: int) -> bool:
        """The chunks of a stream, as the text of a JSON array of so many; False if nothing of it was taken."""
        if self._model is not None and self._response_id is not None:  # of a plain chunk neither is decoded
            try:
                plain = _PLAIN.decode(text)
            except REFUSED:
                pass
            else:
                if len(plain) == count and self._take_plain(plain):
                    return True
        return count <= FEW_EVENTS and self._take_full(text, count)

    def take_events(self, events: Sequence[bytes]) -> None:
        """The chunks of a stream, each its JSON text."""
        if self._response_id is None and events:
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
            chunks = _CHUNKS.decode(text)
        except REFUSED:
            return False
        if len(chunks) != count:
            return False
        self._take(chunks)
        return True

    def _take_each(self, events: Sequence[bytes]) -> None:
        self._take([chunk for chunk in map(_chunk, events) if chunk is not None])

    def take_large(self, members: Members, skipped_bytes: int) -> None:
        """A chunk or an answer that was too large to keep: an image most often, which is no text, but is counted so
        where no usage came with it."""
        chunk = _converted(object_of(members))
        if chunk.usageMetadata is _NO_USAGE:
            self._characters += large_characters(skipped_bytes)
            self._events += 1
        self._take((chunk,))
        # Its finishReason was not kept. Nothing follows an answer; the next chunk of a stream says otherwise.
        self._settled = chunk.usageMetadata is not _NO_USAGE

    def reading(self, whole: bool) -> Reading:
        """What is known so far."""
        counted = self._usage is not None
        final = counted and self._settled
        reason = "error" if self._error is not None else "no_finish_reason" if whole else "stream_cut"
        if not counted and whole and self._error is None:
            reason = "no_usage"
        usage = self._usage or {}
        return Reading(
            shape=self.name,
            usage=self._usage_so_far() if counted else NO_USAGE,
            counters=Counters.FINAL if final else Counters.RUNNING if counted else Counters.ABSENT,
            reason=None if final else reason,
            model=self._model,
            response_id=self._response_id,
            finish_reason=self._finish_reason or self._blocked,
            service_tier=service_tier_of(usage),
            text_characters=self._characters,
            text_events=self._events,
            text_characters_after=self._characters - self._characters_then if counted else 0,
            text_events_after=self._events - self._events_then if counted else 0,
            error=self._error,
        )

    # -- taking

    def _take_plain(self, chunks: Sequence[_PlainChunk]) -> bool:
        """Take chunks of which the last has counters; False if it has not, and nothing was taken."""
        usage = bytes(chunks[-1].usageMetadata) if chunks else b""
        if not usage.startswith(b"{"):
            return False
        pieces = [chunk.candidates[0].content.parts[0].text for chunk in chunks]
        self._characters += len("".join(pieces))
        self._events += len(pieces) - pieces.count("")
        self._settled = False  # a chunk that ends an answer has a finishReason
        self._characters_then, self._events_then = self._characters, self._events
        self._keep_counters(usage)
        return True

    def _keep_counters(self, usage: bytes) -> None:
        try:
            self._usage = _COUNTERS.decode(usage)
        except REFUSED:
            found = object_at(usage)
            self._usage = self._usage if found is None else found

    def _take(self, chunks: Sequence[_Chunk]) -> None:
        last = b""
        for chunk in chunks:
            characters, finished = 0, False
            candidates = chunk.candidates
            if candidates:
                for candidate in candidates:
                    content = candidate.content
                    if content is not None and content.parts is not None:
                        for part in content.parts:
                            if type(part.text) is str:
                                characters += len(part.text)
                            if part.functionCall is not None or part.executableCode is not None:
                                characters += _call_characters(part)
                    if candidate.finishReason is not None:
                        finished = True
                        if candidate.index == 0:
                            self._finish_reason = word(candidate.finishReason) or self._finish_reason
                    if candidate.groundingMetadata is not None:
                        self._take_searches(candidate.groundingMetadata)
            if characters:
                self._characters += characters
                self._events += 1
            if self._model is None and chunk.modelVersion is not None:
                model = word(chunk.modelVersion)
                self._model = model and model.removeprefix("models/")
            if self._response_id is None:
                self._response_id = word(chunk.responseId)
            if chunk.promptFeedback is not None:
                blocked = word(as_object(chunk.promptFeedback).get("blockReason"))
                self._blocked = blocked or self._blocked
                finished = finished or blocked is not None
            if chunk.error is not None:
                self._error = error_kind(chunk.error)
            self._finished = self._finished or finished
            usage = bytes(chunk.usageMetadata) if chunk.usageMetadata is not _NO_USAGE else b""
            if usage.startswith(b"{"):
                last = usage
                self._characters_then, self._events_then = self._characters, self._events
                self._settled = finished or (not candidates and self._finished)
            elif candidates:
                self._settled = False
        if last:
            self._keep_counters(last)

    def _take_searches(self, grounding: object) -> None:
        queries = as_object(grounding).get("webSearchQueries")
        if isinstance(queries, list):
            self._grounded = self._grounded or bool(queries)
            for query in queries:
                if query and type(query) is str and len(self._queries) < QUERIES_MAX:
                    self._queries.add(query[:256])

    # -- telling

    def _usage_so_far(self) -> Usage:
        usage = usage_of(self._usage or {})
        searches = len(self._queries)
        if self._grounded and (self._model or "").startswith(_PER_PROMPT):
            searches = 1
        if not searches:
            return usage
        return msgspec.structs.replace(usage, server_tools=tools({"google_search": searches}))


def large_characters(size_bytes: int) -> int:
    """How much text something counts as of which only the length is known."""
    return size_bytes if size_bytes <= LARGE_TEXT_BYTES_MAX else IMAGE_CHARACTERS


def usage_of(found: Mapping[str, Any]) -> Usage:
    """The usage that a usageMetadata writes, of any types."""
    output = found.get("candidatesTokenCount", found.get("responseTokenCount"))
    return tokens_of(
        prompt=count(found.get("promptTokenCount")),
        cached=count(found.get("cachedContentTokenCount")),
        tool_use=count(found.get("toolUsePromptTokenCount")),
        answer=count(output),
        thoughts=count(found.get("thoughtsTokenCount")),
        of_prompt=_modalities(found.get("promptTokensDetails")),
        of_cached=_modalities(found.get("cacheTokensDetails")),
        of_answer=_modalities(found.get("candidatesTokensDetails", found.get("responseTokensDetails"))),
    )


def tokens_of(
    prompt: int,
    cached: int,
    tool_use: int,
    answer: int,
    thoughts: int,
    of_prompt: Mapping[str, int],
    of_cached: Mapping[str, int],
    of_answer: Mapping[str, int],
) -> Usage:
    """A usage from Google's counts: prompt includes cached, answer leaves out thoughts. of_*: tokens by modality."""
    cached = min(cached, prompt)
    fresh = prompt - cached
    audio = min(fresh, max(0, of_prompt.get("AUDIO", 0) - of_cached.get("AUDIO", 0)))
    image = min(fresh - audio, max(0, _seen(of_prompt) - _seen(of_cached)))
    audio_out = min(answer, of_answer.get("AUDIO", 0))
    return Usage(
        input_tokens=fresh,
        cache_read_tokens=cached,
        tool_use_tokens=tool_use,
        output_tokens=answer + thoughts,
        reasoning_tokens=thoughts,
        input_audio_tokens=audio,
        input_image_tokens=image,
        output_audio_tokens=audio_out,
        output_image_tokens=min(answer - audio_out, _seen(of_answer)),
    )


def _seen(modalities: Mapping[str, int]) -> int:
    return modalities.get("IMAGE", 0) + modalities.get("VIDEO", 0)


def _modalities(details: object) -> dict[str, int]:
    found: dict[str, int] = {}
    for each in objects(details):
        modality = word(each.get("modality"))
        if modality:
            found[modality] = found.get(modality, 0) + count(each.get("tokenCount"))
    return found


def service_tier_of(usage: Mapping[str, Any]) -> str | None:
    """The tier, in small letters: serviceTier, or what Vertex AI's trafficType says of it; None for the usual one."""
    tier = word(usage.get("serviceTier"))
    if tier is None:
        tier = (word(usage.get("trafficType")) or "").removeprefix("ON_DEMAND").removeprefix("_")
    return tier.lower() or None


def error_kind(error: object) -> str:
    """The kind of an error object {code, status}."""
    found = as_object(error)
    return word(found.get("status")) or word(found.get("code")) or str(count(found.get("code")) or "error")


def _call_characters(part: _Part) -> int:
    call, code = as_object(part.functionCall), as_object(part.executableCode)
    return length(call.get("name")) + json_length(call.get("args")) + length(code.get("code"))


def _chunk(text: bytes) -> _Chunk | None:
    try:
        return _CHUNK.decode(text)
    except REFUSED:
        found = object_at(text)
        return None if found is None else _converted(found)


def _converted(found: dict[str, Any]) -> _Chunk:
    """The object as a chunk, without those of its candidates that are of another form than they should have."""
    usage = found.get("usageMetadata")
    candidates = [candidate for candidate in map(_candidate, objects(found.get("candidates"))) if candidate is not None]
    return _Chunk(
        candidates=candidates or None,
        usageMetadata=msgspec.Raw(json.dumps(usage).encode()) if isinstance(usage, dict) else _NO_USAGE,
        modelVersion=found.get("modelVersion"),
        responseId=found.get("responseId"),
        promptFeedback=found.get("promptFeedback"),
        error=found.get("error"),
    )


def _candidate(found: dict[str, Any]) -> _Candidate | None:
    try:
        return msgspec.convert(found, _Candidate)
    except REFUSED:
        try:  # its finishReason is still worth having
            return msgspec.convert({**found, "content": None}, _Candidate)
        except REFUSED:
            return None
