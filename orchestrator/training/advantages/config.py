"""Which algorithm turns rewards into a gradient."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from orchestrator.training.settings import Settings


class KLConfig(Settings):
    """A KL penalty against a reference model: the one that the run started from, or a more recent one."""

    coefficient: float = Field(ge=0)
    """0: no reference model is kept."""
    estimator: Literal["k1", "k2", "k3"]
    """Schulman's estimators (http://joschu.net/blog/kl-approx.html). k1 and k2 have the gradient of
    KL(learner || reference), k3 (GRPO's) that of KL(reference || learner)."""
    applied_to: Literal["loss", "reward"]
    """`loss`: the penalty is a term of the loss at each token. `reward`: the coefficient times the sum of
    log(sampled probability / reference probability) over the trained tokens of a rollout is taken off its
    reward, before advantages are computed; only with the estimator k1."""
    reference_period: int | None = Field(ge=1)
    """After every so many steps the reference model is replaced by the learner's (DeepSeek-R1: 400); null: it
    stays the model that the run started from."""

    @model_validator(mode="after")
    def _the_reward_has_an_unbiased_penalty(self) -> Self:
        if self.applied_to == "reward" and self.estimator != "k1":
            hint = "taken off the reward, only k1 has the gradient of the KL divergence"
            raise _refused("estimator", self.estimator, "k1 with applied_to reward", hint)
        return self


class OffPolicyConfig(Settings):
    """What corrects for the gap between the distribution that was sampled and the learner's."""

    correction: Literal[
        "none", "importance_sampling", "truncated_importance_sampling", "masked_importance_sampling"
    ]
    """`none`: the loss takes its ratio against the rollout engine's log-probs. Otherwise against the
    learner's at the beginning of the step, and the loss is multiplied by a weight: learner probability /
    rollout probability (`importance_sampling`, decoupled PPO), at most `truncation`
    (`truncated_importance_sampling`), or 0 if it is outside `minimum` to `truncation`
    (`masked_importance_sampling`)."""
    level: Literal["token", "sequence"]
    """`token`: each token has its own weight. `sequence`: all tokens of a rollout share one weight, the
    product over the rollout."""
    minimum: float = Field(ge=0)
    """`masked_importance_sampling`: smaller weights become 0."""
    truncation: float = Field(gt=0)
    """The largest weight of a token, or of a rollout: `truncated_importance_sampling` cuts larger ones to it,
    `masked_importance_sampling` sets them to 0."""

    @model_validator(mode="after")
    def _some_weights_are_kept(self) -> Self:
        if self.minimum >= self.truncation:
            hint = "no weight would be kept"
            raise _refused("minimum", str(self.minimum), f"less than truncation ({self.truncation})", hint)
        return self


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
    overlong_filtering: bool
    """DAPO: rollouts that were cut at `rollout.max_new_tokens` are not trained on. Their rewards still count
    in the baseline of their group, and they still count in the aggregations `sequence` and `constant`."""
    entropy_coefficient: float = Field(ge=0)
    """Entropy bonus: this times the entropy of the learner's distribution at a token, in nats, is taken off
    the loss of the token; 0: no bonus."""
    kl: KLConfig
    off_policy: OffPolicyConfig

    @model_validator(mode="after")
    def _dropped_groups_have_no_gradient(self) -> Self:
        if self.drop_uninformative and self.kl.coefficient > 0:
            hint = "with kl.coefficient > 0 a group of zero advantage has the penalty's gradient"
            raise _refused("drop_uninformative", "true", "false", hint)
        if self.drop_uninformative and self.entropy_coefficient > 0:
            hint = "with entropy_coefficient > 0 a group of zero advantage has the bonus's gradient"
            raise _refused("drop_uninformative", "true", "false", hint)
        return self


def _refused(key: str, value: str, allowed: str, hint: str) -> PydanticCustomError:
    return PydanticCustomError(
        "refused",
        "{key}: got {value}, allowed: {allowed} ({hint})",
        {"key": key, "value": value, "allowed": allowed, "hint": hint},
    )
