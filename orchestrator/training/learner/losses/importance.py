"""Tokens sampled by another policy than the learner's: an older version, or an engine with other rounding.

Three policies are involved in a step:

    sampled     the rollout engine's, at the time of sampling          log mu
    proximal    the learner's at the beginning of the step             log p_prox
    current     the learner's at this minibatch, with gradient         log p

Without a correction PPO's ratio is p / mu, so one clip bounds both the staleness and the step. A correction
separates the two: the ratio is p / p_prox, clipped, and the loss of each token is multiplied by a weight
computed from p_prox / mu, detached. A step with one update needs no second forward pass: there p_prox is p
itself, detached, and the ratio is exactly 1.

    weights            of a token                                        of a rollout (`per_sequence`)
    importance         p_prox / mu                                       the product over its trained tokens
    truncated          at most `maximum`                                 the same of the product
    masked             0 outside [`minimum`, `maximum`]                  the same of the product

The product over a rollout is the unbiased weight of its return, and its variance grows with the length. The
weight of a token alone is biased, because it leaves out how the policies differ on the tokens before it, and
its variance does not grow.

- The decoupled objective: Hilton et al. 2021, https://arxiv.org/abs/2110.00641; for asynchronous training of
  language models (AReaL): Fu et al. 2025, https://arxiv.org/abs/2505.24298, eq. 5.
- Truncation: Ionides 2008, https://doi.org/10.1198/106186008X320456; of tokens between engine and learner:
  Yao et al. 2025, https://fengyao.notion.site/off-policy-rl.
- Masks: of tokens (IcePop) Ling Team 2025, https://arxiv.org/abs/2510.18855; of rollouts
  (MIS) Qi et al. 2025, https://arxiv.org/abs/2510.26788.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from orchestrator.training.learner.losses.token_rows import TokenRows


@dataclass(frozen=True, slots=True)
class Correction:
    """Which weights correct for the policy that sampled the tokens. The defaults are plain importance
    sampling (the decoupled objective).
    """

    maximum: float = math.inf
    minimum: float = 0.0
    """Used with `masks` only: a small weight needs no truncation."""
    masks: bool = False
    """A weight outside [`minimum`, `maximum`] becomes 0; otherwise one above `maximum` is cut to it."""
    per_sequence: bool = False
    """One weight for each rollout, the product of its tokens' ratios."""


@dataclass(frozen=True, slots=True)
class ImportanceWeights:
    """The weight of each token; both columns are detached."""

    weights: Tensor  # [T]
    bounded: Tensor  # [T] bool: the weight was cut or set to 0


def importance_weights(
    correction: Correction, proximal_logprobs: Tensor, sampled_logprobs: Tensor, rows: TokenRows | None
) -> ImportanceWeights:
    """The weights of T tokens from their log-probs, [T] and [T]. Raises ValueError if the correction is per
    sequence and `rows` is None.
    """
    log_ratio = proximal_logprobs.detach() - sampled_logprobs.detach()
    if correction.per_sequence:
        if rows is None:
            raise ValueError(
                "rows: got None, allowed: the row of each token (the correction is per sequence)"
            )
        log_ratio = rows.sums(log_ratio)
    ratio = torch.exp(log_ratio)
    bounded = ratio > correction.maximum
    if correction.masks:
        bounded |= ratio < correction.minimum
        return ImportanceWeights(ratio.masked_fill(bounded, 0.0), bounded)
    return ImportanceWeights(ratio.clamp(max=correction.maximum), bounded)
