"""An advantage that gives rarely solved prompts more weight."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.training.advantages import ADVANTAGES, EstimatorFacts

if TYPE_CHECKING:
    from torch import Tensor


@ADVANTAGES.register("success_rate", EstimatorFacts(group_relative=True))
def success_rate(rewards: Tensor) -> Tensor:
    """A[p, i] = (r[p, i] - mean(r[p])) / mean(r[p]). [P, G] float64 gives [P, G] float64.

    Assumes rewards of 0 or 1, so that the mean is the group's success rate. Degenerate: a group of equal
    rewards gives exactly 0, also if its mean is 0.

    >>> import torch
    >>> success_rate(torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 0]], dtype=torch.float64)).tolist()
    [[3.0, -1.0, -1.0, -1.0], [0.0, 0.0, 0.0, 0.0]]
    """
    mean = rewards.mean(dim=1, keepdim=True)
    equal = rewards.amax(dim=1, keepdim=True) == rewards.amin(dim=1, keepdim=True)
    return ((rewards - mean) / mean).masked_fill(equal, 0.0)
