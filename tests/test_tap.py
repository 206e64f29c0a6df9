"""Where it is put together: options, the service, and the proxy that it assembles."""

from __future__ import annotations

import io
import json
import os
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from twisted.application.service import Application
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from llmproxy import tap
from llmproxy.assembly import StartError
from llmproxy.config.model import Config, Identity, Ledger, Upstream
from llmproxy.observe.access import ACCESS_FIELDS, AccessRecord
from llmproxy.observe.log import LogObserver
from tests.web.proxy_in_memory import get, head_and_body
from tests.wire.far_end import FarEnd


def record(**fields: Any) -> AccessRecord:
    """An access record with these fields."""
    return AccessRecord(**{**dict.fromkeys(ACCESS_FIELDS), "event": "access", **fields})


class _Case(SynchronousTestCase):
    def setUp(self) -> None:
        """An empty folder and environment, and a reactor in memory."""
        self.folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)
        self.environ = {"HOME": str(self.folder)}
        self.patch(os, "environ", self.environ)
        self.patch(os, "getcwd", lambda: str(self.folder))
        self.reactor = MemoryReactorClock()
        self.patch(tap, "reactor", self.reactor)
        self.stderr = io.StringIO()
        self.patch(sys, "__stderr__", self.stderr)

    def options(self, *arguments: str) -> tap.Options:
        """The options of `twistd llmproxy` with these arguments."""
        options = tap.Options()
        options.parseOptions(list(arguments))
        return options

    def refused(self, *arguments: str) -> str:
        """What is said on standard error; the process ends with status 1."""
        left = self.assertRaises(SystemExit, self.options, *arguments)
        self.assertEqual(left.code, 1)
        said = self.stderr.getvalue()
        self.assertNotIn("Traceback", said)
        return said

    def write(self, text: str, name: str = "llmproxy.yml") -> str:
        """A configuration file."""
        path = self.folder / name
        path.write_text(text)
        return str(path)


class Ports(_Case):
    """Where it listens."""

    def test_order(self) -> None:
        """The option, then PORT, then the file, then 9002."""
        file = self.write("server: {port: 7003}\n")
        self.assertEqual(self.options().listen, 9002)
        self.assertEqual(self.options("--config", file).listen, 7003)
        self.environ["PORT"] = "7002"
        self.assertEqual(self.options("--config", file).listen, 7002)
        self.assertEqual(self.options("--config", file, "--port", "7001").listen, 7001)
        self.environ["PORT"] = ""
        self.assertEqual(self.options("--config", file).listen, 7003)

    def test_endpoints(self) -> None:
        """An endpoint string is taken as it is."""
        for text in ("tcp:9002:interface=127.0.0.1", "unix:/run/llmproxy.sock"):
            self.assertEqual(self.options("--port", text).listen, text)

    def test_mistakes(self) -> None:
        """A port that is none is one line."""
        for port in ("70000", "-1", "nonsense:x", "tcp:x", "tcp:1:nosuch=2"):
            said = self.refused("--port", port)
            self.assertIn("port", said)
            self.assertEqual(len(said.splitlines()), 1, said)
            self.stderr.truncate(0)
            self.stderr.seek(0)


class Mistakes(_Case):
    """What is wrong at the start is said in lines, not in a traceback."""

    def test_configuration(self) -> None:
        """A bad file names file, line and key."""
        said = self.refused("--config", self.write("serverr: {}\n"))
        self.assertIn("llmproxy.yml:1", said)
        self.assertIn("server", said)

    def test_option(self) -> None:
        """So does an option that is not known."""
        self.assertEqual(len(self.refused("--nosuch").splitlines()), 1)

    def test_proxy(self) -> None:
        """HTTPS_PROXY that cannot be used stops the start, without its password in the line."""
        self.environ["HTTPS_PROXY"] = "socks5://u:secret@p:1"
        self.assertNotIn("secret", self.refused())


class Services(_Case):
    """What twistd gets."""

    def test_clock(self) -> None:
        """The reactor's clock only goes forward from here on, whatever the wall clock does."""
        tap.makeService(self.options())
        self.assertIs(self.reactor.seconds, time.monotonic)

    def test_loads_again(self) -> None:
        """The configuration can be loaded again as at the start, also when variables and folder are others by then."""
        self.environ["LOG_LEVEL"] = "error"
        options = self.options("--config", os.path.basename(self.write("upstream: {pool_size: 5}")))
        self.environ.clear()
        self.patch(os, "getcwd", lambda: "/")
        self.write("upstream: {pool_size: 6}")
        config = options.load().config
        self.assertEqual((config.upstream.pool_size, config.log.level), (6, "error"))
        self.assertEqual(options.loaded.config.upstream.pool_size, 5)

    def test_make_service(self) -> None:
        """Making the service opens no file, no thread and no socket; the log observer comes with it."""
        service = tap.makeService(self.options())
        self.assertEqual(self.reactor.tcpServers, [])
        self.assertEqual(list(self.folder.iterdir()), [])
        application = Application("test")
        service.setServiceParent(application)
        self.assertIsInstance(application.getComponent(ILogObserver), LogObserver)

    def test_own_log(self) -> None:
        """If twistd was told to log elsewhere, that stands."""
        options = self.options()
        options.own_log = True
        application = Application("test")
        tap.makeService(options).setServiceParent(application)
        self.assertNotIsInstance(application.getComponent(ILogObserver, None), LogObserver)

    def test_masked_in_another_log(self) -> None:
        """What an access event tells to a log that is not ours holds no key either."""
        events: list[LogEvent] = []
        self.patch(globalLogPublisher, "_observers", [events.append])
        options = self.options()
        options.own_log = True
        write_access: Callable[[AccessRecord], None] | None = None

        def assemble(config: Config, environ: object, given: Callable[[AccessRecord], None]) -> None:
            nonlocal write_access
            write_access = given
            raise StartError("that is all")

        self.patch(tap, "assemble", assemble)
        self.assertRaises(SystemExit, tap.makeService(options).startService)
        assert write_access is not None
        write_access(record(user="alice", model="sk-proj-0123456789", path="/x\ud800?key=abcdef", status=200))
        (access,) = (each["access"] for each in events if "access" in each)
        self.assertEqual(
            (access["user"], access["model"], access["path"], access["status"], access["client"]),
            ("alice", "sk-***", "/x\ud800?key=***", 200, None),
        )


class LogFiles(_Case):
    """`twistd --logfile`, and a daemon's log."""

    def of_twistd(self, **more: object) -> tap.Options:
        """The options when twistd itself has these."""
        options = tap.Options()
        parent: Any = {"logfile": str(self.folder / "proxy.log"), "nodaemon": True, **more}
        options.parent = parent
        options.parseOptions([])
        return options

    def observer(self, options: tap.Options) -> Any:
        """The observer that the application gets."""
        application = Application("test")
        tap.makeService(options).setServiceParent(application)
        return application.getComponent(ILogObserver)

    def mode(self) -> int:
        """Who may do what with the log."""
        return stat.S_IMODE((self.folder / "proxy.log").stat().st_mode)

    def test_written(self) -> None:
        """It is written as JSON lines, readable by the owner and the group."""
        observer = self.observer(self.of_twistd())
        observer.access(record(request_id="r1"))
        observer.flush()
        self.assertEqual(json.loads((self.folder / "proxy.log").read_text())["request_id"], "r1")
        self.assertEqual(self.mode() & 0o027, 0)

    def test_opened_early(self) -> None:
        """It is there before twistd gives its privileges away, and belongs to the user that the proxy will be."""
        given: list[tuple[int, int]] = []
        self.patch(os, "fchown", lambda _, *owner: given.append(owner))
        for more, owner in (({}, (-1, -1)), ({"uid": 65534}, (65534, -1)), ({"uid": 0, "gid": 65533}, (0, 65533))):
            self.observer(self.of_twistd(**more))
            self.assertEqual(given.pop(), owner)
            (self.folder / "proxy.log").unlink()

    def test_mask(self) -> None:
        """It has the mode that it would have got under the mask that twistd is about to set."""
        self.addCleanup(os.umask, os.umask(0o022))
        for more, mode in (({}, 0o640), ({"nodaemon": False}, 0o600), ({"umask": 0o077}, 0o600), ({"umask": 0}, 0o640)):
            self.observer(self.of_twistd(**more))
            self.assertEqual(self.mode(), mode)
            (self.folder / "proxy.log").unlink()

    def test_another_log(self) -> None:
        """With a log of somebody's own no file is made."""
        self.observer(self.of_twistd(syslog=True))
        self.assertEqual(list(self.folder.iterdir()), [])

    def test_cannot_be_opened(self) -> None:
        """A log that cannot be opened stops the start with one line, also that of a daemon."""
        path = str(self.folder / "nowhere" / "proxy.log")
        for nodaemon in (True, False):
            options = self.of_twistd(logfile=path, nodaemon=nodaemon)
            left = self.assertRaises(SystemExit, self.observer, options)
            self.assertEqual(left.code, 1)
            said = self.stderr.getvalue()
            self.assertEqual(said, f"llmproxy: the log file {path} cannot be opened: No such file or directory\n")
            self.stderr.truncate(0)
            self.stderr.seek(0)

    def test_cannot_be_opened_anew(self) -> None:
        """When the log was renamed and cannot be made anew, what is renamed is written on, and says so."""
        folder = self.folder / "logs"
        folder.mkdir()
        path = str(folder / "proxy.log")
        observer = self.observer(self.of_twistd(logfile=path))
        self.patch(globalLogPublisher, "_observers", [observer])
        folder.rename(self.folder / "old")
        for number in "12":
            observer.access(record(request_id=number))
            observer.flush()
            self.reactor.advance(0)
        observer.flush()
        events = [json.loads(line) for line in (self.folder / "old" / "proxy.log").read_text().splitlines()]
        self.assertEqual([each["request_id"] for each in events if each["event"] == "access"], ["1", "2"])
        (warning,) = (each for each in events if each["event"] == "log")
        self.assertEqual(warning["level"], "warn")
        self.assertIn(f"{path} cannot be opened: No such file or directory", warning["message"])


class StandardOutput(_Case):
    """The log of a proxy in the foreground."""

    def test_a_reader_that_goes_in_mid_batch(self) -> None:
        """What was taken before a write failed is known to be out: it is not written or counted as lost again."""
        reading, writing = os.pipe()
        self.addCleanup(os.close, reading)
        self.addCleanup(os.close, writing)
        write, room = os.write, [True, False]

        def fails_then(descriptor: int, data: bytes) -> int:
            if not room.pop(0):
                raise OSError(5, "gone")
            return write(descriptor, data)

        self.patch(os, "write", fails_then)
        self.assertEqual(tap._to_descriptor(writing)(b"x" * 10_000), 4096)
        room.append(False)
        self.assertRaises(OSError, tap._to_descriptor(writing), b"x")


class Assembled(_Case):
    """The proxy that it builds."""

    def assemble(self, config: Config, **environ: str) -> Any:
        """Build it."""
        self.records: list[AccessRecord] = []
        return tap.assemble(replace(config, ledger=Ledger(backend="off")), environ, self.records.append)

    def test_serves(self) -> None:
        """It is a proxy: pages, routes, one origin for each provider, names resolved through the cache."""
        before = self.reactor.nameResolver
        assembly = self.assemble(Config(identity=Identity(secret="s" * 32)))
        self.assertIsNot(self.reactor.nameResolver, before)
        self.assertEqual(len(assembly.origins), 4)
        caller = FarEnd(self.reactor, assembly.site.buildProtocol(None)).connect()
        caller.says(get("/health/live"))
        self.assertTrue(caller.heard().endswith(b'{"status":"live"}'))
        caller.says(get("/nowhere"))
        self.assertTrue(head_and_body(caller.heard())[0].startswith(b"HTTP/1.1 404 "))
        self.assertEqual([str(each.end_reason) for each in self.records], ["ok", "bad_request"])

    def test_connects(self) -> None:
        """A request opens a connection to the provider's own port."""
        from llmproxy.providers import of_kind

        local = of_kind("openai-compatible", name="local", base_url="http://192.0.2.9:8080/v1")
        assembly = self.assemble(Config(providers={"local": local}, identity=Identity(secret="s" * 32)))
        caller = FarEnd(self.reactor, assembly.site.buildProtocol(None)).connect()
        caller.says(get("/local/models"))
        self.assertEqual([client[1] for client in self.reactor.tcpClients], [8080])
        assembly.site.stop()
        self.reactor.advance(0)

    def test_through_a_proxy(self) -> None:
        """With HTTPS_PROXY, providers over TLS are reached through it, those in NO_PROXY are not."""
        from llmproxy.providers import of_kind

        far = of_kind("openai-compatible", name="far", base_url="https://192.0.2.9")
        near = of_kind("openai-compatible", name="near", base_url="https://192.0.2.10")
        assembly = self.assemble(
            Config(providers={"far": far, "near": near}, identity=Identity(secret="s" * 32)),
            HTTPS_PROXY="http://192.0.2.99:3128",
            NO_PROXY="192.0.2.10",
        )
        for path in ("/far/v1/models", "/near/v1/models"):
            FarEnd(self.reactor, assembly.site.buildProtocol(None)).connect().says(get(path))
        self.assertEqual([client[1] for client in self.reactor.tcpClients], [3128, 443])
        assembly.site.stop()
        self.reactor.advance(0)

    def test_identity_secret(self) -> None:
        """Without a secret in the configuration one is made in the state directory, for its owner only, and kept."""
        config = Config(state_dir=str(self.folder / "state"))
        self.assemble(config)
        (path,) = (self.folder / "state").iterdir()
        self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o600)
        kept = path.read_bytes()
        self.assemble(config)
        self.assertEqual(path.read_bytes(), kept)

    def test_what_is_missing(self) -> None:
        """A private CA or a state directory that cannot be used is one line for the operator."""
        config = Config(upstream=Upstream(ca_file="/nowhere/ca.pem"), upstreams={}, identity=Identity(secret="s" * 32))
        self.assertIn("ca_file", str(self.assertRaises(StartError, self.assemble, config)))
        self.write("a file, not a folder", "state")
        config = Config(state_dir=str(self.folder / "state"))
        self.assertIn("LLM_PROXY_IDENTITY_SECRET", str(self.assertRaises(StartError, self.assemble, config)))
