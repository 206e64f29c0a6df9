"""The request target: which part names the route, and which part goes upstream byte for byte.

The rule kept here: the target is cut, never rebuilt. No percent-decoding, no joining of decoded segments, no
normalisation of ``//``, ``.`` or ``..``: what the provider gets after the prefix are the caller's own bytes
(RFC 9112 3.2; RFC 3986 6.2.2.2 lets a decoder change the meaning of ``%2F``).
"""

from __future__ import annotations

import re
from typing import Final

_ORIGIN_FORM: Final = re.compile(rb"/[\x21\x22\x24-\x7e]*\Z")


def is_origin_form(target: bytes) -> bool:
    """Whether ``target`` begins with a slash and holds visible US-ASCII only, without a fragment (RFC 9112 3.2.1)."""
    return _ORIGIN_FORM.match(target) is not None


def split_query(target: bytes) -> tuple[bytes, bytes]:
    """``(path, query)``; the query is without its question mark and empty if there is none."""
    path, _, query = target.partition(b"?")
    return path, query


def after_segments(target: bytes, count: int) -> bytes:
    """What is left of ``target`` behind its first ``count`` path segments, beginning with a slash.

    ``after_segments(b"/openai/v1/models?a=1", 1)`` is ``b"/v1/models?a=1"``. Empty when the path has no slash
    behind them (``/openai``, ``/openai?x``): then there is nothing to forward.
    """
    position = 0
    for _ in range(count):
        position = target.find(b"/", position + 1)
        if position < 0:
            return b""
    # A slash in the query is none of the path's.
    return b"" if b"?" in target[:position] else target[position:]


def without_query_item(target: bytes, name: bytes) -> bytes:
    """``target`` without the query items called ``name``; every other byte stays as it is."""
    path, mark, query = target.partition(b"?")
    if not mark or name not in query:
        return target
    items = query.split(b"&")
    kept = [item for item in items if item != name and not item.startswith(name + b"=")]
    if len(kept) == len(items):
        return target
    return path + b"?" + b"&".join(kept) if kept else path
