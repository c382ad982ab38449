"""Builds the inputs of a training run's components from a validated config. Nothing is started here."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from orchestrator.config.run_config import EvaluationConfig, RunConfig
from orchestrator.training.advantages import ADVANTAGES
from orchestrator.training.buffer import Buffer
from orchestrator.training.checkpoints.mirror import CheckpointMirror
from orchestrator.training.checkpoints.store import open_store
from orchestrator.training.cluster.environments import interpreters
from orchestrator.training.cluster.placement import Placement, plan_placement
from orchestrator.training.cluster.run_spec import RunSpec
from orchestrator.training.evaluation import SEED, SampledAnswers
from orchestrator.training.loop import LoopSettings
from orchestrator.training.manifest import RunFacts
from orchestrator.training.prompts.source import EpochPrompts
from orchestrator.training.records import Prompt, SamplingParams
from orchestrator.training.rollouts.config import RolloutConfig
from orchestrator.training.rollouts.engines import ENGINES, SAMPLING_OPTIONS
from orchestrator.training.telemetry.training_health import LearningSignal


def placement_of(config: RunConfig) -> Placement:
    """Assign the actors to slots. Raises ConfigError if the actors of a slot need more than it has."""
    permanent = config.rollout.permanent_workers
    return plan_placement(
        config.cluster,
        permanent,
        config.reward.workers,
        config.learner.world_size,
        interpreters(config.cluster.environments, ENGINES.facts(config.rollout.engine).environment),
        config.rollout.workers - permanent,
    )


def run_spec(config: RunConfig, run_id: str, attempt: int, directory: Path) -> RunSpec:
    """Build the configuration that every actor of a run receives."""
    return RunSpec(
        run_id=run_id,
        attempt=attempt,
        directory=directory.resolve(),
        seed=config.seed,
        steps=config.steps,
        evaluation_engine=config.evaluation.engine,
        use_gpu=config.cluster.resource == "gpu",
        snapshots=config.checkpoint.asynchronous and config.checkpoint.every > 0,
        model=config.model,
        rollout=config.rollout,
        reward=config.reward,
        algorithm=config.algorithm,
        learner=config.learner,
        weights=config.weights,
    )


def learning_signal(config: RunConfig) -> LearningSignal:
    """The source of the run's gradient, which determines the symptoms of a run that does not learn."""
    return LearningSignal(
        imitates=ENGINES.facts(config.rollout.engine).replays_solutions,
        group_relative=ADVANTAGES.facts(config.algorithm.advantage).group_relative,
    )


def run_facts(config: RunConfig) -> RunFacts:
    """The facts about the config that reports show."""
    rollout, learner = config.rollout, config.learner
    settings = {
        "model": config.model.name,
        "task": config.task.name,
        "algorithm": config.algorithm.name,
        "batch": f"{rollout.prompts_per_step} prompts x {rollout.group_size} rollouts per step",
        "sampling": ", ".join(_sampling_words(rollout)),
        "learner": (
            f"world size {learner.world_size}, ZeRO {learner.zero_stage}, expert parallel "
            f"{learner.expert_parallel_size}, learning rate {learner.learning_rate}"
        ),
        "max staleness": str(config.max_staleness),
        "seed": str(config.seed),
    }
    return RunFacts(
        model=config.model.name,
        task=config.task.name,
        plays_back=ENGINES.facts(rollout.engine).replays_solutions,
        reflection_pattern=config.reward.reflection_pattern,
        settings=tuple(settings.items()),
    )


def _sampling_words(rollout: RolloutConfig) -> Iterator[str]:
    yield f"temperature {rollout.temperature}"
    yield f"top-p {rollout.top_p}"
    for key, off in SAMPLING_OPTIONS.items():
        value = getattr(rollout, key)
        if value != off:
            shown = ", ".join(map(repr, value)) if isinstance(value, tuple) else str(value)
            yield f"{key.replace('_', ' ')} {shown}"
    yield f"at most {rollout.max_new_tokens} tokens"


def training_sampling(config: RunConfig) -> SamplingParams:
    """How the rollouts that are trained on are sampled."""
    return _sampling(config.rollout, config.rollout.max_new_tokens, config.seed)


def sampled_answers(config: RunConfig) -> SampledAnswers:
    """How held-out prompts are answered."""
    evaluation = config.evaluation
    sampling = _sampling(evaluation, config.rollout.max_new_tokens, SEED)
    return SampledAnswers(evaluation.samples, sampling)


def _sampling(group: RolloutConfig | EvaluationConfig, max_new_tokens: int, seed: int) -> SamplingParams:
    return SamplingParams(
        temperature=group.temperature,
        top_p=group.top_p,
        max_new_tokens=max_new_tokens,
        seed=seed,
        top_k=group.top_k,
        min_p=group.min_p,
        repetition_penalty=group.repetition_penalty,
        stop=group.stop,
        stop_token_ids=group.stop_token_ids,
        min_new_tokens=group.min_new_tokens,
        thinking_token_budget=group.thinking_token_budget,
    )


def loop_settings(config: RunConfig) -> LoopSettings:
    """Build the settings of the training loop."""
    return LoopSettings(
        steps=config.steps,
        group_size=config.rollout.group_size,
        sampling=training_sampling(config),
        evaluate_every=config.evaluation.every,
        checkpoint_every=config.checkpoint.every,
        record_every=config.tracking.record_every,
        sampled_rollouts=config.tracking.sampled_rollouts,
        dynamic_sampling=config.algorithm.dynamic_sampling,
        max_resampled=config.algorithm.max_resampled,
        grading_failure_budget=config.reward.failure_budget,
        max_learner_rebuilds=config.learner.max_restarts,
        max_data_losses=config.rollout.max_data_losses,
    )


def buffer_of(config: RunConfig) -> Buffer:
    """Build the buffer between rollouts and learner."""
    rollout = config.rollout
    over_sampled = math.ceil(rollout.over_sample_rate * rollout.prompts_per_step)
    return Buffer(rollout.prompts_per_step, config.max_staleness, over_sampled)


def mirror_of(config: RunConfig, run_id: str) -> CheckpointMirror | None:
    """Build the mirror that copies checkpoints to `checkpoint.store`; None
    without one. Raises ConfigError.
    """
    settings = config.checkpoint
    if settings.store is None:
        return None
    store = open_store(settings.store, run_id, settings.keep)
    return CheckpointMirror(store, settings.store_failures, settings.store_retry_seconds)


def heldout_prompts(config: RunConfig, prompts: EpochPrompts) -> list[Prompt]:
    """The held-out prompts that this run evaluates on."""
    return prompts.heldout(min(config.evaluation.prompts, config.task.heldout_size))
