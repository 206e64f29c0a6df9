"""The ledger against what the simulator says that it served: some thousand requests of every kind, row by row."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import pytest

from tests.live.books import WARM_UP, Call, calls, compare, read_record
from tests.live.proxy import Proxy, environment, running_proxy
from tests.live.upstream import HOST
from tests.live.wire import wait_until

COUNT: Final = 2000
AT_ONCE: Final = 24
SEEDS: Final = {"sqlite": 1, "jsonl": 2}
LIMIT_S: Final = 60.0


@contextlib.contextmanager
def simulator() -> Iterator[tuple[str, int]]:
    """The simulator as a program of its own; its address."""
    with socket.socket() as free:
        free.bind((HOST, 0))
        address = (HOST, int(free.getsockname()[1]))
    with tempfile.TemporaryDirectory() as home:
        process = subprocess.Popen(
            (sys.executable, "-m", "llmproxy", "simulate", f"--port={address[1]}", f"--keep={4 * COUNT}"),
            env=environment(Path(home)),
            stdout=subprocess.PIPE,
        )
        try:
            assert process.stdout is not None
            assert b"listening" in process.stdout.readline()
            yield address
        finally:
            process.kill()
            process.communicate()


def served(address: tuple[str, int]) -> list[dict[str, Any]]:
    """All that the simulator remembers."""
    connection = http.client.HTTPConnection(*address, timeout=LIMIT_S)

    def get(target: str) -> Mapping[str, Any]:
        connection.request("GET", target)
        found: Mapping[str, Any] = json.loads(connection.getresponse().read())
        return found

    with contextlib.closing(connection):
        return read_record(get)


def send(proxy: Proxy, call: Call) -> None:
    """Send one request as its caller does, and read of its answer what the caller reads."""
    connection = http.client.HTTPConnection(*proxy.address, timeout=LIMIT_S)
    with contextlib.closing(connection), contextlib.suppress(http.client.HTTPException, ConnectionError):
        connection.request(call.method, call.path, call.body or None, dict(call.headers))
        response = connection.getresponse()
        if call.leave_after_bytes is None:
            response.read()
        else:
            response.read(call.leave_after_bytes)


def rows_of(backend: str, place: Path) -> list[dict[str, Any]]:
    """The rows of a ledger."""
    if backend == "sqlite":
        with contextlib.closing(sqlite3.connect(place)) as connection:
            connection.row_factory = sqlite3.Row
            return [dict(row) for row in connection.execute("SELECT * FROM requests")]
    return [json.loads(line) for file in sorted(place.glob("ledger-*.jsonl")) for line in file.read_text().splitlines()]


@pytest.mark.parametrize("backend", SEEDS)
def test_rows_are_what_was_served(backend: str, tmp_path: Path) -> None:
    """Mixed requests of every shape, streamed, coded, cut, failing and left: each has one row, the exact ones equal
    what the provider served, and the broken ones are near what it had sent."""
    place = tmp_path / "ledger"
    with simulator() as address:
        url = f"http://{address[0]}:{address[1]}"
        config = {
            "providers": {name: {"base_url": url} for name in ("openai", "anthropic", "gemini", "groq")},
            "ledger": {"backend": backend, "path": str(place)},
        }
        with running_proxy(config, LLM_PROXY_LEDGER=backend) as proxy:
            everything = list(calls(SEEDS[backend], COUNT))
            with ThreadPoolExecutor(AT_ONCE) as pool:
                list(pool.map(lambda call: send(proxy, call), everything[:WARM_UP]))
                list(pool.map(lambda call: send(proxy, call), everything[WARM_UP:]))
            wait_until(lambda: len(rows_of(backend, place)) >= COUNT, 10.0)
            state = json.loads(health(proxy))["ledger"]
            wait_until(lambda: len(told(proxy)) > COUNT, 10.0)
            events = told(proxy)
        rows = rows_of(backend, place)
        different = compare(rows, served(address))
        assert not different, "\n".join(different)
    assert len(rows) == COUNT
    assert (state["state"], state["dropped"]) == ("ok", 0)
    sources = {source: sum(row.get("source", "none") == source for row in rows) for source in SOURCES}
    assert all(sources.values()), sources
    # Each row is told in the log as well, and in the same words.
    for row in rows:
        event = events[row["request_id"]]
        assert event["usage_source"] == row.get("source", "none")
        assert (event["input_tokens"], event["output_tokens"], event["cost_nano_usd"]) == (
            row.get("total_input", 0),
            row.get("total_output", 0),
            row.get("cost_nano_usd"),
        )


def told(proxy: Proxy) -> dict[str, dict[str, Any]]:
    """The access events, by the id of their request."""
    return {each["request_id"]: each for each in proxy.events() if each.get("event") == "access"}


SOURCES: Final = ("exact", "partial", "estimated", "none")


def health(proxy: Proxy) -> bytes:
    """What /health says."""
    connection = http.client.HTTPConnection(*proxy.address, timeout=LIMIT_S)
    with contextlib.closing(connection):
        connection.request("GET", "/health")
        return connection.getresponse().read()
