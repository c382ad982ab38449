"""Which algorithm turns rewards into a gradient."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from orchestrator.training.settings import Settings


class KLConfig(Settings):
    """A KL penalty against the model the run started from."""

    coefficient: float = Field(ge=0)
    """0: no reference model is kept."""
    estimator: Literal["k1", "k2", "k3"]
    """Schulman's estimators (http://joschu.net/blog/kl-approx.html)."""


class OffPolicyConfig(Settings):
    """What corrects for the gap between the distribution that was sampled and the learner's."""

    correction: Literal["none", "truncated_importance_sampling"]
    """Truncated importance sampling weighs each token by min(learner probability / rollout probability, `truncation`)."""
    truncation: float = Field(gt=0)


class AlgorithmConfig(Settings):
    """The `algorithm` group."""

    name: str
    advantage: str
    """Estimator by registered name: grpo, dr_grpo, rloo, reinforce_plus_plus, constant."""
    loss: str
    """Loss by registered name: clipped (PPO's surrogate), reinforce, nll."""
    aggregation: Literal["token", "sequence", "constant"]
    """What a token weighs: `token` 1 / tokens of the batch (DAPO), `sequence` 1 / (rollouts x its own length) (GRPO as published),
    `constant` 1 / (rollouts x max_new_tokens) (Dr. GRPO)."""
    clip_low: float = Field(ge=0, lt=1)
    clip_high: float = Field(ge=0)
    dynamic_sampling: bool
    """DAPO: groups whose rewards are all equal do not enter the buffer; others are sampled instead."""
    max_resampled: float = Field(ge=0)
    """The budget of `dynamic_sampling`: uninformative groups tolerated for each group of a batch."""
    drop_uninformative: bool
    """Groups with zero advantage are not computed (they have no gradient; the normaliser of the aggregation still counts them)."""
    kl: KLConfig
    off_policy: OffPolicyConfig
