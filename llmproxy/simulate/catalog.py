"""The models that the simulator lists, by provider. Data only.

Any other name is served too; a name that begins with `missing-` is not.
"""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model's name as it is asked for, the dated name that the answer gives, and its sizes in tokens."""

    name: str
    dated: str = ""
    title: str = ""
    input_limit: int = 128_000
    output_limit: int = 16_384
    thinks: bool = False


OPENAI: Final = (
    Model(name="gpt-4o", dated="gpt-4o-2024-08-06"),
    Model(name="gpt-4o-mini", dated="gpt-4o-mini-2024-07-18"),
    Model(name="gpt-4.1", dated="gpt-4.1-2025-04-14", input_limit=1_047_576),
    Model(name="gpt-5", dated="gpt-5-2025-08-07", input_limit=400_000, thinks=True),
    Model(name="gpt-5-mini", dated="gpt-5-mini-2025-08-07", input_limit=400_000, thinks=True),
    Model(name="o3", dated="o3-2025-04-16", input_limit=200_000, thinks=True),
    Model(name="o4-mini", dated="o4-mini-2025-04-16", input_limit=200_000, thinks=True),
    Model(name="gpt-5.4", input_limit=400_000, thinks=True),
    Model(name="gpt-5.5", dated="gpt-5.5-2026-04-23", input_limit=400_000, thinks=True),
    Model(name="gpt-3.5-turbo", dated="gpt-3.5-turbo-0125", input_limit=16_385),
    Model(name="gpt-3.5-turbo-instruct"),
    Model(name="text-embedding-3-small"),
    Model(name="text-embedding-3-large"),
    Model(name="text-embedding-ada-002", dated="text-embedding-ada-002-v2"),
    Model(name="tts-1"),
    Model(name="gpt-image-1"),
    Model(name="dall-e-3"),
    Model(name="gpt-4o-transcribe"),
    Model(name="whisper-1"),
)

ANTHROPIC: Final = (
    Model(name="claude-opus-5-5", title="Claude Opus 5.5", input_limit=1_000_000, output_limit=64_000),
    Model(name="claude-sonnet-5-5", title="Claude Sonnet 5.5", input_limit=1_000_000, output_limit=64_000),
    Model(name="claude-haiku-5-5", title="Claude Haiku 5.5", input_limit=200_000, output_limit=64_000),
    Model(name="claude-sonnet-4-5-20250929", title="Claude Sonnet 4.5", input_limit=200_000, output_limit=64_000),
    Model(name="claude-opus-4-1-20250805", title="Claude Opus 4.1", input_limit=200_000, output_limit=32_000),
    Model(name="claude-sonnet-4-20250514", title="Claude Sonnet 4", input_limit=200_000, output_limit=64_000),
    Model(name="claude-3-7-sonnet-20250219", title="Claude Sonnet 3.7", input_limit=200_000, output_limit=64_000),
    Model(name="claude-3-5-sonnet-20241022", title="Claude Sonnet 3.5", input_limit=200_000, output_limit=8_192),
    Model(name="claude-3-5-haiku-20241022", title="Claude Haiku 3.5", input_limit=200_000, output_limit=8_192),
    Model(name="claude-3-haiku-20240307", title="Claude Haiku 3", input_limit=200_000, output_limit=4_096),
)

ANTHROPIC_ALIASES: Final = {
    "claude-3-5-haiku-latest": "claude-3-5-haiku-20241022",
    "claude-3-5-sonnet-latest": "claude-3-5-sonnet-20241022",
    "claude-3-7-sonnet-latest": "claude-3-7-sonnet-20250219",
    "claude-sonnet-4-5": "claude-sonnet-4-5-20250929",
    "claude-sonnet-4-0": "claude-sonnet-4-20250514",
    "claude-opus-4-1": "claude-opus-4-1-20250805",
}

GEMINI: Final = (
    Model(
        name="gemini-3.8-flash",
        title="Gemini 3.8 Flash",
        input_limit=1_048_576,
        output_limit=65_536,
        thinks=True,
    ),
    Model(name="gemini-2.5-pro", title="Gemini 2.5 Pro", input_limit=1_048_576, output_limit=65_536, thinks=True),
    Model(
        name="gemini-2.5-flash",
        title="Gemini 2.5 Flash",
        input_limit=1_048_576,
        output_limit=65_536,
        thinks=True,
    ),
    Model(
        name="gemini-2.5-flash-lite",
        title="Gemini 2.5 Flash-Lite",
        input_limit=1_048_576,
        output_limit=65_536,
    ),
    Model(name="gemini-2.0-flash", title="Gemini 2.0 Flash", input_limit=1_048_576, output_limit=8_192),
    Model(name="gemini-1.5-flash", title="Gemini 1.5 Flash", input_limit=1_000_000, output_limit=8_192),
    Model(name="gemini-1.5-pro", title="Gemini 1.5 Pro", input_limit=2_000_000, output_limit=8_192),
    Model(name="gemini-embedding-001", title="Gemini Embedding 001", input_limit=2_048, output_limit=1),
    Model(name="text-embedding-004", title="Text Embedding 004", input_limit=2_048, output_limit=1),
)

GROQ: Final = (
    Model(name="llama-3.3-70b-versatile", title="Meta", input_limit=131_072, output_limit=32_768),
    Model(name="llama-3.1-8b-instant", title="Meta", input_limit=131_072, output_limit=131_072),
    Model(name="openai/gpt-oss-120b", title="OpenAI", input_limit=131_072, output_limit=65_536, thinks=True),
    Model(name="openai/gpt-oss-20b", title="OpenAI", input_limit=131_072, output_limit=65_536, thinks=True),
    Model(name="qwen/qwen3-32b", title="Alibaba Cloud", input_limit=131_072, output_limit=40_960, thinks=True),
    Model(name="groq/compound", title="Groq", input_limit=131_072, output_limit=8_192),
    Model(name="groq/compound-mini", title="Groq", input_limit=131_072, output_limit=8_192),
)

GROQ_COMPOUND_PARTS: Final = ("llama-3.3-70b-versatile", "openai/gpt-oss-120b")
"""The models that a compound system is made of: the first plans, the second answers."""


def thinks(models: tuple[Model, ...], name: str) -> bool:
    """Whether this model reasons before it answers."""
    return any(model.thinks for model in models if name in (model.name, model.dated))


def dated(models: tuple[Model, ...], name: str) -> str:
    """The name that the provider's answer gives to a model that was asked for as `name`."""
    return next((model.dated for model in models if model.name == name and model.dated), name)
