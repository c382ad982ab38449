"""What one token weighs in the loss of a batch.

A weight belongs to a rollout, all of whose trained tokens share it, and is computed from the lengths of the
*whole* batch. The loss of the step is sum over tokens of weight x loss, so any split of the batch into
micro-batches and ranks sums to the same number.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Aggregation = Literal["token", "sequence", "constant"]


def rollout_token_weights(lengths: Tensor, mode: Aggregation, max_new_tokens: int) -> Tensor:
    """What one token of rollout i weighs: lengths [N] integer give weights [N] float64.

    `lengths` counts the tokens of each rollout that are trained on, over all rollouts of the batch, those
    too that are not computed because their advantage is zero: they still count in the normaliser.

    - `token`: 1 / sum(lengths). Every token counts the same, long rollouts count more (DAPO,
      https://arxiv.org/abs/2503.14476, eq. 8).
    - `sequence`: 1 / (N lengths[i]). Every rollout counts the same, so a token of a long one counts
      less (GRPO, https://arxiv.org/abs/2402.03300, eq. 3; N = P G is the mean over prompts of the mean
      over the group).
    - `constant`: 1 / (N max_new_tokens). Every token counts the same in every batch, however long the
      rollouts are (Dr. GRPO, https://arxiv.org/abs/2503.20783): the sum over a rollout, times a constant.

    A rollout of length 0 counts in N, has no token to weigh, and weighs 0 in `token` and `sequence` if
    there is nothing to divide by. Raises ValueError for a mode that is none of the three.

    >>> rollout_token_weights(torch.tensor([2, 2, 2, 3]), "sequence", max_new_tokens=4)
    tensor([0.1250, 0.1250, 0.1250, 0.0833], dtype=torch.float64)
    """
    rollouts = lengths.numel()
    if mode == "token":
        divisor = lengths.sum().expand(rollouts)
    elif mode == "sequence":
        divisor = rollouts * lengths
    elif mode == "constant":
        divisor = torch.full_like(lengths, rollouts * max_new_tokens)
    else:
        raise ValueError(f"aggregation: got {mode!r}, allowed: token, sequence, constant")
    weights = 1.0 / divisor.clamp(min=1).to(torch.float64)
    return torch.where(divisor > 0, weights, 0.0)
