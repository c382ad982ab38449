"""Dr. GRPO: the reward minus the mean of the group."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.training.advantages import ADVANTAGES, EstimatorFacts
from orchestrator.training.advantages._groups import centred_on_group, check_rewards

if TYPE_CHECKING:
    from torch import Tensor


@ADVANTAGES.register("dr_grpo", EstimatorFacts(group_relative=True))
def dr_grpo(rewards: Tensor) -> Tensor:
    """A[p, i] = r[p, i] - mean(r[p]). [P, G] gives [P, G], float64. Raises ValueError if G < 2.

    Assumes that the rewards of all prompts have the same scale, so that groups need not be normalised. The
    mean includes the rollout itself, which scales the expected gradient by (G - 1) / G without changing its
    direction (`rloo` excludes it). Degenerate case: a group of equal rewards gives exactly 0.

        rewards 1 0 0 0:  mean 0.25  ->  0.75 -0.25 -0.25 -0.25

    Liu et al. 2025, https://arxiv.org/abs/2503.20783.
    """
    check_rewards(rewards, least_group_size=2)
    return centred_on_group(rewards)
