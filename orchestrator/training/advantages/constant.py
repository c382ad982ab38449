"""The same advantage for every rollout: supervised fine-tuning on given solutions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.training.advantages import ADVANTAGES, EstimatorFacts
from orchestrator.training.advantages._groups import check_rewards

if TYPE_CHECKING:
    from torch import Tensor


@ADVANTAGES.register("constant", EstimatorFacts(ignores_rewards=True))
def constant(rewards: Tensor) -> Tensor:
    """A = 1 for any reward. [P, G] gives [P, G], float64.

    Assumes that every rollout is worth imitating: worked solutions, or samples that were selected beforehand.
    Use it with the loss `nll`. Degenerate cases: none; G may be 1.
    """
    check_rewards(rewards)
    return rewards.new_ones(rewards.shape)
