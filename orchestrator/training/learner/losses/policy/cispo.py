"""CISPO: the importance weight is clipped instead of the update, so that every token keeps its gradient."""

from __future__ import annotations

from orchestrator.training.learner.losses.policy import (
    LOSSES,
    ClipRange,
    LossFacts,
    PolicyColumns,
    PolicyTerms,
)
from orchestrator.training.learner.losses.policy._surrogate import bounded_log_ratio


@LOSSES.register("cispo", LossFacts(handles_stale_rollouts=True))
def cispo(columns: PolicyColumns, clip: ClipRange) -> PolicyTerms:
    """-w A log p with w = clip(r, 1 - low, 1 + high), detached, and r = exp(logprobs - old_logprobs).

    The gradient of a token is -w A grad(log p). Inside the clip range that is the gradient of `clipped`.
    Beyond it `clipped` has no gradient where A asks for more, and CISPO a bounded one, so that rare tokens,
    whose ratios grow fastest, are never left out. A token whose weight was cut counts as clipped.

    Assumes, like `clipped`, that the tokens come from the policy of `old_logprobs`. The weight corrects for
    that policy, with a bias where it is cut. The paper sets no lower bound: low >= 1. There is no dual clip,
    because the weight is bounded already.

    Degenerate: A = 0 gives loss 0 and gradient 0, and never counts as clipped.

    MiniMax 2025, https://arxiv.org/abs/2506.13585, eq. 4 and 5.
    """
    ratio = bounded_log_ratio((columns.logprobs - columns.old_logprobs).detach()).exp()
    weight = ratio.clamp(1 - clip.low, 1 + clip.high).where(ratio.isfinite(), ratio)
    return PolicyTerms(
        loss=-weight * columns.advantages * columns.logprobs,
        ratio=ratio,
        clipped=(weight != ratio) & (columns.advantages != 0),
    )
