"""PPO's clipped surrogate, token by token."""

from __future__ import annotations

from orchestrator.training.learner.losses.policy import (
    LOSSES,
    ClipRange,
    LossFacts,
    PolicyColumns,
    PolicyTerms,
)
from orchestrator.training.learner.losses.policy._surrogate import clipped_surrogate


@LOSSES.register("clipped", LossFacts(handles_stale_rollouts=True, dual_clip=True))
def clipped(columns: PolicyColumns, clip: ClipRange) -> PolicyTerms:
    """-min(r A, clip(r, 1 - low, 1 + high) A) with r = exp(logprobs - old_logprobs).

    The minimum is a pessimistic bound: a token loses its gradient only where its ratio has already moved out
    of the range in the direction that the advantage asks for. At r = 1 the value is -A and the gradient is
    REINFORCE's, -A grad(log p).

    That leaves the loss of a token with A < 0 unbounded as r grows, which happens on stale rollouts and after
    several minibatches. `clip.dual` = c bounds it to c |A| (dual clip), where the gradient is 0. It does not
    bind while r <= c.

    Assumes that the tokens come from the policy of `old_logprobs`. low = high is PPO's symmetric clip; DAPO
    raises `high` alone ("clip-higher") so that unlikely tokens may still grow; low >= 1 sets no lower bound.
    Degenerate: A = 0 gives loss 0 and gradient 0, and never counts as clipped.

    Schulman et al. 2017, https://arxiv.org/abs/1707.06347, eq. 7; Yu et al. 2025 (DAPO),
    https://arxiv.org/abs/2503.14476, eq. 8; dual clip: Ye et al. 2020, https://arxiv.org/abs/1912.09729, eq.
    5.
    """
    return clipped_surrogate(columns.logprobs - columns.old_logprobs, columns.advantages, clip)
