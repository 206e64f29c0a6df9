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
from pathlib import Path
from typing import Any

from twisted.application.service import Application
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import ILogObserver
from twisted.trial.unittest import SynchronousTestCase

from llmproxy import tap
from llmproxy.assembly import StartError
from llmproxy.config.model import Config, Identity, Upstream
from llmproxy.observe.access import AccessRecord
from llmproxy.observe.log import LogObserver
from tests.web.proxy_in_memory import get, head_and_body
from tests.wire.far_end import FarEnd


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

    def test_log_file(self) -> None:
        """`twistd --logfile` and a daemon's log are written as JSON lines, readable by the owner and the group."""
        path = str(self.folder / "proxy.log")
        options = self.options()
        options.log_path = path
        application = Application("test")
        tap.makeService(options).setServiceParent(application)
        observer = application.getComponent(ILogObserver)
        observer({"access": {"event": "access", "request_id": "r1"}, "log_time": 1.0})
        observer.flush()
        self.assertEqual(json.loads(Path(path).read_text())["request_id"], "r1")
        self.assertEqual(stat.S_IMODE(os.stat(path).st_mode) & 0o027, 0)


class Assembled(_Case):
    """The proxy that it builds."""

    def assemble(self, config: Config, **environ: str) -> Any:
        """Build it."""
        self.records: list[AccessRecord] = []
        return tap.assemble(config, environ, self.records.append)

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
