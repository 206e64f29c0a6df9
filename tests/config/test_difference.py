"""What a reload says: every key that is another way, and no secret."""

from __future__ import annotations

import os

from llmproxy.config.difference import difference
from llmproxy.config.loading import Loaded, load_in_use
from tests.config.case import ConfigCase


class DifferenceTests(ConfigCase):
    def loaded(self, text: str, **environ: str) -> Loaded:
        """A configuration from one file."""
        path = os.path.join(str(self.cwd), "c.yml")
        with open(path, "w") as file:
            file.write(text)
        return load_in_use(environ=environ, cwd=str(self.cwd), config_file="c.yml")

    def texts(self, old: str, new: str) -> list[str]:
        """The lines between two files."""
        return [each.text for each in difference(self.loaded(old), self.loaded(new))]

    def test_nothing(self) -> None:
        """The same values are no difference, however they are written."""
        self.assertEqual(self.texts("log: {level: info}", "# only a remark\nlog:\n  level: info\n"), [])

    def test_values(self) -> None:
        """Each key with its value before and after; a provider's own limits only where they do not follow the rest."""
        self.assertEqual(self.texts("{}", "upstream: {pool_size: 7}"), ["upstream.pool_size: 256 -> 7"])
        self.assertEqual(
            self.texts("{}", "providers: {groq: {upstream: {pool_size: 7}}}"),
            ["providers.groq.upstream.pool_size: 256 -> 7"],
        )
        self.assertEqual(
            self.texts("server: {public_url: http://a}", "server: {trusted_proxies: [10.0.0.0/8]}"),
            ["server.public_url: http://a -> null", "server.trusted_proxies: [] -> [10.0.0.0/8]"],
        )

    def test_providers(self) -> None:
        """A provider that comes or goes is named."""
        mine = "providers: {mine: {kind: openai-compatible, base_url: 'http://mine'}}"
        self.assertIn("the provider mine is added", self.texts("{}", mine))
        self.assertIn("the provider mine is removed", self.texts(mine, "{}"))
        self.assertIn("providers.mine.base_url: (not there) -> http://mine", self.texts("{}", mine))
        self.assertEqual(
            self.texts("{}", "providers: {groq: {enabled: false}}"),
            ["providers.groq.enabled: true -> false", "the provider groq is removed"],
        )

    def test_secrets(self) -> None:
        """A secret that is another one is shown as such, and neither of the two is."""
        old, new = (f"identity: {{secret: {letter * 32}}}" for letter in "ab")
        self.assertEqual(self.texts(old, new), ["identity.secret: *** -> ***"])
        self.assertEqual(self.texts("{}", new), ["identity.secret: null -> ***"])
