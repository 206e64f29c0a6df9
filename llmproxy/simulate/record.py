"""What the simulator has seen, for tests to look at: `/_simulator/requests` and `/_simulator/connections`.

The rule kept here: fields are recorded as they came, in their order and case, but no key is: its value is
replaced by its length and the beginning of its SHA-256, which is enough to tell two keys apart. A request that has
ended is kept as packed JSON, so that a million of them fit into memory.
"""

import hashlib
import re
import zlib
from typing import Any, Final
from weakref import WeakKeyDictionary

from llmproxy.core.fields import Fields
from llmproxy.simulate.answer import dumps
from llmproxy.simulate.served import Served

KEPT: Final = 1000
"""How many requests are remembered, unless asked otherwise."""
KEPT_MAX: Final = 1_000_000
PAGE: Final = 1000
"""How many requests a page has that begins after a number."""
_SHOWN: Final = 100
_PACKED_FROM: Final = 10_000
"""Where more than this are kept, each is compressed: to some 200 bytes, which takes some microseconds."""
_SECRET: Final = frozenset(
    (
        b"authorization",
        b"proxy-authorization",
        b"x-api-key",
        b"api-key",
        b"x-goog-api-key",
        b"cookie",
        b"sec-websocket-protocol",
        b"x-amz-security-token",
    )
)
_SECRET_QUERY: Final = re.compile(r"(?<=[?&])((?:key|access_token|api_key|token)=)([^&#]+)", re.IGNORECASE)


def masked(secret: str) -> str:
    """What is shown in place of a key."""
    digest = hashlib.sha256(secret.encode("latin-1", "replace")).hexdigest()
    return f"<{len(secret)} characters, sha256 {digest[:12]}>"


def _shown_value(name: bytes, value: bytes) -> str:
    text = value.decode("latin-1")
    if name.lower() not in _SECRET:
        return text
    scheme, space, token = text.partition(" ")
    return f"{scheme} {masked(token)}" if space else masked(text)


def shown_target(target: bytes) -> str:
    """The target without the keys of its query."""
    return _SECRET_QUERY.sub(lambda found: found[1] + masked(found[2]), target.decode("latin-1"))


class Noted:
    """One request. Its members are plain while it is under way, and packed JSON from then on."""

    __slots__ = ("_like", "_members", "_packed", "_under_way", "served")

    def __init__(self, members: dict[str, Any]) -> None:
        self._members: dict[str, Any] | None = members
        self._packed = b""
        self._like = b""  # the text of another request, which it is compressed against
        self._under_way = 2  # its body and its answer
        self.served: Served | None = None

    def __setitem__(self, name: str, value: object) -> None:
        """Note more. What is said of a request that was packed already is too late, and dropped."""
        if self._members is not None:
            self._members[name] = value

    def ended(self, *, gone: bool, like: bytes) -> None:
        """The body, or the answer, has ended; after both, or when the caller is gone, it is packed.

        `like`: the text of another request, to compress it against; empty where it is to stay as it is.
        """
        self._under_way -= 1
        if (self._under_way and not gone) or self._members is None:
            return
        self._packed = self.json()
        if like:
            coder = zlib.compressobj(1, zdict=like)
            self._packed = coder.compress(self._packed) + coder.flush()
            self._like = like
        self._members = self.served = None

    def json(self) -> bytes:
        """As JSON, as it is now."""
        if self._members is not None:
            return dumps(self._members | {"usage": None if self.served is None else self.served.shown()})
        return zlib.decompressobj(zdict=self._like).decompress(self._packed) if self._like else self._packed


class Record:
    """The last requests, and the counters. `keep`: how many requests, at most KEPT_MAX."""

    def __init__(self, keep: int = KEPT) -> None:
        self._keep = min(keep, KEPT_MAX)
        self._requests: dict[int, Noted] = {}  # by number, which is in order
        self._last = 0
        self._like = b""
        self._numbers: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
        self.connections = 0
        self.counts = {"requests": 0, "answering": 0, "answered": 0, "aborted": 0}

    def keep(self, count: int) -> None:
        """Keep so many from now on, at most KEPT_MAX."""
        self._keep = min(count, KEPT_MAX)
        for number in list(self._requests)[: max(0, len(self._requests) - self._keep)]:
            del self._requests[number]

    def connection_number(self, channel: object) -> int:
        """The number of a connection: requests with the same number came over the same one."""
        number = self._numbers.get(channel)
        if number is None:
            self.connections += 1
            number = self._numbers[channel] = self.connections
        return number

    def begin(self, method: bytes, target: bytes, version: bytes, fields: Fields, connection: int) -> Noted:
        """Note a request whose head is in; its body's size and hash are added when it has ended."""
        self.counts["requests"] += 1
        self.counts["answering"] += 1
        self._last += 1
        noted = self._requests[self._last] = Noted(
            {
                "number": self._last,
                "connection": connection,
                "method": method.decode("latin-1"),
                "target": shown_target(target),
                "version": version.decode("latin-1"),
                "fields": [[name.decode("latin-1"), _shown_value(name, value)] for name, value in fields],
                "body_bytes": 0,
                "body_sha256": None,
                "body_complete": False,
                "status": None,
                "aborted": False,
            }
        )
        self._requests.pop(self._last - self._keep, None)
        return noted

    def end(self, noted: Noted, *, gone: bool) -> None:
        """The answer has ended; `gone` when the caller left before."""
        self.counts["answering"] -= 1
        self.counts["aborted" if gone else "answered"] += 1
        noted["aborted"] = gone
        noted.ended(gone=gone, like=self._sample(noted))

    def received(self, noted: Noted) -> None:
        """The request's body is whole."""
        noted.ended(gone=False, like=self._sample(noted))

    def _sample(self, noted: Noted) -> bytes:
        """What to compress requests against: the first of them, for most look like it."""
        if self._keep <= _PACKED_FROM:
            return b""
        if not self._like:
            self._like = noted.json()
        return self._like

    def page(self, last: int | None, after: int | None) -> bytes:
        """Requests as JSON, the oldest first: the last so many, or those whose number is above `after`, a PAGE at most.

        The numbers go up by one from the first request on; `DELETE` does not begin them again.
        """
        if after is None:
            wanted = list(self._requests.values())[-last:] if (last := _SHOWN if last is None else last) else []
        else:
            begin = max(after + 1, next(iter(self._requests), self._last + 1))
            wanted = [self._requests[number] for number in range(begin, min(begin + PAGE, self._last + 1))]
        return b'{"requests":[%b]}' % b",".join(noted.json() for noted in wanted)

    def forget(self) -> None:
        """Forget the requests; the counters stay."""
        self._requests.clear()
