"""What the writer wants of a place to keep rows, and how such a place says that it cannot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from llmproxy.state.ledger.row import Row


class LedgerError(Exception):
    """The ledger cannot be used as it is. The text is one sentence for the operator."""


class Backend(Protocol):
    """Keeps rows. Used by one thread at a time.

    name: "sqlite" or "jsonl". notices: sentences for the operator about what was put right; whoever reads them clears
    them. deadline_s: a time of `time.monotonic`; from then on `write` and `tend` wait for no other process. Another
    thread may set it while they do.
    """

    name: str
    notices: list[str]
    deadline_s: float

    def write(self, rows: Sequence[Row]) -> None:
        """Keep all of the rows, or raise and keep none: then the same rows may be given again, and count once.

        Opens or makes what it needs. Raises LedgerError, OSError or sqlite3.Error where the storage fails.
        """

    def tend(self) -> bool:
        """One small step of what has to be done now and then: remove old rows. Returns whether there is more to do.

        Raises as `write`.
        """

    def close(self) -> None:
        """Let go of all files. Raises as `write`."""
