"""The command: `python benchmarks/accounting.py`. What accounting costs beside the relay, on and off in one run.

Two proxies in this process, whole but for their sockets: one with accounting, one without. Both relay the same answers
in turn, so that whatever slows the machine slows both, and what is told is the difference of their processor time.

The rule: a proxy that does not read cannot look fast, and one that changes the answer neither. Before a case is timed,
the callers of both have to get the same bytes, and the account has to have counted what the answer says. While it is
timed, each call has to end as counted. Ends with 0 when that was so, else with 1. Never with an opinion about speed.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import sys
import time
import tracemalloc
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import repeat
from pathlib import Path
from statistics import median
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock

if __package__ in (None, ""):  # run as a file: make the folder's own modules importable
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.answers import MANY_PIECES, Case, cases, large_json, large_line, large_stream
from benchmarks.machine import cpu_name
from benchmarks.run import positive
from llmproxy.accounting.account import NO_CALL, Charge
from llmproxy.accounting.books import Books
from llmproxy.accounting.token_fields import token_fields
from llmproxy.config.model import Accounting, Config, Upstream
from llmproxy.core.end import EndReason
from llmproxy.core.fields import Fields
from llmproxy.core.identity import CredentialIds
from llmproxy.core.pricing import PriceBook
from llmproxy.core.usage import Source
from llmproxy.observe.access import AccessRecord
from llmproxy.observe.log import LogObserver
from llmproxy.pricing import load_shipped
from llmproxy.providers import CATALOG
from llmproxy.state.ledger.row import Row, make_storable
from llmproxy.upstream.client import ExactClient
from llmproxy.upstream.origin import Origin
from llmproxy.web import delivery, settlement
from llmproxy.web.context import Context, Route, request_ids
from llmproxy.web.cors import CorsPolicy
from llmproxy.web.exchange import Exchange
from llmproxy.web.settlement import access_record
from llmproxy.web.site import ProxySite
from llmproxy.web.tree import Root
from llmproxy.wire.dial import Dialer

EXACT = str(Source.EXACT)
EVENT_LIMIT_US = 1.0
ANSWER_LIMIT_US = 15.0
#: What reading may hold at any time, however long an answer is: the beginning of a JSON answer, and copies of it.
MEMORY_LIMIT_KIB = 1024
JSON_ANSWERS_PER_EVENT = 0.1
#: Above this load the figures are those of a busy machine.
QUIET_LOAD = 1.0


class Unsound(Exception):
    """A proxy did not do what is to be measured. The text says what."""


class Transport:
    """Our end of a connection whose other end takes everything. `kept`: what it took, once it is a list."""

    def __init__(self, protocol: Any) -> None:
        self.protocol = protocol
        self.connected, self.disconnecting = True, False
        self.bufferSize = 0
        self.kept: list[bytes] | None = None
        protocol.makeConnection(self)

    def write(self, data: bytes) -> None:
        if self.kept is not None:
            self.kept.append(data)

    def getPeer(self) -> IPv4Address:
        return IPv4Address("TCP", "192.0.2.7", 40000)

    def registerProducer(self, producer: object, streaming: bool) -> None:
        """Nothing is ever held back."""

    def nothing(self) -> None:
        """Nothing is ever held back, and no connection ends."""

    unregisterProducer = pauseProducing = resumeProducing = loseConnection = abortConnection = nothing


class MonotonicClock(Clock):
    """Timers without a reactor, on the clock that the proxy measures with."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = time.monotonic  # type: ignore[method-assign]


class Endpoint:
    """Where the proxy connects to its provider."""

    upstream: Transport

    def connect(self, factory: Any) -> Deferred[Any]:
        self.upstream = Transport(factory.buildProtocol(None))
        return succeed(self.upstream.protocol)


class Proxy:
    """A whole proxy, put together as `llmproxy.assembly` does it, with one caller who keeps its connection.

    The access log is made and thrown away; of the ledger all is done but the writing. `alone`: answers are read and
    priced, and nobody is told: no fields in their heads, no rows.
    """

    def __init__(self, accounting: bool, alone: bool = False) -> None:
        self.rows = self.not_exact = 0
        self.last_row: Row | None = None
        clock = self.clock = MonotonicClock()
        self.log = LogObserver(len, clock, wall_time=time.time)
        providers = {name: replace(one, base_url=f"http://{name}.test") for name, one in CATALOG.items()}
        self.alone = alone
        config = Config(providers=providers, accounting=Accounting(enabled=accounting))
        self.endpoints = {name: Endpoint() for name in providers}
        context = Context(
            config=config,
            routes={name: self._route(name, config) for name in providers},
            cors=CorsPolicy(config.cors),
            credential_ids=CredentialIds(b"a secret for benchmarks"),
            now=clock.seconds,
            wall_time=time.time,
            next_request_id=request_ids(bytes(6)),
            write_access=self.log.access,
            books=Books(PriceBook([load_shipped()]), config.features.rate_limiting.estimation, print),
            write_row=self._drop_row if accounting and not alone else None,
        )
        self.site = ProxySite(Root(context), context, clock)
        self.caller = Transport(self.site.buildProtocol(None))

    def _route(self, name: str, config: Config) -> Route:
        provider, endpoint = config.providers[name], self.endpoints[name]
        endpoint_for_dialer: Any = endpoint
        dialer = Dialer(
            self.clock, f"{name}.test", 80, tls=None, proxy=None, timeout_s=10.0, endpoint=endpoint_for_dialer
        )
        origin = Origin(provider.base_url.encode(), dialer, self.clock, Upstream())
        return Route.to(provider, ExactClient(origin), config.accounting)

    def _drop_row(self, row: Row) -> None:
        make_storable(row)
        self.rows += 1
        self.last_row = row
        if row.source != EXACT:
            self.not_exact += 1

    def exchange(self, case: Case, reads: Iterable[bytes]) -> None:
        """One request, and its answer in these reads of the provider's connection."""
        self.caller.protocol.dataReceived(case.request)
        receive = self.endpoints[case.provider].upstream.protocol.dataReceived
        for data in reads:
            receive(data)
        self.clock.advance(0)

    def heard(self, case: Case, reads: Iterable[bytes]) -> tuple[bytes, bytes]:
        """One exchange; returns what the provider got and the body that the caller got."""
        self.exchange(case, reads)  # so that the connection is there
        upstream = self.endpoints[case.provider].upstream
        self.caller.kept, upstream.kept = [], []
        self.exchange(case, reads)
        sent, heard = b"".join(upstream.kept), b"".join(self.caller.kept)
        self.caller.kept = upstream.kept = None
        return sent, body_of(heard)


@dataclass
class Times:
    """Of one case: microseconds of processor time for each event, or for each answer, repetition by repetition.

    longer: the times of the same stream with more events.
    """

    case: Case
    off_us: list[float]
    on_us: list[float]
    alone_us: list[float] = field(default_factory=list)
    longer: Times | None = None

    @property
    def best_us(self) -> float:
        """The difference of the two best: what is left where nobody disturbed."""
        return min(self.on_us) - min(self.off_us)

    @property
    def reading_us(self) -> float:
        """The same of reading and pricing alone."""
        return min(self.alone_us) - min(self.off_us) if self.alone_us else self.best_us

    @property
    def further_us(self) -> float:
        """What reading one more event costs, without what a stream costs once; of a JSON answer all of it."""
        longer = self.longer
        if longer is None:
            return self.reading_us
        few, many = self.case.events, longer.case.events
        return (longer.reading_us * many - self.reading_us * few) / (many - few)

    @property
    def once_us(self) -> float:
        """What reading a stream costs besides: the request, the account, the price; and learning the form of it."""
        return (self.reading_us - self.further_us) * self.case.events

    @property
    def median_us(self) -> float:
        """The median of the differences."""
        return median(on - off for on, off in zip(self.on_us, self.off_us, strict=True))


@dataclass
class Memory:
    """Of one large answer: how much more was held at one time, and after the end, than before it began."""

    name: str
    off_bytes: tuple[int, int]
    on_bytes: tuple[int, int]


def body_of(message: bytes) -> bytes:
    """The body of an answer, without its framing."""
    head, _, body = message.partition(b"\r\n\r\n")
    if b"chunked" not in head.lower():
        return body
    pieces = []
    while body:
        size, _, body = body.partition(b"\r\n")
        length = int(size, 16)
        pieces.append(body[:length])
        body = body[length + 2 :]
    return b"".join(pieces)


def check(case: Case, off: Proxy, on: Proxy) -> None:
    """Whether both relay the case rightly, and the one with accounting counts it."""
    _, plain = off.heard(case, case.off)
    asked, relayed = on.heard(case, case.on)
    if plain != relayed or plain != body_of(b"".join(case.off)):
        raise Unsound(f"{case.name}: the caller got other bytes than the provider sent")
    if (b'"include_usage":true' in asked) != (case.on != case.off or b"include_usage" in case.request):
        raise Unsound(f"{case.name}: the request did not ask for its usage as it should")
    row = on.last_row
    if row is None or row.source != EXACT or (row.total_input, row.total_output) != case.tokens:
        raise Unsound(f"{case.name}: it was not counted, or not rightly: {row}")
    if row.cost_nano_usd is None:
        raise Unsound(f"{case.name}: it has no price")


def no_fields(charge: Charge, provider: str) -> Fields:
    """What a proxy tells its caller whose reading alone is timed."""
    return []


def record_without_usage(exchange: Exchange, end_reason: EndReason, charge: Charge) -> AccessRecord:
    """And what it tells its operator: as much as a proxy without accounting."""
    return access_record(exchange, end_reason, NO_CALL)


def cpu_us(proxy: Proxy, case: Case, reads: tuple[bytes, ...], answers: int) -> float:
    """What one event costs, or one answer: microseconds of processor time."""
    rows, not_exact = proxy.rows, proxy.not_exact
    exchange = proxy.exchange
    gc.collect()
    if proxy.alone:
        delivery.token_fields, settlement.access_record = no_fields, record_without_usage
    try:
        began = time.process_time()
        for _ in repeat(None, answers):
            exchange(case, reads)
        proxy.log.flush()
        took = time.process_time() - began
    finally:
        delivery.token_fields, settlement.access_record = token_fields, access_record
    if proxy.site.in_flight:
        raise Unsound(f"{case.name}: not every answer came to its end")
    if proxy.rows not in (rows, rows + answers) or proxy.not_exact != not_exact:
        raise Unsound(f"{case.name}: not every answer was counted")
    return took * 1e6 / (answers * (case.events or 1))


def measured(
    case: Case, off: Proxy, on: Proxy, reps: int, events: int, alone: Proxy | None = None, longer: Case | None = None
) -> Times:
    """On and off in turn, every second time in the other order; with one that only reads, that one too."""
    check(case, off, on)
    answers = max(1, int(events / case.events if case.events else events * JSON_ANSWERS_PER_EVENT))
    times = Times(case, [], [])
    ways = [(off, case.off, times.off_us), (on, case.on, times.on_us)]
    if alone is not None:
        ways.append((alone, case.on, times.alone_us))
    for proxy, reads, _ in ways:
        cpu_us(proxy, case, reads, max(1, answers // 4))
    for _ in range(reps):
        for proxy, reads, found in ways:
            found.append(cpu_us(proxy, case, reads, answers))
        ways.reverse()
    if longer is not None:
        times.longer = measured(longer, off, on, reps, events, alone)
    return times


def memory_of(proxy: Proxy, case: Case, reads: Iterator[bytes]) -> tuple[int, int]:
    """Bytes that were held at most, and that are kept, beyond those from before."""
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        proxy.exchange(case, reads)
        _, most = tracemalloc.get_traced_memory()
        proxy.log.flush()
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return most - before, after - before


def memories(off: Proxy, on: Proxy, stream_mb: int, value_mb: int) -> list[Memory]:
    """A long stream, one event that is as long as a book, and a JSON answer of that length."""
    found = []
    for name, large, size_mb in (
        ("stream of {} MB", large_stream, stream_mb),
        ("one event of {} MB", large_line, value_mb),
        ("JSON answer of {} MB", large_json, value_mb),
    ):
        each = []
        for proxy in (off, on):
            case, _ = large(1)
            proxy.exchange(case, large(1)[1])  # what is made once is no cost of this answer
            not_exact = proxy.not_exact
            each.append(memory_of(proxy, case, large(size_mb * 1_000_000)[1]))
            if proxy.site.in_flight or proxy.not_exact != not_exact:
                raise Unsound(f"{name.format(size_mb)}: it was not counted")
        found.append(Memory(name.format(size_mb), *each))
    return found


def table(times: Iterable[Times], memory: Iterable[Memory]) -> str:
    """All of it in markdown."""
    lines = [
        "| CPU us, best of the repetitions | off | on | more | median of more (lowest - highest) "
        "| reading alone | once a stream | each further event | limit | |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for each in times:
        more = [on - off for on, off in zip(each.on_us, each.off_us, strict=True)]
        limit = EVENT_LIMIT_US if each.case.events else ANSWER_LIMIT_US
        further = each.further_us
        once = f"{each.once_us:.0f} | {further:.2f}" if each.longer is not None else " | "
        lines.append(
            f"| {each.case.name} | {min(each.off_us):.2f} | {min(each.on_us):.2f} | {each.best_us:.2f} "
            f"| {each.median_us:.2f} ({min(more):.2f} - {max(more):.2f}) | {each.reading_us:.2f} | {once} "
            f"| {limit:.1f} | {verdict(further, limit)} |"
        )
    rows = [
        f"| {each.name} | {kib(each.off_bytes[0])} | {kib(each.on_bytes[0])} "
        f"| {kib(each.on_bytes[0] - each.off_bytes[0])} | {kib(each.off_bytes[1])} | {kib(each.on_bytes[1])} "
        f"| {MEMORY_LIMIT_KIB} | {verdict((each.on_bytes[0] - each.off_bytes[0]) / 1024, MEMORY_LIMIT_KIB)} |"
        for each in memory
    ]
    if rows:
        lines += ["", "| KiB | most held, off | on | more | kept, off | on | limit of more | |"]
        lines += ["|---|---:|---:|---:|---:|---:|---:|---|", *rows]
    return "\n".join(lines) + "\n"


def kib(size_bytes: int) -> str:
    return f"{size_bytes / 1024:.0f}"


def verdict(value: float, limit: float) -> str:
    return "within" if value <= limit else "**above**"


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks/accounting.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("--reps", type=positive, default=9, help="repetitions, each with on and off (9)")
    parser.add_argument("--events", type=positive, default=10_000, help="events in one repetition of a stream (10000)")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose name has this text")
    parser.add_argument("--stream-mb", type=positive, default=50, metavar="MB", help="the long stream (50)")
    parser.add_argument("--value-mb", type=positive, default=20, metavar="MB", help="the large event and answer (20)")
    parser.add_argument("--no-memory", action="store_true", help="times alone")
    return parser


def main(argv: list[str] | None = None) -> int:
    options = arguments().parse_args(argv)
    load = os.getloadavg()[0]
    off, on, alone = Proxy(False), Proxy(True), Proxy(True, alone=True)
    wanted = [case for case in cases() if options.only in case.name]
    try:
        longer = {case.name: case for case in cases(MANY_PIECES) if case.events}
        times = [measured(case, off, on, options.reps, options.events, alone, longer.get(case.name)) for case in wanted]
        memory = [] if options.no_memory else memories(off, on, options.stream_mb, options.value_mb)
    except Unsound as problem:
        print(f"benchmark: {problem}", file=sys.stderr)
        return 1
    print(table(times, memory))
    print(
        f"{time.strftime('%Y-%m-%d')}; {cpu_name()}, Python {platform.python_version()}; {options.reps} repetitions of "
        f"{options.events} events; load {load:.2f} at the start, {os.getloadavg()[0]:.2f} at the end."
    )
    if max(load, os.getloadavg()[0] - 1) > QUIET_LOAD:  # we are one of those who run
        print("Others were at work: trust the best, not the medians, or repeat on a quiet machine.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
