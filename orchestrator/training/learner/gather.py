"""Whole tensors of transformers out of a partitioned model, a bucket's worth at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter
from transformers import PreTrainedModel

from orchestrator.training.buckets import NamedTensor
from orchestrator.training.learner.expert_parallel import Layout, is_expert
from orchestrator.training.learner.zero import ZeroEngine

_NamedParameter = tuple[str, Parameter]


def full_tensors(zero: ZeroEngine, bytes_at_once: int) -> Iterator[NamedTensor]:
    """Parameters and persistent buffers by the names of transformers: on rank 0, in the model's own dtype.
    Tied parameters come once.

    Collective: the other ranks must exhaust it too, and get nothing. A tensor is valid until the next one is
    asked for. Parameters that lie on several ranks are gathered until `bytes_at_once` are reached (at least
    one tensor), so no rank ever holds a second whole model.
    """
    for group in _groups(zero, bytes_at_once):
        if zero.stage == 3:
            with zero.gathered([parameter for _, parameter in group]):
                yield from _assembled(zero, group)
        else:
            yield from _assembled(zero, group)
    if dist.get_rank() == 0:
        yield from persistent_buffers(zero.module, zero.layout)


def persistent_buffers(model: PreTrainedModel, layout: Layout) -> list[NamedTensor]:
    """Buffers that belong to the weights (a router's selection bias), without those that are computed from
    the config; by the names of transformers.
    """
    kept = model.state_dict(keep_vars=True).keys()
    return [(layout.name(name), buffer) for name, buffer in model.named_buffers() if name in kept]


def _groups(zero: ZeroEngine, bytes_at_once: int) -> Iterator[list[_NamedParameter]]:
    """Parameters that are gathered together. The two halves of a tensor of transformers stay together."""
    group: list[_NamedParameter] = []
    held = 0
    for unit in _units(zero):
        size = sum(whole_numel(parameter) * parameter.element_size() for _, parameter in unit)
        if group and held + size > bytes_at_once:
            yield group
            group, held = [], 0
        group.extend(unit)
        held += size
    if group:
        yield group


def _units(zero: ZeroEngine) -> Iterator[list[_NamedParameter]]:
    """The parameters that make up each tensor of transformers."""
    units: dict[str, list[_NamedParameter]] = {}
    for name, parameter in zero.module.named_parameters():
        units.setdefault(zero.layout.target(name), []).append((name, parameter))
    yield from units.values()


def _assembled(zero: ZeroEngine, group: Sequence[_NamedParameter]) -> Iterator[NamedTensor]:
    """The group's tensors on rank 0."""
    here = dist.get_rank() == 0
    whole: dict[str, Tensor] = {}
    for name, parameter in group:
        if not is_expert(parameter):
            if here:
                yield zero.layout.name(name), parameter
            continue
        for rank, part in enumerate(_parts_on_rank_0(zero, parameter)):
            for stretch in zero.layout.stretches(name, tuple(parameter.shape), rank):
                if stretch.name not in whole:
                    whole[stretch.name] = torch.empty(stretch.shape, dtype=part.dtype, device=part.device)
                target = whole[stretch.name].view(-1)[stretch.start : stretch.start + stretch.count]
                target.copy_(part.view(-1)[stretch.local : stretch.local + stretch.count])
    yield from whole.items()


def _parts_on_rank_0(zero: ZeroEngine, parameter: Parameter) -> list[Tensor]:
    """Each rank's experts of the parameter, in the order of the ranks of its expert group; only on rank 0."""
    group = zero.layout.group
    if dist.get_process_group_ranks(group)[0] != 0:
        return []  # other ranks have the same experts
    here = dist.get_rank() == 0
    parts = [torch.empty_like(parameter.data) for _ in range(dist.get_world_size(group))] if here else None
    dist.gather(parameter.data.contiguous(), parts, dst=0, group=group)
    return parts or []


def whole_numel(parameter: Parameter) -> int:
    """Elements of the whole parameter, also where stage 3 has emptied it."""
    return getattr(parameter, "ds_numel", parameter.numel())
