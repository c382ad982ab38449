"""Confidence intervals of proportions.

The interval is Wilson's (1927, https://doi.org/10.1080/01621459.1927.10502953): unlike the textbook
p +- 1.96 * sqrt(p (1 - p) / n), it stays inside [0, 1] and does not collapse to a point at 0 of n or n of n.
"""

from __future__ import annotations

import math
from typing import NamedTuple

Z95 = 1.959963984540054
"""The standard normal distribution is within +- Z95 with probability 95 %."""


class Interval(NamedTuple):
    """The bounds of a confidence interval; `low <= high`."""

    low: float
    high: float


def wilson_interval(share: float, n: float, z: float = Z95) -> Interval:
    """The Wilson score interval of a share that was measured on `n` independent trials.

    `n` may be an effective sample size and so need not be an integer. Raises ValueError if `share` is not in
    [0, 1] or `n` is not positive.

    >>> [round(100 * bound, 1) for bound in wilson_interval(255 / 256, 256)]
    [97.8, 99.9]
    >>> [round(100 * bound, 1) for bound in wilson_interval(0.0, 256)]
    [0.0, 1.5]
    """
    if not 0 <= share <= 1 or not n > 0:
        raise ValueError(f"need a share between 0 and 1 and a positive n, got {share} and {n}")
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    reach = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # Rounding may leave 1e-17 where the bound is exactly 0 or 1, or put the share outside its own interval.
    return Interval(max(0.0, min(centre - reach, share)), min(1.0, max(centre + reach, share)))
