"""The parts of the benchmark's driver that need neither a process nor a clock."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory

from twisted.trial.unittest import SynchronousTestCase

from benchmarks.machine import SetupError
from benchmarks.proxies import Upstream, clean_environment, llmproxy_config, nginx_config, peer
from benchmarks.run import names_of_workloads
from benchmarks.workloads import ALL, SHAPES, ramp_s, small_body, steps, with_rate
from llmproxy.config import Config, load

PLAIN = Upstream(port=19400)
TLS = Upstream(port=19401, authority=Path("ca.pem"))


class Workloads(SynchronousTestCase):
    def test_all(self) -> None:
        """Everything is run unless something is chosen, and each step once."""
        keys = [step.key for step in steps(ALL, 1000)]
        self.assertEqual(keys, ["W1c1", "W6", "W1c16", "W1c64", "W1half", "W2", "W3b", "W3", "W4", "W5"])

    def test_only(self) -> None:
        """A choice runs what was chosen, after the warm-up on one connection."""
        self.assertEqual([step.key for step in steps(["W3"], 1000)], ["W1c1", "W3"])

    def test_idle_streams(self) -> None:
        """--idle-streams sets the number of streams that fall silent, and of no others."""
        chosen = {step.key: step.conns for step in steps(ALL, 5000)}
        self.assertEqual((chosen["W6"], chosen["W3"], chosen["W3b"]), (5000, 1000, 100))

    def test_unknown_workload(self) -> None:
        """A workload that does not exist is refused by name."""
        self.assertEqual(names_of_workloads("W1, W3b"), ("W1", "W3b"))
        error = self.assertRaises(argparse.ArgumentTypeError, names_of_workloads, "W1,W9")
        self.assertIn("no workload W9", str(error))

    def test_scale(self) -> None:
        """--scale stretches what is timed and nothing else; what is not asked for is not handed over."""
        step = next(step for step in steps(ALL, 1000) if step.key == "W1half")
        options = with_rate(step, 1234.5).load_options(2.0)
        self.assertEqual((options["duration"], options["warm"], options["rate"]), (6.0, 1.0, 1234.5))
        self.assertIsNone(options["stream"])

    def test_ramp(self) -> None:
        """Streams open at half the pace of requests: 2 s at least and 30 s at most for a thousand."""
        self.assertEqual(ramp_s(1000, 100_000), 2.0)
        self.assertEqual(ramp_s(1000, 200), 10.0)
        self.assertEqual(ramp_s(1000, 0), 30.0)
        self.assertEqual(ramp_s(5000, 100_000), 10.0)
        self.assertEqual(ramp_s(100, 100_000), 1.0)

    def test_targets(self) -> None:
        """A proxy is asked under the provider's segment, the mock without it."""
        shape = SHAPES["gemini"]
        self.assertTrue(shape.target(stream=True, direct=False).startswith("/gemini/v1beta/models/"))
        self.assertIn(":streamGenerateContent", shape.target(stream=True, direct=True))
        self.assertIn(":generateContent", shape.target(stream=False, direct=True))

    def test_small_body(self) -> None:
        """The knobs travel in the message text; "stream" is written as the mock looks for it."""
        body = small_body(knobs="n=200,i=0", stream=True)
        self.assertIn(b'"stream":true', body)
        self.assertIn("BENCH:n=200,i=0;", json.loads(body)["messages"][0]["content"])


class Proxies(SynchronousTestCase):
    def written(self, upstream: Upstream, *, access_log: bool) -> Config:
        """The configuration written for llmproxy, as llmproxy reads it."""
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        authority, path = Path(folder.name, "ca.pem"), Path(folder.name, "llmproxy.yml")
        authority.touch()
        if upstream.authority:
            upstream = Upstream(port=upstream.port, authority=authority)
        config = llmproxy_config(upstream=upstream, access_log=access_log, state_dir=Path(folder.name))
        path.write_text(json.dumps(config))
        return load(environ={}, cwd=folder.name, config_file=path.name)

    def test_llmproxy_config_is_accepted(self) -> None:
        """llmproxy takes the configuration that is written for it, and every provider leads to the mock."""
        config = self.written(PLAIN, access_log=True)
        self.assertEqual({provider.base_url for provider in config.providers.values()}, {"http://127.0.0.1:19400"})
        self.assertTrue(config.log.access)
        self.assertEqual(config.log.format, "json")

    def test_llmproxy_config_with_tls_and_no_log(self) -> None:
        """--tls gives it the https address and our authority; --no-access-log reaches it as well."""
        config = self.written(TLS, access_log=False)
        self.assertEqual({provider.base_url for provider in config.providers.values()}, {"https://localhost:19401"})
        self.assertTrue(str(config.upstream.ca_file).endswith("/ca.pem"))
        self.assertFalse(config.log.access)

    def test_nginx_config(self) -> None:
        """nginx logs where it is told, streams unbuffered, and checks the certificate with --tls."""
        plain = nginx_config(port=19410, upstream=PLAIN, access_log=Path("a.log"), connections=10)
        self.assertIn("access_log a.log;", plain)
        self.assertEqual(plain.count("proxy_buffering off;"), len(SHAPES))
        self.assertNotIn("ssl", plain)
        tls = nginx_config(port=19410, upstream=TLS, access_log=None, connections=10)
        self.assertIn("access_log off;", tls)
        self.assertEqual(tls.count("proxy_ssl_verify on;"), len(SHAPES))
        self.assertIn("proxy_pass https://provider/;", tls)

    def test_peer(self) -> None:
        """--peer is a name, a port and a command, which may hold commas and quotes."""
        haproxy = peer("haproxy=19411,haproxy -db -f 'a b,c.cfg'")
        self.assertEqual((haproxy.name, haproxy.port), ("haproxy", 19411))
        self.assertEqual(haproxy.command, ["haproxy", "-db", "-f", "a b,c.cfg"])

    def test_wrong_peer(self) -> None:
        """A --peer that is not all three is refused with the form it should have."""
        for wrong in ("haproxy", "haproxy=x,cmd", "haproxy=1", "haproxy=1,", "=1,cmd", "../x=1,cmd"):
            self.assertIn("NAME=PORT,COMMAND", str(self.assertRaises(SetupError, peer, wrong)))

    def test_environment(self) -> None:
        """What a developer's shell holds does not change the proxy that is measured."""
        environ = {
            "PATH": "/bin",
            "LOG_FORMAT": "text",
            "https_proxy": "http://x",
            "LLM_PROXY_A": "1",
            "HOME": "/",
        }
        self.assertEqual(clean_environment(environ), {"PATH": "/bin", "HOME": "/"})
