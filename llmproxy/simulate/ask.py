"""The shapes that everything here shares: `Ask` comes in, `Reply` or `Refusal` goes out, `House` remembers.

The rule kept here: an endpoint is a plain function `(Ask, House) -> Reply`. It knows no socket, no timer
and no framing; `resource` and `performance` do the rest.
"""

import re
import secrets
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, unquote

import msgspec

from llmproxy.simulate.served import Served
from llmproxy.simulate.wishes import BadWish, Wishes, split_model, wishes_of

if TYPE_CHECKING:
    from llmproxy.simulate.dialects import Dialect

Fields = list[tuple[bytes, bytes]]

KEPT: Final = 256
"""How many files, uploads and stored responses the simulator remembers; the oldest goes first."""
LARGEST_BODY_BYTES: Final = 64 * 1024 * 1024
"""How much of a request's body is kept; what is beyond is counted and dropped, so an upload has no limit."""
LARGEST_WHOLE_BYTES: Final = 256 * 1024 * 1024
"""Answers that are not streamed are built in memory, so their size has a bound."""


class Refusal(Exception):
    """A request that the provider refuses. The dialect gives it its shape."""

    def __init__(self, status: int, message: str, *, code: str | None = None, param: str | None = None):
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param


@dataclass(slots=True, kw_only=True)
class Reply:
    """What is answered. `events`, when set, is the body as a stream, one item for each event.

    `served` is its usage; `None` where the answer bills nothing.
    """

    body: bytes = b""
    events: Iterator[bytes] | None = None
    served: Served | None = None
    content_type: bytes = b"application/json"
    status: int = 200
    fields: Fields = field(default_factory=list)


class Remembered(OrderedDict[str, Any]):
    """A dictionary that keeps its last `KEPT` entries."""

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, value)
        while len(self) > KEPT:
            self.popitem(last=False)


class House:
    """What the simulator remembers between requests."""

    def __init__(self) -> None:
        self.files: Remembered = Remembered()
        self.responses: Remembered = Remembered()
        self.uploads: Remembered = Remembered()
        self.gemini_files: Remembered = Remembered()
        self.chats: Remembered = Remembered()
        self.batches: Remembered = Remembered()
        self.interactions: Remembered = Remembered()


def new_id(prefix: str, size: int = 24) -> str:
    """A fresh id in the manner of the providers: `resp_` and some letters and digits."""
    return prefix + secrets.token_hex(size)[:size]


class Ask:
    """One request, its body received.

    `body` is the beginning of the body where `body_bytes`, its size, is above `LARGEST_BODY_BYTES`. `path` is
    the target's path as sent; `found` holds what the route's pattern caught, percent-decoded.
    """

    def __init__(
        self,
        *,
        method: bytes,
        target: bytes,
        fields: Fields,
        body: bytes,
        body_bytes: int,
        now_s: float,
        secure: bool = False,
    ) -> None:
        self.method = method
        self.target = target
        self.fields = fields
        self.body = body
        self.body_bytes = body_bytes
        self.now_s = now_s
        self.secure = secure
        self.path, _, query = target.decode("latin-1").partition("?")
        self.query = dict(parse_qsl(query, keep_blank_values=True))
        self.found: Mapping[str, str] = {}
        self.wishes = Wishes()
        self.dialect: Dialect

    @property
    def created(self) -> int:
        return int(self.now_s)

    @property
    def origin(self) -> str:
        """Scheme and authority as the caller used them, for the absolute URLs of an answer."""
        return f"{'https' if self.secure else 'http'}://{self.field(b'host')}"

    @property
    def provider(self) -> str:
        """Whose endpoint it is: openai, anthropic, gemini or groq."""
        return self.dialect.name.partition("-")[0]

    def field(self, name: bytes) -> str:
        """The field's values, joined by a comma as RFC 9110 section 5.3 allows; empty when absent."""
        return ", ".join(v.decode("latin-1") for n, v in self.fields if n.lower() == name)

    def has(self, name: bytes) -> bool:
        return any(n.lower() == name for n, _ in self.fields)

    def catch(self, caught: Mapping[str, str | None]) -> None:
        """Keep what the route's pattern caught."""
        self.found = {name: unquote(value) for name, value in caught.items() if value is not None}

    def read_wishes(self, model: str = "") -> str:
        """Read the wishes of the field and of the model's name; the model's plain name.

        Raises `Refusal` with status 400 for a wish that is not understood.
        """
        plain, behind = split_model(model)
        try:
            self.wishes = wishes_of(self.field(b"x-simulate"), behind)
        except BadWish as complaint:
            raise Refusal(400, str(complaint), param="X-Simulate") from None
        return plain

    def json(self) -> dict[str, Any]:
        """The body as a JSON object. Raises `Refusal`."""
        if self.body_bytes > len(self.body):
            raise Refusal(413, f"A JSON body has at most {LARGEST_BODY_BYTES} bytes.")
        try:
            decoded = msgspec.json.decode(self.body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            decoded = None
        if not isinstance(decoded, dict):
            raise Refusal(400, "We could not parse the JSON body of your request: it must be an object.")
        return decoded

    def model(self, name: object) -> str:
        """The model that is asked for, without its wishes. Raises `Refusal`."""
        if not isinstance(name, str) or not name:
            raise Refusal(400, "you must provide a model parameter", param="model")
        plain = self.read_wishes(name)
        if self.wishes.status is not None and self.wishes.status >= 400:
            raise Refusal(self.wishes.status, "")
        if re.match(r"(models/)?missing-", plain):
            message = f"The model `{plain}` does not exist or you do not have access to it."
            raise Refusal(404, message, code="model_not_found")
        return plain

    def must_fit(self) -> None:
        """Refuse a whole answer that would not fit into memory."""
        if (self.wishes.text_bytes or 0) > LARGEST_WHOLE_BYTES:
            message = f"An answer of more than {LARGEST_WHOLE_BYTES} bytes must be streamed."
            raise Refusal(400, message, param="X-Simulate")
