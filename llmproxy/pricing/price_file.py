"""Price files: the one that is shipped, and those that people write.

The rule: a file is used as a whole or not at all. All that is wrong with it is said at once, each with the file, the
path to the key and what was probably meant.

    schema: 1
    date: 2026-11-24
    source: https://example.com/pricing
    currency: USD
    prices:
      openai:
        gpt-5.5:
          aliases: [gpt-5.5-2026-04-23]
          source: https://developers.openai.com/api/docs/pricing
          input: 5              # dollars for a million tokens
          cache_read: 0.50
          output: 30
          tiers: [{above: 272000, input: 10, cache_read: 1, output: 45}]
          service_tiers: {flex: 0.5, priority: {input: 12.50, cache_read: 1.25, output: 75}}
          batch: 0.5
          server_tools: {web_search: 0.01}    # dollars for a request
      my-gateway:
        same_as: openai

YAML or JSON. Numbers are read as they are written, whether in quotes or not; none is ever a float.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import date
from pathlib import Path as FilePath
from typing import Any, Final

from llmproxy.core.pricing import PriceList
from llmproxy.pricing.entry import PRICE, Complaint, Path, Reader, Tree
from llmproxy.pricing.tables import Tables

SCHEMA: Final = "1"
SHIPPED: Final = "shipped"
_FILE: Final = FilePath(__file__).with_name("prices.json")
_TOP: Final = ("schema", "date", "source", "currency", "note", "prices")
_OF_MODEL: Final = ("aliases", "source", "note")
_DEPTH_MAX: Final = 32
_NULLS: Final = frozenset(("", "~", "null"))
_BEGINNINGS: Final = frozenset(("AliasEvent", "ScalarEvent", "SequenceStartEvent", "MappingStartEvent"))


class PriceFileError(Exception):
    """A price file that cannot be used. `str()`: a line for each thing that is wrong. complaints: the same, as data."""

    def __init__(self, file: str, complaints: list[Complaint]) -> None:
        self.file = file
        self.complaints = tuple(dict.fromkeys(complaints))
        lines = [": ".join(each for each in (file, ".".join(path), words) if each) for path, words in self.complaints]
        super().__init__("\n".join(lines))


def load_shipped() -> PriceList:
    """The prices that come with this version."""
    return read_prices(_FILE.read_bytes(), str(_FILE), SHIPPED)


def load_file(path: str) -> PriceList:
    """The prices of somebody's own file. Raises PriceFileError, and OSError if it cannot be read."""
    return read_prices(FilePath(path).read_bytes(), path, FilePath(path).name)


def read_prices(content: bytes, file: str, origin: str) -> PriceList:
    """The prices in the text of a file. file: as it is named in complaints. Raises PriceFileError."""
    reader = Reader()
    prices = _prices(reader, _tree(content, file), origin)
    if reader.complaints:
        raise PriceFileError(file, reader.complaints)
    return prices


def staleness(prices: PriceList, today: date, days: int = 90) -> str | None:
    """A sentence for the log where prices are older than this many days; None: they are not, or days is 0."""
    if days <= 0 or not prices.date:
        return None
    age_days = (today - date.fromisoformat(prices.date)).days
    if age_days <= days:
        return None
    which = "the shipped prices" if prices.origin == SHIPPED else f"the prices of {prices.origin}"
    return f"{which} are {age_days} days old ({prices.date}); costs of models whose price has changed since are wrong"


def _prices(reader: Reader, tree: Tree, origin: str) -> PriceList:
    top = reader.map(tree, (), _TOP)
    if top.get("schema") not in (SCHEMA, int(SCHEMA)):
        reader.complain(("schema",), f"must be {SCHEMA}; this version knows no other")
    if top.get("currency") != "USD":
        reader.complain(("currency",), "must be USD")
    day = reader.text(top.get("date"), ("date",))
    try:
        date.fromisoformat(day)
    except ValueError:
        reader.complain(("date",), "must be the day on which the prices were read, as in 2026-11-24")
    reader.text(top.get("note"), ("note",))
    tables = Tables(reader)
    for provider, of_provider in reader.map(top.get("prices"), ("prices",)).items():
        for model, of_model in reader.map(of_provider, ("prices", provider)).items():
            path = ("prices", provider, model)
            if model == "same_as":
                tables.add_same_as(provider, reader.text(of_model, path), path)
            else:
                _model(reader, tables, provider, model, of_model, path)
    return tables.to_list(origin, day, reader.text(top.get("source"), ("source",)))


def _model(reader: Reader, tables: Tables, provider: str, model: str, tree: Tree, path: Path) -> None:
    if not isinstance(tree, dict):
        reader.complain(path, "must be a map")
        return
    aliases = reader.names(tree.get("aliases"), (*path, "aliases"))
    tables.add_aliases(provider, model, aliases, (*path, "aliases"))
    reader.text(tree.get("note"), (*path, "note"))
    source = reader.text(tree.get("source"), (*path, "source"))
    if any(key in PRICE for key in tree) or not aliases:
        tables.add(provider, model, reader.price(tree, path, source, _OF_MODEL))
    else:
        reader.map(tree, path, (*PRICE, *_OF_MODEL))  # other names only: the price is in a list that goes after this


def _tree(content: bytes, file: str) -> Tree:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise PriceFileError(file, [((), "is not UTF-8 text")]) from None
    if text.lstrip()[:1] == "{":
        try:
            return json.loads(text, parse_float=str, parse_int=str, parse_constant=str, object_pairs_hook=_no_repeats)
        except _RepeatedKeyError as error:
            raise PriceFileError(file, [((str(error),), "stands there twice")]) from None
        except json.JSONDecodeError as error:
            # What begins as JSON may be YAML in its flow style.
            words = f"is no JSON: {error.msg} in line {error.lineno}"
            return _yaml(text, file, words)
        except RecursionError:
            raise PriceFileError(file, [((), "is nested too deeply")]) from None
    return _yaml(text, file, "")


class _RepeatedKeyError(Exception):
    pass


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        keys = [key for key, _ in pairs]
        raise _RepeatedKeyError(next(key for key in keys if keys.count(key) > 1))
    return entries


def _yaml(text: str, file: str, no_json: str) -> Tree:
    import yaml  # here, because it takes 25 ms, and the shipped file is JSON

    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    reader = Reader()
    try:
        # Events only: YAML's own constructor would make floats of prices, and let the second of two equal keys win; its
        # composer takes as much stack as a file is deep, without a bound.
        tree = _Events(yaml.parse(text, Loader=loader), reader).document()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark is not None else ""
        words = no_json or f"is no YAML: {getattr(error, 'problem', error)}{where}"
        raise PriceFileError(file, [((), words)]) from None
    if reader.complaints:
        raise PriceFileError(file, reader.complaints)
    return tree


class _TooDeepError(Exception):
    pass


class _Events:
    """Makes the events of a YAML text dicts, lists and text."""

    def __init__(self, events: Iterator[Any], reader: Reader) -> None:
        self._events = events
        self._reader = reader

    def document(self) -> Tree:
        """The tree of the first document; None if there is none."""
        for event in self._events:
            if type(event).__name__ in _BEGINNINGS:
                try:
                    return self._tree(event, (), 0)
                except _TooDeepError:
                    self._reader.complain((), "is nested too deeply")
                    return None
        return None

    def _tree(self, event: Any, path: Path, depth: int) -> Tree:
        if depth > _DEPTH_MAX:
            raise _TooDeepError
        match type(event).__name__:
            case "ScalarEvent":
                return None if event.style is None and event.value in _NULLS else str(event.value)
            case "SequenceStartEvent":
                several: list[Tree] = []
                while type(each := next(self._events)).__name__ != "SequenceEndEvent":
                    several.append(self._tree(each, (*path, str(len(several))), depth + 1))
                return several
            case "MappingStartEvent":
                return self._map(path, depth)
        # A few lines that name each other can stand for a thousand million: no price needs that.
        self._reader.complain(path, f"write it out: *{event.anchor} is not known here")
        return None

    def _map(self, path: Path, depth: int) -> Tree:
        entries: dict[str, Tree] = {}
        while type(key := next(self._events)).__name__ != "MappingEndEvent":
            named = type(key).__name__ == "ScalarEvent"
            name = str(key.value) if named else "?"
            if not named:
                self._reader.complain(path, "a key must be a text")
                self._tree(key, path, depth + 1)
            value = self._tree(next(self._events), (*path, name), depth + 1)
            if named and name in entries:
                line = key.start_mark.line + 1
                self._reader.complain((*path, name), f"stands there twice, the second time in line {line}")
            elif named:
                entries[name] = value
        return entries
