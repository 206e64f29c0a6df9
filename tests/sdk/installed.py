"""The SDKs that this environment has, and all that differs between their majors.

The tests themselves are the same for every major. The rule: a difference that a test must know of stands here,
with its reason, and nowhere else. The modules are `Any`, because the project is checked without them.
"""

import importlib
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, Final


def _optional(name: str) -> Any:
    return importlib.import_module(name) if find_spec(name) else None


anthropic: Final[Any] = importlib.import_module("anthropic")
genai: Final[Any] = importlib.import_module("google.genai")
groq: Final[Any] = importlib.import_module("groq")
httpx: Final[Any] = importlib.import_module("httpx")
openai: Final[Any] = importlib.import_module("openai")

VERSIONS: Final = {name: version(name) for name in ("openai", "anthropic", "google-genai", "groq")}
MAJORS: Final = {name: int(number.partition(".")[0]) for name, number in VERSIONS.items()}

# What is raised when the connection ends before the answer does. openai says it with an exception of its own from
# version 3 on; the others let through what their HTTP client raises, which is httpx2 in the newest of two of them.
_CUT_IN_HTTPX: Final = tuple(
    module.RemoteProtocolError for module in (httpx, _optional("httpx2")) if module is not None
)
CUT: Final[dict[str, Any]] = {
    "openai": openai.APIConnectionError if MAJORS["openai"] >= 3 else _CUT_IN_HTTPX,
    "anthropic": _CUT_IN_HTTPX,
    "google-genai": _CUT_IN_HTTPX,
    "groq": _CUT_IN_HTTPX,
}

# anthropic has a class of its own for 503 from version 2 on.
ANTHROPIC_UNAVAILABLE: Final[Any] = (
    anthropic.ServiceUnavailableError if MAJORS["anthropic"] >= 2 else anthropic.InternalServerError
)

# Where the key travels: anthropic sends a Bearer token from version 2 on.
ANTHROPIC_KEY_FIELD: Final = "authorization" if MAJORS["anthropic"] >= 2 else "x-api-key"

# The version in Gemini's paths: google-genai asks for v1 from version 3 on.
GEMINI_VERSION: Final = "v1" if MAJORS["google-genai"] >= 3 else "v1beta"
