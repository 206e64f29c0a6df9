"""The end of service, as an operator who deploys several times a day sees it: nobody's answer is cut."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.live.certificates import Authority
from tests.live.conversation import END, OK, STREAM, STREAM_HEAD, Stage, get
from tests.live.programs import PROGRAMS, daemonise, is_answered, variables
from tests.live.proxy import all_providers, running_proxy
from tests.live.upstream import HOST, Upstream, unused_port
from tests.live.wire import Wire, wait_until


@contextlib.contextmanager
def _stage(*, program: str = "run", **server: float) -> Iterator[Stage]:
    """A proxy of its own for each test: it is to end."""
    upstream = Upstream()
    try:
        config = {"providers": all_providers(upstream.url), "server": server}
        with running_proxy(config, command=PROGRAMS[program]) as proxy:
            stage = Stage(proxy, upstream)
            yield stage
            stage.clear()
    finally:
        upstream.close()


def _ready(stage: Stage) -> tuple[int, bytes]:
    caller = stage.caller()
    caller.send(get(b"/health/ready"))
    answer = caller.read_message()
    return answer.status, answer.body


def _event(number: int) -> bytes:
    return b"data: %d\n\n" % number


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stream_ends_whole(program: str, number: int) -> None:
    """SIGTERM, or Ctrl-C, in the middle of my stream: all 15 events come, nobody new is taken, exit code 0."""
    with _stage(program=program) as stage:
        caller, upstream = stage.sends(STREAM)
        upstream.read_message()
        upstream.send(STREAM_HEAD)
        for event in range(3):
            upstream.send_chunk(_event(event))
        caller.read_head()
        assert [caller.read_chunk() for _ in range(3)] == [_event(event) for event in range(3)]

        stage.proxy.signal(number)
        assert "1 request on 1 connection" in stage.proxy.says("no longer listening")["message"]
        with pytest.raises(ConnectionRefusedError):
            stage.caller()
        for event in range(3, 15):
            upstream.send_chunk(_event(event))
            assert caller.read_chunk() == _event(event)
        upstream.send(END)
        assert caller.read_chunk() == b""
        assert caller.read_trailers() == []
        assert caller.is_closed_within(1.0)
        assert stage.proxy.exit_code() == 0
        assert stage.proxy.access_event()["end_reason"] == "ok"
        assert stage.proxy.events()[-1]["message"] == "Server Shut Down."


def test_balancers_are_told_first() -> None:
    """During server.drain_delay_s the proxy says that it is not ready, and serves whoever still comes."""
    with _stage(drain_delay_s=1.0) as stage:
        idle = stage.caller()
        idle.send(get(b"/health/live"))
        idle.read_message()
        assert _ready(stage)[0] == 200
        began = time.monotonic()
        stage.proxy.signal(signal.SIGTERM)
        stage.proxy.says("SIGTERM: stopping; listening for 1 s more")
        assert _ready(stage) == (503, b'{"status":"draining"}')
        assert stage.is_served()
        assert idle.is_quiet(0.0)  # a balancer's spare connection may still be used
        idle.send(get(b"/health/live"))
        answer = idle.read_message()
        assert (answer.status, answer.value("connection")) == (200, b"close")
        assert stage.proxy.exit_code() == 0
        assert 0.9 < time.monotonic() - began < 2.5


def test_idle_connections_close_at_once() -> None:
    """Connections that wait for a next request are closed, and nothing is left to wait for."""
    with _stage() as stage:
        served, silent = stage.caller(), stage.caller()
        served.send(get(b"/health/live"))
        served.read_message()
        began = time.monotonic()
        stage.proxy.signal(signal.SIGTERM)
        assert served.is_closed_within(1.0)
        assert silent.is_closed_within(1.0)
        assert stage.proxy.exit_code() == 0
        assert time.monotonic() - began < 1.5


def test_an_answer_that_begins_after_the_signal() -> None:
    """An answer that was still awaited says that its connection closes, so that no SDK sends the next request there."""
    with _stage() as stage:
        caller, upstream = stage.sends(get())
        upstream.read_message()
        stage.proxy.signal(signal.SIGTERM)
        stage.proxy.says("no longer listening")
        upstream.send(OK)
        answer = caller.read_message()
        assert (answer.status, answer.body, answer.value("connection")) == (200, b"ok", b"close")
        assert caller.is_closed_within(1.0)
        assert stage.proxy.exit_code() == 0


def _begun(stage: Stage) -> tuple[Wire, Wire]:
    """A stream of which one event is through."""
    caller, upstream = stage.sends(STREAM)
    upstream.read_message()
    upstream.send(STREAM_HEAD)
    upstream.send_chunk(_event(0))
    caller.read_head()
    assert caller.read_chunk() == _event(0)
    return caller, upstream


def _is_cut(caller: Wire) -> bool:
    """Whether what is left of an answer is no proper end of it."""
    try:
        return END not in caller.read_to_end()
    except ConnectionError:
        return True


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_waits_no_longer(number: int) -> None:
    """Whoever cannot wait sends the signal again: streams are cut so that no SDK takes them for complete."""
    with _stage() as stage:
        caller, upstream = _begun(stage)
        waiting, _ = stage.sends(get())
        stage.proxy.signal(signal.SIGTERM)
        stage.proxy.says("no longer listening; waiting for 2 requests on 2 connections")
        assert stage.proxy.is_running()
        stage.proxy.signal(number)
        assert _is_cut(caller)
        assert _is_cut(waiting)
        assert upstream.is_closed_within(1.0)
        assert stage.proxy.exit_code(2.0) == 0
        ends = [each["end_reason"] for each in stage.proxy.events() if each.get("event") == "access"]
        assert ends == ["drain", "drain"]
        assert stage.proxy.says("again: 2 requests on 2 connections cut")["level"] == "warn"


def test_the_time_is_over() -> None:
    """After server.drain_timeout_s, counted from the signal, what still runs is cut, visibly."""
    with _stage(drain_timeout_s=1.0, drain_delay_s=0.3) as stage:
        caller, _ = _begun(stage)
        began = time.monotonic()
        stage.proxy.signal(signal.SIGTERM)
        assert _is_cut(caller)
        assert 0.9 < time.monotonic() - began < 2.0
        assert stage.proxy.exit_code(2.0) == 0
        assert stage.proxy.access_event()["end_reason"] == "drain"
        assert stage.proxy.says("server.drain_timeout_s (1 s) is over: 1 request on 1 connection cut")


def test_no_limit() -> None:
    """With server.drain_timeout_s 0 a stream may take as long as it likes."""
    with _stage(drain_timeout_s=0) as stage:
        caller, upstream = _begun(stage)
        stage.proxy.signal(signal.SIGTERM)
        stage.proxy.says("for as long as they take")
        assert caller.is_quiet(1.0)
        upstream.send(END)
        assert caller.read_chunk() == b""
        assert stage.proxy.exit_code() == 0


def test_over_tls(authority: Authority) -> None:
    """A stream over TLS ends whole too, with its closing alert, and idle TLS connections are closed."""
    upstream = Upstream(authority.server_context("upstream", HOST))
    certificate, key = authority.certificate("drain", "localhost")
    config = {"providers": all_providers(upstream.url), "upstream": {"ca_file": str(authority.ca_file)}}
    port = f"ssl:0:interface={HOST}:privateKey={key}:certKey={certificate}"
    with running_proxy(config, port=port, tls=authority.client_context()) as proxy:
        stage = Stage(proxy, upstream)
        idle = stage.caller()
        caller, sending = _begun(stage)
        proxy.signal(signal.SIGTERM)
        assert idle.is_closed_within(1.0)
        sending.send_chunk(_event(1))
        sending.send(END)
        assert caller.read_chunk() == _event(1)
        assert caller.read_chunk() == b""
        assert caller.read_trailers() == []
        assert caller.read_to_end() == b""  # an end without the alert would raise
        caller.close()
        idle.close()
        assert proxy.exit_code() == 0
        stage.clear()
    upstream.close()


def test_no_reload_at_the_end() -> None:
    """A reload that comes while the proxy stops changes nothing, and does not end it either."""
    with _stage() as stage:
        caller, upstream = _begun(stage)
        stage.proxy.signal(signal.SIGTERM)
        stage.proxy.says("no longer listening")
        stage.proxy.signal(signal.SIGHUP)
        stage.proxy.says("not reloaded: the proxy is stopping")
        upstream.send(END)
        assert caller.read_chunk() == b""
        assert stage.proxy.exit_code() == 0


def _daemon(directory: Path, url: str, *of_twistd: str) -> tuple[int, int]:
    """Port and process of a daemon."""
    port = unused_port()
    Path(directory, "c.yml").write_text(json.dumps({"state_dir": str(directory), "providers": all_providers(url)}))
    options = ("--config", "c.yml", "--port", f"tcp:{port}:interface={HOST}")
    assert daemonise(directory, *options, of_twistd=("--logfile", "proxy.log", *of_twistd)) == (0, "")
    return port, int(Path(directory, "pid").read_text())


def _log(directory: Path) -> list[dict[str, Any]]:
    log = Path(directory, "proxy.log")
    return [json.loads(line) for line in log.read_bytes().split(b"\n")[:-1]] if log.exists() else []


@pytest.mark.parametrize("of_twistd", [(), ("--uid", "65534", "--gid", "65534")], ids=["daemon", "privileges dropped"])
def test_a_daemon(tmp_path: Path, of_twistd: tuple[str, ...]) -> None:
    """`kill $(cat twistd.pid)` ends a daemon in peace too, and it reloads, also when it gave its privileges away."""
    if of_twistd and os.geteuid() != 0:
        pytest.skip("needs root to give privileges away")
    tmp_path.chmod(0o777)
    for each in tmp_path.parents[:2]:
        each.chmod(0o711)
    upstream = Upstream()
    port, pid = _daemon(tmp_path, upstream.url, *of_twistd)
    try:
        with socket.create_connection((HOST, port)) as connected:
            caller = Wire(connected)
            caller.send(STREAM)
            reading = upstream.receive()
            reading.read_message()
            os.kill(pid, signal.SIGHUP)
            wait_until(lambda: any("is reloaded" in str(each.get("message")) for each in _log(tmp_path)))
            os.kill(pid, signal.SIGTERM)
            wait_until(lambda: any("no longer listening" in str(each.get("message")) for each in _log(tmp_path)))
            assert not is_answered((HOST, port))
            reading.send(STREAM_HEAD)
            reading.send_chunk(_event(0))
            reading.send(END)
            assert caller.read_message().body == _event(0)
        wait_until(lambda: not Path(f"/proc/{pid}").exists())
        assert _log(tmp_path)[-1]["message"] == "Server Shut Down."
        assert [each for each in _log(tmp_path) if each.get("level") in ("error", "critical")] == []
    finally:
        upstream.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_a_log_where_only_root_may_write(tmp_path: Path) -> None:
    """A daemon that gave its privileges away has its log in a folder of root's all the same, to the last line; also
    after the file was renamed, when it cannot make a new one there: then it goes on in the old one."""
    if os.geteuid() != 0:
        pytest.skip("needs root to give privileges away")
    tmp_path.chmod(0o755)
    for each in tmp_path.parents[:2]:
        each.chmod(0o711)
    port, pid = _daemon(tmp_path, f"http://{HOST}:1", "--uid", "65534", "--gid", "65534")
    try:
        log, renamed = tmp_path / "proxy.log", tmp_path / "renamed"
        assert (log.stat().st_uid, log.stat().st_gid, log.stat().st_mode & 0o777) == (65534, 65534, 0o600)
        assert Path(f"/proc/{pid}").stat().st_uid == 65534
        assert is_answered((HOST, port))
        wait_until(lambda: any(each["event"] == "access" for each in _log(tmp_path)))
        log.rename(renamed)
        assert is_answered((HOST, port))
        wait_until(lambda: renamed.read_text().count('"event":"access"') == 2)
        wait_until(lambda: "proxy.log cannot be opened: Permission denied" in renamed.read_text())
        log.touch()
        os.chown(log, 65534, 65534)  # as logrotate's `create` does it
        assert is_answered((HOST, port))
        wait_until(lambda: any(each["event"] == "access" for each in _log(tmp_path)))
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not Path(f"/proc/{pid}").exists())
        assert _log(tmp_path)[-1]["message"] == "Server Shut Down."
        assert renamed.read_text().count('"event":"access"') == 2
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("log", ["nowhere/proxy.log", "folder"])
def test_a_log_that_cannot_be_opened(tmp_path: Path, log: str) -> None:
    """There is never a daemon without its log: the command ends, with a status and one line that says so."""
    tmp_path.joinpath("folder").mkdir()
    reason = "Is a directory" if log == "folder" else "No such file or directory"
    said = f"llmproxy: the log file {tmp_path / log} cannot be opened: {reason}\n"
    assert daemonise(tmp_path, "--port", f"tcp:0:interface={HOST}", of_twistd=("--logfile", log)) == (1, said)
    assert not Path(tmp_path, "pid").exists()


_IN_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


@pytest.mark.parametrize("to_file", [False, True], ids=["it writes there", "it writes to a file"])
def test_the_terminal_is_closed(tmp_path: Path, to_file: bool) -> None:
    """Closing the window in which the proxy runs ends it; it does not live on without one, wherever its log goes. A
    SIGHUP while the window is there reloads."""
    ours, theirs = pty.openpty()
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            (sys.executable, "-c", _IN_TERMINAL, "-m", "llmproxy", "run", "--port", f"tcp:0:interface={HOST}"),
            cwd=tmp_path,
            env=variables(tmp_path, LOG_FORMAT="text"),
            stdin=theirs,
            stdout=file if to_file else theirs,
            stderr=theirs,
            start_new_session=True,
        )
    os.close(theirs)
    os.set_blocking(ours, False)
    said = b""

    def says(words: bytes) -> bool:
        nonlocal said
        with contextlib.suppress(BlockingIOError):
            said += os.read(ours, 4096)
        return words in (log.read_bytes() if to_file else said)

    try:
        wait_until(lambda: says(b"listening on"))
        process.send_signal(signal.SIGHUP)
        wait_until(lambda: says(b"the configuration is reloaded"))
        os.close(ours)  # the kernel sends SIGHUP
        assert process.wait(3.0) == 0
    finally:
        process.kill()
        process.wait()
