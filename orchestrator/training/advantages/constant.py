"""Every rollout counts the same: supervised training on given solutions."""

from __future__ import annotations

import torch
from torch import Tensor

from orchestrator.training.advantages import ADVANTAGES
from orchestrator.training.advantages._groups import check_rewards


@ADVANTAGES.register("constant")
def constant(rewards: Tensor) -> Tensor:
    """A = 1, whatever the reward. [P, G] gives [P, G], float64.

    Assumes that every rollout is worth imitating: worked solutions, or samples that were selected before
    they came here. Goes with the loss `nll`. Degenerate: none; G may be 1.
    """
    check_rewards(rewards)
    return torch.ones_like(rewards)
