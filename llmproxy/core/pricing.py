"""What a call costs: prices of a model, and the sum over the classes of a `Usage`.

The rules:

* Money is integers. A price is nano-dollars: for a million tokens (USD 3 is 3_000_000_000), for a second of audio, for
  one request of a tool that the provider runs. A cost is the exact sum, rounded once, half up, to a nano-dollar.
* A model is looked up by its exact name or by an alias that is written down. A name that only resembles one has no
  price: a wrong price is worse than none, which is seen.
* Nothing is free because its price is not stated. Where a class has no price of its own, another stands in for it if
  it cannot be much off (`STAND_INS`); where none can, the cost is unknown (`Cost.nano_usd` is None), and `Cost.missing`
  says what for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from types import MappingProxyType
from typing import Final, TypeAlias

import msgspec

from llmproxy.core.usage import Usage

MILLION: Final = 1_000_000

STAND_INS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        # Providers sell what is read from a cache for less than fresh input, never for more.
        "cache_read": ("input",),
        # Who takes more for what is written to a cache says so (Anthropic); the others bill it as input.
        "cache_write_5m": ("input",),
        "cache_write_1h": ("cache_write_5m", "input"),
        "tool_use": ("input",),
        "reasoning": ("output",),
        # What a model sees is billed as input tokens, unless its price list says otherwise.
        "input_image": ("input",),
    }
)
"""The class whose price stands in for one that is not stated: the first that is. There is none for audio and for images
that are made: they cost up to sixteen times what text does."""

_STANDARD_TIERS: Final = frozenset(("", "default", "standard", "standard_only", "auto", "on_demand"))
"""Service tiers, as the providers name them, at the standard price."""
_STANDARD_SPEEDS: Final = frozenset(("", "standard"))
_STANDARD_GEOS: Final = frozenset(("", "global", "not_available"))

# Callers choose the names that are asked for; the quotes kept for them are bounded.
_QUOTES_MAX: Final = 4096


class Rates(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Prices by class, in nano-dollars; None: not stated.

    For a million tokens: the classes of `Usage`, without `_tokens`. audio_second: for a second of audio.
    server_tools: for one request, as (name, price), sorted by name.
    """

    input: int | None = None
    cache_read: int | None = None
    cache_write_5m: int | None = None
    cache_write_1h: int | None = None
    tool_use: int | None = None
    input_audio: int | None = None
    input_image: int | None = None
    output: int | None = None
    reasoning: int | None = None
    output_audio: int | None = None
    output_image: int | None = None
    audio_second: int | None = None
    server_tools: tuple[tuple[str, int], ...] = ()

    def price_of(self, name: str) -> tuple[int | None, str]:
        """The price of a class of tokens, and the class that states it: itself, one that stands in for it, or ""."""
        for each in (name, *STAND_INS.get(name, ())):
            price: int | None = getattr(self, each)
            if price is not None:
                return price, each
        return None, ""


class Price(msgspec.Struct, frozen=True, kw_only=True):
    """What a model costs.

    tiers: (above_tokens, rates), ascending: the last one counts whose above_tokens is exceeded by the whole input of
        the call, the first one otherwise.
    service_tiers, speeds, batch: prices of their own, or a factor on these.
    inference_geos: factors. All factors are on tokens and audio, not on server_tools.
    source: where these prices were read.
    """

    tiers: tuple[tuple[int, Rates], ...]
    service_tiers: Mapping[str, Change] = MappingProxyType({})
    speeds: Mapping[str, Change] = MappingProxyType({})
    inference_geos: Mapping[str, Fraction] = MappingProxyType({})
    batch: Change | None = None
    source: str = ""


Change: TypeAlias = Price | Fraction


class PriceList(msgspec.Struct, frozen=True, kw_only=True):
    """Prices from one source, by provider and by model.

    origin: "shipped", "config", the name of a file. date: YYYY-MM-DD, the day they were read, or "". source: where.
    aliases: other names of a model, each to its name; an alias with a price of its own is among `prices` too.
    same_as: a provider whose models cost what they cost at another one.
    """

    origin: str
    prices: Mapping[str, Mapping[str, Price]] = MappingProxyType({})
    aliases: Mapping[str, Mapping[str, str]] = MappingProxyType({})
    same_as: Mapping[str, str] = MappingProxyType({})
    date: str = ""
    source: str = ""

    @property
    def version(self) -> str:
        """As it stands beside a cost: "shipped 2026-11-24", "config"."""
        return f"{self.origin} {self.date}" if self.date else self.origin


class Cost(msgspec.Struct, frozen=True, gc=False):
    """What a call costs.

    nano_usd: None where some of it has no price. version: whose prices these are (`PriceList.version`), "" if none was
    found. model: the name they were found under. known_nano_usd: what of it has a price: `nano_usd`, or less than the
    whole. missing: what has no price: "model", "service_tier priority", "output_audio", "web_search" and so on.
    """

    nano_usd: int | None
    version: str = ""
    model: str | None = None
    known_nano_usd: int = 0
    missing: tuple[str, ...] = ()


class Line(msgspec.Struct, frozen=True, gc=False):
    """One class of a cost.

    model: on which. count: how many of unit ("token", "ms", "request"). price: nano-dollars for a million tokens, a
    second, a request; None: not stated. stated_as: the class that states it. factor: on this price.
    """

    model: str
    name: str
    count: int
    unit: str
    price: int | None
    stated_as: str
    factor: Fraction

    @property
    def millionths(self) -> int:
        """The exact amount before the factor, in millionths of a nano-dollar; 0 where there is no price."""
        each = 1 if self.unit == "token" else 1000 if self.unit == "ms" else MILLION
        return 0 if self.price is None else self.count * self.price * each

    @property
    def nano_usd(self) -> Fraction:
        """The exact amount in nano-dollars; 0 where there is no price."""
        return self.millionths * self.factor / MILLION


class Match(msgspec.Struct, frozen=True):
    """Where a price was found: in which list, for which provider (another one by same_as), under which name."""

    price: Price
    list: PriceList
    provider: str
    model: str


class _Sheet(msgspec.Struct, frozen=True, gc=False):
    """The rates of one tier with the stand-ins in place, for the sum of a plain call."""

    above_tokens: int
    input: int
    cache_read: int
    cache_write_5m: int
    cache_write_1h: int
    tool_use: int
    output: int


class _Quote(msgspec.Struct, frozen=True):
    """What is worked out once for a model, a service tier and so on.

    first, higher: the sheets by size, if `plain`: each token of input and output has a price, and parts of them have
    the same. per, half: what their sum times `times` is divided by, and half of that.
    """

    match: Match | None
    version: str
    model: str
    tiers: tuple[tuple[int, Rates], ...]
    factor: Fraction
    missing: tuple[str, ...]
    plain: bool
    first: _Sheet
    higher: tuple[_Sheet, ...]
    times: int
    per: int
    half: int


_Key: TypeAlias = tuple[str, str | None, str | None, str | None, str | None, str | None, bool]


class PriceBook:
    """Looks prices up, and adds them up.

    lists: as they go before each other: the configured prices, those of a file of one's own, those that are shipped.

    The order of a look-up: all lists for the provider itself; then all for the one that it is said to be `same_as`.
    In each list the model as answered goes before the model as asked, and a name goes before what it is an alias of.
    An alias that one list tells is known for all, so that a price configured for "gpt-4o" is that of the dated names
    that the shipped list knows.
    """

    __slots__ = ("_quotes", "lists")

    def __init__(self, lists: Sequence[PriceList]) -> None:
        self.lists = tuple(lists)
        self._quotes: dict[_Key, _Quote] = {}

    def cost(
        self,
        usage: Usage,
        provider: str,
        model_answered: str | None,
        model_asked: str | None = None,
        service_tier: str | None = None,
        speed: str | None = None,
        inference_geo: str | None = None,
        batch: bool = False,
    ) -> Cost:
        """What a call costs. Never raises.

        service_tier, speed, inference_geo: as the answer names them. What is at the standard price by its name
        ("default", "on_demand", "global" and so on) is; any other tier or speed needs a price, or the cost is unknown.
        A batch without a price of its own costs what its calls would, which is the most that it can cost.
        A usage with parts is the sum over the models, each at its own price and at the tier of its own input.
        """
        key = (provider, model_answered, model_asked, service_tier, speed, inference_geo, batch)
        quote = self._quotes.get(key) or self._quote(key)
        if not quote.plain or (
            usage.server_tools
            or usage.audio_ms
            or usage.parts
            or usage.input_audio_tokens
            or usage.output_audio_tokens
            or usage.output_image_tokens
        ):
            return self._cost_by_class(usage, key, quote)
        fresh, read = usage.input_tokens, usage.cache_read_tokens
        short, long, tools = usage.cache_write_5m_tokens, usage.cache_write_1h_tokens, usage.tool_use_tokens
        sheet = quote.first
        if quote.higher:
            total = fresh + read + short + long + tools
            for each in quote.higher:
                if total > each.above_tokens:
                    sheet = each
        amount = fresh * sheet.input + read * sheet.cache_read + usage.output_tokens * sheet.output
        if short or long or tools:
            amount += short * sheet.cache_write_5m + long * sheet.cache_write_1h + tools * sheet.tool_use
        nano_usd = (amount * quote.times + quote.half) // quote.per
        return Cost(nano_usd, quote.version, quote.model, nano_usd)

    def lines(
        self,
        usage: Usage,
        provider: str,
        model_answered: str | None,
        model_asked: str | None = None,
        service_tier: str | None = None,
        speed: str | None = None,
        inference_geo: str | None = None,
        batch: bool = False,
    ) -> tuple[Line, ...]:
        """What `cost` adds up: a line for each class that is not 0."""
        key = (provider, model_answered, model_asked, service_tier, speed, inference_geo, batch)
        return tuple(line for quote, own in self._quotes_of(usage, key) for line in _lines(own, quote))

    def find(self, provider: str, model_answered: str | None, model_asked: str | None = None) -> Match | None:
        """The price of a model, in the order of a look-up; None if it has none."""
        seen: set[str] = set()
        while provider not in seen:
            seen.add(provider)
            names = [self._names(provider, name) for name in (model_answered, model_asked) if name]
            for prices in self.lists:
                of_provider = prices.prices.get(provider, {})
                for name in (name for several in names for name in several):
                    if name in of_provider:
                        return Match(of_provider[name], prices, provider, name)
            provider = next((each.same_as[provider] for each in self.lists if provider in each.same_as), provider)
        return None

    def _names(self, provider: str, name: str) -> list[str]:
        known_as = [each.aliases.get(provider, {}).get(name) for each in self.lists]
        return list(dict.fromkeys([name, *(each for each in known_as if each is not None)]))

    def _quote(self, key: _Key) -> _Quote:
        provider, model_answered, model_asked, service_tier, speed, inference_geo, batch = key
        match = self.find(provider, model_answered, model_asked)
        if match is None:
            quote = _NO_QUOTE
        else:
            quote = _quoted(match, service_tier or "", speed or "", inference_geo or "", batch)
        if len(self._quotes) >= _QUOTES_MAX:
            self._quotes.clear()
        self._quotes[key] = quote
        return quote

    def _quotes_of(self, usage: Usage, key: _Key) -> Iterator[tuple[_Quote, Usage]]:
        """The models of a usage, each with what was used on it."""
        yield self._quotes.get(key) or self._quote(key), usage
        provider, _, _, service_tier, _, inference_geo, batch = key
        for part in usage.parts:
            # `speed` is that of the model that answers: a model beside it is asked by the provider, in its own way.
            part_key = (provider, part.model, None, service_tier, None, inference_geo, batch)
            yield from self._quotes_of(part.usage, part_key)

    def _cost_by_class(self, usage: Usage, key: _Key, first: _Quote) -> Cost:
        # Over the least common denominator of the factors, so that whole numbers stay whole numbers.
        amount, per = 0, 1
        missing: dict[str, None] = {}
        versions: dict[str, None] = {}
        for quote, own in self._quotes_of(usage, key):
            used = False
            for line in _lines(own, quote):
                used = True
                if line.price is None and not quote.missing:
                    missing[line.name] = None
                amount, per = _sum(amount, per, line.millionths * line.factor.numerator, line.factor.denominator)
            if used:
                missing.update(dict.fromkeys(quote.missing))
            if used or quote is first:
                versions[quote.version] = None
        per *= MILLION
        known = (2 * amount + per) // (2 * per)
        version = " + ".join(each for each in versions if each)
        return Cost(None if missing else known, version, first.model or None, known, tuple(missing))


def _sum(amount: int, per: int, more: int, more_per: int) -> tuple[int, int]:
    """amount/per + more/more_per."""
    if per == more_per:
        return amount + more, per
    common = math.lcm(per, more_per)
    return amount * (common // per) + more * (common // more_per), common


def _quoted(match: Match, service_tier: str, speed: str, inference_geo: str, batch: bool) -> _Quote:
    price, tiers, factor = match.price, match.price.tiers, Fraction(1)
    missing: list[str] = []
    changes: list[Change] = []
    tier = service_tier.lower()
    if batch or tier == "batch":
        if price.batch is not None:
            changes.append(price.batch)
    elif tier in price.service_tiers:
        changes.append(price.service_tiers[tier])
    elif tier not in _STANDARD_TIERS:
        missing.append(f"service_tier {tier}")
    if speed.lower() in price.speeds:
        changes.append(price.speeds[speed.lower()])
    elif speed.lower() not in _STANDARD_SPEEDS:
        missing.append(f"speed {speed.lower()}")
    geo = inference_geo.lower()
    if geo in price.inference_geos:
        changes.append(price.inference_geos[geo])
    elif price.inference_geos and geo not in _STANDARD_GEOS:
        # A model whose list names no place at all costs the same everywhere.
        missing.append(f"inference_geo {geo}")
    for change in changes:
        if isinstance(change, Price):
            tiers = change.tiers
        else:
            factor *= change
    if batch:
        # Its usage is the sum of many calls, and says nothing of the size of each: most are small.
        tiers = tiers[:1]
    return _made(match, tiers, factor, tuple(missing))


def _made(
    match: Match | None, tiers: tuple[tuple[int, Rates], ...], factor: Fraction, missing: tuple[str, ...]
) -> _Quote:
    sheets = [_sheet(above_tokens, rates) for above_tokens, rates in tiers]
    plain = [each for each in sheets if each is not None]
    per = MILLION * factor.denominator
    return _Quote(
        match=match,
        version=match.list.version if match else "",
        model=match.model if match else "",
        tiers=tiers,
        factor=factor,
        missing=missing,
        plain=bool(plain) and len(plain) == len(sheets) and not missing,
        first=plain[0] if plain else _Sheet(0, 0, 0, 0, 0, 0, 0),
        higher=tuple(plain[1:]),
        times=factor.numerator,
        per=per,
        half=per // 2,
    )


def _sheet(above_tokens: int, rates: Rates) -> _Sheet | None:
    """None if a class of it has no price, or parts of one have another than the rest."""
    prices = [rates.price_of(name)[0] for name in _Sheet.__struct_fields__[1:]]
    if rates.price_of("reasoning")[0] != rates.output or rates.price_of("input_image")[0] != rates.input:
        return None
    known = [each for each in prices if each is not None]
    return _Sheet(above_tokens, *known) if len(known) == len(prices) else None


_NO_QUOTE: Final = _made(None, (), Fraction(1), ("model",))


def _lines(usage: Usage, quote: _Quote) -> Iterator[Line]:
    """What of a usage, its parts aside, is billed as what."""
    classes = _classes(usage)
    total = usage.input_tokens + sum(classes[name] for name in ("cache_read", *_WRITES, "tool_use"))
    rates = _NO_RATES
    for nth, (above_tokens, each) in enumerate(quote.tiers):
        if nth == 0 or total > above_tokens:
            rates = each
    if quote.missing:
        rates = _NO_RATES  # the tier or the speed has no price, so that no class has one
    for name, count in classes.items():
        if count:
            yield Line(quote.model, name, count, "token", *rates.price_of(name), quote.factor)
    if usage.audio_ms:
        stated = "audio_second" if rates.audio_second is not None else ""
        yield Line(quote.model, "audio_second", usage.audio_ms, "ms", rates.audio_second, stated, quote.factor)
    tools = dict(rates.server_tools)
    for name, count in usage.server_tools:
        if count:
            yield Line(quote.model, name, count, "request", tools.get(name), name if name in tools else "", Fraction(1))


_NO_RATES: Final = Rates()
_WRITES: Final = ("cache_write_5m", "cache_write_1h")


def _classes(usage: Usage) -> dict[str, int]:
    """Tokens, each in one class: what is part of another class is taken out of it, and is never more than the whole."""
    input_left, output_left = usage.input_tokens, usage.output_tokens
    input_left -= (input_audio := min(usage.input_audio_tokens, input_left))
    input_left -= (input_image := min(usage.input_image_tokens, input_left))
    output_left -= (reasoning := min(usage.reasoning_tokens, output_left))
    output_left -= (output_audio := min(usage.output_audio_tokens, output_left))
    output_left -= (output_image := min(usage.output_image_tokens, output_left))
    return {
        "input": input_left,
        "cache_read": usage.cache_read_tokens,
        "cache_write_5m": usage.cache_write_5m_tokens,
        "cache_write_1h": usage.cache_write_1h_tokens,
        "tool_use": usage.tool_use_tokens,
        "input_audio": input_audio,
        "input_image": input_image,
        "output": output_left,
        "reasoning": reasoning,
        "output_audio": output_audio,
        "output_image": output_image,
    }
