"""The start: where the proxy listens, what it says, and how it refuses. The same for both programs that start it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import ssl
import time
from pathlib import Path

import pytest

from llmproxy.version import VERSION
from tests.live.certificates import Authority
from tests.live.conversation import get
from tests.live.programs import (
    PROGRAMS,
    Program,
    daemonise,
    health,
    is_answered,
    refusal,
    refusals,
    seconds_until_answered,
    started,
)
from tests.live.upstream import HOST, unused_port
from tests.live.wire import Wire, wait_until

MOST_BYTES = 64 * 1024 * 1024

# -- refusals --------------------------------------------------------------------------------------------------------

USAGE = {
    "an unknown option": (("--nope",), "--nope"),
    "an argument": (("9002",), "argument"),
    "an option without its value": (("--port",), "--port"),
}


@pytest.mark.parametrize(("options", "says"), USAGE.values(), ids=USAGE)
def test_bad_usage(tmp_path: Path, options: tuple[str, ...], says: str) -> None:
    """Options that are none are one line, without a page of usage, and exit code 1."""
    for lines in refusals(tmp_path, *options):
        assert len(lines) == 1
        assert says in lines[0]


OPTIONS = {
    "a port that is too large": (("--port", "99999"), "99999"),
    "an empty port": (("--port=",), "port ''"),
    "a negative port": (("--port=-1",), "'-1'"),
    "a name for a port": (("--port", "http"), "'http'"),
    "an unknown kind of endpoint": (("--port", "foo:1"), "'foo'"),
    "an endpoint without a number": (("--port", "tcp:x"), "'tcp:x'"),
    "an endpoint with an unknown word": (("--port", "tcp:0:nope=1"), "nope"),
    "a key that is not there": (("--port", "ssl:0:privateKey=/nope/key.pem"), "/nope/key.pem"),
    "an address of somebody else": (("--port", "tcp:0:interface=192.0.2.1"), "assign"),
    "a folder that is not there": (("--port", "unix:/nope/socket"), "cannot listen on /nope/socket"),
    "a file that is not there": (("--config", "nope.yml"), "nope.yml: cannot be read: No such file or directory"),
    "an environment that is not there": (("--environment", "nope"), "nope.yml"),
}


@pytest.mark.parametrize(("options", "says"), OPTIONS.values(), ids=OPTIONS)
def test_bad_options(tmp_path: Path, options: tuple[str, ...], says: str) -> None:
    """An option that cannot be followed is one line that names it, and exit code 1."""
    lines = refusal(tmp_path, *options)
    assert len(lines) == 1
    assert says in lines[0]


@pytest.mark.parametrize("port", ["{port}", "tcp:{port}:interface=127.0.0.1"])
def test_port_in_use(tmp_path: Path, port: str) -> None:
    """A port that another program listens on: one line that names it."""
    with socket.create_server((HOST, 0)) as other:
        taken = other.getsockname()[1]
        lines = refusal(tmp_path, "--port", port.format(port=taken))
    assert lines == [f"llmproxy: cannot listen on port {taken}: Address already in use"]


VARIABLES = {
    "a port": ({"PORT": "many"}, "PORT"),
    "a level": ({"LOG_LEVEL": "loud"}, "LOG_LEVEL"),
    "a format": ({"LOG_FORMAT": "xml"}, "LOG_FORMAT"),
    "a proxy of another kind": ({"HTTPS_PROXY": "socks5://u:canary@127.0.0.1:1"}, "HTTPS_PROXY must be"),
    "a proxy without a host": ({"HTTPS_PROXY": "http://"}, "HTTPS_PROXY must be"),
    "a proxy's port": ({"https_proxy": "http://u:canary@127.0.0.1:x"}, "HTTPS_PROXY must be"),
    "a proxy's brackets": ({"HTTPS_PROXY": "http://u:canary@[::1"}, "HTTPS_PROXY must be"),
}


@pytest.mark.parametrize(("more", "says"), VARIABLES.values(), ids=VARIABLES)
def test_bad_variables(tmp_path: Path, more: dict[str, str], says: str) -> None:
    """A variable that makes no sense is one line that names it, without the credentials in it."""
    lines = refusal(tmp_path, "--port", "0", **more)
    assert len(lines) == 1
    assert says in lines[0]
    assert "canary" not in lines[0]


def test_bad_configuration(tmp_path: Path) -> None:
    """Every mistake in a configuration has a line of its own, with file, line and the right word; all at once."""
    Path(tmp_path, "mine.yml").write_text(
        "server:\n  prot: 9002\nupstream:\n  pool_size: many\n  connect_timeout_s: -1\n"
        "providers:\n  openai:\n    base_url: ftp://x\nfeatures:\n  rate_limiting:\n    enabled: true\n"
    )
    lines = refusal(tmp_path, "--config", "mine.yml")
    places = [re.search(r"mine\.yml:(\d+)", line) for line in lines]
    assert [found and found[1] for found in places] == ["2", "4", "5", "8", "11"]
    assert "port" in lines[0]
    assert "not supported yet" in lines[4]


def test_no_yaml(tmp_path: Path) -> None:
    """A file that is no YAML is one line that says where it stops making sense."""
    Path(tmp_path, "mine.yml").write_text("server:\n  port: 1\n bad: [\n")
    lines = refusal(tmp_path, "--config", "mine.yml")
    assert len(lines) == 1
    assert "mine.yml:3" in lines[0]


@pytest.mark.parametrize("folder", ["/dev/null/state", "/proc/no-such-state"])
def test_bad_state_dir(tmp_path: Path, folder: str) -> None:
    """A state_dir that cannot be used is one line that names it and says what helps."""
    Path(tmp_path, "mine.yml").write_text(json.dumps({"state_dir": folder}))
    lines = refusal(tmp_path, "--config", "mine.yml", "--port", "0", LLM_PROXY_IDENTITY_SECRET="")
    assert len(lines) == 1
    assert folder in lines[0]
    assert "LLM_PROXY_IDENTITY_SECRET" in lines[0]


def test_secret_that_others_can_read(tmp_path: Path) -> None:
    """A secret whose file is open to others is not used; the line says what to do, and not what is in it."""
    secret = Path(tmp_path, "identity-secret")
    secret.write_text("0123456789abcdef" * 4)
    secret.chmod(0o644)
    Path(tmp_path, "mine.yml").write_text(json.dumps({"state_dir": str(tmp_path)}))
    lines = refusal(tmp_path, "--config", "mine.yml", "--port", "0", LLM_PROXY_IDENTITY_SECRET="")
    assert len(lines) == 1
    assert "chmod 600" in lines[0]
    assert "0123456789abcdef" not in lines[0]


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_bad_ca_file(tmp_path: Path, content: str | None) -> None:
    """A private authority's file that is missing, or holds none, is one line."""
    ca_file = Path(tmp_path, "ca.pem")
    if content is not None:
        ca_file.write_text(content)
    Path(tmp_path, "mine.yml").write_text(json.dumps({"upstream": {"ca_file": str(ca_file)}}))
    lines = refusal(tmp_path, "--config", "mine.yml", "--port", "0")
    assert len(lines) == 1
    assert "upstream.ca_file" in lines[0]


# -- where it listens --------------------------------------------------------------------------------------------------


def test_port_precedence(tmp_path: Path) -> None:
    """--port goes before PORT, and PORT before server.port."""
    option, variable, configured = unused_port(), unused_port(), unused_port()
    Path(tmp_path, "mine.yml").write_text(json.dumps({"server": {"port": configured}}))
    file = ("--config", "mine.yml")
    with started(tmp_path, *file, "--port", str(option), program="run", PORT=str(variable)) as proxy:
        assert f" listening on [::]:{option};" in proxy.banner()
        assert not is_answered((HOST, variable))
    with started(tmp_path, *file, PORT=str(variable)) as proxy:
        assert f" listening on [::]:{variable};" in proxy.banner()
        assert not is_answered((HOST, configured))
    with started(tmp_path, *file, PORT="") as proxy:
        assert f" listening on [::]:{configured};" in proxy.banner()


def test_default_port(tmp_path: Path) -> None:
    """Nobody says a port: 9002, on every address of the machine, IPv4 and IPv6."""
    with socket.socket(socket.AF_INET6) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("::", 9002))
        except OSError as error:
            pytest.skip(f"the default port 9002 is not free on this machine: {error.strerror}")
    with started(tmp_path) as proxy:
        assert " listening on [::]:9002;" in proxy.banner()
        assert is_answered((HOST, 9002))
        assert is_answered(("::1", 9002))


@pytest.mark.parametrize("program", PROGRAMS)
def test_banner(tmp_path: Path, program: str) -> None:
    """The first thing an operator reads: version, address, providers, configuration files."""
    configs = tmp_path / "configs"
    configs.mkdir()
    Path(configs, "base.yml").write_text("providers:\n  gemini:\n    enabled: false\n")
    Path(configs, "mine.yml").write_text("providers:\n  own:\n    kind: anthropic\n    base_url: http://127.0.0.1:1\n")
    port = unused_port()
    options = ("--environment", "mine", "--port", f"tcp:{port}:interface={HOST}")
    with started(tmp_path, *options, program=program, ENVIRONMENT="other") as proxy:
        assert proxy.banner() == (
            f"llmproxy {VERSION} listening on {HOST}:{port}; providers: openai, anthropic, groq, own; "
            "configuration: configs/base.yml, configs/mine.yml"
        )
        assert is_answered((HOST, port))


def test_banner_without_files(tmp_path: Path) -> None:
    """Without any file it runs on the built-in defaults, and says so."""
    with started(tmp_path, "--port", f"tcp:0:interface={HOST}") as proxy:
        assert proxy.banner().endswith("; providers: openai, anthropic, gemini, groq; configuration: built-in defaults")


def _port_of(proxy: Program) -> int:
    found = re.search(r"listening on \S+:(\d+);", proxy.banner())
    assert found is not None
    return int(found[1])


def test_tcp_endpoint(tmp_path: Path) -> None:
    """An endpoint string is taken as it is: one address only."""
    with started(tmp_path, "--port", "tcp:0:interface=127.0.0.2") as proxy:
        port = _port_of(proxy)
        assert is_answered(("127.0.0.2", port))
        assert not is_answered((HOST, port))


def test_unix_endpoint(tmp_path: Path) -> None:
    """A UNIX socket, which the banner names and which is gone afterwards."""
    path = tmp_path / "socket"
    with started(tmp_path, "--port", f"unix:{path}:mode=660") as proxy:
        assert f" listening on {path};" in proxy.banner()
        assert path.stat().st_mode & 0o777 == 0o660
        assert is_answered(str(path))
        proxy.end()
    assert not path.exists()


def _over_tls(port: int, authority: Authority) -> bool:
    with socket.create_connection((HOST, port)) as connected:
        wire = Wire(authority.client_context().wrap_socket(connected, server_hostname="localhost"))
        wire.send(get(b"/health/live"))
        answered = wire.read_message().status == 200
        wire.close()
        return answered


def test_ssl_endpoint(tmp_path: Path, authority: Authority) -> None:
    """TLS towards the callers, with a certificate and a key from two files."""
    certificate, key = authority.certificate("start-ssl", "localhost")
    with started(tmp_path, "--port", f"ssl:0:interface={HOST}:privateKey={key}:certKey={certificate}") as proxy:
        port = _port_of(proxy)
        assert _over_tls(port, authority)
        with pytest.raises((ssl.SSLError, ConnectionError)):
            ssl.create_default_context().wrap_socket(
                socket.create_connection((HOST, port)), server_hostname="localhost"
            )


def test_tls_endpoint(tmp_path: Path, authority: Authority) -> None:
    """TLS with a folder of certificates, one for each name."""
    certificate, key = authority.certificate("start-tls", "localhost")
    folder = tmp_path / "certificates"
    folder.mkdir()
    Path(folder, "localhost.pem").write_bytes(key.read_bytes() + certificate.read_bytes())
    with started(tmp_path, "--port", f"tls:{folder}:0") as proxy:
        assert _over_tls(_port_of(proxy), authority)


# -- the process -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("program", PROGRAMS)
def test_start_is_quick_and_small(tmp_path: Path, program: str) -> None:
    """Soon there, and in less than 64 MiB."""
    port = unused_port()
    with started(tmp_path, "--port", str(port), program=program) as proxy:
        took_s = seconds_until_answered((HOST, port))
        status = Path(f"/proc/{proxy.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found is not None
        resident_bytes = int(found[1]) * 1024
        print(f"{program}: answered after {took_s:.2f} s, {resident_bytes / 2**20:.1f} MiB")  # noqa: T201 - pytest -s
        assert resident_bytes < MOST_BYTES


@pytest.mark.parametrize("program", PROGRAMS)
def test_sigterm(tmp_path: Path, program: str) -> None:
    """SIGTERM ends it at once, with callers connected, and nothing is wrong in its log."""
    with started(tmp_path, "--port", f"tcp:0:interface={HOST}", program=program) as proxy:
        port = _port_of(proxy)
        with socket.create_connection((HOST, port)) as caller:
            wire = Wire(caller)
            wire.send(get(b"/health/live"))
            assert wire.read_message().status == 200
            began = time.monotonic()
            assert proxy.end() == 0
            assert time.monotonic() - began < 2.0
            assert wire.is_closed_within(0.1)
        assert not is_answered((HOST, port))
        assert [each for each in proxy.events() if each.get("level") in ("error", "critical")] == []
        paths = [each.get("path") for each in proxy.events() if each.get("event") == "access"]
        assert paths == ["/health/live"]


# -- the daemon --------------------------------------------------------------------------------------------------------


def test_daemon(tmp_path: Path) -> None:
    """Without -n, twistd goes into the background, listens, and logs to the file that --logfile names."""
    port = unused_port()
    log = tmp_path / "proxy.log"
    code, output = daemonise(tmp_path, "--port", f"tcp:{port}:interface={HOST}", of_twistd=("--logfile", "proxy.log"))
    pid = int(Path(tmp_path, "pid").read_text())
    try:
        assert (code, output) == (0, "")
        assert health((HOST, port)).status == 200
        wait_until(lambda: log.exists() and b'"/health/live"' in log.read_bytes(), 3.0)
        events = [json.loads(line) for line in log.read_text().splitlines()]
        assert any(f" listening on {HOST}:{port};" in str(each.get("message")) for each in events)
    finally:
        os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not Path(tmp_path, "pid").exists(), 3.0)
    assert not is_answered((HOST, port))


@pytest.mark.parametrize("port", ["{port}", "tcp:{port}:interface=127.0.0.1"])
def test_daemon_refused(tmp_path: Path, port: str) -> None:
    """There is never a daemon without its port: the command ends, with a status and a line that say so."""
    with socket.create_server((HOST, 0)) as other:
        taken = other.getsockname()[1]
        code, output = daemonise(tmp_path, "--port", port.format(port=taken))
    assert code == 1
    assert f"cannot listen on port {taken}: Address already in use" in output
    assert "Traceback" not in output
    assert not Path(tmp_path, "pid").exists()


def test_daemon_with_a_bad_configuration(tmp_path: Path) -> None:
    """A bad configuration is told before anything goes into the background."""
    code, output = daemonise(tmp_path, "--port", "foo:1")
    assert code == 1
    reason = "is no number, and as a Twisted endpoint it fails: Unknown endpoint type: 'foo'"
    assert output == f"llmproxy: the port 'foo:1' {reason}\n"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["output"]
