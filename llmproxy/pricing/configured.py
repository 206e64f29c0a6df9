"""Prices in the configuration: `providers.<name>.models.<model>`, in the form that configurations have had and in ours.

The rule: what priced a model before goes on to do so, as it is written:

    models:
      gpt-4o:
        aliases: [fast]
        pricing: {input: 2.50, output: 10.00}          # dollars for a million tokens
      gemini-2.5-pro:
        pricing:                                       # the first whose threshold is 0 or at least the input
          - {threshold: 200_000, input: 1.25, output: 10}
          - {threshold: 0, input: 2.50, output: 15}
      o3:
        pricing:
          input: 2
          output: 8
          overrides: {my-o3: {input: 1, output: 4}}    # for one name of the model

`pricing` may also hold all that a model of a price file may: cache_read, tiers, service_tiers, batch and so on. A
provider whose models cost what they cost at another one says `prices: {same_as: openai}`.
"""

from __future__ import annotations

from llmproxy.core.pricing import PriceList
from llmproxy.pricing.entry import Complaint, Path, Reader, Tree
from llmproxy.pricing.tables import Tables

_OVERRIDES = "overrides"


def from_original(tree: Tree) -> tuple[PriceList, list[Complaint]]:
    """The prices of a configuration, and what is wrong with them.

    tree: the map below `providers`, as plain dicts, lists and text. Only `models` and `prices` of a provider are read,
    and of a model `pricing`, `aliases` and `overrides`: all else is somebody else's to check.
    Complaints have paths from the provider's name on: ("openai", "models", "gpt-4o", "pricing", "input").
    """
    reader = Reader()
    tables = Tables(reader)
    for provider, of_provider in reader.map(tree, ()).items():
        entries = reader.map(of_provider, (provider,))
        at = (provider, "prices")
        prices = reader.map(entries.get("prices"), at, ("same_as",))
        tables.add_same_as(provider, reader.text(prices.get("same_as"), (*at, "same_as")), (*at, "same_as"))
        for model, of_model in reader.map(entries.get("models"), (provider, "models")).items():
            _model(reader, tables, provider, model, of_model, (provider, "models", model))
    return tables.to_list("config"), reader.complaints


def _model(reader: Reader, tables: Tables, provider: str, model: str, tree: Tree, path: Path) -> None:
    entries = reader.map(tree, path)
    tables.add_aliases(provider, model, reader.names(entries.get("aliases"), (*path, "aliases")), (*path, "aliases"))
    pricing = entries.get("pricing")
    if pricing is not None:
        at = (*path, "pricing")
        tables.add(provider, model, reader.price(pricing, at, also=(_OVERRIDES,)))
        if isinstance(pricing, dict):
            _overrides(reader, tables, provider, pricing.get(_OVERRIDES), (*at, _OVERRIDES))
    _overrides(reader, tables, provider, entries.get(_OVERRIDES), (*path, _OVERRIDES))


def _overrides(reader: Reader, tables: Tables, provider: str, tree: Tree, path: Path) -> None:
    """A name with a price of its own: it is found under that name before it is taken for an alias."""
    for alias, of_alias in reader.map(tree, path).items():
        tables.add(provider, alias, reader.price(of_alias, (*path, alias)))
