"""Rows and ledgers for the tests of the ledger."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from llmproxy.state.ledger.backend import Backend
from llmproxy.state.ledger.jsonl import JsonlLedger
from llmproxy.state.ledger.query import BackendName
from llmproxy.state.ledger.row import Row
from llmproxy.state.ledger.sqlite import SqliteLedger

NOON_S = datetime(2026, 11, 24, 12, tzinfo=UTC).timestamp()
DAY_S = 86_400
BACKENDS: tuple[BackendName, ...] = ("sqlite", "jsonl")


def row(number: int, *, ago_s: float = 0.0, **fields: Any) -> Row:
    """A row of a call with 10 tokens in, 5 out, for 7 nano-dollars, unless `fields` say otherwise."""
    usual: dict[str, Any] = {
        "time_ns": int((NOON_S - ago_s) * 1e9),
        "request_id": f"req-{number}",
        "provider": "openai",
        "model": "gpt-5.5",
        "user": "ann",
        "credential_id": "key_aaaa1111",
        "status": 200,
        "end_reason": "ok",
        "input_tokens": 10,
        "output_tokens": 5,
        "total_input": 10,
        "total_output": 5,
        "source": "exact",
        "cost_nano_usd": 7,
    }
    return Row(**{**usual, **fields})


class Clock:
    """A time of day that a test sets."""

    def __init__(self) -> None:
        self.now_s = NOON_S

    def __call__(self) -> float:
        return self.now_s


def made(backend: BackendName, folder: str, clock: Clock, keep_days: int = 90) -> tuple[Backend, str]:
    """A ledger in a folder, and its path."""
    if backend == "sqlite":
        path = os.path.join(folder, "ledger.sqlite")
        return SqliteLedger(path, keep_days=keep_days, wall_time=clock), path
    path = os.path.join(folder, "ledger")
    return JsonlLedger(path, keep_days=keep_days, wall_time=clock), path


def written(backend: BackendName, folder: str, rows: Sequence[Row]) -> str:
    """The path of a closed ledger with some rows."""
    ledger, path = made(backend, folder, Clock())
    ledger.write(rows)
    ledger.close()
    return path
