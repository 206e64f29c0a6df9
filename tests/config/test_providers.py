"""Tests of llmproxy.config.providers and rules: what takes more than one key."""

from llmproxy.providers import CATALOG, of_kind
from tests.config.case import ConfigCase


class ProvidersTests(ConfigCase):
    def test_the_built_in_ones(self) -> None:
        """Without a word all of them serve, at their public addresses."""
        self.assertEqual(self.load().providers, CATALOG)

    def test_switched_off(self) -> None:
        """enabled: false takes a provider away, built in or not."""
        config = self.load("providers: {groq: {enabled: false}, x: {enabled: no, kind: gemini, base_url: http://x}}\n")
        self.assertEqual(list(config.providers), ["openai", "anthropic", "gemini"])

    def test_another_address(self) -> None:
        """base_url moves a provider and changes nothing else about it."""
        groq = self.load("providers: {groq: {base_url: 'http://127.0.0.1:9010/g/'}}\n").providers["groq"]
        self.assertEqual(groq.base_url, "http://127.0.0.1:9010/g")
        self.assertEqual((groq.rewrites, groq.title), (CATALOG["groq"].rewrites, "Groq"))

    def test_a_new_one(self) -> None:
        """A name, a kind and a base URL are a provider, after the built-in ones."""
        config = self.load("providers: {mistral: {kind: openai-compatible, base_url: https://api.mistral.ai}}\n")
        self.assertEqual(list(config.providers), [*CATALOG, "mistral"])
        expected = of_kind("openai-compatible", name="mistral", base_url="https://api.mistral.ai")
        self.assertEqual(config.providers["mistral"], expected)

    def test_a_new_one_that_is_not_whole(self) -> None:
        """A new provider without kind or base URL is told what is missing, and which built-in one is near."""
        self.assertEqual(
            self.complaints(
                "providers:\n  opnai: {enabled: false}\n  x: {kind: gemini}\n  y: {base_url: http://y}\n  z: {}\n"
            ),
            [
                "configs/base.yml:2: providers.opnai: a provider that is not built in needs kind and "
                "base_url; "
                "missing: kind and base_url; did you mean openai?",
                "configs/base.yml:3: providers.x: a provider that is not built in needs kind and base_url; "
                "missing: base_url",
                "configs/base.yml:4: providers.y: a provider that is not built in needs kind and base_url; "
                "missing: kind",
                "configs/base.yml:5: providers.z: a provider that is not built in needs kind and base_url; "
                "missing: kind and base_url",
            ],
        )

    def test_unknown_kinds(self) -> None:
        """An unknown kind is told the nearest, and nothing more about that provider."""
        self.assertEqual(
            self.complaint("providers: {x: {kind: openai, base_url: http://x}}\n"),
            "configs/base.yml:1: providers.x.kind: must be one of openai-compatible, anthropic, gemini; "
            "did you mean openai-compatible?",
        )

    def test_a_built_in_one_of_another_kind(self) -> None:
        """A built-in provider stays what it is: its paths and fields would not fit another kind."""
        self.assertEqual(
            self.complaint("providers:\n  openai:\n    kind: gemini\n"),
            "configs/base.yml:3: providers.openai.kind: openai is built in and openai-compatible; "
            "a provider of another kind needs its own name",
        )

    def test_names(self) -> None:
        """A name has to fit into a path unescaped, and must not hide the proxy's own paths."""
        whole = "{kind: gemini, base_url: http://x}"
        for name in ("a", "9", "a-b_c", "mistral2"):
            with self.subTest(name):
                self.assertIn(name, self.load(f"providers: {{'{name}': {whole}}}").providers)
        for name in ("", "A", "-a", "a.b", "a/b", "a b", "é", "_a", "a\\n"):
            with self.subTest(name):
                found = self.complaint(f'providers: {{"{name}": {whole}}}')
                self.assertIn("a name must be lower case letters", found)
        for name in ("health", "meta", "v1", "v1beta"):
            with self.subTest(name):
                self.assertIn("is reserved", self.complaint(f"providers: {{{name}: {whole}}}"))

    def test_none_left(self) -> None:
        """A proxy without providers does not start."""
        off = "".join(f"  {name}: {{enabled: false}}\n" for name in CATALOG)
        self.assertEqual(
            self.complaint(f"\nproviders:\n{off}"),
            "configs/base.yml:2: providers: no provider is enabled: there is nothing to serve",
        )


class RulesTests(ConfigCase):
    def limiting(self, *lines: str) -> str:
        return "features:\n  rate_limiting:\n" + "".join(f"    {line}\n" for line in lines)

    def test_the_whole_rate_limit_block(self) -> None:
        """The block as people know it is read, every key of it, while it is off."""
        config = self.load(
            self.limiting(
                "enabled: false",
                "backend: redis",
                "limits: {requests_per_minute: 60, tokens_per_minute: 1_000, requests_per_day: 5, tokens_per_day: 0}",
                "overrides:",
                "  per_key: {sk-abc: {requests_per_minute: 1}}",
                "  per_user: {alice: {tokens_per_day: 2}}",
                "  per_model: {gpt-4o: {requests_per_day: 3}}",
                "estimation:",
                "  max_sample_bytes: -1",
                "  bytes_per_token: 3",
                "  chars_per_token: 2",
                "  provider_chars_per_token: {openai: 6, anthropic: 4}",
                "redis: {address: 'localhost:6379', password: '${REDIS_PASSWORD:-}', db: 0}",
            )
        ).features.rate_limiting
        self.assertEqual((config.enabled, config.backend), (False, "redis"))
        self.assertEqual((config.limits.requests_per_minute, config.limits.tokens_per_minute), (60, 1000))
        self.assertEqual(config.overrides.per_key["sk-abc"].requests_per_minute, 1)
        self.assertEqual(config.overrides.per_model["gpt-4o"].requests_per_day, 3)
        self.assertEqual(config.estimation.provider_chars_per_token, {"openai": 6, "anthropic": 4})
        self.assertEqual((config.redis.address, config.redis.password, config.redis.db), ("localhost:6379", None, 0))

    def test_rate_limits_are_not_enforced_yet(self) -> None:
        """Nothing is silently not enforced: with limits on the proxy does not start."""
        self.assertEqual(
            self.complaint(self.limiting("enabled: true")),
            "configs/base.yml:3: features.rate_limiting.enabled: true is not supported yet: "
            "this version enforces no rate limits, and starts only with false",
        )

    def test_redis_needs_an_address(self) -> None:
        """The redis backend is told at once that it has nowhere to go."""
        self.assertEqual(
            self.complaint(self.limiting("backend: redis")),
            "configs/base.yml:3: features.rate_limiting.backend: redis needs redis.address or redis.url",
        )
        self.load(self.limiting("backend: redis", "redis: {url: 'rediss://h/0'}"))

    def test_bad_limits(self) -> None:
        """Negative numbers, unknown backends and misspelt limits are errors, in overrides too."""
        found = self.complaints(
            self.limiting(
                "backend: mongo",
                "limits: {requests_per_minute: -1}",
                "overrides: {per_user: {a: {requests_per_hour: 1}}, per_model: {b: 5}}",
                "estimation: {max_sample_bytes: -2, bytes_per_token: 0}",
                "redis: {db: -1}",
            )
        )
        self.assertEqual(
            [one.split(": ")[1].removeprefix("features.rate_limiting.") for one in found],
            [
                "backend",
                "limits.requests_per_minute",
                "overrides.per_user.a.requests_per_hour",
                "overrides.per_model.b",
                "estimation.max_sample_bytes",
                "estimation.bytes_per_token",
                "redis.db",
            ],
        )

    def test_ratios_of_unknown_providers(self) -> None:
        """A ratio for a provider that does not exist would never be used, so it is an error."""
        text = self.limiting("estimation: {provider_chars_per_token: {antropic: 3, x: 1}}")
        found = self.complaints(text)
        self.assertIn("there is no such provider; did you mean anthropic?", found[0])
        self.assertIn("there is no such provider; there are openai, anthropic, gemini, groq", found[1])
        self.load(f"providers: {{x: {{kind: gemini, base_url: http://x}}}}\n{text.replace('antropic: 3, ', '')}")

    def test_a_missing_ca_file(self) -> None:
        """A private CA that is not there is found at the start, not at the first request."""
        self.assertEqual(
            self.complaint("upstream:\n  ca_file: nope.pem\n"),
            "configs/base.yml:2: upstream.ca_file: there is no such file",
        )
        self.assertEqual(
            self.complaints("upstream:\n  ca_file: no.pem\nproviders:\n  groq: {upstream: {ca_file: nope.pem}}\n"),
            [
                "configs/base.yml:2: upstream.ca_file: there is no such file",
                "configs/base.yml:4: providers.groq.upstream.ca_file: there is no such file",
            ],
        )

    def test_a_stop_that_is_over_before_it_began(self) -> None:
        """The delay of a stop fits into its time, unless that has no end."""
        self.assertEqual(
            self.complaint("server:\n  drain_timeout_s: 5\n  drain_delay_s: 5.5\n"),
            "configs/base.yml:3: server.drain_delay_s: must not be above server.drain_timeout_s, which is 5",
        )
        self.assertIn("which is 600", self.complaint("server: {drain_delay_s: 601}"))
        for text in ("{drain_timeout_s: 5, drain_delay_s: 5}", "{drain_timeout_s: 0, drain_delay_s: 5}"):
            self.assertIsNotNone(self.load(f"server: {text}"))

    def test_a_bad_time_is_one_complaint(self) -> None:
        """A delay that is no number is said once: its default breaks no rule."""
        self.assertIn("at least 0, not -1", self.complaint("server: {drain_timeout_s: 5, drain_delay_s: -1}"))

    def test_more_requests_than_connections(self) -> None:
        """HTTP/1.1 has one request on a connection, but nobody has to keep the two in step."""
        server = self.load("server: {max_requests: 9, max_connections: 3}").server
        self.assertEqual((server.max_requests, server.max_connections), (9, 3))
