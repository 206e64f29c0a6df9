"""What a path tells about a request: the dialect its answers are in, and the model when it is named there."""

from __future__ import annotations

import re
from urllib.parse import unquote_to_bytes

from llmproxy.providers.provider import Provider

_DIALECTS = {"openai-compatible": "openai", "anthropic": "anthropic", "gemini": "gemini"}

# The OpenAI-compatible endpoints of the others: `/v1beta/openai/chat/completions` at Google,
# `/v1/chat/completions` at Anthropic. They are called with an OpenAI SDK, which reads OpenAI's error shape
# only.
_OPENAI_ENDPOINTS = {
    "anthropic": re.compile(rb"/v1/chat/completions$"),
    "gemini": re.compile(rb"/v[0-9][0-9a-z]*/openai(?:/|$)"),
}

_MODEL_SEGMENT = re.compile(rb"/(?:models|tunedModels)/([^/:?]+)")
_MODEL_CHARACTERS_MAX = 256


def dialect_of(provider: Provider, path: bytes) -> str:
    """ "openai", "anthropic" or "gemini": the shape an error of ours must have, so that the caller's SDK
    reads it.

    path: the caller's path as on the wire. The provider's segment and a query may be on it or not.
    """
    endpoint = _OPENAI_ENDPOINTS.get(provider.kind)
    if endpoint is not None and endpoint.search(path.partition(b"?")[0]):
        return "openai"
    return _DIALECTS[provider.kind]


def model_in_path(provider: Provider, path: bytes) -> str | None:
    """The model named in a Gemini path, as in `/v1beta/models/gemini-2.5-pro:generateContent`; else None.

    path: as for `dialect_of`. Other kinds name the model in the body.
    """
    if provider.kind != "gemini":
        return None
    match = _MODEL_SEGMENT.search(path.partition(b"?")[0])
    if match is None:
        return None
    model = unquote_to_bytes(match[1]).decode("utf-8", "replace")
    return model if len(model) <= _MODEL_CHARACTERS_MAX else None
