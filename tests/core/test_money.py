"""Dollars as whole numbers."""

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.core.money import exact, nano_usd, usd


class ReadTests(SynchronousTestCase):
    """What people write."""

    def test_a_price_is_read_exactly(self) -> None:
        """A price of 0.075 dollars is 75 million nano-dollars, not a float near it."""
        for text, expected in (
            ("0.075", 75_000_000),
            ("3", 3_000_000_000),
            ("12.50", 12_500_000_000),
            ("0.00001111", 11_110),
            ("0.000000001", 1),
            ("2.5e-06", 2_500),
            ("1_000.5", 1_000_500_000_000),
            ("0", 0),
        ):
            self.assertEqual(nano_usd(text), expected, text)

    def test_what_is_no_amount_is_refused_in_words(self) -> None:
        """A slip of the finger in a price is told, and never becomes some other price."""
        for text in ("", "_1", "three", "-1", "nan", "inf", "1e99", "0x10", "1e-99999999", "$3", "3 USD", "1000000000"):
            error = self.assertRaises(ValueError, nano_usd, text)
            self.assertIn("is no number", str(error), text)
        error = self.assertRaises(ValueError, nano_usd, "0.0000000001")
        self.assertIn("more than nine decimals", str(error))

    def test_a_factor_is_exact(self) -> None:
        """Half price is a half, and a surcharge of ten percent is eleven tenths."""
        self.assertEqual(exact("0.5"), Fraction(1, 2))
        self.assertEqual(exact("1.1"), Fraction(11, 10))


class ShownTests(SynchronousTestCase):
    """What people see."""

    def test_a_small_amount_is_not_shown_as_nothing(self) -> None:
        """A call that cost a ten-thousandth of a cent is shown with what it cost."""
        for nano, expected in (
            (123_000, "$0.000123"),
            (1, "$0.000000001"),
            (0, "$0.00"),
            (1_500_000_000, "$1.50"),
            (12_000_000_000_000, "$12,000.00"),
            (-75_000_000, "-$0.075"),
        ):
            self.assertEqual(usd(nano), expected)

    @given(st.integers(0, 10**17))
    def test_what_is_shown_can_be_read_back(self, nano: int) -> None:
        """An amount on the screen is the amount in the ledger, to the last digit."""
        self.assertEqual(nano_usd(usd(nano).removeprefix("$").replace(",", "")), nano)
