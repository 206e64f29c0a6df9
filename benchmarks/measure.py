"""One whole run: mock and front up, then every repetition with all proxies side by side.

Within a repetition each step is run on every proxy before the next step begins, so that a machine that gets
slower or faster in the meantime does so for all of them. Every second repetition takes them in reverse order.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import dataclass
from typing import IO, Any

from benchmarks import front, machine, native, proxies, report, workloads
from benchmarks.machine import SetupError
from benchmarks.native import BUILD
from benchmarks.proxies import Proxy, Upstream
from benchmarks.workloads import Step

#: Ports, counted from --port-base.
FRONT, NGINX, LLMPROXY = 1, 10, 20


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the command line said."""

    only: Collection[str]
    repetitions: int
    scale: float
    idle_streams: int
    access_log: bool
    tls: bool
    shape: str
    port_base: int
    proxy_command: str | None
    without_llmproxy: bool
    peers: tuple[str, ...]


@dataclass
class Pace:
    """What a proxy reached in this repetition: later steps are sized by it. `finished` counts answers."""

    one_connection: float = 0.0
    sixteen_connections: float = 0.0
    finished: int = 0


class Measurement:
    """Runs the steps and writes each result as a JSON line at once, so a broken run leaves what it had."""

    def __init__(self, settings: Settings, out: IO[str]) -> None:
        self.settings = settings
        self.out = out
        self.records: list[dict[str, Any]] = []
        self.load_cpu, self.proxy_cpu = machine.two_cpus()
        self.shape = workloads.SHAPES[settings.shape]
        self.steps = workloads.steps(settings.only, settings.idle_streams)
        self.expected: dict[str, int] = {}
        # For nginx, which holds this many at most, and memory for them from the start.
        self.connections = max(10_000, 2 * settings.idle_streams + 2_000)

    def run(self) -> None:
        settings = self.settings
        native.build()
        machine.raise_file_limit()
        # The load client and all else that this process starts stay on its own cpu, unless placed elsewhere.
        machine.stay_on(self.load_cpu)
        with ExitStack() as stack:
            upstream = self.start_upstream(stack)
            contestants = self.contestants(upstream)
            self.expected = {
                step.key: native.length_of_answer(
                    settings.port_base,
                    self.shape.target(stream=step.stream, direct=True),
                    workloads.small_body(knobs=step.knobs, stream=step.stream),
                )
                for step in self.steps
                if step.one_answer
            }
            self.put({"step": "setup", "text": self.description(contestants), "rep": 0, "proxy": ""})
            for rep in range(1, settings.repetitions + 1):
                self.repetition(rep, contestants if rep % 2 else contestants[::-1])

    def start_upstream(self, stack: ExitStack) -> Upstream:
        """The mock, and with --tls its front. Both end with the stack."""
        base = self.settings.port_base
        commands = [("mock", base, [str(BUILD / "mock"), str(base)])]
        upstream = Upstream(port=base)
        if self.settings.tls:
            authority, certificate, key = front.make_certificates(BUILD / "tls")
            config = front.front_config(
                port=base + FRONT,
                mock_port=base,
                certificate=certificate,
                key=key,
                connections=self.connections,
            )
            commands.append(("front", base + FRONT, proxies.nginx_command(BUILD / "front", config)))
            upstream = Upstream(port=base + FRONT, authority=authority)
        for name, port, command in commands:
            if proxies.port_answers(port):
                raise SetupError(f"port {port} is taken: is another benchmark running? --port-base moves all ports.")
            output = BUILD / f"{name}.out"
            with open(output, "wb") as file:
                process = machine.start(
                    command, cpu=self.load_cpu, cwd=BUILD, env=proxies.clean_environment(), output=file
                )
            stack.callback(machine.stop, process)
            for _ in range(200):
                if process.poll() is not None:
                    raise SetupError(f"{name} ended at once.\n{proxies.last_lines(output)}")
                if proxies.port_answers(port):
                    break
                time.sleep(0.01)
        return upstream

    def contestants(self, upstream: Upstream) -> list[Proxy]:
        settings, base = self.settings, self.settings.port_base
        found = [
            proxies.nginx(
                port=base + NGINX,
                upstream=upstream,
                access_log=settings.access_log,
                connections=self.connections,
            )
        ]
        if not settings.without_llmproxy:
            found.append(
                proxies.llmproxy(
                    port=base + LLMPROXY,
                    upstream=upstream,
                    access_log=settings.access_log,
                    command=settings.proxy_command,
                )
            )
        return found + [proxies.peer(text) for text in settings.peers]

    def description(self, contestants: list[Proxy]) -> str:
        """What a reader needs to know to judge the figures, in one line."""
        settings = self.settings
        asked = subprocess.run([proxies.nginx_program(), "-v"], capture_output=True, text=True)
        facts = [
            time.strftime("%Y-%m-%d"),
            f"{machine.cpu_name()}, Linux {platform.release()}",
            f"nginx {asked.stderr.strip().rpartition('/')[2]}, Python {platform.python_version()}",
            f"{settings.shape} shape, upstream over {'TLS' if settings.tls else 'plain TCP'}",
            f"access log {'on' if settings.access_log else 'off'}",
            f"medians of {settings.repetitions}",
        ]
        if settings.scale != 1:
            facts.append(f"durations x {settings.scale:g}")
        names = ", ".join(proxy.name for proxy in contestants)
        return f"{'; '.join(facts)}. Measured side by side: {names}."

    def repetition(self, rep: int, contestants: list[Proxy]) -> None:
        path = self.shape.target(stream=False, direct=False)
        paces = {proxy.name: Pace() for proxy in contestants}
        with ExitStack() as stack:
            for proxy in contestants:
                stack.callback(proxy.stop)
                cold_s = proxy.start(self.proxy_cpu, path, workloads.small_body(knobs="n=1", stream=False))
                time.sleep(1)
                pids = proxy.pids()
                self.put(
                    {
                        "step": "start",
                        "proxy": proxy.name,
                        "rep": rep,
                        "cold_s": round(cold_s, 4),
                        "cpu_s": machine.cpu_s(pids),
                        "rss_mib": round(machine.rss_mib(pids), 1),
                        "processes": len(pids),
                    }
                )
            for step in self.steps:
                if step.direct and step.mode != "rate":
                    self.direct(rep, step, beside="")
                for proxy in contestants:
                    self.step(rep, proxy, step, paces[proxy.name])
            for proxy in contestants:
                rss = round(machine.rss_mib(proxy.pids()), 1)
                died = not proxy.alive()
                proxy.stop()
                end = {"step": "end", "proxy": proxy.name, "rep": rep, "rss_mib": rss, "died": died}
                end |= {"logged": proxy.logged(), "finished": paces[proxy.name].finished}
                self.put(end)

    def step(self, rep: int, proxy: Proxy, step: Step, pace: Pace) -> None:
        """One step on one proxy."""
        if step.mode == "hold":
            step = workloads.with_ramp(step, pace.one_connection)
        if step.mode == "rate":
            if pace.sixteen_connections < 2:
                return
            step = workloads.with_rate(step, pace.sixteen_connections / 2)
        pids = proxy.pids()
        machine.settle(pids)
        before, busy, own, began = (
            self.mock(),
            machine.cpu_busy_s(self.proxy_cpu),
            machine.cpu_s(pids),
            time.monotonic(),
        )
        result = self.load(step, port=proxy.port, direct=False, pids=pids)
        took = time.monotonic() - began
        by_others = machine.cpu_busy_s(self.proxy_cpu) - busy - (machine.cpu_s(pids) - own)
        after = self.mock()
        result |= {
            "proxy": proxy.name,
            "rep": rep,
            "others_cpu": round(max(0.0, by_others) / took, 3),
            # Less the question that asked for these very numbers.
            "up_conns": after["conns"] - before["conns"] - 1,
            "up_reqs": after["reqs"] - before["reqs"] - 1,
            "died": not proxy.alive(),
        }
        if step.key == "W6":
            time.sleep(1)
            result["still_streaming"] = self.mock()["streaming"]
        pace.finished += result["ok"] + (result["live"] if step.mode == "hold" else 0)
        if step.key == "W1c1":
            pace.one_connection = result["rps"]
        if step.key == "W1c16":
            pace.sixteen_connections = result["rps"]
        self.put(result)
        if step.mode == "rate":
            self.direct(rep, step, beside=proxy.name)

    def direct(self, rep: int, step: Step, *, beside: str) -> None:
        """The same step without a proxy; at half load at the pace of the proxy it stands beside."""
        if step.mode == "hold":
            step = workloads.with_ramp(step, float("inf"))
        result = self.load(step, port=self.settings.port_base, direct=True, pids=[])
        self.put(result | {"proxy": report.DIRECT, "rep": rep, "beside": beside})

    def load(self, step: Step, *, port: int, direct: bool, pids: list[int]) -> dict[str, Any]:
        result = native.run_load(
            port=port,
            path=self.shape.target(stream=step.stream, direct=direct),
            shape=self.settings.shape,
            expect=self.expected.get(step.key),
            pids=",".join(map(str, pids)) or None,
            **step.load_options(self.settings.scale),
        )
        result |= {"step": step.key, "due_events_s": step.events_per_s, **step.extra}
        return result

    def mock(self) -> dict[str, int]:
        return native.mock_stats(self.settings.port_base)

    def put(self, record: dict[str, Any]) -> None:
        self.records.append(record)
        self.out.write(json.dumps(record) + "\n")
        self.out.flush()
        if record["step"] != "setup":
            print(progress(record), file=sys.stderr, flush=True)


def progress(record: dict[str, Any]) -> str:
    """A short line for whoever waits."""
    words = [f"{record['rep']} {record['proxy']:>10} {record['step']:<7}"]
    for key, text in (
        ("rps", "{:>9,.0f}/s"),
        ("events_s", "{:>9,.0f} events/s"),
        ("cpu_s_per_1k", "{:>9.4f} CPU s/1k"),
        ("live", "{:>6,} streams alive"),
        ("cpu_us_per_event", "{:>7.2f} CPU us/event"),
        ("cpu_util", "{:>5.2f} of a core"),
        ("cold_s", "{:>7.3f} s to the first 200"),
        ("rss_mib", "{:>6.1f} MiB"),
    ):
        if record.get(key) and (key != "live" or record["mode"] == "hold"):
            words.append(text.format(record[key]))
    return "  ".join(words + [f"!! {fault}" for fault in report.faults(record)])
