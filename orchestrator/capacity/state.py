"""Bytes that a learner rank keeps from step to step: weights, gradients, optimizer; and its buffers.

ZeRO (Rajbhandari et al. 2020, https://arxiv.org/abs/1910.02054, figure 1) as DeepSpeed 0.19 carries it out
with the learner's settings; where it keeps more than the paper says, that is counted. For n elements on N
ranks, b bytes an element of the model:

| stage  | weights            | gradients                              | optimizer       |
| ------ | ------------------ | -------------------------------------- | --------------- |
| 0      | 4 n                | 4 n                                    | 8 n (moments)   |
| 1 fp32 | 4 n                | 4 x whole tensors of the partition     | 12 n / N        |
| 1 bf16 | 2 n                | 2 n, and 4 n to accumulate in float32  | 12 n / N        |
| 2 fp32 | 4 n                | 4 x whole tensors of the partition     | 12 n / N        |
| 2 bf16 | 2 n                | 4 n / N                                | 12 n / N        |
| 3      | b n / N, and small | 4 n / N                                | 12 n / N        |

Expert parallelism divides the experts by its size E; their ZeRO partitions are over the N / E ranks that hold
the same ones, so a partitioned expert costs its N-th part whatever E is, and a whole one its E-th.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate

from orchestrator.capacity.parameters import tensors
from orchestrator.capacity.shape import ModelShape

ROUTED = "routed_experts"
FP32 = 4
MOMENTS = 2 * FP32
"""AdamW's averages of the gradient and of its square."""
MASTER = FP32

LARGEST_BUCKET = 200_000_000
SMALLEST_BUCKET = 1 << 16
LARGEST_PERSISTENT = 100_000
MOST_LIVE = 1_000_000_000
"""DeepSpeed's `stage3_max_live_parameters`: as many gathered elements are kept for their next use."""


@dataclass(frozen=True, slots=True)
class Sharding:
    """How the learner's state is distributed over its ranks."""

    world_size: int
    zero_stage: int
    expert_parallel_size: int
    element_bytes: int
    """Bytes per weight: 4 (float32) or 2 (bfloat16)."""
    offload_optimizer: bool
    """Master weights, moments and the step of AdamW are in host memory (ZeRO-Offload)."""
    accelerator: bool
    """On a GPU reductions overlap with the backward pass, in two buckets."""


@dataclass(frozen=True, slots=True)
class State:
    """Bytes of one rank: of its accelerator, and of its host where the optimizer is offloaded."""

    weights: int
    gradients: int
    """At the end of the last backward pass, when they are most."""
    optimizer: int
    host: int
    reduce_buckets: int
    """Buckets that hold gradients while they are reduced."""
    gathered: int
    """Weights of other ranks that are whole for a moment (stage 3)."""
    step: int
    """Gradients of the partition as one flat tensor, while the optimizer steps."""


def learner_state(shape: ModelShape, sharding: Sharding) -> State:
    """What the rank holds that holds most: the first, if partitions differ."""
    sizes = _rank_sizes(shape, sharding)
    elements, largest = sum(sizes), max(sizes)
    shares = sharding.world_size if sharding.zero_stage else 1
    partition = _partition(shape, sharding)
    moments = (MASTER + MOMENTS) * partition + FP32 if sharding.zero_stage else MOMENTS * elements
    if sharding.zero_stage == 0:
        moments += FP32 * len(sizes)  # each tensor counts its own steps
    gradients = _gradients(sizes, partition, sharding)
    offloaded = sharding.offload_optimizer and sharding.zero_stage > 0
    threshold = min(LARGEST_PERSISTENT, sum(size for _, size in tensors(shape)) // 100)
    whole = sum(size for size in sizes if size <= threshold) if shares > 1 else 0
    bucket = max(SMALLEST_BUCKET, min(sum(size for _, size in tensors(shape)), LARGEST_BUCKET))
    overlapped = sharding.accelerator and sharding.zero_stage >= 2
    gathers = sharding.zero_stage == 3 and shares > 1
    return State(
        weights=sharding.element_bytes * (partition + whole if sharding.zero_stage == 3 else elements),
        gradients=0 if offloaded and sharding.zero_stage == 2 else gradients,
        optimizer=0 if offloaded else moments,
        host=moments + FP32 * partition if offloaded else 0,
        reduce_buckets=sharding.element_bytes * bucket * (2 if overlapped else 1)
        if sharding.zero_stage
        else 0,
        gathered=sharding.element_bytes * min(elements, MOST_LIVE + largest) if gathers else 0,
        step=FP32 * partition if sharding.zero_stage in (1, 2) and not offloaded else 0,
    )


def _rank_sizes(shape: ModelShape, sharding: Sharding) -> list[int]:
    """Elements of each tensor on a rank before ZeRO: experts are spread."""
    size = sharding.expert_parallel_size
    return [elements // size if name == ROUTED else elements for name, elements in tensors(shape)]


def _partition(shape: ModelShape, sharding: Sharding) -> int:
    """Elements of a rank's share: DeepSpeed rounds the whole (stages 1 and 2) or each tensor (3) up."""
    ranks, size = sharding.world_size, sharding.expert_parallel_size
    if sharding.zero_stage == 0:
        return sum(_rank_sizes(shape, sharding))
    if sharding.zero_stage == 3:
        return sum(math.ceil(elements / ranks) for _, elements in tensors(shape))
    experts = sum(elements for name, elements in tensors(shape) if name == ROUTED)
    others = sum(elements for name, elements in tensors(shape) if name != ROUTED)
    if size == 1:
        return _aligned(experts + others, ranks)
    return _aligned(others, ranks) + _aligned(experts // size, ranks // size)


def _aligned(elements: int, ranks: int) -> int:
    return math.ceil(elements / (2 * ranks)) * 2


def _gradients(sizes: list[int], partition: int, sharding: Sharding) -> int:
    stage, half = sharding.zero_stage, sharding.element_bytes < FP32
    if stage == 0:
        return FP32 * sum(sizes)
    if stage == 3 or (stage == 2 and half):
        return FP32 * partition
    if half:
        return (sharding.element_bytes + FP32) * sum(sizes)
    # A partition's gradients are views of whole tensors: those that its border crosses are kept whole.
    starts = accumulate(sizes, initial=0)
    return FP32 * sum(size for start, size in zip(starts, sizes, strict=False) if start < partition)
