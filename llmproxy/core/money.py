"""Dollars as whole numbers: what is written is read exactly, and what is shown is exact.

The rule: no amount is ever a float. A nano-dollar (a thousand-millionth) is the unit, since a token costs less than a
millionth of a dollar.
"""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Final

NANO: Final = 1_000_000_000
"""Nano-dollars in a dollar."""


def nano_usd(text: str) -> int:
    """Dollars as they are written ("0.075", "1_000") in nano-dollars, exactly.

    Raises ValueError, in words, for what is no amount of dollars or has more than nine decimals.
    """
    amount = exact(text) * NANO
    if amount.denominator != 1:
        raise ValueError("has more than nine decimals")
    return amount.numerator


def exact(text: str) -> Fraction:
    """A number as it is written, exactly. Raises ValueError, in words, if it is none, below 0 or not below 10**9."""
    try:
        number = Decimal(text.replace("_", "") if text[:1] != "_" else "")
    except InvalidOperation:
        raise ValueError("is no number") from None
    if not number.is_finite() or number < 0 or number >= NANO or number.adjusted() < -30:
        raise ValueError("is no number from 0 to 999999999")
    return Fraction(number)


def usd(nano: int) -> str:
    """Nano-dollars for people, exact: "$0.000123", "$1.50", "-$12,000.00"."""
    whole, rest = divmod(abs(nano), NANO)
    decimals = f"{rest:09d}".rstrip("0").ljust(2, "0")
    return f"{'-' if nano < 0 else ''}${whole:,}.{decimals}"
