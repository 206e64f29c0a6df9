"""The schema of the SQLite ledger, and the way to it from every older one.

The rules: a step that was released is never changed, a new one is added at the end; so its SQL is written out and not
made from the fields of a row. The sums of a day are kept by triggers, in the transaction of the rows they are of: no
code path can forget them.
"""

from __future__ import annotations

import sqlite3
from typing import Final

from llmproxy.state.ledger.backend import LedgerError
from llmproxy.state.ledger.row import COLUMNS

APPLICATION_ID: Final = 0x6C6C6D70
"""`llmp`: what PRAGMA application_id is for, so that file(1) and we can tell whose database a file is."""

_FIRST: Final = """
CREATE TABLE requests (
    id INTEGER PRIMARY KEY,
    time_ns INTEGER NOT NULL, request_id TEXT NOT NULL UNIQUE, provider TEXT NOT NULL, route TEXT, shape TEXT,
    credential_id TEXT, user TEXT, model_asked TEXT, model TEXT, stream INTEGER NOT NULL, status INTEGER NOT NULL,
    end_reason TEXT NOT NULL, duration_ms REAL NOT NULL, ttfb_ms REAL, upstream_request_id TEXT, response_id TEXT,
    input_tokens INTEGER NOT NULL, cache_read_tokens INTEGER NOT NULL, cache_write_5m_tokens INTEGER NOT NULL,
    cache_write_1h_tokens INTEGER NOT NULL, tool_use_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL,
    reasoning_tokens INTEGER NOT NULL, input_audio_tokens INTEGER NOT NULL, input_image_tokens INTEGER NOT NULL,
    output_audio_tokens INTEGER NOT NULL, output_image_tokens INTEGER NOT NULL,
    total_input INTEGER NOT NULL, total_output INTEGER NOT NULL, server_tools TEXT, audio_ms INTEGER NOT NULL,
    parts TEXT, source TEXT NOT NULL, reason TEXT, service_tier TEXT, speed TEXT, inference_geo TEXT,
    batch INTEGER NOT NULL, finish_reason TEXT, cost_nano_usd INTEGER, price_version TEXT,
    request_bytes INTEGER NOT NULL, response_bytes INTEGER NOT NULL, error_class TEXT
);
CREATE INDEX requests_time ON requests (time_ns);
-- removed_before_ns: rows of before that may be gone.
CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO meta VALUES ('removed_before_ns', 0);
CREATE TABLE days (
    day TEXT NOT NULL, provider TEXT NOT NULL, model TEXT NOT NULL, user TEXT NOT NULL, credential_id TEXT NOT NULL,
    source TEXT NOT NULL, batch INTEGER NOT NULL,
    requests INTEGER NOT NULL, errors INTEGER NOT NULL, unpriced INTEGER NOT NULL,
    input_tokens INTEGER NOT NULL, cache_read_tokens INTEGER NOT NULL, cache_write_5m_tokens INTEGER NOT NULL,
    cache_write_1h_tokens INTEGER NOT NULL, tool_use_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL,
    reasoning_tokens INTEGER NOT NULL, input_audio_tokens INTEGER NOT NULL, input_image_tokens INTEGER NOT NULL,
    output_audio_tokens INTEGER NOT NULL, output_image_tokens INTEGER NOT NULL,
    total_input INTEGER NOT NULL, total_output INTEGER NOT NULL, audio_ms INTEGER NOT NULL,
    cost_nano_usd INTEGER NOT NULL,
    PRIMARY KEY (day, provider, model, user, credential_id, source, batch)
) WITHOUT ROWID;
CREATE TRIGGER requests_insert AFTER INSERT ON requests BEGIN
    INSERT INTO days VALUES (
        date(NEW.time_ns / 1000000000, 'unixepoch'), NEW.provider,
        coalesce(nullif(NEW.model, ''), NEW.model_asked, ''), coalesce(NEW.user, ''), coalesce(NEW.credential_id, ''),
        NEW.source, NEW.batch,
        1, NEW.status >= 400 OR NEW.status = 0 OR coalesce(NEW.error_class, '') <> '',
        NEW.cost_nano_usd IS NULL AND NEW.source <> 'none',
        NEW.input_tokens, NEW.cache_read_tokens, NEW.cache_write_5m_tokens, NEW.cache_write_1h_tokens,
        NEW.tool_use_tokens, NEW.output_tokens, NEW.reasoning_tokens, NEW.input_audio_tokens, NEW.input_image_tokens,
        NEW.output_audio_tokens, NEW.output_image_tokens, NEW.total_input, NEW.total_output, NEW.audio_ms,
        coalesce(NEW.cost_nano_usd, 0)
    ) ON CONFLICT (day, provider, model, user, credential_id, source, batch) DO UPDATE SET
        requests = requests + excluded.requests, errors = errors + excluded.errors,
        unpriced = unpriced + excluded.unpriced, input_tokens = input_tokens + excluded.input_tokens,
        cache_read_tokens = cache_read_tokens + excluded.cache_read_tokens,
        cache_write_5m_tokens = cache_write_5m_tokens + excluded.cache_write_5m_tokens,
        cache_write_1h_tokens = cache_write_1h_tokens + excluded.cache_write_1h_tokens,
        tool_use_tokens = tool_use_tokens + excluded.tool_use_tokens,
        output_tokens = output_tokens + excluded.output_tokens,
        reasoning_tokens = reasoning_tokens + excluded.reasoning_tokens,
        input_audio_tokens = input_audio_tokens + excluded.input_audio_tokens,
        input_image_tokens = input_image_tokens + excluded.input_image_tokens,
        output_audio_tokens = output_audio_tokens + excluded.output_audio_tokens,
        output_image_tokens = output_image_tokens + excluded.output_image_tokens,
        total_input = total_input + excluded.total_input, total_output = total_output + excluded.total_output,
        audio_ms = audio_ms + excluded.audio_ms, cost_nano_usd = cost_nano_usd + excluded.cost_nano_usd;
END;
CREATE TRIGGER requests_reprice AFTER UPDATE OF cost_nano_usd ON requests BEGIN
    UPDATE days SET
        cost_nano_usd = cost_nano_usd + coalesce(NEW.cost_nano_usd, 0) - coalesce(OLD.cost_nano_usd, 0),
        unpriced = unpriced + (NEW.cost_nano_usd IS NULL AND NEW.source <> 'none')
            - (OLD.cost_nano_usd IS NULL AND OLD.source <> 'none')
    WHERE day = date(NEW.time_ns / 1000000000, 'unixepoch') AND provider = NEW.provider
        AND model = coalesce(nullif(NEW.model, ''), NEW.model_asked, '') AND user = coalesce(NEW.user, '')
        AND credential_id = coalesce(NEW.credential_id, '') AND source = NEW.source AND batch = NEW.batch;
END;
"""

# Schema 2: what was counted once is known after a restart as well.
_ONCE: Final = """
ALTER TABLE requests ADD COLUMN once TEXT;
CREATE INDEX requests_once ON requests (once) WHERE once IS NOT NULL;
"""

STEPS: Final = (_FIRST, _ONCE)
"""STEPS[n] leads from schema n to n + 1. PRAGMA user_version holds the number."""

SCHEMA: Final = len(STEPS)

_INSERT: Final = f"INSERT INTO requests ({', '.join(COLUMNS)}) VALUES "
_PLACES: Final = f"({', '.join('?' * len(COLUMNS))})"


def insert(rows: int) -> str:
    """The statement that keeps so many rows, but for those that are kept already."""
    # Not INSERT OR IGNORE: that would hold for the trigger's own INSERT too (sqlite.org/lang_createtrigger.html).
    return f"{_INSERT}{', '.join((_PLACES,) * rows)} ON CONFLICT (request_id) DO NOTHING"


def version_of(connection: sqlite3.Connection, path: str) -> int:
    """The schema of an open database; 0 for one that is new and empty.

    Raises LedgerError if it is no ledger, or one that only a newer program knows.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    if application != APPLICATION_ID and (version or connection.execute("SELECT 1 FROM sqlite_master").fetchone()):
        raise LedgerError(f"{path} is a database, but no ledger of llmproxy; set ledger.path to another file.")
    if version > SCHEMA:
        raise LedgerError(
            f"The ledger {path} was written by a newer llmproxy (its schema is {version}, this one knows {SCHEMA}); "
            "use that version again, or set ledger.path to another file."
        )
    return int(version)


def bring_up_to_date(connection: sqlite3.Connection, path: str) -> int:
    """Make the schema, or lead an older one to the present one. Returns what it was.

    The connection is in autocommit mode. All steps are one transaction: a crash leaves the schema as it was.
    """
    before = version_of(connection, path)
    if before == SCHEMA:
        return before
    connection.execute("BEGIN IMMEDIATE")
    try:
        before = version_of(connection, path)  # another process may have been first
        for step in STEPS[before:]:
            for statement in _statements(step):
                connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {SCHEMA}")
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    return before


def _statements(script: str) -> list[str]:
    """The statements of a script. executescript() would commit the transaction first."""
    found: list[str] = []
    statement = ""
    for line in script.splitlines():
        statement += line + "\n"
        if sqlite3.complete_statement(statement):
            found.append(statement.strip())
            statement = ""
    return found
