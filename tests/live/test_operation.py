"""What an operator relies on from day to day: TLS towards callers, logs that are rotated or not read, a clean end."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.live.certificates import Authority
from tests.live.conversation import OK, STREAM, error_of, get, id_of, post, request
from tests.live.programs import PROGRAMS, Program, daemonise, health, is_answered, started, variables
from tests.live.proxy import running_proxy
from tests.live.upstream import HOST, Upstream, unused_port
from tests.live.wire import LIMIT_S, Message, Wire, wait_until

# -- TLS towards the callers -------------------------------------------------------------------------------------------

ALPN = {"http/1.1": ["http/1.1"], "h2 and http/1.1": ["h2", "http/1.1"], "none": []}
"""What callers offer: a plain HTTP library, a browser or gRPC-minded one, an old one."""


def _over_tls(port: int, authority: Authority, offers: list[str]) -> tuple[str | None, int]:
    """The protocol that was agreed on with a caller that offers these, and the status of its /health/live."""
    context = authority.client_context()
    if offers:
        context.set_alpn_protocols(offers)
    with (
        socket.create_connection((HOST, port), LIMIT_S) as tcp,
        context.wrap_socket(tcp, server_hostname="localhost") as tls,
    ):
        wire = Wire(tls)
        wire.send(get(b"/health/live"))
        return tls.selected_alpn_protocol(), wire.read_message().status


def _port_of(proxy: Program) -> int:
    found = re.search(r"listening on \S+:(\d+);", proxy.banner())
    assert found is not None
    return int(found[1])


def _tls_endpoint(kind: str, directory: Path, authority: Authority) -> str:
    """An endpoint string for a certificate and a key in two files (ssl), or for a folder of them (tls)."""
    certificate, key = authority.certificate(f"operation-{kind}", "localhost")
    if kind == "ssl":
        return f"ssl:0:interface={HOST}:privateKey={key}:certKey={certificate}"
    folder = directory / "certificates"
    folder.mkdir()
    Path(folder, "localhost.pem").write_bytes(key.read_bytes() + certificate.read_bytes())
    return f"tls:{folder}:0"


@pytest.mark.parametrize("kind", ["ssl", "tls"])
def test_callers_with_tls(tmp_path: Path, authority: Authority, kind: str) -> None:
    """Whatever protocols my HTTP library offers over TLS, it is served, and it never believes that we speak HTTP/2."""
    endpoint = _tls_endpoint(kind, tmp_path, authority)
    with started(tmp_path, "--port", endpoint) as proxy:
        port = _port_of(proxy)
        served = {name: _over_tls(port, authority, offers) for name, offers in ALPN.items()}
        assert served == {"http/1.1": ("http/1.1", 200), "h2 and http/1.1": ("http/1.1", 200), "none": (None, 200)}


@pytest.mark.parametrize("kind", ["ssl", "tls"])
def test_a_caller_that_speaks_http2_only(tmp_path: Path, authority: Authority, kind: str) -> None:
    """One who offers HTTP/2 alone is not told that it was agreed on, and the next one is served."""
    endpoint = _tls_endpoint(kind, tmp_path, authority)
    with started(tmp_path, "--port", endpoint) as proxy:
        port = _port_of(proxy)
        with contextlib.suppress(ssl.SSLError, ConnectionError):
            assert _over_tls(port, authority, ["h2"])[0] is None
        assert _over_tls(port, authority, ["http/1.1"]) == ("http/1.1", 200)
        assert [each for each in proxy.events() if each.get("level") in ("error", "critical")] == []


# -- a log that nobody reads -------------------------------------------------------------------------------------------

REQUESTS = 2_000


def _drain(pipe: int, until: bytes) -> bytes:
    """All that comes from ``pipe`` until ``until`` is in it, and the rest of that line."""
    data = b""
    deadline_s = time.monotonic() + LIMIT_S
    while until not in data or data[-1:] != b"\n":
        assert time.monotonic() < deadline_s, data[-2000:]
        if select.select([pipe], [], [], 0.1)[0]:
            data += os.read(pipe, 1 << 18)
    return data


def test_nobody_reads_standard_output(tmp_path: Path) -> None:
    """The program that collects my log hangs: requests are still answered; when it reads again, lines are whole, and
    one says how many were lost."""
    port = unused_port()
    process = subprocess.Popen(
        (sys.executable, "-m", "llmproxy", "run", "--port", f"tcp:{port}:interface={HOST}"),
        cwd=tmp_path,
        env=variables(tmp_path),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    try:
        wait_until(lambda: is_answered((HOST, port)))
        with socket.create_connection((HOST, port), LIMIT_S) as tcp:
            wire = Wire(tcp)
            for _ in range(REQUESTS // 20):
                wire.send(get(b"/health") * 20)
                assert [wire.read_message().status for _ in range(20)] == [200] * 20
        time.sleep(0.3)  # the log is written in batches
        began = time.monotonic()
        assert health((HOST, port)).status == 200
        assert time.monotonic() - began < 1.0

        data = _drain(process.stdout.fileno(), b"log lines were lost")
        events = [json.loads(line) for line in data.splitlines()]  # each is a whole one
        assert all(isinstance(each, dict) for each in events)
        written = sum(each.get("event") == "access" for each in events)
        (lost,) = (each for each in events if "log lines were lost" in str(each.get("message")))
        found = re.match(r"(\d+) log lines were lost", lost["message"])
        assert found is not None, lost
        assert written > 100  # a pipe has room for some, and some are kept
        assert written + int(found[1]) == REQUESTS + 2

        assert health((HOST, port)).status == 200
        again = _drain(process.stdout.fileno(), b'"/health/live"')
        assert b"lost" not in again
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


# -- a log that is rotated ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _logging_to_a_file(directory: Path, way: str, port: int) -> Iterator[None]:
    """A proxy on ``port`` that twistd lets log to proxy.log."""
    options = ("--port", f"tcp:{port}:interface={HOST}")
    if way == "daemon":
        assert daemonise(directory, *options, of_twistd=("--logfile", "proxy.log")) == (0, "")
        pid = int(Path(directory, "pid").read_text())
        try:
            yield
        finally:
            os.kill(pid, signal.SIGTERM)
            wait_until(lambda: not Path(directory, "pid").exists())
        return
    *twistd, plugin = PROGRAMS["twistd"]
    with Path(directory, "output").open("wb") as output:
        process = subprocess.Popen(
            (*twistd, "--logfile", "proxy.log", plugin, *options),
            cwd=directory,
            env=variables(directory),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        wait_until(lambda: is_answered((HOST, port)))
        yield
        process.send_signal(signal.SIGTERM)
        process.wait(LIMIT_S)
        assert Path(directory, "output").read_text() == ""
    finally:
        process.kill()
        process.wait()


def _asked(port: int, target: bytes) -> int:
    with socket.create_connection((HOST, port), LIMIT_S) as tcp:
        wire = Wire(tcp)
        wire.send(get(target))
        return wire.read_message().status


def _paths_in(log: Path) -> list[str]:
    """The paths of the access lines in a log; each of its lines must be a whole one."""
    if not log.exists():
        return []
    events = [json.loads(line) for line in log.read_bytes().splitlines()]
    return [each["path"] for each in events if each.get("event") == "access"]


@pytest.mark.parametrize("way", ["daemon", "foreground"])
def test_log_is_rotated(tmp_path: Path, way: str) -> None:
    """logrotate renames the log: what is logged from then on is in a new file of the old name, without a signal."""
    port = unused_port()
    log, old, older = (tmp_path / name for name in ("proxy.log", "proxy.log.1", "proxy.log.2"))
    with _logging_to_a_file(tmp_path, way, port):
        assert _asked(port, b"/first") == 404
        wait_until(lambda: "/first" in _paths_in(log))
        log.rename(old)
        assert _asked(port, b"/second") == 404
        wait_until(lambda: _paths_in(log) == ["/second"])
        assert "/second" not in _paths_in(old)
        old.rename(older)
        log.rename(old)
        assert _asked(port, b"/third") == 404
        wait_until(lambda: _paths_in(log) == ["/third"])
        assert (_paths_in(old), _paths_in(older)[-1]) == (["/second"], "/first")
        log.unlink()
        assert _asked(port, b"/fourth") == 404
        wait_until(lambda: _paths_in(log) == ["/fourth"])


# -- a caller on a UNIX socket -----------------------------------------------------------------------------------------


def _is_reset_within(wire: Wire, limit_s: float) -> bool:
    """Whether a connection is ended, without reading from it: to read would let the upload go on."""
    poll = select.poll()
    poll.register(wire, select.POLLRDHUP)  # POLLHUP and POLLERR are always reported
    return bool(poll.poll(limit_s * 1000))


def test_a_caller_on_a_unix_socket_leaves_its_upload(tmp_path: Path) -> None:
    """A caller on a UNIX socket gives up an upload that the provider does not take: the provider's connection goes
    with it, although nobody could have read another byte."""
    upstream = Upstream()
    path = tmp_path / "socket"
    config = {"providers": {"openai": {"base_url": upstream.url}}}
    try:
        with running_proxy(config, port=f"unix:{path}") as proxy:
            with socket.socket(socket.AF_UNIX) as connected:
                connected.settimeout(LIMIT_S)
                connected.connect(str(path))
                caller = Wire(connected)
                caller.send(request(b"POST", b"/openai/v1/files", b"Content-Length: %d" % (1 << 30)))
                taken = caller.fill(b"x" * 65_536, limit_bytes=1 << 28)
                reading = upstream.accept()
                assert taken < 1 << 28  # it is held back
                assert not _is_reset_within(reading, 0.2)
            began = time.monotonic()
            assert _is_reset_within(reading, 1.5), "the upstream's connection stays open"
            print(f"closed after {time.monotonic() - began:.2f} s")  # noqa: T201 - pytest -s shows it
            event = proxy.access_event(path="/openai/v1/files")
            assert (event["end_reason"], event["status"], event["client"]) == ("client_gone", None, "unix")
    finally:
        upstream.close()


# -- the end -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_last_lines(tmp_path: Path, program: str) -> None:
    """SIGTERM in the middle of my request: it is in the log as ended by the stop, and so are the last words."""
    upstream = Upstream()
    Path(tmp_path, "mine.yml").write_text(json.dumps({"providers": {"openai": {"base_url": upstream.url}}}))
    options = ("--config", "mine.yml", "--port", f"tcp:0:interface={HOST}")
    try:
        with started(tmp_path, *options, program=program) as proxy:
            with socket.create_connection((HOST, _port_of(proxy)), LIMIT_S) as tcp:
                caller = Wire(tcp)
                caller.send(STREAM)
                upstream.receive().read_message()
                assert proxy.end() == 0
                assert caller.is_closed_within(0.5)
            events = proxy.events()
            (access,) = (each for each in events if each.get("event") == "access")
            assert (access["end_reason"], access["provider"], access["model"]) == ("drain", "openai", "m")
            assert events[-1].get("message") == "Server Shut Down."
            assert [each for each in events if each.get("level") in ("error", "critical")] == []
    finally:
        upstream.close()


@pytest.mark.parametrize("way", ["daemon", "foreground"])
def test_the_last_lines_in_a_file(tmp_path: Path, way: str) -> None:
    """The same words are the last ones in the file that --logfile names."""
    with _logging_to_a_file(tmp_path, way, unused_port()):
        pass
    last = json.loads((tmp_path / "proxy.log").read_bytes().splitlines()[-1])
    assert last.get("message") == "Server Shut Down."


# -- a provider by configuration alone ---------------------------------------------------------------------------------


class _Asker:
    """Asks a proxy, one connection for each request."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address

    @contextlib.contextmanager
    def asking(self, data: bytes) -> Iterator[Wire]:
        with socket.create_connection(self._address, LIMIT_S) as tcp:
            wire = Wire(tcp)
            wire.send(data)
            yield wire

    def answer(self, data: bytes) -> Message:
        with self.asking(data) as wire:
            return wire.read_message()


def _error_in(message: Message) -> dict[str, Any]:
    assert message.value("content-type") == b"application/json"
    error: dict[str, Any] = json.loads(message.body)["error"]
    return error


def test_a_provider_by_configuration_alone() -> None:
    """Three lines of YAML add a provider that speaks as OpenAI does, and one line takes OpenAI itself away."""
    upstream, gone = Upstream(), unused_port()
    providers: dict[str, dict[str, object]] = {
        "mistral": {"kind": "openai-compatible", "base_url": f"{upstream.url}/prefix"},
        "away": {"kind": "openai-compatible", "base_url": f"http://{HOST}:{gone}/prefix"},
        "openai": {"enabled": False},
    }
    try:
        with running_proxy({"providers": providers}) as proxy:
            ask = _Asker(proxy.address)

            with ask.asking(post(b'{"model":"mistral-small"}', b"/mistral/v1/chat/completions?a=%2F")) as caller:
                reading = upstream.receive()
                arrived = reading.read_message()
                assert arrived.start == b"POST /prefix/v1/chat/completions?a=%2F HTTP/1.1"
                assert arrived.value("host") == upstream.host
                reading.send(OK)
                answered = caller.read_message()
                assert (answered.status, answered.body) == (200, b"ok")
            event = proxy.access_event(request_id=id_of(answered))
            assert (event["provider"], event["model"]) == ("mistral", "mistral-small")

            report = json.loads(ask.answer(get(b"/health")).body)["providers"]
            assert report["mistral"]["baseURL"] == f"{upstream.url}/prefix"
            assert "openai" not in report
            for accept in (b"text/plain", b"text/html"):
                page = ask.answer(get(b"/", b"Accept: " + accept)).body
                assert b"/mistral/v1" in page
                assert b"/openai" not in page

            failed = ask.answer(post(b"{}", b"/away/v1/chat/completions"))
            status, error_class, source = error_of(failed)
            assert (status, source) == (502, b"upstream"), (status, error_class, source)
            error = _error_in(failed)
            assert set(error) == {"message", "type", "param", "code"}
            assert (error["type"], error["code"]) == ("server_error", (error_class or b"").decode())
            assert "away" in error["message"]

            for target in (b"/openai/v1/models", b"/meta/somebody/openai/v1/models", b"/openai"):
                refused = ask.answer(get(target))
                assert refused.status == 404
                message = json.loads(refused.body)["error"]["message"]
                assert "/mistral/" in message
                assert "openai" not in message
            assert upstream.is_untouched()
    finally:
        upstream.close()
