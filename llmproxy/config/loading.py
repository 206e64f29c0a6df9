"""From files and environment to the Config, or to every complaint at once."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any

from llmproxy.config import document
from llmproxy.config.check import Check, Checked, Found, Group, place_of, plain
from llmproxy.config.complaint import Complaint, ConfigError, Path, Place
from llmproxy.config.files import files_in_use
from llmproxy.config.model import Config, ProviderSettings, Settings
from llmproxy.config.overlay import lay_over
from llmproxy.config.paths import absolute
from llmproxy.config.providers import accounting_of, resolve, upstream_of
from llmproxy.config.rules import check_rules
from llmproxy.config.schema import ENVIRONMENT, SCHEMA, Either, Kind, Named, Section, Tree
from llmproxy.config.values import Value
from llmproxy.core.pricing import PriceList


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A configuration with its origins."""

    config: Config
    settings: Settings
    """Every value, disabled providers too."""
    found: Group
    """What was set, and where; what is not in it is a default."""


def load(
    *,
    environ: Mapping[str, str],
    cwd: str,
    config_file: str | None = None,
    environment: str | None = None,
) -> Config:
    """The configuration in use. Raises ConfigError: its text is one complaint per line.

    ``cwd`` is where ``configs`` is looked for. ``config_file`` is taken alone, over the built-in defaults.
    ``environment`` goes before the variable ENVIRONMENT.
    """
    return load_in_use(environ=environ, cwd=cwd, config_file=config_file, environment=environment).config


def load_in_use(
    *,
    environ: Mapping[str, str],
    cwd: str,
    config_file: str | None = None,
    environment: str | None = None,
) -> Loaded:
    """As ``load``, with the origin of each value."""
    complaints: list[Complaint] = []
    files = files_in_use(
        environ=environ, cwd=cwd, config_file=config_file, environment=environment, complaints=complaints
    )
    return load_files(files, environ=environ, cwd=cwd, complaints=complaints)


def load_files(
    files: Sequence[str], *, environ: Mapping[str, str], cwd: str, complaints: list[Complaint] | None = None
) -> Loaded:
    """``files`` laid over the built-in defaults in this order, the last winning. Raises ConfigError.

    ``complaints``: those there are already; they join those about the files.
    """
    complaints = [] if complaints is None else complaints
    trees = [_read(file, cwd, complaints) for file in files]
    # Each by itself first: a mistake counts, also where a later file covers it.
    alone = Check(environ, complaints, in_use=False)
    for tree in trees:
        alone.tree(tree)
    total = lay_over(trees) if trees else document.Mapping(Place("built-in defaults"), {})
    found = Check(environ, complaints, in_use=True).tree(total)
    _take_environment(found, environ, complaints)

    settings: Settings = _built(SCHEMA, found, Settings())
    settings = _with_absolute_paths(settings, cwd=cwd, environ=environ)
    providers = resolve(settings.providers, found, complaints)
    check_rules(settings, found, complaints)
    prices = _prices(settings, found, complaints)
    if complaints:
        raise ConfigError(_in_order(complaints, files))
    config = Config(
        server=settings.server,
        upstream=settings.upstream,
        providers=MappingProxyType(providers),
        upstreams=MappingProxyType(
            {name: upstream_of(settings.providers[name], settings.upstream) for name in providers}
        ),
        accountings=MappingProxyType(
            {name: accounting_of(settings.providers[name], settings.accounting) for name in providers}
        ),
        accounting=settings.accounting,
        pricing=settings.pricing,
        prices=prices,
        ledger=settings.ledger,
        identity=settings.identity,
        fidelity=settings.fidelity,
        cors=settings.cors,
        log=settings.log,
        features=settings.features,
        state_dir=settings.state_dir,
        files=tuple(files),
    )
    return Loaded(config=config, settings=settings, found=found)


def _read(file: str, cwd: str, complaints: list[Complaint]) -> document.Mapping:
    try:
        with open(os.path.join(cwd, file), "rb") as opened:
            content = opened.read()
    except (OSError, ValueError) as error:
        words = f"cannot be read: {getattr(error, 'strerror', None) or 'not the name of a file'}"
        complaints.append(Complaint(Place(file), (), words))
        content = b""
    return document.parse(content, file, complaints)


def _take_environment(found: Group, environ: Mapping[str, str], complaints: list[Complaint]) -> None:
    """Put the variables that win over every file into ``found``. An empty one counts as not set."""
    for name, (section, key) in ENVIRONMENT.items():
        text = environ.get(name)
        if not text:
            continue
        place = Place(f"environment variable {name}")
        kind = _value_kind(section, key)
        try:
            value = kind.parse(text)
        except ValueError as error:
            instead = "" if kind.secret else f", not {text!r}"
            words = str(error) or f"must be {kind.type}{instead}"
            complaints.append(Complaint(place, (section, key), words))
            continue
        group = found.entries.setdefault(section, Group(place, {}))
        if isinstance(group, Group):
            group.entries[key] = Found(value, place)


def _value_kind(section: str, key: str) -> Value:
    within = SCHEMA.keys[section]
    kind = within.keys[key] if isinstance(within, Section) else within
    if not isinstance(kind, Value):
        raise TypeError(f"{section}.{key} is no single value")
    return kind


def _built(kind: Kind, found: Checked | None, default: Any) -> Any:
    """``default`` with what was found in its place: a dataclass for a section, a read-only map for names."""
    if found is None:
        return default
    if isinstance(found, Found):
        return found.value
    if isinstance(kind, Section) and kind.partial:
        own = {key: _built(kind.keys[key], below, None) for key, below in found.entries.items()}
        return MappingProxyType({**default, **own})
    if isinstance(kind, Tree):
        return plain(found)
    if isinstance(kind, Either):
        return _built(kind.section, found, kind.section.make())
    if isinstance(kind, Section):
        default = kind.make() if default is None else default
        changed = {key: _built(kind.keys[key], below, getattr(default, key)) for key, below in found.entries.items()}
        return replace(default, **changed)
    if isinstance(kind, Named):
        item = kind.item
        names = dict(default)
        for name, below in found.entries.items():
            fresh = item.make() if isinstance(item, Section) else None
            names[name] = _built(item, below, names.get(name, fresh))
        return MappingProxyType(names)
    raise TypeError("a map was found where the schema has none")


def _prices(settings: Settings, found: Group, complaints: list[Complaint]) -> PriceList:
    """What the files say that models cost."""
    trees: dict[str, dict[str, Any]] = {}
    for name, one in settings.providers.items():
        for key, tree in (("models", one.models), ("prices", one.prices)):
            path: Path = ("providers", name, key)
            if not isinstance(tree, Mapping):
                complaints.append(Complaint(place_of(found, path), path, "must be a map of keys"))
            elif tree:
                trees.setdefault(name, {})[key] = dict(tree)
    if not trees:
        return PriceList(origin="config")
    from llmproxy.pricing import from_original

    prices, wrong = from_original(trees)
    for below, words in wrong:
        where = ("providers", *below)
        complaints.append(Complaint(place_of(found, where), where, words))
    for name, other in prices.same_as.items():
        if other not in settings.providers:
            where = ("providers", name, "prices", "same_as")
            near = get_close_matches(other, settings.providers, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(settings.providers)}"
            complaints.append(Complaint(place_of(found, where), where, f"there is no such provider; {hint}"))
    return prices


def _with_absolute_paths(settings: Settings, *, cwd: str, environ: Mapping[str, str]) -> Settings:
    def path(given: str | None) -> str | None:
        return None if given is None else absolute(given, cwd=cwd, environ=environ)

    def provider(one: ProviderSettings) -> ProviderSettings:
        own = {key: path(value) if key == "ca_file" else value for key, value in one.upstream.items()}
        return replace(one, upstream=MappingProxyType(own))

    return replace(
        settings,
        upstream=replace(settings.upstream, ca_file=path(settings.upstream.ca_file)),
        providers=MappingProxyType({name: provider(one) for name, one in settings.providers.items()}),
        pricing=replace(settings.pricing, file=path(settings.pricing.file)),
        ledger=replace(settings.ledger, path=path(settings.ledger.path)),
        state_dir=path(settings.state_dir),
    )


def _in_order(complaints: list[Complaint], files: Sequence[str]) -> list[Complaint]:
    """As a reader goes through them: what is no file first, then file by file and line by line."""
    order = {file: number for number, file in enumerate(files)}
    return sorted(complaints, key=lambda one: (order.get(one.place.file, -1), one.place.line))
