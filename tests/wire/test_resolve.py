"""Names: asked for once, remembered for a while, and still usable when the name server is not."""

from __future__ import annotations

from typing import Any
from unittest import mock

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IAddress
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.wire.resolve import CachingResolver


class _System:
    """The system's resolver, in the test's hands."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any]] = []
        self._receivers: list[Any] = []

    def resolveHostName(
        self, receiver: Any, name: str, portNumber: int = 0, addressTypes: Any = None, transportSemantics: str = "TCP"
    ) -> None:
        self.asked.append((name, addressTypes))
        self._receivers.append(receiver)
        receiver.resolutionBegan(None)

    def answers(self, *hosts: str) -> None:
        """Answer the oldest question."""
        receiver = self._receivers.pop(0)
        for host in hosts:
            kind = IPv6Address if ":" in host else IPv4Address
            receiver.addressResolved(kind("TCP", host, 0))
        receiver.resolutionComplete()


class _Asker:
    """Somebody who wants a name resolved."""

    def __init__(self) -> None:
        self.began: Any = None
        self.found: list[IAddress] = []
        self.complete = 0

    def resolutionBegan(self, resolution: Any) -> None:
        self.began = resolution

    def addressResolved(self, address: IAddress) -> None:
        self.found.append(address)

    def resolutionComplete(self) -> None:
        self.complete += 1

    @property
    def hosts(self) -> list[tuple[str, int]]:
        return [(each.host, each.port) for each in self.found]  # type: ignore[attr-defined]


class Caching(SynchronousTestCase):
    """What is asked and what is answered."""

    def setUp(self) -> None:
        """A cache of two names, for 60 s, and an hour at need."""
        self.clock = Clock()
        self.system = _System()
        self.cache = CachingResolver(self.system, self.clock, ttl_s=60, stale_s=3600, most=2)  # type: ignore[arg-type]

    def ask(self, name: str = "api.test", port: int = 443, **more: Any) -> _Asker:
        """Ask."""
        asker = _Asker()
        self.cache.resolveHostName(asker, name, port, **more)  # type: ignore[arg-type]
        self.assertEqual(asker.began.name, name)
        asker.began.cancel()
        return asker

    def test_one_that_does_not_end(self) -> None:
        """A look-up that never ends is given up by who asks later, and made anew; what it says at last is nothing."""
        first = self.ask()
        self.clock.advance(29)
        second = self.ask()
        self.assertEqual((len(self.system.asked), first.complete), (1, 0))
        self.clock.advance(1)
        third = self.ask()
        self.assertEqual((len(self.system.asked), first.complete, second.complete), (2, 1, 1))
        self.assertEqual((first.hosts, third.complete), ([], 0))
        self.system.answers("192.0.2.66")
        self.assertEqual(third.complete, 0)
        self.system.answers("192.0.2.1")
        self.assertEqual(third.hosts, [("192.0.2.1", 443)])

    def test_one_that_cannot_begin(self) -> None:
        """A resolver that raises is a failed look-up, is told, and is asked again a moment later."""

        def broken(*_: Any, **__: Any) -> None:
            raise RuntimeError("can't start new thread")

        with mock.patch.object(self.system, "resolveHostName", broken):
            asker = self.ask()
        self.assertEqual((asker.hosts, asker.complete), ([], 1))
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.clock.advance(1)
        self.ask()
        self.assertEqual(len(self.system.asked), 1)

    def test_once_for_all(self) -> None:
        """Many who ask at once cause one question, and each gets every address with its own port."""
        askers = [self.ask(port=port) for port in (443, 8443, 1)]
        self.assertEqual(len(self.system.asked), 1)
        self.system.answers("192.0.2.1", "2001:db8::1")
        for asker, port in zip(askers, (443, 8443, 1), strict=True):
            self.assertEqual(asker.hosts, [("192.0.2.1", port), ("2001:db8::1", port)])
            self.assertEqual(asker.complete, 1)

    def test_remembered(self) -> None:
        """For a minute nobody is asked again; after it somebody is."""
        self.ask()
        self.system.answers("192.0.2.1")
        self.clock.advance(59)
        self.assertEqual(self.ask().hosts, [("192.0.2.1", 443)])
        self.assertEqual(len(self.system.asked), 1)
        self.clock.advance(2)
        asker = self.ask()
        self.assertEqual((asker.complete, len(self.system.asked)), (0, 2))
        self.system.answers("192.0.2.2")
        self.assertEqual(asker.hosts, [("192.0.2.2", 443)])

    def test_name_server_gone(self) -> None:
        """If the name server fails later, the old address serves for an hour, and no longer."""
        self.ask()
        self.system.answers("192.0.2.1")
        self.clock.advance(3000)
        asker = self.ask()
        self.system.answers()
        self.assertEqual(asker.hosts, [("192.0.2.1", 443)])
        self.clock.advance(601)
        asker = self.ask()
        self.system.answers()
        self.assertEqual((asker.hosts, asker.complete), ([], 1))

    def test_unknown(self) -> None:
        """A name that could not be found is not asked for again for a second, however many want it; then it is."""
        asker = self.ask()
        self.system.answers()
        self.assertEqual((asker.hosts, asker.complete), ([], 1))
        for _ in range(50):
            asker = self.ask()
            self.assertEqual((asker.hosts, asker.complete), ([], 1))
        self.assertEqual(len(self.system.asked), 1)
        self.ask("other.test")
        self.assertEqual(len(self.system.asked), 2)
        self.clock.advance(1)
        asker = self.ask()
        self.assertEqual((asker.complete, len(self.system.asked)), (0, 3))

    def test_known_while_the_name_server_is_gone(self) -> None:
        """An old address is given at once while the name server has just failed, and not after another look-up."""
        self.ask()
        self.system.answers("192.0.2.1")
        self.clock.advance(3000)
        self.ask()
        self.system.answers()
        asker = self.ask()
        self.assertEqual((asker.hosts, asker.complete), ([("192.0.2.1", 443)], 1))
        self.assertEqual(len(self.system.asked), 2)

    def test_kinds_of_address(self) -> None:
        """Questions for different kinds of address are different questions."""
        self.ask(addressTypes=(IPv4Address,))
        self.ask(addressTypes=(IPv6Address,))
        self.assertEqual([kinds for _, kinds in self.system.asked], [(IPv4Address,), (IPv6Address,)])

    def test_bounded(self) -> None:
        """Only so many names are remembered, the oldest is forgotten, and who waits for it still gets its answer."""
        waiting = self.ask("a.test")
        self.ask("b.test")
        self.ask("c.test")
        self.system.answers("192.0.2.1")
        self.assertEqual(waiting.hosts, [("192.0.2.1", 443)])
        self.ask("a.test")
        self.assertEqual([name for name, _ in self.system.asked], ["a.test", "b.test", "c.test", "a.test"])
