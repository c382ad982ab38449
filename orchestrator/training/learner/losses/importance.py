"""Tokens sampled by another policy than the learner's: an older version, or an engine that rounds otherwise.

Three policies meet in one step:

    sampled     the rollout engine's, at the time of sampling          log mu
    proximal    the learner's at the beginning of the step             log p_prox
    current     the learner's at this minibatch, with gradient         log p

Without a correction PPO's ratio is p / mu, so one clip bounds both the staleness and the step. With
truncated importance sampling each has a bound of its own: the ratio is p / p_prox, clipped, and each token's
loss is multiplied by min(p_prox / mu, truncation), detached. A step with one minibatch needs no second
forward pass: there p_prox is p itself, detached, and the ratio is exactly 1.

Yao et al. 2025, https://fengyao.notion.site/off-policy-rl; the decoupled objective is Hilton et al. 2021,
https://arxiv.org/abs/2110.00641; truncation: Ionides 2008, https://doi.org/10.1198/106186008X320456.
"""

from __future__ import annotations

import torch
from torch import Tensor


def truncated_weights(proximal_logprobs: Tensor, sampled_logprobs: Tensor, truncation: float) -> Tensor:
    """min(exp(proximal - sampled), truncation) for each token: [T] and [T] give [T], detached.

    A weight below 1 is kept as it is; only large ones are cut, which bounds the variance at the price of a
    bias towards the sampling policy.
    """
    ratio = torch.exp(proximal_logprobs.detach() - sampled_logprobs.detach())
    return ratio.clamp(max=truncation)
