"""A new configuration while requests are running, as an operator who edits a file sees it."""

from __future__ import annotations

import json
import os
import shutil
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
from tests.live.conversation import END, OK, STREAM, STREAM_HEAD, Stage, get
from tests.live.programs import variables
from tests.live.proxy import ROOT, all_providers, running_proxy
from tests.live.upstream import HOST, Upstream
from tests.live.wire import Wire

RELOADED = "the configuration is reloaded"


class Reloading(Stage):
    """A stage whose proxy gets new configurations."""

    count = 0

    def reload(self, **sections: Any) -> None:
        """Write a configuration, and wait until the proxy has taken it."""
        self.proxy.configure({"providers": all_providers(self.upstream.url), **sections})
        self.again()

    def again(self) -> None:
        """Have it read again, and wait until that is done."""
        self.proxy.signal(signal.SIGHUP)
        self.count += 1
        for _ in range(300):
            if sum(RELOADED in str(each.get("message")) for each in self.proxy.events()) == self.count:
                return
            time.sleep(0.01)
        raise AssertionError(self.proxy.events()[-3:])

    def says(self) -> list[str]:
        """Every line of the log so far."""
        return [str(each.get("message")) for each in self.proxy.events()]


@pytest.fixture
def reloading() -> Iterator[Reloading]:
    """A proxy of its own for each test."""
    upstream = Upstream()
    with running_proxy({"providers": all_providers(upstream.url)}, complains=True) as proxy:
        stage = Reloading(proxy, upstream)
        yield stage
        stage.clear()
    upstream.close()


def test_a_running_stream_keeps_its_provider(reloading: Reloading) -> None:
    """A stream that runs while its provider gets another address, or is removed, ends where it began; new requests go
    to the new address at once."""
    other = Upstream()
    caller, upstream = reloading.sends(STREAM)
    upstream.read_message()
    upstream.send(STREAM_HEAD)
    upstream.send_chunk(b"one")
    caller.read_head()
    assert caller.read_chunk() == b"one"

    reloading.reload(providers={"openai": {"base_url": other.url}})
    asking = reloading.caller()
    asking.send(get())
    elsewhere = other.receive()
    elsewhere.read_message()
    elsewhere.send(OK)
    assert asking.read_message().body == b"ok"

    reloading.reload(providers={"openai": {"enabled": False}})
    gone = reloading.caller()
    gone.send(get())
    assert gone.read_message().status == 404
    upstream.send_chunk(b"two")
    upstream.send(END)
    assert caller.read_chunk() == b"two"
    assert caller.read_chunk() == b""
    assert upstream.is_closed_within(1.0)  # nobody will use it again
    other.close()


def test_what_did_not_change_keeps_its_connections(reloading: Reloading) -> None:
    """A change elsewhere does not cost a provider its kept connections, and callers keep theirs."""
    caller, upstream = reloading.sends(get())
    upstream.read_message()
    upstream.send(OK)
    caller.read_message()
    reloading.reload(fidelity={"via": True}, cors={"enabled": False})
    caller.send(get())
    same = reloading.upstream.receive()
    assert same is upstream
    assert same.read_message().value("via") is not None
    same.send(OK)
    answer = caller.read_message()
    assert answer.body == b"ok"
    assert answer.value("access-control-allow-origin") is None


def test_a_changed_limit_holds_at_once(reloading: Reloading) -> None:
    """A provider whose settings changed is reached on new connections; the ones that were kept are closed."""
    caller, upstream = reloading.sends(get())
    upstream.read_message()
    upstream.send(OK)
    caller.read_message()
    reloading.reload(upstream={"idle_timeout_s": 30})
    assert upstream.is_closed_within(1.0)
    assert reloading.is_served()
    reloading.reload(server={"max_body_bytes": 10})
    caller.send(STREAM)
    assert caller.read_message().status == 413


def test_the_difference_is_in_the_log(reloading: Reloading) -> None:
    """The log says what changed, from what to what, and no secret; what needs a restart is named, and stays."""
    reloading.reload(
        providers={
            "openai": {"enabled": False},
            "mine": {"kind": "openai-compatible", "base_url": "http://127.0.0.1:1"},
        },
        upstream={"pool_size": 7},
        server={"port": 9999},
        identity={"secret": "a-secret-that-nobody-may-see-0000"},
        log={"level": "warn"},
    )
    reloading.proxy.configure({})
    said = "\n".join(reloading.says())
    for line in (
        "reloaded: upstream.pool_size: 256 -> 7",
        "reloaded: the provider mine is added",
        "reloaded: the provider openai is removed",
        "needs a restart: server.port: null -> 9999",
    ):
        assert line in said
    assert "nobody-may-see" not in said
    assert reloading.proxy.is_running()


def test_the_level_of_the_log(reloading: Reloading) -> None:
    """The log follows its own settings: level, format, and whether requests are in it."""
    reloading.reload(log={"level": "warn"})
    before = len(reloading.says())
    assert reloading.is_served()
    time.sleep(0.5)  # the log is written in batches
    assert len(reloading.says()) == before


BAD = {
    "no such key": ('{"serverr": {}}', "config.yml:1: serverr: unknown key"),
    "a wrong value": ('{"upstream":\n {"pool_size": "many"}}', "config.yml:2: upstream.pool_size: must be"),
    "no YAML": ("server: [", "config.yml:"),
    "a CA file that is none": ('{"upstream": {"ca_file": "/proc/version"}}', "ca_file /proc/version cannot be used"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_changes_nothing(reloading: Reloading, name: str) -> None:
    """A mistake in the file is told with its place, and the proxy goes on as it was, also for what was right in it."""
    text, words = BAD[name]
    reloading.proxy.settings.write_text(text)
    reloading.proxy.signal(signal.SIGHUP)
    line = reloading.proxy.says("not reloaded: ")
    assert words in line["message"]
    assert line["level"] == "error"
    assert reloading.is_served()
    assert RELOADED not in "\n".join(reloading.says())
    reloading.proxy.settings.unlink()
    reloading.proxy.signal(signal.SIGHUP)
    reloading.proxy.says("cannot be read")
    assert reloading.is_served()


def test_many_reloads_leave_nothing_behind(reloading: Reloading) -> None:
    """Many reloads that change every provider cost no memory and no descriptor, and no request fails meanwhile."""
    files = Path(f"/proc/{reloading.proxy.pid}/fd")

    def some(times: int) -> None:
        for number in range(times):
            reloading.reload(upstream={"pool_size": 10 + number % 2}, log={"level": "info"})
            assert reloading.is_served()
            reloading.clear()

    some(15)
    before, opened = reloading.proxy.resident_bytes(), len(list(files.iterdir()))
    some(40)
    assert len(list(files.iterdir())) <= opened + 2
    assert reloading.proxy.resident_bytes() - before < 2 << 20


def test_a_reload_does_not_hold_up_requests(reloading: Reloading, authority: Authority) -> None:
    """While a reload also reads another CA file, which takes longest, nobody waits for more than a twentieth second."""
    caller = reloading.caller()
    ca = reloading.proxy.settings.parent / "ca.pem"
    shutil.copy(authority.ca_file, ca)
    slowest = 0.0
    for number in range(6):
        providers = {"openai": {"base_url": "https://127.0.0.1:1"}}
        reloading.proxy.configure({"providers": providers, "upstream": {"ca_file": str(ca), "pool_size": number}})
        os.utime(ca, (number, number))
        reloading.proxy.signal(signal.SIGHUP)
        until = time.monotonic() + 0.15
        while time.monotonic() < until:
            began = time.monotonic()
            caller.send(get(b"/health/live"))
            caller.read_message()
            slowest = max(slowest, time.monotonic() - began)
    assert sum(RELOADED in line for line in reloading.says()) == 6
    print(f"slowest answer: {slowest * 1000:.0f} ms")  # noqa: T201 - pytest -s shows it
    assert slowest < 0.15  # 50 ms on an idle machine; the tests' machine may be busy


# -- llmproxy reload ---------------------------------------------------------------------------------------------------


def _command(directory: Path, *arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        (sys.executable, "-m", "llmproxy", "reload", *arguments),
        cwd=directory,
        env=variables(directory),
        capture_output=True,
        text=True,
        timeout=10,
    )
    return done.returncode, done.stdout + done.stderr


def test_the_command(reloading: Reloading, tmp_path: Path) -> None:
    """`llmproxy reload` looks at the configuration first; the proxy gets a good one, and hears nothing of a bad one."""
    settings = str(reloading.proxy.settings)
    Path(tmp_path, "twistd.pid").write_text(f"{reloading.proxy.pid}\n")
    reloading.proxy.configure({"upstream": {"pool_size": "many"}})
    code, said = _command(tmp_path, "--config", settings)
    assert code == 1
    assert "upstream.pool_size" in said
    assert not any("reloaded" in line for line in reloading.says())

    reloading.proxy.configure({"upstream": {"pool_size": 8}})
    for how in ((), ("--pidfile", "twistd.pid"), ("--pid", str(reloading.proxy.pid))):
        reloading.count += 1
        code, said = _command(tmp_path, *how, "--config", settings)
        assert code == 0, said
        assert f"The process {reloading.proxy.pid} was asked to reload" in said
    assert reloading.proxy.says("reloaded: upstream.pool_size: 256 -> 8")


def test_the_command_spares_others(reloading: Reloading, tmp_path: Path) -> None:
    """A pid file that is missing, broken or old is one line, and no other program gets a signal that would end it."""
    settings = str(reloading.proxy.settings)
    reloading.proxy.configure({})
    assert _command(tmp_path, "--config", settings) == (
        1,
        "llmproxy reload: No such file or directory: pid file twistd.pid\n",
    )
    Path(tmp_path, "twistd.pid").write_text("-1")
    assert _command(tmp_path, "--config", settings)[0] == 1
    with subprocess.Popen(("sleep", "60")) as other:
        Path(tmp_path, "twistd.pid").write_text(str(other.pid))
        code, said = _command(tmp_path, "--config", settings)
        assert (code, "it was left alone" in said) == (1, True)
        assert other.poll() is None
        other.kill()
    code, said = _command(tmp_path, "--config", settings)
    assert (code, "No such process" in said) == (1, True)


# -- the certificate ---------------------------------------------------------------------------------------------------


def _serial(address: tuple[str, int], authority: Authority) -> bytes:
    """What a new caller is shown."""
    with (
        socket.create_connection(address, 5) as tcp,
        authority.client_context().wrap_socket(tcp, server_hostname="localhost") as tls,
    ):
        wire = Wire(tls)
        wire.send(get(b"/health/live"))
        assert wire.read_message().status == 200
        certificate = tls.getpeercert(binary_form=True)
        assert certificate is not None
        return certificate


@pytest.mark.parametrize("kind", ["ssl", "tls"])
def test_a_new_certificate(tmp_path: Path, authority: Authority, kind: str) -> None:
    """A renewed certificate is shown to new callers after SIGHUP; running connections go on. One that is broken is
    told, and the old one stays."""
    folder = tmp_path / "certificates"
    folder.mkdir()
    both = folder / "localhost.pem"

    def install(name: str, key_of: str = "") -> None:
        certificate, key = authority.certificate(name, "localhost")
        if key_of:
            key = authority.certificate(key_of, "localhost")[1]
        both.write_bytes(key.read_bytes() + certificate.read_bytes())

    install("first")
    port = f"ssl:0:interface={HOST}:privateKey={both}" if kind == "ssl" else f"tls:{folder}:0:interface={HOST}"
    with running_proxy({}, port=port, tls=authority.client_context(), complains=True) as proxy:
        running = proxy.connect()
        first = _serial(proxy.address, authority)
        install("second")
        assert _serial(proxy.address, authority) == first
        proxy.signal(signal.SIGHUP)
        proxy.says(RELOADED)
        second = _serial(proxy.address, authority)
        assert second != first
        running.send(get(b"/health/live"))
        assert running.read_message().status == 200

        for spoil in (lambda: install("third", key_of="fourth"), lambda: both.write_text("nothing"), both.unlink):
            spoil()
            told = sum("certificate stays" in str(each.get("message")) for each in proxy.events())
            proxy.signal(signal.SIGHUP)
            for _ in range(300):
                lines = [each for each in proxy.events() if "certificate stays" in str(each.get("message"))]
                if len(lines) > told:
                    break
                time.sleep(0.01)
            assert len(lines) == told + 1
            assert lines[-1]["level"] == "error"
            assert "PRIVATE" not in json.dumps(lines[-1])
            assert _serial(proxy.address, authority) == second
        install("fifth")
        proxy.signal(signal.SIGHUP)
        for _ in range(300):
            if _serial(proxy.address, authority) != second:
                break
            time.sleep(0.01)
        assert _serial(proxy.address, authority) not in (first, second)
        running.close()


@pytest.mark.parametrize("kind", ["ssl", "tls", "ssl with a method of its own"])
def test_old_tls(tmp_path: Path, authority: Authority, kind: str) -> None:
    """A caller that speaks nothing newer than TLS 1.1 is refused in the handshake, whatever the endpoint says."""
    certificate, key = authority.certificate("old", "localhost")
    folder = tmp_path / "certificates"
    folder.mkdir()
    Path(folder, "localhost.pem").write_bytes(key.read_bytes() + certificate.read_bytes())
    port = f"ssl:0:interface={HOST}:privateKey={key}:certKey={certificate}"
    port = f"tls:{folder}:0:interface={HOST}" if kind == "tls" else port
    port += ":sslmethod=TLS_METHOD" if kind.endswith("own") else ""
    with running_proxy({}, port=port, tls=authority.client_context()) as proxy:
        for version, works in ((ssl.TLSVersion.TLSv1_1, False), (ssl.TLSVersion.TLSv1_2, True)):
            context = authority.client_context()
            context.set_ciphers("ALL:@SECLEVEL=0")
            context.minimum_version = context.maximum_version = version
            with socket.create_connection(proxy.address, 5) as tcp:
                try:
                    context.wrap_socket(tcp, server_hostname="localhost").close()
                    assert works
                except (ssl.SSLError, ConnectionError):
                    assert not works


def test_the_example_is_where_it_should_be() -> None:
    """The unit reloads with the signal that is tested here."""
    assert "ExecReload=/bin/kill -HUP $MAINPID" in Path(ROOT, "examples", "llmproxy.service").read_text()
