"""Generalised advantage estimation: a value head gives each token its own advantage."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.training.advantages import ADVANTAGES, EstimatorFacts
from orchestrator.training.advantages._groups import check_rewards

if TYPE_CHECKING:
    from torch import Tensor


@ADVANTAGES.register("gae", EstimatorFacts(needs_values=True))
def gae(rewards: Tensor) -> Tensor:
    """The rewards themselves. [P, G] gives [P, G], float64; G may be 1.

    Values depend on the model, and rewards do not suffice: the learner turns the reward of each rollout into
    advantages for its tokens (`training/learner/critic.py`).

    Schulman et al. 2016, https://arxiv.org/abs/1506.02438.
    """
    check_rewards(rewards)
    return rewards
