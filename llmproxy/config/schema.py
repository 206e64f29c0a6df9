"""Which keys there are, as data: the shape of the configuration, with the type of every value.

The rule: a key exists when it is in ``SCHEMA``, and means the same wherever the file with it stands. Defaults
are those of the dataclasses in ``model``. A new key is one line here, one field there, one line in
``configs/base.yml`` and one in docs/configuration.md; tests hold the four together.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from llmproxy.config import model
from llmproxy.config.complaint import Path
from llmproxy.config.values import (
    BOOLEAN,
    FIELD_NAME,
    METHOD,
    NETWORK,
    ORIGIN,
    PORT,
    REDIS_ADDRESS,
    REDIS_URL,
    SECONDS,
    SECONDS_OR_OFF,
    URL,
    Value,
    choice,
    integer,
    text,
)
from llmproxy.providers import KINDS


@dataclass(frozen=True, slots=True)
class ListOf:
    """A list of values. Files replace it as a whole."""

    item: Value


@dataclass(frozen=True, slots=True)
class Named:
    """A map from names of the user's choice to ``item``. Files add to it, and ``null`` takes a name out."""

    item: "Value | Section"
    what: str
    """What one name stands for; docs and complaints write ``<what>`` in its place."""
    name: re.Pattern[str] = re.compile(r".+")
    name_rule: str = "must not be empty"
    reserved: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Section:
    """A map with fixed keys, which becomes one object of the dataclass ``make``."""

    make: type
    keys: Mapping[str, "Kind"]
    partial: bool = False
    """It is laid over another section, so it becomes a map of those keys alone that were set: not set is not 0."""


@dataclass(frozen=True, slots=True)
class Either:
    """One word, or a map: ``on_disconnect: drain`` and ``on_disconnect: {drain: {max_s: 30}}``."""

    word: Value
    section: Section


@dataclass(frozen=True, slots=True)
class Tree:
    """Maps, lists and text of any shape, which somebody else checks: prices (llmproxy/pricing)."""

    type: str
    """In words, for the page of the configuration."""


Kind = Value | ListOf | Named | Section | Either | Tree


def on_disconnect(word: str) -> model.OnDisconnect:
    """The policy that one word stands for. Raises ValueError for any other word."""
    match word.lower():
        case "cancel":
            return model.OnDisconnect()
        case "drain":
            return model.OnDisconnect(drain=model.DrainBounds())
    raise ValueError


# First segments of paths that are not a provider: the proxy's own pages, and paths that SDKs ask for when
# they lose the prefix of their base URL (reserved, so that these stay free to be given a meaning).
_RESERVED_NAMES: Final = frozenset(("health", "meta", "v1", "v1alpha", "v1beta", "upload", "download"))

_LIMIT: Final = integer(0)
_LIMITS: Final = Section(
    model.Limits,
    {
        "requests_per_minute": _LIMIT,
        "tokens_per_minute": _LIMIT,
        "requests_per_day": _LIMIT,
        "tokens_per_day": _LIMIT,
    },
)

_RATE_LIMITING: Final = Section(
    model.RateLimiting,
    {
        "enabled": BOOLEAN,
        "backend": choice("", "memory", "redis"),
        "limits": _LIMITS,
        "overrides": Section(
            model.Overrides,
            {
                "per_key": Named(_LIMITS, "key"),
                "per_user": Named(_LIMITS, "user"),
                "per_model": Named(_LIMITS, "model"),
            },
        ),
        "estimation": Section(
            model.Estimation,
            {
                "max_sample_bytes": integer(-1),
                "bytes_per_token": integer(1),
                "chars_per_token": integer(1),
                "provider_chars_per_token": Named(integer(1), "provider"),
            },
        ),
        "redis": Section(
            model.Redis,
            {
                "address": REDIS_ADDRESS,
                "password": text(secret=True),
                "db": integer(0),
                "url": REDIS_URL,
            },
        ),
    },
)

# A head of 4 KiB is what a request with a long key and a dozen fields of an SDK needs; less would only break it.
_HEADER_BYTES: Final = integer(4096)

_ON_DISCONNECT: Final = Either(
    Value("cancel, drain, or {drain: {max_s: 30, max_tokens: 2000}}", on_disconnect),
    Section(
        model.OnDisconnect,
        {"drain": Section(model.DrainBounds, {"max_s": SECONDS_OR_OFF, "max_tokens": integer(0)})},
    ),
)

_ACCOUNTING: Final[Mapping[str, Kind]] = {
    "enabled": BOOLEAN,
    "inject_include_usage": BOOLEAN,
    "on_disconnect": _ON_DISCONNECT,
    "hold_json_bytes": integer(0, 16 * 1024 * 1024),
}

_UPSTREAM: Final[Mapping[str, Kind]] = {
    "pool_size": integer(0),
    "pool_idle_s": SECONDS,
    "connect_timeout_s": SECONDS_OR_OFF,
    "first_byte_timeout_s": SECONDS_OR_OFF,
    "idle_timeout_s": SECONDS_OR_OFF,
    "max_header_bytes": _HEADER_BYTES,
    "max_connections": integer(0),
    "ca_file": text("the path of a file"),
}

SCHEMA: Final = Section(
    model.Settings,
    {
        "server": Section(
            model.Server,
            {
                "port": PORT,
                "public_url": URL,
                "peek_bytes": integer(0),
                "header_timeout_s": SECONDS_OR_OFF,
                "body_idle_timeout_s": SECONDS_OR_OFF,
                "write_idle_timeout_s": SECONDS_OR_OFF,
                "keepalive_timeout_s": SECONDS_OR_OFF,
                "max_header_bytes": _HEADER_BYTES,
                "max_headers": integer(16),
                "max_body_bytes": integer(0),
                "max_connections": integer(0),
                "max_connections_per_ip": integer(0),
                "max_requests": integer(0),
                "drain_timeout_s": SECONDS_OR_OFF,
                "drain_delay_s": SECONDS_OR_OFF,
                "trusted_proxies": ListOf(NETWORK),
            },
        ),
        "upstream": Section(model.Upstream, _UPSTREAM),
        "providers": Named(
            Section(
                model.ProviderSettings,
                {
                    "enabled": BOOLEAN,
                    "base_url": URL,
                    "kind": choice(*KINDS),
                    "upstream": Section(model.Upstream, _UPSTREAM, partial=True),
                    "accounting": Section(model.Accounting, _ACCOUNTING, partial=True),
                    "models": Tree("map of models"),
                    "prices": Tree("map"),
                },
            ),
            "name",
            name=re.compile(r"[a-z0-9][a-z0-9_-]*"),
            name_rule="must be lower case letters, digits, '_' and '-', and begin with a letter or a digit",
            reserved=_RESERVED_NAMES,
        ),
        "accounting": Section(model.Accounting, _ACCOUNTING),
        "pricing": Section(model.Pricing, {"file": text("the path of a file"), "stale_days": integer(0)}),
        "ledger": Section(
            model.Ledger,
            {
                "backend": choice("off", "sqlite", "jsonl", takes="any"),
                "path": text("the path of a file (sqlite) or of a folder (jsonl)"),
                "flush_s": SECONDS,
                "keep_days": integer(0),
                "max_queued_rows": integer(1000),
                "max_file_bytes": integer(1_048_576),
            },
        ),
        "identity": Section(
            model.Identity,
            {
                "strip": BOOLEAN,
                "secret": text(secret=True),
            },
        ),
        "fidelity": Section(
            model.Fidelity,
            {
                "preserve_host": BOOLEAN,
                "via": BOOLEAN,
                "x_forwarded_for": BOOLEAN,
                "strip_control_fields": BOOLEAN,
                "request_id": BOOLEAN,
                "accel_buffering": BOOLEAN,
                "rewrite_upload_urls": BOOLEAN,
                "server_timing": BOOLEAN,
            },
        ),
        "cors": Section(
            model.Cors,
            {
                "enabled": BOOLEAN,
                "allow_origins": ListOf(ORIGIN),
                "allow_methods": ListOf(METHOD),
                "allow_headers": ListOf(FIELD_NAME),
                "expose_headers": ListOf(FIELD_NAME),
                "max_age_s": integer(0),
            },
        ),
        "log": Section(
            model.Log,
            {
                "level": choice("debug", "info", "warn", "error", "critical", also={"warning": "warn"}),
                "format": choice("auto", "json", "text"),
                "access": BOOLEAN,
            },
        ),
        "features": Section(model.Features, {"rate_limiting": _RATE_LIMITING}),
        "state_dir": text("the path of a directory"),
    },
)

ENVIRONMENT: Final[Mapping[str, Path]] = {
    "PORT": ("server", "port"),
    "LOG_LEVEL": ("log", "level"),
    "LOG_FORMAT": ("log", "format"),
    "LLM_PROXY_IDENTITY_SECRET": ("identity", "secret"),
    "LLM_PROXY_LEDGER": ("ledger", "backend"),
}
"""Environment variables that win over every file, when they are set and not empty."""


def every_key(kind: Kind = SCHEMA, path: Path = ()) -> Iterator[tuple[Path, Kind]]:
    """Every key there can be. Names of the user's choice are ``<name>``: ``providers.<name>.base_url``."""
    if path:
        yield path, kind
    if isinstance(kind, Section):
        for key, below in kind.keys.items():
            yield from every_key(below, (*path, key))
    elif isinstance(kind, Named):
        yield from every_key(kind.item, (*path, f"<{kind.what}>"))
