"""REINFORCE++: the reward, normalised by the mean and the standard deviation of the whole batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.training.advantages import ADVANTAGES, EstimatorFacts
from orchestrator.training.advantages._groups import check_rewards

if TYPE_CHECKING:
    from torch import Tensor

EPSILON = 1e-8


@ADVANTAGES.register("reinforce_plus_plus", EstimatorFacts(group_relative=False))
def reinforce_plus_plus(rewards: Tensor) -> Tensor:
    """A = (r - mean(r)) / (std(r) + 1e-8), with mean and std over all P x G rollouts of the batch. [P, G]
    gives [P, G], float64. G may be 1.

    The population standard deviation (divisor P G) and EPSILON are those of OpenRLHF, the
    implementation of the authors. OpenRLHF averages over tokens; here every rollout counts once, so
    that long rollouts do not shift the baseline.

    Assumes a batch that is large enough for its mean to be nearly independent of any single rollout, and
    prompts of similar difficulty, because all prompts share one baseline. Degenerate case: a *batch* of equal
    rewards gives exactly 0; a group of equal rewards does not.

        rewards 1 1 / 0 0:  mean 0.5, std 0.5  ->  1 1 / -1 -1

    Hu et al. 2025, https://arxiv.org/abs/2501.03262.
    """
    check_rewards(rewards)
    deviation = (rewards - rewards.mean()).masked_fill(rewards.amax() == rewards.amin(), 0.0)
    return deviation / (rewards.std(correction=0) + EPSILON)
