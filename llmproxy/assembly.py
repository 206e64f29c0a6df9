"""The proxy, put together from a configuration, and again from another one while it runs.

The rule: what did not change is kept. An origin whose address, limits, proxy and trust are the same keeps its
connections; one that is not wanted any more is retired, and what is in flight on it ends in peace. What cannot be put
together changes nothing.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import urlsplit
from weakref import WeakSet

from twisted.logger import Logger

from llmproxy.accounting.books import COUNTED_MAX, Books
from llmproxy.config.model import Config, Upstream
from llmproxy.config.paths import identity_secret_file, ledger_path
from llmproxy.core.identity import CredentialIds
from llmproxy.core.pricing import PriceBook, PriceList
from llmproxy.observe.access import AccessRecord
from llmproxy.pricing import PricesError, lists_in_use, staleness
from llmproxy.state.identity_secret import IdentitySecretError, load_or_create
from llmproxy.state.ledger.backend import Backend, LedgerError
from llmproxy.state.ledger.query import counted_once
from llmproxy.state.ledger.row import storable_once
from llmproxy.state.ledger.writer import LedgerWriter
from llmproxy.upstream.client import ExactClient
from llmproxy.upstream.origin import Origin
from llmproxy.web.context import Context, Route, request_ids
from llmproxy.web.cors import CorsPolicy
from llmproxy.web.site import ProxySite
from llmproxy.web.tree import Root
from llmproxy.wire.dial import Dialer, HttpProxy, proxy_for
from llmproxy.wire.tls import client_context

_log = Logger()

LEDGER_CLOSE_S: Final = 5.0
"""How long the end waits for a ledger whose disk is slow."""


class StartError(Exception):
    """The proxy cannot be put together; the text is one line for the operator."""


_Trust = tuple[str | None, int, int, int, int]
"""A CA file, and what tells that it is still the same one."""


@dataclass(frozen=True, slots=True)
class _Way:
    """All that decides how an origin is reached."""

    base_url: str
    limits: Upstream
    proxy: HttpProxy | None
    tls: ssl.SSLContext | None


class Assembly:
    """One proxy.

    :ivar site: serves its callers.
    :param reactor: IReactorTime, and what the dialler needs.
    :param wall_time: seconds since 1970, for people.
    :raises StartError: when something that it needs is not there.
    """

    def __init__(
        self,
        config: Config,
        environ: Mapping[str, str],
        reactor: Any,
        write_access: Callable[[AccessRecord], None],
        wall_time: Callable[[], float],
    ) -> None:
        self._environ = environ
        self._reactor = reactor
        self._write_access = write_access
        self._wall_time = wall_time
        self._trusted: dict[_Trust, ssl.SSLContext] = {}
        self._origins: dict[str, tuple[_Way, Origin]] = {}
        self._retired: WeakSet[Origin] = WeakSet()  # each is kept by those who began with it
        self._next_request_id = request_ids(os.urandom(6))
        prices = price_lists(config)
        trusted, ways = self._plan(config)
        self._credential_ids = CredentialIds(_identity_secret(config, environ))
        self._books = Books(PriceBook(prices), config.features.rate_limiting.estimation, _warn, storable_once)
        self._ledger = self._open_ledger(config)
        self._tell_stale(config, prices)
        context = self._build(config, trusted, ways)
        self.site = ProxySite(Root(context), context, reactor)

    @property
    def origins(self) -> tuple[Origin, ...]:
        """Those that are in use, and those that still end what they had begun."""
        return (*(origin for _, origin in self._origins.values()), *self._retired)

    def replace(self, config: Config) -> None:
        """Serve with ``config`` from now on. Its identity secret stays the one of the start.

        :raises StartError: when something that it needs is not there; then nothing has changed.
        """
        prices = price_lists(config)
        context = self._build(config, *self._plan(config))
        self._books.replace(PriceBook(prices), config.features.rate_limiting.estimation)
        self._tell_stale(config, prices)
        self.site.replace(Root(context), context)

    def close(self) -> None:
        """End every exchange and connection now."""
        self.site.stop()
        for origin in self.origins:
            origin.close()

    def write_rest(self) -> None:
        """Write what the ledger has not written yet; when the last exchange has ended. May take some seconds."""
        if self._ledger is not None and not self._ledger.close(LEDGER_CLOSE_S):
            state = self._ledger.state()
            _log.error("the ledger could not be written to its end: {state}", state=state)

    def _open_ledger(self, config: Config) -> LedgerWriter | None:
        """The ledger, with its thread running; None where none is kept. What is wrong with it refuses no start."""
        settings = config.ledger
        if settings.backend == "off":
            return None
        path = ledger_path(config, self._environ)
        try:
            self._books.counted_before(counted_once(settings.backend, path, COUNTED_MAX))
        except LedgerError:
            pass  # there is none yet, or it cannot be read, which its writer tells
        except Exception:  # noqa: BLE001 - a ledger must not keep the proxy from its start
            _log.failure("what was counted once could not be read from the ledger {path}", path=path)
        backend: Backend
        if settings.backend == "sqlite":
            from llmproxy.state.ledger.sqlite import SqliteLedger

            backend = SqliteLedger(path, keep_days=settings.keep_days, wall_time=self._wall_time)
        else:
            from llmproxy.state.ledger.jsonl import JsonlLedger

            backend = JsonlLedger(
                path,
                keep_days=settings.keep_days,
                max_file_bytes=settings.max_file_bytes,
                wall_time=self._wall_time,
            )
        writer = LedgerWriter(
            backend,
            told=_warn,
            in_reactor=self._reactor.callFromThread,
            flush_s=settings.flush_s,
            max_queued_rows=settings.max_queued_rows,
        )
        writer.start()
        return writer

    def _tell_stale(self, config: Config, prices: Sequence[PriceList]) -> None:
        today = datetime.fromtimestamp(self._wall_time(), UTC).date()
        for each in prices:
            words = staleness(each, today, config.pricing.stale_days)
            if words is not None:
                _warn(words)

    def _plan(self, config: Config) -> tuple[dict[_Trust, ssl.SSLContext], dict[str, _Way]]:
        """What may fail, before anything is changed."""
        trusted: dict[_Trust, ssl.SSLContext] = {}
        ways: dict[str, _Way] = {}
        for name, provider in config.providers.items():
            limits = config.upstreams.get(name, config.upstream)
            tls = None
            if provider.base_url.startswith("https:"):
                trust = _trust(limits.ca_file)
                if trust not in trusted:
                    # Making one takes 20 ms.
                    trusted[trust] = self._trusted.get(trust) or _context(limits.ca_file)
                tls = trusted[trust]
            host = urlsplit(provider.base_url).hostname or ""
            ways[name] = _Way(provider.base_url, limits, proxy_for(host, self._environ), tls)
        return trusted, ways

    def _build(self, config: Config, trusted: dict[_Trust, ssl.SSLContext], ways: dict[str, _Way]) -> Context:
        before = self._origins
        origins: dict[str, tuple[_Way, Origin]] = {}
        routes: dict[str, Route] = {}
        for name, way in ways.items():
            kept = before.get(name)
            origins[name] = kept if kept is not None and kept[0] == way else (way, self._origin(way))
            accounting = config.accountings.get(name, config.accounting)
            routes[name] = Route.to(config.providers[name], ExactClient(origins[name][1]), accounting)
        context = Context(
            config=config,
            routes=routes,
            cors=CorsPolicy(config.cors),
            credential_ids=self._credential_ids,
            now=self._reactor.seconds,
            wall_time=self._wall_time,
            next_request_id=self._next_request_id,
            write_access=self._write_access,
            books=self._books if any(each.enabled for each in config.accountings.values()) else None,
            write_row=self._ledger.add if self._ledger is not None else None,
            ledger_state=self._ledger.state if self._ledger is not None else None,
        )
        # Nothing can fail any more, and only now does anything change.
        self._trusted = trusted
        self._origins = origins
        for name, (_, origin) in before.items():
            if name not in origins or origins[name][1] is not origin:
                origin.retire()
                self._retired.add(origin)
        return context

    def _origin(self, way: _Way) -> Origin:
        parts = urlsplit(way.base_url)
        dialer = Dialer(
            self._reactor,
            parts.hostname or "",
            parts.port or (443 if way.tls is not None else 80),
            tls=way.tls,
            proxy=way.proxy,
            timeout_s=way.limits.connect_timeout_s,
        )
        return Origin(way.base_url.encode("ascii"), dialer, self._reactor, way.limits)


def try_trust(config: Config) -> None:
    """Read the CA files that a configuration names.

    :raises StartError: when one of them cannot be used.
    """
    for ca_file in {limits.ca_file for limits in (config.upstream, *config.upstreams.values())} - {None}:
        _context(ca_file)


def price_lists(config: Config) -> list[PriceList]:
    """The prices of a configuration, as they go before each other.

    :raises StartError: when the file that it names cannot be used.
    """
    try:
        return lists_in_use(config.prices, config.pricing.file)
    except PricesError as error:
        raise StartError(str(error)) from None


def _warn(words: str) -> None:
    _log.warn("{words}", words=words)


def _trust(ca_file: str | None) -> _Trust:
    if ca_file is None:
        return None, 0, 0, 0, 0
    try:
        status = os.stat(ca_file)
    except OSError as error:
        raise StartError(f"upstream.ca_file {ca_file} cannot be used: {error.strerror or error}") from None
    return ca_file, status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size


def _context(ca_file: str | None) -> ssl.SSLContext:
    try:
        return client_context(ca_file)
    except OSError as error:
        raise StartError(f"upstream.ca_file {ca_file} cannot be used: {error.strerror or error}") from None


def _identity_secret(config: Config, environ: Mapping[str, str]) -> bytes:
    if config.identity.secret:
        return config.identity.secret.encode()
    try:
        return load_or_create(identity_secret_file(config, environ))
    except IdentitySecretError as error:
        raise StartError(str(error)) from None
