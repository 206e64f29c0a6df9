"""The kinds a provider can be of, so that a new one is a name, a kind and a base URL in the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from llmproxy.providers.anthropic import ANTHROPIC
from llmproxy.providers.gemini import GEMINI
from llmproxy.providers.openai import OPENAI
from llmproxy.providers.provider import Provider

# A template is the built-in provider of that kind without name, title and address. Its `sdk_path` is what
# follows the provider's own segment.
KINDS: Mapping[str, Provider] = MappingProxyType(
    {
        each.kind: replace(each, name="", title="", base_url="", sdk_path=each.sdk_path.removeprefix(f"/{each.name}"))
        for each in (OPENAI, ANTHROPIC, GEMINI)
    }
)


def of_kind(kind: str, *, name: str, base_url: str, title: str | None = None) -> Provider:
    """A provider that is not built in.

    kind: a key of KINDS. KeyError if it is none.
    name: its path segment. base_url: as in `Provider`. title: for sentences, by default the name.
    """
    template = KINDS[kind]
    return replace(
        template,
        name=name,
        title=name if title is None else title,
        base_url=base_url.rstrip("/"),
        sdk_path=f"/{name}{template.sdk_path}",
    )
