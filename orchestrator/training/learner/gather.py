"""Whole parameters out of a partitioned model, a bucket's worth at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import Parameter

from orchestrator.training.buckets import NamedTensor
from orchestrator.training.learner.zero import ZeroEngine


def full_tensors(zero: ZeroEngine, bytes_at_once: int) -> Iterator[NamedTensor]:
    """Parameters and persistent buffers by their name in the model: on rank 0, in the model's own dtype. Tied
    parameters come once.

    Collective: the other ranks must exhaust it too, and get nothing. A tensor is valid until the next one is
    asked for. At stage 3, parameters are gathered until `bytes_at_once` are reached (at least one), so no
    rank ever holds a second whole model.
    """
    here = dist.get_rank() == 0
    if zero.stage < 3:
        if here:
            yield from zero.module.named_parameters()
    else:
        for group in _groups(zero.module, bytes_at_once):
            with zero.gathered([parameter for _, parameter in group]):
                if here:
                    yield from group
    if here:
        yield from persistent_buffers(zero.module)


def persistent_buffers(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Buffers that belong to the weights (a router's selection bias), without those that are computed from
    the config.
    """
    kept = model.state_dict(keep_vars=True).keys()
    return [(name, buffer) for name, buffer in model.named_buffers() if name in kept]


def _groups(model: nn.Module, bytes_at_once: int) -> Iterator[list[tuple[str, Parameter]]]:
    group: list[tuple[str, Parameter]] = []
    held = 0
    for name, parameter in model.named_parameters():
        size = whole_numel(parameter) * parameter.element_size()
        if group and held + size > bytes_at_once:
            yield group
            group, held = [], 0
        group.append((name, parameter))
        held += size
    if group:
        yield group


def whole_numel(parameter: Parameter) -> int:
    """Elements of the whole parameter, also where stage 3 has emptied it."""
    return getattr(parameter, "ds_numel", parameter.numel())
