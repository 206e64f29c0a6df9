"""Tests of the files in configs/ and of docs/configuration.md: they hold what they promise."""

import re
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from llmproxy.config import Config, load
from llmproxy.config.check import Group
from llmproxy.config.loading import load_files
from llmproxy.config.schema import ENVIRONMENT, SCHEMA, Either, Kind, ListOf, Named, Section, Tree, every_key
from llmproxy.config.values import Value
from llmproxy.core.errors import ERROR_CLASSES
from llmproxy.providers import CATALOG
from tests.config.case import ROOT

PAGE = ROOT / "docs" / "configuration.md"


class ShippedConfigsTests(SynchronousTestCase):
    def test_base_equals_the_built_in_defaults(self) -> None:
        """An installation without a configs folder behaves as one with base.yml."""
        loaded = load_files(["configs/base.yml"], environ={}, cwd=str(ROOT))
        self.assertEqual(replace(loaded.config, files=()), Config())

    def test_base_documents_every_key(self) -> None:
        """Every key stands in base.yml, with its default or as a comment."""
        text = (ROOT / "configs" / "base.yml").read_text()
        for path, _ in every_key():
            if path[-1] in ("<name>", "<key>", "<user>", "<model>", "<provider>"):
                continue
            with self.subTest(path):
                self.assertTrue(re.search(rf"(?m)^ *(# )?{re.escape(path[-1])}:", text))

    def test_base_sets_every_key_but_those_that_are_off(self) -> None:
        """What base.yml leaves to the default is only what is null, or none of the file's business."""
        found = load_files(["configs/base.yml"], environ={}, cwd=str(ROOT)).found

        def missing(kind: Kind, group: object, path: tuple[str, ...]) -> list[str]:
            if isinstance(kind, Tree) or (isinstance(kind, Section) and kind.partial):
                return []  # as for all
            if isinstance(kind, Section):
                below = group.entries if isinstance(group, Group) else {}
                return [one for key, sub in kind.keys.items() for one in missing(sub, below.get(key), (*path, key))]
            if isinstance(kind, Named) and isinstance(group, Group):
                return [one for name, sub in group.entries.items() for one in missing(kind.item, sub, (*path, name))]
            return [] if group is not None else [".".join(path)]

        self.assertEqual(
            missing(SCHEMA, found, ()),
            [
                "server.port",
                "server.public_url",
                "upstream.ca_file",
                "pricing.file",
                "ledger.path",
                "identity.secret",
                *(f"features.rate_limiting.redis.{key}" for key in ("address", "password", "db", "url")),
                "state_dir",
            ],
        )

    def test_every_file_loads(self) -> None:
        """Each overlay that is shipped starts as it is, in an empty environment."""
        names = sorted(path.stem for path in (ROOT / "configs").glob("*.yml"))
        self.assertTrue({"base", "dev", "production", "demo"} <= set(names))
        for name in names:
            with self.subTest(name):
                config = load(environ={"ENVIRONMENT": name}, cwd=str(ROOT))
                self.assertEqual(set(config.providers), set(CATALOG))

    def test_production(self) -> None:
        """Production writes JSON, and takes its address and its load balancer from the environment."""
        environ = {"PUBLIC_URL": "https://llm.example.com/", "TRUSTED_PROXY": "10.0.0.0/8"}
        config = load(environ=environ, cwd=str(ROOT), environment="production")
        self.assertEqual((config.log.format, config.server.public_url), ("json", "https://llm.example.com"))
        self.assertEqual([str(network) for network in config.server.trusted_proxies], ["10.0.0.0/8"])

    def test_demo(self) -> None:
        """In the demo no provider is the real one, wherever the simulator listens."""
        for environ, port in (({}, 9010), ({"SIMULATOR_PORT": "7"}, 7)):
            config = load(environ=environ, cwd=str(ROOT), environment="demo")
            addresses = {provider.base_url for provider in config.providers.values()}
            self.assertEqual(addresses, {f"http://127.0.0.1:{port}"})
            self.assertIsNotNone(config.identity.secret)


class PageTests(SynchronousTestCase):
    def test_every_key_is_described(self) -> None:
        """The reference has a row for every key, with its type and default."""
        rows = re.findall(r"(?m)^\| `([^`]+)` \| [^|]+ \| [^|]+ \| [^|]+ \|$", PAGE.read_text())
        own = tuple(("providers", "<name>", section) for section in ("upstream", "accounting"))
        single = (Value, ListOf, Named, Either, Tree)
        keys = [path for path, kind in every_key() if isinstance(kind, single) or path in own]
        # One row stands for the four limits of each override, and one for the keys of a section in each provider.
        keys = [path for path in keys if path != ("providers",) and "overrides" not in path[:-2]]
        keys = [path for path in keys if path[:-1] not in own]
        self.assertEqual(sorted(rows), sorted(".".join(path) for path in keys))

    def test_defaults_are_those_of_the_program(self) -> None:
        """The reference names the true default of every number of server and upstream, and says where 0 is off."""
        rows = re.findall(r"(?m)^\| `(server|upstream)\.(\w+)` \| ([^|]+) \| ([0-9]+) \|", PAGE.read_text())
        self.assertGreaterEqual(len(rows), 20)
        for section, key, takes, default in rows:
            with self.subTest(f"{section}.{key}"):
                known = getattr(Config(), section)
                kind = SCHEMA.keys[section]
                assert isinstance(kind, Section)
                value = kind.keys[key]
                assert isinstance(value, Value)
                if key != "port":
                    self.assertEqual(float(default), getattr(known, key))
                if "0 is off" in takes:
                    self.assertEqual(value.parse("0"), 0)
                elif key != "port" and "0 or more" not in takes:
                    self.assertRaises(ValueError, value.parse, "0")

    def test_errors_are_those_of_the_program(self) -> None:
        """What the reference says a caller gets at a limit is what there is: class and status."""
        named = re.findall(r"\b([45]\d\d) `(\w+)`", PAGE.read_text())
        self.assertGreaterEqual(len(named), 10)
        for status, name in named:
            with self.subTest(name):
                self.assertEqual(ERROR_CLASSES[name].status, int(status))

    def test_every_variable_is_described(self) -> None:
        """The reference names every variable that configures the proxy."""
        text = PAGE.read_text()
        for name in (
            *ENVIRONMENT,
            "ENVIRONMENT",
            "LLM_PROXY_CONFIG_PROFILE",
            "STATE_DIRECTORY",
            "XDG_STATE_HOME",
        ):
            with self.subTest(name):
                self.assertTrue(f"\n| `{name}` | " in text)

    def test_the_examples_load(self) -> None:
        """Every YAML example of the reference is a configuration that starts."""
        examples = re.findall(r"(?ms)^```yaml\n(.*?)^```", PAGE.read_text())
        self.assertGreaterEqual(len(examples), 3)
        folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, folder)
        for number, example in enumerate(examples):
            with self.subTest(example):
                path = Path(folder, f"{number}.yml")
                path.write_text(example)
                load_files([str(path)], environ={}, cwd=str(ROOT))
