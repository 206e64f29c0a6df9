"""LiteLLM's price list, model_prices_and_context_window.json, as ours.

The rule: a number is taken exactly as it stands there, and what is not taken is counted, with the reason. Its values
are dollars for a single token (2.5e-06), and its fields are composed:

    <what>[_above_1hr|_above_12hr][_above_<N>k_tokens][_batches|_priority|_flex|...]

so that they are parsed, not listed. The list is published under the MIT licence by BerriAI at
https://github.com/BerriAI/litellm; its notice belongs to each copy of it.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from types import MappingProxyType
from typing import Any, Final, TypeAlias

import msgspec

from llmproxy.core.money import NANO
from llmproxy.core.pricing import MILLION, Change, Price, PriceList, Rates

ORIGIN: Final = "litellm"
SOURCE: Final = "https://github.com/BerriAI/litellm/blob/main/model_prices_and_context_window.json"

_FIELD: Final = re.compile(
    r"(?P<what>.+?)(?P<kept>_above_(?:1|12)hr)?(?:_above_(?P<k>[0-9]+)k_tokens)?"
    r"(?P<tier>_batches|_priority|_flex|_ultrafast|_fast)?\Z"
)
_CLASSES: Final[Mapping[tuple[str, str], str]] = MappingProxyType(
    {
        ("input_cost_per_token", ""): "input",
        ("output_cost_per_token", ""): "output",
        ("output_cost_per_reasoning_token", ""): "reasoning",
        ("cache_read_input_token_cost", ""): "cache_read",
        ("cache_creation_input_token_cost", ""): "cache_write_5m",
        ("cache_creation_input_token_cost", "_above_1hr"): "cache_write_1h",
        ("input_cost_per_audio_token", ""): "input_audio",
        ("output_cost_per_audio_token", ""): "output_audio",
        ("input_cost_per_image_token", ""): "input_image",
        ("output_cost_per_image_token", ""): "output_image",
    }
)
# Its names for who bills, where they are not ours.
_PROVIDERS: Final = MappingProxyType({"text-completion-openai": "openai", "cohere_chat": "cohere"})
_IS_PRICE: Final = re.compile(r"cost|pricing|multiplier")

_Classes: TypeAlias = dict[str, int]
_Sizes: TypeAlias = dict[int, _Classes]


class Imported(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a list.

    taken: models that have a price now. skipped: entries that have not, by reason. fields: fields about prices that
    were passed over in models that were taken, by name. rounded: amounts finer than a nano-dollar for a million tokens.
    """

    prices: PriceList
    taken: int
    skipped: Mapping[str, int]
    fields: Mapping[str, int]
    rounded: int

    def __str__(self) -> str:
        """As it is told to people: one line for each count."""
        lines = [f"{self.taken} models taken, {sum(self.skipped.values())} skipped"]
        lines += [f"skipped, {reason}: {count}" for reason, count in sorted(self.skipped.items())]
        lines += [f"passed over, field {name}: {count}" for name, count in sorted(self.fields.items())]
        return "\n".join([*lines, f"rounded to a nano-dollar: {self.rounded}"])


def import_litellm(data: bytes, date: str = "") -> Imported:
    """The prices in LiteLLM's list. date: YYYY-MM-DD, of the list. Raises ValueError if it is no JSON object."""
    tree: Any = json.loads(data, parse_float=_number, parse_int=_number)
    if not isinstance(tree, dict):
        raise ValueError("LiteLLM's price list is a JSON object")
    reader = _Reader()
    for name, entry in tree.items():
        reader.take(name, entry)
    return Imported(
        prices=PriceList(origin=ORIGIN, prices=reader.prices, date=date, source=SOURCE),
        taken=sum(len(models) for models in reader.prices.values()),
        skipped=dict(reader.skipped),
        fields=dict(reader.fields),
        rounded=reader.rounded,
    )


class _Reader:
    def __init__(self) -> None:
        self.prices: dict[str, dict[str, Price]] = {}
        self.skipped: Counter[str] = Counter()
        self.fields: Counter[str] = Counter()
        self.rounded = 0

    def take(self, name: str, entry: object) -> None:
        if name == "sample_spec":
            self.skipped["the list's own documentation"] += 1
            return
        if not isinstance(entry, dict) or not isinstance(entry.get("litellm_provider"), str):
            self.skipped["names no provider"] += 1
            return
        told: str = entry["litellm_provider"]
        provider = _PROVIDERS.get(told, "vertex_ai" if told.startswith("vertex_ai-") else told)
        model = name.removeprefix(f"{told}/").removeprefix(f"{provider}/")
        known = self.prices.setdefault(provider, {})
        if model in known:
            self.skipped["is there under another spelling"] += 1
            return
        price = self._price(entry)
        if price is None:
            self.skipped["has no price for tokens or seconds"] += 1
            if not known:
                del self.prices[provider]
        else:
            known[model] = price

    def _price(self, entry: dict[str, Any]) -> Price | None:
        tiers: dict[str, _Sizes] = {"": {}}
        passed_over: list[str] = []
        for field, value in entry.items():
            match = _FIELD.match(field)
            name = _CLASSES.get((match["what"], match["kept"] or "")) if match else None
            if match is None or name is None or not _is_amount(value):
                if _IS_PRICE.search(field) and value is not None:
                    passed_over.append(field)
                continue
            size = int(match["k"] or 0) * 1000
            sizes = tiers.setdefault((match["tier"] or "").removeprefix("_"), {})
            sizes.setdefault(size, {})[name] = self._nano(value * MILLION)
        base, extra = tiers.pop(""), self._extra(entry, passed_over)
        if not base.get(0) and "audio_second" not in extra:
            return None
        self.fields.update(passed_over)
        changes = {name: _change(base, sizes, extra) for name, sizes in tiers.items() if sizes.get(0)}
        batch = changes.pop("batches", None)
        speeds, geos = _factors(entry, "fast"), _factors(entry, "us")
        source = entry.get("source")
        return Price(
            tiers=_tiers(base, extra),
            service_tiers=changes,
            speeds=speeds,
            inference_geos=geos,
            batch=batch,
            source=source if isinstance(source, str) else "",
        )

    def _extra(self, entry: dict[str, Any], passed_over: list[str]) -> dict[str, Any]:
        """What is not billed by the token: the same for all sizes and tiers."""
        extra: dict[str, Any] = {}
        tools: dict[str, int] = {}
        if entry.get("mode") == "audio_transcription" and _is_amount(entry.get("input_cost_per_second")):
            extra["audio_second"] = self._nano(entry["input_cost_per_second"])
            passed_over[:] = [each for each in passed_over if each != "input_cost_per_second"]
        by_size = entry.get("search_context_cost_per_query")
        amounts = list(by_size.values()) if isinstance(by_size, dict) else []
        if amounts and all(map(_is_amount, amounts)) and len(set(amounts)) == 1:
            # Where it depends on how much is searched, the answer does not tell which it was.
            tools["web_search"] = self._nano(amounts[0])
            passed_over.remove("search_context_cost_per_query")
        if _is_amount(entry.get("file_search_cost_per_1k_calls")):
            tools["file_search"] = self._nano(entry["file_search_cost_per_1k_calls"] / 1000)
            passed_over.remove("file_search_cost_per_1k_calls")
        extra["server_tools"] = tuple(sorted(tools.items()))
        return extra

    def _nano(self, dollars: Decimal) -> int:
        exact = Fraction(dollars) * NANO
        if exact.denominator != 1:
            self.rounded += 1
        return (2 * exact.numerator + exact.denominator) // (2 * exact.denominator)


def _number(text: str) -> Decimal | str:
    """A number exactly; its text where its exponent is beyond what a Decimal can have: that is no amount."""
    try:
        return Decimal(text)
    except InvalidOperation:
        return text


def _is_amount(value: object) -> bool:
    return isinstance(value, Decimal) and value.is_finite() and 0 <= value < NANO and value.adjusted() > -30


def _tiers(sizes: _Sizes, extra: dict[str, Any]) -> tuple[tuple[int, Rates], ...]:
    """A larger size has the prices that are stated for it, and for the other classes those of the size before."""
    tiers: list[tuple[int, Rates]] = []
    classes: dict[str, Any] = {}
    for above_tokens in sorted({0, *sizes}):
        classes = {**classes, **sizes.get(above_tokens, {})}
        tiers.append((above_tokens, Rates(**{**classes, **extra})))
    return tuple(tiers)


def _change(base: _Sizes, sizes: _Sizes, extra: dict[str, Any]) -> Change:
    """A tier whose prices are all the same multiple of the standard ones is that factor: so it is for the sizes and the
    classes that the list does not repeat. Else it has the prices that are stated."""
    ratios = {
        Fraction(price, base[size][name]) if base.get(size, {}).get(name) else None
        for size, classes in sizes.items()
        for name, price in classes.items()
    }
    ratio = ratios.pop() if len(ratios) == 1 else None
    if ratio is not None and (10**9) % ratio.denominator == 0:
        return ratio
    return Price(tiers=_tiers(sizes, extra))


def _factors(entry: dict[str, Any], name: str) -> dict[str, Fraction]:
    """Anthropic's speed ("fast") and place ("us") are factors in a corner of their own."""
    of_provider = entry.get("provider_specific_entry")
    value = of_provider.get(name) if isinstance(of_provider, dict) else None
    return {name: Fraction(value)} if isinstance(value, Decimal) and _is_amount(value) else {}
