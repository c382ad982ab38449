"""Advantage estimators: each turns the rewards of a batch into advantages and lives in its own small file.

Estimators are pure functions of the rewards of the whole batch, so every learner rank computes the same
advantages from the same scores without communication. A rollout is rewarded once, at its end, without
discounting; all of its tokens therefore get the same advantage. The exception is `gae`: there a value
head of the learner gives each token its own.

Importing this package or the module of an estimator does not import torch, because
configs are validated without it.
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
        """Return the advantage of each rollout. Raises ValueError for rewards of another shape or
        dtype, or if they are not finite.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimatorFacts:
    """Properties of an estimator that config validation and planning depend on. The
    defaults are safe for any estimator.
    """

    group_relative: bool = False
    """The estimator compares a rollout with the others of its group. It therefore needs groups of two or
    more, and gives exactly 0 to groups of equal rewards, which can be skipped or replaced.
    """
    ignores_rewards: bool = False
    """The advantage does not depend on the rewards: every rollout is imitated."""
    needs_values: bool = False
    """The learner has a value head. The estimator passes the rewards on, and the learner computes an
    advantage for each token by generalised advantage estimation (`algorithm.gae`).
    """


ADVANTAGES: Registry[AdvantageEstimator, EstimatorFacts] = Registry(
    "advantage", "orchestrator.training.advantages", EstimatorFacts, key="algorithm.advantage"
)
