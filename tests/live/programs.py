"""The proxy as a program that an operator starts, in both ways, and what it then says or refuses with."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from tests.live.conversation import get
from tests.live.proxy import ROOT, environment
from tests.live.wire import LIMIT_S, Message, Wire, wait_until

_TWISTD: Final = (sys.executable, "-c", "from twisted.scripts.twistd import run; run()")

PROGRAMS: Final = {
    "twistd": (*_TWISTD, "-n", "--pidfile=", "llmproxy"),
    "run": (sys.executable, "-m", "llmproxy", "run"),
}
"""The two ways to start the proxy in the foreground; options of ours go behind."""


def variables(directory: Path, **more: str) -> dict[str, str]:
    """The variables of a proxy that is started away from the sources."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return environment(directory, PYTHONPATH=path, HOME=str(directory), **more)


def refusals(directory: Path, *options: str, **more: str) -> list[list[str]]:
    """The lines on standard error of each program when it is started in ``directory`` and refuses, which it must.

    It must exit with status 1, and without a word on standard output.
    """
    started = [
        subprocess.Popen(
            (*program, *options),
            cwd=directory,
            env=variables(directory, **more),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for program in PROGRAMS.values()
    ]
    try:
        said = [(*process.communicate(timeout=LIMIT_S), process.returncode) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [(out, code) for out, _, code in said] == [("", 1)] * len(said), said
    lines = [err.splitlines() for _, err, _ in said]
    assert all(line.startswith(("llmproxy: ", "llmproxy run: ")) for one in lines for line in one), lines
    return lines


def refusal(directory: Path, *options: str, **more: str) -> list[str]:
    """The same where both programs must have the same words."""
    one, other = refusals(directory, *options, **more)
    assert one == other
    return one


class Program:
    """A proxy that runs in the foreground.

    :ivar process: its process.
    """

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self._log = log

    def events(self) -> list[dict[str, Any]]:
        """The log so far, each line of which must be a JSON object."""
        return [json.loads(line) for line in self._log.read_bytes().split(b"\n")[:-1]]

    def banner(self) -> str:
        """The line that says what was started, once it is there."""

        def is_there() -> bool:
            assert self.process.poll() is None, self._log.read_text()
            return any(" listening on " in str(each.get("message")) for each in self.events())

        wait_until(is_there)
        return next(str(each["message"]) for each in self.events() if " listening on " in str(each.get("message")))

    def end(self) -> int:
        """Have it end, and what is under way with it: SIGTERM, and again; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(0.5)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGTERM)
            return self.process.wait(LIMIT_S)


@contextlib.contextmanager
def started(directory: Path, *options: str, program: str = "twistd", **more: str) -> Iterator[Program]:
    """A proxy that is started in ``directory`` and runs for as long as the block."""
    log = directory / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            (*PROGRAMS[program], *options),
            cwd=directory,
            env=variables(directory, **more),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield Program(process, log)
    finally:
        process.kill()
        process.wait()


def daemonise(directory: Path, *options: str, of_twistd: tuple[str, ...] = (), **more: str) -> tuple[int, str]:
    """Start ``twistd llmproxy`` as a daemon; exit code and output of the command, TimeoutExpired if it does not end."""
    command = (*_TWISTD, "--pidfile", str(directory / "pid"), *of_twistd, "llmproxy", *options)
    output = directory / "output"  # a file: a pipe would stay open in the daemon
    with output.open("wb") as opened:
        process = subprocess.Popen(
            command,
            cwd=directory,
            env=variables(directory, **more),
            stdin=subprocess.DEVNULL,
            stdout=opened,
            stderr=opened,
            start_new_session=True,
        )
    try:
        code = process.wait(LIMIT_S)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return code, output.read_text()


def is_answered(address: tuple[str, int] | str) -> bool:
    """Whether somebody answers ``/health/live`` at this address, or at this path of a UNIX socket."""
    try:
        return health(address).status == 200
    except ConnectionError:
        return False


def health(address: tuple[str, int] | str) -> Message:
    """The answer to ``/health/live`` there."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    with socket.socket(family) as connected:
        connected.settimeout(LIMIT_S)
        connected.connect(address)
        wire = Wire(connected)
        wire.send(get(b"/health/live"))
        return wire.read_message()


def seconds_until_answered(address: tuple[str, int]) -> float:
    """How long it takes from now until a request is answered."""
    began = time.monotonic()
    wait_until(lambda: is_answered(address))
    return time.monotonic() - began
