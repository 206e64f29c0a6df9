"""What every exchange is given: the routes, the policies and the few facts that one configuration makes.

A context never changes. A new configuration is a new context; exchanges keep the one they began with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from llmproxy.accounting.books import Books
from llmproxy.config.model import Accounting, Config
from llmproxy.core import fields as f
from llmproxy.core.fields import Fields
from llmproxy.core.identity import CredentialIds
from llmproxy.observe.access import AccessRecord
from llmproxy.providers import Provider
from llmproxy.state.ledger.row import Row
from llmproxy.upstream.client import ExactClient
from llmproxy.web.cors import CorsPolicy


@dataclass(frozen=True, slots=True)
class Route:
    """One provider and the way to it.

    :ivar root: scheme and authority of its base URL, as bytes.
    :ivar authority: the Host to send.
    :ivar accounting: what holds for it.
    """

    provider: Provider
    client: ExactClient
    root: bytes
    authority: bytes
    accounting: Accounting

    @classmethod
    def to(cls, provider: Provider, client: ExactClient, accounting: Accounting) -> Route:
        """The route to ``provider`` through ``client``."""
        scheme, _, rest = provider.base_url.encode("ascii").partition(b"://")
        authority = rest.partition(b"/")[0]
        return cls(provider, client, scheme + b"://" + authority, authority, accounting)


@dataclass(frozen=True, slots=True)
class Context:
    """See the module.

    :ivar routes: by the provider's name.
    :ivar now: the clock that everything is measured with, in seconds; it only goes forward.
    :ivar wall_time: seconds since 1970, for people.
    :ivar next_request_id: a new id at each call.
    :ivar write_access: takes the record of one access event.
    :ivar books: what all accounts have in common; None where no account is kept.
    :ivar write_row: takes a row for the ledger; None where there is none. ledger_state: how it is, for /health.
    """

    config: Config
    routes: Mapping[str, Route]
    cors: CorsPolicy
    credential_ids: CredentialIds
    now: Callable[[], float]
    wall_time: Callable[[], float]
    next_request_id: Callable[[], str]
    write_access: Callable[[AccessRecord], None]
    books: Books | None = None
    write_row: Callable[[Row], None] | None = None
    ledger_state: Callable[[], dict[str, object]] | None = None
    request_drop: frozenset[bytes] = field(init=False)
    request_prefixes: tuple[bytes, ...] = field(init=False)
    response_prefixes: tuple[bytes, ...] = field(init=False)

    def __post_init__(self) -> None:
        """Which fields do not pass: see docs/fidelity.md.

        Expect is answered here (RFC 9110 10.1.1). Fields with the proxy's own prefix are words to the proxy on the
        way up, and may be set by no upstream on the way down.
        """
        strips = self.config.fidelity.strip_control_fields
        own = (f.CONTROL_PREFIX,) if strips else ()
        told = (f.OWN_PREFIX,) if strips else ()
        identity = {b"x-user-id"} if self.config.identity.strip else set()
        object.__setattr__(self, "request_drop", f.HOP_BY_HOP | {b"expect"} | identity)
        object.__setattr__(self, "request_prefixes", own)
        object.__setattr__(self, "response_prefixes", told + self.cors.prefixes)

    def request_trailers(self, fields: Fields) -> Fields:
        """The trailer fields of a request that may be passed on."""
        return f.trailers(fields, self.request_drop, self.request_prefixes)


def request_ids(process_id: bytes) -> Callable[[], str]:
    """A source of request ids: ``llmp-``, this process's own 12 hexadecimal digits, and a running number.

    :param process_id: six random bytes, so that no two processes give the same id.
    """
    prefix = "llmp-" + process_id.hex() + "-"
    number = 0

    def next_id() -> str:
        nonlocal number
        number += 1
        return f"{prefix}{number:08x}"

    return next_id
