"""Which path belongs to which provider and endpoint: one table, read from the top.

The proxy takes its own prefix off, so the paths of all four providers meet at one root. Where two have the
same path (`/v1/models`, `/v1/files`), the request's fields tell whose it is.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from llmproxy.simulate import (
    anthropic,
    anthropic_batches,
    gemini,
    gemini_upload,
    interactions,
    openai_batches,
    openai_chat,
    openai_media,
    openai_more,
    openai_responses,
)
from llmproxy.simulate.ask import Ask, House, Refusal, Reply
from llmproxy.simulate.dialects import (
    ANTHROPIC,
    ANTHROPIC_COMPAT,
    GEMINI,
    GEMINI_COMPAT,
    GEMINI_INTERACTIONS,
    GROQ,
    GROQ_RESPONSES,
    OPENAI,
    OPENAI_RESPONSES,
    Dialect,
    bearer,
    guess,
)

Endpoint = Callable[[Ask, House], Reply]


def _anthropic(ask: Ask) -> bool:
    return ask.has(b"anthropic-version")


def _anthropic_key(ask: Ask) -> bool:
    return _anthropic(ask) or ask.has(b"x-api-key") or bearer(ask).startswith("sk-ant-")


def _gemini(ask: Ask) -> bool:
    return not ask.path.startswith("/v1/") or ask.has(b"x-goog-api-key") or "key" in ask.query


def _any(ask: Ask) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Route:
    """A method and a path's pattern, the dialect they speak, and what answers.

    `keyed` is false where the provider wants no key, or looks for it later.
    """

    method: bytes
    path: re.Pattern[str]
    dialect: Dialect
    endpoint: Endpoint
    when: Callable[[Ask], bool] = _any
    keyed: bool = True


def _route(
    line: str, dialect: Dialect, endpoint: Endpoint, when: Callable[[Ask], bool] = _any, *, keyed: bool = True
) -> Route:
    method, pattern = line.split(" ", 1)
    pattern = pattern.replace("{v}", "(?P<v>v1|v1beta|v1alpha)").replace("{id}", "(?P<id>[^/:]+)")
    pattern = pattern.replace("{model}", "(?P<model>.+?)")
    return Route(method.encode(), re.compile(pattern), dialect, endpoint, when, keyed)


def _openai_like(prefix: str, dialect: Dialect, responses: Dialect) -> list[Route]:
    return [
        _route(f"POST {prefix}/chat/completions", dialect, openai_chat.chat),
        _route(f"GET {prefix}/chat/completions/{{id}}", dialect, openai_chat.stored_chat),
        _route(f"POST {prefix}/completions", dialect, openai_chat.completions),
        _route(f"POST {prefix}/responses", responses, openai_responses.create),
        _route(f"GET {prefix}/responses/{{id}}", responses, openai_responses.fetch),
        _route(f"DELETE {prefix}/responses/{{id}}", responses, openai_responses.delete),
        _route(f"POST {prefix}/responses/{{id}}/cancel", responses, openai_responses.cancel),
        _route(f"POST {prefix}/embeddings", dialect, openai_more.embeddings),
        _route(f"POST {prefix}/moderations", dialect, openai_more.moderations),
        _route(f"POST {prefix}/audio/speech", dialect, openai_more.speech),
        _route(f"POST {prefix}/audio/transcriptions", dialect, openai_media.transcriptions),
        _route(f"POST {prefix}/images/generations", dialect, openai_media.images),
        _route(f"POST {prefix}/batches", dialect, openai_batches.create),
        _route(f"GET {prefix}/batches/{{id}}", dialect, openai_batches.fetch),
        _route(f"GET {prefix}/models", dialect, openai_more.models),
        _route(f"GET {prefix}/models/{{model}}", dialect, openai_more.model),
        _route(f"POST {prefix}/files", dialect, openai_more.upload),
        _route(f"GET {prefix}/files", dialect, openai_more.files),
        _route(f"GET {prefix}/files/{{id}}", dialect, openai_more.file),
        _route(f"GET {prefix}/files/{{id}}/content", dialect, openai_more.content),
        _route(f"DELETE {prefix}/files/{{id}}", dialect, openai_more.delete_file),
    ]


ROUTES: Final[tuple[Route, ...]] = (
    _route("POST /v1/messages", ANTHROPIC, anthropic.messages),
    _route("POST /v1/messages/count_tokens", ANTHROPIC, anthropic.count_tokens),
    _route("POST /v1/messages/batches", ANTHROPIC, anthropic_batches.create),
    _route("GET /v1/messages/batches/{id}", ANTHROPIC, anthropic_batches.fetch),
    _route("GET /v1/messages/batches/{id}/results", ANTHROPIC, anthropic_batches.results),
    _route("POST /v1/chat/completions", ANTHROPIC_COMPAT, openai_chat.chat, _anthropic_key),
    _route("GET /v1/models", ANTHROPIC, anthropic.models, _anthropic),
    _route("GET /v1/models/{model}", ANTHROPIC, anthropic.model, _anthropic),
    _route("GET /api/hello", ANTHROPIC, anthropic.hello, keyed=False),
    _route("POST /{v}/models/{model}:(?P<verb>generateContent|streamGenerateContent)", GEMINI, gemini.generate),
    _route("POST /{v}/models/{model}:countTokens", GEMINI, gemini.count_tokens),
    _route("POST /{v}/models/{model}:(?P<verb>embedContent|batchEmbedContents)", GEMINI, gemini.embed),
    _route("POST /{v}/interactions", GEMINI_INTERACTIONS, interactions.create),
    _route("GET /{v}/interactions/{id}", GEMINI_INTERACTIONS, interactions.fetch),
    _route("GET /{v}/models", GEMINI, gemini.models, _gemini),
    _route("GET /{v}/models/{model}", GEMINI, gemini.model, _gemini),
    _route("(POST|PUT) /upload/{v}/files", GEMINI, gemini_upload.start, keyed=False),
    _route("GET /{v}/files", GEMINI, gemini_upload.files, _gemini),
    _route("GET /{v}/files/{id}", GEMINI, gemini_upload.file, _gemini),
    _route("GET (/download)?/{v}/files/{id}:download", GEMINI, gemini_upload.download),
    _route("DELETE /{v}/files/{id}", GEMINI, gemini_upload.delete, _gemini),
    _route("POST /{v}/openai/chat/completions", GEMINI_COMPAT, openai_chat.chat),
    _route("POST /{v}/openai/embeddings", GEMINI_COMPAT, openai_more.embeddings),
    _route("GET /{v}/openai/models", GEMINI_COMPAT, openai_more.models),
    *_openai_like("/openai/v1", GROQ, GROQ_RESPONSES),
    *_openai_like("/v1", OPENAI, OPENAI_RESPONSES),
)


def find(ask: Ask) -> Endpoint:
    """What answers this request; sets the ask's dialect and what its path holds.

    Raises `Refusal`: 404 for an unknown path, 405 for a known one with another method, 401 and its like
    for a key that is missing or not accepted.
    """
    ask.dialect = guess(ask)
    other_method = False
    method = b"GET" if ask.method == b"HEAD" else ask.method
    for route in ROUTES:
        matched = route.path.fullmatch(ask.path)
        if matched is None or not route.when(ask):
            continue
        if method not in route.method.strip(b"()").split(b"|"):
            other_method = True
            continue
        ask.dialect = route.dialect
        ask.catch(matched.groupdict())
        if route.keyed:
            route.dialect.check_key(ask)
        return route.endpoint
    if other_method:
        raise Refusal(405, f"Not allowed to {ask.method.decode('latin-1')} on {ask.path}.", code="method_not_supported")
    raise Refusal(404, f"Unknown request URL: {ask.method.decode('latin-1')} {ask.path}.", code="unknown_url")
