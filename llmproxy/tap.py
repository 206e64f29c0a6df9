"""Where everything is put together: the options of ``twistd llmproxy``, and the service that they make.

The one module that imports the reactor, and the one that builds other modules' objects. Everything else is given
what it needs.
"""

from __future__ import annotations

import encodings.idna  # noqa: F401 - each look-up of a name needs it, and --uid or --chroot may put it out of reach
import os
import select
import stat
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final, NoReturn

from twisted.application.service import IServiceCollection, MultiService
from twisted.internet import reactor as _reactor
from twisted.internet.interfaces import IStreamServerEndpoint
from twisted.logger import ILogObserver, Logger
from twisted.python.components import Componentized
from twisted.python.usage import Options as UsageOptions
from twisted.python.usage import UsageError

from llmproxy.assembly import Assembly, StartError, price_lists, try_trust
from llmproxy.config.complaint import ConfigError
from llmproxy.config.loading import Loaded, load_in_use
from llmproxy.config.model import DEFAULT_PORT, Config
from llmproxy.lifecycle.files import check_limit, raise_limit
from llmproxy.lifecycle.listening import BACKLOG, TlsEndpoint, endpoint_for
from llmproxy.lifecycle.notify import Notify
from llmproxy.lifecycle.reload import Reload
from llmproxy.lifecycle.signals import take_signals
from llmproxy.observe.access import AccessRecord, as_mapping
from llmproxy.observe.file import LogFile
from llmproxy.observe.log import LogObserver
from llmproxy.observe.redact import text_without_keys
from llmproxy.service import ProxyService
from llmproxy.version import VERSION
from llmproxy.wire.dial import proxy_for
from llmproxy.wire.polling import read_directly
from llmproxy.wire.resolve import CachingResolver, SystemResolver

reactor: Any = _reactor

LOG_MODE: Final = 0o640
"""Users and addresses are in the log: it is for its owner, and for a group that may read logs."""

_log: Final = Logger()


class Options(UsageOptions):
    """The options of ``twistd llmproxy``.

    :ivar load: loads the configuration that these options ask for; may raise ConfigError.
    :ivar loaded: what it gave when the options were parsed.
    :ivar endpoint: where to listen.
    :ivar log_path: the file to log to; None for standard output.
    :ivar log_mode: who may read and write that file, if it is made.
    :ivar log_owner: user and group that twistd is about to become; -1 for either that it does not change.
    :ivar daemon: whether twistd goes into the background.
    :ivar own_log: whether twistd was given a log of its own choice (``--logger``, ``--syslog``).
    """

    synopsis = "[options]"
    optParameters: ClassVar[list[list[str | None]]] = [
        ["port", "p", None, "A port number, or a Twisted endpoint string such as tcp:9002:interface=127.0.0.1"],
        ["config", "c", None, "Read this file alone, over the built-in defaults"],
        [
            "environment",
            "e",
            None,
            "Which configs/NAME.yml to lay over configs/base.yml (default: $ENVIRONMENT, else dev)",
        ],
    ]
    load: Callable[[], Loaded]
    loaded: Loaded
    listen: int | str
    endpoint: IStreamServerEndpoint
    log_path: str | None = None
    log_mode = LOG_MODE
    log_owner: tuple[int, int] = (-1, -1)
    daemon = False
    own_log = False

    def parseOptions(self, options: Any = None) -> None:
        """Parse, as every Options does; a mistake is one line on standard error and not a page of usage."""
        try:
            super().parseOptions(options)
        except UsageError as error:
            _refuse(str(error))

    def postOptions(self) -> None:
        """Load the configuration and check the port, while a mistake can still be one line.

        :raises SystemExit: with status 1, after the lines on standard error.
        """
        environ, cwd = dict(os.environ), os.getcwd()
        file, environment = self["config"], self["environment"]
        self.load = lambda: load_in_use(environ=environ, cwd=cwd, config_file=file, environment=environment)
        try:
            self.loaded = self.load()
            self.listen = _listen_at(self["port"], self.loaded.config)
            self.endpoint = endpoint_for(self.listen, reactor)
            proxy_for("", environ)
        except (ConfigError, ValueError) as error:
            _refuse(str(error))
        parent: Mapping[str, Any] = self.parent or {}
        self.own_log = bool(parent.get("logger") or parent.get("syslog"))
        if parent.get("logfile") not in (None, "-"):
            self.log_path = os.path.abspath(parent["logfile"])
        self.daemon = bool(parent) and not parent.get("nodaemon")
        if self.daemon and self.log_path is None:
            self.log_path = os.path.abspath("twistd.log")
        # The log is opened before twistd sets the mask of the process, which is 077 for a daemon that is told none.
        mask = parent.get("umask")
        self.log_mode = LOG_MODE & ~(mask if mask is not None else 0o077 if self.daemon else 0)
        user, group = parent.get("uid"), parent.get("gid")
        self.log_owner = (-1 if user is None else user, -1 if group is None else group)

    def opt_version(self) -> NoReturn:
        """Show the version and exit."""
        print(f"llmproxy {VERSION}")
        sys.exit(0)


def _listen_at(option: str | None, config: Config) -> int | str:
    """A port number or an endpoint string: the option, else what the configuration says (PORT included), else 9002."""
    value: int | str | None = option if option is not None else config.server.port
    if value is None:
        return DEFAULT_PORT
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value)
    if isinstance(value, int) and not 0 <= value <= 65535:
        raise ValueError(f"the port {value} is not between 0 and 65535")
    return value


def makeService(options: Options) -> MultiService:
    """The service for these options. Opens no file, thread or socket: twistd has not dropped privileges yet."""
    # The wall clock may be set while deadlines run. Everything that the reactor calls at a time, and everything that
    # is measured, goes by a clock that only goes forward; nothing is scheduled before this line.
    reactor.seconds = time.monotonic
    config = options.loaded.config
    log_file = None
    if options.log_path is not None:
        log_file = LogFile(options.log_path, options.log_mode, options.log_owner, _warn_soon)
    observer = LogObserver(
        log_file.write if log_file is not None else _to_descriptor(1),
        reactor,
        format=_log_format(config, options.log_path),
        level=config.log.level,
        wall_time=time.time,
    )
    files = ", ".join(config.files) or "built-in defaults"

    # Our own observer takes the record directly: the way through the publisher costs more than writing the line.
    write_access = _log_access if options.own_log else observer.access

    def banner(address: str) -> str:
        providers = ", ".join(config.providers)
        return f"llmproxy {VERSION} listening on {address}; providers: {providers}; configuration: {files}"

    def follow(old: Config, new: Config) -> None:
        observer.follow(_log_format(new, options.log_path), new.log.level)
        if new.server.max_connections != old.server.max_connections:
            check_limit(raise_limit(), new.server.max_connections)

    endpoint = options.endpoint
    service = ProxyService(
        lambda: assemble(config, os.environ, write_access),
        endpoint,
        banner,
        _Process(_refuse_from_background if options.daemon else _refuse, observer.close),
        Notify(os.environ, reactor),
        Reload(options.loaded, options.load, follow, endpoint.reload if isinstance(endpoint, TlsEndpoint) else None),
    )
    services = LoggedServices() if options.own_log else LoggedServices(observer, log_file)
    service.setServiceParent(services)
    return services


class _Process:
    """This process, for the service."""

    def __init__(self, refuse: Callable[[str], NoReturn], flush_log: Callable[[], None]) -> None:
        self.clock = reactor
        self.refuse = refuse
        self.flush_log = flush_log

    def take_signals(self, end: Callable[[str], None], reload: Callable[[], None]) -> None:
        take_signals(reactor, end, reload)

    def end(self, status: int = 0) -> None:
        if status:
            # twistd knows only the status 0 for an end of the reactor. By then all is closed, and the log is written.
            reactor.addSystemEventTrigger("after", "shutdown", os._exit, status)
        reactor.stop()


class LoggedServices(MultiService):
    """Brings its log observer along to the application, which twistd then uses in place of its own.

    :param observer: None if twistd's own stays.
    :param log_file: what it writes to, if that is a file; it is opened here.
    """

    def __init__(self, observer: LogObserver | None = None, log_file: LogFile | None = None) -> None:
        super().__init__()
        self._observer = observer
        self._log_file = log_file

    def setServiceParent(self, parent: IServiceCollection) -> None:
        """Called by twistd before it starts logging, goes into the background and gives its privileges away.

        So it is the place to open the log: only root may write in most folders of logs, and there is still a standard
        error to say that it cannot be opened.

        :raises SystemExit: with status 1, when the log file cannot be opened.
        """
        if self._observer is not None and isinstance(parent, Componentized):
            if self._log_file is not None:
                try:
                    self._log_file.open()
                except OSError as error:
                    _refuse(f"the log file {error.filename} cannot be opened: {error.strerror}")
            parent.setComponent(ILogObserver, self._observer)
        super().setServiceParent(parent)


def try_out(config: Config) -> None:
    """Look at what a configuration names, and a start would use: the endpoint with its certificate, and the CA files.

    :raises ValueError: with one line that says what cannot be used.
    """
    endpoint_for(_listen_at(None, config), reactor)
    try:
        try_trust(config)
        price_lists(config)
    except StartError as error:
        raise ValueError(str(error)) from None


def assemble(config: Config, environ: Mapping[str, str], write_access: Callable[[AccessRecord], None]) -> Assembly:
    """Put the proxy together, and prepare the reactor for it.

    :raises StartError: when something that it needs is not there.
    """
    check_limit(raise_limit(), config.server.max_connections)
    read_directly(reactor)
    reactor.installNameResolver(CachingResolver(SystemResolver(reactor), reactor))
    return Assembly(config, environ, reactor, write_access, time.time)


def run_simulator(*, port: int, host: str, keep: int) -> None:
    """Serve the built-in provider simulator until the process is ended."""
    from twisted.internet.endpoints import TCP4ServerEndpoint as Endpoint

    from llmproxy.simulate import SimulatorRoot
    from llmproxy.wire.server import Site

    site = Site(SimulatorRoot(reactor, keep), reactor)

    def listening(bound: Any) -> None:
        print(f"simulator listening on {host}:{bound.getHost().port}", flush=True)

    def failed(reason: Any) -> None:
        print(f"llmproxy: cannot listen on {host}:{port}: {reason.value.socketError}", file=sys.stderr)
        outcome.append(1)
        if reactor.running:
            reactor.stop()

    outcome: list[int] = []
    raise_limit()
    Endpoint(reactor, port, backlog=BACKLOG, interface=host).listen(site).addCallbacks(listening, failed)
    if not outcome:
        reactor.run()
    sys.exit(outcome[0] if outcome else 0)


def _log_format(config: Config, log_path: str | None) -> str:
    if config.log.format != "auto":
        return config.log.format
    return "text" if log_path is None and os.isatty(1) else "json"


def _to_descriptor(descriptor: int) -> Callable[[bytes], object]:
    """Writes to standard output itself (twistd puts its own log in the place of ``sys.stdout``) as much as the reader
    takes now, and never waits for one: the reactor would wait with it.

    A pipe or a terminal may be shared with other programs, so it is not made non-blocking. Instead it is asked before
    each piece whether it has room; then it has room for PIPE_BUF bytes (pipe(7)).
    """
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return lambda data: os.write(descriptor, data)
    poller = select.poll()
    poller.register(descriptor, select.POLLOUT)

    def write(data: bytes) -> int:
        written = 0
        while written < len(data) and poller.poll(0):
            try:
                written += os.write(descriptor, data[written : written + select.PIPE_BUF])
            except OSError:
                if not written:
                    raise
                break  # what was taken was taken; what is wrong will show again
        return written

    return write


def _warn_soon(text: str) -> None:
    """Log a warning from within the writing of the log: in the reactor's next turn."""
    reactor.callLater(0, _log.warn, "{what}", what=text)


def _refuse_from_background(text: str) -> NoReturn:
    """A daemon has no standard error: twistd's parent process tells of the exception, and ends with status 1."""
    raise StartError(text)


def _log_access(record: AccessRecord) -> None:
    """The access record for a log that is not ours: masked here, as nobody else does it."""
    access = {
        name: text_without_keys(value) if isinstance(value, str) else value
        for name, value in as_mapping(record).items()
    }
    Logger(namespace="llmproxy.access").info("access {access}", access=access)


def _refuse(text: str) -> NoReturn:
    for line in text.splitlines():
        print(f"llmproxy: {line}", file=sys.__stderr__)
    raise SystemExit(1)
