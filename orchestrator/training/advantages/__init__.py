"""Advantage estimators: from the rewards of a batch to advantages, one small file each.

Estimators are pure functions of the whole batch's rewards. Every learner rank therefore computes the same
advantages from the same scores, and nothing has to be sent. Rewards come at the end of a rollout and are not
discounted, so all tokens of a rollout have the same advantage.

Neither this package nor an estimator's module imports torch when it is imported: configs are
validated without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from orchestrator.training.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor


class AdvantageEstimator(Protocol):
    """Turns rewards [P, G] float64 into advantages [P, G] float64: row p holds the G rollouts of prompt p."""

    def __call__(self, rewards: Tensor, /) -> Tensor:
        """The advantage of each rollout. Raises ValueError for rewards of another shape or
        dtype, or not finite.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimatorFacts:
    """What configs and planners need to know about an estimator. The defaults are safe for any estimator."""

    group_relative: bool = False
    """Compares a rollout with the others of its prompt: needs groups of two or more, and gives a group of
    equal rewards advantages of exactly 0, so that such a group can be skipped or replaced.
    """
    ignores_rewards: bool = False
    """The advantage does not depend on rewards: every rollout is imitated."""


ADVANTAGES: Registry[AdvantageEstimator, EstimatorFacts] = Registry(
    "advantage", "orchestrator.training.advantages", EstimatorFacts, key="algorithm.advantage"
)
