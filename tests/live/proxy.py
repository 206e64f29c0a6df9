"""The proxy: a program of its own, started as an operator starts it, on a free port, with a configuration of a test."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tests.live.upstream import HOST
from tests.live.wire import LIMIT_S, Wire, wait_until

ROOT: Final = Path(__file__).resolve().parents[2]
ANY_PORT: Final = f"tcp:0:interface={HOST}:backlog=1024"

PLAIN: Final = "LLMPROXY_TEST_PLAIN" in os.environ
"""Whether the proxy is tested on its plain path: see tests/live/plain.py."""
PROGRAM: Final = (sys.executable, "-m", *(("tests.live.plain",) if PLAIN else ("llmproxy",)), "run")

_KEPT_VARIABLES: Final = ("PATH", "HOME", "LANG", "PYTHONPATH", "VIRTUAL_ENV", "CI")


def environment(directory: Path, **more: str) -> dict[str, str]:
    """The variables of a proxy under test: none of the machine's that would change what it does."""
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    return {
        **kept,
        "LOG_FORMAT": "json",
        "TMPDIR": str(directory),
        "LLM_PROXY_IDENTITY_SECRET": "of the live tests",
        "LLM_PROXY_LEDGER": "off",
        "PYTHONDONTWRITEBYTECODE": "1",
        **more,
    }


class Proxy:
    """A running proxy.

    :ivar directory: its TMPDIR, which should stay empty.
    :ivar address: where it listens, if that is a TCP port.
    :ivar banner: what it said when it began to listen.
    :ivar settings: its configuration file.
    """

    banner = ""
    settings: Path

    def __init__(
        self, process: subprocess.Popen[bytes], log: Path, directory: Path, tls: ssl.SSLContext | None
    ) -> None:
        self._process = process
        self._log = log
        self._tls = tls
        self.directory = directory
        self.address: tuple[str, int] = (HOST, 0)

    def wait_until_listening(self) -> None:
        """Return once the banner is out; it names the port."""

        def listens() -> bool:
            assert self._process.poll() is None, f"the proxy ended: {self._log.read_text()}"
            return any("listening on" in str(each.get("message", "")) for each in self.events())

        wait_until(listens)
        if PLAIN:
            assert any("PollReactor" in str(each.get("message", "")) for each in self.events())
        self.banner = next(each["message"] for each in self.events() if "listening on" in str(each.get("message", "")))
        host, _, port = self.banner.partition("listening on ")[2].partition(";")[0].rpartition(":")
        if port.isdigit():
            self.address = (host if host[:1] != "[" else HOST, int(port))

    def connect(self, *, receive_buffer_bytes: int = 0) -> Wire:
        """A new connection of a caller."""
        caller = socket.socket()
        if receive_buffer_bytes:
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        caller.settimeout(LIMIT_S)
        caller.connect(self.address)
        if self._tls is not None:
            caller = self._tls.wrap_socket(caller, server_hostname="localhost")
        return Wire(caller)

    @property
    def pid(self) -> int:
        """The number of its process."""
        return self._process.pid

    @property
    def host(self) -> bytes:
        """What a caller writes into Host."""
        return b"%b:%d" % (self.address[0].encode(), self.address[1])

    # -- what can be seen from outside ---------------------------------------------------------------------------

    def events(self) -> list[dict[str, Any]]:
        """The log so far."""
        lines = self._log.read_bytes().split(b"\n")[:-1]
        return [json.loads(line) for line in lines]

    def access_event(self, **wanted: object) -> dict[str, Any]:
        """The access event of one request, once it is written: the last whose fields are ``wanted``."""
        found: list[dict[str, Any]] = []

        def is_there() -> bool:
            found.extend(
                each
                for each in self.events()
                if each.get("event") == "access" and all(each[name] == value for name, value in wanted.items())
            )
            return bool(found)

        wait_until(is_there, 3.0)
        return found[-1]

    def resident_bytes(self) -> int:
        """How much memory the process holds."""
        return self._status_bytes("VmRSS:")

    @contextlib.contextmanager
    def memory_bounded(self, more_bytes: int) -> Iterator[None]:
        """In this block, the process never holds ``more_bytes`` more than before it (proc(5): clear_refs, VmHWM)."""
        Path(f"/proc/{self._process.pid}/clear_refs").write_text("5")
        before = self._status_bytes("VmHWM:")
        yield
        grown = self._status_bytes("VmHWM:") - before
        print(f"memory: {before >> 20} MiB before, {grown >> 10} KiB more at most")  # noqa: T201 - pytest -s shows it
        assert grown < more_bytes

    def _status_bytes(self, name: str) -> int:
        for line in Path(f"/proc/{self._process.pid}/status").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
        raise AssertionError(f"no {name} for the process")

    def files_on_disk(self) -> list[str]:
        """Files that the process has open or has made in its TMPDIR, besides its log."""
        opened = []
        for each in Path(f"/proc/{self._process.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                opened.append(str(each.readlink()))
        own = (str(self._log), "/dev/")
        kept = [path for path in opened if path.startswith("/") and not path.startswith(own)]
        return kept + [str(path) for path in self.directory.iterdir()]

    def says(self, words: str) -> dict[str, Any]:
        """The line of the log that has these words, once it is there: the last one of them."""
        found: list[dict[str, Any]] = []

        def is_there() -> bool:
            found.extend(each for each in self.events() if words in str(each.get("message", "")))
            return bool(found)

        wait_until(is_there)
        return found[-1]

    # -- what an operator does -----------------------------------------------------------------------------------

    def configure(self, config: Mapping[str, Any]) -> None:
        """Write another configuration; nobody is told."""
        self.settings.write_text(json.dumps({"state_dir": str(self.settings.parent), **config}))  # JSON is YAML

    def signal(self, number: int) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    def is_running(self) -> bool:
        """Whether the process lives."""
        return self._process.poll() is None

    def exit_code(self, limit_s: float = LIMIT_S) -> int:
        """Wait for the end of the process."""
        return self._process.wait(limit_s)

    def stop(self) -> int:
        """Have the process end, and wait for it; returns its exit code. What is still under way is cut soon."""
        self.signal(signal.SIGTERM)
        try:
            return self.exit_code(0.5)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGTERM)
            return self.exit_code()
        finally:
            self._process.kill()


@contextlib.contextmanager
def running_proxy(
    config: Mapping[str, Any],
    *,
    port: str = ANY_PORT,
    tls: ssl.SSLContext | None = None,
    complains: bool = False,
    command: Sequence[str] = PROGRAM,
    **variables: str,
) -> Iterator[Proxy]:
    """A proxy with this configuration, for as long as the block runs.

    :param port: the option --port; empty for none.
    :param tls: what its callers trust, if it listens on a TLS endpoint.
    :param complains: errors are expected in its log; otherwise there must be none.
    :param command: starts it; options go behind.
    :param variables: environment variables.
    """
    with tempfile.TemporaryDirectory(prefix="llmproxy-live-") as home:
        directory = Path(home, "tmp")
        directory.mkdir()
        settings = Path(home, "config.yml")
        settings.write_text(json.dumps({"state_dir": home, **config}))
        log = Path(home, "log")
        with log.open("wb") as output:
            process = subprocess.Popen(
                (*command, "--config", settings, *(("--port", port) if port else ())),
                cwd=ROOT,
                env=environment(directory, **variables),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        proxy = Proxy(process, log, directory, tls)
        proxy.settings = settings
        try:
            proxy.wait_until_listening()
            yield proxy
            if not complains:
                proxy_is_well(proxy)
            assert proxy.stop() == 0
        finally:
            process.kill()
            process.wait()


def proxy_is_well(proxy: Proxy) -> None:
    """Nothing in the log is a fault of the proxy's own."""
    time.sleep(0.3)  # the log is written in batches
    faults = [each for each in proxy.events() if each.get("level") in ("error", "critical")]
    assert faults == []


def all_providers(url: str) -> dict[str, dict[str, str]]:
    """The built-in providers, all at ``url``."""
    return {name: {"base_url": url} for name in ("openai", "anthropic", "gemini", "groq")}
