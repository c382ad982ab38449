"""CISPO: the importance weight is clipped, not the update, so that every token keeps its gradient."""

from __future__ import annotations

from orchestrator.training.learner.losses import LOSSES, ClipRange, LossFacts, PolicyColumns, PolicyTerms


@LOSSES.register("cispo", LossFacts(handles_stale_rollouts=True))
def cispo(columns: PolicyColumns, clip: ClipRange) -> PolicyTerms:
    """-w A log p with w = clip(r, 1 - low, 1 + high), detached, and r = exp(logprobs - old_logprobs).

    The weight corrects for the policy that sampled the token, so rollouts of older weights need no other
    correction: `handles_stale_rollouts`. Degenerate: A = 0 gives loss 0 and gradient 0.

    MiniMax 2025, https://arxiv.org/abs/2506.13585, eq. 4 and 5.

    >>> import torch
    >>> half, twice = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.5]).log()
    >>> terms = cispo(PolicyColumns(half, twice, torch.tensor([1.0, -1.0])), ClipRange(0.2, 0.28))
    >>> [round(value, 4) for value in (terms.loss / half).tolist()]  # ratios 2 and 1, so w = 1.28 and 1
    [-1.28, 1.0]
    """
    ratio = (columns.logprobs - columns.old_logprobs).detach().exp()
    weight = ratio.clamp(1 - clip.low, 1 + clip.high)
    return PolicyTerms(
        loss=-weight * columns.advantages * columns.logprobs,
        ratio=ratio,
        clipped=ratio.new_zeros(ratio.shape).bool(),
    )
