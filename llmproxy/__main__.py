"""The ``llmproxy`` command, and ``python -m llmproxy``.

Thin: it reads the command line and calls the one place where each thing is done. ``run`` ends in twistd, so
that the proxy started here and the one started with ``twistd -n llmproxy`` are the same service. The rule:
what one command needs is imported by that command, because a start is counted in milliseconds.
"""

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, NoReturn

from llmproxy.commands import prices

if TYPE_CHECKING:
    from llmproxy.commands.usage import LedgerPlace
    from llmproxy.config.model import Config

DEFAULT_SIMULATOR_PORT: Final = 9010


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser whose complaint is one line, without the usage in front of it."""

    def error(self, message: str) -> NoReturn:
        self.exit(1, f"{self.prog}: {message} ({self.prog} --help tells more)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0, or 1 when it failed or was asked for wrongly."""
    words = sys.argv[1:] if argv is None else argv
    parser = _arguments(next((word for word in words if not word.startswith("-")), ""))
    given = parser.parse_args(argv)
    command: Callable[[argparse.Namespace, Mapping[str, str]], int] = given.command
    try:
        code = command(given, os.environ)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # The reader of a pipe has seen enough (`llmproxy show-config | head`). Python would complain once
        # more when it flushes at exit, so standard output is turned away first.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def run(given: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Start the proxy in the foreground, as twistd -n llmproxy does."""
    import signal

    # Until the service takes the signals (lifecycle/signals.py) there is nothing to end in peace. But process 1 of a
    # container gets no SIGTERM that it has no handler for: a stop that comes early would be lost, and waited for. It is
    # no sys.exit: that is an exception, which may come up where an import or a Deferred swallows it.
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0))

    from twisted.scripts import twistd

    options = (("port", given.port), ("config", given.config), ("environment", given.environment))
    passed_on = [f"--{name}={value}" for name, value in options if value is not None]
    # A process in the foreground is known to whoever started it; a pid file would only be in the way of a
    # second one.
    sys.argv = ["twistd", "--nodaemon", "--pidfile=", "llmproxy", *passed_on]
    twistd.run()
    return 0


def check_config(given: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Say whether a configuration would start."""
    from llmproxy.config import report

    if given.files and given.environment:
        return _failed("llmproxy check-config: give files or --environment, not both")
    return report.check_config(
        given.files,
        environ=environ,
        cwd=os.getcwd(),
        environment=given.environment,
        try_out=_try_out,
        out=sys.stdout,
    )


def _try_out(config: "Config") -> None:
    limits = (config.upstream, *config.upstreams.values())
    if isinstance(config.server.port, str) or config.pricing.file or any(each.ca_file for each in limits):
        from llmproxy import tap  # all of Twisted

        tap.try_out(config)


def show_config(given: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Show every value in use, and where it comes from."""
    from llmproxy.config import report

    return report.show_config(
        environ=environ,
        cwd=os.getcwd(),
        config_file=given.config,
        environment=given.environment,
        out=sys.stdout,
    )


def reload(given: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Check the configuration, and have the running proxy take it."""
    import io
    import signal

    from llmproxy.config import report

    said = io.StringIO()
    code = report.check_config(
        (), environ=environ, cwd=os.getcwd(), config_file=given.config, environment=given.environment, out=said
    )
    if code:
        return _failed(f"{said.getvalue()}llmproxy reload: the proxy was not asked to reload: correct this first")
    try:
        pid = given.pid if given.pid is not None else _pid_in(given.pidfile)
        if not _is_ours(pid):
            return _failed(f"llmproxy reload: the process {pid} is no llmproxy; it was left alone")
        os.kill(pid, signal.SIGHUP)
    except (OSError, ValueError, OverflowError) as error:
        return _failed(f"llmproxy reload: {getattr(error, 'strerror', None) or error}: {_whom(given)}")
    sys.stdout.write(f"{said.getvalue()}The process {pid} was asked to reload; its log says what came of it.\n")
    return 0


def key_id(given: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Print the credential id of the key on standard input: the name that the key has in logs."""
    from llmproxy.config import ConfigError, load
    from llmproxy.config.paths import identity_secret_file
    from llmproxy.core.identity import CredentialIds
    from llmproxy.state.identity_secret import IdentitySecretError, load_or_create

    try:
        config = load(environ=environ, cwd=os.getcwd(), config_file=given.config, environment=given.environment)
    except ConfigError as error:
        return _failed(str(error))
    key = _read_key()
    if not key:
        return _failed("llmproxy key-id: no key on standard input")
    try:
        secret = (config.identity.secret or "").encode() or load_or_create(identity_secret_file(config, environ))
    except IdentitySecretError as error:
        return _failed(f"llmproxy key-id: {error}")
    sys.stdout.write(f"{CredentialIds(secret).credential_id(key)}\n")
    return 0


def simulate(given: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Run the built-in simulator of the providers in the foreground."""
    from llmproxy.tap import run_simulator

    run_simulator(port=given.port, host=given.host, keep=given.keep)
    return 0


def usage(given: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Show what was used and what it cost, from the ledger, also of a proxy that runs."""
    import time

    from llmproxy.commands import usage as command
    from llmproxy.config import ConfigError

    try:
        ledger = _ledger(given, environ)[0]
    except ConfigError as error:
        return _failed(str(error))
    if ledger is None:
        return _failed("llmproxy usage: there is no ledger: ledger.backend is off")
    now_s = time.time()  # noqa: TID251 - this is a command, for people, by the wall clock
    return command.usage(given, ledger, environ=environ, out=sys.stdout, err=sys.stderr, now_s=now_s)


def reprice(given: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Work out what requests of the past cost, with other prices, and keep that."""
    import time

    from llmproxy.commands import reprice as command
    from llmproxy.config import ConfigError
    from llmproxy.core.pricing import PriceBook
    from llmproxy.pricing import PricesError, lists_in_use

    try:
        ledger, config = _ledger(given, environ)
        book = PriceBook(lists_in_use(config.prices, given.prices or config.pricing.file))
    except (ConfigError, PricesError) as error:
        return _failed(str(error))
    if ledger is None:
        return _failed("llmproxy reprice: there is no ledger: ledger.backend is off")
    now_s = time.time()  # noqa: TID251 - likewise
    price_of = command.from_book(book)
    return command.reprice(given, ledger, price_of, out=sys.stdout, err=sys.stderr, now_s=now_s)


def _ledger(given: argparse.Namespace, environ: Mapping[str, str]) -> "tuple[LedgerPlace | None, Config]":
    """Where the ledger of the configuration in use is; None if there is none. Raises ConfigError."""
    from llmproxy.commands.usage import LedgerPlace
    from llmproxy.config import load
    from llmproxy.config.paths import ledger_path

    config = load(environ=environ, cwd=os.getcwd(), config_file=given.config, environment=given.environment)
    backend = config.ledger.backend
    return None if backend == "off" else LedgerPlace(backend, ledger_path(config, environ)), config


def _arguments(asked: str) -> _Parser:
    """The command line. What is dear to import is imported for the command that is ``asked`` for alone."""
    parser = _Parser(prog="llmproxy", description="A reverse proxy between applications and LLM providers.")
    parser.add_argument("--version", action=_Version, nargs=0, help="say which version this is")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    one = _command(commands, "run", run)
    one.add_argument("--port", metavar="N|ENDPOINT", help="a port, or tcp:9002:interface=127.0.0.1 and its like")
    _configuration(one)

    one = _command(commands, "check-config", check_config)
    one.add_argument("files", nargs="*", metavar="FILE", help="laid over the defaults; none: those in use")
    one.add_argument("--environment", metavar="NAME", help="use configs/NAME.yml, whatever $ENVIRONMENT says")

    _configuration(_command(commands, "show-config", show_config))

    one = _command(commands, "reload", reload)
    one.epilog = (
        "The proxy is sent SIGHUP. One that was started with llmproxy run writes no pid file: give --pid, or use what "
        "started it (systemctl reload, docker kill --signal HUP)."
    )
    which = one.add_mutually_exclusive_group()
    which.add_argument("--pidfile", metavar="FILE", default="twistd.pid", help="twistd's; default: %(default)s")
    which.add_argument("--pid", type=_positive, metavar="N", help="the number of the process")
    _configuration(one)

    _configuration(_command(commands, "key-id", key_id))

    one = _command(commands, "usage", usage)
    if asked == "usage":
        from llmproxy.commands import usage as usage_command

        usage_command.add_arguments(one)
    _configuration(one)

    one = _command(commands, "reprice", reprice)
    if asked == "reprice":
        from llmproxy.commands import reprice as reprice_command

        reprice_command.add_arguments(one)
    _configuration(one)

    words = "Show what models cost, or import a price list."
    group = commands.add_parser("prices", help=words, description=words, allow_abbrev=False)
    several = group.add_subparsers(title="commands", metavar="COMMAND", required=True)
    one = _command(several, "show", prices.show_price)
    prices.add_show_arguments(one)
    _configuration(one)
    prices.add_import_arguments(_command(several, "import", prices.import_prices))

    one = _command(commands, "simulate", simulate)
    one.add_argument("--port", type=int, metavar="N", default=DEFAULT_SIMULATOR_PORT, help="default: %(default)s")
    one.add_argument("--host", metavar="ADDRESS", default="127.0.0.1", help="default: %(default)s")
    one.add_argument("--keep", type=int, metavar="N", default=1000, help="requests remembered; default: %(default)s")
    return parser


def _command(
    commands: "argparse._SubParsersAction[_Parser]",
    name: str,
    call: Callable[[argparse.Namespace, Mapping[str, str]], int],
) -> _Parser:
    words = (call.__doc__ or "").partition("\n")[0]
    parser = commands.add_parser(name, help=words, description=words, allow_abbrev=False)
    parser.set_defaults(command=call)
    return parser


def _configuration(parser: _Parser) -> None:
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--config", metavar="FILE", help="use this file alone, over the built-in defaults")
    which.add_argument("--environment", metavar="NAME", help="use configs/NAME.yml, whatever $ENVIRONMENT says")


class _Version(argparse.Action):
    """--version. Not argparse's own, which has to know the text before anybody asks."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from llmproxy.version import describe

        sys.stdout.write(f"{describe()}\n")
        parser.exit()


def _positive(text: str) -> int:
    # kill(2) takes 0 and negative numbers for whole groups of processes.
    if not text.isascii() or not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of a process")
    return int(text)


def _pid_in(file: str) -> int:
    """The number in a pid file.

    :raises OSError, ValueError: when there is none.
    """
    with open(file, "rb") as opened:
        content = opened.read(32).strip()
    if not content.isdigit() or not int(content):
        raise ValueError("no process number there")
    return int(content)


def _is_ours(pid: int) -> bool:
    """Whether a process may be a proxy. SIGHUP would end nearly any other that an old pid file leads to."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as opened:
            return b"llmproxy" in opened.read()
    except OSError:
        return True  # no such process, which is told when it is sent the signal; or a system without /proc


def _whom(given: argparse.Namespace) -> str:
    return f"process {given.pid}" if given.pid is not None else f"pid file {given.pidfile}"


def _read_key() -> bytes:
    """The key on standard input, without the end of its line. A terminal does not show it."""
    if sys.stdin.isatty():
        import getpass

        return getpass.getpass("Key: ").encode()
    return sys.stdin.buffer.readline().rstrip(b"\r\n")


def _failed(words: str) -> int:
    sys.stderr.write(f"{words}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
