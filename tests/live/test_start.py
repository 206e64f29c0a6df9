"""Starting: what an operator sees when it works, and when it does not.

A mistake is one clear line on standard error and exit status 1: never a traceback, never a process without a port.
"""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llmproxy.version import VERSION
from tests.live.certificates import Authority
from tests.live.conversation import get
from tests.live.proxy import ROOT, environment, running_proxy
from tests.live.upstream import HOST, Upstream, unused_port
from tests.live.wire import Wire

COMMANDS = {
    "llmproxy run": ("-m", "llmproxy", "run"),
    "twistd": ("-c", "from twisted.scripts.twistd import run; run()", "-n", "--pidfile=", "llmproxy"),
}
OUR_PROVIDER = {"providers": {"openai": {"base_url": "http://127.0.0.1:9"}}}


def refusal(tmp_path: Path, *arguments: str, command: str = "llmproxy run", **variables: str) -> str:
    """What standard error says when the proxy is started like this, which must not work."""
    done = subprocess.run(
        (sys.executable, *COMMANDS[command], *arguments),
        cwd=ROOT,
        env=environment(tmp_path, **variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=10,
        check=False,
    )
    said = done.stderr.decode()
    assert done.returncode == 1, (done.returncode, said, done.stdout)
    assert "Traceback" not in said + done.stdout.decode()
    return said


def settings(tmp_path: Path, config: object) -> str:
    """The path of a configuration file."""
    path = tmp_path / "settings.yml"
    path.write_text(config if isinstance(config, str) else json.dumps(config))
    return str(path)


@pytest.mark.parametrize("command", ["llmproxy run", "twistd"])
@pytest.mark.parametrize("port", ["{}", "tcp:{}:interface=127.0.0.1"])
def test_port_in_use(tmp_path: Path, command: str, port: str) -> None:
    """Somebody else has the port: one line that names it."""
    taken = Upstream()
    number = taken.port
    said = refusal(tmp_path, "--port", port.format(number), command=command)
    taken.close()
    assert said.count("\n") == 1
    assert f"port {number}" in said
    assert "in use" in said


@pytest.mark.parametrize("command", ["llmproxy run", "twistd"])
@pytest.mark.parametrize(
    ("port", "word"),
    [
        ("70000", "65535"),
        ("-1", "-1"),
        ("http", "http"),
        ("tcp:abc", "tcp:abc"),
        ("nosuch:1", "nosuch"),
        ("ssl:0:privateKey=/nowhere/key.pem", "/nowhere/key.pem"),
    ],
)
def test_no_port(tmp_path: Path, command: str, port: str, word: str) -> None:
    """What is neither a port nor an endpoint is told in one line that repeats it."""
    said = refusal(tmp_path, f"--port={port}", command=command)
    assert said.count("\n") == 1, said
    assert word in said


def test_no_port_in_the_environment(tmp_path: Path) -> None:
    """The same for PORT."""
    said = refusal(tmp_path, PORT="eighty")
    assert said.count("\n") == 1, said
    assert "eighty" in said


def test_bad_option(tmp_path: Path) -> None:
    """An option that does not exist is one line, not a page of usage."""
    said = refusal(tmp_path, "--prot", "1", command="twistd")
    assert said.count("\n") == 1, said
    assert "prot" in said


def test_bad_configuration(tmp_path: Path) -> None:
    """Every mistake in the configuration is one line with file, line number and path; all of them at once."""
    file = settings(tmp_path, "server:\n  prt: 1\nupstream:\n  pool_size: many\n")
    for command in COMMANDS:
        lines = refusal(tmp_path, "--config", file, command=command).splitlines()
        assert len(lines) == 2
        assert f"{file}:2" in lines[0]
        assert "server.prt" in lines[0]
        assert f"{file}:4" in lines[1]
        assert "upstream.pool_size" in lines[1]


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ("server: [", "not valid YAML"),
        ({"features": {"rate_limiting": {"enabled": True}}}, "not supported yet"),
        ({"upstream": {"ca_file": "/nowhere/ca.pem"}}, "ca_file"),
        ({"server": {"public_url": "${NOT_SET_ANYWHERE}"}}, "NOT_SET_ANYWHERE"),
    ],
)
def test_configurations(tmp_path: Path, config: object, word: str) -> None:
    """A file that is no YAML, a feature that is not there, a file that is missing, a name that is not set."""
    said = refusal(tmp_path, "--port", "0", "--config", settings(tmp_path, config))
    assert word in said, said
    assert said.count("\n") == 1, said


def test_missing_configuration(tmp_path: Path) -> None:
    """A configuration file that does not exist is no reason to start without it."""
    said = refusal(tmp_path, "--config", "/nowhere/llmproxy.yml")
    assert said.count("\n") == 1, said
    assert "/nowhere/llmproxy.yml" in said


def test_bad_https_proxy(tmp_path: Path) -> None:
    """An HTTPS_PROXY that cannot be used is told, without its password."""
    said = refusal(tmp_path, HTTPS_PROXY="socks5://user:sesame@127.0.0.1:1")
    assert said.count("\n") == 1, said
    assert "HTTPS_PROXY" in said
    assert "sesame" not in said


def test_state_dir_that_cannot_be_written(tmp_path: Path) -> None:
    """Where the identity secret cannot be kept, the start ends with a line that says what to do."""
    (tmp_path / "file").write_text("")
    config = {**OUR_PROVIDER, "state_dir": str(tmp_path / "file" / "state")}
    said = refusal(tmp_path, "--port", "0", "--config", settings(tmp_path, config), LLM_PROXY_IDENTITY_SECRET="")
    assert said.count("\n") == 1, said
    assert "LLM_PROXY_IDENTITY_SECRET" in said


# -- where it listens ----------------------------------------------------------------------------------------------------


def is_alive(wire: Wire) -> bool:
    """Whether the proxy answers at the other end."""
    wire.send(get(b"/health/live"))
    return wire.read_message().status == 200


def test_port_from_the_environment() -> None:
    """PORT says where to listen, on all interfaces, IPv4 and IPv6."""
    port = unused_port()
    with running_proxy(OUR_PROVIDER, port="", PORT=str(port)) as proxy:
        for host in ("127.0.0.1", "::1", "127.0.0.2"):
            assert is_alive(Wire(socket.create_connection((host, port), 5)))
        assert proxy.address[1] == port


def test_the_option_wins() -> None:
    """--port wins over PORT."""
    port, other = unused_port(), unused_port()
    with running_proxy(OUR_PROVIDER, port=str(port), PORT=str(other)):
        assert is_alive(Wire(socket.create_connection((HOST, port), 5)))
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((HOST, other), 5)


def test_port_from_the_configuration() -> None:
    """So does PORT over `server.port`; without both, that counts."""
    port = unused_port()
    with running_proxy({**OUR_PROVIDER, "server": {"port": port}}, port=""):
        assert is_alive(Wire(socket.create_connection((HOST, port), 5)))


def test_tcp_endpoint() -> None:
    """An endpoint string is taken as it is: this one listens on one interface only."""
    port = unused_port()
    with running_proxy(OUR_PROVIDER, port=f"tcp:{port}:interface=127.0.0.1"):
        assert is_alive(Wire(socket.create_connection((HOST, port), 5)))
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", port), 5)


def test_unix_endpoint(tmp_path: Path) -> None:
    """A UNIX socket serves like any other, forwards too, and its callers have no address in the log."""
    path = str(tmp_path / "socket")
    upstream = Upstream()
    with running_proxy({"providers": {"openai": {"base_url": upstream.url}}}, port=f"unix:{path}") as proxy:
        unix = socket.socket(socket.AF_UNIX)
        unix.connect(path)
        caller = Wire(unix)
        assert is_alive(caller)
        caller.send(get())
        wire = upstream.receive()
        wire.read_message()
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        assert caller.read_message().body == b"ok"
        assert path in proxy.banner
        assert proxy.access_event(route="openai")["client"] == "unix"
        caller.close()
    assert not os.path.exists(path)
    upstream.close()


def test_tls_endpoint(authority: Authority) -> None:
    """An `ssl:` endpoint with certificate files serves callers in TLS."""
    certificate, key = authority.certificate("start", "localhost")
    port = f"ssl:0:interface={HOST}:privateKey={key}:certKey={certificate}"
    with running_proxy(OUR_PROVIDER, port=port, tls=authority.client_context()) as proxy:
        caller = proxy.connect()
        assert is_alive(caller)
        assert isinstance(caller.socket, ssl.SSLSocket)


# -- what it says --------------------------------------------------------------------------------------------------------


def test_banner() -> None:
    """The banner names version, address, providers and configuration files."""
    config = {"providers": {"groq": {"enabled": False}, "mistral": {"kind": "openai-compatible", "base_url": "http://m.test"}}}
    with running_proxy(config) as proxy:
        banner = proxy.banner
        assert f"llmproxy {VERSION} listening on 127.0.0.1:{proxy.address[1]}" in banner
        assert "config.yml" in banner
        assert all(name in banner for name in ("openai", "anthropic", "gemini", "mistral"))
        assert "groq" not in banner


def test_start_time_and_memory() -> None:
    """How long a start takes to the first answer, and how large the proxy then is (shown by pytest -s; no limit here)."""
    port = unused_port()
    started_s = time.monotonic()
    with running_proxy(OUR_PROVIDER, port=str(port)) as proxy:
        assert is_alive(proxy.connect())
        took_s = time.monotonic() - started_s
        print(f"start: {took_s * 1000:.0f} ms to the first answer, {proxy.resident_bytes() >> 20} MiB")  # noqa: T201
