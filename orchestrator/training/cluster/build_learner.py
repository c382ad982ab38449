"""Builds a learner rank from its configuration: here advantages, losses and the model meet."""

from __future__ import annotations

import math

from orchestrator.training.advantages import ADVANTAGES
from orchestrator.training.advantages.config import AlgorithmConfig, OffPolicyConfig
from orchestrator.training.cluster.run_spec import RunSpec
from orchestrator.training.learner.adapters import add_adapters
from orchestrator.training.learner.deepspeed_learner import DeepSpeedLearner, PolicyModel
from orchestrator.training.learner.losses import LOSSES
from orchestrator.training.learner.losses.importance import Correction
from orchestrator.training.learner.losses.objective import Objective
from orchestrator.training.learner.losses.policy import ClipRange
from orchestrator.training.learner.rows import AlgorithmSpec, GaeSpec
from orchestrator.training.learner.sharding.distributed import DistributedInit
from orchestrator.training.models.build import build_model, build_tokenizer
from orchestrator.training.rollouts.config import RolloutConfig


def build_learner(init: DistributedInit, spec: RunSpec) -> DeepSpeedLearner:
    """Build the model and join the other ranks. Blocks until all ranks have joined."""
    algorithm = spec.algorithm
    model, lora = build_model(spec.model, spec.seed), spec.learner.lora
    if lora.rank:
        add_adapters(model, lora, spec.seed)
    needs_reference = algorithm.kl.coefficient and not lora.rank
    trainee = PolicyModel(
        model=model,
        tokenizer=build_tokenizer(spec.model),
        reference=build_model(spec.model, spec.seed) if needs_reference else None,
    )
    rule = algorithm_spec(algorithm, spec.rollout)
    return DeepSpeedLearner(init, spec.learner, rule, trainee, spec.steps)


def algorithm_spec(algorithm: AlgorithmConfig, rollout: RolloutConfig) -> AlgorithmSpec:
    """The algorithm as the learner applies it. Raises ConfigError if a component is unknown."""
    coefficient, in_loss = algorithm.kl.coefficient, algorithm.kl.applied_to == "loss"
    objective = Objective(
        policy=LOSSES.get(algorithm.loss),
        clip=ClipRange(algorithm.clip_low, algorithm.clip_high, algorithm.dual_clip),
        correction=_correction(algorithm.off_policy),
        kl_coefficient=coefficient if in_loss else 0.0,
        kl_estimator=algorithm.kl.estimator,
        entropy_coefficient=algorithm.entropy_coefficient,
    )
    gae = algorithm.gae
    values = ADVANTAGES.facts(algorithm.advantage).needs_values
    return AlgorithmSpec(
        advantages=ADVANTAGES.get(algorithm.advantage),
        objective=objective,
        aggregation=algorithm.aggregation,
        drop_uninformative=algorithm.drop_uninformative,
        temperature=1.0 if LOSSES.facts(algorithm.loss).supervised else rollout.temperature,
        max_new_tokens=rollout.max_new_tokens,
        overlong_filtering=algorithm.overlong_filtering,
        reward_kl_coefficient=0.0 if in_loss else coefficient,
        reference_period=algorithm.kl.reference_period,
        gae=GaeSpec(gae.gamma, gae.lam, gae.value_coefficient, gae.value_clip) if values else None,
    )


def _correction(settings: OffPolicyConfig) -> Correction | None:
    if settings.correction == "none":
        return None
    return Correction(
        maximum=math.inf if settings.correction == "importance_sampling" else settings.truncation,
        minimum=settings.minimum,
        masks=settings.correction == "masked_importance_sampling",
        per_sequence=settings.level == "sequence",
    )
