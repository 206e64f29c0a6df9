"""The soak itself: ``make soak SECONDS=300``, or ``python -m tests.soak.run SECONDS``.

A proxy is started as an operator starts it, and gets a mix of everything from callers and a provider of every kind,
good and bad, with a new configuration every few seconds. What is asserted at the end, when everybody has left: each
request has one access event; memory is flat; nothing is open that was not open at the beginning; the proxy never
spoke of a fault of its own; a stream that is under way at the end of service ends whole, and the process well.
"""

from __future__ import annotations

import asyncio
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.live.proxy import Proxy, all_providers, running_proxy
from tests.soak.callers import MAX_BODY_BYTES, Caller, Tally, any_kind
from tests.soak.process import Sample, descriptors, growth_bytes, sample
from tests.soak.provider import Provider

CALLERS = 24
PAUSE_S = 0.25
"""Between two requests of one caller, at most: the machine has other work to do."""
RELOAD_S = 3.0
POOL_IDLE_S = 1.0
GONE_S = 8.0
"""When all have left, how soon nothing of them is left."""
MOST_GROWTH_BYTES = 2 << 20
"""Within the second half of a soak."""


@dataclass
class Report:
    """What was seen."""

    seconds: float
    tally: Tally = field(default_factory=Tally)
    samples: list[Sample] = field(default_factory=list)
    reloads: int = 0
    descriptors_before: int = 0
    descriptors_after: int = 0
    provider_most: int = 0
    provider_after: int = 0
    exit_code: int = -1
    log: list[dict[str, Any]] = field(default_factory=list)

    def growth_bytes(self) -> float:
        """Of the second half."""
        return growth_bytes(self.samples[len(self.samples) // 2 :])

    def access_events(self) -> list[dict[str, Any]]:
        """Those of the callers of the soak."""
        return [line for line in self.log if line.get("event") == "access"]

    def faults(self) -> Iterator[str]:
        """Everything that must not be, in words."""
        yield from self.tally.faults
        seen = Counter(str(line["path"]).rpartition("/")[2] for line in self.access_events())
        for name in sorted(self.tally.due):
            if seen[name] != 1:
                yield f"{seen[name]} access events for the request {name}"
        for name in sorted(seen.keys() - self.tally.due):
            if seen[name] > self.tally.perhaps[name]:
                yield f"{seen[name]} access events for {name!r}, which nobody asked for so often"
        for line in self.log:
            if line.get("level") in ("error", "critical") or "unhandled error" in str(line).lower():
                yield f"in the log: {line}"
            elif line.get("end_reason") == "proxy_error":
                yield f"a fault of the proxy's own: {line}"
        if self.growth_bytes() > MOST_GROWTH_BYTES:
            yield f"memory grew by {self.growth_bytes() / 1024:.0f} KiB in the second half"
        if self.descriptors_after > self.descriptors_before:
            yield f"{self.descriptors_after} descriptors are open at the end, {self.descriptors_before} were before"
        if self.provider_after:
            yield f"{self.provider_after} connections to the provider are left"
        told = sum("configuration is reloaded" in str(line.get("message", "")) for line in self.log)
        if told != self.reloads:
            yield f"{self.reloads} reloads were asked for, {told} were done"
        if self.exit_code != 0:
            yield f"the exit code is {self.exit_code}"

    def text(self) -> str:
        """The numbers."""
        requests = len(self.tally.due)
        reasons = Counter(str(line["end_reason"]) for line in self.access_events())
        step = -(-len(self.samples) // 12)
        shown = [f"{each.at_s:.0f} s {each.resident_bytes / 2**20:.1f}" for each in self.samples[::step]]
        return "\n".join(
            (
                f"{requests} requests and {self.tally.perhaps.total()} beginnings in {self.seconds:.0f} s "
                f"({requests / self.seconds:.0f} a second), {self.reloads} reloads, exit code {self.exit_code}",
                f"memory, MiB: {', '.join(shown)}; second half {self.growth_bytes() / 1024:+.0f} KiB",
                f"descriptors: {self.descriptors_before} before, {max(s.descriptors for s in self.samples)} at most, "
                f"{self.descriptors_after} after; connections to the provider: {self.provider_most} at most, "
                f"{self.provider_after} after",
                "what callers did: " + ", ".join(f"{kind} {count}" for kind, count in self.tally.kinds.most_common()),
                "how it ended: " + ", ".join(f"{reason} {count}" for reason, count in reasons.most_common()),
            )
        )


def soak(seconds: float, seed: int = 0) -> Report:
    """Do it, and tell."""
    return asyncio.run(_Soak(seconds, seed).run())


class _Soak:
    def __init__(self, seconds: float, seed: int) -> None:
        self._seconds = seconds
        self._seed = seed
        self._provider = Provider()
        self._report = Report(seconds)

    def _config(self, reloads: int) -> dict[str, Any]:
        """Each is another one, so that each reload retires the connections of the one before."""
        return {
            "providers": all_providers(self._provider.url),
            "server": {"max_body_bytes": MAX_BODY_BYTES},
            "upstream": {
                "pool_idle_s": POOL_IDLE_S,
                "first_byte_timeout_s": 1.5,
                "pool_size": 64 + reloads % 2,
            },
        }

    async def run(self) -> Report:
        """From the start of the proxy to its end."""
        await self._provider.start()
        report = self._report
        with running_proxy(self._config(0), complains=True) as proxy:
            await self._warm_up(proxy)
            await self._drive(proxy)
            await self._settle(proxy)
            await self._end(proxy)
            report.log = proxy.events()
        await self._provider.stop()
        return report

    async def _warm_up(self, proxy: Proxy) -> None:
        """One request opens what is opened once, and is gone again."""
        caller = self._caller(proxy, 0)
        await caller.once(Caller.small)
        await caller.leave()
        await asyncio.sleep(POOL_IDLE_S + 1.5)
        self._report.descriptors_before = descriptors(proxy.pid)

    def _caller(self, proxy: Proxy, number: int) -> Caller:
        chance = random.Random(f"{self._seed} {number}")
        return Caller(proxy.address, self._provider, self._report.tally, chance)

    async def _drive(self, proxy: Proxy) -> None:
        began = time.monotonic()
        ends = began + self._seconds

        async def calls(number: int) -> None:
            chance = random.Random(f"{self._seed} pause {number}")
            caller = self._caller(proxy, number)
            while time.monotonic() < ends:
                await caller.once(any_kind(chance))
                await asyncio.sleep(chance.random() * PAUSE_S)
            await caller.leave()

        async def watches() -> None:
            while (now := time.monotonic()) < ends:
                self._report.samples.append(sample(proxy.pid, now - began))
                await asyncio.sleep(min(1.0, self._seconds / 20))

        async def reloads() -> None:
            while time.monotonic() < ends - RELOAD_S:
                await asyncio.sleep(RELOAD_S)
                # Several at once: their connections to the provider idle when the reload comes.
                volley = [self._caller(proxy, -each - 1) for each in range(8)]
                await asyncio.gather(*(caller.once(Caller.small) for caller in volley))
                self._report.reloads += 1
                proxy.configure(self._config(self._report.reloads))
                proxy.signal(signal.SIGHUP)
                await asyncio.gather(*(caller.leave() for caller in volley))

        async with asyncio.TaskGroup() as tasks:
            for number in range(1, CALLERS + 1):
                tasks.create_task(calls(number))
            tasks.create_task(watches())
            tasks.create_task(reloads())

    async def _settle(self, proxy: Proxy) -> None:
        """All have left: wait for what is to go with them."""
        report = self._report
        until = time.monotonic() + GONE_S
        while True:
            report.descriptors_after = descriptors(proxy.pid)
            report.provider_after = self._provider.open
            done = report.descriptors_after <= report.descriptors_before and not report.provider_after
            if done or time.monotonic() > until:
                break
            await asyncio.sleep(0.1)
        report.provider_most = self._provider.most

    async def _end(self, proxy: Proxy) -> None:
        """SIGTERM in the middle of a stream."""
        streaming = asyncio.create_task(self._caller(proxy, -1).once(Caller.long_stream))
        await asyncio.sleep(0.3)
        proxy.signal(signal.SIGTERM)
        await streaming
        self._report.exit_code = await asyncio.to_thread(proxy.exit_code)


def main() -> int:
    """Exit status 0: nothing was found."""
    report = soak(float(sys.argv[1]) if len(sys.argv) > 1 else 300.0)
    faults = list(report.faults())
    print(report.text())  # noqa: T201
    print(*(faults[:40] or ["nothing is wrong"]), sep="\n")  # noqa: T201
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
