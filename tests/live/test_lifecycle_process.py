"""The process and its system: systemd, the clock that is set, descriptors that run out, and the files in examples/."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live.conversation import OK, Stage, get
from tests.live.names import python_path
from tests.live.proxy import ROOT, Proxy, all_providers, running_proxy
from tests.live.upstream import HOST, Upstream
from tests.live.wire import wait_until

# -- systemd -----------------------------------------------------------------------------------------------------------


class Systemd:
    """Listens as systemd does for a unit with Type=notify."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address.replace("@", "\0", 1))
        self._socket.settimeout(5.0)

    def hears(self) -> list[str]:
        """The lines of the next message."""
        return self._socket.recv(4096).decode().split("\n")

    def close(self) -> None:
        self._socket.close()


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_systemd_is_told(tmp_path: Path, kind: str) -> None:
    """systemctl start returns when the port is open, reload when it is done, and the state says what is waited for."""
    address = str(tmp_path / "notify") if kind == "path" else f"@llmproxy-test-{os.getpid()}"
    systemd = Systemd(address)
    upstream = Upstream()
    with running_proxy({"providers": all_providers(upstream.url)}, complains=True, NOTIFY_SOCKET=address) as proxy:
        stage = Stage(proxy, upstream)
        assert systemd.hears() == ["READY=1", f"STATUS=listening on {HOST}:{proxy.address[1]}"]
        proxy.signal(signal.SIGHUP)
        reloading, usec = systemd.hears()
        assert reloading == "RELOADING=1"
        assert abs(int(usec.removeprefix("MONOTONIC_USEC=")) / 1e6 - time.monotonic()) < 5.0
        assert systemd.hears() == ["READY=1", "STATUS=reloaded"]
        proxy.settings.write_text("nonsense: 1")
        proxy.signal(signal.SIGHUP)
        assert systemd.hears()[0] == "RELOADING=1"
        assert systemd.hears() == ["READY=1", "STATUS=the last reload failed, see the log; running as before"]
        caller, reading = stage.sends(get())
        reading.read_message()
        proxy.signal(signal.SIGTERM)
        assert systemd.hears()[0] == "STOPPING=1"
        assert systemd.hears() == ["STATUS=stopping; waiting for 1 request on 1 connection"]
        reading.send(OK)
        assert caller.read_message().body == b"ok"
        assert proxy.exit_code() == 0
    systemd.close()
    upstream.close()


def test_the_watchdog_is_fed(tmp_path: Path) -> None:
    """With WatchdogSec= systemd hears twice in that time that the proxy lives, also while it stops; one that hangs
    says nothing."""
    address = str(tmp_path / "notify")
    systemd = Systemd(address)
    upstream = Upstream()
    config = {"providers": all_providers(upstream.url)}
    with running_proxy(config, NOTIFY_SOCKET=address, WATCHDOG_USEC="400000") as proxy:
        stage = Stage(proxy, upstream)
        assert systemd.hears()[0] == "READY=1"
        began = time.monotonic()
        assert [systemd.hears() for _ in range(5)] == [["WATCHDOG=1"]] * 5
        assert 0.4 < time.monotonic() - began < 2.0
        proxy.signal(signal.SIGSTOP)
        time.sleep(0.1)
        systemd._socket.settimeout(0.6)
        with pytest.raises(TimeoutError):
            while True:
                systemd.hears()
        systemd._socket.settimeout(5.0)
        proxy.signal(signal.SIGCONT)
        _, reading = stage.sends(get())
        proxy.signal(signal.SIGTERM)
        while systemd.hears()[0] != "STOPPING=1":
            pass
        said = [systemd.hears() for _ in range(6)]
        assert said.count(["WATCHDOG=1"]) >= 4
        reading.send(OK)
        assert proxy.exit_code() == 0
    systemd.close()
    upstream.close()


def test_somebody_elses_watchdog(tmp_path: Path) -> None:
    """A watchdog for another process is not fed, and a socket that is gone costs one line of log."""
    address = str(tmp_path / "notify")
    systemd = Systemd(address)
    with running_proxy({}, NOTIFY_SOCKET=address, WATCHDOG_USEC="100000", WATCHDOG_PID="1") as proxy:
        assert systemd.hears()[0] == "READY=1"
        systemd._socket.settimeout(0.4)
        with pytest.raises(TimeoutError):
            systemd.hears()
        systemd.close()
        os.unlink(address)
        for _ in range(3):
            proxy.signal(signal.SIGHUP)
            time.sleep(0.1)
        proxy.says("systemd cannot be told: No such file or directory")
        time.sleep(0.4)
        assert sum("systemd cannot be told" in str(each.get("message")) for each in proxy.events()) == 1


# -- the wall clock ----------------------------------------------------------------------------------------------------

_JUMPS = """
import runpy, signal, sys, time
real, jumped = time.time, [0.0]
def jump(number, frame):
    jumped[0] = 3600.0 if number == signal.SIGUSR2 else -3600.0
time.time = lambda: real() + jumped[0]
signal.signal(signal.SIGUSR2, jump)
signal.signal(signal.SIGWINCH, jump)
sys.argv[0] = "llmproxy"
runpy.run_module("llmproxy", run_name="__main__")
"""
"""The proxy with a wall clock that a signal sets an hour forward, or back."""


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGWINCH], ids=["an hour forward", "an hour back"])
def test_the_wall_clock_is_set(number: int) -> None:
    """The clock of the machine is set while a head is awaited: the deadline stays where it was, and the log and /health
    have the new time."""
    command = (sys.executable, "-c", _JUMPS, "run")
    config = {"server": {"header_timeout_s": 1.0}}
    with running_proxy(config, command=command) as proxy:
        began = time.monotonic()
        caller, health = proxy.connect(), proxy.connect()
        caller.send(b"GET / HTTP/1.1\r\n")
        health.send(get(b"/health"))
        before = json.loads(health.read_message().body)["timestamp"]
        time.sleep(0.2)
        proxy.signal(number)
        assert caller.is_quiet(0.4)
        health.send(get(b"/health"))
        after = json.loads(health.read_message().body)["timestamp"]
        assert 3595 < abs(after - before) < 3605
        assert caller.read_message().status == 408
        assert 0.9 < time.monotonic() - began < 2.5
        event = proxy.access_event(end_reason="header_timeout")
        shown = time.mktime(time.strptime(event["time"][:19], "%Y-%m-%dT%H:%M:%S")) - time.timezone
        assert abs(shown - after) < 5
        assert 500 < event["duration_ms"] < 3000 or event["duration_ms"] < 100


# -- names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("waits", [True, False], ids=["who asked is there", "who asked has left"])
def test_it_stops_while_a_name_server_is_silent(tmp_path: Path, waits: bool) -> None:
    """A look-up that does not end holds up nothing: a second SIGTERM is the end, and so is the first one where nobody
    waits for an answer."""
    path = python_path(tmp_path, {}, {"silent.test": 30.0})
    config = {"providers": {"silent": {"kind": "openai-compatible", "base_url": "http://silent.test"}}}
    with running_proxy(config, PYTHONPATH=path) as proxy:
        caller = proxy.connect()
        caller.send(get(b"/silent/models"))
        assert caller.is_quiet(0.5)
        if not waits:
            caller.close()
            proxy.access_event(end_reason="client_gone")
        began = time.monotonic()
        proxy.signal(signal.SIGTERM)
        if waits:
            proxy.says("no longer listening")
            proxy.signal(signal.SIGTERM)
            assert caller.read_message().status == 503
        assert proxy.exit_code() == 0
        assert time.monotonic() - began < 3.0


# -- descriptors -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _few_files(proxy: Proxy, more: int) -> Iterator[None]:
    """The process may open only so many more files."""
    opened = len(list(Path(f"/proc/{proxy.pid}/fd").iterdir()))
    _, hard = resource.prlimit(proxy.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(proxy.pid, resource.RLIMIT_NOFILE, (opened + more, hard))
    yield
    with contextlib.suppress(ProcessLookupError):
        resource.prlimit(proxy.pid, resource.RLIMIT_NOFILE, (hard, hard))


def _cpu_s(proxy: Proxy) -> float:
    fields = Path(f"/proc/{proxy.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_no_descriptor_is_left() -> None:
    """At the limit of open files those who are connected are served, the next ones wait, nothing spins, the log has one
    line; when others leave, those who waited are served."""
    with running_proxy({}) as proxy, _few_files(proxy, 4):
        inside = [proxy.connect() for _ in range(4)]
        for each in inside:
            each.send(get(b"/health/live"))
            assert each.read_message().status == 200
        outside = [proxy.connect() for _ in range(20)]
        for each in outside:
            each.send(get(b"/health/live"))
        proxy.says("no connection can be accepted: Too many open files")
        before = _cpu_s(proxy)
        assert outside[0].is_quiet(1.5)
        assert _cpu_s(proxy) - before < 0.3
        inside[0].send(get(b"/health/live"))
        assert inside[0].read_message().status == 200
        for each in inside:
            each.close()
        for each in outside:
            assert each.read_message().status == 200
            each.close()
        lines = [str(each.get("message")) for each in proxy.events()]
        assert sum("can be accepted" in line for line in lines) == 1
        assert not any("EMFILE" in line for line in lines)


def test_it_stops_while_no_descriptor_is_left() -> None:
    """The end of service comes as it should, also at the limit of open files."""
    with running_proxy({}) as proxy, _few_files(proxy, 2):
        connected = [proxy.connect() for _ in range(6)]
        proxy.says("no connection can be accepted")
        proxy.signal(signal.SIGTERM)
        assert proxy.exit_code() == 0
        for each in connected:
            assert each.is_closed_within(1.0)


def test_the_limit_is_told(tmp_path: Path) -> None:
    """A limit of open files that is too low for server.max_connections is told at the start, with what helps."""
    command = ("prlimit", "--nofile=1000:1000", sys.executable, "-m", "llmproxy", "run")
    with running_proxy({"server": {"max_connections": 469}}, command=command) as proxy:
        line = proxy.says("server.max_connections: 469 may need 1002 open files, this process may open 1000")
        assert (line["level"], "LimitNOFILE=" in line["message"]) == ("warn", True)
        proxy.configure({"server": {"max_connections": 468}})
        proxy.signal(signal.SIGHUP)
        proxy.says("server.max_connections: 469 -> 468")
        assert sum("open files" in str(each.get("message")) for each in proxy.events()) == 1
    command = ("prlimit", "--nofile=100:1000", sys.executable, "-m", "llmproxy", "run")
    with running_proxy({"server": {"max_connections": 468}}, command=command) as proxy:
        assert resource.prlimit(proxy.pid, resource.RLIMIT_NOFILE) == (1000, 1000)
        assert not any("open files" in str(each.get("message")) for each in proxy.events())


# -- examples ----------------------------------------------------------------------------------------------------------


def _health_check() -> list[str]:
    text = Path(ROOT, "examples", "Dockerfile").read_text()
    found = re.search(r"^HEALTHCHECK .*\n +CMD (\[.*\])$", text, re.MULTILINE)
    assert found is not None
    words: list[str] = json.loads(found[1])
    return words


def test_the_health_check_of_the_image() -> None:
    """The image's health check says healthy for a proxy that runs, whatever HTTP_PROXY says, and unhealthy for none."""
    name, *arguments = _health_check()
    assert name == "python"
    command = (sys.executable, *arguments)
    with running_proxy({}) as proxy:
        port = proxy.address[1]
        for more in ({}, {"HTTP_PROXY": "http://127.0.0.1:9"}):
            variables = {"PATH": os.environ["PATH"], "PORT": str(port), **more}
            done = subprocess.run(command, env=variables, capture_output=True, timeout=10)
            assert done.returncode == 0, (shlex.join(command), done.stderr)
    done = subprocess.run(command, env={"PATH": os.environ["PATH"], "PORT": str(port)}, capture_output=True, timeout=10)
    assert done.returncode != 0


def test_a_reload_does_not_wake_a_process_that_is_gone(tmp_path: Path) -> None:
    """A stop right behind a reload, as systemctl sends them in a hurry, still ends with status 0."""
    with running_proxy({}) as proxy:
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGHUP):
            proxy.signal(number)
        assert proxy.exit_code() == 0
        wait_until(lambda: not proxy.is_running())
