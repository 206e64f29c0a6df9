"""Answers of Anthropic's, as the Claude API documentation shows them, shortened.

Sources: "Streaming messages" (basic, tool use and thinking examples), "Prompt caching" (the usage with cache_creation),
"Compaction" and "Advisor tool" (usage.iterations), "Web search tool" (server_tool_use), "Errors" (overloaded_error).
"""

from __future__ import annotations

import json
from typing import Any, Final


def as_json(value: object) -> bytes:
    """The JSON text, as the provider writes it."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def start(**usage: Any) -> dict[str, Any]:
    """message_start; output_tokens is the placeholder."""
    message = {"id": "msg_01", "type": "message", "role": "assistant", "model": "claude-opus-5", "content": []}
    return {"type": "message_start", "message": message | {"stop_reason": None, "usage": usage | {"output_tokens": 1}}}


def delta(**piece: str) -> dict[str, Any]:
    """content_block_delta: text="..." is a text_delta, and so on."""
    kinds = {"text": "text_delta", "thinking": "thinking_delta", "partial_json": "input_json_delta"}
    (name,) = piece
    return {"type": "content_block_delta", "index": 0, "delta": {"type": kinds.get(name, f"{name}_delta")} | piece}


def end(stop_reason: str | None = "end_turn", **usage: Any) -> dict[str, Any]:
    """message_delta: its usage is cumulative."""
    return {"type": "message_delta", "delta": {"stop_reason": stop_reason, "stop_sequence": None}, "usage": usage}


STOP: Final = as_json({"type": "message_stop"})
PING: Final = as_json({"type": "ping"})
OVERLOADED: Final = as_json({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}})

STREAM: Final = (
    as_json(
        start(
            input_tokens=25,
            cache_creation_input_tokens=456,
            cache_read_input_tokens=1800,
            cache_creation={"ephemeral_5m_input_tokens": 356, "ephemeral_1h_input_tokens": 100},
            service_tier="standard",
            inference_geo="us",
            speed="fast",
        )
    ),
    as_json({"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": ""}}),
    PING,
    as_json(delta(thinking="Hmm é")),  # 5 characters
    as_json(delta(signature="EqQBCgIYAhIM")),  # no text
    as_json({"type": "content_block_stop", "index": 0}),
    as_json(delta(text="Hello")),  # 5
    as_json(delta(text="!")),  # 1
    as_json(delta(partial_json="")),  # none
    as_json(delta(partial_json='{"location":')),  # 12
    as_json(end("tool_use", output_tokens=89, output_tokens_details={"thinking_tokens": 40})),
    STOP,
)
"""23 characters in 4 events."""
