"""PPO's clipped surrogate of a probability ratio, and the bound on log ratios, shared by several losses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.training.learner.losses.policy import ClipRange, PolicyTerms

if TYPE_CHECKING:
    from torch import Tensor

MAX_LOG_RATIO = 20.0
"""Log ratios are bounded to +-20 before they are exponentiated (as verl does): exp(20) is 5e8, far outside
any clip range, and exp(89) would be infinite in float32.
"""


def bounded_log_ratio(log_ratio: Tensor) -> Tensor:
    """`log_ratio` bounded to +-`MAX_LOG_RATIO`: [T] gives [T], with gradient inside the bound. An infinite
    one stays infinite: a sampled token of probability 0 is an error that must be seen.
    """
    return log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).where(log_ratio.isfinite(), log_ratio)


def clipped_surrogate(log_ratio: Tensor, advantages: Tensor, clip: ClipRange) -> PolicyTerms:
    """-min(r A, clip(r, 1 - low, 1 + high) A) with r = exp(log_ratio), and at most `clip.dual` x |A| where
    A < 0: [T] and [T] give terms of [T], whose gradient flows through `log_ratio`.
    """
    ratio = bounded_log_ratio(log_ratio).exp()
    bounded = ratio.clamp(1 - clip.low, 1 + clip.high)
    loss = -(ratio * advantages).minimum(bounded * advantages)

    ratio = ratio.detach()
    beyond = ((advantages > 0) & (ratio > 1 + clip.high)) | ((advantages < 0) & (ratio < 1 - clip.low))
    beyond |= (advantages != 0) & (log_ratio.detach().abs() > MAX_LOG_RATIO)
    if clip.dual is not None:
        worst = -clip.dual * advantages
        dual = (advantages < 0) & (loss.detach() > worst)
        loss, beyond = loss.where(~dual, worst), beyond | dual
    return PolicyTerms(loss=loss, ratio=ratio, clipped=beyond)
