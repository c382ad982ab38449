"""Plans a job from its config: whether it fits into memory, its step time and its accelerator-hours."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from orchestrator.capacity.accelerators import Accelerator, Range
from orchestrator.capacity.job import Job
from orchestrator.capacity.memory import USABLE, Memory, learner_memory, rollout_memory
from orchestrator.capacity.step_time import Scenario, StepTime, generation_seconds, step_time
from orchestrator.config.rules import problems
from orchestrator.config.run_config import RunConfig
from orchestrator.training.cluster.placement import plan_placement

SECONDS_PER_HOUR = 3600
MOST_RANKS = 1024
"""For a job that does not fit, up to this many ranks are tried."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The resources that a job needs. Accelerator-hours count all accelerators from the first step to the
    last, including evaluations, but not start-up, checkpoints and scoring.
    """

    reasons: tuple[str, ...]
    """Why the job does not fit, and changes that would make it fit; empty if it fits."""
    gpus: int
    """How many accelerators the run holds."""
    memory: Memory
    """Memory of the fullest accelerator."""
    memory_limit: float
    """Bytes that are available to tensors on one accelerator."""
    steps: tuple[StepTime, StepTime, StepTime]
    """The low, expected and high estimate."""
    accelerator_hours: Range

    @property
    def feasible(self) -> bool:
        """Whether the job fits into memory."""
        return not self.reasons

    @property
    def step_seconds(self) -> Range:
        """Seconds of one step."""
        return Range(*(step.total for step in self.steps))


def plan_job(job: Job, accelerator: Accelerator, machine_memory: float) -> Plan:
    """Plan one training run. `machine_memory` is the memory in bytes for accelerators without their
    own memory (CPU slots).
    """
    config = job.config
    placement = _accelerators(config)
    limit = USABLE * (accelerator.memory_bytes or machine_memory)
    scenarios = _scenarios(job, accelerator)
    steps = tuple(step_time(job, accelerator, scenario) for scenario in scenarios)
    assert len(steps) == 3
    evaluations = 1 + config.steps // config.evaluation.every if config.evaluation.every else 0
    hours = [
        placement
        * (config.steps * step.total + evaluations * _evaluation_seconds(job, accelerator, scenario))
        / SECONDS_PER_HOUR
        for step, scenario in zip(steps, scenarios, strict=True)
    ]
    return Plan(
        reasons=tuple(_reasons(job, limit)),
        gpus=placement,
        memory=_fullest(job),
        memory_limit=limit,
        steps=steps,
        accelerator_hours=Range(*hours),
    )


def _accelerators(config: RunConfig) -> int:
    placement = plan_placement(
        config.cluster, config.rollout.workers, config.reward.workers, config.learner.world_size
    )
    return sum(slot.accelerators for slot in placement.slots)


def _scenarios(job: Job, accelerator: Accelerator) -> tuple[Scenario, Scenario, Scenario]:
    """The low estimate assumes short responses and high utilisation, the high one the opposite."""
    response, learn, generate = job.lengths.response, accelerator.learn, accelerator.generate
    return (
        Scenario(response.low, learn.high, generate.high),
        Scenario(response.expected, learn.expected, generate.expected),
        Scenario(response.high, learn.low, generate.low),
    )


def _evaluation_seconds(job: Job, accelerator: Accelerator, scenario: Scenario) -> float:
    """Seconds for the rollout workers to answer the held-out prompts, greedily and by sampling."""
    prompts, samples = job.config.evaluation.prompts, job.config.evaluation.samples
    seconds = generation_seconds(job, accelerator, scenario, prompts, prompts)
    if samples:
        seconds += generation_seconds(job, accelerator, scenario, prompts * samples, prompts)
    return seconds


def _fullest(job: Job) -> Memory:
    """Colocated, a learner rank and a rollout worker share an accelerator; split, it is the
    fuller of the two.
    """
    learner, rollout = learner_memory(job), rollout_memory(job)
    if job.config.cluster.layout == "colocated":
        return learner + rollout
    return max(learner, rollout, key=lambda memory: memory.total)


def _reasons(job: Job, limit: float) -> Iterator[str]:
    colocated = job.config.cluster.layout == "colocated"
    rollout, learner = rollout_memory(job), learner_memory(job)
    if rollout.total > limit:
        yield (
            f"a rollout worker needs {gigabytes(rollout.total)} of {gigabytes(limit)}: weights "
            f"{gigabytes(rollout.rollout_weights)}, which no engine here shards over accelerators, and "
            f"{gigabytes(rollout.kv_cache)} of cache (rollout.max_batch_rows, rollout.max_new_tokens)"
        )
    left = limit - rollout.total if colocated else limit
    if learner.total > left:
        beside = " beside a rollout worker" if colocated else ""
        needs = f"a learner rank needs {gigabytes(learner.total)} of {gigabytes(max(left, 0.0))}{beside}"
        fits = next(_that_fit(job, left), None)
        yield f"{needs} ({_largest(learner)}): {_remedy(job, learner) if fits is None else ' '.join(fits)}"


def _largest(memory: Memory) -> str:
    parts = {name: getattr(memory, name) for name in Memory.__dataclass_fields__}
    largest = sorted(parts.items(), key=lambda item: -item[1])[:3]
    return ", ".join(f"{name} {gigabytes(size)}" for name, size in largest if size)


def _remedy(job: Job, memory: Memory) -> str:
    """The memory that more ranks do not reduce, and the settings that reduce it."""
    whole = [
        f"activations {gigabytes(memory.activations)} (rollout.max_new_tokens, learner.micro_batch_tokens)"
    ]
    if job.has_reference:
        whole.append(f"the reference model {gigabytes(memory.reference)} (algorithm.kl.coefficient=0)")
    return f"not on {MOST_RANKS} ranks either; each holds {', '.join(whole)}"


def _that_fit(job: Job, limit: float) -> Iterator[list[str]]:
    """Valid overrides with which a learner rank fits, smallest changes first: more sharding on the same
    number of ranks, activation checkpointing, then more ranks.
    """
    config = job.config
    learner = config.learner
    ranks = [learner.world_size]
    while ranks[-1] * 2 <= MOST_RANKS:
        ranks.append(ranks[-1] * 2)
    stages = [stage for stage in (1, 2, 3) if stage >= learner.zero_stage]
    again = sorted({learner.activation_checkpointing, True})
    experts = [size for size in (1, 2, 4, 8, 16, 32, 64) if size >= learner.expert_parallel_size]
    for world_size, recompute, stage, size in product(ranks, again, stages, experts):
        if size > 1 and (not job.shape.experts or job.shape.experts % size or world_size % size):
            continue
        change = {
            "world_size": world_size,
            "zero_stage": stage,
            "expert_parallel_size": size,
            "activation_checkpointing": recompute,
        }
        changed = config.model_copy(update={"learner": learner.model_copy(update=change)})
        if learner_memory(replace(job, config=changed)).total <= limit and not problems(changed):
            yield [
                f"learner.{key}={str(value).lower()}"
                for key, value in change.items()
                if getattr(learner, key) != value
            ]


def gigabytes(size: float) -> str:
    """Format a number of bytes in decimal units.

    >>> gigabytes(2_500_000_000), gigabytes(1_200_000)
    ('2.5 GB', '1.2 MB')
    """
    unit, name = (1e9, "GB") if size >= 1e8 else (1e6, "MB")
    value = size / unit
    return f"{value:,.0f} {name}" if value >= 100 else f"{value:.1f} {name}"
