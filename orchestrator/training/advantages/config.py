"""Which algorithm turns rewards into a gradient."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from orchestrator.training.settings import Settings


class KLConfig(Settings):
    """A KL penalty against the model the run started from."""

    coefficient: float = Field(ge=0)
    """0: no reference model is kept."""
    estimator: Literal["k1", "k2", "k3"]
    """Schulman's estimators (http://joschu.net/blog/kl-approx.html). k1 and k2 have the gradient of
    KL(learner || reference), k3 (GRPO's) that of KL(reference || learner)."""


class OffPolicyConfig(Settings):
    """What corrects for the gap between the distribution that was sampled and the learner's."""

    correction: Literal["none", "truncated_importance_sampling"]
    """`none`: the loss takes its ratio against the rollout engine's log-probs.
    `truncated_importance_sampling`: against the learner's at the beginning of the step, and each token is
    weighed by min(learner probability / rollout probability, `truncation`)."""
    truncation: float = Field(gt=0)
    """The largest weight of a token."""


class AlgorithmConfig(Settings):
    """The `algorithm` group."""

    name: str
    """What reports call it."""
    advantage: str
    """Estimator by registered name: grpo, dr_grpo, rloo, reinforce_plus_plus,
    reinforce_plus_plus_baseline, constant.
    """
    loss: str
    """Loss by registered name: clipped (PPO's surrogate), gspo, gmpo, reinforce, nll."""
    aggregation: Literal["token", "sequence", "constant"]
    """What a token weighs: `token` 1 / tokens of the batch (DAPO), `sequence` 1 / (rollouts x its own
    length) (GRPO as published), `constant` 1 / (rollouts x max_new_tokens) (Dr. GRPO)."""
    clip_low: float = Field(ge=0)
    """A ratio below 1 - `clip_low` is not pushed down further. From 1 on there is no lower bound
    (DeepSeek-R1 used 10). No effect for the losses `reinforce` and `nll`.
    """
    clip_high: float = Field(ge=0)
    """A ratio above 1 + `clip_high` is not pushed up further. No effect for the losses `reinforce` and `nll`.
    """
    dual_clip: float | None = Field(gt=1)
    """Dual clip: the loss of a token with a negative advantage A is at most `dual_clip` x |A|, however large
    its ratio is; null: no such bound. It matters on stale rollouts and with several minibatches. Refused
    for a loss that has no dual clip; of the built-in ones, `clipped` and `gspo` have it.
    """
    dynamic_sampling: bool
    """DAPO: groups whose rollouts are all alike do not enter the buffer; other groups are sampled instead."""
    dynamic_sampling_by: Literal["accuracy", "reward"]
    """What must differ inside a group: `accuracy`, whether a rollout is right (DAPO, equation 8), or the
    whole `reward`, which also differs by format and length.
    """
    max_resampled: float = Field(ge=0)
    """The budget of `dynamic_sampling`: groups without a signal that are replaced, for each group of a batch.
    Beyond it the run fails, unless most of them were solved: then the step trains on what there is.
    """
    drop_uninformative: bool
    """Groups with zero advantage are not computed (they have no gradient; the normaliser of the aggregation
    still counts them)."""
    kl: KLConfig
    off_policy: OffPolicyConfig

    @model_validator(mode="after")
    def _dropped_groups_have_no_gradient(self) -> Self:
        if self.drop_uninformative and self.kl.coefficient > 0:
            raise PydanticCustomError(
                "refused",
                "{key}: got {value}, allowed: {allowed} ({hint})",
                {
                    "key": "drop_uninformative",
                    "value": "true",
                    "allowed": "false",
                    "hint": "with kl.coefficient > 0 a group of zero advantage has the penalty's gradient",
                },
            )
        return self
