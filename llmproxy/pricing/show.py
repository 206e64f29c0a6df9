"""What a model costs, and why, as text: for `llmproxy prices show MODEL`.

The rule: it shows what `PriceBook.cost` would use, found in the same way, and says of each price whether it is stated
or stands in for one that is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches

from llmproxy.core.money import usd
from llmproxy.core.pricing import Change, Match, Price, PriceBook, Rates
from llmproxy.pricing.entry import RATES
from llmproxy.pricing.written import decimal

_BY_TOKEN = tuple(name for name in RATES if name != "audio_second")
_HINTS = 5


def show(book: PriceBook, model: str, provider: str | None = None) -> str:
    """What `model` costs at `provider`, or at each that has a price for it; what to do if none has. Lines of text."""
    named = [provider] if provider else _providers(book)
    found = [(each, match) for each in named if (match := book.find(each, model)) is not None]
    if not found:
        return _unknown(book, model, provider)
    return "\n\n".join("\n".join(_shown(each, model, match)) for each, match in found)


def _shown(provider: str, model: str, match: Match) -> list[str]:
    where = f"prices  {match.list.version}"
    source = match.price.source or match.list.source
    lines = [f"{model} at {provider}"]
    if match.model != model:
        lines.append(f"  alias   of {match.model}")
    if match.provider != provider:
        lines.append(f"  same_as {match.provider}")
    lines.append(f"  {where}, {source}" if source else f"  {where}")
    return [*lines, *_price(match.price, "  "), *_changes(match.price)]


def _changes(price: Price) -> list[str]:
    lines: list[str] = []
    for title, several in (("service tier", price.service_tiers), ("speed", price.speeds)):
        for name, change in several.items():
            lines += _change(f"{title} {name}", change)
        if not several:
            lines.append(f"  {title}: none but the standard one has a price")
    lines += [f"  inference geo {name}: x {decimal(factor)}" for name, factor in price.inference_geos.items()]
    return lines + (
        _change("batch", price.batch) if price.batch is not None else ["  batch: not stated; as the calls in it"]
    )


def _change(title: str, change: Change) -> list[str]:
    if isinstance(change, Price):
        return [f"  {title}:", *_price(change, "    ")]
    return [f"  {title}: x {decimal(change)}"]


def _price(price: Price, indent: str) -> list[str]:
    """A column for each size, a line for each class."""
    sizes = [above_tokens for above_tokens, _ in price.tiers]
    titles = [f"to {sizes[1]:,}" if len(sizes) > 1 else "", *(f"above {each:,}" for each in sizes[1:])]
    rows = [["for a million tokens", *titles]]
    without = [name for name in _BY_TOKEN if all(rates.price_of(name)[0] is None for _, rates in price.tiers)]
    rows += [[name, *(_cell(rates, name) for _, rates in price.tiers)] for name in _BY_TOKEN if name not in without]
    widths = [max(len(row[nth]) for row in rows) for nth in range(len(rows[0]))]
    lines = [
        indent + "  ".join([row[0].ljust(widths[0]), *map(str.ljust, row[1:], widths[1:])]).rstrip() for row in rows
    ]
    first = price.tiers[0][1]
    if first.audio_second is not None:
        lines.append(f"{indent}for a second of audio: {usd(first.audio_second)}")
    lines += [f"{indent}for a request of {name}: {usd(each)}" for name, each in first.server_tools]
    return [*lines, f"{indent}not priced: {', '.join(without)}"] if without else lines


def _cell(rates: Rates, name: str) -> str:
    price, stated_as = rates.price_of(name)
    if price is None:
        return "not priced"
    return usd(price) if stated_as == name else f"{usd(price)} (as {stated_as})"


def _unknown(book: PriceBook, model: str, provider: str | None) -> str:
    named = [provider] if provider else _providers(book)
    known: dict[str, None] = {}
    for each in book.lists:
        for one in named:
            several: tuple[Mapping[str, object], ...] = (each.prices.get(one, {}), each.aliases.get(one, {}))
            known.update(dict.fromkeys(name for names in several for name in names))
    at = f" at {provider}" if provider else ""
    lines = [f"{model}{at} has no price; what is used on it is counted as unpriced."]
    if near := get_close_matches(model, known, _HINTS):
        lines.append(f"Names that are like it, and are not taken for it: {', '.join(near)}")
    lines.append(
        f"To price it, write providers.{provider or '<provider>'}.models.{model}.pricing: {{input: ..., output: ...}}"
        " (dollars for a million tokens), or make it an alias of a model that has a price."
    )
    return "\n".join(lines)


def _providers(book: PriceBook) -> list[str]:
    return list(dict.fromkeys(name for each in book.lists for name in (*each.prices, *each.aliases, *each.same_as)))
