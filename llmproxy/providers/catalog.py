"""The built-in providers, by name. A new one is a file beside this one, and a line here."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from llmproxy.providers.anthropic import ANTHROPIC
from llmproxy.providers.gemini import GEMINI
from llmproxy.providers.groq import GROQ
from llmproxy.providers.openai import OPENAI
from llmproxy.providers.provider import Provider

CATALOG: Mapping[str, Provider] = MappingProxyType({each.name: each for each in (OPENAI, ANTHROPIC, GEMINI, GROQ)})
