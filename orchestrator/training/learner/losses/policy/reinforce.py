"""The score-function gradient, without a clip."""

from __future__ import annotations

from orchestrator.training.learner.losses.policy import (
    LOSSES,
    ClipRange,
    LossFacts,
    PolicyColumns,
    PolicyTerms,
)


@LOSSES.register("reinforce", LossFacts(handles_stale_rollouts=False))
def reinforce(columns: PolicyColumns, clip: ClipRange) -> PolicyTerms:
    """-A log p: the gradient is -A grad(log p), an unbiased policy gradient where the tokens come from the
    learner's own policy.

    Assumes on-policy tokens: the ratio is reported and never used. Rollouts of an older version, or of an
    engine that rounds differently, need `off_policy.correction`, which multiplies the loss by an importance
    weight. `clip` is ignored. Degenerate: A = 0 gives loss 0 and gradient 0.

    Williams 1992, https://doi.org/10.1007/BF00992696; for language models, Ahmadian et al. 2024,
    https://arxiv.org/abs/2402.14740.
    """
    del clip
    ratio = (columns.logprobs.detach() - columns.old_logprobs).exp()
    return PolicyTerms(
        loss=-columns.advantages * columns.logprobs, ratio=ratio, clipped=ratio.new_zeros(ratio.shape).bool()
    )
