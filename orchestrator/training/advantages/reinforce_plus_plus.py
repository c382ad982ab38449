"""REINFORCE++: how many standard deviations a rollout is above the whole batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.training.advantages import ADVANTAGES, EstimatorFacts
from orchestrator.training.advantages._groups import check_rewards

if TYPE_CHECKING:
    from torch import Tensor

EPSILON = 1e-8


@ADVANTAGES.register("reinforce_plus_plus", EstimatorFacts(group_relative=False))
def reinforce_plus_plus(rewards: Tensor) -> Tensor:
    """A = (r - mean(r)) / (std(r) + 1e-8), mean and std over all P x G rollouts of the batch. [P, G] gives
    [P, G], float64.

    The population's standard deviation (divisor P G) and EPSILON are those of OpenRLHF, the authors' code;
    it averages over tokens, here a rollout counts once, so long rollouts do not move the baseline. G may be
    1.

    Assumes a batch so large that its mean is nearly independent of any one rollout, and prompts of similar
    difficulty: a rollout of a hard prompt is judged by the easy ones. Degenerate: a *batch* of equal
    rewards gives exactly 0; a group of equal rewards does not.

        rewards 1 1 / 0 0:  mean 0.5, std 0.5  ->  1 1 / -1 -1

    Hu et al. 2025, https://arxiv.org/abs/2501.03262.
    """
    check_rewards(rewards)
    deviation = (rewards - rewards.mean()).masked_fill(rewards.amax() == rewards.amin(), 0.0)
    return deviation / (rewards.std(correction=0) + EPSILON)
