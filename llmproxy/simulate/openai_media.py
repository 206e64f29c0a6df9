"""OpenAI's images and transcriptions: whole and streamed, by tokens, by the piece, and by the length of the sound.

Shapes: https://platform.openai.com/docs/api-reference/{images,images-streaming,audio}. The rules kept here: a GPT image
model tells its tokens, dall-e nothing; a transcription is billed by tokens, that of whisper-1 by seconds; in a stream
the usage is in the last event alone. Tokens of an image: https://platform.openai.com/docs/guides/image-generation.
"""

import base64
from collections.abc import Iterator
from typing import Any, Final

from llmproxy.simulate import catalog
from llmproxy.simulate.answer import Answer, Question, answer_to, dumps, seed_of, tokens_of
from llmproxy.simulate.ask import Ask, House, Refusal, Reply
from llmproxy.simulate.multipart import file_of
from llmproxy.simulate.openai_chat import SSE, data_event, whole_number
from llmproxy.simulate.served import Served

PNG: Final = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
"""One pixel. An image of more bytes has zeros behind it, which no reader minds."""
_SQUARE_TOKENS: Final = {"low": 272, "medium": 1056, "high": 4160}
_PARTIAL_TOKENS: Final = 100
_SOUND_BYTES_A_SECOND: Final = 16_000
_SOUND_TOKENS_A_SECOND: Final = 10


def images(ask: Ask, house: House) -> Reply:
    """`POST images/generations`. `bytes` is the size of each image."""
    body = ask.json()
    model = ask.model(body.get("model", "dall-e-2"))
    prompt = body.get("prompt")
    if not isinstance(prompt, str):
        raise Refusal(400, "Missing required parameter: 'prompt'.", param="prompt")
    ask.must_fit()
    count = min(max(whole_number(body.get("n")) or 1, 1), 10)
    image = base64.b64encode(PNG.ljust(ask.wishes.text_bytes or 0, b"\0")).decode()
    served = Served(provider=ask.provider, model=model)
    if "dall-e" in model:
        key = "b64_json" if body.get("response_format") == "b64_json" else "url"
        shown = image if key == "b64_json" else "https://simulator.invalid/image.png"
        made = {"created": ask.created, "data": [{key: shown, "revised_prompt": prompt}] * count}
        return Reply(body=dumps(made), served=served)

    quality = body["quality"] if body.get("quality") in _SQUARE_TOKENS else "high"
    kind = {"background": "opaque", "output_format": "png", "quality": quality, "size": "1024x1024"}
    streamed = body.get("stream") is True
    partials = min(whole_number(body.get("partial_images")) or 0, 3) if streamed else 0
    served.input_tokens = tokens_of(prompt) + ask.wishes.image_tokens
    served.output_tokens = _SQUARE_TOKENS[quality] * count + _PARTIAL_TOKENS * partials
    usage = {
        "total_tokens": served.input_tokens + served.output_tokens,
        "input_tokens": served.input_tokens,
        "output_tokens": served.output_tokens,
        "input_tokens_details": {"text_tokens": tokens_of(prompt), "image_tokens": ask.wishes.image_tokens},
    }
    told = {} if ask.wishes.without_usage else {"usage": usage}

    def events() -> Iterator[bytes]:
        for index in range(partials):
            served.made(_PARTIAL_TOKENS)
            yield _event("image_generation.partial_image", begun | {"partial_image_index": index})
        if told:
            served.told()
        else:
            served.made(served.output_tokens - _PARTIAL_TOKENS * partials)
        yield _event("image_generation.completed", begun | told)

    if streamed:
        begun = {"b64_json": image, "created_at": ask.created} | kind
        return Reply(events=events(), content_type=SSE, served=served)
    if told:
        served.told()
    return Reply(
        body=dumps({"created": ask.created, "data": [{"b64_json": image}] * count} | kind | told), served=served
    )


def _event(name: str, value: dict[str, Any]) -> bytes:
    return b"event: " + name.encode() + b"\n" + data_event({"type": name} | value)


def transcriptions(ask: Ask, house: House) -> Reply:
    """`POST audio/transcriptions`, multipart. The text is a function of the sound's bytes."""
    sent = file_of(ask.field(b"content-type"), ask.body, ask.body_bytes)
    if sent is None:
        raise Refusal(400, "'file' is a required property", param="file")
    values = sent.values
    model = catalog.dated(catalog.OPENAI, ask.model(values.get("model")))
    seconds = max(1, -(-sent.size_bytes // _SOUND_BYTES_A_SECOND))
    heard = Question(texts=[str(seed_of(sent.content.hex()))])
    answer = answer_to(heard, ask.wishes)
    if values.get("response_format") in ("text", "srt", "vtt"):
        served = Served(provider=ask.provider, model=model, audio_s=seconds, output_tokens=answer.text_tokens)
        return Reply(body=answer.text().encode() + b"\n", content_type=b"text/plain; charset=utf-8", served=served)
    if "whisper" in model:
        return _by_seconds(ask, model, answer, seconds, verbose=values.get("response_format") == "verbose_json")

    sound, written = seconds * _SOUND_TOKENS_A_SECOND, tokens_of(values.get("prompt", ""))
    served = Served(provider=ask.provider, model=model, input_tokens=sound + written, output_tokens=answer.text_tokens)
    usage = {
        "type": "tokens",
        "total_tokens": served.input_tokens + served.output_tokens,
        "input_tokens": served.input_tokens,
        "input_token_details": {"text_tokens": written, "audio_tokens": sound},
        "output_tokens": served.output_tokens,
    }
    told = {} if ask.wishes.without_usage else {"usage": usage}

    def events() -> Iterator[bytes]:
        for piece, tokens in answer.counted_pieces():
            served.made(tokens)
            yield data_event({"type": "transcript.text.delta", "delta": piece})
        if told:
            served.told()
        yield data_event({"type": "transcript.text.done", "text": answer.text()} | told)

    if values.get("stream") == "true":
        return Reply(events=events(), content_type=SSE, served=served)
    ask.must_fit()
    if told:
        served.told()
    return Reply(body=dumps({"text": answer.text()} | told), served=served)


def _by_seconds(ask: Ask, model: str, answer: Answer, seconds: int, *, verbose: bool) -> Reply:
    """What whisper-1 answers; it does not stream, whatever is asked."""
    ask.must_fit()
    made: dict[str, Any] = {"text": answer.text()}
    if verbose:
        made = {"task": "transcribe", "language": "english", "duration": float(seconds)} | made | {"segments": []}
    if not ask.wishes.without_usage:
        made["usage"] = {"type": "duration", "seconds": seconds}
    served = Served(provider=ask.provider, model=model, audio_s=seconds, told=not ask.wishes.without_usage)
    return Reply(body=dumps(made), served=served)
