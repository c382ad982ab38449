"""SPO: a quadratic penalty on the probability ratio instead of a clip."""

from __future__ import annotations

from orchestrator.training.learner.losses import LOSSES, ClipRange, LossFacts, PolicyColumns, PolicyTerms


@LOSSES.register("spo", LossFacts(handles_stale_rollouts=True))
def spo(columns: PolicyColumns, clip: ClipRange) -> PolicyTerms:
    """-(r A - |A| (r - 1)^2 / (2 high)) with r = exp(logprobs - old_logprobs).

    The best ratio of a token is 1 + high where A > 0 and 1 - high where A < 0, and a token beyond it is
    pulled back. The ratio corrects for the policy that sampled the token, so rollouts of older weights need
    no other correction: `handles_stale_rollouts`. Degenerate: A = 0 gives loss 0 and gradient 0.

    Xie et al. 2025, https://arxiv.org/abs/2401.16025.

    >>> import torch
    >>> half, old = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.5, 0.25]).log()
    >>> terms = spo(PolicyColumns(half, old, torch.tensor([1.0, 1.0])), ClipRange(0.2, 1.0))
    >>> [round(value, 4) for value in terms.loss.tolist()]  # ratios 1 and 2: -1, and -(2 - 1 / 2)
    [-1.0, -1.5]
    """
    advantages, ratio = columns.advantages, (columns.logprobs - columns.old_logprobs).exp()
    penalty = advantages.abs() * (ratio - 1).square() / (2 * clip.high)
    return PolicyTerms(
        loss=penalty - ratio * advantages,
        ratio=ratio.detach(),
        clipped=ratio.new_zeros(ratio.shape).bool(),
    )
