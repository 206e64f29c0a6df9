"""A new configuration: all of it or nothing, and every word of it in the log."""

from __future__ import annotations

from typing import Any

from twisted.logger import globalLogPublisher

from llmproxy.assembly import StartError
from llmproxy.config.loading import Loaded, load_in_use
from llmproxy.config.model import Config
from llmproxy.lifecycle.listening import CertificateError
from llmproxy.lifecycle.reload import Reload
from tests.config.case import ConfigCase


class Reloading(ConfigCase):
    """One proxy that is given files, one after the other."""

    def setUp(self) -> None:
        """It began with the defaults."""
        super().setUp()
        self.write("base", "{}")
        self.taken: list[Config] = []
        self.followed: list[tuple[str, str]] = []
        self.events: list[Any] = []
        self.certificates: list[Exception | None] = []
        self.missing: StartError | None = None
        self.reload = Reload(self.loaded(), self.loaded, self._follow, self._certificate)
        globalLogPublisher.addObserver(self.events.append)  # type: ignore[arg-type]
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)  # type: ignore[arg-type]

    def loaded(self) -> Loaded:
        return load_in_use(environ={}, cwd=str(self.cwd))

    def _follow(self, old: Config, new: Config) -> None:
        self.followed.append((old.log.level, new.log.level))

    def _certificate(self) -> None:
        error = self.certificates.pop(0) if self.certificates else None
        if error is not None:
            raise error

    def put_together(self, config: Config) -> None:
        if self.missing is not None:
            raise self.missing
        self.taken.append(config)

    def reloads(self, text: str) -> bool:
        """Write this and reload."""
        self.write("base", text)
        return self.reload(self.put_together)

    def said(self, level: str) -> list[str]:
        """The lines of this level."""
        events = [each for each in self.events if each["log_level"].name == level]
        return [each["log_format"].format(**each) for each in events]

    def test_taken(self) -> None:
        """A good file is used, and its difference told; a second time there is none."""
        self.assertTrue(self.reloads("upstream: {pool_size: 7}\nlog: {level: debug}"))
        self.assertEqual(self.taken[0].upstream.pool_size, 7)
        self.assertEqual(self.taken[0].upstreams["groq"].pool_size, 7)
        self.assertEqual(self.followed, [("info", "debug")])
        self.assertEqual(
            self.said("info")[1:],
            [
                "reloaded: upstream.pool_size: 256 -> 7",
                "reloaded: log.level: info -> debug",
                "the configuration is reloaded from configs/base.yml; changed: 2",
            ],
        )
        self.events.clear()
        self.assertTrue(self.reload(self.put_together))
        self.assertEqual(self.said("info")[1:], ["the configuration is reloaded from configs/base.yml; changed: 0"])

    def test_mistakes(self) -> None:
        """A bad file is told with every mistake and its place; nothing is used of it, and the next good one is."""
        self.assertFalse(self.reloads("upstream:\n  pool_size: many\nserver: {nosuch: 1}\n"))
        errors = self.said("error")
        self.assertEqual(len(errors), 2)
        self.assertTrue(all(each.startswith("not reloaded: configs/base.yml:") for each in errors), errors)
        self.assertEqual((self.taken, self.followed), ([], []))
        self.assertTrue(self.reloads("upstream: {pool_size: 7}"))
        self.assertIn("reloaded: upstream.pool_size: 256 -> 7", self.said("info"))

    def test_what_is_missing(self) -> None:
        """What cannot be put together is one line, and the old configuration stays the one to compare with."""
        self.missing = StartError("upstream.ca_file is gone")
        self.assertFalse(self.reloads("upstream: {pool_size: 7}"))
        self.assertEqual(self.said("error"), ["not reloaded: upstream.ca_file is gone"])
        self.assertEqual(self.followed, [])
        self.missing = None
        self.assertTrue(self.reloads("upstream: {pool_size: 7}"))
        self.assertIn("reloaded: upstream.pool_size: 256 -> 7", self.said("info"))

    def test_a_restart(self) -> None:
        """What needs a restart keeps its value, and is told each time until there is one; the rest is used."""
        text = (
            "server: {port: 9999, max_headers: 99}\nstate_dir: /elsewhere\nidentity: {strip: true, secret: "
            + "s" * 32
            + "}\n"
        )
        for _ in range(2):
            self.events.clear()
            self.assertTrue(self.reloads(text))
            config = self.taken[-1]
            self.assertEqual((config.server.port, config.state_dir, config.identity.secret), (None, None, None))
            self.assertEqual((config.server.max_headers, config.identity.strip), (99, True))
            self.assertEqual(
                self.said("warn"),
                [
                    "needs a restart: server.port: null -> 9999",
                    "needs a restart: identity.secret: null -> ***",
                    "needs a restart: state_dir: null -> /elsewhere",
                ],
            )
        self.assertIn("; changed: 0", self.said("info")[-1])

    def test_certificate(self) -> None:
        """A certificate that cannot be used is told, and the old one stays; the configuration is used all the same, and
        the other way round."""
        self.certificates = [CertificateError("no start line")]
        self.assertFalse(self.reloads("upstream: {pool_size: 7}"))
        self.assertEqual(self.said("error"), ["the certificate stays as it was: no start line"])
        self.assertEqual(self.taken[0].upstream.pool_size, 7)
        self.events.clear()
        self.assertFalse(self.reloads("nonsense: 1"))
        self.assertEqual(self.said("info"), ["the certificate is read again"])

    def test_no_certificate(self) -> None:
        """A proxy that does not listen with TLS has nothing to say of certificates."""
        self.reload = Reload(self.loaded(), self.loaded, self._follow, None)
        self.assertTrue(self.reload(self.put_together))
        self.assertEqual(len(self.events), 1)
