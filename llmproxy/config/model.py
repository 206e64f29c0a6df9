"""What the program reads: frozen dataclasses, one for each section of the configuration.

The rule: a default is written here and nowhere else. The schema takes it from here, and a test holds
``configs/base.yml`` against it. What each key means is in docs/configuration.md; units are in the names
(``_s`` seconds, ``_bytes`` bytes). What may hold a secret is left out of ``repr``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from types import MappingProxyType
from typing import Any, Final, Literal, TypeVar

from llmproxy.core.pricing import PriceList
from llmproxy.providers import CATALOG, Provider

T = TypeVar("T")

DEFAULT_PORT: Final = 9002
"""Where the proxy listens when neither an option, nor the environment, nor a file says it."""

LogFormat = Literal["auto", "json", "text"]
LogLevel = Literal["debug", "info", "warn", "error", "critical"]

# Fields of answers that a script in a browser may read. The Fetch standard lets it see only a handful by
# itself, and the SDKs need the request ids, the retry advice and the rate limits. A literal list and not "*",
# because "*" does not hold for requests with credentials (Fetch, 3.2.3).
EXPOSED_FIELDS: Final = (
    "X-LLM-Proxy-Request-ID",
    "X-LLM-Proxy-Error-Source",
    "X-LLM-Proxy-Error-Class",
    "X-LLM-Input-Tokens",
    "X-LLM-Output-Tokens",
    "X-LLM-Total-Tokens",
    "X-LLM-Thought-Tokens",
    "X-LLM-Cache-Read-Tokens",
    "X-LLM-Cache-Write-Tokens",
    "X-LLM-Provider",
    "X-LLM-Model",
    "X-LLM-Request-ID",
    "X-LLM-Cost",
    "X-Request-ID",
    "Request-ID",
    "Retry-After",
    "Retry-After-Ms",
    "X-Should-Retry",
    "X-RateLimit-Limit-Requests",
    "X-RateLimit-Limit-Tokens",
    "X-RateLimit-Remaining-Requests",
    "X-RateLimit-Remaining-Tokens",
    "X-RateLimit-Reset-Requests",
    "X-RateLimit-Reset-Tokens",
    "Anthropic-RateLimit-Requests-Limit",
    "Anthropic-RateLimit-Requests-Remaining",
    "Anthropic-RateLimit-Requests-Reset",
    "Anthropic-RateLimit-Tokens-Limit",
    "Anthropic-RateLimit-Tokens-Remaining",
    "Anthropic-RateLimit-Tokens-Reset",
    "Anthropic-RateLimit-Input-Tokens-Limit",
    "Anthropic-RateLimit-Input-Tokens-Remaining",
    "Anthropic-RateLimit-Input-Tokens-Reset",
    "Anthropic-RateLimit-Output-Tokens-Limit",
    "Anthropic-RateLimit-Output-Tokens-Remaining",
    "Anthropic-RateLimit-Output-Tokens-Reset",
    "Anthropic-Organization-ID",
    "OpenAI-Organization",
    "OpenAI-Processing-Ms",
    "OpenAI-Version",
    "X-Goog-Upload-URL",
    "X-Goog-Upload-Control-URL",
    "X-Goog-Upload-Status",
    "X-Goog-Upload-Chunk-Granularity",
)


def _no_names() -> Mapping[str, T]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """Towards the callers."""

    port: int | str | None = None
    """A port number, or a Twisted endpoint string taken as it is."""
    public_url: str | None = None
    """How callers reach the proxy, without a slash at the end; None: the Host that each caller used."""
    peek_bytes: int = 1_048_576
    header_timeout_s: float = 20.0
    """For a head, all of it; for a connection's first one the TLS handshake is part of it. Here and below 0 is off."""
    body_idle_timeout_s: float = 60.0
    """Between two reads of a request's body, while we read it."""
    write_idle_timeout_s: float = 120.0
    """For a caller that takes nothing of what waits for it."""
    keepalive_timeout_s: float = 400.0
    """For a next request on a connection."""
    max_header_bytes: int = 65_536
    max_headers: int = 200
    max_body_bytes: int = 2_147_483_648
    max_connections: int = 10_000
    max_connections_per_ip: int = 0
    max_requests: int = 5_000
    """In flight at the same time."""
    drain_timeout_s: float = 600.0
    """How long a stop waits for the requests in flight."""
    drain_delay_s: float = 0.0
    """How long a stop goes on listening, so that balancers notice."""
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    """Towards the providers."""

    pool_size: int = 256
    """Idle connections kept per origin."""
    pool_idle_s: float = 45.0
    connect_timeout_s: float = 10.0
    first_byte_timeout_s: float = 600.0
    idle_timeout_s: float = 600.0
    """Between two reads of an answer, and between two pieces of an upload that the provider takes."""
    max_header_bytes: int = 65_536
    """Of the head of an answer."""
    max_connections: int = 0
    """Open at the same time for one provider; 0: as many as there are requests."""
    ca_file: str | None = None
    """An absolute path once loaded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainBounds:
    """How long an answer is read on that nobody waits for any more; 0 is no bound."""

    max_s: float = 0.0
    max_tokens: int = 0
    """Of output that came after the caller had left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OnDisconnect:
    """What becomes of an answer whose caller leaves."""

    drain: DrainBounds | None = None
    """None: it is cancelled. Else it is read to its end, within these bounds, so that its usage is known."""

    def __str__(self) -> str:
        """As it may be written in a file."""
        if self.drain is None:
            return "cancel"
        if self.drain == DrainBounds():
            return "drain"
        return f"{{drain: {{max_s: {self.drain.max_s:g}, max_tokens: {self.drain.max_tokens}}}}}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Accounting:
    """What is known of each request's tokens and cost."""

    enabled: bool = True
    inject_include_usage: bool = True
    """Ask an OpenAI-shaped stream for its usage where the caller did not, and take it out of the answer again."""
    on_disconnect: OnDisconnect = field(default_factory=OnDisconnect)
    hold_json_bytes: int = 262_144
    """A JSON answer of at most this length waits for its end, so that its head can carry its tokens; 0: none waits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pricing:
    """What tokens cost."""

    file: str | None = None
    """A price file that goes before the one that is shipped; an absolute path once loaded."""
    stale_days: int = 90
    """Prices older than this are told of at the start; 0: never."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """One row a request, kept in a file."""

    backend: Literal["off", "sqlite", "jsonl"] = "sqlite"
    path: str | None = None
    """sqlite: the file; jsonl: the folder. None: in the state directory. An absolute path once loaded."""
    flush_s: float = 0.5
    keep_days: int = 90
    """Older rows are removed, the sums of their days are not; 0: none is removed."""
    max_queued_rows: int = 100_000
    """Rows that may wait for a disk that is slow or full."""
    max_file_bytes: int = 268_435_456
    """jsonl: a file that is larger is followed by another one of the same day."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who is asking."""

    strip: bool = False
    secret: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fidelity:
    """Each change that the proxy makes on purpose, and its switch."""

    preserve_host: bool = False
    via: bool = False
    x_forwarded_for: bool = False
    strip_control_fields: bool = True
    request_id: bool = True
    accel_buffering: bool = True
    rewrite_upload_urls: bool = True
    server_timing: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Cors:
    """What scripts in browsers may do (Fetch standard, 3.2)."""

    enabled: bool = True
    allow_origins: tuple[str, ...] = ("*",)
    allow_methods: tuple[str, ...] = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD")
    allow_headers: tuple[str, ...] = ("*",)
    """``"*"``: whatever the preflight asks for."""
    expose_headers: tuple[str, ...] = EXPOSED_FIELDS
    max_age_s: int = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """What is written, and how."""

    level: LogLevel = "info"
    format: LogFormat = "auto"
    access: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The four limits of one scope; 0 is no limit (in an override: as the base says)."""

    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    requests_per_day: int = 0
    tokens_per_day: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Overrides:
    """Limits for single keys, users and models, by name. A ``per_key`` name may be a key: not in ``repr``."""

    per_key: Mapping[str, Limits] = field(default_factory=_no_names, repr=False)
    per_user: Mapping[str, Limits] = field(default_factory=_no_names)
    per_model: Mapping[str, Limits] = field(default_factory=_no_names)


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimation:
    """How input tokens are guessed before the provider counts them."""

    max_sample_bytes: int = 200_000
    """-1: never look into the body."""
    bytes_per_token: int = 4
    chars_per_token: int = 4
    provider_chars_per_token: Mapping[str, int] = field(
        default_factory=lambda: MappingProxyType({"openai": 5, "anthropic": 3})
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Redis:
    """Where several proxies would keep their counters together."""

    address: str | None = None
    password: str | None = field(default=None, repr=False)
    db: int | None = None
    url: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimiting:
    """The rate-limit block. It is validated; ``enabled`` is always False, loading refuses True."""

    enabled: bool = False
    backend: Literal["", "memory", "redis"] = ""
    limits: Limits = field(default_factory=Limits)
    overrides: Overrides = field(default_factory=Overrides)
    estimation: Estimation = field(default_factory=Estimation)
    redis: Redis = field(default_factory=Redis)


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """What can be switched on as a whole."""

    rate_limiting: RateLimiting = field(default_factory=RateLimiting)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderSettings:
    """One provider as written. A built-in one that says nothing is what CATALOG says."""

    enabled: bool = True
    base_url: str | None = None
    kind: str | None = None
    upstream: Mapping[str, Any] = field(default_factory=_no_names)
    """Fields of Upstream, those alone that this provider has another way."""
    accounting: Mapping[str, Any] = field(default_factory=_no_names)
    """Fields of Accounting, likewise."""
    models: Any = field(default_factory=_no_names)
    """What its models cost, as it is written: see `Config.prices`."""
    prices: Any = field(default_factory=_no_names)
    """Whose prices hold for it, as it is written."""


def _built_in_providers() -> Mapping[str, ProviderSettings]:
    return MappingProxyType(
        {name: ProviderSettings(base_url=one.base_url, kind=one.kind) for name, one in CATALOG.items()}
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The whole tree as written, files and defaults together, before the providers are resolved."""

    server: Server = field(default_factory=Server)
    upstream: Upstream = field(default_factory=Upstream)
    providers: Mapping[str, ProviderSettings] = field(default_factory=_built_in_providers)
    accounting: Accounting = field(default_factory=Accounting)
    pricing: Pricing = field(default_factory=Pricing)
    ledger: Ledger = field(default_factory=Ledger)
    identity: Identity = field(default_factory=Identity)
    fidelity: Fidelity = field(default_factory=Fidelity)
    cors: Cors = field(default_factory=Cors)
    log: Log = field(default_factory=Log)
    features: Features = field(default_factory=Features)
    state_dir: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The whole configuration, ready for use."""

    server: Server = field(default_factory=Server)
    upstream: Upstream = field(default_factory=Upstream)
    providers: Mapping[str, Provider] = field(default_factory=lambda: CATALOG)
    """Only those that are enabled, by name."""
    upstreams: Mapping[str, Upstream] = field(
        default_factory=lambda: MappingProxyType({name: Upstream() for name in CATALOG})
    )
    """What holds for each of them: ``upstream`` with the provider's own keys over it."""
    accountings: Mapping[str, Accounting] = field(
        default_factory=lambda: MappingProxyType({name: Accounting() for name in CATALOG})
    )
    """Likewise: ``accounting`` with the provider's own keys over it."""
    accounting: Accounting = field(default_factory=Accounting)
    pricing: Pricing = field(default_factory=Pricing)
    prices: PriceList = field(default_factory=lambda: PriceList(origin="config"))
    """What the files say that models cost, of all providers, disabled ones too."""
    ledger: Ledger = field(default_factory=Ledger)
    identity: Identity = field(default_factory=Identity)
    fidelity: Fidelity = field(default_factory=Fidelity)
    cors: Cors = field(default_factory=Cors)
    log: Log = field(default_factory=Log)
    features: Features = field(default_factory=Features)
    state_dir: str | None = None
    """An absolute path once loaded; ``paths.state_dir`` says where when it is None."""
    files: tuple[str, ...] = ()
    """The files it was made of, in the order in which they were laid over each other."""
