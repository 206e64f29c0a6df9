"""Times as they are written on the command line."""

from datetime import UTC, datetime

from twisted.trial.unittest import SynchronousTestCase

from llmproxy.state.ledger.query import moment_ns

NOW_S = datetime(2026, 11, 24, 15, 30, 10, tzinfo=UTC).timestamp()


def utc(*parts: int) -> int:
    return int(datetime(*parts, tzinfo=UTC).timestamp()) * 10**9  # type: ignore[misc,arg-type]


class MomentTests(SynchronousTestCase):
    """All are UTC."""

    def test_where_a_time_begins(self) -> None:
        """--since takes days, times, and words."""
        for text, expected in (
            ("2026-11-20", utc(2026, 11, 20)),
            ("2026-11-20T10:00", utc(2026, 11, 20, 10)),
            ("2026-11-20T10:00:30Z", utc(2026, 11, 20, 10, 0, 30)),
            ("2026-11-20T10:00+02:00", utc(2026, 11, 20, 8)),
            ("7d", utc(2026, 11, 17, 15, 30, 10)),
            ("24h", utc(2026, 11, 23, 15, 30, 10)),
            ("today", utc(2026, 11, 24)),
            ("yesterday", utc(2026, 11, 23)),
            ("month", utc(2026, 11, 1)),
            ("0001-01-01", 0),
            ("9999-12-31", 2**63 - 1),
        ):
            self.assertEqual(moment_ns(text, NOW_S), expected, text)

    def test_where_a_time_ends(self) -> None:
        """--until 2026-11-20 has all of that day; a time is just that time."""
        for text, expected in (
            ("2026-11-20", utc(2026, 11, 21)),
            ("2026-11-20T10:00", utc(2026, 11, 20, 10)),
            ("today", utc(2026, 11, 25)),
            ("yesterday", utc(2026, 11, 24)),
            ("month", utc(2026, 12, 1)),
            ("24h", utc(2026, 11, 23, 15, 30, 10)),
        ):
            self.assertEqual(moment_ns(text, NOW_S, is_end=True), expected, text)

    def test_what_is_no_time_is_told(self) -> None:
        """A slip of the keyboard gets an answer that helps."""
        for text in ("", "tomorow", "7w", "2026-13-01", "-7d", "2026-11-24 25:00"):
            error = self.assertRaises(ValueError, moment_ns, text, NOW_S)
            self.assertIn("yesterday", str(error))
