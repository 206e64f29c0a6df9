"""What is asked of the limits, and what they say: data only.

The rule: what is said names no key, but by its short id, and says all that a caller or an operator needs.
"""

from __future__ import annotations

from typing import Final

import msgspec

from llmproxy.core.identity import short_credential_id
from llmproxy.core.limits.policy import (
    CONCURRENT,
    GLOBAL,
    KEY,
    MODEL,
    PROVIDER,
    UNKNOWN_MODEL,
    USER,
    Rule,
)

Scope = tuple[str, str]
"""A kind, and who or what it is of that kind; "" for the global one."""

OTHERS: Final = "(others)"
"""Who is counted together, where there are more identities than are kept apart."""


class Ask(msgspec.Struct, frozen=True, gc=False):
    """One request that wants to pass.

    scopes: whose limits concern it, in the order in which they are looked at.
    input_tokens, output_tokens, nano_usd: what it is expected to use.
    """

    scopes: tuple[Scope, ...]
    input_tokens: int = 0
    output_tokens: int = 0
    nano_usd: int = 0


def scopes_of(provider: str, model: str | None, credential_id: str | None, user: str | None) -> tuple[Scope, ...]:
    """The scopes of a request: who has no key, or no name, has no such scope."""
    scopes: list[Scope] = [(GLOBAL, ""), (PROVIDER, provider), (MODEL, model or UNKNOWN_MODEL)]
    if credential_id:
        scopes.append((KEY, credential_id))
    if user:
        scopes.append((USER, user))
    return tuple(scopes)


def scope_name(scope: Scope) -> str:
    """A scope for people: ``user:alice``, ``key:`` and the short id, ``global``."""
    kind, identity = scope
    if kind == GLOBAL:
        return GLOBAL
    return f"{kind}:{short_credential_id(identity) if kind == KEY else identity}"


class Standing(msgspec.Struct, frozen=True):
    """How one rule stands for one request.

    used: what counted before it, reserved or settled. asked: what it adds. resets_s: in how many seconds there is more
    room. remaining is what is left without it.
    waits_s: in how many seconds this very request could pass this rule; 0: now; None: never.
    """

    scope: Scope
    rule: Rule
    used: int
    asked: int
    resets_s: float
    waits_s: float | None = 0.0

    @property
    def remaining(self) -> int:
        """What is left; never below 0."""
        return max(0, self.rule.limit - self.used)

    @property
    def passes(self) -> bool:
        """Whether the request passes this rule."""
        return self.waits_s == 0.0


class Refusal(msgspec.Struct, frozen=True):
    """No. ``because``: the first rule that refuses it. waits_s: as in Standing, for all rules together."""

    because: Standing
    waits_s: float | None

    @property
    def is_over_concurrency(self) -> bool:
        """Whether there are too many requests at the same time, and not in a time."""
        return self.because.rule.metric == CONCURRENT
