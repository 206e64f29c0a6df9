"""Tests of llmproxy.config.check and hints: what is said about a key or a value that is wrong."""

from llmproxy.config import values
from llmproxy.config.schema import SCHEMA, Either, ListOf, Named, Section, every_key
from tests.config.case import ConfigCase

SECRET = "sk-proj-0123456789abcdef0123456789abcdef"


class UnknownKeyTests(ConfigCase):
    def test_a_misspelt_key(self) -> None:
        """The nearest key of the same place is named."""
        self.assertEqual(
            self.complaint("\nupstream:\n  pool_sise: 5\n"),
            "configs/base.yml:3: upstream.pool_sise: unknown key; did you mean upstream.pool_size?",
        )

    def test_a_misspelt_key_of_one_provider(self) -> None:
        """Below providers.NAME.upstream the nearest key is named with that provider's path."""
        self.assertEqual(
            self.complaint("providers:\n  openai:\n    upstream:\n      idle_timeout: 5\n"),
            "configs/base.yml:4: providers.openai.upstream.idle_timeout: unknown key; "
            "did you mean providers.openai.upstream.idle_timeout_s?",
        )
        self.assertEqual(
            self.complaint("providers:\n  groq:\n    upstrem: {}\n"),
            "configs/base.yml:3: providers.groq.upstrem: unknown key; did you mean providers.groq.upstream?",
        )

    def test_a_misplaced_key(self) -> None:
        """A key that is right elsewhere is told where, also when a similar one is right here."""
        for text, expected in (
            (
                "server: {pool_size: 5}",
                "server.pool_size: misplaced key: it belongs under upstream or under providers.<name>.upstream",
            ),
            (
                "providers: {openai: {pool_size: 5}}",
                "providers.openai.pool_size: misplaced key: "
                "it belongs under upstream or under providers.<name>.upstream",
            ),
            (
                "providers: {openai: {upstream: {max_body_bytes: 5}}}",
                "providers.openai.upstream.max_body_bytes: misplaced key: it belongs under server",
            ),
            ("drain_delay_s: 5", "drain_delay_s: misplaced key: it belongs under server"),
            ("log: {server: {}}", "log.server: misplaced key: it belongs at the top of the file"),
            ("openai: {}", "openai: misplaced key: it belongs under providers"),
            ("base_url: x", "base_url: misplaced key: it belongs under providers.<name>"),
            (
                "features: {rate_limiting: {redis: {per_user: {}}}}",
                "features.rate_limiting.redis.per_user: misplaced key: "
                "it belongs under features.rate_limiting.overrides",
            ),
            (
                "enabled: true",
                "enabled: misplaced key: it belongs under providers.<name> or under providers.<name>.accounting "
                "or under accounting or under cors or under features.rate_limiting",
            ),
        ):
            with self.subTest(text):
                self.assertEqual(self.complaint(text), f"configs/base.yml:1: {expected}")

    def test_a_misspelt_key_of_another_place(self) -> None:
        """When nothing here is near, the nearest key of anywhere is named with its path."""
        self.assertEqual(
            self.complaint("log: {peek_byte: 5}"),
            "configs/base.yml:1: log.peek_byte: unknown key; did you mean server.peek_bytes?",
        )

    def test_a_path_as_a_key(self) -> None:
        """A key with dots is told to be written in levels."""
        self.assertEqual(
            self.complaint("upstream.pool_size: 5"),
            "configs/base.yml:1: upstream.pool_size: unknown key: write it in levels, 'pool_size' under 'upstream'",
        )

    def test_a_key_like_nothing(self) -> None:
        """A key without any near one is told which keys there are."""
        self.assertEqual(
            self.complaint("identity: {zzz: 5}"),
            "configs/base.yml:1: identity.zzz: unknown key; the keys here are strip, secret",
        )

    def test_every_key_is_known_in_its_place_only(self) -> None:
        """Each key of the schema is accepted where it belongs and refused at the top of a file."""
        for path, _ in every_key():
            if path[-1] not in SCHEMA.keys and not path[-1].startswith("<"):
                with self.subTest(path):
                    self.assertIn("misplaced key: it belongs", self.complaint(f"{path[-1]}: null"))

    def test_keys_that_are_secrets(self) -> None:
        """A provider's key that landed where a name belongs, by wrong indentation, is not shown."""
        for text in (
            f"{SECRET}: {{}}",
            f"features: {{rate_limiting: {{overrides: {{{SECRET}: {{}}}}}}}}",
            f"providers: {{{SECRET}_: {{}}}}",
            f"features: {{rate_limiting: {{overrides: {{per_key: {{short: {{{SECRET}: 1}}}}}}}}}}",
        ):
            with self.subTest(text):
                found = self.complaint(text)
                self.assertIn("***", found)
                self.assertNotIn(SECRET[:12], found)
                self.assertNotIn("short", found)


class WrongValueTests(ConfigCase):
    def test_wrong_types(self) -> None:
        """A value of another type is named as what it is."""
        for text, expected in (
            (
                "upstream: {pool_size: '5'}",
                "upstream.pool_size: must be a whole number, at least 0, not the text '5'",
            ),
            (
                "upstream: {pool_size: true}",
                "upstream.pool_size: must be a whole number, at least 0, not true",
            ),
            ("upstream: {pool_size: 1.5}", "upstream.pool_size: must be a whole number, at least 0, not 1.5"),
            ("upstream: {pool_size: -1}", "upstream.pool_size: must be a whole number, at least 0, not -1"),
            (
                "upstream: {pool_size: [1]}",
                "upstream.pool_size: must be a whole number, at least 0, not a list",
            ),
            (
                "upstream: {pool_size: {}}",
                "upstream.pool_size: must be a whole number, at least 0, not a map",
            ),
            (
                "upstream: {pool_idle_s: true}",
                "upstream.pool_idle_s: must be a number of seconds above 0, not true",
            ),
            (
                "upstream: {pool_idle_s: .nan}",
                "upstream.pool_idle_s: must be a number of seconds above 0, not the text '.nan'",
            ),
            (
                "upstream: {pool_idle_s: -3}",
                "upstream.pool_idle_s: must be a number of seconds above 0, not -3",
            ),
            ("cors: {enabled: 1}", "cors.enabled: must be true or false, not 1"),
            ("cors: {enabled: 'yes'}", "cors.enabled: must be true or false, not the text 'yes'"),
            ("cors: {allow_origins: '*'}", "cors.allow_origins: must be a list, not the text '*'"),
            ("cors: {allow_origins: {}}", "cors.allow_origins: must be a list, not a map"),
            (
                "cors: {allow_origins: [a.example]}",
                "cors.allow_origins[0]: must be an origin such as https://app.example.com, or *, "
                "not the text 'a.example'",
            ),
            (
                "cors: {allow_methods: [GET, null]}",
                "cors.allow_methods[1]: must be a method name such as POST, not null",
            ),
            ("log: info", "log: must be a map of keys, not the text 'info'"),
            ("log: [info]", "log: must be a map of keys, not a list"),
            ("providers: {openai: false}", "providers.openai: must be a map of keys, not false"),
            (
                "state_dir: 5",
                "state_dir: must be the path of a directory, not 5; what reads as a number or a boolean needs quotes",
            ),
            (
                f"upstream: {{pool_size: {'x' * 90}}}",
                "upstream.pool_size: must be a whole number, at least 0, not a long text",
            ),
        ):
            with self.subTest(text):
                self.assertEqual(self.complaint(text), f"configs/base.yml:1: {expected}")

    def test_times_and_sizes(self) -> None:
        """Each limit says what it takes: which may be off, and below what a head cannot be held."""
        for where in ("upstream", "providers: {groq: {upstream", "server"):
            path = where.replace(": {", ".")
            for key, least, words in (
                ("max_header_bytes", "4096", "a whole number, at least 4096"),
                ("max_connections", "0", "a whole number, at least 0"),
                ("max_headers", "16", "a whole number, at least 16"),
                ("max_body_bytes", "0", "a whole number, at least 0"),
                ("pool_idle_s", "0.1", "a number of seconds above 0"),
                ("connect_timeout_s", "0", "a number of seconds, at least 0"),
                ("idle_timeout_s", "0", "a number of seconds, at least 0"),
                ("header_timeout_s", "0", "a number of seconds, at least 0"),
                ("drain_timeout_s", "0", "a number of seconds, at least 0"),
            ):
                section = SCHEMA.keys["server" if where == "server" else "upstream"]
                if not isinstance(section, Section) or key not in section.keys:
                    continue
                with self.subTest(f"{path}.{key}"):
                    end = "}" * where.count("{")
                    self.load(f"{where}: {{{key}: {least}}}{end}")
                    for bad in ("-1", "0" if least == "0.1" else "-0.5"):
                        found = self.complaint(f"{where}: {{{key}: {bad}}}{end}")
                        self.assertEqual(found, f"configs/base.yml:1: {path}.{key}: must be {words}, not {bad}")
        for bad in ("4095", "0"):
            found = self.complaint(f"server: {{max_header_bytes: {bad}}}")
            self.assertIn(f"server.max_header_bytes: must be a whole number, at least 4096, not {bad}", found)

    def test_what_a_variable_held_is_not_shown(self) -> None:
        """A secret that a variable brought to the wrong key is not in the complaint; the variable is."""
        found = self.complaint("upstream:\n  pool_size: ${KEY}\n", KEY=SECRET)
        self.assertEqual(
            found,
            "configs/base.yml:2: upstream.pool_size: must be a whole number, at least 0, not what '${KEY}' expands to",
        )

    def test_secrets_are_not_shown(self) -> None:
        """A bad value of a secret key is complained about without the value."""
        for text in (
            "identity: {secret: [canary]}",
            'identity: {secret: "canary\\n"}',
            "identity: {secret: 31337}",
            "features: {rate_limiting: {redis: {url: 'http://:canary@h'}}}",
            "providers: {openai: {base_url: 'https://user:canary@h'}}",
            f"upstream: {{pool_size: {SECRET}}}",
        ):
            with self.subTest(text):
                found = self.complaint(text)
                for secret in ("canary", "31337", SECRET[:12]):
                    self.assertNotIn(secret, found)

    def test_every_key_refuses_something(self) -> None:
        """No key of the schema takes just anything: a map in place of a value is refused everywhere."""
        for path, kind in every_key():
            if not isinstance(kind, values.Value | ListOf):
                continue
            text = "{not: this}"
            for name in reversed(path):
                text = f"{{{name.replace('<', 'some').replace('>', '')}: {text}}}"
            with self.subTest(path):
                self.assertIn("not a map", self.complaints(text)[0])


class SchemaTests(ConfigCase):
    def test_schema_and_dataclasses_agree(self) -> None:
        """Every key of a section is a field of its dataclass and the other way round, in the same order."""

        def look(kind: object) -> int:
            if isinstance(kind, Named):
                return look(kind.item)
            if isinstance(kind, Either):
                return look(kind.section)
            if not isinstance(kind, Section):
                return 0
            self.assertEqual(list(kind.keys), list(kind.make.__dataclass_fields__))  # type: ignore[attr-defined]
            return 1 + sum(look(below) for below in kind.keys.values())

        self.assertEqual(look(SCHEMA), 26)
