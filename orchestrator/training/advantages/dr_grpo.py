"""Dr. GRPO: how far a rollout is above its group's mean, in units of reward."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.training.advantages import ADVANTAGES, EstimatorFacts
from orchestrator.training.advantages._groups import centred_on_group, check_rewards

if TYPE_CHECKING:
    from torch import Tensor


@ADVANTAGES.register("dr_grpo", EstimatorFacts(group_relative=True))
def dr_grpo(rewards: Tensor) -> Tensor:
    """A[p, i] = r[p, i] - mean(r[p]). [P, G] gives [P, G], float64. Raises ValueError if G < 2.

    Assumes that all prompts' rewards have one scale, so that no group needs a scale of its own. The mean
    contains the rollout itself, which shrinks the expected gradient by (G - 1) / G and leaves its direction
    alone (`rloo` takes it out). Degenerate: a group of equal rewards gives exactly 0.

        rewards 1 0 0 0:  mean 0.25  ->  0.75 -0.25 -0.25 -0.25

    Liu et al. 2025, https://arxiv.org/abs/2503.20783.
    """
    check_rewards(rewards, least_group_size=2)
    return centred_on_group(rewards)
