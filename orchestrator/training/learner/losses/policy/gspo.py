"""GSPO: PPO's clip on the ratio of whole sequences."""

from __future__ import annotations

from orchestrator.training.learner.losses.policy import (
    LOSSES,
    ClipRange,
    LossFacts,
    PolicyColumns,
    PolicyTerms,
)
from orchestrator.training.learner.losses.policy._surrogate import clipped_surrogate


@LOSSES.register("gspo", LossFacts(handles_stale_rollouts=True, dual_clip=True, per_sequence=True))
def gspo(columns: PolicyColumns, clip: ClipRange) -> PolicyTerms:
    """-min(s A, clip(s, 1 - low, 1 + high) A) at every token of a rollout, with the rollout's ratio
    s = (p / p_old)^(1 / length) = exp(mean over its tokens of logprobs - old_logprobs).

    Where the clip binds, all tokens of the rollout lose their gradient together. The mean makes ratios of
    long and short rollouts comparable and keeps them near 1, so clip ranges are about a thousand times
    smaller than those of `clipped`. Under the aggregation `sequence` the loss of a step is the paper's
    equation 5, and the gradient of a rollout is -s A times the mean of grad(log p) over its tokens. The
    paper's GSPO-token has the same gradient as long as all tokens of a rollout have the same advantage.

    Assumes, like `clipped`, that the tokens come from the policy of `old_logprobs`. `clip.dual` bounds the
    loss as it does there.

    Degenerate: A = 0 gives loss 0 and gradient 0; on rollouts of one token the loss is that of `clipped`.

    Zheng et al. 2025, https://arxiv.org/abs/2507.18071, eq. 5 and 7.
    """
    log_ratio = columns.row_means(columns.logprobs - columns.old_logprobs)
    return clipped_surrogate(log_ratio, columns.advantages, clip)
