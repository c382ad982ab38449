"""Formats shares between 0 and 1 as percentages."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal


def percent(share: float | Decimal) -> str:
    """Format a share as a percentage with one decimal. Only exactly 1 is shown as 100%, only exactly 0 as 0%.

    >>> [percent(share) for share in (0.0, 0.0004, 0.25, 0.9961, 0.9996, 1.0, 1.0004, 1.2)]
    ['0%', '<0.1%', '25.0%', '99.6%', '>99.9%', '100%', '>100%', '120.0%']
    """
    text = f"{share:.1%}"
    if text == "0.0%":
        return "<0.1%" if share > 0 else "0%"
    if text == "100.0%":
        return ">99.9%" if share < 1 else "100%" if share == 1 else ">100%"
    return text


def percent_with_interval(share: float, interval: Sequence[float] | None) -> str:
    """Format a share with the bounds of its confidence interval, if they are known.

    >>> percent_with_interval(0.9961, (0.978, 0.9993)), percent_with_interval(0.5, None)
    ('99.6% (97.8 to 99.9%)', '50.0%')
    """
    if interval is None:
        return percent(share)
    low, high = interval
    return f"{percent(share)} ({percent(low).removesuffix('%')} to {percent(high)})"
