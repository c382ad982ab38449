"""Which algorithm turns rewards into a gradient."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError, PydanticKnownError

from orchestrator.training.advantages import ADVANTAGES, GROUP_RELATIVE, NOT_GROUP_RELATIVE
from orchestrator.training.registry import Registry
from orchestrator.training.settings import Settings

# Stage packages do not import each other, so this is not the learner's registry but one that knows its names.
_LOSSES: Registry[object] = Registry("loss", package="orchestrator.training.learner.losses.policy")


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
    """Estimator by registered name: grpo, dr_grpo, rloo, reinforce_plus_plus, reinforce_plus_plus_baseline,
    constant."""
    loss: str
    """Loss by registered name: clipped (PPO's surrogate), reinforce, nll."""
    aggregation: Literal["token", "sequence", "constant"]
    """What a token weighs: `token` 1 / tokens of the batch (DAPO), `sequence` 1 / (rollouts x its own
    length) (GRPO as published), `constant` 1 / (rollouts x max_new_tokens) (Dr. GRPO)."""
    clip_low: float = Field(ge=0, lt=1)
    """A ratio below 1 - `clip_low` is not pushed down further."""
    clip_high: float = Field(ge=0)
    """A ratio above 1 + `clip_high` is not pushed up further."""
    dynamic_sampling: bool
    """DAPO: groups whose rewards are all equal do not enter the buffer; others are sampled instead."""
    max_resampled: float = Field(ge=0)
    """The budget of `dynamic_sampling`: uninformative groups tolerated for each group of a batch."""
    drop_uninformative: bool
    """Groups with zero advantage are not computed (they have no gradient; the normaliser of the aggregation
    still counts them)."""
    kl: KLConfig
    off_policy: OffPolicyConfig

    @property
    def least_group_size(self) -> int:
        """The smallest `rollout.group_size` that the advantage is defined for."""
        return 2 if self.advantage in GROUP_RELATIVE else 1

    @field_validator("advantage")
    @classmethod
    def _advantage_exists(cls, name: str) -> str:
        return _registered(ADVANTAGES.names(), name)

    @field_validator("loss")
    @classmethod
    def _loss_exists(cls, name: str) -> str:
        return _registered(_LOSSES.names(), name)

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        """Refuse combinations that would run and quietly compute something else than their name says."""
        if self.loss == "nll" and self.advantage != "constant":
            raise _refused("advantage", self.advantage, "constant", "the loss nll ignores rewards")
        if self.loss == "nll" and self.off_policy.correction != "none":
            hint = "the tokens that the loss nll imitates were sampled by no policy"
            raise _refused("off_policy.correction", self.off_policy.correction, "none", hint)
        for key in ("dynamic_sampling", "drop_uninformative"):
            if getattr(self, key) and self.advantage in NOT_GROUP_RELATIVE:
                hint = f"under the advantage {self.advantage} a group of equal rewards has a gradient"
                raise _refused(key, "true", "false", hint)
        if self.drop_uninformative and self.kl.coefficient > 0:
            hint = "with kl.coefficient > 0 a group of zero advantage has the gradient of the KL penalty"
            raise _refused("drop_uninformative", "true", "false", hint)
        return self


def _registered(names: list[str], name: str) -> str:
    if name not in names:
        raise PydanticKnownError("literal_error", {"expected": ", ".join(names)})
    return name


def _refused(key: str, value: str, allowed: str, hint: str) -> PydanticCustomError:
    """An error whose `ctx` holds what a ConfigError needs; `key` is relative to the group."""
    template = "{key}: got {value}, allowed: {allowed} ({hint})"
    return PydanticCustomError(
        "refused", template, {"key": key, "value": value, "allowed": allowed, "hint": hint}
    )
