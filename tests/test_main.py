"""Tests of llmproxy.__main__: the llmproxy command."""

import io
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType

from twisted.trial.unittest import SynchronousTestCase

from llmproxy import __main__ as command
from llmproxy.__main__ import main
from llmproxy.core.identity import CredentialIds
from llmproxy.version import VERSION
from tests.config.case import ROOT


class CommandCase(SynchronousTestCase):
    """Runs the command in this process, in an empty directory and environment."""

    def setUp(self) -> None:
        self.cwd = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.cwd)
        self.environ = {"HOME": str(self.cwd / "home")}
        self.patch(os, "environ", self.environ)
        self.patch(os, "getcwd", lambda: str(self.cwd))

    def command(self, *arguments: str, stdin: bytes = b"") -> tuple[int, str, str]:
        """Exit code, standard output, standard error."""
        out, err = io.StringIO(), io.StringIO()
        self.patch(sys, "stdout", out)
        self.patch(sys, "stderr", err)
        self.patch(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        try:
            code = main(arguments)
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else 1
        return code, out.getvalue(), err.getvalue()


class UsageTests(CommandCase):
    def test_wrong_usage(self) -> None:
        """What cannot be done is one line on standard error, never a traceback, and exit code 1."""
        for arguments in (
            (),
            ("rnu",),
            ("--nope",),
            ("run", "--nope"),
            ("run", "9002"),
            ("run", "--conf", "x"),
            ("run", "--config", "x", "--environment", "y"),
            ("show-config", "x"),
            ("check-config", "x", "--environment", "y"),
            ("simulate", "--port", "x"),
            ("key-id", "sk-key-on-the-command-line"),
            ("reload", "1"),
            ("reload", "--pid", "0"),
            ("reload", "--pid", "-5"),
            ("reload", "--pid", "1", "--pidfile", "x"),
            ("reload", "--config", "x", "--environment", "y"),
        ):
            with self.subTest(arguments):
                code, out, err = self.command(*arguments)
                self.assertEqual(code, 1)
                self.assertEqual((out, len(err.splitlines())), ("", 1))
                self.assertTrue(err.startswith("llmproxy"), err)

    def test_help(self) -> None:
        """--help lists the commands."""
        code, out, _ = self.command("--help")
        self.assertEqual(code, 0)
        for name in (
            "run",
            "check-config",
            "show-config",
            "reload",
            "key-id",
            "usage",
            "reprice",
            "prices",
            "simulate",
        ):
            self.assertIn(f"\n    {name}", out)

    def test_version(self) -> None:
        """--version says which version, and which commit it was built from."""
        code, out, err = self.command("--version")
        self.assertEqual((code, out.splitlines()[0], err), (0, f"llmproxy {VERSION}", ""))
        self.assertIn("\nGit commit: ", out)


class RunTests(CommandCase):
    def run_twistd(self, *arguments: str) -> list[str]:
        """The command line that twistd would see."""
        from twisted.scripts import twistd

        seen: list[list[str]] = []
        self.addCleanup(signal.signal, signal.SIGTERM, signal.getsignal(signal.SIGTERM))
        self.patch(twistd, "run", lambda: seen.append(sys.argv))
        self.patch(sys, "argv", ["llmproxy"])
        self.assertEqual(self.command("run", *arguments), (0, "", ""))
        return seen[0]

    def test_run_is_twistd(self) -> None:
        """run stays in the foreground, writes no pid file, and is the plugin's service."""
        self.assertEqual(self.run_twistd(), ["twistd", "--nodaemon", "--pidfile=", "llmproxy"])

    def test_options_are_passed_on(self) -> None:
        """What run is told the service is told, empty values and leading dashes included."""
        self.assertEqual(self.run_twistd("--port", "80", "--environment", "x")[4:], ["--port=80", "--environment=x"])
        self.assertEqual(self.run_twistd("--port=unix:/x y", "--config=-")[4:], ["--port=unix:/x y", "--config=-"])
        self.assertEqual(self.run_twistd("--port=")[4:], ["--port="])


class ReloadTests(CommandCase):
    """`llmproxy reload`; tests/live sends real signals."""

    def setUp(self) -> None:
        super().setUp()
        self.sent: list[tuple[int, int]] = []
        self.patch(os, "kill", self._kill)
        self.patch(command, "_is_ours", lambda pid: pid != 99)

    def _kill(self, pid: int, number: int) -> None:
        if pid >= 2**31:
            raise OverflowError("signed integer is greater than maximum")  # as os.kill
        self.sent.append((pid, number))

    def pid_file(self, content: str, name: str = "twistd.pid") -> str:
        path = self.cwd / name
        path.write_text(content)
        return str(path)

    def test_sends_the_signal(self) -> None:
        """A good configuration is said to be one, and the process is sent SIGHUP."""
        file = self.pid_file("4711\n")
        for arguments in (("--pidfile", file), ("--pid", "4711")):
            code, out, err = self.command("reload", *arguments)
            self.assertEqual((code, err), (0, ""))
            self.assertEqual([line.split()[0] for line in out.splitlines()], ["OK:", "The"])
        self.assertEqual(self.sent, [(4711, signal.SIGHUP)] * 2)

    def test_a_bad_configuration(self) -> None:
        """Mistakes are told as check-config does, and nobody is sent anything."""
        (self.cwd / "bad.yml").write_text("upstream:\n  pool_size: many\n")
        code, out, err = self.command("reload", "--pid", "4711", "--config", "bad.yml")
        self.assertEqual((code, out, self.sent), (1, "", []))
        self.assertIn("bad.yml:2: upstream.pool_size: ", err)

    def test_no_process(self) -> None:
        """A pid file that does not lead to a proxy is told, and nobody is sent anything."""
        for content in ("", "x", "-1", "0", "1 2", "99", "9" * 30):
            code, out, err = self.command("reload", "--pidfile", self.pid_file(content))
            self.assertEqual((code, out, len(err.splitlines())), (1, "", 1))
        code, _, err = self.command("reload", "--pidfile", str(self.cwd / "nowhere"))
        self.assertEqual(code, 1)
        self.assertIn("nowhere", err)
        self.assertEqual(self.sent, [])

    def test_help(self) -> None:
        """The help says what to do where there is no pid file."""
        _, out, _ = self.command("reload", "--help")
        self.assertIn("systemctl reload", out)


class SimulateTests(CommandCase):
    def test_simulate(self) -> None:
        """simulate starts the simulator, by default where configs/demo.yml looks for it."""
        calls: list[dict[str, object]] = []
        tap = ModuleType("llmproxy.tap")
        tap.__dict__["run_simulator"] = lambda **given: calls.append(given)
        self.patch_module(tap)
        self.assertEqual(self.command("simulate"), (0, "", ""))
        self.assertEqual(self.command("simulate", "--port", "1", "--host", "::1", "--keep", "5"), (0, "", ""))
        self.assertEqual(
            calls, [{"port": 9010, "host": "127.0.0.1", "keep": 1000}, {"port": 1, "host": "::1", "keep": 5}]
        )
        self.assertIn("${SIMULATOR_PORT:-9010}", (ROOT / "configs" / "demo.yml").read_text())

    def patch_module(self, module: ModuleType) -> None:
        before = sys.modules.get(module.__name__)
        sys.modules[module.__name__] = module

        def restore() -> None:
            del sys.modules[module.__name__]
            if before is not None:
                sys.modules[module.__name__] = before

        self.addCleanup(restore)


class ConfigTests(CommandCase):
    def test_check_config(self) -> None:
        """check-config judges the files it is given, or those in use, and its exit code says how."""
        self.assertEqual(self.command("check-config")[0], 0)
        (self.cwd / "bad.yml").write_text("foo: 1")
        code, out, _ = self.command("check-config", "bad.yml")
        self.assertEqual(code, 1)
        self.assertIn("bad.yml:1: foo: unknown key", out)
        code, out, _ = self.command("check-config", "--environment", "nope")
        self.assertEqual((code, out), (1, "--environment: there is no configs/nope.yml\n"))

    def test_what_it_names(self) -> None:
        """check-config also looks at what the configuration names, and a start would use."""
        (self.cwd / "ca.pem").write_text("no certificate")
        for text, words in (
            ("server: {port: 'tpc:9002'}", "tpc:9002"),
            ("server: {port: 'ssl:9002:privateKey=nosuch.pem'}", "nosuch.pem"),
            (f"upstream: {{ca_file: {self.cwd}/nosuch.pem}}", "ca_file"),
            (f"providers: {{openai: {{upstream: {{ca_file: {self.cwd}/ca.pem}}}}}}", "ca.pem"),
        ):
            (self.cwd / "bad.yml").write_text(text)
            code, out, _ = self.command("check-config", "bad.yml")
            self.assertEqual((code, len(out.splitlines())), (1, 1), out)
            self.assertIn(words, out)
        (self.cwd / "good.yml").write_text("server: {port: 'tcp:9002:interface=127.0.0.1'}")
        self.assertEqual(self.command("check-config", "good.yml")[0], 0)

    def test_show_config(self) -> None:
        """show-config shows the file or the environment that was asked for."""
        (self.cwd / "mine.yml").write_text("log: {level: debug}")
        code, out, _ = self.command("show-config", "--config", "mine.yml")
        self.assertEqual(code, 0)
        self.assertIn("\nlog.level = debug  # mine.yml:1\n", out)
        self.environ["LOG_LEVEL"] = "error"
        self.assertIn("\nlog.level = error  # environment variable LOG_LEVEL\n", self.command("show-config")[1])


class KeyIdTests(CommandCase):
    def test_with_a_secret(self) -> None:
        """The id of a key is the one that the log has for it, with or without a line end."""
        self.environ["LLM_PROXY_IDENTITY_SECRET"] = "s"
        expected = CredentialIds(b"s").credential_id(b"sk-key")
        for stdin in (b"sk-key\n", b"sk-key", b"sk-key\r\n", b"sk-key\nmore\n"):
            self.assertEqual(self.command("key-id", stdin=stdin), (0, f"{expected}\n", ""))
        self.assertFalse((self.cwd / "home").exists())

    def test_without_a_secret(self) -> None:
        """The secret is made once and kept, so that the id stays."""
        first = self.command("key-id", stdin=b"sk-key")
        kept = self.cwd / "home" / ".local" / "state" / "llmproxy" / "identity-secret"
        self.assertEqual(kept.stat().st_mode & 0o777, 0o600)
        expected = CredentialIds(kept.read_bytes().strip()).credential_id(b"sk-key")
        self.assertEqual(first, (0, f"{expected}\n", ""))
        self.assertEqual(self.command("key-id", stdin=b"sk-key"), first)

    def test_failures(self) -> None:
        """No key, a bad configuration and an unusable state directory are one line and exit code 1."""
        code, out, err = self.command("key-id", stdin=b"\n")
        self.assertEqual((code, out, err), (1, "", "llmproxy key-id: no key on standard input\n"))
        code, out, err = self.command("key-id", "--config", "nope.yml", stdin=b"sk-key")
        self.assertEqual((code, out, err), (1, "", "nope.yml: cannot be read: No such file or directory\n"))
        (self.cwd / "home").write_text("a file where a directory should be")
        code, out, err = self.command("key-id", stdin=b"sk-key")
        self.assertEqual((code, out, len(err.splitlines())), (1, "", 1))
        self.assertNotIn("sk-key", err)


class ProcessTests(SynchronousTestCase):
    """What can only be seen in a process of its own."""

    def python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
        )

    def test_commands_about_the_configuration_are_light(self) -> None:
        """check-config loads neither Twisted nor the rest of the proxy: it is run from hooks and editors."""
        script = (
            "import sys; from llmproxy.__main__ import main; main(['check-config', 'configs/base.yml']);"
            "print(sorted({'twisted', 'treq', 'OpenSSL', 'httptools', 'asyncio'} & set(sys.modules)))"
        )
        done = self.python("-c", script)
        self.assertEqual((done.stdout.splitlines()[-1:], done.stderr), (["[]"], ""))

    def test_a_stop_that_comes_early(self) -> None:
        """SIGTERM while run still imports what it needs ends it with status 0, though exceptions get lost there."""
        script = (
            "import sys, time\n"
            "class Slow:\n"
            "    def find_spec(self, name, *more):\n"
            "        if name == 'twisted':\n"
            "            try:\n"
            "                print('importing', flush=True), time.sleep(30)\n"
            "            except BaseException:\n"
            "                time.sleep(30)\n"
            "sys.meta_path.insert(0, Slow())\n"
            "from llmproxy.__main__ import main; main(['run'])"
        )
        with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            self.addCleanup(process.kill)
            assert process.stdout is not None
            self.assertEqual(process.stdout.readline(), "importing\n")
            process.send_signal(signal.SIGTERM)
            self.assertEqual(process.wait(10), 0)

    def test_module(self) -> None:
        """python -m llmproxy is the same command, and hands its exit code on."""
        self.assertTrue(self.python("-m", "llmproxy", "--version").stdout.startswith(f"llmproxy {VERSION}\n"))
        self.assertEqual(self.python("-m", "llmproxy", "check-config", "nope.yml").returncode, 1)

    def test_a_reader_that_leaves(self) -> None:
        """A pipe that is closed early ends the command without a traceback."""
        done = subprocess.run(
            ["/bin/sh", "-c", f"{sys.executable} -m llmproxy show-config | true"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        self.assertEqual(done.stderr, "")
