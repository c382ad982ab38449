"""Seconds of one step: operations over what an accelerator reaches, bytes over what its memory reaches.

The roofline of Williams et al. 2009 (https://doi.org/10.1145/1498765.1498785): a stage takes what its slower
resource takes. Decoding reads every weight that a batch touches, and the cache, once per token; prefill,
forward and backward are bound by operations.
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.capacity.accelerators import Accelerator
from orchestrator.capacity.activations import cache_bytes
from orchestrator.capacity.flops import Pass, forward_flops, head_flops, inference_flops, training_flops
from orchestrator.capacity.job import Job
from orchestrator.capacity.parameters import total_parameters
from orchestrator.capacity.shape import ModelShape


@dataclass(frozen=True, slots=True)
class Scenario:
    """The assumptions of one estimate: low, expected or high."""

    response_tokens: float
    learn_utilisation: float
    generate_utilisation: float


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds of a step's stages. Scoring is not included: it uses CPUs while other rollouts are sampled."""

    generate: float
    learn: float
    sync: float
    overlapped: bool
    """Whether sampling and learning run in parallel: asynchronous training on separate accelerators."""

    @property
    def total(self) -> float:
        """Seconds of the whole step."""
        work = max(self.generate, self.learn) if self.overlapped else self.generate + self.learn
        return work + self.sync


def step_time(job: Job, accelerator: Accelerator, scenario: Scenario) -> StepTime:
    """The time of one step under the assumptions of `scenario`."""
    config = job.config
    weights = total_parameters(job.shape).total * job.element_bytes
    generate = 0.0
    if job.samples:
        generate = generation_seconds(
            job, accelerator, scenario, job.rollouts, config.rollout.prompts_per_step
        )
    return StepTime(
        generate=generate,
        learn=learn_seconds(job, accelerator, scenario),
        sync=weights / accelerator.link_bytes_per_second if job.samples else 0.0,
        overlapped=config.max_staleness > 0 and config.cluster.layout == "split",
    )


def learn_flops(job: Job, response_tokens: float) -> float:
    """Of all ranks: forward and backward over every rollout in each epoch, forward passes of the reference
    model, and one for the values of a value head.
    """
    length = job.lengths.prompt + response_tokens
    tokens, trained = job.rollouts * length, job.rollouts * response_tokens
    work = Pass(tokens, trained, length, job.config.learner.activation_checkpointing)
    reference = inference_flops(job.shape, work) if job.has_reference else 0.0
    values = inference_flops(job.shape, work) if job.has_values else 0.0
    return job.config.learner.epochs * (training_flops(job.shape, work) + reference) + values


def learn_seconds(job: Job, accelerator: Accelerator, scenario: Scenario) -> float:
    """Seconds of one update; the ranks share its FLOPs evenly."""
    reached = accelerator.flops[job.config.model.dtype] * scenario.learn_utilisation
    return learn_flops(job, scenario.response_tokens) / (job.config.learner.world_size * reached)


def generation_seconds(
    job: Job, accelerator: Accelerator, scenario: Scenario, rollouts: int, prompts: int
) -> float:
    """Seconds of sampling `rollouts` for `prompts`: each prompt is read once per group, then the rows are
    sampled token by token until the longest one ends, which is assumed to have the maximum length.
    """
    config, shape = job.config.rollout, job.shape
    reached = accelerator.flops[job.config.model.dtype] * scenario.generate_utilisation
    bandwidth = accelerator.memory_bytes_per_second * scenario.generate_utilisation
    prefill = prompts / config.workers * job.lengths.prompt * forward_flops(shape, job.lengths.prompt).layers
    rows = rollouts / config.workers
    waves = -(-rows // config.max_batch_rows)
    alive = rows / waves * scenario.response_tokens / config.max_new_tokens
    context = job.lengths.prompt + scenario.response_tokens / 2
    flops = forward_flops(shape, context, causal=False).layers + head_flops(shape)
    cache = cache_bytes(shape, 1, 1, job.element_bytes) * context * alive
    touched = touched_weights(shape, alive) * job.element_bytes
    decode = max(alive * flops / reached, (touched + cache) / bandwidth)
    return prefill / reached + waves * config.max_new_tokens * decode


def touched_weights(shape: ModelShape, rows: float) -> float:
    """Elements that a decoding step of `rows` rows reads: of E experts with k chosen a row at random, a share
    of 1 - (1 - k / E) ** rows.
    """
    parameters = total_parameters(shape)
    sparse = [layer for layer in shape.layers if layer.experts]
    if not sparse:
        return parameters.total
    unused = (1 - sparse[0].chosen / sparse[0].experts) ** rows
    return parameters.total - parameters.routed_experts * unused
