"""Where everything is put together: the options of ``twistd llmproxy``, and the service that they make.

The one module that imports the reactor, and the one that builds other modules' objects. Everything else is given
what it needs.
"""

from __future__ import annotations

import os
import re
import resource
import select
import stat
import sys
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NoReturn

from twisted.application.service import IServiceCollection, MultiService
from twisted.internet import reactor as _reactor
from twisted.internet.endpoints import TCP4ServerEndpoint, TCP6ServerEndpoint, serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IStreamServerEndpoint
from twisted.logger import ILogObserver, Logger
from twisted.python.components import Componentized
from twisted.python.usage import Options as UsageOptions
from twisted.python.usage import UsageError
from zope.interface import implementer

from llmproxy.config import ConfigError, load
from llmproxy.config.model import DEFAULT_PORT, Config
from llmproxy.config.paths import identity_secret_file
from llmproxy.core.identity import CredentialIds
from llmproxy.observe.access import AccessRecord
from llmproxy.observe.log import LogObserver
from llmproxy.service import Assembly, ProxyService, StartError
from llmproxy.state.identity_secret import IdentitySecretError, load_or_create
from llmproxy.upstream.client import ExactClient
from llmproxy.upstream.origin import Origin
from llmproxy.version import VERSION
from llmproxy.web.context import Context, Route, request_ids
from llmproxy.web.cors import CorsPolicy
from llmproxy.web.site import ProxySite
from llmproxy.web.tree import Root
from llmproxy.wire.dial import Dialer, proxy_for
from llmproxy.wire.polling import read_directly
from llmproxy.wire.resolve import CachingResolver
from llmproxy.wire.tls import client_context

reactor: Any = _reactor
BACKLOG = 1024
"""Connections that the kernel keeps for us while we are busy; Twisted's default is 50."""


_HOST_AND_PORT = re.compile(r"(?:\d{1,3}(?:\.\d{1,3}){3}|localhost|[\w-]+(?:\.[\w-]+)+):\d+\Z")


class Options(UsageOptions):
    """The options of ``twistd llmproxy``.

    :ivar config: the configuration, once the options were parsed.
    :ivar log_path: the file to log to; None for standard output.
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
    config: Config
    listen: int | str
    log_path: str | None = None
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
        try:
            self.config = load(
                environ=os.environ, cwd=os.getcwd(), config_file=self["config"], environment=self["environment"]
            )
            self.listen = _listen_at(self["port"], self.config)
            listening_endpoint(self.listen)
            proxy_for("", os.environ)
        except (ConfigError, ValueError) as error:
            _refuse(str(error))
        parent: Mapping[str, Any] = self.parent or {}
        self.own_log = bool(parent.get("logger") or parent.get("syslog"))
        if parent.get("logfile") not in (None, "-"):
            self.log_path = os.path.abspath(parent["logfile"])
        self.daemon = bool(parent) and not parent.get("nodaemon")
        if self.daemon and self.log_path is None:
            self.log_path = os.path.abspath("twistd.log")

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


@implementer(IStreamServerEndpoint)
class AllInterfaces:
    """Listens on every address, IPv6 and IPv4, or on IPv4 alone where the system has no IPv6."""

    def __init__(self, port: int) -> None:
        self._port = port

    def listen(self, factory: Any) -> Any:
        """See IStreamServerEndpoint."""
        return (
            TCP6ServerEndpoint(reactor, self._port, backlog=BACKLOG)
            .listen(factory)
            .addErrback(self._without_ipv6, factory)
        )

    def _without_ipv6(self, reason: Any, factory: Any) -> Any:
        import errno

        reason.trap(CannotListenError)
        if getattr(reason.value.socketError, "errno", None) not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            return reason
        return TCP4ServerEndpoint(reactor, self._port, backlog=BACKLOG).listen(factory)


def listening_endpoint(listen: int | str) -> IStreamServerEndpoint:
    """The endpoint for ``listen``.

    :raises ValueError: when it is a string that Twisted does not understand.
    """
    if isinstance(listen, int):
        return AllInterfaces(listen)
    if _HOST_AND_PORT.match(listen):
        host, _, port = listen.rpartition(":")
        raise ValueError(f"the port {listen!r} is a host and a port: write tcp:{port}:interface={host}")
    try:
        return serverFromString(reactor, listen)  # type: ignore[no-any-return]
    except Exception as error:  # noqa: BLE001 - every endpoint plugin has errors of its own
        reason = f"{error.strerror}: {error.filename}" if isinstance(error, OSError) and error.strerror else error
        raise ValueError(f"the port {listen!r} is no number, and as a Twisted endpoint it fails: {reason}") from None


def makeService(options: Options) -> MultiService:
    """The service for these options. Opens no file, thread or socket: twistd has not dropped privileges yet."""
    config = options.config
    observer = LogObserver(
        _log_writer(options.log_path), reactor, format=_log_format(config, options.log_path), level=config.log.level
    )
    files = ", ".join(config.files) or "built-in defaults"

    # Our own observer takes the record directly: the way through the publisher costs more than writing the line.
    write_access = _log_access if options.own_log else observer.access

    def banner(address: str) -> str:
        providers = ", ".join(config.providers)
        return f"llmproxy {VERSION} listening on {address}; providers: {providers}; configuration: {files}"

    service = ProxyService(
        lambda: assemble(config, os.environ, write_access),
        listening_endpoint(options.listen),
        banner,
        _refuse_from_background if options.daemon else _refuse,
        observer.close,
    )
    services = LoggedServices(None if options.own_log else observer)
    service.setServiceParent(services)
    return services


class LoggedServices(MultiService):
    """Brings its log observer along to the application, which twistd then uses in place of its own."""

    def __init__(self, observer: LogObserver | None) -> None:
        super().__init__()
        self._observer = observer

    def setServiceParent(self, parent: IServiceCollection) -> None:
        """Called by twistd before it starts logging."""
        if self._observer is not None and isinstance(parent, Componentized):
            parent.setComponent(ILogObserver, self._observer)
        super().setServiceParent(parent)


def assemble(config: Config, environ: Mapping[str, str], write_access: Callable[[AccessRecord], None]) -> Assembly:
    """Build the proxy.

    :raises StartError: when something that it needs is not there.
    """
    _raise_file_limit()
    read_directly(reactor)
    reactor.installNameResolver(CachingResolver(reactor.nameResolver, reactor))
    try:
        tls = client_context(config.upstream.ca_file) if _needs_tls(config) else None
    except OSError as error:
        raise StartError(f"upstream.ca_file cannot be used: {error.strerror or error}") from None
    origins: list[Origin] = []
    routes: dict[str, Route] = {}
    for name, provider in config.providers.items():
        scheme, host, port = _where(provider.base_url)
        dialer = Dialer(
            reactor,
            host,
            port,
            tls=tls if scheme == "https" else None,
            proxy=proxy_for(host, environ),
            timeout_s=config.upstream.connect_timeout_s,
        )
        origin = Origin(provider.base_url.encode("ascii"), dialer, reactor, config.upstream)
        origins.append(origin)
        routes[name] = Route.to(provider, ExactClient(origin))

    context = Context(
        config=config,
        routes=routes,
        cors=CorsPolicy(config.cors),
        credential_ids=CredentialIds(_identity_secret(config, environ)),
        now=reactor.seconds,
        next_request_id=request_ids(os.urandom(6)),
        write_access=write_access,
    )
    return Assembly(ProxySite(Root(context), context, reactor), tuple(origins))


def run_simulator(*, port: int, host: str) -> None:
    """Serve the built-in provider simulator until the process is ended."""
    from twisted.internet.endpoints import TCP4ServerEndpoint as Endpoint

    from llmproxy.simulate import SimulatorRoot
    from llmproxy.wire.server import Site

    site = Site(SimulatorRoot(reactor), reactor)

    def listening(bound: Any) -> None:
        print(f"simulator listening on {host}:{bound.getHost().port}", flush=True)

    def failed(reason: Any) -> None:
        print(f"llmproxy: cannot listen on {host}:{port}: {reason.value.socketError}", file=sys.stderr)
        outcome.append(1)
        if reactor.running:
            reactor.stop()

    outcome: list[int] = []
    _raise_file_limit()
    Endpoint(reactor, port, backlog=BACKLOG, interface=host).listen(site).addCallbacks(listening, failed)
    if not outcome:
        reactor.run()
    sys.exit(outcome[0] if outcome else 0)


def _identity_secret(config: Config, environ: Mapping[str, str]) -> bytes:
    if config.identity.secret:
        return config.identity.secret.encode()
    try:
        return load_or_create(identity_secret_file(config, environ))
    except IdentitySecretError as error:
        raise StartError(str(error)) from None


def _needs_tls(config: Config) -> bool:
    return any(provider.base_url.startswith("https:") for provider in config.providers.values())


def _where(base_url: str) -> tuple[str, str, int]:
    from urllib.parse import urlsplit

    parts = urlsplit(base_url)
    return parts.scheme, parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def _raise_file_limit() -> None:
    """As many open files as the system lets us have: each stream takes two."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):
            pass


def _log_format(config: Config, log_path: str | None) -> str:
    if config.log.format != "auto":
        return config.log.format
    return "text" if log_path is None and os.isatty(1) else "json"


def _log_writer(path: str | None) -> Callable[[bytes], object]:
    """Where the log goes: the file at ``path``, or standard output itself, as twistd puts its own log in the place
    of ``sys.stdout``."""
    return _to_file(path) if path is not None else _to_descriptor(1)


def _to_descriptor(descriptor: int) -> Callable[[bytes], object]:
    """Writes as much as the reader takes now, and never waits for one: the reactor would wait with it.

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
            written += os.write(descriptor, data[written : written + select.PIPE_BUF])
        return written

    return write


def _to_file(path: str) -> Callable[[bytes], object]:
    """Appends to a file that is opened when first written to, and anew when it was renamed or removed meanwhile."""
    descriptor = -1

    def is_still_there() -> bool:
        try:
            there, ours = os.stat(path), os.fstat(descriptor)
        except OSError:
            return False
        return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)

    def write(data: bytes) -> int:
        nonlocal descriptor
        if not is_still_there():
            opened = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)
            if descriptor >= 0:
                os.close(descriptor)
            descriptor = opened
        return os.write(descriptor, data)

    return write


def _refuse_from_background(text: str) -> NoReturn:
    """A daemon has no standard error: twistd's parent process tells of the exception, and ends with status 1."""
    raise StartError(text)


def _log_access(record: AccessRecord) -> None:
    Logger(namespace="llmproxy.access").info("access {access}", access=record)


def _refuse(text: str) -> NoReturn:
    for line in text.splitlines():
        print(f"llmproxy: {line}", file=sys.__stderr__)
    raise SystemExit(1)
