"""Shared by the estimators: input validation, and the deviation of each reward from the mean of its group."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def check_rewards(rewards: Tensor, least_group_size: int = 1) -> None:
    """Raise ValueError unless `rewards` are finite float64 of shape [P, G] with P >=
    1 and G >= `least_group_size`.
    """
    import torch

    if rewards.ndim != 2 or rewards.dtype != torch.float64:
        raise ValueError(
            f"rewards: got {rewards.dtype} {list(rewards.shape)}, allowed: float64 [prompts, group size]"
        )
    prompts, group_size = rewards.shape
    if prompts < 1 or group_size < least_group_size:
        raise ValueError(
            f"rewards: got {prompts} groups of {group_size}, "
            f"allowed: at least 1 group of at least {least_group_size}"
        )
    if not bool(torch.isfinite(rewards).all()):
        raise ValueError(
            "rewards: got NaN or infinity, allowed: finite numbers (a rollout that could not be scored "
            "has the reward of the failure policy)"
        )


def centred_on_group(rewards: Tensor) -> Tensor:
    """Subtract from each reward the mean of its group, [P, G]. A group of equal rewards gives exactly 0.

    The mean of equal numbers may differ from them in the last bit (0.1 three times, for example), and
    dividing by a small standard deviation would turn that bit into an advantage.
    """
    equal = rewards.amax(dim=1, keepdim=True) == rewards.amin(dim=1, keepdim=True)
    return (rewards - rewards.mean(dim=1, keepdim=True)).masked_fill(equal, 0.0)
