"""Every rollout counts the same: supervised training on given solutions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.training.advantages import ADVANTAGES, EstimatorFacts
from orchestrator.training.advantages._groups import check_rewards

if TYPE_CHECKING:
    from torch import Tensor


@ADVANTAGES.register("constant", EstimatorFacts(ignores_rewards=True))
def constant(rewards: Tensor) -> Tensor:
    """A = 1, whatever the reward. [P, G] gives [P, G], float64.

    Assumes that every rollout is worth imitating: worked solutions, or samples that were selected before
    they came here. Goes with the loss `nll`. Degenerate: none; G may be 1.
    """
    check_rewards(rewards)
    return rewards.new_ones(rewards.shape)
