"""Consistency rules between parts of a config, so that impossible combinations are reported
before anything starts.

Each rule yields a `ConfigError` for each combination that it refuses. Constraints on a single value are
declared with its field.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from orchestrator.config import component_rules
from orchestrator.config.run_config import RunConfig
from orchestrator.errors import ConfigError
from orchestrator.training.cluster.placement import plan_placement
from orchestrator.training.learner.config import EXPERT_PARALLEL_FAMILIES
from orchestrator.training.models.config import ModelConfig
from orchestrator.training.prompts.template import template_fields
from orchestrator.training.rewards.scorers import SCORERS

Rule = Callable[[RunConfig], Iterator[ConfigError]]

TASK_SOURCE_FIELDS = {
    "reasoning_gym": ("dataset",),
    "jsonl": ("path", "prompt_field", "answer_field"),
    "parquet": ("path", "prompt_field", "answer_field"),
    "dataset_folder": ("path", "prompt_field", "answer_field"),
}
MODEL_FAMILY_FIELDS = {
    "pretrained": ("path",),
    "gguf_package": ("package",),
    "deepseek_v3_from_scratch": ("architecture",),
}


def problems(config: RunConfig) -> list[ConfigError]:
    """All problems of `config`, in the order of the training flow; empty if it can be run."""
    return [problem for rule in RULES for problem in rule(config)]


def _model_is_complete(config: RunConfig) -> Iterator[ConfigError]:
    for field in MODEL_FAMILY_FIELDS[config.model.family]:
        if not getattr(config.model, field):
            yield ConfigError(
                f"model.{field}", "nothing", "a value", f"model.family {config.model.family} needs it"
            )


def _task_is_complete(config: RunConfig) -> Iterator[ConfigError]:
    for field in TASK_SOURCE_FIELDS[config.task.source]:
        if not getattr(config.task, field):
            yield ConfigError(
                f"task.{field}", "nothing", "a value", f"task.source {config.task.source} needs it"
            )


def _template_asks_something(config: RunConfig) -> Iterator[ConfigError]:
    if not template_fields(config.task.template):
        yield ConfigError(
            "task.template",
            config.task.template,
            "text that contains {question} or another field of the task's rows",
            "all prompts would be the same",
        )


def _evaluation_has_prompts(config: RunConfig) -> Iterator[ConfigError]:
    if config.evaluation.every and config.evaluation.prompts > config.task.heldout_size:
        yield ConfigError(
            "evaluation.prompts",
            str(config.evaluation.prompts),
            f"{config.task.heldout_size} or fewer",
            "task.heldout_size says how many held-out prompts there are",
        )


def _sampled_answers_differ(config: RunConfig) -> Iterator[ConfigError]:
    if config.evaluation.samples and config.rollout.temperature == 0:
        hint = "rollout.temperature 0 gives the greedy answer each time"
        yield ConfigError("evaluation.samples", str(config.evaluation.samples), "0", hint)


def _responses_fit(config: RunConfig) -> Iterator[ConfigError]:
    response, context = config.rollout.max_new_tokens, config.model.context
    if response >= context:
        yield ConfigError(
            "rollout.max_new_tokens",
            str(response),
            f"fewer than {context}",
            "model.context holds the prompt and the response",
        )
    hint = "rollout.max_new_tokens is the most tokens of a response"
    for group, settings in (("rollout", config.rollout), ("evaluation", config.evaluation)):
        fewest, thinking = settings.min_new_tokens, settings.thinking_token_budget
        if fewest > response:
            yield ConfigError(f"{group}.min_new_tokens", str(fewest), f"{response} or fewer", hint)
        if thinking is not None and thinking >= response:
            allowed = f"null, or fewer than {response}"
            yield ConfigError(f"{group}.thinking_token_budget", str(thinking), allowed, hint)
    if config.reward.overlong_buffer > response:
        yield ConfigError(
            "reward.overlong_buffer",
            str(config.reward.overlong_buffer),
            f"{response} or fewer",
            "it is a part of rollout.max_new_tokens, at its end",
        )


def _scorers_are_registered(config: RunConfig) -> Iterator[ConfigError]:
    names = SCORERS.names()
    for name in config.reward.components:
        if ":" not in name and name not in names:
            yield ConfigError("reward.components", name, ", ".join(names))


def _solutions_come_from_one_place(config: RunConfig) -> Iterator[ConfigError]:
    task = config.task
    if task.solutions is not None and task.solution_field is not None:
        yield ConfigError(
            "task.solutions", task.solutions, "null if task.solution_field is set", "only one may be set"
        )


def _batch_is_divisible(config: RunConfig) -> Iterator[ConfigError]:
    rollout, learner = config.rollout, config.learner
    rollouts = rollout.prompts_per_step * rollout.group_size
    if rollouts % learner.world_size:
        yield ConfigError(
            "learner.world_size",
            str(learner.world_size),
            f"a divisor of {rollouts}",
            "rollout.prompts_per_step x rollout.group_size rollouts are shared by the ranks",
        )
    if rollout.prompts_per_step % learner.minibatches:
        yield ConfigError(
            "learner.minibatches",
            str(learner.minibatches),
            f"a divisor of {rollout.prompts_per_step}",
            "the optimizer updates of a step share its rollout.prompts_per_step groups",
        )


def _experts_are_divisible(config: RunConfig) -> Iterator[ConfigError]:
    learner = config.learner
    size = learner.expert_parallel_size
    if size == 1:
        return
    if learner.world_size % size:
        yield ConfigError(
            "learner.expert_parallel_size",
            str(size),
            f"a divisor of {learner.world_size}",
            "it must divide learner.world_size",
        )
    kind, experts = _experts(config.model)
    if kind is not None and kind not in EXPERT_PARALLEL_FAMILIES:
        yield ConfigError(
            "learner.expert_parallel_size",
            str(size),
            f"1, or a model of {', '.join(EXPERT_PARALLEL_FAMILIES)}",
            f"{kind} has no experts, or its expert parallelism has not been verified to be exact",
        )
    if experts is not None and experts % size:
        yield ConfigError(
            "learner.expert_parallel_size",
            str(size),
            f"a divisor of {experts}",
            "it must divide the number of the model's routed experts",
        )


def _experts(model: ModelConfig) -> tuple[str | None, int | None]:
    """The model's type and its number of routed experts; None for what is unknown before it is built."""
    values: dict[str, Any] = model.architecture
    if model.family == "gguf_package":
        return model.family, None
    if model.path is not None:
        try:
            values = json.loads((Path(model.path) / "config.json").read_bytes())
        except (OSError, ValueError):
            return None, None
    kind = values.get("model_type", "deepseek_v3" if model.family == "deepseek_v3_from_scratch" else None)
    names = ("n_routed_experts", "num_local_experts", "num_experts")
    return kind, next((values[name] for name in names if isinstance(values.get(name), int)), None)


def _every_step_learns(config: RunConfig) -> Iterator[ConfigError]:
    """After the end of its schedule the learning rate stays at its final value, which must not be zero."""
    learner, end = config.learner, config.learner.schedule_steps
    if (
        learner.schedule == "constant"
        or end is None
        or config.steps <= end
        or learner.final_learning_rate > 0
    ):
        return
    yield ConfigError(
        "steps",
        str(config.steps),
        f"{end} or fewer",
        f"learner.schedule {learner.schedule} ends after {end} steps with learning rate 0: further steps "
        "would train nothing; start a new run from this run's exported model",
    )


def _slots_hold_the_roles(config: RunConfig) -> Iterator[ConfigError]:
    if config.cluster.resource == "cpu" and config.learner.backend == "nccl":
        hint = "with cluster.resource cpu the slots have no GPU"
        yield ConfigError("learner.backend", "nccl", "auto, gloo", hint)
    workers, ranks = config.rollout.permanent_workers, config.learner.world_size
    try:
        plan_placement(config.cluster, workers, config.reward.workers, ranks)
    except ConfigError as error:
        yield error


def _elastic_workers_have_slots_of_their_own(config: RunConfig) -> Iterator[ConfigError]:
    workers, fewest = config.rollout.workers, config.rollout.permanent_workers
    if fewest > workers:
        hint = "rollout.workers is the number of all rollout workers"
        yield ConfigError("rollout.min_workers", str(fewest), f"null, 1 to {workers}", hint)
    sharing = min(workers, config.learner.world_size)
    if config.cluster.layout == "colocated" and fewest < sharing:
        hint = (
            f"with cluster.layout colocated, {sharing} rollout workers share their slots with learner ranks,"
            " which stay"
        )
        allowed = "null" if sharing == workers else f"null, {sharing} to {workers}"
        yield ConfigError("rollout.min_workers", str(fewest), allowed, hint)


def _stage_names_differ(config: RunConfig) -> Iterator[ConfigError]:
    names = [stage.name for stage in config.stages]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield ConfigError("stages", name, "a different name for each stage", "two stages have this name")


def _output_dir_fits_into_urls(config: RunConfig) -> Iterator[ConfigError]:
    path = str(config.output_dir.absolute())
    if any(character in path for character in "?#%"):
        hint = "the ledger and MLflow keep SQLite files there, and their URLs cannot hold these characters"
        yield ConfigError("output_dir", path, "a path without ?, # and %", hint)


RULES: tuple[Rule, ...] = (
    _output_dir_fits_into_urls,
    _model_is_complete,
    _task_is_complete,
    _template_asks_something,
    _evaluation_has_prompts,
    _sampled_answers_differ,
    _responses_fit,
    component_rules.components_are_registered,
    _scorers_are_registered,
    component_rules.loss_fits_the_advantage,
    component_rules.sequence_losses_count_rollouts,
    component_rules.dual_clip_has_an_effect,
    component_rules.a_value_head_can_be_trained,
    component_rules.later_epochs_take_a_ratio,
    component_rules.the_reward_is_read,
    component_rules.the_reference_can_be_replaced,
    component_rules.equal_rewards_give_no_gradient,
    component_rules.correct_rollouts_are_known,
    component_rules.groups_can_be_compared,
    component_rules.learner_can_score_the_samples,
    component_rules.engines_support_the_sampling,
    component_rules.engine_options_are_known,
    component_rules.engine_fits_its_accelerators,
    component_rules.engines_share_an_environment,
    component_rules.solutions_exist,
    component_rules.routes_can_be_recorded,
    _solutions_come_from_one_place,
    _batch_is_divisible,
    _experts_are_divisible,
    component_rules.engines_support_the_update,
    component_rules.staleness_is_corrected,
    _every_step_learns,
    _slots_hold_the_roles,
    _elastic_workers_have_slots_of_their_own,
    _stage_names_differ,
)
