"""PPO's clipped surrogate, token by token."""

from __future__ import annotations

from orchestrator.training.learner.losses.policy import (
    LOSSES,
    ClipRange,
    LossFacts,
    PolicyColumns,
    PolicyTerms,
)


@LOSSES.register("clipped", LossFacts(handles_stale_rollouts=True, clips=True))
def clipped(columns: PolicyColumns, clip: ClipRange) -> PolicyTerms:
    """-min(r A, clip(r, 1 - low, 1 + high) A) with r = exp(logprobs - old_logprobs).

    The minimum is a pessimistic bound: a token loses its gradient only where its ratio has already moved
    past the range in the direction that the advantage asks for. At r = 1 the value is -A and the gradient
    is REINFORCE's, -A grad(log p).

    Assumes that the tokens come from the policy of `old_logprobs`. low = high is PPO's symmetric clip; DAPO
    raises `high` alone ("clip-higher") so that unlikely tokens may still grow. Degenerate: A = 0 gives loss
    0 and gradient 0, and never counts as clipped.

    Schulman et al. 2017, https://arxiv.org/abs/1707.06347, eq. 7; Yu et al. 2025 (DAPO),
    https://arxiv.org/abs/2503.14476, eq. 8.
    """
    advantages = columns.advantages
    ratio = (columns.logprobs - columns.old_logprobs).exp()
    bounded = ratio.clamp(1 - clip.low, 1 + clip.high)
    loss = -(ratio * advantages).minimum(bounded * advantages)

    ratio = ratio.detach()
    beyond = ((advantages > 0) & (ratio > 1 + clip.high)) | ((advantages < 0) & (ratio < 1 - clip.low))
    return PolicyTerms(loss=loss, ratio=ratio, clipped=beyond)
