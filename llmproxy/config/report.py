"""The configuration as a person sees it: ``llmproxy check-config`` and ``llmproxy show-config``.

The rule: a secret is shown as ``***``, whatever it is asked for.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import PurePath
from typing import Any, TextIO

from llmproxy.config.check import Checked, Group
from llmproxy.config.complaint import ConfigError, Path, one_line, shown_path
from llmproxy.config.loading import Loaded, load_files, load_in_use
from llmproxy.config.model import DEFAULT_PORT, Config
from llmproxy.config.paths import state_dir
from llmproxy.config.schema import SCHEMA, Kind, Named, Section
from llmproxy.config.values import Value
from llmproxy.providers import CATALOG

MASK = "***"

_VERSION_AT_THE_END = re.compile(r"/v1(?:alpha|beta)?$")


def check_config(
    files: Sequence[str],
    *,
    environ: Mapping[str, str],
    cwd: str,
    config_file: str | None = None,
    environment: str | None = None,
    try_out: Callable[[Config], None] = lambda config: None,
    out: TextIO,
) -> int:
    """Say whether a configuration would start. Returns 0 if so, else 1.

    ``files`` are laid over the built-in defaults in the order given. Without any it is the configuration in
    use. ``try_out`` looks at what a configuration names, such as certificates, and raises ValueError. Writes one
    summary, or every complaint, each on its line.
    """
    try:
        if files:
            loaded = load_files(files, environ=environ, cwd=cwd)
        else:
            loaded = load_in_use(environ=environ, cwd=cwd, config_file=config_file, environment=environment)
        try_out(loaded.config)
    except (ConfigError, ValueError) as error:
        out.write(f"{error}\n")
        return 1
    providers = loaded.config.providers
    noun = "provider" if len(providers) == 1 else "providers"
    out.write(f"OK: {_files(loaded)}; {len(providers)} {noun}: {', '.join(providers)}\n")
    for name in filter(providers.__contains__, CATALOG):
        if _VERSION_AT_THE_END.search(providers[name].base_url):
            words = "callers send that part of the path themselves, so it would be there twice"
            out.write(f"Note: providers.{name}.base_url ends in a version; {words}\n")
    return 0


def show_config(
    *,
    environ: Mapping[str, str],
    cwd: str,
    config_file: str | None = None,
    environment: str | None = None,
    out: TextIO,
) -> int:
    """Write every value in use with its origin: ``log.level = debug  # configs/dev.yml:3``.

    Returns 0, or 1 after writing the complaints instead. The origin is file and line, ``default``, or the
    name of an environment variable.
    """
    try:
        loaded = load_in_use(environ=environ, cwd=cwd, config_file=config_file, environment=environment)
    except ConfigError as error:
        out.write(f"{error}\n")
        return 1
    # Two values are decided where they are used, when nothing else says them.
    decided: dict[Path, object] = {
        ("server", "port"): DEFAULT_PORT,
        ("state_dir",): state_dir(loaded.config, environ),
    }
    out.write(f"# {_files(loaded)}\n")
    for path, secret, value, origin in rows(SCHEMA, loaded.settings, loaded.found, (), loaded):
        effective = decided.get(path) if value is None else value
        shown = MASK if secret and effective is not None else value_text(effective)
        out.write(one_line(f"{shown_path(path)} = {shown}  # {origin}") + "\n")
    return 0


def _files(loaded: Loaded) -> str:
    return ", ".join(str(PurePath(file)) for file in loaded.config.files) or "built-in defaults"


def rows(
    kind: Kind, value: Any, found: Checked | None, path: Path, loaded: Loaded
) -> Iterator[tuple[Path, bool, object, str]]:
    """Path, whether it is a secret, value and origin of everything below ``kind``."""
    below = found.entries if isinstance(found, Group) else {}
    if isinstance(kind, Section) and kind.partial:
        # What is not set for this provider is as for all, and has its origin there.
        for_all = loaded.found.entries.get(path[-1])
        below = {**(for_all.entries if isinstance(for_all, Group) else {}), **below}
        value = replace(getattr(loaded.settings, path[-1]), **value)
    if isinstance(kind, Section):
        for key, inner in kind.keys.items():
            yield from rows(inner, getattr(value, key), below.get(key), (*path, key), loaded)
    elif isinstance(kind, Named) and value:
        for name, one in value.items():
            yield from rows(kind.item, one, below.get(name), (*path, name), loaded)
    else:
        origin = "default" if found is None else str(found.place)
        yield path, isinstance(kind, Value) and kind.secret, value, origin


def value_text(value: object) -> str:
    match value:
        case None | bool():
            return json.dumps(value)
        case tuple():
            return f"[{', '.join(value_text(item) for item in value)}]"
        case Mapping():
            return f"{{{', '.join(f'{name}: {value_text(one)}' for name, one in value.items())}}}"
        case list():
            return f"[{', '.join(value_text(item) for item in value)}]"
        case "":
            return '""'
        case _:
            return str(value)
