"""A look at a multipart form while it passes: the model that it names. The body itself is never changed.

Audio to be transcribed and images to be edited are sent as forms (OpenAI API reference, "Create transcription"), and
the model is one of its fields, before the file or behind it. The rule is that of core/peek.py: every byte is looked at
once, and what is kept is bounded. Form: RFC 7578.
"""

from __future__ import annotations

import re
from typing import Final

_CHARACTERS_MAX: Final = 256
_OVERLAP_BYTES: Final = 1024
"""How much of the end of a piece is looked at again with the next one: a field with its head is shorter."""

_MODEL: Final = re.compile(
    rb'content-disposition:[ \t]*form-data;[ \t]*name="?model"?[ \t]*\r\n'
    rb"(?:[^\r\n]{1,256}\r\n){0,4}\r\n([^\r\n]{1,1024})\r\n--",
    re.IGNORECASE,
)


class FormPeek:
    """Looks for the model in a form that arrives in pieces; see core.peek.BodyPeek, whose shape it has.

    limit_bytes: look at no more than this many bytes.
    """

    __slots__ = ("_left", "_tail", "done", "model")

    # What a form does not say, or is not asked for.
    stream: bool | None = None
    user: str | None = None
    max_tokens: int | None = None
    complete = False

    def __init__(self, limit_bytes: int) -> None:
        self.done = limit_bytes <= 0
        self.model: str | None = None
        self._left = limit_bytes
        self._tail = b""

    def feed(self, data: bytes) -> bool:
        """Look at the next piece of the body. Returns `done`."""
        if self.done:
            return True
        window = self._tail + data[: self._left]
        self._left -= len(data)
        found = _MODEL.search(window)
        if found is not None:
            model = found[1].decode("utf-8", "replace")
            self.model = model if len(model) <= _CHARACTERS_MAX else None
        self.done = found is not None or self._left <= 0
        self._tail = b"" if self.done else window[-_OVERLAP_BYTES:]
        return self.done
