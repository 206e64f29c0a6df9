"""Models of many providers, gathered into a `PriceList`: names, aliases and whose prices are whose."""

from __future__ import annotations

from llmproxy.core.pricing import Price, PriceList
from llmproxy.pricing.entry import Path, Reader


class Tables:
    """Takes models one by one; a name that two of them claim is a complaint of `reader`."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._prices: dict[str, dict[str, Price]] = {}
        self._aliases: dict[str, dict[str, str]] = {}
        self._same_as: dict[str, str] = {}

    def add(self, provider: str, model: str, price: Price | None) -> None:
        """A model by its own name."""
        if price is not None:
            self._prices.setdefault(provider, {})[model] = price

    def add_aliases(self, provider: str, model: str, names: list[str], path: Path) -> None:
        """Other names of a model."""
        known = self._aliases.setdefault(provider, {})
        for name in names:
            if known.get(name, model) != model:
                self._reader.complain(path, f"{name} is an alias of {known[name]} already")
            elif name != model:
                known[name] = model

    def add_same_as(self, provider: str, other: str, path: Path) -> None:
        """The models of `provider` cost what they cost at `other`."""
        if other == provider:
            self._reader.complain(path, "must name another provider")
        elif other:
            self._same_as[provider] = other

    def to_list(self, origin: str, date: str = "", source: str = "") -> PriceList:
        """All of them."""
        return PriceList(
            origin=origin,
            prices=self._prices,
            aliases={provider: names for provider, names in self._aliases.items() if names},
            same_as=self._same_as,
            date=date,
            source=source,
        )
