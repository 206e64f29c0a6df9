"""One row of the ledger: what one request used and cost, in values that every backend can keep.

The rules: a row has all that its cost follows from, so that it can be priced again later. What is kept of a text that a
caller or a provider chose is bounded, holds no key, and can be written in any encoding of Unicode.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from operator import attrgetter
from typing import Any, Final

import msgspec

from llmproxy.core.usage import NO_USAGE, ModelUsage, Source, Usage
from llmproxy.observe.redact import may_hold_key, without_keys

TEXT_CHARACTERS_MAX: Final = 512
JSON_CHARACTERS_MAX: Final = 16_384

# No honest call comes near these, and a sum of millions of them still is a 64-bit number, which is what SQLite has.
_COUNT_MAX: Final = 10**12
COST_MAX_NANO_USD: Final = 10**12
"""A thousand dollars: what no call costs."""

TOO_LARGE: Final = '"too_large"'
"""What `server_tools` or `parts` hold that were larger than JSON_CHARACTERS_MAX: the cost of such a row no longer
follows from it."""

ACCOUNTING_FAILED: Final = "accounting_failed"
"""The `reason` of a row whose usage could not be worked out: it has no counts, and is not free."""

_ONCE_DIGEST_BYTES: Final = 16
_ONCE_PROVIDER_CHARACTERS_MAX: Final = 64

_OUTSIDERS_TEXTS: Final = (
    "upstream_request_id",
    "response_id",
    "user",
    "model_asked",
    "model",
    "service_tier",
    "speed",
    "inference_geo",
    "finish_reason",
    "reason",
    "error_class",
    "once",
)

TOKEN_CLASSES: Final = (
    "input_tokens",
    "cache_read_tokens",
    "cache_write_5m_tokens",
    "cache_write_1h_tokens",
    "tool_use_tokens",
    "output_tokens",
    "reasoning_tokens",
    "input_audio_tokens",
    "input_image_tokens",
    "output_audio_tokens",
    "output_image_tokens",
)
"""The fields of a row that are tokens of one class; the names are those of core.usage.Usage."""

_COUNTS: Final = (*TOKEN_CLASSES, "total_input", "total_output", "audio_ms", "request_bytes", "response_bytes")

_outsiders_texts: Final = attrgetter(*_OUTSIDERS_TEXTS)
_counts: Final = attrgetter(*_COUNTS)
_encode: Final = msgspec.json.Encoder().encode
_server_tools: Final = msgspec.json.Decoder(tuple[tuple[str, int], ...]).decode
_parts: Final = msgspec.json.Decoder(tuple[ModelUsage, ...]).decode


class Row(msgspec.Struct, gc=False, omit_defaults=True):
    """One request that went to a provider.

    time_ns: when it ended, UTC, in nanoseconds since 1970. duration_ms, ttfb_ms: from its begin to its end, and to the
        first byte of the answer (None: there was none).
    request_id: ours, and unique in the ledger. upstream_request_id, response_id: the provider's, of the request and of
        the answer.
    route: the provider's route; shape: of the answer (core.usage.Reading).
    model_asked, model: as asked and as answered.
    stream: the answer was a stream. status: 0 where there was no answer. end_reason: of core.end.
    input_tokens to output_image_tokens: as in core.usage.Usage, of the model that answers. total_input, total_output:
        of all models that took part.
    server_tools, parts: as in Usage, as JSON text (`json_text`); None if there are none; TOO_LARGE if there were too
        many.
    source, reason: how the usage is known, and why, where that is not exact.
    service_tier, speed, inference_geo, batch: what the price depends on besides the model.
    cost_nano_usd: None where there is no price, and where nothing is billed (source "none").
    price_version: which prices.
    once: the name under which an answer that is given again and again was counted (`storable_once`); None for all
        others.
    """

    time_ns: int
    request_id: str
    provider: str
    route: str | None = None
    shape: str | None = None
    credential_id: str | None = None
    user: str | None = None
    model_asked: str | None = None
    model: str | None = None
    stream: bool = False
    status: int = 0
    end_reason: str = ""
    duration_ms: float = 0.0
    ttfb_ms: float | None = None
    upstream_request_id: str | None = None
    response_id: str | None = None
    input_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_5m_tokens: int = 0
    cache_write_1h_tokens: int = 0
    tool_use_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    input_audio_tokens: int = 0
    input_image_tokens: int = 0
    output_audio_tokens: int = 0
    output_image_tokens: int = 0
    total_input: int = 0
    total_output: int = 0
    server_tools: str | None = None
    audio_ms: int = 0
    parts: str | None = None
    source: str = Source.NONE
    reason: str | None = None
    service_tier: str | None = None
    speed: str | None = None
    inference_geo: str | None = None
    batch: bool = False
    finish_reason: str | None = None
    cost_nano_usd: int | None = None
    price_version: str | None = None
    request_bytes: int = 0
    response_bytes: int = 0
    error_class: str | None = None
    once: str | None = None

    @property
    def is_error(self) -> bool:
        """Whether the caller got an error, or nothing."""
        return self.status >= 400 or not self.status or bool(self.error_class)

    @property
    def is_unpriced(self) -> bool:
        """Whether there is something to pay that has no price."""
        return self.cost_nano_usd is None and self.source != "none"

    @property
    def tells_its_cost(self) -> bool:
        """Whether its cost follows from what it holds, so that it can be priced again."""
        return self.reason != ACCOUNTING_FAILED and TOO_LARGE not in (self.server_tools, self.parts)

    @property
    def group_model(self) -> str:
        """The model that sums are made for: as answered, else as asked, else ""."""
        return self.model or self.model_asked or ""

    def usage(self) -> Usage:
        """The usage that the row was made of. Raises msgspec.MsgspecError where its JSON text is none."""
        return Usage(
            **{name: getattr(self, name) for name in TOKEN_CLASSES},
            server_tools=_server_tools(self.server_tools) if self.server_tools else (),
            audio_ms=self.audio_ms,
            parts=_parts(self.parts) if self.parts else (),
        )


COLUMNS: Final = Row.__struct_fields__


def json_text(value: tuple[tuple[str, int], ...] | tuple[ModelUsage, ...]) -> str | None:
    """`Usage.server_tools` or `Usage.parts` as a row has it; None if there are none.

    Of parts what is 0 is left out. What is larger than JSON_CHARACTERS_MAX even so has one part for each model: that
    is exact, but where a price depends on the size of a call.
    """
    if not value:
        return None
    if not isinstance(value[0], ModelUsage):
        return _encode(value).decode()
    parts = [part for part in value if isinstance(part, ModelUsage)]
    text = _encode([_without_zeros(part) for part in parts]).decode()
    if len(text) > JSON_CHARACTERS_MAX:
        text = _encode([_without_zeros(part) for part in _by_model(parts)]).decode()
    return text


def _without_zeros(part: ModelUsage) -> dict[str, Any]:
    usage = part.usage
    counts = {name: value for name in Usage.__struct_fields__ if name != "parts" and (value := getattr(usage, name))}
    if usage.parts:
        counts["parts"] = [_without_zeros(each) for each in usage.parts]
    return {"model": part.model, "usage": counts}


def _by_model(parts: Iterable[ModelUsage]) -> list[ModelUsage]:
    """One part for each model, with what was used on it."""
    merged: dict[str, Usage] = {}
    for part in parts:
        for inner in _by_model(part.usage.parts):
            merged[inner.model] = _sum(merged.get(inner.model, NO_USAGE), inner.usage)
        merged[part.model] = _sum(merged.get(part.model, NO_USAGE), part.usage)
    return [ModelUsage(model, usage) for model, usage in merged.items()]


def _sum(one: Usage, other: Usage) -> Usage:
    """Both together, without their parts."""
    tools = dict(one.server_tools)
    for name, count in other.server_tools:
        tools[name] = tools.get(name, 0) + count
    counts = {name: getattr(one, name) + getattr(other, name) for name in (*TOKEN_CLASSES, "audio_ms")}
    return Usage(**counts, server_tools=tuple(sorted(tools.items())))


def storable_once(name: str) -> str:
    """A name as `Row.once` keeps it; whoever compares it with one that was kept brings it into this form first.

    At most TEXT_CHARACTERS_MAX characters: of a longer one its first word and a digest of the whole are kept, so that
    two long names are still two. (Had it been cut, half of a key could be left, and be masked the second time.) Keys in
    it are masked, and halves of surrogate pairs are "?". Changes nothing the second time.
    """
    if len(name) <= TEXT_CHARACTERS_MAX and name.isascii() and not may_hold_key(name):
        return name
    data = _clean_bytes(name)
    text = data.decode()
    if len(text) <= TEXT_CHARACTERS_MAX:
        return text
    digest = blake2b(data, digest_size=_ONCE_DIGEST_BYTES).hexdigest()
    provider = text.partition(" ")[0]
    is_name = len(provider) <= _ONCE_PROVIDER_CHARACTERS_MAX and provider.isascii() and not may_hold_key(provider)
    return f"{provider if is_name else ''} #{digest}"


def make_storable(row: Row) -> None:
    """Bring the values of a row into the bounds that every backend can keep. Changes the row; never raises.

    Texts that callers and providers chose are cut to TEXT_CHARACTERS_MAX, keys in them are masked, and halves of
    surrogate pairs, which no encoder takes, become "?". A count that is no count any more is held at a bound.
    """
    # An enumeration's value: SQLite takes longer for a subclass of str, and JSON is to have the plain one as well.
    row.source, row.end_reason = str(row.source), str(row.end_reason)
    # Nearly every row is in order, and is looked at as a whole.
    texts = " ".join(filter(None, _outsiders_texts(row)))
    if len(texts) > TEXT_CHARACTERS_MAX or not texts.isascii() or may_hold_key(texts):
        for name in _OUTSIDERS_TEXTS:
            text = getattr(row, name)
            if text is not None:
                setattr(row, name, storable_once(text) if name == "once" else _clean(text))
    if row.server_tools is not None or row.parts is not None:
        for name in ("server_tools", "parts"):
            text = getattr(row, name)
            if text is not None:
                setattr(row, name, _clean_json(text))
    counts = _counts(row)
    if min(counts) < 0 or max(counts) > _COUNT_MAX:
        for name in _COUNTS:
            setattr(row, name, min(max(getattr(row, name), 0), _COUNT_MAX))
    if row.cost_nano_usd is not None:
        row.cost_nano_usd = storable_cost(row.cost_nano_usd)


def storable_cost(nano_usd: int) -> int:
    """A cost within the bounds of a row."""
    return min(max(nano_usd, 0), COST_MAX_NANO_USD)


def _clean(text: str) -> str:
    return _clean_bytes(text).decode()[:TEXT_CHARACTERS_MAX]


def _clean_json(text: str) -> str:
    # What masks a key is sometimes longer than the key, and half of a JSON text is none.
    text = _clean_bytes(text).decode()
    return text if len(text) <= JSON_CHARACTERS_MAX else TOO_LARGE


def _clean_bytes(text: str) -> bytes:
    data = text.encode("utf-8", "replace")
    return without_keys(data) if may_hold_key(text) else data
