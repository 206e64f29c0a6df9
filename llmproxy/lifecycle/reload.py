"""A new configuration while the proxy runs.

The rule: all of it or nothing. It is loaded and put together before anything is changed; what is wrong with it is said
in the log, and the proxy goes on as it was. What can only be changed by a restart is named, and stays.

A certificate is no configuration: whoever renews it does so by a clock, and must not be kept from it by a file that
somebody is in the middle of editing. It is read again each time, and goes by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from twisted.logger import Logger

from llmproxy.assembly import StartError
from llmproxy.config.complaint import ConfigError
from llmproxy.config.difference import difference
from llmproxy.config.loading import Loaded
from llmproxy.config.model import Config, Settings
from llmproxy.lifecycle.listening import CertificateError

_log = Logger()
_Whole = TypeVar("_Whole", Config, Settings)


class Reload:
    """Takes a new configuration in the place of ``loaded``.

    :param load: loads it, as it was loaded at the start. May raise :class:`ConfigError`.
    :param follow: what else goes by the configuration and cannot fail, such as the log; gets the old and the new one.
    :param certificate: reads the certificate of the listening endpoint again; None where there is none. May raise
        :class:`CertificateError`.
    """

    def __init__(
        self,
        loaded: Loaded,
        load: Callable[[], Loaded],
        follow: Callable[[Config, Config], None],
        certificate: Callable[[], None] | None,
    ) -> None:
        self._loaded = loaded
        self._load = load
        self._follow = follow
        self._certificate = certificate

    def __call__(self, put_together: Callable[[Config], None]) -> bool:
        """Load and change. False when something of it failed; that is in the log.

        :param put_together: serves with it. May raise :class:`StartError`, and then has changed nothing.
        """
        renewed = self._renew_certificate()
        try:
            loaded = self._load()
            loaded = replace(
                loaded,
                config=_kept(self._loaded.config, loaded.config),
                settings=_kept(self._loaded.settings, wished := loaded.settings),
            )
            put_together(loaded.config)
        except (ConfigError, StartError) as error:
            for line in str(error).splitlines():
                _log.error("not reloaded: {line}", line=line)
            return False
        changes = difference(self._loaded, loaded)
        waiting = difference(loaded, replace(loaded, settings=wished))
        for change in changes:
            _log.info("reloaded: {change}", change=change.text)
        for change in waiting:
            _log.warn("needs a restart: {change}", change=change.text)
        files = ", ".join(loaded.config.files) or "built-in defaults"
        _log.info("the configuration is reloaded from {files}; changed: {count}", files=files, count=len(changes))
        self._follow(
            self._loaded.config, loaded.config
        )  # when all is told: it may be that the log has less from now on
        self._loaded = loaded
        return renewed

    def _renew_certificate(self) -> bool:
        if self._certificate is None:
            return True
        try:
            self._certificate()
        except CertificateError as error:
            _log.error("the certificate stays as it was: {reason}", reason=str(error))
            return False
        _log.info("the certificate is read again")
        return True


def _kept(old: _Whole, new: _Whole) -> _Whole:
    """``new`` with what a restart alone can change as it is in ``old``.

    The port is open already, and so is the ledger. The others would give every key another name, in the middle of a
    log.
    """
    return replace(
        new,
        server=replace(new.server, port=old.server.port),
        identity=replace(new.identity, secret=old.identity.secret),
        ledger=old.ledger,
        state_dir=old.state_dir,
    )
