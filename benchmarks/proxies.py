"""The proxies that are measured: how each is configured, started, asked whether it answers, and stopped."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import machine
from benchmarks.machine import SetupError
from benchmarks.native import BUILD, HERE
from benchmarks.workloads import SHAPES

START_LIMIT_S = 30.0
#: What the shell of a developer may hold and what would change a proxy under test.
NOT_INHERITED = (
    "LLM_PROXY",
    "LOG_",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "ALL_PROXY",
    "PORT",
    "ENVIRONMENT",
)


@dataclass(frozen=True, kw_only=True)
class Upstream:
    """Where the proxies send to: the mock itself, or its TLS front with the authority that signed it."""

    port: int
    authority: Path | None = None

    @property
    def base_url(self) -> str:
        return f"https://localhost:{self.port}" if self.authority else f"http://127.0.0.1:{self.port}"


@dataclass(kw_only=True)
class Proxy:
    """One contestant. `log_mark` is a piece of text that each line of its access log holds."""

    name: str
    port: int
    command: list[str]
    cwd: Path = HERE.parent
    env: Mapping[str, str] = field(default_factory=dict)
    log: Path | None = None
    log_mark: bytes | None = None
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def output(self) -> Path:
        return BUILD / f"{self.name}.out"

    def pids(self) -> list[int]:
        return machine.tree(self.process.pid) if self.process and self.alive() else []

    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self, cpu: int, path: str, body: bytes) -> float:
        """Starts it and returns the seconds until its first 200. SetupError quotes its last words."""
        if port_answers(self.port):
            raise SetupError(f"port {self.port} is taken already, so {self.name} cannot be measured on it.")
        if self.log and self.log != self.output:
            self.log.unlink(missing_ok=True)
        with open(self.output, "wb") as output:
            began = time.monotonic()
            self.process = machine.start(
                self.command, cpu=cpu, cwd=self.cwd, env={**clean_environment(), **self.env}, output=output
            )
        while not answers_200(self.port, path, body):
            waited = time.monotonic() - began
            if not self.alive() or waited > START_LIMIT_S:
                ended = f"ended with {self.process.returncode}" if not self.alive() else "gave no 200"
                self.stop()
                raise SetupError(f"{self.name} {ended} after {waited:.1f} s.\n{last_lines(self.output)}")
            time.sleep(0.002)
        return time.monotonic() - began

    def stop(self) -> None:
        if self.process:
            machine.stop(self.process)

    def logged(self) -> int | None:
        """Requests in its access log. To be asked when it has stopped, and so has written all it had."""
        if self.log is None or self.log_mark is None:
            return None
        try:
            with open(self.log, "rb") as lines:
                return sum(self.log_mark in line for line in lines)
        except FileNotFoundError:
            return 0


def clean_environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment without what would change a proxy behind our back."""
    return {name: value for name, value in environ.items() if not name.upper().startswith(NOT_INHERITED)}


def last_lines(path: Path, count: int = 8) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-count:])


def port_answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def answers_200(port: int, path: str, body: bytes) -> bool:
    """One request on a connection of its own."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer sk-bench0\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    try:
        with socket.create_connection(("127.0.0.1", port), 10) as connection:
            connection.sendall(head.encode() + body)
            return connection.recv(64).split(b" ")[1:2] == [b"200"]
    except OSError:
        return False


def nginx_program() -> str:
    """The nginx program; a user's PATH often leaves /usr/sbin out."""
    found = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if found is None:
        raise SetupError("nginx is not installed: apt-get update && apt-get install -y nginx-light")
    return found


def nginx_config(*, port: int, upstream: Upstream, access_log: Path | None, connections: int) -> str:
    """nginx as an operator sets it up for LLM traffic: unbuffered, keep-alive both ways, its usual log."""
    tls = ""
    if upstream.authority:
        tls = f"""\
      proxy_ssl_name localhost;
      proxy_ssl_server_name on;
      proxy_ssl_verify on;
      proxy_ssl_trusted_certificate {upstream.authority};
      proxy_ssl_protocols TLSv1.2 TLSv1.3;
"""
    scheme = "https" if upstream.authority else "http"
    locations = "".join(
        f"""\
    location {shape.prefix}/ {{
      proxy_pass {scheme}://provider/;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
      proxy_request_buffering off;
      proxy_read_timeout 600s;
{tls}    }}
"""
        for shape in SHAPES.values()
    )
    return f"""\
worker_processes 1;
daemon off;
pid nginx.pid;
error_log stderr crit;
events {{ worker_connections {connections}; }}
http {{
  access_log {access_log or "off"};
  client_max_body_size 100m;
  client_body_temp_path tmp-body; proxy_temp_path tmp-proxy;
  fastcgi_temp_path tmp-fastcgi; uwsgi_temp_path tmp-uwsgi; scgi_temp_path tmp-scgi;
  keepalive_requests 1000000000;
  upstream provider {{ server 127.0.0.1:{upstream.port}; keepalive 256; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
{locations}  }}
}}
"""


def nginx_command(folder: Path, config: str) -> list[str]:
    """Writes the configuration into its own folder and says how to start nginx on it."""
    folder.mkdir(exist_ok=True)
    (folder / "nginx.conf").write_text(config)
    return [nginx_program(), "-p", str(folder), "-c", "nginx.conf", "-e", "stderr"]


def nginx(*, port: int, upstream: Upstream, access_log: bool, connections: int) -> Proxy:
    log = BUILD / "nginx-access.log" if access_log else None
    config = nginx_config(port=port, upstream=upstream, access_log=log, connections=connections)
    return Proxy(
        name="nginx",
        port=port,
        command=nginx_command(BUILD / "nginx", config),
        log=log,
        log_mark=b"bench" if log else None,
    )


def llmproxy_config(*, upstream: Upstream, access_log: bool, state_dir: Path) -> dict[str, object]:
    """Every provider leads to the mock; all else is as it comes, so the defaults are what is measured."""
    config: dict[str, object] = {
        "providers": {
            name: {"enabled": True, "base_url": upstream.base_url} for name in ("openai", "anthropic", "gemini", "groq")
        },
        "log": {"level": "info", "format": "json", "access": access_log},
        "state_dir": str(state_dir),
    }
    if upstream.authority:
        config["upstream"] = {"ca_file": str(upstream.authority)}
    return config


def default_llmproxy_command() -> str:
    """twistd of the Python that runs this, as an installed llmproxy has it beside."""
    beside = Path(sys.executable).with_name("twistd")
    return f"{shlex.quote(str(beside))} -n --pidfile= llmproxy --port {{port}} --config {{config}}"


def llmproxy(*, port: int, upstream: Upstream, access_log: bool, command: str | None) -> Proxy:
    """`command` may hold {port} and {config}; without it, twistd of the Python that runs this."""
    path = BUILD / "llmproxy.yml"
    # JSON is YAML, and the standard library writes it.
    config = llmproxy_config(upstream=upstream, access_log=access_log, state_dir=BUILD / "llmproxy-state")
    path.write_text(json.dumps(config, indent=2) + "\n")
    words = shlex.split(command or default_llmproxy_command())
    words = [word.replace("{port}", str(port)).replace("{config}", str(path)) for word in words]
    return Proxy(
        name="llmproxy",
        port=port,
        command=words,
        # This checkout is what is measured, also where another llmproxy is installed.
        env={"PYTHONPATH": str(HERE.parent)},
        log=BUILD / "llmproxy.out" if access_log else None,
        log_mark=b'"access"' if access_log else None,
    )


def peer(text: str) -> Proxy:
    """A further proxy from `NAME=PORT,COMMAND`. Its own configuration leads it to the mock."""
    name, equals, rest = text.partition("=")
    port, comma, command = rest.partition(",")
    if not (name.isidentifier() and equals and comma and port.isdigit() and command.strip()):
        raise SetupError(f"--peer wants NAME=PORT,COMMAND (a name like haproxy or seed_go), not {text!r}.")
    return Proxy(name=name, port=int(port), command=shlex.split(command), cwd=Path.cwd())
