"""The fields with which an answer tells its caller what it used: `X-LLM-Input-Tokens` and the others.

The rules: they are sent only where the provider's own counters are known to their end, and a value that comes from the
provider's body is put into a field only if it is plain text, printable ASCII without a line end, and looks like no key.
"""

from __future__ import annotations

from typing import Final

from llmproxy.accounting.account import Charge
from llmproxy.core.fields import Fields
from llmproxy.core.usage import Source
from llmproxy.observe.redact import may_hold_key

_CHARACTERS_MAX: Final = 256
_NANO: Final = 1_000_000_000


def token_fields(charge: Charge, provider: str) -> Fields:
    """What to add to the head of an answer; nothing where nothing was counted."""
    if charge.source is not Source.EXACT:
        return []
    usage = charge.usage
    taken, given = usage.total_input, usage.total_output
    read = usage.cache_read_tokens
    written = usage.cache_write_5m_tokens + usage.cache_write_1h_tokens
    thought = usage.reasoning_tokens
    fields = [
        (b"X-LLM-Input-Tokens", b"%d" % taken),
        (b"X-LLM-Output-Tokens", b"%d" % given),
        (b"X-LLM-Total-Tokens", b"%d" % (taken + given)),
        (b"X-LLM-Thought-Tokens", b"%d" % thought if thought else b"0"),
        (b"X-LLM-Cache-Read-Tokens", b"%d" % read if read else b"0"),
        (b"X-LLM-Cache-Write-Tokens", b"%d" % written if written else b"0"),
        (b"X-LLM-Provider", provider.encode("ascii")),
    ]
    reading = charge.reading
    model, response_id = reading.model or "", reading.response_id or ""
    both = f"{model} {response_id}"
    # Most are plain, and are looked at together.
    if len(both) <= _CHARACTERS_MAX and both.isascii() and both.isprintable() and not may_hold_key(both):
        if model:
            fields.append((b"X-LLM-Model", model.strip(" ").encode("ascii")))
        if response_id:
            fields.append((b"X-LLM-Request-ID", response_id.strip(" ").encode("ascii")))
    if charge.cost_nano_usd is not None:
        fields.append((b"X-LLM-Cost", dollars(charge.cost_nano_usd)))
    return fields


def dollars(nano_usd: int) -> bytes:
    """Nano-dollars as dollars, exactly: ``0.000123``."""
    whole, rest = divmod(nano_usd, _NANO)
    return (b"%d.%09d" % (whole, rest)).rstrip(b"0") if rest else b"%d" % whole
