"""What the learner minimises at each token: policy loss, KL penalty and off-policy correction."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from orchestrator.training.learner.losses.importance import truncated_weights
from orchestrator.training.learner.losses.kl import KL_ESTIMATORS
from orchestrator.training.learner.losses.policy import ClipRange, PolicyColumns, PolicyLoss
from orchestrator.training.learner.losses.token_rows import TokenRows


@dataclass(frozen=True, slots=True)
class TokenColumns:
    """T packed response tokens, as the learner has them: only tokens that are trained on.

    All log-probs are natural logs under the temperature that was sampled with. Only `logprobs` carries a
    gradient. `proximal_logprobs` are the learner's own before the first minibatch of the step; None where
    the step has one minibatch, so that they would equal `logprobs`. `reference_logprobs` are the reference
    model's; None where there is none. `rows` says which rollout each token belongs to; None where no
    loss and no correction sums over rollouts.
    """

    logprobs: Tensor  # [T] float, with gradient
    sampled_logprobs: Tensor  # [T] float, the rollout engine's
    advantages: Tensor  # [T] float, its rollout's advantage at each token
    proximal_logprobs: Tensor | None = None  # [T] float
    reference_logprobs: Tensor | None = None  # [T] float
    rows: TokenRows | None = None

    @property
    def learner_logprobs(self) -> Tensor:
        """[T], detached: the learner's own at the beginning of the step, to compare with the
        rollout engine's.
        """
        return self.logprobs.detach() if self.proximal_logprobs is None else self.proximal_logprobs


@dataclass(frozen=True, slots=True)
class TokenTerms:
    """One number a token, in the order of the columns. All but `loss` are detached."""

    loss: Tensor  # [T], with gradient: what is weighed, summed and minimised
    ratio: Tensor  # [T], what the policy loss took as its ratio
    clipped: Tensor  # [T] bool
    kl: Tensor | None  # [T], the estimator's value before its coefficient; None without a reference


@dataclass(frozen=True, slots=True)
class Objective:
    """loss[t] = w[t] (policy[t] + kl_coefficient kl[t]).

    `truncation` None: no off-policy correction; w = 1 and the policy's ratio is taken against the rollout
    engine. A number: truncated importance sampling; w = min(p_prox / mu, truncation) and the ratio is
    against the learner at the beginning of the step. The weight covers the penalty too: both are means over
    tokens that the learner would have drawn.
    """

    policy: PolicyLoss
    clip: ClipRange
    truncation: float | None
    kl_coefficient: float
    kl_estimator: str

    def __call__(self, columns: TokenColumns) -> TokenTerms:
        """The terms of each token. Raises ValueError if a KL penalty has no reference log-probs."""
        corrected = self.truncation is not None
        old_logprobs = columns.learner_logprobs if corrected else columns.sampled_logprobs
        terms = self.policy(
            PolicyColumns(columns.logprobs, old_logprobs, columns.advantages, columns.rows), self.clip
        )

        loss, kl = terms.loss, self._kl(columns)
        if kl is not None and self.kl_coefficient > 0:
            loss = loss + self.kl_coefficient * kl
        if self.truncation is not None:
            loss = loss * truncated_weights(
                columns.learner_logprobs, columns.sampled_logprobs, self.truncation
            )
        return TokenTerms(loss, terms.ratio, terms.clipped, None if kl is None else kl.detach())

    def _kl(self, columns: TokenColumns) -> Tensor | None:
        if columns.reference_logprobs is not None:
            return KL_ESTIMATORS[self.kl_estimator](columns.logprobs, columns.reference_logprobs)
        if self.kl_coefficient > 0:
            raise ValueError(
                f"kl.coefficient is {self.kl_coefficient}, and the tokens have no reference log-probs"
            )
        return None
