"""Policy losses: the loss of each token, one small file each.

Neither this package nor a loss's module imports torch when it is imported: configs are validated without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from orchestrator.training.learner.losses.token_rows import TokenRows
from orchestrator.training.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class PolicyColumns:
    """T packed response tokens, as a policy loss sees them.

    `logprobs` are the learner's and carry the gradient. `old_logprobs` are what the ratio is taken against
    (`importance` explains which ones those are); they and `advantages` carry no gradient. The learner always
    fills in `rows`; a test of a loss that reads no rows may leave it out.
    """

    logprobs: Tensor  # [T] float
    old_logprobs: Tensor  # [T] float
    advantages: Tensor  # [T] float, the advantage of the token's rollout
    rows: TokenRows | None = None

    def row_sums(self, values: Tensor) -> Tensor:
        """At each token the sum of `values` over all trained tokens of its rollout: [T] gives [T], with
        gradient. Raises ValueError if the columns have no `rows`.
        """
        return self._known_rows().sums(values)

    def row_means(self, values: Tensor) -> Tensor:
        """At each token the mean of `values` over all trained tokens of its rollout: [T] gives [T], with
        gradient. Raises ValueError if the columns have no `rows`.
        """
        return self._known_rows().means(values)

    def _known_rows(self) -> TokenRows:
        if self.rows is None:
            raise ValueError("rows: got None, allowed: the row of each token (this loss sums over rollouts)")
        return self.rows


@dataclass(frozen=True, slots=True)
class ClipRange:
    """Bounds of the probability ratio: [1 - low, 1 + high].

    `dual`, above 1, also bounds the loss of a token with a negative advantage A to `dual` x |A|;
    None: no such bound.
    """

    low: float
    high: float
    dual: float | None = None


@dataclass(frozen=True, slots=True)
class PolicyTerms:
    """One number for each token, in the order of the columns; nothing is summed or averaged yet."""

    loss: Tensor  # [T], with gradient; smaller is better
    ratio: Tensor  # [T], detached: exp(logprobs - old_logprobs); 1 where the loss takes no ratio
    clipped: Tensor  # [T] bool: a bound took this token's gradient away, or with `cispo` changed its size


class PolicyLoss(Protocol):
    """Turns columns of T tokens into T losses. It is pure, and the loss of a token depends on no token of
    another rollout. A loss whose tokens depend on each other inside a rollout declares
    `LossFacts(per_sequence=True)`.
    """

    def __call__(self, columns: PolicyColumns, clip: ClipRange, /) -> PolicyTerms:
        """The loss of each token. A loss without a clip ignores `clip`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LossFacts:
    """What configs and planners need to know about a loss. The defaults are safe for any loss."""

    handles_stale_rollouts: bool = False
    """Correct on rollouts of older weights without `off_policy.correction`, because the loss itself accounts
    for p / p_old. Otherwise `max_staleness` above 0 needs the correction.
    """
    supervised: bool = False
    """Imitates the given tokens, regardless of their source: advantage, ratio and sampling distribution do
    not enter. The loss is taken at temperature 1, and an off-policy correction is refused. Other losses need
    tokens that an engine sampled, with their log-probs.
    """
    dual_clip: bool = False
    """Bounds the loss of a negative advantage by `ClipRange.dual`. Other losses refuse `algorithm.dual_clip`,
    which would have no effect.
    """
    per_sequence: bool = False
    """All tokens of a rollout share one ratio, so the loss of a token depends on the others (`row_means` and
    `row_sums` of `PolicyColumns`). It needs the aggregation `sequence`, under which the loss of a rollout
    counts once, whatever its length.
    """


LOSSES: Registry[PolicyLoss, LossFacts] = Registry(
    "loss", "orchestrator.training.learner.losses.policy", LossFacts, key="algorithm.loss"
)
