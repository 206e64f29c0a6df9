"""What the simulator has seen, for tests to look at: `/_simulator/requests` and `/_simulator/connections`.

The rule kept here: fields are recorded as they came, in their order and case, but no key is: its value is
replaced by its length and the beginning of its SHA-256, which is enough to tell two keys apart.
"""

import hashlib
import re
from collections import deque
from typing import Any, Final
from weakref import WeakKeyDictionary

from llmproxy.core.fields import Fields

KEPT: Final = 1000
"""How many requests are remembered."""
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


class Record:
    """The last requests, and the counters."""

    def __init__(self) -> None:
        self._requests: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self._numbers: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
        self.connections = 0
        self.counts = {"requests": 0, "answering": 0, "answered": 0, "aborted": 0}

    def connection_number(self, channel: object) -> int:
        """The number of a connection: requests with the same number came over the same one."""
        number = self._numbers.get(channel)
        if number is None:
            self.connections += 1
            number = self._numbers[channel] = self.connections
        return number

    def begin(self, method: bytes, target: bytes, version: bytes, fields: Fields, connection: int) -> dict[str, Any]:
        """Note a request whose head is in; its body's size and hash are added when it has ended."""
        self.counts["requests"] += 1
        self.counts["answering"] += 1
        noted: dict[str, Any] = {
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
        self._requests.append(noted)
        return noted

    def end(self, noted: dict[str, Any], *, gone: bool) -> None:
        """The answer has ended; `gone` when the caller left before."""
        self.counts["answering"] -= 1
        self.counts["aborted" if gone else "answered"] += 1
        noted["aborted"] = gone

    def last(self, count: int) -> list[dict[str, Any]]:
        """The last requests, the oldest first."""
        return list(self._requests)[-count:] if count else []

    def forget(self) -> None:
        """Forget the requests; the counters stay."""
        self._requests.clear()
