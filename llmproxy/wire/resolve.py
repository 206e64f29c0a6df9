"""Host names: asked of the system on threads of their own, remembered for a while, and asked for once at a time.

Twisted's resolver asks the system for every new connection, on one of ten threads, and the end of the process waits for
them. A slow name server would hold up every provider at once, and then a stop: getaddrinfo takes half a minute to find
out that nobody answers. Here each look-up has a thread that nobody waits for (:class:`SystemResolver`), and a name is
asked for once whoever wants it (:class:`CachingResolver`), so that there are about as many threads as names.

The answer is kept for ``ttl_s``; and if the name server fails later, the old answer is used for up to ``stale_s``: a
wrong address refuses the connection, which is no worse than no address. A failure is remembered too, for ``failed_s``:
while a name server is down, every request would otherwise cost a look-up that takes seconds of a thread. A look-up that
does not end is given up by the first who asks after ``patience_s``, and made again.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from threading import Thread
from typing import Any, Final

from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import (
    IAddress,
    IHostnameResolver,
    IHostResolution,
    IReactorFromThreads,
    IReactorTime,
    IResolutionReceiver,
)
from twisted.logger import Logger
from zope.interface import implementer

_log = Logger()

_FAMILIES: Final[Mapping[frozenset[type[IAddress]], int]] = {
    frozenset([IPv4Address]): socket.AF_INET,
    frozenset([IPv6Address]): socket.AF_INET6,
    frozenset([IPv4Address, IPv6Address]): socket.AF_UNSPEC,
}
_KINDS: Final[Mapping[int, Any]] = {socket.AF_INET: IPv4Address, socket.AF_INET6: IPv6Address}
_TYPES: Final[Mapping[str, int]] = {"TCP": socket.SOCK_STREAM, "UDP": socket.SOCK_DGRAM}


@implementer(IHostResolution)
class _Resolution:
    def __init__(self, name: str) -> None:
        self.name = name

    def cancel(self) -> None:
        """A shared look-up goes on for the others."""


@dataclass(slots=True)
class _Entry:
    addresses: list[IAddress] = field(default_factory=list)
    resolved_at: float = float("-inf")
    failed_at: float = float("-inf")
    waiting: list[tuple[Any, int]] = field(default_factory=list)
    asked_at: float | None = None
    """When the look-up began that is under way."""


@implementer(IResolutionReceiver)
class _Receiver:
    def __init__(self, cache: CachingResolver, entry: _Entry, asked_at: float) -> None:
        self._cache = cache
        self._entry = entry
        self._asked_at = asked_at
        self._found: list[IAddress] = []

    def resolutionBegan(self, resolutionInProgress: IHostResolution) -> None:
        """Nothing to do."""

    def addressResolved(self, address: IAddress) -> None:
        """One address."""
        self._found.append(address)

    def resolutionComplete(self) -> None:
        """All addresses, or none if the look-up failed."""
        if self._entry.asked_at == self._asked_at:  # nobody has given it up
            self._cache.resolved(self._entry, self._found)


@implementer(IHostnameResolver)
class SystemResolver:
    """An IHostnameResolver that has the system answer, in the order in which the system prefers the addresses.

    :param reactor: gets the answers.
    """

    def __init__(self, reactor: IReactorFromThreads) -> None:
        self._reactor: Any = reactor

    def resolveHostName(
        self,
        resolutionReceiver: IResolutionReceiver,
        hostName: str,
        portNumber: int = 0,
        addressTypes: Sequence[type[IAddress]] | None = None,
        transportSemantics: str = "TCP",
    ) -> IHostResolution:
        """See IHostnameResolver.

        :raises RuntimeError: when no thread can be started.
        """
        family = socket.AF_UNSPEC if addressTypes is None else _FAMILIES[frozenset(addressTypes)]
        question = (hostName, portNumber, family, _TYPES[transportSemantics])
        resolution = _Resolution(hostName)
        receiver: Any = resolutionReceiver

        def look_up() -> None:
            self._reactor.callFromThread(_tell, receiver, _addresses(transportSemantics, *question))

        if isIPAddress(hostName) or isIPv6Address(hostName):
            # Nobody has to be asked; the system only says what it makes of the scope of an IPv6 address.
            receiver.resolutionBegan(resolution)
            _tell(receiver, _addresses(transportSemantics, *question))
        else:
            # A daemon: the end of the process does not wait for it.
            Thread(target=look_up, name=f"look-up of {hostName}", daemon=True).start()
            receiver.resolutionBegan(resolution)
        return resolution


def _addresses(transport: str, *question: Any) -> list[IAddress]:
    """What the system says; nothing when it fails, however it does. It may take its time."""
    try:
        found = socket.getaddrinfo(*question)
        return [_KINDS[kind](transport, *where) for kind, _, _, _, where in found if kind in _KINDS]
    except Exception:  # noqa: BLE001 - no name server, no such name, no name at all: there is no address
        return []


def _tell(receiver: Any, addresses: list[IAddress]) -> None:
    for address in addresses:
        receiver.addressResolved(address)
    receiver.resolutionComplete()


@implementer(IHostnameResolver)
class CachingResolver:
    """An IHostnameResolver in front of another; install it with ``reactor.installNameResolver``.

    :param most: how many names are remembered; the oldest is forgotten first.
    """

    def __init__(
        self,
        resolver: IHostnameResolver,
        clock: IReactorTime,
        ttl_s: float = 60.0,
        stale_s: float = 3600.0,
        failed_s: float = 1.0,
        patience_s: float = 30.0,
        most: int = 256,
    ) -> None:
        self._resolver: Any = resolver
        self._clock = clock
        self._ttl_s = ttl_s
        self._stale_s = stale_s
        self._failed_s = failed_s
        self._patience_s = patience_s
        self._most = most
        self._entries: dict[tuple[Any, ...], _Entry] = {}

    def resolveHostName(
        self,
        resolutionReceiver: IResolutionReceiver,
        hostName: str,
        portNumber: int = 0,
        addressTypes: Sequence[type[IAddress]] | None = None,
        transportSemantics: str = "TCP",
    ) -> IHostResolution:
        """See IHostnameResolver."""
        resolution = _Resolution(hostName)
        key = (hostName, None if addressTypes is None else tuple(addressTypes), transportSemantics)
        entry = self._entries.get(key)
        if entry is None:
            while len(self._entries) >= self._most:
                self._entries.pop(next(iter(self._entries)))
            entry = self._entries[key] = _Entry()
        resolutionReceiver.resolutionBegan(resolution)
        now = self._clock.seconds()
        known = bool(entry.addresses) and now - entry.resolved_at < self._ttl_s
        if known or now - entry.failed_at < self._failed_s:
            _deliver(resolutionReceiver, entry.addresses, portNumber)
            return resolution
        if entry.asked_at is not None and now - entry.asked_at >= self._patience_s:
            self.resolved(entry, [])
        entry.waiting.append((resolutionReceiver, portNumber))
        if entry.asked_at is None:
            entry.asked_at = now
            try:
                self._resolver.resolveHostName(
                    _Receiver(self, entry, now),
                    hostName,
                    portNumber=0,
                    addressTypes=addressTypes,
                    transportSemantics=transportSemantics,
                )
            except Exception:  # noqa: BLE001 - whatever it is, no answer will come of it
                _log.failure("a name could not be looked up")
                self.resolved(entry, [])
        return resolution

    def resolved(self, entry: _Entry, addresses: list[IAddress]) -> None:
        """The look-up for ``entry`` has ended: everyone who waits for it gets what there is."""
        now = self._clock.seconds()
        entry.asked_at = None
        if addresses:
            entry.addresses = addresses
            entry.resolved_at = now
        else:
            entry.failed_at = now
            if now - entry.resolved_at > self._stale_s:
                entry.addresses = []
        waiting, entry.waiting = entry.waiting, []
        for receiver, port in waiting:
            _deliver(receiver, entry.addresses, port)


def _deliver(receiver: Any, addresses: list[IAddress], port: int) -> None:
    for address in addresses:
        if isinstance(address, IPv4Address):
            receiver.addressResolved(IPv4Address(address.type, address.host, port))
        elif isinstance(address, IPv6Address):
            receiver.addressResolved(IPv6Address(address.type, address.host, port, address.flowInfo, address.scopeID))
        else:
            receiver.addressResolved(address)
    receiver.resolutionComplete()
