"""The prices of one model as people write them, checked: a tree of dicts, lists and text becomes a `Price`.

The rule: nothing is passed over. A key that is not known, an amount that is none, a size that is never reached is a
complaint with the path to it, and all of them are found at once.

Amounts are decimal dollars: for a million tokens, for a second (audio_second), for a request (server_tools). Factors
are decimals: `batch: 0.5`. A larger size states all of its classes: none is taken from the smaller one, except what is
not billed by the token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from fractions import Fraction
from typing import Final, TypeAlias, TypeVar

from llmproxy.core.money import exact, nano_usd
from llmproxy.core.pricing import Change, Price, Rates

_T = TypeVar("_T")

Tree: TypeAlias = object
"""What a YAML or a JSON file is, with every number as its text: dict, list, str; int and None are taken too."""

Path: TypeAlias = tuple[str, ...]
Complaint: TypeAlias = tuple[Path, str]
"""Where, by keys, and what is wrong, in words."""

RATES: Final = tuple(name for name in Rates.__struct_fields__ if name != "server_tools")
PRICE: Final = (*RATES, "server_tools", "tiers", "service_tiers", "speeds", "inference_geos", "batch")
_TIER: Final = (*RATES, "above")
_TIER_OF_OLD: Final = (*RATES, "threshold")
_TOKENS_MAX: Final = 10**12


class Reader:
    """Takes trees, and keeps what is wrong with them in `complaints`."""

    def __init__(self) -> None:
        self.complaints: list[Complaint] = []

    def complain(self, path: Path, words: str) -> None:
        self.complaints.append((path, words))

    def price(self, tree: Tree, path: Path, source: str = "", also: Iterable[str] = ()) -> Price | None:
        """The prices of a model: a map of them, or the list of sizes of a threshold each that is the older form.

        also: keys of the map that somebody else reads. None if nothing was said that could be used.
        """
        if isinstance(tree, list):
            by_threshold = self._thresholds(tree, path)
            return Price(tiers=by_threshold, source=source) if by_threshold else None
        entries = self.map(tree, path, (*PRICE, *also))
        tools = self._tools(entries.get("server_tools"), (*path, "server_tools"))
        tiers = self._tiers(entries, path, tools)
        if tiers is None:
            return None

        def change(value: Tree, at: Path) -> Change | None:
            return self._change(value, at, tiers[0][1])

        return Price(
            tiers=tiers,
            service_tiers=self._named(entries.get("service_tiers"), (*path, "service_tiers"), change),
            speeds=self._named(entries.get("speeds"), (*path, "speeds"), change),
            inference_geos=self._named(entries.get("inference_geos"), (*path, "inference_geos"), self._factor),
            batch=change(entries["batch"], (*path, "batch")) if "batch" in entries else None,
            source=source,
        )

    def map(self, tree: Tree, path: Path, keys: Iterable[str] | None = None) -> Mapping[str, Tree]:
        """The entries of a map; none if it is no map. keys: the only ones that may be there; None: any."""
        if tree is None or tree == "":
            return {}
        if not isinstance(tree, dict):
            self.complain(path, "must be a map")
            return {}
        entries = {str(key): value for key, value in tree.items()}
        for key in entries if keys is not None else ():
            self._known(key, path, tuple(keys or ()))
        return entries

    def text(self, tree: Tree, path: Path) -> str:
        """A text; "" if there is none."""
        if tree is None or isinstance(tree, str):
            return tree or ""
        self.complain(path, "must be a text")
        return ""

    def names(self, tree: Tree, path: Path) -> list[str]:
        """A list of names; none if there is none."""
        if tree is None:
            return []
        if not isinstance(tree, list) or not all(isinstance(each, str) and each for each in tree):
            self.complain(path, "must be a list of names")
            return []
        return [str(each) for each in tree]

    def _known(self, key: str, path: Path, keys: tuple[str, ...]) -> None:
        if key not in keys:
            near = get_close_matches(key, keys, 1)
            hint = f"did you mean {near[0]}?" if near else f"the keys here are {', '.join(keys)}"
            self.complain((*path, key), f"unknown key; {hint}")

    def _rates(
        self, entries: Mapping[str, Tree], path: Path, tools: tuple[tuple[str, int], ...], base: Rates | None = None
    ) -> Rates:
        """base: the rates of the standard price, whose price of a second holds for all sizes and tiers."""
        prices = {name: self._dollars(entries[name], (*path, name)) for name in RATES if name in entries}
        if base is not None and base.audio_second is not None:
            prices.setdefault("audio_second", base.audio_second)
        return Rates(**prices, server_tools=tools)

    def _tiers(
        self, entries: Mapping[str, Tree], path: Path, tools: tuple[tuple[str, int], ...], base: Rates | None = None
    ) -> tuple[tuple[int, Rates], ...] | None:
        if not self._states_price(entries, path):
            return None
        first = self._rates(entries, path, tools, base)
        tiers = [(0, first)]
        several = entries.get("tiers", [])
        if not isinstance(several, list):
            self.complain((*path, "tiers"), "must be a list of maps, each with above: a number of tokens")
            several = []
        for nth, tree in enumerate(several):
            at = (*path, "tiers", str(nth))
            tier = self.map(tree, at, _TIER)
            above_tokens = self._tokens(tier.get("above"), (*at, "above"))
            if above_tokens is not None and above_tokens <= tiers[-1][0]:
                self.complain((*at, "above"), "must be more than that of the tier before it, and more than 0")
            elif above_tokens is not None and self._states_price(tier, at):
                tiers.append((above_tokens, self._rates(tier, at, tools, first)))
        return tuple(tiers)

    def _states_price(self, entries: Mapping[str, Tree], path: Path) -> bool:
        if any(name in entries for name in RATES):
            return True
        if not any(each[: len(path)] == path for each, _ in self.complaints):  # else a slip explains it
            self.complain(path, f"states no price; write at least one of {', '.join(RATES)}")
        return False

    def _thresholds(self, several: list[Tree], path: Path) -> tuple[tuple[int, Rates], ...]:
        """The first entry in the order as listed counts whose threshold is 0 or at least the input; above all of them,
        the last."""
        tiers: list[tuple[int, Rates]] = []
        covered = 0  # up to this many tokens there is an entry
        for nth, tree in enumerate(several):
            at = (*path, str(nth))
            entries = self.map(tree, at, _TIER_OF_OLD)
            threshold = self._tokens(entries.get("threshold", "0"), (*at, "threshold"))
            rates = self._rates(entries, at, ())
            if threshold is None or not self._states_price(entries, at):
                continue
            if covered < 0 or 0 < threshold <= covered:
                self.complain(at, "is never reached: an entry before it holds for the same sizes")
                continue
            tiers.append((covered, rates))
            covered = threshold or -1
        if not several:
            self.complain(path, "states no price")
        return tuple(tiers)

    def _tools(self, tree: Tree, path: Path) -> tuple[tuple[str, int], ...]:
        return tuple(sorted(self._named(tree, path, self._dollars).items()))

    def _change(self, tree: Tree, path: Path, base: Rates) -> Change | None:
        if not isinstance(tree, dict):
            return self._factor(tree, path)
        entries = self.map(tree, path, (*RATES, "server_tools", "tiers"))
        tools = self._tools(entries.get("server_tools"), (*path, "server_tools")) or base.server_tools
        tiers = self._tiers(entries, path, tools, base)
        return None if tiers is None else Price(tiers=tiers)

    def _named(self, tree: Tree, path: Path, read: Callable[[Tree, Path], _T | None]) -> dict[str, _T]:
        found = {name: read(value, (*path, name)) for name, value in self.map(tree, path).items()}
        return {name: value for name, value in found.items() if value is not None}

    def _dollars(self, tree: Tree, path: Path) -> int | None:
        try:
            return nano_usd(_scalar(tree))
        except ValueError as error:
            self.complain(path, f"must be dollars, as in 0.075; this {error}")
            return None

    def _factor(self, tree: Tree, path: Path) -> Fraction | None:
        try:
            return exact(_scalar(tree))
        except ValueError as error:
            self.complain(path, f"must be a factor, as in 0.5, or a map of prices; this {error}")
            return None

    def _tokens(self, tree: Tree, path: Path) -> int | None:
        try:
            number = exact(_scalar(tree))
        except ValueError:
            number = Fraction(-1)
        if number.denominator == 1 and 0 <= number <= _TOKENS_MAX:
            return number.numerator
        self.complain(path, "must be a whole number of tokens")
        return None


def _scalar(tree: Tree) -> str:
    """The text of a number. Raises ValueError, in words, for what is none: a float is not what was written."""
    if isinstance(tree, str):
        return tree
    if isinstance(tree, int) and not isinstance(tree, bool):
        return str(tree)
    raise ValueError("is no number")
