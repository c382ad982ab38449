"""What one token costs: one small file a loss, under the name that configs use.

Importing this package does not import torch; a loss's module does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from orchestrator.training.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class PolicyColumns:
    """T packed response tokens, as a policy loss sees them.

    `logprobs` are the learner's and carry the gradient. `old_logprobs` are what the ratio is taken against
    (`importance` says which those are); they and `advantages` carry none.
    """

    logprobs: Tensor  # [T] float
    old_logprobs: Tensor  # [T] float
    advantages: Tensor  # [T] float, its rollout's advantage at each token


@dataclass(frozen=True, slots=True)
class ClipRange:
    """A probability ratio counts as near 1 inside [1 - low, 1 + high]."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class PolicyTerms:
    """One number a token, in the order of the columns; nothing is summed or averaged yet."""

    loss: Tensor  # [T], with gradient; smaller is better
    ratio: Tensor  # [T], detached: exp(logprobs - old_logprobs); 1 where the loss takes no ratio
    clipped: Tensor  # [T] bool: the clip took this token's gradient away


class PolicyLoss(Protocol):
    """Turns columns of T tokens into T losses; pure, and no token's loss depends on another token."""

    def __call__(self, columns: PolicyColumns, clip: ClipRange, /) -> PolicyTerms:
        """The loss of each token. A loss without a clip ignores `clip`."""
        ...


LOSSES: Registry[PolicyLoss] = Registry("loss", package="orchestrator.training.learner.losses.policy")
