"""OpenAI's usage objects, in every spelling, as classes of tokens; and what its shapes have in common besides.

The rule: the parts never exceed the whole that the provider tells, whatever it tells. What is cached is part of the
input, reasoning is part of the output; a count of another type than a whole number from 0 is as good as none.

Sources: OpenAI API reference, "The chat completion object" (usage), "The response object" (usage, tool_usage), "Images"
(usage, svg_usage), Realtime "response.done"; OpenAI guide "Prompt caching"; Groq API reference, "Chat" (usage,
usage_breakdown); Gemini API, "OpenAI compatibility".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from msgspec.structs import replace

from llmproxy.core.reading import values
from llmproxy.core.reading.values import COUNT_MAX, as_object, is_count, subtract, word
from llmproxy.core.usage import ModelUsage, Usage

_PARTS_MAX: Final = 64

_INPUT: Final = ("prompt_tokens", "input_tokens")
_OUTPUT: Final = ("completion_tokens", "output_tokens")
_INPUT_DETAILS: Final = ("prompt_tokens_details", "input_tokens_details", "input_token_details")
_OUTPUT_DETAILS: Final = ("completion_tokens_details", "output_tokens_details", "output_token_details")
_TOTAL: Final = ("total_tokens",)
_COUNTERS: Final = (*_INPUT, *_OUTPUT, *_TOTAL)

LARGE_CHARACTERS_MAX: Final = 64 * 1024
"""A value too large to keep counts as this much text at most: what is longer is an image or a sound in base64."""


def usage_of(found: Mapping[str, Any]) -> Usage:
    """The classes of one usage object: chat's names or those of Responses, images, audio, realtime and batches.

    Where the total is more than input and output, the rest is thoughts that the output leaves out (Gemini's
    OpenAI-compatible answers): reasoning, and output. Where one of the three is missing, the other two tell it.
    """
    input_tokens, output_tokens, total = _first(found, _INPUT), _first(found, _OUTPUT), _first(found, _TOTAL)
    beyond = 0
    if total is not None:
        if input_tokens is None:
            input_tokens = max(0, total - (output_tokens or 0))
        elif output_tokens is None:
            output_tokens = max(0, total - input_tokens)
        else:
            beyond = max(0, total - input_tokens - output_tokens)
    read = written = written_1h = audio = image = 0
    given = input_tokens or 0
    details = _details(found, _INPUT_DETAILS)
    if details:
        read = min(count(details, "cached_tokens"), given)
        written = min(count(details, "cache_write_tokens"), given - read)
        audio, image = count(details, "audio_tokens"), count(details, "image_tokens")
    if "cache_write_tokens_details" in details:
        ttl = as_object(details["cache_write_tokens_details"])
        # "30m" and "12h" are the ones that there are. Which one it is where only the sum is told, is not known: the
        # shorter one is the default.
        short, long = count(ttl, "ttl_30m_tokens"), count(ttl, "ttl_12h_tokens")
        written = written or min(short + long, given - read)
        written_1h = min(long, written)
    if "cached_tokens_details" in details:
        # Realtime says how much of what is cached is audio; only what is not cached is of the class input_tokens.
        cached = as_object(details["cached_tokens_details"])
        audio = max(0, audio - count(cached, "audio_tokens"))
        image = max(0, image - count(cached, "image_tokens"))
    fresh = given - read - written
    audio = min(audio, fresh)
    image = min(image, fresh - audio)
    made = (output_tokens or 0) + beyond
    reasoning = made_audio = made_image = 0
    details = _details(found, _OUTPUT_DETAILS)
    if details or beyond:
        made_audio = min(count(details, "audio_tokens"), made)
        made_image = min(count(details, "image_tokens"), made - made_audio)
        reasoning = min(max(count(details, "reasoning_tokens"), beyond), made - made_audio - made_image)
    return Usage(
        input_tokens=fresh,
        cache_read_tokens=read,
        cache_write_5m_tokens=written - written_1h,
        cache_write_1h_tokens=written_1h,
        output_tokens=made,
        reasoning_tokens=reasoning,
        input_audio_tokens=audio,
        input_image_tokens=image,
        output_audio_tokens=made_audio,
        output_image_tokens=made_image,
    )


def is_counted(found: object) -> bool:
    """Whether this is a usage object with counters. Groq's x_groq.usage of a whole answer has others: cache hits."""
    if isinstance(found, dict):
        for name in _COUNTERS:
            if is_count(found.get(name)):
                return True
    return False


def images_usage_of(found: Mapping[str, Any]) -> Usage:
    """The usage of the images API: the output is image, unless details say otherwise."""
    usage = usage_of(found)
    if _details(found, _OUTPUT_DETAILS):
        return usage
    return replace(usage, output_image_tokens=usage.output_tokens - usage.reasoning_tokens)


def drawing_usage_of(found: Mapping[str, Any]) -> Usage:
    """tool_usage.image_gen of a response. What is cached stands beside the details, and has names of its own."""
    cached = as_object(found.get("cached_tokens_details"))
    details = as_object(_details(found, _INPUT_DETAILS)) | {
        "cached_tokens": found.get("cached_tokens"),
        "cached_tokens_details": {"image_tokens": cached.get("cached_image_tokens")},
    }
    return images_usage_of({**found, "input_tokens_details": details})


def svg_part(found: object) -> ModelUsage | None:
    """svg_usage: the text model that wrote an SVG, apart from the one that draws."""
    if not is_counted(found):
        return None
    svg = as_object(found)
    reasoning = {"output_tokens_details": {"reasoning_tokens": svg.get("reasoning_tokens")}}
    return ModelUsage(word(svg.get("model")) or "svg", usage_of({**svg, **reasoning}))


def breakdown_parts(breakdown: object) -> tuple[ModelUsage, ...]:
    """usage_breakdown of Groq's compound systems: what each model used."""
    models = as_object(breakdown).get("models")
    if not isinstance(models, list):
        return ()
    return tuple(
        ModelUsage(word(each.get("model")) or "", usage_of(as_object(each.get("usage"))))
        for each in models[:_PARTS_MAX]
        if isinstance(each, dict) and is_counted(each.get("usage"))
    )


def left_over(whole: Usage, parts: Iterable[ModelUsage]) -> Usage:
    """What is left of a usage for the answering model once the parts are taken off it; the parts stay with it.

    Parts that would make more than the whole are left out: the total is what the provider bills.
    """
    kept: list[ModelUsage] = []
    rest_in, rest_out = whole.total_input, whole.total_output
    for part in parts:
        if part.usage.total_input <= rest_in and part.usage.total_output <= rest_out:
            kept.append(part)
            rest_in -= part.usage.total_input
            rest_out -= part.usage.total_output
    if not kept:
        return whole
    return replace(subtract(whole, [part.usage for part in kept]), parts=tuple(kept))


def tools_usage(usage: Usage, tools: Mapping[str, int]) -> Usage:
    """The usage with these requests of server tools, by name."""
    if not tools:
        return usage
    counted = tuple(sorted((name, number) for name, number in tools.items() if number > 0))
    return replace(usage, server_tools=counted)


def error_kind(error: object) -> str | None:
    """The kind of an error object: its type, else its code, else its status; None if there is no error.

    OpenAI: {message, type, param, code}. Google's are {code: 503, message, status}. Groq's x_groq.error is a text.
    """
    if not error:
        return None if error is None or error is False else "error"
    if isinstance(error, dict):
        for name in ("type", "code", "status"):
            if kind := word(error.get(name)):
                return kind
        code = error.get("code")
        return str(code) if type(code) is int and abs(code) <= COUNT_MAX else "error"
    kind = word(error)
    return kind if kind and len(kind.split()) == 1 else "error"


def count(found: Mapping[str, Any], name: str) -> int:
    """A count; 0 where there is none."""
    return values.count(found.get(name))


def _first(found: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    for name in names:
        value = found.get(name)
        if is_count(value):
            return value
    return None


def _details(found: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    for name in names:
        value = found.get(name)
        if value and isinstance(value, dict):
            return value
    return {}
