"""Answers of Gemini's, as the Gemini API documentation shows them, shortened.

Sources: Gemini API reference, "GenerateContentResponse" and "UsageMetadata"; "Text generation" (streaming); "Context
caching"; "Grounding with Google Search"; "Interactions".
"""

from __future__ import annotations

import json
from typing import Any, Final


def as_json(value: object) -> bytes:
    """The JSON text, as the provider writes it."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def chunk(*parts: dict[str, Any], finish: str | None = None, **usage: Any) -> dict[str, Any]:
    """One chunk, with the counters so far."""
    candidate: dict[str, Any] = {"content": {"parts": list(parts), "role": "model"}, "index": 0}
    if finish is not None:
        candidate["finishReason"] = finish
    found: dict[str, Any] = {"candidates": [candidate], "modelVersion": "gemini-3-pro", "responseId": "r-1"}
    return found | {"usageMetadata": usage} if usage else found


STREAM: Final = (
    as_json(chunk({"text": "Thinking", "thought": True}, promptTokenCount=100, thoughtsTokenCount=30)),  # 8
    as_json(chunk({"text": "Hé"}, promptTokenCount=100, candidatesTokenCount=2, thoughtsTokenCount=30)),  # 2
    as_json(
        chunk(
            {"functionCall": {"name": "f", "args": {"a": 1}}},  # 1 + 7
            finish="STOP",
            promptTokenCount=100,
            cachedContentTokenCount=60,
            candidatesTokenCount=12,
            thoughtsTokenCount=31,
            toolUsePromptTokenCount=5,
            totalTokenCount=148,
            promptTokensDetails=[
                {"modality": "TEXT", "tokenCount": 50},
                {"modality": "AUDIO", "tokenCount": 30},
                {"modality": "IMAGE", "tokenCount": 15},
                {"modality": "VIDEO", "tokenCount": 5},
            ],
            cacheTokensDetails=[{"modality": "TEXT", "tokenCount": 50}, {"modality": "AUDIO", "tokenCount": 10}],
            candidatesTokensDetails=[{"modality": "IMAGE", "tokenCount": 10}, {"modality": "TEXT", "tokenCount": 2}],
            serviceTier="PRIORITY",
        )
    ),
)
"""18 characters in 3 events."""
