"""A `PriceList` as a price file: what `read_prices` takes, in JSON, a line for each model where that is short.

The rule: what is written reads back as the same list.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from llmproxy.core.money import NANO
from llmproxy.core.pricing import Change, Price, PriceList, Rates
from llmproxy.pricing.entry import RATES
from llmproxy.pricing.price_file import SCHEMA

_LINE_CHARACTERS = 110


def written(prices: PriceList, note: str = "") -> str:
    """The text of a file with these prices. note: for people, such as the notice of a licence."""
    providers = sorted({*prices.prices, *prices.aliases, *prices.same_as})
    top: dict[str, Any] = {
        "schema": int(SCHEMA),
        "date": prices.date,
        "source": prices.source,
        "currency": "USD",
        **({"note": note} if note else {}),
        "prices": {provider: _provider(prices, provider) for provider in providers},
    }
    return _laid_out(top, 0) + "\n"


def decimal(number: Fraction) -> str:
    """A number as a decimal: "0.075". Raises ValueError for one that has no end: a third.

    Of more than nine decimals are factors alone: amounts are whole nano-dollars.
    """
    for decimals in range(number.denominator.bit_length() + 1):  # each one takes a 2 and a 5 out of it
        scaled = number * 10**decimals
        if scaled.denominator == 1:
            whole, rest = divmod(scaled.numerator, 10**decimals)
            return f"{whole}.{rest:0{decimals}d}" if decimals else str(whole)
    raise ValueError(f"{number} is no decimal")


def _provider(prices: PriceList, provider: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if provider in prices.same_as:
        found["same_as"] = prices.same_as[provider]
    aliases: dict[str, list[str]] = {}
    for alias, model in prices.aliases.get(provider, {}).items():
        aliases.setdefault(model, []).append(alias)
    of_provider = prices.prices.get(provider, {})
    for model in sorted({*of_provider, *aliases}):
        entry: dict[str, Any] = {"aliases": sorted(aliases[model])} if model in aliases else {}
        if model in of_provider:
            price = of_provider[model]
            entry |= {"source": price.source} if price.source else {}
            entry |= _price(price)
        found[model] = entry
    return found


def _price(price: Price) -> dict[str, Any]:
    first = price.tiers[0][1]
    entry: dict[str, Any] = {**_rates(first)}
    if first.server_tools:
        entry["server_tools"] = {name: _dollars(each) for name, each in first.server_tools}
    if len(price.tiers) > 1:
        entry["tiers"] = [{"above": above_tokens, **_rates(rates)} for above_tokens, rates in price.tiers[1:]]
    for name in ("service_tiers", "speeds", "inference_geos"):
        several: Mapping[str, Change] = getattr(price, name)
        if several:
            entry[name] = {each: _change(change) for each, change in several.items()}
    if price.batch is not None:
        entry["batch"] = _change(price.batch)
    return entry


def _rates(rates: Rates) -> dict[str, str]:
    return {name: _dollars(getattr(rates, name)) for name in RATES if getattr(rates, name) is not None}


def _dollars(nano_usd: int) -> str:
    return decimal(Fraction(nano_usd, NANO))


def _change(change: Change) -> Any:
    return _price(change) if isinstance(change, Price) else decimal(change)


def _laid_out(tree: Any, depth: int) -> str:
    line = json.dumps(tree, ensure_ascii=False)
    if not isinstance(tree, dict) or not tree or (depth > 2 and len(line) + 2 * depth <= _LINE_CHARACTERS):
        return line
    inner = "  " * (depth + 1)
    entries = [
        f"{inner}{json.dumps(key, ensure_ascii=False)}: {_laid_out(each, depth + 1)}" for key, each in tree.items()
    ]
    return "{\n" + ",\n".join(entries) + "\n" + "  " * depth + "}"
