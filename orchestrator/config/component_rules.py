"""Rules about the components that a config selects by name. They refuse combinations that would run, but
would silently compute something other than what the config says.

The rules use the facts that components declare when they are registered and never compare names, so
third-party components are checked exactly like built-in ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from pydantic import ValidationError

from orchestrator.config.run_config import RunConfig
from orchestrator.errors import ConfigError
from orchestrator.training.advantages import ADVANTAGES, EstimatorFacts
from orchestrator.training.learner.losses import LOSSES, LossFacts
from orchestrator.training.prompts.solutions import SOLUTIONS
from orchestrator.training.registry import Registry
from orchestrator.training.rollouts.engines import ENGINES, SAMPLING_OPTIONS, EngineFacts

T = TypeVar("T")
F = TypeVar("F")


LEARNER_CANNOT_SCORE = {"top_p": 1, "top_k": 0, "min_p": 0, "repetition_penalty": 1, "min_new_tokens": 0}
"""The sampling parameters that change the distribution from which tokens are sampled, and the values that
turn them off. Stop strings and stop tokens are not among them: they decide where a rollout ends, but every
token of it was sampled from the model's distribution.
"""


@dataclass(frozen=True, slots=True)
class Facts:
    """What the components of a config declare about themselves."""

    estimator: EstimatorFacts
    loss: LossFacts
    engine: EngineFacts


def facts_of(config: RunConfig) -> Facts | None:
    """Look up the facts; None if a component is unknown (`components_are_registered` reports that)."""
    try:
        return Facts(
            estimator=ADVANTAGES.facts(config.algorithm.advantage),
            loss=LOSSES.facts(config.algorithm.loss),
            engine=ENGINES.facts(config.rollout.engine),
        )
    except ConfigError:
        return None


def components_are_registered(config: RunConfig) -> Iterator[ConfigError]:
    """Every name must refer to a component that can be imported."""
    yield from _problems_of("algorithm.advantage", ADVANTAGES, config.algorithm.advantage)
    yield from _problems_of("algorithm.loss", LOSSES, config.algorithm.loss)
    yield from _problems_of("rollout.engine", ENGINES, config.rollout.engine)
    yield from _problems_of("evaluation.engine", ENGINES, config.evaluation.engine)
    if config.task.solutions is not None:
        yield from _problems_of("task.solutions", SOLUTIONS, config.task.solutions)


def loss_fits_the_advantage(config: RunConfig) -> Iterator[ConfigError]:
    """A supervised loss ignores advantages: an estimator that reads rewards would have no effect."""
    facts, algorithm = facts_of(config), config.algorithm
    if facts is None or not facts.loss.supervised:
        return
    if not facts.estimator.ignores_rewards:
        allowed = _names_where(ADVANTAGES, lambda estimator: estimator.ignores_rewards)
        hint = f"the loss {algorithm.loss} ignores rewards"
        yield ConfigError("algorithm.advantage", algorithm.advantage, allowed, hint)
    if algorithm.off_policy.correction != "none":
        hint = f"the loss {algorithm.loss} imitates given tokens, which no policy sampled"
        yield ConfigError("algorithm.off_policy.correction", algorithm.off_policy.correction, "none", hint)


def sequence_losses_count_rollouts(config: RunConfig) -> Iterator[ConfigError]:
    """A loss with one ratio for a whole rollout counts each rollout once, whatever its length, and with one
    importance weight.
    """
    facts, algorithm = facts_of(config), config.algorithm
    if facts is None or not facts.loss.per_sequence:
        return
    if algorithm.aggregation != "sequence":
        hint = (
            f"algorithm.loss {algorithm.loss} has one ratio for each rollout, which must not count by length"
        )
        yield ConfigError("algorithm.aggregation", algorithm.aggregation, "sequence", hint)
    if algorithm.off_policy.correction != "none" and algorithm.off_policy.level != "sequence":
        hint = f"algorithm.loss {algorithm.loss} has one ratio for each rollout, and no loss for each token"
        yield ConfigError("algorithm.off_policy.level", algorithm.off_policy.level, "sequence", hint)


def a_value_head_can_be_trained(config: RunConfig) -> Iterator[ConfigError]:
    """An advantage for each token needs a loss that has a ratio for each token, and a value head that is
    trained and saved with the model.
    """
    facts, algorithm = facts_of(config), config.algorithm
    if facts is None or not facts.estimator.needs_values:
        return
    if facts.loss.per_sequence:
        losses = _names_where(LOSSES, lambda loss: not loss.per_sequence and not loss.supervised)
        hint = f"algorithm.advantage {algorithm.advantage} gives each token its own advantage"
        yield ConfigError("algorithm.loss", algorithm.loss, losses, hint)
    if config.learner.lora.rank > 0:
        hint = f"algorithm.advantage {algorithm.advantage} needs a value head, which adapters do not have"
        yield ConfigError("learner.lora.rank", str(config.learner.lora.rank), "0", hint)


def later_epochs_take_a_ratio(config: RunConfig) -> Iterator[ConfigError]:
    """From the second pass over a batch on, the learner is no longer the policy that sampled it."""
    facts, epochs = facts_of(config), config.learner.epochs
    if facts is None or epochs == 1 or facts.loss.handles_stale_rollouts:
        return
    hint = f"algorithm.loss {config.algorithm.loss} is wrong once an update has moved the learner"
    yield ConfigError("learner.epochs", str(epochs), "1", hint)


def the_reference_can_be_replaced(config: RunConfig) -> Iterator[ConfigError]:
    """The reference of a model with adapters is the model without them, which never changes."""
    kl = config.algorithm.kl
    if kl.coefficient > 0 and kl.reference_period is not None and config.learner.lora.rank > 0:
        hint = "with learner.lora.rank > 0 the reference is the model without adapters, which does not change"
        yield ConfigError("algorithm.kl.reference_period", str(kl.reference_period), "null", hint)


def the_reward_is_read(config: RunConfig) -> Iterator[ConfigError]:
    """A KL penalty in the reward has no effect on an advantage that ignores rewards."""
    facts, algorithm = facts_of(config), config.algorithm
    if facts is None or not facts.estimator.ignores_rewards:
        return
    if algorithm.kl.coefficient > 0 and algorithm.kl.applied_to == "reward":
        hint = f"algorithm.advantage {algorithm.advantage} ignores rewards"
        yield ConfigError("algorithm.kl.applied_to", "reward", "loss", hint)


def dual_clip_has_an_effect(config: RunConfig) -> Iterator[ConfigError]:
    """A loss without a dual clip would ignore the setting."""
    facts, algorithm = facts_of(config), config.algorithm
    if facts is None or facts.loss.dual_clip or algorithm.dual_clip is None:
        return
    losses = _names_where(LOSSES, lambda loss: loss.dual_clip)
    yield ConfigError(
        "algorithm.dual_clip",
        str(algorithm.dual_clip),
        f"null, or algorithm.loss {losses}",
        f"algorithm.loss {algorithm.loss} ignores it, unless it is registered with LossFacts(dual_clip=True)",
    )


def equal_rewards_give_no_gradient(config: RunConfig) -> Iterator[ConfigError]:
    """Groups of equal rewards may be skipped or replaced only if their advantages are zero."""
    facts, algorithm = facts_of(config), config.algorithm
    if facts is None or facts.estimator.group_relative:
        return
    hint = f"under the advantage {algorithm.advantage} a group of equal rewards has a gradient"
    for key in ("dynamic_sampling", "drop_uninformative"):
        if getattr(algorithm, key):
            yield ConfigError(f"algorithm.{key}", "true", "false", hint)


def correct_rollouts_are_known(config: RunConfig) -> Iterator[ConfigError]:
    """Dynamic sampling by accuracy needs the reward component that decides which rollouts are correct."""
    algorithm = config.algorithm
    criterion = algorithm.dynamic_sampling_by
    if not algorithm.dynamic_sampling or criterion == "reward":
        return
    if criterion not in {name.rpartition(":")[2] for name in config.reward.components}:
        hint = f"reward.components has no {criterion}, so it is unknown which rollouts are correct"
        yield ConfigError("algorithm.dynamic_sampling_by", criterion, "reward", hint)


def groups_can_be_compared(config: RunConfig) -> Iterator[ConfigError]:
    """A group-relative advantage needs two or more different rollouts of each prompt."""
    facts, rollout = facts_of(config), config.rollout
    if facts is None:
        return
    if facts.estimator.group_relative and rollout.group_size < 2:
        hint = f"algorithm.advantage {config.algorithm.advantage} compares the rollouts of a group"
        yield ConfigError("rollout.group_size", str(rollout.group_size), "2 or more", hint)
    if rollout.temperature == 0 and not facts.loss.supervised:
        hint = "greedy rollouts of one prompt are identical, so there is nothing to compare"
        yield ConfigError("rollout.temperature", "0.0", "more than 0", hint)


def learner_can_score_the_samples(config: RunConfig) -> Iterator[ConfigError]:
    """Probability ratios compare the learner's distribution with the one that was sampled from: the engine
    must report log-probs of a distribution that the learner can compute.
    """
    facts, rollout, loss = facts_of(config), config.rollout, config.algorithm.loss
    if facts is None or facts.loss.supervised:
        return
    if facts.engine.logprobs == "none":
        allowed = _names_where(ENGINES, lambda engine: engine.logprobs != "none")
        hint = f"algorithm.loss {loss} needs the log-probs of sampled tokens, and this engine has none"
        yield ConfigError("rollout.engine", rollout.engine, allowed, hint)
    if facts.engine.logprobs == "raw" and rollout.temperature != 1:
        hint = f"rollout.engine {rollout.engine} reports log-probs before temperature"
        yield ConfigError("rollout.temperature", str(rollout.temperature), "1", hint)
    for key, off in LEARNER_CANNOT_SCORE.items():
        value = getattr(rollout, key)
        if value != off:
            hint = (
                "the learner scores tokens over the whole vocabulary at rollout.temperature; sampling "
                f"differently biases the gradient of algorithm.loss {loss}, and nothing corrects for it"
            )
            yield ConfigError(f"rollout.{key}", str(value), str(off), hint)


def engines_support_the_sampling(config: RunConfig) -> Iterator[ConfigError]:
    """An engine would ignore a sampling parameter that it does not support."""
    for group, settings in (("rollout", config.rollout), ("evaluation", config.evaluation)):
        try:
            supported = ENGINES.facts(settings.engine).sampling
        except ConfigError:
            continue
        for key, off in SAMPLING_OPTIONS.items():
            value = getattr(settings, key)
            if value != off and key not in supported:
                allowed = _shown(off)
                engines = _names_where(ENGINES, lambda engine, key=key: key in engine.sampling)
                if engines:
                    allowed += f", or {group}.engine {engines}"
                hint = f"{group}.engine {settings.engine} does not support it"
                yield ConfigError(f"{group}.{key}", _shown(value), allowed, hint)


def engines_support_the_update(config: RunConfig) -> Iterator[ConfigError]:
    """Not every engine can replace weights while rollouts run, or recompute a cache."""
    facts, rollout = facts_of(config), config.rollout
    if facts is None or rollout.on_new_weights in facts.engine.on_new_weights:
        return
    supported = ", ".join(sorted(facts.engine.on_new_weights))
    hint = f"rollout.engine {rollout.engine} does not support it"
    yield ConfigError("rollout.on_new_weights", rollout.on_new_weights, supported, hint)


def engine_options_are_known(config: RunConfig) -> Iterator[ConfigError]:
    """An engine would ignore an option that it does not have, or fail when it starts."""
    facts, given = facts_of(config), config.rollout.engine_options
    if facts is None:
        return
    if facts.engine.options is None:
        if given:
            hint = f"rollout.engine {config.rollout.engine} has no options"
            yield ConfigError("rollout.engine_options", str(given), "{}", hint)
        return
    known = facts.engine.options.model_fields
    try:
        facts.engine.options.model_validate(given)
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            key, unknown = ".".join(map(str, detail["loc"])), detail["type"] == "extra_forbidden"
            allowed = ", ".join(known) if unknown else detail["msg"].removeprefix("Input should be ")
            yield ConfigError(f"rollout.engine_options.{key}", str(detail["input"]), allowed)


def engine_fits_its_accelerators(config: RunConfig) -> Iterator[ConfigError]:
    """An engine over several GPUs needs all of them in the slot of its worker."""
    facts, cluster = facts_of(config), config.cluster
    if facts is None or any(engine_options_are_known(config)):
        return
    needed = facts.engine.accelerators(config.rollout.engine_options)
    if needed == 1:
        return
    hint = f"rollout.engine_options ask for one engine over {needed} GPUs"
    if cluster.resource != "gpu":
        yield ConfigError("cluster.resource", cluster.resource, "gpu", hint)
    elif cluster.layout != "split":
        yield ConfigError("cluster.layout", cluster.layout, "split", hint)
    elif cluster.rollout.gpus != needed:
        yield ConfigError("cluster.rollout.gpus", f"{cluster.rollout.gpus:g}", str(needed), hint)


def engines_share_an_environment(config: RunConfig) -> Iterator[ConfigError]:
    """Held-out answers are sampled by the rollout workers."""
    try:
        engine, evaluation = (
            ENGINES.facts(name).environment for name in (config.rollout.engine, config.evaluation.engine)
        )
    except ConfigError:
        return
    if config.evaluation.every and engine != evaluation:
        hint = "it answers in the rollout workers, and the two engines need different Python environments"
        yield ConfigError("evaluation.engine", config.evaluation.engine, config.rollout.engine, hint)


def _shown(value: object) -> str:
    if value is None:
        return "null"
    return str(list(value)) if isinstance(value, tuple) else str(value)


def staleness_is_corrected(config: RunConfig) -> Iterator[ConfigError]:
    """Rollouts of older weights need a loss that accounts for them, or an off-policy correction."""
    facts, algorithm = facts_of(config), config.algorithm
    if facts is None or config.max_staleness == 0:
        return
    if facts.loss.handles_stale_rollouts or algorithm.off_policy.correction != "none":
        return
    losses = _names_where(LOSSES, lambda loss: loss.handles_stale_rollouts and not loss.supervised)
    yield ConfigError(
        "max_staleness",
        str(config.max_staleness),
        f"0, or algorithm.off_policy.correction truncated_importance_sampling, or algorithm.loss {losses}",
        f"algorithm.loss {algorithm.loss} is wrong on rollouts of older weights, unless it is registered "
        "with LossFacts(handles_stale_rollouts=True)",
    )


def solutions_exist(config: RunConfig) -> Iterator[ConfigError]:
    """An engine that plays back solutions needs a task that has some."""
    facts, task = facts_of(config), config.task
    if facts is None or not facts.engine.replays_solutions or task.solutions or task.solution_field:
        return
    engines = _names_where(ENGINES, lambda engine: not engine.replays_solutions)
    yield ConfigError(
        "rollout.engine",
        config.rollout.engine,
        f"{engines}, or a task with task.solutions or task.solution_field",
        f"task {task.name} has no worked solutions to imitate",
    )


def routes_can_be_recorded(config: RunConfig) -> Iterator[ConfigError]:
    """Routing replay needs an engine that records the selected experts. Worked solutions that are played back
    have no recorded routes and need none.
    """
    facts, rollout = facts_of(config), config.rollout
    if facts is None or facts.engine.records_routes or facts.engine.replays_solutions:
        return
    if rollout.record_routes:
        hint = f"rollout.engine {rollout.engine} does not record the experts of a token"
        yield ConfigError("rollout.record_routes", "true", "false", hint)


def _problems_of(key: str, registry: Registry[T, F], name: str) -> Iterator[ConfigError]:
    try:
        registry.get(name)
    except ConfigError as error:
        yield ConfigError(key, error.value, error.allowed, error.hint)


def _names_where(registry: Registry[T, F], holds: Callable[[F], bool]) -> str:
    """Names of the components whose facts satisfy `holds`. Components that cannot
    be imported are left out.
    """

    def found(name: str) -> bool:
        try:
            return holds(registry.facts(name))
        except ConfigError:
            return False

    return ", ".join(filter(found, registry.names()))
