"""What the learner minimises at each token: policy loss, KL penalty and off-policy correction."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from orchestrator.training.learner.losses.importance import Correction, importance_weights
from orchestrator.training.learner.losses.kl import KL_ESTIMATORS
from orchestrator.training.learner.losses.policy import ClipRange, PolicyColumns, PolicyLoss
from orchestrator.training.learner.losses.token_rows import TokenRows


@dataclass(frozen=True, slots=True)
class TokenColumns:
    """T packed response tokens, as the learner has them: only tokens that are trained on.

    All log-probs are natural logs under the temperature that was sampled with. `logprobs` and `entropies`
    carry a gradient. `proximal_logprobs` are the learner's own before the first update of the step; None
    where the step has one update, so that they would equal `logprobs`. `reference_logprobs` are the reference
    model's; None where there is none. `rows` says which rollout each token belongs to; None where no loss and
    no correction sums over rollouts.
    """

    logprobs: Tensor  # [T] float, with gradient
    sampled_logprobs: Tensor  # [T] float, the rollout engine's
    advantages: Tensor  # [T] float, its rollout's advantage at each token
    proximal_logprobs: Tensor | None = None  # [T] float
    reference_logprobs: Tensor | None = None  # [T] float
    rows: TokenRows | None = None
    entropies: Tensor | None = None  # [T] float, of the learner's distributions, in nats

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
    bounded: Tensor | None = None  # [T] bool, importance weights that were cut or set to 0; None without any


@dataclass(frozen=True, slots=True)
class Objective:
    """loss[t] = w[t] (policy[t] + kl_coefficient kl[t] - entropy_coefficient entropy[t]).

    `correction` None: no off-policy correction; w = 1 and the policy's ratio is taken against the rollout
    engine. Otherwise w is the correction's weight (`importance`) and the ratio is against the learner at the
    beginning of the step. The weight covers penalty and bonus too: all three are means over tokens that the
    learner would have drawn.

    The bonus rewards an undecided policy: its gradient raises the entropy of the distribution at each token
    given its prefix (Williams and Peng 1991, https://doi.org/10.1080/09540099108946587).
    """

    policy: PolicyLoss
    clip: ClipRange
    correction: Correction | None
    kl_coefficient: float
    kl_estimator: str
    entropy_coefficient: float = 0.0

    def __call__(self, columns: TokenColumns) -> TokenTerms:
        """The terms of each token. Raises ValueError if a KL penalty has no reference log-probs, or an
        entropy bonus no entropies.
        """
        correction = self.correction
        old_logprobs = columns.sampled_logprobs if correction is None else columns.learner_logprobs
        terms = self.policy(
            PolicyColumns(columns.logprobs, old_logprobs, columns.advantages, columns.rows), self.clip
        )

        loss, kl = terms.loss, self._kl(columns)
        if kl is not None and self.kl_coefficient > 0:
            loss = loss + self.kl_coefficient * kl
        if self.entropy_coefficient > 0:
            if columns.entropies is None:
                raise ValueError(
                    f"entropy_coefficient is {self.entropy_coefficient}, and the tokens have no entropies"
                )
            loss = loss - self.entropy_coefficient * columns.entropies
        bounded = None
        if correction is not None:
            found = importance_weights(
                correction, columns.learner_logprobs, columns.sampled_logprobs, columns.rows
            )
            loss, bounded = loss * found.weights, found.bounded
        return TokenTerms(loss, terms.ratio, terms.clipped, None if kl is None else kl.detach(), bounded)

    def _kl(self, columns: TokenColumns) -> Tensor | None:
        if columns.reference_logprobs is not None:
            return KL_ESTIMATORS[self.kl_estimator](columns.logprobs, columns.reference_logprobs)
        if self.kl_coefficient > 0:
            raise ValueError(
                f"kl.coefficient is {self.kl_coefficient}, and the tokens have no reference log-probs"
            )
        return None
