"""CORS: what a script in a browser may ask and see (Fetch standard, section 3.2).

It is the outermost thing: every answer carries it, errors and 404 included, because a browser hides an answer
without it behind a network error that nobody can read. A preflight is answered here and costs nothing.
"""

from __future__ import annotations

from llmproxy.config.model import Cors
from llmproxy.core.fields import Fields, Index

FIELD_PREFIX = b"access-control-"
"""The upstream's own CORS fields are about another origin; they are replaced, not doubled."""


class CorsPolicy:
    """The policy of one configuration.

    :ivar prefixes: field name prefixes to take out of an upstream's answer.
    """

    def __init__(self, config: Cors) -> None:
        self.enabled = config.enabled
        self.prefixes: tuple[bytes, ...] = (FIELD_PREFIX,) if config.enabled else ()
        self._any_origin = "*" in config.allow_origins
        self._origins = frozenset(origin.encode() for origin in config.allow_origins)
        self._methods = ", ".join(config.allow_methods).encode()
        self._any_field = "*" in config.allow_headers
        self._fields = ", ".join(name for name in config.allow_headers if name != "*").encode()
        self._max_age = b"%d" % config.max_age_s
        exposed = ", ".join(config.expose_headers).encode()
        self._exposed: Fields = [(b"Access-Control-Expose-Headers", exposed)] if exposed else []
        self._open: Fields = [(b"Access-Control-Allow-Origin", b"*")]
        self._open_exposed: Fields = [*self._open, *self._exposed]

    def answer_fields(self, request: Index) -> Fields:
        """What to add to an answer.

        The list of exposed fields is a kilobyte that only a browser reads; it is sent when there is an Origin.
        """
        if not self.enabled:
            return []
        if self._any_origin:
            return self._open if request.get(b"origin") is None else self._open_exposed
        vary: Fields = [(b"Vary", b"Origin")]  # caches must not serve one origin's answer to another
        origin = request.get(b"origin")
        if origin is None or origin not in self._origins:
            return vary
        return [(b"Access-Control-Allow-Origin", origin), *self._exposed, *vary]

    def is_preflight(self, method: bytes, request: Index) -> bool:
        """Whether a request is a browser's question and not a caller's OPTIONS (Fetch 3.2.2)."""
        return (
            method == b"OPTIONS"
            and self.enabled
            and request.get(b"origin") is not None
            and request.get(b"access-control-request-method") is not None
        )

    def preflight_fields(self, request: Index) -> Fields:
        """The answer to a preflight, besides :meth:`answer_fields`.

        Where any field is allowed, the browser's list is echoed: ``*`` would not cover Authorization (Fetch 4.9).
        """
        allowed = self._fields
        asked = request.get(b"access-control-request-headers")
        if self._any_field and asked:
            allowed = asked
        answer: Fields = [(b"Access-Control-Allow-Methods", self._methods)]
        if allowed:
            answer.append((b"Access-Control-Allow-Headers", allowed))
        answer.append((b"Access-Control-Max-Age", self._max_age))
        answer.append((b"Vary", b"Access-Control-Request-Headers"))
        return answer
