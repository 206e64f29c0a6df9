"""The proxy, put together from a configuration, and again from another one while it runs.

The rule: what did not change is kept. An origin whose address, limits, proxy and trust are the same keeps its
connections; one that is not wanted any more is retired, and what is in flight on it ends in peace. What cannot be put
together changes nothing.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit
from weakref import WeakSet

from llmproxy.config.model import Config, Upstream
from llmproxy.config.paths import identity_secret_file
from llmproxy.core.identity import CredentialIds
from llmproxy.observe.access import AccessRecord
from llmproxy.state.identity_secret import IdentitySecretError, load_or_create
from llmproxy.upstream.client import ExactClient
from llmproxy.upstream.origin import Origin
from llmproxy.web.context import Context, Route, request_ids
from llmproxy.web.cors import CorsPolicy
from llmproxy.web.site import ProxySite
from llmproxy.web.tree import Root
from llmproxy.wire.dial import Dialer, HttpProxy, proxy_for
from llmproxy.wire.tls import client_context


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
        trusted, ways = self._plan(config)
        self._credential_ids = CredentialIds(_identity_secret(config, environ))
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
        context = self._build(config, *self._plan(config))
        self.site.replace(Root(context), context)

    def close(self) -> None:
        """End every exchange and connection now."""
        self.site.stop()
        for origin in self.origins:
            origin.close()

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
            routes[name] = Route.to(config.providers[name], ExactClient(origins[name][1]))
        context = Context(
            config=config,
            routes=routes,
            cors=CorsPolicy(config.cors),
            credential_ids=self._credential_ids,
            now=self._reactor.seconds,
            wall_time=self._wall_time,
            next_request_id=self._next_request_id,
            write_access=self._write_access,
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
