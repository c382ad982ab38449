"""Sums and means over the tokens of each rollout, for losses that see whole sequences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class TokenRows:
    """Which row (rollout) each of T trained tokens belongs to.

    A micro-batch always holds all trained tokens of its rows, so a sum over a row never depends on how the
    batch was split.
    """

    index: Tensor  # [T] int64: the row of each token, from 0
    count: int
    """How many rows there are; some of them may have no trained token."""

    def sums(self, values: Tensor) -> Tensor:
        """The sum of each token's row, at each token: [T] gives [T], with gradient. Adds up in float64."""
        return self._totals(values).to(values.dtype).index_select(0, self.index)

    def means(self, values: Tensor) -> Tensor:
        """The mean of each token's row, at each token: [T] gives [T], with gradient. Adds up in float64."""
        means = self._totals(values) / self._lengths(values)
        return means.to(values.dtype).index_select(0, self.index)

    def _totals(self, values: Tensor) -> Tensor:
        values = values.double()
        return values.new_zeros(self.count).index_add(0, self.index, values)

    def _lengths(self, values: Tensor) -> Tensor:
        ones = values.new_ones(values.shape).double()
        return ones.new_zeros(self.count).index_add(0, self.index, ones).clamp(min=1)
