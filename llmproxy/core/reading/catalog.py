"""The shapes that an answer may have, in the order in which they are asked: `SHAPES`.

The rule of the order: what is asked for most comes first, because its answers are asked about first; what recognises by
little (a text, a list) comes after all that would say more of it. How one is chosen is in core/reading/recognition.py.
"""

from __future__ import annotations

from typing import Final

from llmproxy.core.reading.anthropic import AnthropicMessages, AnthropicResource
from llmproxy.core.reading.anthropic_batch_results import AnthropicBatchResults
from llmproxy.core.reading.bedrock import BedrockConverse, BedrockInvoke
from llmproxy.core.reading.gemini import Gemini
from llmproxy.core.reading.gemini_resources import GeminiEmbedding, GeminiResource
from llmproxy.core.reading.interactions import Interactions
from llmproxy.core.reading.openai_chat import OpenAIChat
from llmproxy.core.reading.openai_chat_plain import PlainChat
from llmproxy.core.reading.openai_more import (
    OpenAIBatch,
    OpenAIEmbeddings,
    OpenAIFree,
    OpenAIImages,
    OpenAITranscription,
)
from llmproxy.core.reading.openai_responses import OpenAIResponses
from llmproxy.core.reading.recognition import PlainShape, Shapes

SHAPES: Final[Shapes] = (
    OpenAIChat,
    AnthropicMessages,
    Gemini,
    OpenAIResponses,
    BedrockConverse,
    BedrockInvoke,
    Interactions,
    OpenAIEmbeddings,
    GeminiEmbedding,
    OpenAIImages,
    OpenAIBatch,
    AnthropicBatchResults,
    OpenAIFree,
    AnthropicResource,
    GeminiResource,
    OpenAITranscription,
)

PLAIN_SHAPES: Final[tuple[PlainShape, ...]] = (PlainChat,)
"""What `read_whole` tries first."""
