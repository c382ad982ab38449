"""A share measured on groups of rollouts, with the sample size that its confidence interval needs.

The rollouts of one prompt are correlated, so N rollouts of P prompts say less about the true share than N
independent ones would. The variance of the share p is estimated from the groups (the ratio estimator for
clusters, Cochran, Sampling Techniques, 3rd ed., section 9A.2):

    v = P / (P - 1) * sum over groups of (t - p n)^2 / N^2        t of the group's n rollouts count

The effective sample size is the n for which p (1 - p) / n = v, limited to the range from P
to N. If all or none of the rollouts count, or if there is only one group, v cannot be
estimated: the effective size is then N.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Proportion:
    """Sums over groups, which can be added; `Proportion()` is zero.

    Example: two prompts with two rollouts each, where all rollouts of the first prompt count and none of the
    second: p = 1/2, v = 2 * (1 + 1) / 16 = 1/4, so p (1 - p) / v = 1, which is raised to P = 2.
    """

    groups: int = 0
    count: int = 0
    """N, the number of rollouts of all groups."""
    total: int = 0
    """The number of rollouts that count."""
    total_squares: int = 0
    """The sum of t^2 over the groups."""
    products: int = 0
    """The sum of t n over the groups."""
    count_squares: int = 0
    """The sum of n^2 over the groups."""

    def __add__(self, other: Proportion) -> Proportion:
        return Proportion(
            self.groups + other.groups,
            self.count + other.count,
            self.total + other.total,
            self.total_squares + other.total_squares,
            self.products + other.products,
            self.count_squares + other.count_squares,
        )

    @property
    def value(self) -> float:
        """The share; NaN without rollouts."""
        return self.total / self.count if self.count else math.nan

    @property
    def effective_n(self) -> float:
        """The number of independent rollouts with the same variance; NaN without rollouts."""
        if not self.count:
            return math.nan
        share = self.value
        squares = self.total_squares - 2 * share * self.products + share**2 * self.count_squares
        if self.groups < 2 or squares <= 0 or share in (0.0, 1.0):
            return float(self.count)
        variance = self.groups / (self.groups - 1) * squares / self.count**2
        return min(max(share * (1 - share) / variance, self.groups), self.count)


def proportion(
    counts: NDArray[np.bool_], group_size: int, among: NDArray[np.bool_] | None = None
) -> Proportion:
    """Sum up which rollouts count, [P * G] in groups of `group_size`; only those in `among` are considered.

    >>> proportion(np.array([True, True, False, False]), group_size=2).effective_n
    2
    """
    considered = np.ones_like(counts) if among is None else among
    totals = (counts & considered).reshape(-1, group_size).sum(axis=1, dtype=np.int64)
    sizes = considered.reshape(-1, group_size).sum(axis=1, dtype=np.int64)
    return Proportion(
        groups=int((sizes > 0).sum()),
        count=int(sizes.sum()),
        total=int(totals.sum()),
        total_squares=int((totals**2).sum()),
        products=int((totals * sizes).sum()),
        count_squares=int((sizes**2).sum()),
    )
