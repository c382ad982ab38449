"""REINFORCE++ with baseline: the reward minus its group's mean, divided by the
standard deviation of the batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.training.advantages import ADVANTAGES, EstimatorFacts
from orchestrator.training.advantages._groups import centred_on_group, check_rewards
from orchestrator.training.advantages.reinforce_plus_plus import EPSILON

if TYPE_CHECKING:
    from torch import Tensor


@ADVANTAGES.register("reinforce_plus_plus_baseline", EstimatorFacts(group_relative=True))
def reinforce_plus_plus_baseline(rewards: Tensor) -> Tensor:
    """A = d / (std(d) + 1e-8) with d[p, i] = r[p, i] - mean(r[p]), std over all P x G rollouts. [P, G] gives
    [P, G], float64. Raises ValueError if G < 2.

    The mean of d over the batch is 0, so nothing more is subtracted; std and EPSILON are those of
    `reinforce_plus_plus`. All groups share one scale: unlike with `grpo`, the advantages of a group with
    little spread stay small. Assumes, like `dr_grpo`, that the rewards of all prompts have the same scale.
    Degenerate case: a group of equal rewards gives exactly 0.

        rewards 1 0 / 1 1:  d 0.5 -0.5 / 0 0, std sqrt(0.5 / 4) = 0.353553  ->  1.414214 -1.414214 / 0 0

    Hu et al. 2025, https://arxiv.org/abs/2501.03262, "REINFORCE++ w/ baseline".
    """
    check_rewards(rewards, least_group_size=2)
    deviation = centred_on_group(rewards)
    return deviation / (deviation.square().mean().sqrt() + EPSILON)
