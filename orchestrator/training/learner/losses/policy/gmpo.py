"""GMPO: the geometric mean of a rollout's clipped ratios."""

from __future__ import annotations

from orchestrator.training.learner.losses.policy import (
    LOSSES,
    ClipRange,
    LossFacts,
    PolicyColumns,
    PolicyTerms,
)


@LOSSES.register("gmpo", LossFacts(handles_stale_rollouts=True, per_sequence=True))
def gmpo(columns: PolicyColumns, clip: ClipRange) -> PolicyTerms:
    """-A g at every token of a rollout, with g = exp(mean over its tokens of d) and d the log ratio
    logprobs - old_logprobs, which is at most `clip.high` where A > 0, and at least -`clip.low` where A < 0.

    The clip is in log space: low = high = 0.4 bounds ratios to [exp(-0.4), exp(0.4)]. A token beyond its
    bound loses its own gradient and still counts in the mean; `gspo` clips the whole rollout instead. Under
    the aggregation `sequence` the loss of a step is the paper's.

    Assumes, like `clipped`, that the tokens come from the policy of `old_logprobs`. There is no dual
    clip: the geometric mean keeps one large ratio from deciding the loss.

    Degenerate: A = 0 gives loss 0 and gradient 0.

    Zhao et al. 2025, https://arxiv.org/abs/2507.20673.
    """
    advantages, log_ratio = columns.advantages, columns.logprobs - columns.old_logprobs
    sign = advantages.sign()
    bounded = log_ratio.clamp(-clip.low, clip.high)
    log_ratio_kept = sign * (sign * log_ratio).minimum(sign * bounded)
    ratio = columns.row_means(log_ratio_kept).exp()

    log_ratio = log_ratio.detach()
    beyond = ((advantages > 0) & (log_ratio > clip.high)) | ((advantages < 0) & (log_ratio < -clip.low))
    return PolicyTerms(loss=-advantages * ratio, ratio=ratio.detach(), clipped=beyond)
