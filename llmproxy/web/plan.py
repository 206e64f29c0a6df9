"""What one exchange has worked out from its request's head, kept for the next request with the same head.

An SDK sends the same head call after call (see wire/repeat.py). The way through the resource tree, the head that goes
upstream and what the log says of the caller follow from the head and the configuration alone, so they are worked out
once for each connection. The rule: only what follows from these two is kept here; a plan of another configuration is
not used.
Measured: a quarter of the processor time of a small request in this process.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from llmproxy.core.fields import Fields

if TYPE_CHECKING:
    from llmproxy.web.context import Context, Route

_CODINGS: Final = re.compile(rb"(?<=\r\n)(accept-encoding): [^\r\n]*", re.IGNORECASE)
_LENGTH: Final = re.compile(rb"\r\ncontent-length: ([0-9]+)\r\n", re.IGNORECASE)


class Plan:
    """The same way again.

    :ivar context: the configuration that it was made under.
    :ivar looks: whether the body is looked at.
    :ivar url: where the request goes.
    :ivar said: what the access event says that follows from the head; None until one was written.
    """

    __slots__ = (
        "_after",
        "_before",
        "_plain",
        "context",
        "looks",
        "meta_user",
        "path_model",
        "rest",
        "route",
        "route_name",
        "said",
        "url",
    )

    def __init__(
        self,
        context: Context,
        route: Route,
        meta_user: str | None,
        rest: bytes,
        route_name: str,
        looks: bool,
        path_model: str | None,
        url: bytes,
        head: bytes,
    ) -> None:
        self.context = context
        self.route = route
        self.meta_user = meta_user
        self.rest = rest
        self.route_name = route_name
        self.looks = looks
        self.path_model = path_model
        self.url = url
        self.said: tuple[Any, ...] | None = None
        found = _LENGTH.search(head)
        self._before = head[: found.start(1)] if found else head
        self._after: bytes | None = head[found.end(1) :] if found else None

        self._plain: tuple[bytes, bytes | None] | None = None

    def __repr__(self) -> str:
        """The provider only: the head holds keys."""
        return f"<Plan for {self.route.provider.name}>"

    def head(self, length: bytes | None, plain: bool = False) -> bytes:
        """The head that goes upstream, with these digits for the length of the body.

        :param plain: asks for an answer without a coding.
        """
        before, after = self._before, self._after
        if plain:
            if self._plain is None:
                self._plain = without_codings(before), None if after is None else without_codings(after)
            before, after = self._plain
        if after is None or length is None:
            return before
        return before + length + after


def without_codings(head: bytes) -> bytes:
    """``head`` with ``identity`` as what it accepts, wherever it says what."""
    return _CODINGS.sub(rb"\1: identity", head)


def with_codings(head: bytes, fields: Fields) -> bytes:
    """The other way: ``head`` with what ``fields``, those that it was made of, accept."""
    values = iter([value for name, value in fields if name.lower() == b"accept-encoding"])
    return _CODINGS.sub(lambda found: found[1] + b": " + next(values), head)
