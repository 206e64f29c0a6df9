"""Tests of llmproxy.config.loading: files and environment become one Config, or every complaint at once."""

from dataclasses import FrozenInstanceError, replace
from ipaddress import ip_network
from pathlib import Path

from llmproxy.config import Config, model
from llmproxy.config.loading import load_files
from tests.config.case import ConfigCase


class LoadingTests(ConfigCase):
    def test_nothing_at_all(self) -> None:
        """Without a configs folder the proxy starts on the built-in defaults."""
        self.assertEqual(self.load(), Config())

    def test_values_of_every_type(self) -> None:
        """Numbers, booleans, text, lists and maps arrive as what they are."""
        config = self.load(
            "server: {port: 80, peek_bytes: 1_000, trusted_proxies: [10.0.0.0/8, '::1']}\n"
            "upstream: {pool_idle_s: 1.5}\n"
            "cors: {enabled: no, allow_origins: [https://a.example], allow_headers: []}\n"
            "log: {level: WARNING}\n"
            "features: {rate_limiting: {overrides: {per_user: {123: {tokens_per_day: 5}}}}}\n"
        )
        self.assertEqual((config.server.port, config.server.peek_bytes), (80, 1000))
        self.assertEqual(config.server.trusted_proxies, (ip_network("10.0.0.0/8"), ip_network("::1")))
        self.assertEqual(config.upstream.pool_idle_s, 1.5)
        self.assertEqual(config.cors.allow_origins, ("https://a.example",))
        self.assertEqual((config.cors.enabled, config.cors.allow_headers), (False, ()))
        self.assertEqual(config.log.level, "warn")
        self.assertEqual(config.features.rate_limiting.overrides.per_user, {"123": model.Limits(tokens_per_day=5)})
        self.assertEqual(config.files, ("configs/base.yml",))

    def test_the_result_cannot_be_changed(self) -> None:
        """Nothing in the program can change the configuration under another part's feet."""
        config = self.load()
        with self.assertRaises(FrozenInstanceError):
            config.server.port = 5  # type: ignore[misc]
        with self.assertRaises(TypeError):
            config.providers["x"] = config.providers["openai"]  # type: ignore[index]

    def test_files_are_laid_over_each_other(self) -> None:
        """Maps merge; lists and single values are replaced by the later file."""
        self.write("base", "server: {peek_bytes: 1, trusted_proxies: [10.0.0.0/8]}\nupstream: {pool_size: 1}\n")
        self.write("staging", "server: {trusted_proxies: ['::1'], public_url: http://a}\n")
        self.write("eu", "server: {public_url: http://b}\n")
        config = self.load(environment="staging", LLM_PROXY_CONFIG_PROFILE="eu")
        self.assertEqual(config.files, ("configs/base.yml", "configs/staging.yml", "configs/eu.yml"))
        self.assertEqual((config.server.peek_bytes, config.upstream.pool_size), (1, 1))
        self.assertEqual(config.server.trusted_proxies, (ip_network("::1"),))
        self.assertEqual(config.server.public_url, "http://b")

    def test_null_goes_back_to_the_built_in_default(self) -> None:
        """null in an overlay takes away what the files before said: a value, a whole section, a name."""
        self.write(
            "base",
            "server: {peek_bytes: 1}\nupstream: {pool_size: 1}\n"
            "providers:\n"
            "  openai: {base_url: http://a}\n"
            "  groq: {enabled: false}\n"
            "  mistral: {kind: anthropic, base_url: http://b}\n",
        )
        self.write(
            "dev",
            "server: {peek_bytes: null}\nupstream:\nproviders: {openai: ~, groq: {enabled: null}, mistral: null}\n",
        )
        self.assertEqual(self.load(), Config(files=("configs/base.yml", "configs/dev.yml")))

    def test_null_and_then_a_value(self) -> None:
        """What a third file says after null is said over the default, not over the first file."""
        self.write("base", "server: {peek_bytes: 1, public_url: http://a}\n")
        self.write("dev", "server: null\n")
        self.write("p", "server: {public_url: http://b}\n")
        config = self.load(LLM_PROXY_CONFIG_PROFILE="p")
        self.assertEqual(config.server, model.Server(public_url="http://b"))

    def test_names_are_added_to_the_built_in_ones(self) -> None:
        """A map with names of one's own keeps the defaults it does not mention."""
        config = self.load(
            "features: {rate_limiting: {estimation: {provider_chars_per_token: {groq: 7, openai: 6}}}}\n"
        )
        ratios = config.features.rate_limiting.estimation.provider_chars_per_token
        self.assertEqual(ratios, {"openai": 6, "anthropic": 3, "groq": 7})

    def test_expansion(self) -> None:
        """Variables expand in any value, and take the type of the key."""
        config = self.load(
            "server: {port: '${P:-81}', peek_bytes: '${N}', trusted_proxies: ['${PROXY:-}', 10.0.0.0/8]}\n"
            "upstream:\n  pool_size: ${S:-5}\n"
            "identity: {strip: '${B}', secret: a$$b}\n",
            N="1_0",
            B="yes",
        )
        self.assertEqual((config.server.port, config.server.peek_bytes), (81, 10))
        self.assertEqual(config.server.trusted_proxies, (ip_network("10.0.0.0/8"),))
        self.assertEqual(config.upstream.pool_size, 5)
        self.assertEqual((config.identity.strip, config.identity.secret), (True, "a$b"))

    def test_an_expansion_to_nothing_is_not_set(self) -> None:
        """A key whose variable is empty is at its default."""
        config = self.load("upstream:\n  pool_size: ${S:-}\n  ca_file: ${C}\nlog:\n  level: ${L:-}\n", C="")
        self.assertEqual(config, Config(files=("configs/base.yml",)))

    def test_a_variable_that_is_not_set(self) -> None:
        """An unset name without default is an error unless no value in use needs it."""
        self.write("base", "upstream:\n  pool_size: ${POOL}\n")
        self.assertEqual(
            self.complaint(),
            "configs/base.yml:2: upstream.pool_size: POOL is not set in the environment, and has no default here",
        )
        self.write("dev", "upstream:\n  pool_size: 7\n")
        self.assertEqual(self.load().upstream.pool_size, 7)

    def test_the_environment_wins(self) -> None:
        """PORT, LOG_LEVEL, LOG_FORMAT and the identity secret go before every file; empty ones do not."""
        text = "server: {port: 1}\nlog: {level: error, format: text}\nidentity: {secret: file}\n"
        config = self.load(text, PORT="2", LOG_LEVEL="Debug", LOG_FORMAT="json", LLM_PROXY_IDENTITY_SECRET="env")
        self.assertEqual(
            (config.server.port, config.log.level, config.log.format, config.identity.secret),
            (2, "debug", "json", "env"),
        )
        config = self.load(text, PORT="", LOG_LEVEL="", LOG_FORMAT="", LLM_PROXY_IDENTITY_SECRET="")
        self.assertEqual(
            (config.server.port, config.log.level, config.log.format, config.identity.secret),
            (1, "error", "text", "file"),
        )
        self.assertEqual(self.load("", PORT="unix:/x").server.port, "unix:/x")

    def test_a_bad_environment(self) -> None:
        """A variable with a bad value is named, and a secret one is not shown."""
        self.assertEqual(
            self.complaints("", PORT="web", LOG_FORMAT="jsn", LLM_PROXY_IDENTITY_SECRET="s3cr\net"),
            [
                "environment variable PORT: server.port: must be a port number (0 to 65535) or an "
                "endpoint such as "
                "tcp:9002:interface=127.0.0.1, not 'web'",
                "environment variable LOG_FORMAT: log.format: must be one of auto, json, text; did you mean json?",
                "environment variable LLM_PROXY_IDENTITY_SECRET: identity.secret: must be one line of printable text",
            ],
        )

    def test_all_complaints_at_once(self) -> None:
        """Every mistake in every file is said in one go, in the order in which a reader meets them."""
        self.write("base", "servr: {}\nupstream: {pool_size: x}\nserver: {port: }\n")
        self.write("dev", "log: {level: loud}\nlog: {}\nproviders: {x: {}}\n")
        self.assertEqual(
            [one.split(": ", 2)[:2] for one in self.complaints(PORT="x")],
            [
                ["environment variable PORT", "server.port"],
                ["configs/base.yml:1", "servr"],
                ["configs/base.yml:2", "upstream.pool_size"],
                ["configs/dev.yml:1", "log.level"],
                ["configs/dev.yml:2", "log"],
                ["configs/dev.yml:3", "providers.x"],
            ],
        )

    def test_a_mistake_that_a_later_file_covers(self) -> None:
        """A bad value is an error also where an overlay replaces it: elsewhere no overlay would."""
        self.write("base", "upstream: {pool_size: many}\nlog: {levle: info}\n")
        self.write("dev", "upstream: {pool_size: 5}\nlog: null\n")
        self.assertEqual([one.split(": ")[1] for one in self.complaints()], ["upstream.pool_size", "log.levle"])

    def test_a_complaint_is_one_line(self) -> None:
        """A key with a line end in it does not break the list of complaints."""
        found = self.complaints('"a\\nb": 1\nlog: {level: "x\\ny"}\nupstream: {pool_size: "5\\n\\e[31m"}\n')
        self.assertEqual(len(found), 3, found)
        self.assertTrue(all(line.isprintable() for line in found), found)

    def test_paths_are_absolute(self) -> None:
        """A path is meant from the directory where the proxy was started, and ~ is the home directory."""
        (self.cwd / "ca.pem").write_text("")
        config = self.load("state_dir: ~/state\nupstream: {ca_file: ca.pem}\n", HOME="/home/me")
        self.assertEqual(config.state_dir, "/home/me/state")
        self.assertEqual(config.upstream.ca_file, str(self.cwd / "ca.pem"))

    def test_one_provider_has_its_own_way(self) -> None:
        """What is written for one provider holds for it alone, also when it is 0; the rest is as for all."""
        self.write("base", "upstream: {pool_size: 7, idle_timeout_s: 9}\nproviders: {groq: {enabled: false}}\n")
        self.write(
            "dev",
            "upstream: {connect_timeout_s: 3}\n"
            "providers:\n"
            "  openai: {upstream: {pool_size: 0, idle_timeout_s: 0, max_connections: 5}}\n"
            "  anthropic: {upstream: {pool_size: null}}\n"
            "  mistral: {kind: gemini, base_url: http://x, upstream: {first_byte_timeout_s: 1}}\n",
        )
        config = self.load()
        for_all = model.Upstream(pool_size=7, idle_timeout_s=9, connect_timeout_s=3)
        self.assertEqual(config.upstream, for_all)
        self.assertEqual(
            config.upstreams,
            {
                "openai": replace(for_all, pool_size=0, idle_timeout_s=0, max_connections=5),
                "anthropic": for_all,
                "gemini": for_all,
                "mistral": replace(for_all, first_byte_timeout_s=1),
            },
        )
        self.assertEqual(list(config.upstreams), list(config.providers))

    def test_layers_of_one_provider(self) -> None:
        """A provider's own keys are laid over each other key by key, and null takes them away again."""
        self.write("base", "providers: {openai: {upstream: {pool_size: 1, max_connections: 2, idle_timeout_s: 3}}}\n")
        self.write("dev", "providers: {openai: {upstream: {pool_size: 4, idle_timeout_s: null}}}\n")
        self.assertEqual(self.load().upstreams["openai"], model.Upstream(pool_size=4, max_connections=2))
        self.write("dev", "providers: {openai: {upstream: null}}\n")
        self.assertEqual(self.load(), Config(files=("configs/base.yml", "configs/dev.yml")))

    def test_the_authority_of_one_provider(self) -> None:
        """A private authority may be for one provider; its path is meant from where the proxy was started."""
        (self.cwd / "ca.pem").write_text("")
        upstreams = self.load("providers: {openai: {upstream: {ca_file: ca.pem}}}\n").upstreams
        self.assertEqual((upstreams["openai"].ca_file, upstreams["groq"].ca_file), (str(self.cwd / "ca.pem"), None))

    def test_everything_that_can_be_off(self) -> None:
        """0 arrives as 0, not as the default."""
        off = [
            *("header_timeout_s", "body_idle_timeout_s", "write_idle_timeout_s", "keepalive_timeout_s"),
            *("max_body_bytes", "max_connections", "max_connections_per_ip", "max_requests"),
            *("drain_timeout_s", "drain_delay_s"),
        ]
        server = self.load("server:\n" + "".join(f"  {key}: 0\n" for key in off)).server
        self.assertEqual([getattr(server, key) for key in off], [0] * len(off))
        off = ["pool_size", "connect_timeout_s", "first_byte_timeout_s", "idle_timeout_s", "max_connections"]
        upstream = self.load("upstream:\n" + "".join(f"  {key}: 0\n" for key in off)).upstream
        self.assertEqual([getattr(upstream, key) for key in off], [0] * len(off))

    def test_layers_by_hand(self) -> None:
        """Files given by name are laid over the defaults in that order."""
        for name, text in (("a.yml", "upstream: {pool_size: 1}"), ("b.yml", "upstream: {pool_size: 2}")):
            (self.cwd / name).write_text(text)
        for files, size in ((["a.yml", "b.yml"], 2), (["b.yml", str(self.cwd / "a.yml")], 1)):
            loaded = load_files(files, environ={}, cwd=str(self.cwd))
            self.assertEqual(loaded.config.upstream.pool_size, size)
            self.assertEqual(loaded.config.files, tuple(files))

    def test_files_that_cannot_be_read(self) -> None:
        """A missing file and a directory are said in the system's words."""
        Path(self.cwd, "dir.yml").mkdir()
        self.assertEqual(
            self.complaints(config_file="nope.yml"), ["nope.yml: cannot be read: No such file or directory"]
        )
        self.assertEqual(self.complaints(config_file="dir.yml"), ["dir.yml: cannot be read: Is a directory"])
        self.assertEqual(self.complaints(config_file="a\0b"), ["a\\x00b: cannot be read: not the name of a file"])

    def test_secrets_stay_out_of_repr(self) -> None:
        """A Config in a traceback or a log shows no secret and no key."""
        config = self.load(
            "identity: {secret: canary-1}\n"
            "features:\n"
            "  rate_limiting:\n"
            "    redis: {password: canary-2, url: 'redis://:canary-3@h'}\n"
            "    overrides: {per_key: {canary-4: {requests_per_minute: 1}}}\n"
        )
        self.assertEqual(config.identity.secret, "canary-1")
        self.assertNotIn("canary", repr(config))
