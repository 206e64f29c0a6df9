"""The common whole message of Anthropic, by its types alone, so that decoding a text is the test whether it is one.

The rule: what is read of a plain message is what core/reading/anthropic.py would read of it without this, only quicker.
So whatever it would look at is a member here, of the one type that is plain; a text with any other is refused, and read
there.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec

from llmproxy.core.reading.values import COUNT_MAX, named_counts, tools
from llmproxy.core.usage import Usage

_Count = Annotated[int, msgspec.Meta(ge=0, le=COUNT_MAX)]


class PlainBlock(msgspec.Struct, gc=False):
    text: str | None = None
    thinking: str | None = None
    input: Any = None


class PlainUsage(msgspec.Struct, gc=False):
    input_tokens: _Count
    output_tokens: _Count
    cache_creation_input_tokens: _Count | None = None
    cache_read_input_tokens: _Count | None = None
    cache_creation: dict[str, _Count] | None = None
    output_tokens_details: dict[str, _Count] | None = None
    server_tool_use: dict[str, _Count] | None = None
    iterations: None = None
    service_tier: str | None = None
    speed: str | None = None
    inference_geo: str | None = None


class PlainMessage(msgspec.Struct, gc=False):
    """A whole answer whose members are all of their types, as nearly all are: decoding it is the test."""

    type: Literal["message"]
    content: list[PlainBlock]
    usage: PlainUsage
    id: str | None = None
    model: str | None = None
    stop_reason: str | None = None


PLAIN_MESSAGE: Final = msgspec.json.Decoder(PlainMessage)


def plain_usage(found: PlainUsage) -> Usage:
    """As `usage_of`, where every counter is of its type and there are no iterations."""
    cached, hour, thinking = found.cache_creation_input_tokens, 0, 0
    if found.cache_creation is not None:
        hour = found.cache_creation.get("ephemeral_1h_input_tokens", 0)
        if cached is None:
            cached = hour + found.cache_creation.get("ephemeral_5m_input_tokens", 0)
    cached = cached or 0
    hour = min(hour, cached) if hour else 0
    output = found.output_tokens
    if found.output_tokens_details is not None:
        thinking = min(found.output_tokens_details.get("thinking_tokens", 0), output)
    used = found.server_tool_use
    server_tools = tools(named_counts(used, "_requests")) if used else ()
    # By position, which is quicker: in the order of its fields.
    return Usage(
        found.input_tokens,
        found.cache_read_input_tokens or 0,
        cached - hour,
        hour,
        0,
        output,
        thinking,
        server_tools=server_tools,
    )
