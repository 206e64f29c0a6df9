"""A folder of configuration files for one test, and what loading it gives."""

import io
import shutil
import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from llmproxy.config import Config, ConfigError, load
from llmproxy.config.report import show_config

ROOT = Path(__file__).resolve().parents[2]


class ConfigCase(SynchronousTestCase):
    """Gives each test an empty directory to start in."""

    def setUp(self) -> None:
        self.cwd = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.cwd)

    def write(self, name: str, text: str) -> None:
        """Write ``configs/<name>.yml``."""
        folder = self.cwd / "configs"
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.yml").write_text(text, encoding="utf-8")

    def load(
        self,
        text: str | None = None,
        *,
        environment: str | None = None,
        config_file: str | None = None,
        **environ: str,
    ) -> Config:
        """Load; ``text`` is written to base.yml first."""
        if text is not None:
            self.write("base", text)
        return load(environ=environ, cwd=str(self.cwd), config_file=config_file, environment=environment)

    def complaints(
        self,
        text: str | None = None,
        *,
        environment: str | None = None,
        config_file: str | None = None,
        **environ: str,
    ) -> list[str]:
        """The complaints about a configuration that must not load, one each."""
        with self.assertRaises(ConfigError) as caught:
            self.load(text, environment=environment, config_file=config_file, **environ)
        return str(caught.exception).split("\n")

    def complaint(self, text: str | None = None, **environ: str) -> str:
        """The one complaint there must be."""
        found = self.complaints(text, **environ)
        self.assertEqual(len(found), 1, found)
        return found[0]

    def shown(self, **environ: str) -> dict[str, str]:
        """What show-config shows: ``value  # origin`` by path."""
        out = io.StringIO()
        self.assertEqual(show_config(environ=environ, cwd=str(self.cwd), out=out), 0, out.getvalue())
        rows = out.getvalue().splitlines()[1:]
        return dict(row.split(" = ", 1) for row in rows)
