"""Which shape an answer has: told by the members of the first object that it carries, never by the path it is on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Protocol, TypeAlias

import msgspec

from llmproxy.core.json_places import readable
from llmproxy.core.reading.json_scan import KEY_VALUE_BYTES_MAX
from llmproxy.core.reading.shape import Path, Shape
from llmproxy.core.reading.values import REFUSED
from llmproxy.core.usage import Reading

Keys: TypeAlias = Mapping[str, bytes]
"""The members of the top level of an object, as their raw JSON text; b"" for one longer than KEY_VALUE_BYTES_MAX."""


class ShapeClass(Protocol):
    """A class of shapes, which makes one for each answer."""

    def __call__(self) -> Shape: ...

    def recognises(self, keys: Keys) -> bool:
        """Whether an answer whose first object has these members is of this shape. A class method."""


class PlainShape(Protocol):
    """A class of shapes that knows the plain ones of its answers by decoding them: no other shape would take them.

    plain_sign: what such an answer has near its beginning.
    """

    plain_sign: bytes

    def read_plain(self, body: bytes) -> Reading | None:
        """What a whole answer used; None if it is not plain. A static method."""


Shapes: TypeAlias = Sequence[ShapeClass]
"""In the order in which they are asked; the first that recognises an answer takes it."""

_OBJECT: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_KIND_CHARACTERS_MAX: Final = 64


def keys_of(text: bytes) -> Keys | None:
    """The members of the top level of a JSON object; None if the text is none.

    Half a surrogate pair and bytes that are no UTF-8, which msgspec refuses, are question marks in them.
    """
    try:
        found = _OBJECT.decode(text)
    except REFUSED:
        try:
            found = _OBJECT.decode(readable(text).decode("utf-8", "replace"))
        except REFUSED:
            return None
    return {name: bytes(value) if len(value) <= KEY_VALUE_BYTES_MAX else b"" for name, value in found.items()}


def choose(keys: Keys, shapes: Shapes) -> Shape | None:
    """A new shape of the first class that recognises these members; None if none does."""
    for shape_class in shapes:
        if shape_class.recognises(keys):
            return shape_class()
    return None


def watched_by(shapes: Shapes) -> frozenset[Path]:
    """What any of them wants of a value that is too large to keep."""
    return frozenset[Path]().union(*(shape_class().watched for shape_class in shapes))


def error_kind(keys: Keys) -> str | None:
    """The kind of the error, where an object that is of no shape says that one happened; None if it does not.

    `{"error": {"type" | "status" | "code": ...}}` is OpenAI's, Anthropic's and Gemini's; `{"type": "error",
    "code": ...}` is that of OpenAI's Responses.
    """
    text = keys.get("error")
    if text is None:
        return _word(_decoded(keys.get("code", b""))) or "error" if keys.get("type") == b'"error"' else None
    error = _decoded(text) if text else "too long to look at"
    if isinstance(error, dict):
        return next(filter(None, (_word(error.get(name)) for name in ("type", "status", "code"))), "error")
    return "error" if error else None


def _decoded(text: bytes) -> object:
    try:
        return msgspec.json.decode(text)
    except REFUSED:
        return None


def _word(value: object) -> str | None:
    if type(value) is int:
        return str(value)
    return value[:_KIND_CHARACTERS_MAX] if isinstance(value, str) and value else None
