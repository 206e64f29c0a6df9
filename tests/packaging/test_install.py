"""Whoever installs llmproxy, in whichever way, can say `twistd llmproxy` from any folder."""

import http.client
import json
import socket
import subprocess
from functools import cache
from pathlib import Path

import pytest
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.version import VERSION
from tests.packaging.workshop import PROGRAM_LIMIT_S, TWISTD, environment_variables, run, workshop

pytestmark = pytest.mark.slow


@cache
def from_wheel() -> Path:
    """The environment with the wheel in it, shared: making one takes seconds."""
    return workshop().environment("wheel", workshop().wheel)


class InstalledTests(SynchronousTestCase):
    """The three ways to install, each seen from a folder that is not the project's."""

    def assert_twistd_knows_llmproxy(self, environment: Path) -> None:
        """twistd lists the command, and the command can be loaded: it prints its own options."""
        twistd = (environment / "python", *TWISTD)
        self.assertRegex(run(*twistd, "--help", cwd=workshop().elsewhere), r"\n +llmproxy +\w")
        self.assertIn("--port", run(*twistd, "llmproxy", "--help", cwd=workshop().elsewhere))

    def version_of(self, environment: Path) -> str:
        return run(environment / "llmproxy", "--version", cwd=workshop().elsewhere)

    def test_from_the_sources(self) -> None:
        """After `pip install .`, twistd knows llmproxy, and llmproxy knows its commit."""
        environment = workshop().environment("plain", ".")
        self.assert_twistd_knows_llmproxy(environment)
        self.assertIn(workshop().commit, self.version_of(environment))

    def test_editable(self) -> None:
        """After `pip install -e .`, twistd knows llmproxy from any folder; git is asked for the commit."""
        environment = workshop().environment("editable", "--editable", ".")
        self.assert_twistd_knows_llmproxy(environment)
        self.assertIn(workshop().commit, self.version_of(environment))

    def test_from_a_wheel(self) -> None:
        """A wheel, made from the source archive far from any git, brings plugin, commit and build time."""
        self.assert_twistd_knows_llmproxy(from_wheel())
        told = self.version_of(from_wheel())
        self.assertIn(f"llmproxy {VERSION}", told)
        self.assertIn(f"{workshop().commit}\n", told)
        self.assertRegex(told, r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ")

    def test_a_wheel_needs_no_configuration_files(self) -> None:
        """Where there is no `configs` folder, an installed llmproxy starts on its built-in configuration."""
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        listen = f"tcp:{port}:interface=127.0.0.1"
        proxy = subprocess.Popen(
            (from_wheel() / "python", *TWISTD, "--nodaemon", "--pidfile=", "llmproxy", "--port", listen),
            cwd=workshop().elsewhere,
            env=environment_variables()
            | {"LLM_PROXY_IDENTITY_SECRET": "for this test alone", "LLM_PROXY_LEDGER": "off"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.addCleanup(proxy.communicate, timeout=PROGRAM_LIMIT_S)
        self.addCleanup(proxy.terminate)
        assert proxy.stdout is not None
        for line in proxy.stdout:  # ends without the banner when the proxy does
            if "listening" in line:
                break
        else:
            self.fail("twistd ended without a listening proxy")
        self.assertIn("configuration: built-in defaults", line)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PROGRAM_LIMIT_S)
        self.addCleanup(connection.close)
        connection.request("GET", "/health")
        health = json.loads(connection.getresponse().read())
        self.assertEqual(health["providers"]["openai"]["baseURL"], "https://api.openai.com")
