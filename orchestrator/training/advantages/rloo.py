"""REINFORCE leave-one-out (RLOO): the reward minus the mean of the other rollouts of its group."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.training.advantages import ADVANTAGES, EstimatorFacts
from orchestrator.training.advantages._groups import centred_on_group, check_rewards

if TYPE_CHECKING:
    from torch import Tensor


@ADVANTAGES.register("rloo", EstimatorFacts(group_relative=True))
def rloo(rewards: Tensor) -> Tensor:
    """A[p, i] = r[p, i] - mean of r[p, j] over j != i. [P, G] gives [P, G],
    float64. Raises ValueError if G < 2.

    Computed as G / (G - 1) (r[p, i] - mean(r[p])), which is the same number. The baseline does not depend on
    the rollout itself, so the policy gradient is unbiased. Assumes that the rewards of all prompts have the
    same scale. Degenerate case: a group of equal rewards gives exactly 0.

        rewards 1 0 0 0:  others' means 0 1/3 1/3 1/3  ->  1 -1/3 -1/3 -1/3

    Kool et al. 2019, https://openreview.net/forum?id=r1lgTGL5DE; Ahmadian et al. 2024,
    https://arxiv.org/abs/2402.14740.
    """
    check_rewards(rewards, least_group_size=2)
    group_size = rewards.shape[1]
    return centred_on_group(rewards) * (group_size / (group_size - 1))
