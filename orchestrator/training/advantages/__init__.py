"""From rewards to advantages: one small file an estimator, under the name that configs use.

All are pure functions of the whole batch's rewards, so every learner rank computes the same advantages from
the same scores and nothing has to be sent. A rollout's advantage is that of each of its tokens: rewards
come at the end, undiscounted.

Importing this package does not import torch; an estimator's module does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from orchestrator.training.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor


class AdvantageEstimator(Protocol):
    """Turns rewards [P, G] float64 into advantages [P, G] float64: row p holds the G rollouts of prompt p."""

    def __call__(self, rewards: Tensor, /) -> Tensor:
        """The advantage of each rollout. Raises ValueError for rewards of another shape or dtype, or not
        finite."""
        ...


ADVANTAGES: Registry[AdvantageEstimator] = Registry("advantage", package="orchestrator.training.advantages")

GROUP_RELATIVE = frozenset({"grpo", "dr_grpo", "rloo", "reinforce_plus_plus_baseline"})
"""Our estimators that compare a rollout with others of its prompt: they need 2 or more a group, and give a
group of equal rewards exactly 0."""

NOT_GROUP_RELATIVE = frozenset({"reinforce_plus_plus", "constant"})
"""Our estimators under which a group of equal rewards still has a gradient."""
