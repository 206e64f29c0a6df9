"""Names: asked for once, remembered for a while, and still usable when the name server is not."""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Callable
from typing import Any
from unittest import mock

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IAddress
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.wire.resolve import CachingResolver, SystemResolver


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


class _Turns:
    """A reactor's way in for threads."""

    def __init__(self) -> None:
        self._calls: queue.Queue[Callable[[], None]] = queue.Queue()

    def callFromThread(self, call: Callable[..., None], *arguments: Any) -> None:
        self._calls.put(lambda: call(*arguments))

    def next(self) -> None:
        """Wait for the next call, and make it here."""
        self._calls.get(timeout=5.0)()


class Asking(SynchronousTestCase):
    """The system is asked, and by whom."""

    def setUp(self) -> None:
        """A resolver; who asks for addresses gets these."""
        self.turns = _Turns()
        self.resolver = SystemResolver(self.turns)  # type: ignore[arg-type]
        self.asked: list[tuple[Any, ...]] = []
        self.asking: list[threading.Thread] = []
        self.answer: list[Any] | Exception = []

    def getaddrinfo(self, *question: Any) -> list[Any]:
        self.asked.append(question)
        self.asking.append(threading.current_thread())
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def ask(self, name: str = "api.test", **more: Any) -> _Asker:
        """Ask, and wait for the answer."""
        asker = _Asker()
        with mock.patch.object(socket, "getaddrinfo", self.getaddrinfo):
            self.resolver.resolveHostName(asker, name, 443, **more)  # type: ignore[arg-type]
            self.assertEqual((asker.began.name, asker.complete), (name, 0))
            self.turns.next()
        self.assertEqual(asker.complete, 1)
        return asker

    def test_order(self) -> None:
        """The addresses come in the system's order, with port, flow and scope; what is no address of IP is left out."""
        self.answer = [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("fe80::1", 443, 7, 3)),
            (socket.AF_UNIX, socket.SOCK_STREAM, 0, "", "/run/it"),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 443)),
        ]
        found = self.ask().found
        self.assertEqual(found, [IPv6Address("TCP", "fe80::1", 443, 7, 3), IPv4Address("TCP", "192.0.2.1", 443)])

    def test_what_is_asked(self) -> None:
        """The kinds of address and the transport are passed on, and are those of the answer."""
        unspecified, stream, datagram = socket.AF_UNSPEC, socket.SOCK_STREAM, socket.SOCK_DGRAM
        self.ask()
        self.ask(addressTypes=(IPv4Address, IPv6Address))
        self.ask(addressTypes=[IPv4Address])
        self.ask(addressTypes=[IPv6Address])
        self.answer = [(socket.AF_INET, datagram, 17, "", ("192.0.2.1", 443))]
        self.assertEqual(self.ask(transportSemantics="UDP").found, [IPv4Address("UDP", "192.0.2.1", 443)])
        self.assertEqual(
            [question[1:] for question in self.asked],
            [
                (443, unspecified, stream),
                (443, unspecified, stream),
                (443, socket.AF_INET, stream),
                (443, socket.AF_INET6, stream),
                (443, unspecified, datagram),
            ],
        )

    def test_failures(self) -> None:
        """Whatever goes wrong, the look-up has ended, and there is no address."""
        for error in (socket.gaierror(socket.EAI_AGAIN, "try again"), UnicodeError("no name"), ValueError("anything")):
            self.answer = error
            self.assertEqual(self.ask().found, [])
        asker = _Asker()
        self.resolver.resolveHostName(asker, "a..b")  # type: ignore[arg-type]
        self.turns.next()
        self.assertEqual((asker.found, asker.complete), ([], 1))

    def test_a_thread_of_its_own(self) -> None:
        """Each look-up has a thread, and the end of the process waits for none of them."""
        self.ask()
        self.ask("other.test")
        self.assertEqual(len({*self.asking, threading.current_thread()}), 3)
        self.assertTrue(all(each.daemon for each in self.asking))

    def test_no_thread(self) -> None:
        """Where none can be started the resolver says so, and the cache in front of it bears that."""
        started = mock.patch.object(threading.Thread, "start", side_effect=RuntimeError("can't start new thread"))
        asker = _Asker()
        with started:
            self.assertRaises(RuntimeError, self.resolver.resolveHostName, asker, "api.test")
            cache = CachingResolver(self.resolver, Clock())
            cache.resolveHostName(asker, "api.test")  # type: ignore[arg-type]
        self.assertEqual((asker.found, asker.complete), ([], 1))
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_an_address(self) -> None:
        """An address is its own answer, at once and without a thread; none where the other kind is wanted."""
        for host, more, expected in (
            ("192.0.2.1", {}, [IPv4Address("TCP", "192.0.2.1", 443)]),
            ("2001:db8::1", {}, [IPv6Address("TCP", "2001:db8::1", 443)]),
            ("2001:db8::1", {"addressTypes": [IPv4Address]}, []),
            ("192.0.2.1", {"addressTypes": [IPv6Address]}, []),
        ):
            asker = _Asker()
            with mock.patch.object(threading.Thread, "start", side_effect=AssertionError("a thread")):
                self.resolver.resolveHostName(asker, host, 443, **more)  # type: ignore[arg-type]
            self.assertEqual((asker.began.name, asker.found, asker.complete), (host, expected, 1))
        asker = _Asker()
        self.resolver.resolveHostName(asker, "fe80::1%lo", 443)  # type: ignore[arg-type]
        (address,) = asker.found
        self.assertEqual(address.scopeID, socket.if_nametoindex("lo"))  # type: ignore[attr-defined]
