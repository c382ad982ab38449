"""Bytes of one accelerator: a learner rank, a rollout worker, or both where they share it."""

from __future__ import annotations

from dataclasses import dataclass, fields

from orchestrator.capacity.activations import MicroBatch, cache_bytes, micro_batch_activations
from orchestrator.capacity.job import Job
from orchestrator.capacity.parameters import total_parameters
from orchestrator.capacity.state import Sharding, learner_state
from orchestrator.training.rollouts.engines import ENGINES

FP32 = 4
SAMPLING_COPIES = 3
"""Float32 copies of the logits of one position a row: scaled, sorted, probabilities."""
USABLE = 0.92
"""Share of an accelerator's memory that tensors can have: the rest is the driver's context, communication
buffers and what a caching allocator can't use. An assumption.
"""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes by what they are for; 0 for a role that is not there."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    """Of one micro-batch: what it keeps, and the layer in flight if that needs more than the logits."""
    logits: int
    buckets: int
    """Reduced, gathered and published weights and gradients in flight."""
    reference: int
    """The frozen reference model of the KL penalty."""
    rollout_weights: int
    kv_cache: int

    @property
    def total(self) -> int:
        """The sum of all of them."""
        return sum(getattr(self, field.name) for field in fields(self))

    def __add__(self, other: Memory) -> Memory:
        return Memory(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


def learner_memory(job: Job) -> Memory:
    """One learner rank at its peak: at the end of a forward pass, in the backward pass of a layer, or in the
    optimizer's step.
    """
    config, size = job.config.learner, job.element_bytes
    sharding = Sharding(
        config.world_size,
        config.zero_stage,
        config.expert_parallel_size,
        size,
        offload_optimizer=config.offload == "optimizer",
        accelerator=job.config.cluster.resource == "gpu",
    )
    state = learner_state(job.shape, sharding)
    # A row longer than the budget is a micro-batch of its own.
    longest = round(job.lengths.longest_prompt + job.config.rollout.max_new_tokens)
    positions = max(config.micro_batch_tokens, min(longest, job.longest))
    trained = round(positions * _trained_share(job))
    batch = MicroBatch(positions, trained, config.activation_checkpointing, size, config.expert_parallel_size)
    activations = micro_batch_activations(job.shape, batch)
    parameters = total_parameters(job.shape).total
    at_logits = activations.kept + activations.logits >= activations.backward
    beyond = max(0, state.step - activations.most)  # the optimizer's step needs more than the passes
    return Memory(
        weights=state.weights,
        gradients=state.gradients,
        optimizer=state.optimizer + beyond,
        activations=activations.kept if at_logits else activations.backward,
        logits=activations.logits if at_logits else 0,
        buckets=state.reduce_buckets + state.gathered + config.bucket_bytes,
        reference=size * parameters if job.has_reference else 0,
        rollout_weights=0,
        kv_cache=0,
    )


def rollout_memory(job: Job) -> Memory:
    """One rollout worker: the whole model, and the cache of the rows that it samples at once. An engine over
    several accelerators has an equal share of both on each.
    """
    config, size = job.config.rollout, job.element_bytes
    shards = ENGINES.facts(config.engine).accelerators(config.engine_options)
    rows = min(config.max_batch_rows, -(-job.rollouts // config.workers)) if job.samples else 0
    length = min(round(job.lengths.longest_prompt) + config.max_new_tokens, job.longest)
    return Memory(
        weights=0,
        gradients=0,
        optimizer=0,
        activations=0,
        logits=SAMPLING_COPIES * FP32 * rows * job.shape.vocabulary,
        buckets=job.config.learner.bucket_bytes,
        reference=0,
        rollout_weights=size * total_parameters(job.shape).total // shards if job.samples else 0,
        kv_cache=cache_bytes(job.shape, rows, length, size) // shards,
    )


def _trained_share(job: Job) -> float:
    """Of the tokens of the rows with the longest responses."""
    most = job.config.rollout.max_new_tokens
    return most / (most + job.lengths.prompt)
