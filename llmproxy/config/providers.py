"""From what is written under ``providers`` to the Provider objects that serve.

A built-in provider needs nothing and may get another address. A new one is configuration alone: a name, a
kind and a base URL.
"""

from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches

from llmproxy.config.check import Group, place_of
from llmproxy.config.complaint import Complaint
from llmproxy.config.model import Accounting, ProviderSettings, Upstream
from llmproxy.providers import CATALOG, Provider, of_kind


def upstream_of(one: ProviderSettings, upstream: Upstream) -> Upstream:
    """What holds for one provider: its own keys over ``upstream``, which is for all."""
    return replace(upstream, **one.upstream)


def accounting_of(one: ProviderSettings, accounting: Accounting) -> Accounting:
    """Likewise: its own keys over ``accounting``."""
    return replace(accounting, **one.accounting)


def resolve(written: Mapping[str, ProviderSettings], found: Group, complaints: list[Complaint]) -> dict[str, Provider]:
    """The enabled providers by name, in the order of CATALOG, then of the files.

    ``found`` tells where things were written. A provider about which there is a complaint already gets no
    second one.
    """
    about = [complaint.path for complaint in complaints if complaint.path[:1] == ("providers",)]
    wrong = {path[1] for path in about if len(path) > 1}
    serving: dict[str, Provider] = {}
    for name, one in written.items():
        provider = None if name in wrong else _provider(name, one, found, complaints)
        if provider is not None and one.enabled:
            serving[name] = provider
    if not any(one.enabled for one in written.values()):
        words = "no provider is enabled: there is nothing to serve"
        complaints.append(Complaint(place_of(found, ("providers",)), ("providers",), words))
    return serving


def _provider(name: str, one: ProviderSettings, found: Group, complaints: list[Complaint]) -> Provider | None:
    path = ("providers", name)
    if (built_in := CATALOG.get(name)) is not None:
        if one.kind != built_in.kind:
            words = f"{name} is built in and {built_in.kind}; a provider of another kind needs its own name"
            complaints.append(Complaint(place_of(found, (*path, "kind")), (*path, "kind"), words))
            return None
        return replace(built_in, base_url=one.base_url or built_in.base_url)
    if one.kind is not None and one.base_url is not None:
        return of_kind(one.kind, name=name, base_url=one.base_url)
    missing = " and ".join(key for key in ("kind", "base_url") if getattr(one, key) is None)
    near = get_close_matches(name, CATALOG, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    words = f"a provider that is not built in needs kind and base_url; missing: {missing}{hint}"
    complaints.append(Complaint(place_of(found, path), path, words))
    return None
