"""Tests of llmproxy.config.report: check-config and show-config."""

import io

from llmproxy.config.report import check_config, show_config
from llmproxy.config.schema import Named, Section, every_key
from tests.config.case import ConfigCase


class CheckConfigTests(ConfigCase):
    def check(self, *files: str, **environ: str) -> tuple[int, str]:
        out = io.StringIO()
        code = check_config(files, environ=environ, cwd=str(self.cwd), out=out)
        return code, out.getvalue()

    def test_the_configuration_in_use(self) -> None:
        """Without files it is what the proxy would start with."""
        self.assertEqual(self.check(), (0, "OK: built-in defaults; 4 providers: openai, anthropic, gemini, groq\n"))
        self.write("base", "providers: {groq: {enabled: no}, gemini: {enabled: no}, anthropic: {enabled: no}}")
        self.write("dev", "")
        self.assertEqual(self.check(), (0, "OK: configs/base.yml, configs/dev.yml; 1 provider: openai\n"))

    def test_files_in_order(self) -> None:
        """Files are laid over each other in the order given, over the defaults and nothing else."""
        self.write("base", "nonsense: 1")
        self.write("a", "providers: {x: {kind: gemini}}")
        self.write("b", "providers: {x: {base_url: http://x}}")
        code, words = self.check("configs/a.yml", "configs/b.yml")
        self.assertEqual(code, 0, words)
        self.assertIn("5 providers: openai, anthropic, gemini, groq, x", words)

    def test_a_version_that_would_be_sent_twice(self) -> None:
        """A base URL with the /v1 that SDKs send themselves is noted; it is no error, somebody may need it."""
        self.write("base", "providers: {groq: {base_url: http://h/v1/}, gemini: {base_url: http://h/v1beta}}")
        code, words = self.check()
        self.assertEqual((code, len(words.splitlines())), (0, 3), words)
        self.assertIn("\nNote: providers.groq.base_url ends in a version; callers send that", words)
        self.assertIn("\nNote: providers.gemini.base_url ends", words)
        self.write("base", "providers: {groq: {base_url: http://h/av1}, x: {kind: gemini, base_url: http://h/v1}}")
        self.assertNotIn("Note", self.check()[1])

    def test_complaints(self) -> None:
        """Every complaint is a line, and the exit code says that there are some."""
        self.write("base", "log: {level: 5, foo: 1}\nfeatures: {rate_limiting: {enabled: true}}")
        code, words = self.check()
        self.assertEqual(code, 1)
        self.assertEqual(len(words.splitlines()), 3)
        self.assertIn("not supported yet", words)


class ShowConfigTests(ConfigCase):
    def test_values_and_origins(self) -> None:
        """Each value in use is shown with the line, the variable or the default it came from."""
        self.write("base", "upstream:\n  pool_size: 1\n  pool_idle_s: 2\nserver: {trusted_proxies: [10.0.0.0/8]}\n")
        self.write("dev", "\nupstream:\n\n  pool_size: 1_000\n")
        shown = self.shown(LOG_LEVEL="debug", HOME="/h")
        for path, expected in (
            ("upstream.pool_size", "1000  # configs/dev.yml:4"),
            ("upstream.pool_idle_s", "2.0  # configs/base.yml:3"),
            ("upstream.connect_timeout_s", "10.0  # default"),
            ("server.trusted_proxies", "[10.0.0.0/8]  # configs/base.yml:4"),
            ("server.public_url", "null  # default"),
            ("log.level", "debug  # environment variable LOG_LEVEL"),
            ("log.access", "true  # default"),
            ("providers.openai.base_url", "https://api.openai.com  # default"),
            ("features.rate_limiting.backend", '""  # default'),
            ("features.rate_limiting.overrides.per_user", "{}  # default"),
            ("features.rate_limiting.estimation.provider_chars_per_token.openai", "5  # default"),
            # What is decided elsewhere when nothing says it.
            ("server.port", "9002  # default"),
            ("state_dir", "/h/.local/state/llmproxy  # default"),
        ):
            with self.subTest(path):
                self.assertEqual(shown[path], expected)

    def test_what_holds_for_one_provider(self) -> None:
        """Each provider's own times and sizes are shown as they are in force, with where each was said."""
        self.write("base", "upstream:\n  pool_size: 1\n  idle_timeout_s: 2\nproviders:\n  groq: {enabled: false}\n")
        self.write("dev", "providers:\n  openai:\n    upstream:\n      pool_size: 0\n")
        shown = self.shown()
        for path, expected in (
            ("upstream.pool_size", "1  # configs/base.yml:2"),
            ("providers.openai.upstream.pool_size", "0  # configs/dev.yml:4"),
            ("providers.openai.upstream.idle_timeout_s", "2.0  # configs/base.yml:3"),
            ("providers.openai.upstream.max_connections", "0  # default"),
            ("providers.groq.upstream.pool_size", "1  # configs/base.yml:2"),
            ("providers.groq.upstream.ca_file", "null  # default"),
        ):
            with self.subTest(path):
                self.assertEqual(shown[path], expected)

    def test_every_key_is_shown(self) -> None:
        """No key is left out, disabled providers included."""
        self.write("base", "providers: {groq: {enabled: false}}")
        shown = self.shown()
        for path, kind in every_key():
            if not isinstance(kind, Section | Named):
                start, _, end = ".".join(path).partition("<")
                end = end.partition(">")[2]
                self.assertTrue(
                    any(row.startswith(start) and row.endswith(end) for row in shown)
                    or shown.get(start.rstrip(".")) == "{}  # default",
                    path,
                )
        self.assertEqual(shown["providers.groq.enabled"], "false  # configs/base.yml:1")

    def test_secrets_are_masked(self) -> None:
        """Secrets, and names that may be keys, are shown as stars; a secret that is not set is null."""
        self.write(
            "base",
            "identity: {secret: canary}\n"
            "features:\n"
            "  rate_limiting:\n"
            "    redis: {password: canary, url: 'redis://:canary@h'}\n"
            "    overrides: {per_key: {canary: {requests_per_minute: 7}}}\n",
        )
        for environ in ({}, {"LLM_PROXY_IDENTITY_SECRET": "canary"}):
            shown = self.shown(**environ)
            self.assertNotIn("canary", repr(shown))
            self.assertEqual(shown["identity.secret"].partition("  #")[0], "***")
            self.assertEqual(shown["features.rate_limiting.redis.url"], "***  # configs/base.yml:4")
            name = "features.rate_limiting.overrides.per_key.***.requests_per_minute"
            self.assertEqual(shown[name], "7  # configs/base.yml:5")
        self.write("base", "")
        self.assertEqual(self.shown()["identity.secret"], "null  # default")

    def test_complaints_instead(self) -> None:
        """A configuration that is not right is not shown."""
        self.write("base", "foo: 1")
        out = io.StringIO()
        self.assertEqual(show_config(environ={}, cwd=str(self.cwd), out=out), 1)
        self.assertIn("configs/base.yml:1: foo: unknown key", out.getvalue())
        self.assertNotIn("server.port =", out.getvalue())
