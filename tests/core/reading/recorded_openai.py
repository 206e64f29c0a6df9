"""Answers of OpenAI, Groq, Gemini's compat endpoint and Azure, as their documentation shows them, shortened.

Sources: OpenAI API reference ("Chat", "Completions", "Responses"),
Groq API reference ("Chat", compound systems), Gemini API ("OpenAI compatibility"), Azure OpenAI ("Content filtering").
"""

from __future__ import annotations

import json
from typing import Any, Final

from llmproxy.core.reading.shape import Shape
from llmproxy.core.usage import Reading


def as_json(value: object) -> bytes:
    """The JSON text, as these APIs write it."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def read_body(shape: Shape, body: object) -> Reading:
    """What a whole answer says."""
    shape.take_body(as_json(body))
    return shape.reading(whole=True)


def read_events(shape: Shape, events: list[Any], whole: bool = True) -> Reading:
    """What a stream says, one event at a time."""
    for event in events:
        shape.take_events([as_json(event)])
    return shape.reading(whole)


def keys_of(value: dict[str, Any]) -> dict[str, bytes]:
    """The members of the top level, as a shape is asked to recognise them."""
    return {name: as_json(each) for name, each in value.items()}


CHAT_USAGE: Final = {
    "prompt_tokens": 2006,
    "completion_tokens": 300,
    "total_tokens": 2306,
    "prompt_tokens_details": {"cached_tokens": 1920, "audio_tokens": 0},
    "completion_tokens_details": {
        "reasoning_tokens": 128,
        "audio_tokens": 0,
        "accepted_prediction_tokens": 0,
        "rejected_prediction_tokens": 0,
    },
}

CHAT: Final[dict[str, Any]] = {
    "id": "chatcmpl-B9MBs8CjcvOU2jLn4n570S5qMJKcT",
    "object": "chat.completion",
    "created": 1741569952,
    "model": "gpt-5.4",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello!", "refusal": None, "annotations": []},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ],
    "usage": CHAT_USAGE,
    "service_tier": "default",
}


def chunk(delta: dict[str, Any] | None, finish_reason: str | None = None, **more: Any) -> dict[str, Any]:
    """A chunk of a chat completion; without a delta it has no choices."""
    choices = [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}]
    return {
        "id": "chatcmpl-123",
        "object": "chat.completion.chunk",
        "created": 1694268190,
        "model": "gpt-5.4-mini",
        "service_tier": "default",
        "system_fingerprint": "fp_44709d6fcb",
        "choices": [] if delta is None else choices,
        "usage": None,
        **more,
    }


CHAT_STREAM: Final = (
    chunk({"role": "assistant", "content": ""}),
    chunk({"content": "Hel"}),
    chunk({"content": "lo "}),
    chunk({"content": "wörld"}),
    chunk({}, "stop"),
    chunk(None, usage=CHAT_USAGE),
)

RESPONSE_USAGE: Final = {
    "input_tokens": 5000,
    "input_tokens_details": {
        "cached_tokens": 1024,
        "cache_write_tokens": 3000,
        "cache_write_tokens_details": {"ttl_30m_tokens": 1000, "ttl_12h_tokens": 2000},
    },
    "output_tokens": 87,
    "output_tokens_details": {"reasoning_tokens": 40},
    "total_tokens": 5087,
}

RESPONSE: Final[dict[str, Any]] = {
    "id": "resp_67ccd2bed1ec8190b14f964abc054267",
    "object": "response",
    "created_at": 1741476542,
    "status": "completed",
    "background": False,
    "error": None,
    "incomplete_details": None,
    "model": "gpt-5.4",
    "output": [
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "Think."}]},
        {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search", "query": "q"}},
        {"type": "web_search_call", "id": "ws_2", "status": "completed", "action": {"type": "open_page", "url": "u"}},
        {"type": "file_search_call", "id": "fs_1", "status": "completed", "queries": ["q"], "results": None},
        {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "add", "arguments": '{"a":1}'},
        {
            "type": "message",
            "id": "msg_1",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "Hi you", "annotations": []}],
        },
    ],
    "service_tier": "priority",
    "tools": [{"type": "web_search"}],
    "usage": RESPONSE_USAGE,
}

_BEGUN: Final = {**RESPONSE, "status": "in_progress", "output": [], "usage": None, "service_tier": "auto"}
_OUTPUT: Final[list[dict[str, Any]]] = RESPONSE["output"]

RESPONSE_STREAM: Final[tuple[dict[str, Any], ...]] = (
    {"type": "response.created", "sequence_number": 0, "response": _BEGUN},
    {"type": "response.in_progress", "sequence_number": 1, "response": _BEGUN},
    {"type": "response.output_item.added", "output_index": 0, "item": {"type": "reasoning", "summary": []}},
    {"type": "response.reasoning_summary_text.delta", "item_id": "rs_1", "delta": "Think."},
    {"type": "response.reasoning_summary_text.done", "item_id": "rs_1", "text": "Think."},
    *({"type": "response.output_item.done", "output_index": at, "item": _OUTPUT[at]} for at in range(4)),
    {"type": "response.output_item.added", "output_index": 4, "item": {**_OUTPUT[4], "arguments": ""}},
    {"type": "response.function_call_arguments.delta", "item_id": "fc_1", "delta": '{"a":'},
    {"type": "response.function_call_arguments.delta", "item_id": "fc_1", "delta": "1}"},
    {"type": "response.function_call_arguments.done", "item_id": "fc_1", "arguments": '{"a":1}'},
    {"type": "response.output_item.done", "output_index": 4, "item": _OUTPUT[4]},
    {"type": "response.content_part.added", "item_id": "msg_1", "part": {"type": "output_text", "text": ""}},
    {"type": "response.output_text.delta", "item_id": "msg_1", "content_index": 0, "delta": "Hi ", "logprobs": []},
    {"type": "response.output_text.delta", "item_id": "msg_1", "content_index": 0, "delta": "you", "logprobs": []},
    {"type": "response.output_text.done", "item_id": "msg_1", "content_index": 0, "text": "Hi you"},
    {"type": "response.output_item.done", "output_index": 5, "item": _OUTPUT[5]},
    {"type": "response.completed", "sequence_number": 19, "response": RESPONSE},
)
