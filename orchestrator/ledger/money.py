"""Exact money and hours. They are rounded once, at the end, so that printed lines add up to
the printed total.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction

from orchestrator.ledger.calendar import HOUR_NS

HOUR_PLACES = 6
AMOUNT_PLACES = 6


def hours(ns: int) -> Fraction:
    """Exact accelerator-hours of accelerator-nanoseconds."""
    return Fraction(ns, HOUR_NS)


def round_total(values: Sequence[Fraction], places: int) -> tuple[list[Decimal], Decimal]:
    """Round values and their total to `places` decimals so that the rounded values add up to
    the rounded total.

    The total is rounded half up. Each value is rounded down, and the missing units go to the values with the
    largest remainders, ties to the earlier one (largest remainder method, Hamilton 1792).

    >>> round_total([Fraction(1, 3)] * 3, 2)
    ([Decimal('0.34'), Decimal('0.33'), Decimal('0.33')], Decimal('1.00'))
    """
    scale = 10**places
    scaled = [value * scale for value in values]
    total = (2 * sum(scaled, Fraction(0)) + 1) // 2
    units = [value // 1 for value in scaled]
    missing = total - sum(units)
    by_remainder = sorted(range(len(values)), key=lambda index: (units[index] - scaled[index], index))
    for index in by_remainder[:missing]:
        units[index] += 1
    return [to_decimal(unit, places) for unit in units], to_decimal(total, places)


def to_decimal(units: int, places: int) -> Decimal:
    """`units` of 10 ** -places with all places, independent of the precision of the decimal context.

    >>> to_decimal(800, 2)
    Decimal('8.00')
    """
    digits = tuple(int(digit) for digit in str(abs(units)))
    return Decimal((int(units < 0), digits, -places))


def rounded(value: Fraction, places: int) -> Decimal:
    """A value rounded half up to `places` decimals."""
    return round_total([value], places)[1]


def split_evenly(total: int, parts: int) -> list[int]:
    """Split `total` into `parts` integers that differ by at most one and add up to it; larger
    ones come first.

    >>> split_evenly(10, 3)
    [4, 3, 3]
    """
    base, rest = divmod(total, parts)
    return [base + 1] * rest + [base] * (parts - rest)
