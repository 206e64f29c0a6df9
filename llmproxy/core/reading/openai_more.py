"""OpenAI's smaller answers: embeddings, images, audio, batches, and all that bills nothing.

The rule: what is not known to be free is not free. An answer is free only if it names itself as an object that costs
nothing: a list, a file, a model, a job, a count.

Sources: OpenAI API reference, "Embeddings", "Images", "Audio", "Batch", "Moderations", "Files" and the other objects;
OpenAI guide "Batch API" (what was done of a batch before it expired or was cancelled is billed).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

import msgspec
from msgspec.structs import replace

from llmproxy.core.reading.openai_usage import (
    LARGE_CHARACTERS_MAX,
    error_kind,
    images_usage_of,
    is_counted,
    svg_part,
    usage_of,
)
from llmproxy.core.reading.shape import Members, Path
from llmproxy.core.reading.values import as_object, object_at, object_of, word
from llmproxy.core.usage import NO_USAGE, Counters, Reading, Usage


class _Answer(msgspec.Struct):
    """The members that any of these answers has. All may be of any type, so that decoding does not fail for one."""

    type: Any = None
    object: Any = None
    id: Any = None
    model: Any = None
    status: Any = None
    usage: Any = None
    svg_usage: Any = None
    text: Any = None
    delta: Any = None
    transcript: Any = None
    duration: Any = None
    deleted: Any = None
    error: Any = None


_ONE: Final = msgspec.json.Decoder(_Answer)
_MANY: Final = msgspec.json.Decoder(list[_Answer])
_REFUSED: Final = (msgspec.MsgspecError, ValueError, RecursionError)
_MILLISECONDS_MAX: Final = 10**12

_ENDED_BATCHES: Final = frozenset({"completed", "expired", "cancelled", "failed"})
_FREE_OBJECTS: Final = frozenset(
    """
    list page bucket model file upload upload.part
    fine_tuning.job fine_tuning.job.event fine_tuning.job.checkpoint checkpoint.permission
    vector_store vector_store.file vector_store.files_batch vector_store.file_content.page
    vector_store.search_results.page
    conversation container container.file eval eval.run eval.run.output_item skill skill.version
    response.input_tokens realtime.session realtime.transcription_session
    thread thread.message assistant audio.voice audio.voice_consent
    """.split()
)
_FREE_KINDS: Final = ("organization.", "project.")
_NOT_AUDIO: Final = frozenset({"object", "type", "choices", "candidates", "content", "output", "completion"})


class _Small:
    """What these shapes have in common: each answer or event is some members, and the last usage counts."""

    __slots__ = ("_characters", "_error", "_events", "_model", "_response_id", "_status", "_usage")

    name = "openai"
    watched: frozenset[Path] = frozenset((name,) for name in _Answer.__struct_fields__)

    def __init__(self) -> None:
        self._model: str | None = None
        self._response_id: str | None = None
        self._status: str | None = None
        self._error: str | None = None
        self._usage: Usage | None = None
        self._characters = self._events = 0

    def take_body(self, body: bytes) -> None:
        """A whole answer."""
        answer = _answer(body)
        if answer is not None:
            self._take(answer)

    def take_events(self, events: Sequence[bytes]) -> None:
        """The events of a stream, each its JSON text."""
        try:
            answers = _MANY.decode(b"[%b]" % b",".join(events))
        except _REFUSED:
            answers = []
        if len(answers) != len(events):
            answers = [answer for answer in map(_answer, events) if answer is not None]
        for answer in answers:
            self._take(answer)

    def take_large(self, members: Members, skipped_bytes: int) -> None:
        """An event or an answer that was too large to keep: an image, vectors."""
        del skipped_bytes
        self._take(msgspec.convert(object_of(members), _Answer))

    def reading(self, whole: bool) -> Reading:
        """What is known so far."""
        counters = Counters.ABSENT
        reason: str | None = "no_usage" if whole else "stream_cut"
        if self._usage is not None:
            counters, reason = Counters.FINAL, None
        elif self._error is not None:
            reason = "error"
        return self._reading(counters, reason)

    def _reading(self, counters: Counters, reason: str | None, batch: bool = False, once: str | None = None) -> Reading:
        return Reading(
            shape=self.name,
            usage=self._usage or NO_USAGE,
            counters=counters,
            reason=reason,
            model=self._model,
            response_id=self._response_id,
            finish_reason=None,
            batch=batch,
            text_characters=self._characters,
            text_events=self._events,
            error=self._error,
            once=once,
        )

    def _take(self, answer: _Answer) -> None:
        self._model = word(answer.model) or self._model
        self._response_id = word(answer.id) or self._response_id
        self._status = word(answer.status) or self._status
        if answer.error is not None:
            self._error = error_kind(answer.error) or self._error
        self._usage = self._usage_of(answer) or self._usage

    def _usage_of(self, answer: _Answer) -> Usage | None:
        return usage_of(answer.usage) if is_counted(answer.usage) else None


class OpenAIEmbeddings(_Small):
    """Embeddings. They are a list like any other; what tells them is that it has a model and a usage. A `Shape`."""

    __slots__ = ()

    name = "openai-embeddings"

    @classmethod
    def recognises(cls, keys: Mapping[str, bytes]) -> bool:
        """A list with a usage or a model."""
        return keys.get("object") == b'"list"' and _has_usage(keys)


class OpenAIImages(_Small):
    """Images that were made or edited, whole or streamed. A `Shape`.

    Those of dall-e have no usage: they are billed by the piece.
    """

    __slots__ = ()

    name = "openai-images"

    @classmethod
    def recognises(cls, keys: Mapping[str, bytes]) -> bool:
        """An event of an image, or data that was created and is no list."""
        if keys.get("type", b"").startswith((b'"image_generation.', b'"image_edit.')):
            return True
        return "data" in keys and "created" in keys and "object" not in keys

    def _usage_of(self, answer: _Answer) -> Usage | None:
        usage = images_usage_of(answer.usage) if is_counted(answer.usage) else None
        part = svg_part(answer.svg_usage)
        if part is None:
            return usage
        return replace(usage or NO_USAGE, parts=(part,))


class OpenAITranscription(_Small):
    """Sound to text, whole or streamed, and text to sound where that is streamed as events. A `Shape`.

    Some models bill tokens, others the length of the sound. A verbose answer tells the length anyway: it counts where
    there is no usage.
    """

    __slots__ = ()

    name = "openai-audio"

    _EVENTS: ClassVar = (b'"transcript.text.', b'"speech.audio.', b'"conversation.item.input_audio_transcription.')

    @classmethod
    def recognises(cls, keys: Mapping[str, bytes]) -> bool:
        """An event of a transcript or of speech, or a text that is nothing else."""
        if keys.get("type", b"").startswith(cls._EVENTS):
            return True
        return "text" in keys and _NOT_AUDIO.isdisjoint(keys)

    def take_large(self, members: Members, skipped_bytes: int) -> None:
        """An event or an answer that was too large to keep."""
        answer = msgspec.convert(object_of(members), _Answer)
        if answer.type is None and answer.text is None:  # it is what was so large
            self._characters += min(skipped_bytes, LARGE_CHARACTERS_MAX)
            self._events += 1
        self._take(answer)

    def _take(self, answer: _Answer) -> None:
        super()._take(answer)
        kind = answer.type
        if kind is None:
            written = answer.text
        elif type(kind) is str and kind.endswith(".delta") and not kind.startswith("speech."):
            written = answer.delta
        else:
            return
        if type(written) is str and written:
            self._characters += len(written)
            self._events += 1

    def _usage_of(self, answer: _Answer) -> Usage | None:
        found = as_object(answer.usage)
        if is_counted(found):
            usage = usage_of(found)
            if type(answer.type) is str and answer.type.startswith("speech."):
                return replace(usage, output_audio_tokens=usage.output_tokens)
            return usage
        audio_ms = _milliseconds(found.get("seconds"))
        if audio_ms is None:
            audio_ms = _milliseconds(answer.duration)
        return None if audio_ms is None else Usage(audio_ms=audio_ms)


class OpenAIBatch(_Small):
    """A batch: asked for again and again, counted once when it has ended. A `Shape`."""

    __slots__ = ()

    name = "openai-batch"

    @classmethod
    def recognises(cls, keys: Mapping[str, bytes]) -> bool:
        """A batch by itself. In a list of batches none is counted."""
        return keys.get("object") == b'"batch"'

    def reading(self, whole: bool) -> Reading:
        """Final once the batch has ended, whether it was done wholly or in part."""
        del whole
        if self._status not in _ENDED_BATCHES:
            return self._reading(Counters.FREE, "batch_pending", batch=True)
        if self._usage is None or self._response_id is None:
            return self._reading(Counters.FREE, "batch_without_usage", batch=True)
        return self._reading(Counters.FINAL, None, batch=True, once=self._response_id)

    def _usage_of(self, answer: _Answer) -> Usage | None:
        return super()._usage_of(answer) if word(answer.status) in _ENDED_BATCHES else None


class OpenAIFree(_Small):
    """What bills nothing; `Reading.reason` says what it is. A `Shape`."""

    __slots__ = ("_kind",)

    name = "openai-free"

    def __init__(self) -> None:
        super().__init__()
        self._kind = "free"

    @classmethod
    def recognises(cls, keys: Mapping[str, bytes]) -> bool:
        """An object that is known to cost nothing, something that was deleted, or a moderation."""
        kind = keys.get("object", b"").strip(b'"').decode("ascii", "replace")
        if kind in _FREE_OBJECTS or kind.endswith(".deleted") or kind.startswith(_FREE_KINDS):
            return not (kind == "list" and _has_usage(keys))
        return (
            keys.get("deleted") in (b"true", b"false")
            or keys.get("id", b"").startswith(b'"modr-')
            or {"value", "expires_at", "session"} <= keys.keys()  # a client's secret for Realtime
        )

    def reading(self, whole: bool) -> Reading:
        """Free, and what it is. A list that was cut may be one of embeddings: their usage is at the end."""
        if self._kind == "list" and not whole:
            return self._reading(Counters.ABSENT, "stream_cut")
        return self._reading(Counters.FREE, self._kind)

    def _take(self, answer: _Answer) -> None:
        super()._take(answer)
        kind = word(answer.object) or ""
        if answer.deleted is not None or kind.endswith(".deleted"):
            self._kind = "deleted"
        elif kind == "response.input_tokens":
            self._kind = "token_count"
        elif kind:
            self._kind = kind.replace(".", "_")
        elif (self._response_id or "").startswith("modr-"):
            self._kind = "moderation"

    def _usage_of(self, answer: _Answer) -> Usage | None:
        return None


def _answer(text: bytes) -> _Answer | None:
    try:
        return _ONE.decode(text)
    except _REFUSED:
        found = object_at(text)
        return None if found is None else msgspec.convert(found, _Answer)


def _has_usage(keys: Mapping[str, bytes]) -> bool:
    """Whether a list is one of embeddings: other lists have no model, and no usage."""
    return "model" in keys or keys.get("usage", b"null") != b"null"


def _milliseconds(seconds: object) -> int | None:
    """A length of sound as it is billed. whisper-1's verbose answers tell it as text in some versions."""
    if type(seconds) is str:
        try:
            seconds = float(seconds)
        except ValueError:
            return None
    if not isinstance(seconds, int | float) or isinstance(seconds, bool) or not math.isfinite(seconds) or seconds < 0:
        return None
    return min(round(seconds * 1000), _MILLISECONDS_MAX)
