"""Locates the float32 master weights and the optimizer state of each parameter on this
rank, at every ZeRO stage.

ZeRO keeps flat tensors without names. A `StateRange` names the parameter, and the position in it, of
a range of a flat tensor. A checkpoint is therefore a set of named ranges that any number of ranks
can read at any stage:

    stage 0       every rank has all of each parameter
    stages 1, 2   the flat tensor of all parameters is divided among the ranks; a parameter may span two ranks
    stage 3       each parameter is divided among the ranks, with padding at the end

Names, shapes and positions are those of transformers' tensors, also if experts are distributed over ranks. A
range is then split where the two orders of elements differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from orchestrator.training.learner.sharding.expert_parallel import replica
from orchestrator.training.learner.sharding.zero import ZeroEngine


@dataclass(frozen=True, slots=True)
class StateRange:
    """Elements [start, start + count) of parameter `name`, in row-major order: elements [offset, offset +
    count) of `flat`.
    """

    name: str
    shape: tuple[int, ...]
    """Shape of the whole parameter."""
    start: int
    count: int
    flat: Tensor
    """The optimizer's parameter: master weights, float32."""
    offset: int
    saved_here: bool = True
    """False if another rank has the same elements and writes them (stage 0)."""

    def view_of(self, like_flat: Tensor) -> Tensor:
        """A view [count] of the range's elements in `flat`, or in an optimizer state of the same shape."""
        return like_flat.detach().view(-1).narrow(0, self.offset, self.count)


def state_ranges(zero: ZeroEngine) -> list[StateRange]:
    """This rank's ranges, in the order of the model's parameters."""
    match zero.stage:
        case 0:
            held = _ranges_of_parameters(zero)
        case 3:
            held = _ranges_of_weights(zero)
        case _:
            held = _ranges_of_states(zero)
    return [part for state_range in held for part in _translated(zero, state_range)]


def _translated(zero: ZeroEngine, state_range: StateRange) -> Iterator[StateRange]:
    """The same range expressed in the names of transformers."""
    end = state_range.start + state_range.count
    for local in zero.sharding.ranges(state_range.name, state_range.shape):
        first, last = max(state_range.start, local.local), min(end, local.local + local.count)
        if first < last:
            yield replace(
                state_range,
                name=local.name,
                shape=local.shape,
                start=local.start + first - local.local,
                count=last - first,
                offset=state_range.offset + first - state_range.start,
            )


def base_optimizer(zero: ZeroEngine) -> Optimizer:
    """The torch optimizer, whose state is keyed by the ranges' `flat`."""
    return zero.engine.basic_optimizer


@torch.no_grad()
def publish_masters(zero: ZeroEngine) -> None:
    """Copy the master weights to the model's parameters on all ranks, after the
    master weights were changed.
    """
    optimizer: Any = zero.engine.optimizer
    if zero.stage in (1, 2):
        optimizer.update_lp_params()
    elif zero.stage == 3:
        optimizer._partition_all_parameters()
        for index in range(len(optimizer.fp16_groups)):
            optimizer._reassign_or_swap_out_partitioned_parameters(index)
        if optimizer.persistent_parameters:
            optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)


def _ranges_of_parameters(zero: ZeroEngine) -> Iterator[StateRange]:
    """Stage 0: every rank has all elements; ranks with the same elements take turns to write them."""
    for index, (name, parameter) in enumerate(zero.module.named_parameters()):
        if not parameter.requires_grad:
            continue
        place, count = replica(parameter)
        shape, saved_here = tuple(parameter.shape), index % count == place
        yield StateRange(name, shape, 0, parameter.numel(), parameter, 0, saved_here)


def _ranges_of_states(zero: ZeroEngine) -> Iterator[StateRange]:
    """Stages 1 and 2: DeepSpeed records for each parameter the range that is on this rank, if any."""
    optimizer: Any = zero.engine.optimizer
    flats = getattr(optimizer, "single_partition_of_fp32_groups", None)
    flats = optimizer.fp32_groups_flat_partition if flats is None else flats
    for name, parameter in zero.module.named_parameters():
        mapping: Any = getattr(parameter, "_hp_mapping", None)
        if mapping is not None:
            start, place = mapping.lp_fragment_address.start, mapping.hp_fragment_address
            flat = flats[mapping.param_group_index]
            yield StateRange(name, tuple(parameter.shape), start, place.numel, flat, place.start)


def _ranges_of_weights(zero: ZeroEngine) -> Iterator[StateRange]:
    """Stage 3: DeepSpeed records for each parameter its group and its position in the group's flat tensor."""
    optimizer: Any = zero.engine.optimizer
    for name, parameter in zero.module.named_parameters():
        if not parameter.requires_grad:
            continue
        partitioned: Any = parameter
        group, offset, padded = optimizer.grad_position[optimizer.get_param_id(parameter)]
        start = dist.get_rank(partitioned.ds_process_group) * padded
        count = max(0, min(padded, partitioned.ds_numel - start))
        flat = optimizer.fp32_partitioned_groups_flat[group]
        yield StateRange(name, tuple(partitioned.ds_shape), start, count, flat, offset)
