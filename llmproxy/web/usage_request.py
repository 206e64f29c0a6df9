"""Asking an OpenAI-shaped stream for its usage, where the caller did not.

Such a stream carries its usage only if the request says ``"stream_options": {"include_usage": true}``. So the caller's
JSON text is edited in place (core/include_usage.py), and what the provider adds for it is taken out of the answer again
(core/usage_removal.py). The rule: where it cannot be done exactly it is not done, and the access event says why.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from llmproxy.core import errors
from llmproxy.core.include_usage import with_include_usage
from llmproxy.core.peek import BodyPeek
from llmproxy.providers import dialect_of
from llmproxy.upstream.upload import EditedBody

if TYPE_CHECKING:
    from llmproxy.web.exchange import Exchange

ADDED: Final = "added"
"""The access event's word for a request that was edited."""

TOO_LARGE: Final = "too_large"

_MAY_LACK_USAGE: Final = re.compile(rb"/completions(?:\?|\Z)")
"""Chat completions and the older completions; Responses always tell their usage."""

_SEALS: Final = frozenset(
    (b"content-digest", b"content-md5", b"digest", b"repr-digest", b"signature", b"x-amz-content-sha256")
)
"""Fields that a changed body makes untrue: RFC 9530, RFC 3230, RFC 9421, and those of AWS."""


def may_be_asked(exchange: Exchange) -> bool:
    """Whether, by its path, the request of an exchange is one for a stream that may lack its usage."""
    route, rest = exchange.route, exchange.rest
    return (
        route is not None
        and route.accounting.enabled
        and route.accounting.inject_include_usage
        and not route.provider.usage_in_streams
        and _MAY_LACK_USAGE.search(rest) is not None
        and dialect_of(route.provider, rest) == errors.OPENAI
        and exchange.request.method == b"POST"
    )


class LookToTheEnd:
    """Looks at a body without a length: one that asks for a stream has to be here to its end, to be edited.

    :param peek: looks. limit_bytes: what is longer is not waited for.
    """

    __slots__ = ("_left", "_peek")

    def __init__(self, peek: BodyPeek, limit_bytes: int) -> None:
        self._peek = peek
        self._left = limit_bytes

    def __call__(self, data: bytes) -> bool:
        """A piece; returns whether enough was seen."""
        peek = self._peek
        self._left -= len(data)
        return peek.feed(data) and (self._left <= 0 or not (peek.complete and peek.stream))


def ask_for_usage(exchange: Exchange) -> None:
    """Edit the request of an exchange whose body is known, if its stream would not tell its usage."""
    upload = exchange.upload
    if upload is None or not may_be_asked(exchange):
        return
    peek = exchange.peek
    if peek is None:
        exchange.include_usage = "coded_request"
        return
    if exchange.stream_requested is not True:
        if not peek.complete and exchange.stream_requested is None:
            exchange.include_usage = TOO_LARGE  # if it is for a stream, which the answer will show
        return
    if not _SEALS.isdisjoint(exchange.request.index):
        exchange.include_usage = "sealed"
        return
    body = upload.whole(exchange.context.config.server.peek_bytes) if peek.complete else None
    if body is None:
        exchange.include_usage = TOO_LARGE
        return
    edit = with_include_usage(body)
    if edit.body is not None:
        exchange.upload = EditedBody(edit.body, upload)
        exchange.include_usage = ADDED
    elif edit.reason != "asked":
        exchange.include_usage = edit.reason
