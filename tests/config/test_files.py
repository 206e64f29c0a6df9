"""Tests of llmproxy.config.files: which files are used."""

from tests.config.case import ConfigCase


class FilesTests(ConfigCase):
    def setUp(self) -> None:
        super().setUp()
        for name in ("base", "dev", "production", "eu"):
            self.write(name, "")

    def files(self, environment: str | None = None, config_file: str | None = None, **environ: str) -> list[str]:
        config = self.load(environment=environment, config_file=config_file, **environ)
        return [name.removeprefix("configs/").removesuffix(".yml") for name in config.files]

    def test_order(self) -> None:
        """base, then the environment, then the profile; the option goes before the variable."""
        self.assertEqual(self.files(), ["base", "dev"])
        self.assertEqual(self.files(ENVIRONMENT=""), ["base", "dev"])
        self.assertEqual(self.files(ENVIRONMENT="production"), ["base", "production"])
        self.assertEqual(self.files("dev", ENVIRONMENT="production"), ["base", "dev"])
        self.assertEqual(self.files("production", LLM_PROXY_CONFIG_PROFILE="eu"), ["base", "production", "eu"])
        self.assertEqual(self.files(LLM_PROXY_CONFIG_PROFILE="eu"), ["base", "dev", "eu"])
        self.assertEqual(self.files(LLM_PROXY_CONFIG_PROFILE="dev"), ["base", "dev"])

    def test_one_file_alone(self) -> None:
        """--config takes that file and no other, whatever the environment says."""
        self.write("only", "upstream: {pool_size: 1}")
        environ = {"ENVIRONMENT": "nope", "LLM_PROXY_CONFIG_PROFILE": "nope"}
        self.assertEqual(self.files(config_file="configs/only.yml", **environ), ["only"])
        self.assertEqual(
            self.complaints(config_file="configs/only.yml", environment="dev"),
            ["--environment: --config takes that file alone, so --environment would do nothing: give one of them"],
        )

    def test_files_that_may_be_missing(self) -> None:
        """base.yml, and dev.yml while nobody named it."""
        (self.cwd / "configs" / "dev.yml").unlink()
        self.assertEqual(self.files(), ["base"])
        (self.cwd / "configs" / "base.yml").unlink()
        self.assertEqual(self.files(), [])
        self.assertEqual(self.files("eu"), ["eu"])

    def test_files_that_were_named(self) -> None:
        """A named file that is missing is an error that says who named it and which is near."""
        self.assertEqual(
            self.complaints(environment="prodution", LLM_PROXY_CONFIG_PROFILE="zz"),
            [
                "--environment: there is no configs/prodution.yml; did you mean production?",
                "environment variable LLM_PROXY_CONFIG_PROFILE: there is no configs/zz.yml; "
                "there are dev, eu, production",
            ],
        )
        self.assertEqual(
            self.complaints(ENVIRONMENT="zz"),
            ["environment variable ENVIRONMENT: there is no configs/zz.yml; there are dev, eu, production"],
        )
        (self.cwd / "configs" / "dev.yml").unlink()
        self.assertEqual(
            self.complaints(ENVIRONMENT="dev"),
            ["environment variable ENVIRONMENT: there is no configs/dev.yml; there are eu, production"],
        )

    def test_names_that_are_paths(self) -> None:
        """A name cannot lead out of the configs folder."""
        (self.cwd / "out.yml").write_text("")
        for name in ("../out", "/etc/passwd", ".hidden", "a/b", "a\0", "a\nb"):
            with self.subTest(name):
                self.assertIn("cannot be the name of a file in configs", self.complaint(ENVIRONMENT=name))
