"""The `algorithm` group of the config: how rewards become a gradient."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from orchestrator.training.settings import Settings


class KLConfig(Settings):
    """The KL penalty against a reference model: the initial model of the run, or a more recent one."""

    coefficient: float = Field(ge=0)
    """Weight of the penalty. With 0, no reference model is kept."""
    estimator: Literal["k1", "k2", "k3"]
    """Schulman's estimators (http://joschu.net/blog/kl-approx.html). k1 and k2 have the gradient of
    KL(learner || reference), k3 (GRPO's) that of KL(reference || learner)."""
    applied_to: Literal["loss", "reward"]
    """`loss`: the penalty is a term of the loss at each token. `reward`: the coefficient times the sum of
    log(sampled probability / reference probability) over the trained tokens of a rollout is subtracted from
    its reward before advantages are computed; only with the estimator k1.
    """
    reference_period: int | None = Field(ge=1)
    """Number of steps after which the reference model is replaced by the learner's model (DeepSeek-R1: 400);
    null: it stays the initial model.
    """

    @model_validator(mode="after")
    def _the_reward_has_an_unbiased_penalty(self) -> Self:
        if self.applied_to == "reward" and self.estimator != "k1":
            hint = "subtracted from the reward, only k1 has the gradient of the KL divergence"
            raise _refused("estimator", self.estimator, "k1 with applied_to reward", hint)
        return self


class OffPolicyConfig(Settings):
    """How the loss corrects for the difference between the policy that sampled
    and the policy that is trained.
    """

    correction: Literal[
        "none", "importance_sampling", "truncated_importance_sampling", "masked_importance_sampling"
    ]
    """`none`: the importance ratio is relative to the log-probs of the rollout engine. Otherwise it is
    relative to the learner's log-probs at the beginning of the step, and the loss is multiplied by a weight:
    learner probability / rollout probability (`importance_sampling`, decoupled PPO), at most `truncation`
    (`truncated_importance_sampling`), or 0 if it is outside `minimum` to `truncation`
    (`masked_importance_sampling`).
    """
    level: Literal["token", "sequence"]
    """`token`: each token has its own weight. `sequence`: all tokens of a rollout share one
    weight, the product over the rollout.
    """
    minimum: float = Field(ge=0)
    """Lower limit of `masked_importance_sampling`: smaller weights become 0."""
    truncation: float = Field(gt=0)
    """Upper limit of the weight of a token, or of a rollout: `truncated_importance_sampling` reduces larger
    weights to it, `masked_importance_sampling` sets them to 0.
    """

    @model_validator(mode="after")
    def _some_weights_are_kept(self) -> Self:
        if self.minimum >= self.truncation:
            hint = "no weight would be kept"
            raise _refused("minimum", str(self.minimum), f"less than truncation ({self.truncation})", hint)
        return self


class GaeConfig(Settings):
    """Generalised advantage estimation, with the advantage `gae`; other advantages ignore it."""

    gamma: float = Field(gt=0, le=1)
    """Discount of a reward for each token that precedes it."""
    lam: float = Field(ge=0, le=1)
    """Lambda: 1 compares the return with the value of the token (no bias, high variance), 0 the value of the
    next token with it (biased by errors of the value head, low variance)."""
    value_coefficient: float = Field(gt=0)
    """Weight of the value loss, which also trains the layers that value head and policy share."""
    value_clip: float | None = Field(gt=0)
    """A value moves by at most this much in a step; null: no limit."""


class AlgorithmConfig(Settings):
    """The `algorithm` group."""

    name: str
    """Name of the algorithm in reports."""
    advantage: str
    """Registered name of the advantage estimator: grpo, dr_grpo, rloo, reinforce_plus_plus,
    reinforce_plus_plus_baseline, gae (a value head and an advantage for each token), constant.
    """
    loss: str
    """Registered name of the loss: clipped (PPO's surrogate), cispo, gspo, gmpo, reinforce, nll."""
    aggregation: Literal["token", "sequence", "constant"]
    """How token losses are averaged, by the weight of a token: `token` 1 / tokens of the batch
    (DAPO), `sequence` 1 / (rollouts x tokens of its rollout) (GRPO as published), `constant` 1 /
    (rollouts x max_new_tokens) (Dr. GRPO).
    """
    clip_low: float = Field(ge=0)
    """Lower clipping range: a ratio below 1 - `clip_low` is not pushed down further. 1 or more removes the
    lower bound (DeepSeek-R1 used 10). `cispo` bounds the importance weight instead. The losses `reinforce`
    and `nll` ignore it.
    """
    clip_high: float = Field(ge=0)
    """Upper clipping range: a ratio above 1 + `clip_high` is not pushed up further. `cispo` bounds the
    importance weight instead. The losses `reinforce` and `nll` ignore it.
    """
    dual_clip: float | None = Field(gt=1)
    """Dual clipping: the loss of a token with a negative advantage A is at most `dual_clip` x |A|, however
    large its ratio is. null disables the bound. It has an effect with stale rollouts or several minibatches.
    Losses without dual clipping reject it; of the built-in losses, `clipped` and `gspo` have it.
    """
    dynamic_sampling: bool
    """Dynamic sampling (DAPO): groups whose rollouts are all alike are discarded, and other
    groups are sampled to replace them.
    """
    dynamic_sampling_by: Literal["accuracy", "reward"]
    """What must differ within a group: `accuracy`, whether rollouts are correct (DAPO, equation 8), or the
    whole `reward`, which also varies with format and length.
    """
    max_resampled: float = Field(ge=0)
    """Limit of `dynamic_sampling`: the number of groups replaced in a step, divided by the groups
    of a batch. Above it the run fails, unless most replaced groups were solved: then the step
    trains on the groups that it has.
    """
    drop_uninformative: bool
    """Skip the computation of groups with zero advantage. They have no gradient; the normaliser of the
    aggregation still counts them.
    """
    overlong_filtering: bool
    """Overlong filtering (DAPO): rollouts truncated at `rollout.max_new_tokens` are not trained on. Their
    rewards still count in the baseline of their group, and they still count in the aggregations `sequence`
    and `constant`.
    """
    entropy_coefficient: float = Field(ge=0)
    """Entropy bonus: the coefficient times the entropy of the learner's distribution at a token, in nats, is
    subtracted from the loss of the token. 0 disables it.
    """
    gae: GaeConfig
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
