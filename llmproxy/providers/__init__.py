"""The LLM providers as data: one small frozen object each, and CATALOG, the ones that are built in.

A provider that is not built in is made from a kind (`of_kind`); docs/providers.md says how. Imports core
only.
"""

from llmproxy.providers.catalog import CATALOG as CATALOG
from llmproxy.providers.dialect import dialect_of as dialect_of
from llmproxy.providers.dialect import model_in_path as model_in_path
from llmproxy.providers.kinds import KINDS as KINDS
from llmproxy.providers.kinds import of_kind as of_kind
from llmproxy.providers.provider import Provider as Provider

__all__ = ["CATALOG", "KINDS", "Provider", "dialect_of", "model_in_path", "of_kind"]
