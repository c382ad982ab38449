"""Builds a learner rank from its configuration: here advantages, losses and the model meet."""

from __future__ import annotations

from orchestrator.training.advantages import ADVANTAGES
from orchestrator.training.cluster.run_spec import RunSpec
from orchestrator.training.learner.adapters import add_adapters
from orchestrator.training.learner.deepspeed_learner import DeepSpeedLearner, PolicyModel
from orchestrator.training.learner.losses import LOSSES
from orchestrator.training.learner.losses.objective import Objective
from orchestrator.training.learner.losses.policy import ClipRange
from orchestrator.training.learner.rows import AlgorithmSpec
from orchestrator.training.learner.sharding.distributed import DistributedInit
from orchestrator.training.models.build import build_model, build_tokenizer


def build_learner(init: DistributedInit, spec: RunSpec) -> DeepSpeedLearner:
    """Build the model and join the other ranks. Blocks until all ranks have joined."""
    algorithm = spec.algorithm
    corrects = algorithm.off_policy.correction == "truncated_importance_sampling"
    objective = Objective(
        policy=LOSSES.get(algorithm.loss),
        clip=ClipRange(algorithm.clip_low, algorithm.clip_high, algorithm.dual_clip),
        truncation=algorithm.off_policy.truncation if corrects else None,
        kl_coefficient=algorithm.kl.coefficient,
        kl_estimator=algorithm.kl.estimator,
    )
    rule = AlgorithmSpec(
        advantages=ADVANTAGES.get(algorithm.advantage),
        objective=objective,
        aggregation=algorithm.aggregation,
        drop_uninformative=algorithm.drop_uninformative,
        temperature=1.0 if LOSSES.facts(algorithm.loss).supervised else spec.rollout.temperature,
        max_new_tokens=spec.rollout.max_new_tokens,
    )
    model, lora = build_model(spec.model, spec.seed), spec.learner.lora
    if lora.rank:
        add_adapters(model, lora, spec.seed)
    needs_reference = algorithm.kl.coefficient and not lora.rank
    trainee = PolicyModel(
        model=model,
        tokenizer=build_tokenizer(spec.model),
        reference=build_model(spec.model, spec.seed) if needs_reference else None,
    )
    return DeepSpeedLearner(init, spec.learner, rule, trainee, spec.steps)
