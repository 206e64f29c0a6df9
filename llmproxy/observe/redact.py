"""Takes keys out of text: the second line of defence.

The first is that no code of ours puts a key into a log event. But a library's exception, a path or a user id
may hold one. What looks like a key becomes `***`, its well-known beginning stays, so that one can see what it
was.
"""

from __future__ import annotations

import re
from typing import Final

_KEY = re.compile(
    rb"""
      (?<![A-Za-z0-9])  (sk-|gsk_|xai-|AIza|AQ\.|ya29\.|openai-insecure-api-key\.)  [A-Za-z0-9_.\-]{6,}
    | ((?i:bearer|basic)[ ]+)                                                      [A-Za-z0-9._~+/=\-]{6,}
    | ((?i:api[_-]?key|access_token|\bkey)=)                                       [^&\s"'\\]+
    | ((?i:api-key)(?:\\?["'])?[ ]*[:,][ ]*(?:b?\\?["'])?)                          [^\s"'\\]+
    | ((?i:cookie)(?:\\?["'])?[ ]*[:,][ ]*(?:b?\\?["'])?)                           [^\s"'\\;]+(?:;[ ]*[^\s"'\\;]+)*
    """,
    re.VERBOSE,
)

# One of these is in every text that the expression can match. Looking for them is much cheaper than the
# expression.
_SIGNS: Final = (
    "sk-",
    "gsk_",
    "xai-",
    "aiza",
    "aq.",
    "ya29.",
    "api-key",
    "cookie",
    "earer ",
    "asic ",
    "key=",
    "oken=",
)
_SIGNS_AS_BYTES: Final = tuple(sign.encode() for sign in _SIGNS)


def without_keys(text: bytes) -> bytes:
    """The text with all that looks like a provider's key, or stands where keys stand, replaced by `***`.

    Knows the keys of OpenAI and Anthropic (`sk-`), Groq (`gsk_`), xAI (`xai-`), Google (`AIza`, `AQ.`,
    `ya29.`), and the places `Bearer`, `Basic`, `key=`, `api_key=`, `access_token=`, `x-api-key:` and their
    like. No quote, backslash or control character is ever replaced, so JSON stays JSON.
    """
    lowered = text.lower()
    for sign in _SIGNS_AS_BYTES:
        if sign in lowered:
            return _KEY.sub(_masked, text)
    return text


def text_without_keys(text: str) -> str:
    """The same of a text that is written by somebody else."""
    if not may_hold_key(text):
        return text
    # Half a surrogate pair may be in it: callers write what they like.
    return without_keys(text.encode("utf-8", "surrogatepass")).decode("utf-8", "surrogatepass")


def may_hold_key(text: str) -> bool:
    """Whether `without_keys` could find something in this text: quick, and never wrong with no."""
    lowered = text.lower()
    for sign in _SIGNS:  # noqa: SIM110 - any() and a generator would take three times as long
        if sign in lowered:
            return True
    return False


def _masked(match: re.Match[bytes]) -> bytes:
    return b"".join(group for group in match.groups() if group) + b"***"
