"""Processes, cpus and what /proc says about them. Linux only, as are the C programs.

Mock, load and this driver share one cpu; every proxy, with all its processes, has the other for itself.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class SetupError(Exception):
    """The benchmark cannot run here. Its text is one sentence that says what to do."""


def two_cpus() -> tuple[int, int]:
    """The cpu of mock and load, and the cpu of the proxies: the first two this process may use."""
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        raise SetupError("two cpus are needed, one for the load and one for the proxy; this process may use one only.")
    return allowed[0], allowed[1]


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown cpu")


def stay_on(cpu: int) -> None:
    """Keeps this process, and what it starts, on one cpu."""
    os.sched_setaffinity(0, {cpu})


def raise_file_limit() -> None:
    """Lifts the open-file limit to what the system allows, for this process and all it starts."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def start(
    command: Sequence[str], *, cpu: int, cwd: Path, env: Mapping[str, str], output: IO[bytes]
) -> subprocess.Popen[bytes]:
    """Starts a command on one cpu, in a process group of its own, its output and errors into a file."""
    return subprocess.Popen(
        command,
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
        # What the command starts inherits the cpu.
        preexec_fn=lambda: os.sched_setaffinity(0, {cpu}),
    )


def stop(process: subprocess.Popen[bytes], patience_s: float = 5.0) -> None:
    """Asks the process group to end, then makes it."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            return
        try:
            os.killpg(process.pid, sign)
            process.wait(patience_s)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


def _stat(pid: int | str) -> list[str]:
    """The fields of /proc/PID/stat after the command name, which may hold spaces. [1] is the parent."""
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()


def tree(pid: int) -> list[int]:
    """A process and all below it."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                children.setdefault(int(_stat(name)[1]), []).append(int(name))
            except OSError:
                continue  # it ended while we looked
    found: list[int] = []
    waiting = [pid]
    while waiting:
        found.append(waiting.pop())
        waiting += children.get(found[-1], [])
    return found


def cpu_s(pids: Sequence[int]) -> float:
    """CPU seconds used by the processes until now, to a hundredth."""
    ticks = 0
    for pid in pids:
        try:
            fields = _stat(pid)
        except OSError:
            continue
        ticks += int(fields[11]) + int(fields[12])
    return ticks / TICKS_PER_S


def cpu_busy_s(cpu: int) -> float:
    """Seconds a cpu has worked since boot, whoever for. Shows what else ran beside a measurement."""
    for line in Path("/proc/stat").read_text().splitlines():
        name, *values = line.split()
        if name == f"cpu{cpu}":
            ticks = [int(value) for value in values[:8]]
            return (sum(ticks) - ticks[3] - ticks[4]) / TICKS_PER_S  # without idle and iowait
    return 0.0


def rss_mib(pids: Sequence[int]) -> float:
    """Resident memory of the processes, in MiB. Shared pages count once for each process."""
    kib = 0
    for pid in pids:
        try:
            text = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            continue
        kib += sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("VmRSS:"))
    return kib / 1024


def settle(pids: Sequence[int], longest_s: float = 8.0) -> None:
    """Waits until the processes are done with what the last workload left behind."""
    end = time.monotonic() + longest_s
    while pids and time.monotonic() < end:
        before = cpu_s(pids)
        time.sleep(0.3)
        if cpu_s(pids) - before <= 0.03:
            return
