"""Gathers whole tensors, as in transformers, from a partitioned model, one bucket at a time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import chain

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter
from transformers import PreTrainedModel

from orchestrator.training.learner.sharding.expert_parallel import ExpertSharding, is_expert
from orchestrator.training.learner.sharding.zero import ZeroEngine
from orchestrator.training.learner.value_head import is_value_head
from orchestrator.training.tensors.buckets import NamedTensor, TensorPart
from orchestrator.training.tensors.write_plan import WritePlan

_NamedParameter = tuple[str, Parameter]


class FullTensors:
    """Gathers the tensors of a model that is distributed over several ranks. The layout is determined only
    once, because it does not change.
    """

    def __init__(self, zero: ZeroEngine, bytes_at_once: int) -> None:
        self._zero, self._bytes_at_once = zero, bytes_at_once
        self._buffers = persistent_buffers(zero.module, zero.sharding)
        self._groups = [
            _Group.of(zero.sharding, group, bytes_at_once) for group in _groups(zero, bytes_at_once)
        ]

    def stream(self) -> Iterator[NamedTensor | TensorPart]:
        """On rank 0, yield parameters and persistent buffers by their names in transformers, in the model's
        dtype. Tied parameters are yielded once; experts that are distributed over ranks are yielded as
        ranges of their tensor.

        Collective: the other ranks must exhaust the iterator too, but it yields nothing there. Each item
        is valid until the next one is requested. At stage 3, parameters are gathered until `bytes_at_once`
        are reached (at least one tensor). Of other ranks' experts, rank 0 holds at most `bytes_at_once`
        (at least one element).
        """
        zero, room = self._zero, self._room()
        for group in self._groups:
            with zero.gathered(group.parameters) if zero.stage == 3 else nullcontext():
                if dist.get_rank() == 0:
                    yield from group.here
                for message in group.messages:
                    yield from _exchanged(zero.sharding, message, room)
        if dist.get_rank() == 0:
            yield from self._buffers

    def _room(self) -> Tensor:
        """Memory for the largest message, allocated once per version, because the previous
        items may still be in use.
        """
        messages = [message for group in self._groups for message in group.messages]
        if not messages:
            return torch.empty(0)
        like = messages[0][0].parameter
        largest = max(sum(cut.count for cut in message if cut.rank) for message in messages)
        return torch.empty(largest, dtype=like.dtype, device=like.device)

    def plan(self, together: bool) -> WritePlan | None:
        """The same tensors in buckets of `bytes_at_once`, without messages between ranks. Either rank 0
        writes everything, or (`together`) each rank writes its experts and a share of the tensors that all
        ranks have. None if that is impossible: at stage 3, where tensors must be gathered first, and if rank
        0 would need the experts of others.
        """
        sharding = self._zero.sharding
        if self._zero.stage == 3 or (sharding.group is not None and not together):
            return None
        rank, loads = dist.get_rank(), [0] * (dist.get_world_size() if together else 1)
        for cut in chain.from_iterable(group.cuts for group in self._groups):
            loads[cut.rank] += cut.count * cut.parameter.element_size()
        whole = [*chain.from_iterable(group.here for group in self._groups), *self._buffers]
        writers = _shared_out(whole, loads)

        def parts() -> Iterator[TensorPart]:
            for group in self._groups:
                yield from (_whole_part(each, writers[each[0]] == rank) for each in group.here)
                yield from (_expert_part(sharding, cut) for cut in group.cuts)
            yield from (_whole_part(each, writers[each[0]] == rank) for each in self._buffers)

        return WritePlan(parts(), self._bytes_at_once)


def _shared_out(tensors: Sequence[NamedTensor], loads: list[int]) -> dict[str, int]:
    """Choose the rank that writes each tensor, so that all ranks write about the same number of bytes.
    `loads` are the bytes that they write already. The result is the same on every rank.
    """
    writers: dict[str, int] = {}
    for name, tensor in sorted(tensors, key=lambda each: -each[1].nbytes):
        writers[name] = loads.index(min(loads))
        loads[writers[name]] += tensor.nbytes
    return writers


def _whole_part(named: NamedTensor, mine: bool) -> TensorPart:
    name, tensor = named
    data = tensor if mine else torch.empty_like(tensor, device="meta")
    return TensorPart(name, tuple(tensor.shape), 0, data)


def _expert_part(sharding: ExpertSharding, cut: _ExpertRange) -> TensorPart:
    mine = dist.get_process_group_ranks(sharding.group)[0] == 0 and cut.rank == dist.get_rank(sharding.group)
    if mine:
        return TensorPart(cut.name, cut.shape, cut.start, cut.data, base=cut.parameter)
    data = torch.empty(cut.count, dtype=cut.parameter.dtype, device="meta")
    return TensorPart(cut.name, cut.shape, cut.start, data)


def persistent_buffers(model: PreTrainedModel, sharding: ExpertSharding) -> list[NamedTensor]:
    """Buffers that belong to the weights (a router's selection bias), by their names in transformers. Buffers
    that are computed from the config are left out.
    """
    kept = model.state_dict(keep_vars=True).keys()
    return [(sharding.name(name), buffer) for name, buffer in model.named_buffers() if name in kept]


@dataclass(frozen=True, slots=True)
class _Group:
    """Parameters that are gathered together: those that every rank holds completely, and the messages with
    ranges of those that are distributed over ranks.
    """

    parameters: list[Parameter]
    here: list[NamedTensor]
    cuts: list[_ExpertRange]
    """The experts of all ranks, in order."""
    messages: list[list[_ExpertRange]]

    @classmethod
    def of(cls, sharding: ExpertSharding, group: Sequence[_NamedParameter], bytes_at_once: int) -> _Group:
        here: list[NamedTensor] = [
            (sharding.name(name), parameter) for name, parameter in group if not is_expert(parameter)
        ]
        experts = [(name, parameter) for name, parameter in group if is_expert(parameter)]
        cuts = list(_cuts(sharding, experts)) if experts else []
        messages: list[list[_ExpertRange]] = []
        if (
            cuts and dist.get_process_group_ranks(sharding.group)[0] == 0
        ):  # other groups have the same experts
            messages = list(_messages(cuts, bytes_at_once))
        return cls([parameter for _, parameter in group], here, cuts, messages)


def _groups(zero: ZeroEngine, bytes_at_once: int) -> Iterator[list[_NamedParameter]]:
    """Group parameters into about `bytes_at_once`. Those that form one tensor of
    transformers stay together.
    """
    units: dict[str, list[_NamedParameter]] = {}
    for name, parameter in zero.module.named_parameters():
        if is_value_head(name):
            continue  # rollout workers and exported models have none
        units.setdefault(zero.sharding.target(name), []).append((name, parameter))
    group: list[_NamedParameter] = []
    held = 0
    for unit in units.values():
        size = sum(math.prod(whole_shape(parameter)) * parameter.element_size() for _, parameter in unit)
        if group and held + size > bytes_at_once:
            yield group
            group, held = [], 0
        group.extend(unit)
        held += size
    if group:
        yield group


@dataclass(frozen=True, slots=True)
class _ExpertRange:
    """Elements [local, local + count) of `parameter` on `rank` of the expert group. They begin at element
    `start` of the tensor of transformers.
    """

    rank: int
    parameter: Parameter
    local: int
    count: int
    name: str
    shape: tuple[int, ...]
    start: int

    @property
    def data(self) -> Tensor:
        """The elements, on the rank that has them."""
        return self.parameter.detach().view(-1)[self.local : self.local + self.count]


def _cuts(sharding: ExpertSharding, experts: Sequence[_NamedParameter]) -> Iterator[_ExpertRange]:
    """The experts of all ranks in the order of transformers' tensors. The result
    is the same on every rank.
    """
    size = dist.get_world_size(sharding.group)
    tensors: dict[str, list[_ExpertRange]] = {}
    for name, parameter in experts:
        for rank in range(size):
            for part in sharding.ranges(name, whole_shape(parameter), rank):
                cut = _ExpertRange(rank, parameter, part.local, part.count, part.name, part.shape, part.start)
                tensors.setdefault(part.name, []).append(cut)
    for cuts in tensors.values():
        yield from sorted(cuts, key=lambda cut: cut.start)


def _messages(cuts: Iterable[_ExpertRange], bytes_at_once: int) -> Iterator[list[_ExpertRange]]:
    """Group ranges into messages that carry at most `bytes_at_once` from other ranks."""
    message: list[_ExpertRange] = []
    held = 0
    for cut in cuts:
        if cut.rank == 0:
            message.append(cut)
            continue
        size, taken = cut.parameter.element_size(), 0
        while taken < cut.count:
            room = (bytes_at_once - held) // size
            if room == 0:
                yield message
                message, held = [], 0
                continue
            count = min(cut.count - taken, room)
            message.append(replace(cut, local=cut.local + taken, start=cut.start + taken, count=count))
            taken, held = taken + count, held + count * size
    if message:
        yield message


def _exchanged(
    sharding: ExpertSharding, message: Sequence[_ExpertRange], room: Tensor
) -> Iterator[TensorPart]:
    """Send one message per rank to rank 0, which yields the ranges in order. Their data is in `room`."""
    me = dist.get_rank(sharding.group)
    ranks = dist.get_process_group_ranks(sharding.group)
    counts = {rank: [cut.count for cut in message if cut.rank == rank] for rank in range(1, len(ranks))}
    if me:
        mine = [cut.data for cut in message if cut.rank == me]
        if mine:
            dist.send(torch.cat(mine, out=room[: sum(counts[me])]), dst=0, group=sharding.group)
        return
    arrived: dict[int, Iterator[Tensor]] = {}
    start = 0
    for rank, lengths in counts.items():
        received = room[start : start + sum(lengths)]
        if lengths:
            dist.recv(received, src=ranks[rank], group=sharding.group)
        arrived[rank] = iter(received.split(lengths))
        start += sum(lengths)
    for cut in message:
        data = next(arrived[cut.rank]) if cut.rank else cut.data
        yield TensorPart(cut.name, cut.shape, cut.start, data)


def whole_shape(parameter: Parameter) -> tuple[int, ...]:
    """Shape of the whole parameter, even if stage 3 has emptied it on this rank."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))
