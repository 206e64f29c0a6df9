"""Tests of llmproxy.config.paths: where state is kept."""

from twisted.trial.unittest import SynchronousTestCase

from llmproxy.config import Config
from llmproxy.config.paths import absolute, identity_secret_file, state_dir


class PathsTests(SynchronousTestCase):
    def test_state_dir(self) -> None:
        """The configuration, then systemd, then the XDG directory, then the home directory."""
        everything = {
            "STATE_DIRECTORY": "/var/lib/a:/var/lib/b",
            "XDG_STATE_HOME": "/xdg",
            "HOME": "/home/me",
        }
        self.assertEqual(state_dir(Config(state_dir="/s"), everything), "/s")
        self.assertEqual(state_dir(Config(), everything), "/var/lib/a")
        del everything["STATE_DIRECTORY"]
        self.assertEqual(state_dir(Config(), everything), "/xdg/llmproxy")
        for ignored in ("", "relative"):
            environ = {"XDG_STATE_HOME": ignored, "HOME": "/home/me", "STATE_DIRECTORY": ""}
            self.assertEqual(state_dir(Config(), environ), "/home/me/.local/state/llmproxy")

    def test_identity_secret(self) -> None:
        """The secret is kept in the state directory."""
        self.assertEqual(identity_secret_file(Config(state_dir="/s"), {}), "/s/identity-secret")

    def test_absolute(self) -> None:
        """Paths are meant from where the proxy was started."""
        for path, expected in (
            ("a", "/c/a"),
            ("/a", "/a"),
            ("../a", "/a"),
            ("~", "/h"),
            ("~/a", "/h/a"),
            ("~x", "/c/~x"),
        ):
            with self.subTest(path):
                self.assertEqual(absolute(path, cwd="/c", environ={"HOME": "/h"}), expected)
