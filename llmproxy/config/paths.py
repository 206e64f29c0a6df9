"""Where files of the configuration and of the running proxy are."""

import os
from collections.abc import Mapping

from llmproxy.config.model import Config


def state_dir(config: Config, environ: Mapping[str, str]) -> str:
    """The directory for what outlives a restart. It is not made here.

    ``state_dir`` of the configuration; else ``STATE_DIRECTORY``, which systemd sets for a unit with
    StateDirectory= (systemd.exec(5); several are separated by colons, the first is ours); else the XDG base
    directory for state.
    """
    if config.state_dir is not None:
        return config.state_dir
    if first := environ.get("STATE_DIRECTORY", "").partition(":")[0]:
        return first
    base = environ.get("XDG_STATE_HOME", "")
    # A relative path in XDG_STATE_HOME is to be ignored (XDG Base Directory Specification).
    if not os.path.isabs(base):
        base = os.path.join(_home(environ), ".local", "state")
    return os.path.join(base, "llmproxy")


def identity_secret_file(config: Config, environ: Mapping[str, str]) -> str:
    """Where the secret is kept that credential ids are made with, when ``identity.secret`` is not set."""
    return os.path.join(state_dir(config, environ), "identity-secret")


def ledger_path(config: Config, environ: Mapping[str, str]) -> str:
    """Where the ledger is: the file of sqlite, the folder of jsonl."""
    if config.ledger.path is not None:
        return config.ledger.path
    return os.path.join(
        state_dir(config, environ), "requests.sqlite" if config.ledger.backend == "sqlite" else "requests"
    )


def absolute(path: str, *, cwd: str, environ: Mapping[str, str]) -> str:
    """``path`` from ``cwd``, with ``~`` for the home directory: a daemon leaves the directory it began in."""
    if path == "~" or path.startswith("~/"):
        path = _home(environ) + path[1:]
    return os.path.normpath(os.path.join(cwd, path))


def _home(environ: Mapping[str, str]) -> str:
    return environ.get("HOME") or os.path.expanduser("~")
