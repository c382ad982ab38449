"""A rank's checkpoint shard: named stretches of parameters in one safetensors file.

    rank-0-of-2.safetensors
        <parameter>@<start>/master     float32 [count]: master weights, from element <start> on
        <parameter>@<start>/<state>    float32 [count] (exp_avg, exp_avg_sq) or [] (step): optimizer state
        buffer/<name>                  the model's persistent buffers (router bias); rank 0 only
        rng/<rank>/<device>            uint8: torch's generators
        metadata: format, rank, world_size, zero_stage, shapes (JSON)

Parameters carry their own names, so another number of ranks, at another ZeRO stage, can read them; the ranks
of the same shape restore every bit.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from orchestrator.errors import CheckpointError
from orchestrator.training.learner.fragments import Fragment, base_optimizer, fragments, publish_masters
from orchestrator.training.learner.gather import persistent_buffers
from orchestrator.training.learner.zero import ZeroEngine

FORMAT = "1"
MASTER = "master"


@dataclass(frozen=True, slots=True)
class Shard:
    """What a rank writes: `tensors` by key, as the file holds them, and the file's metadata."""

    file: str
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]


def shard_of(zero: ZeroEngine) -> Shard:
    """This rank's shard as it is now: its tensors are views of the state that training changes."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    owned = [fragment for fragment in fragments(zero) if fragment.saved_here]
    tensors = _random_states()
    for fragment in owned:
        for key, value in _states(zero, fragment).items():
            tensors[f"{fragment.name}@{fragment.start}/{key}"] = value
    if rank == 0:
        tensors |= {f"buffer/{name}": buffer for name, buffer in persistent_buffers(zero.module, zero.layout)}
    metadata = {
        "format": FORMAT,
        "rank": str(rank),
        "world_size": str(world_size),
        "zero_stage": str(zero.stage),
        "shapes": json.dumps({fragment.name: fragment.shape for fragment in owned}),
    }
    return Shard(f"rank-{rank}-of-{world_size}.safetensors", tensors, metadata)


def write_shard(shard: Shard, directory: Path) -> Path:
    """Write a shard and sync it to disk; returns the file. Needs no interpreter lock while the disk works.
    Raises CheckpointError if the disk refuses.
    """
    path = directory / shard.file
    apart = {key: _apart(value) for key, value in shard.tensors.items()}
    try:
        save_file(apart, path, dict(shard.metadata))
        with path.open("rb") as written:
            os.fsync(written.fileno())
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    return path


def _apart(tensor: Tensor) -> Tensor:
    """The same bytes as a tensor of their own: stretches are views of one flat tensor, which safetensors
    refuses to write as several.
    """
    if tensor.ndim == 0:  # a counter of steps, which all stretches of a flat tensor share
        return tensor.detach().cpu().clone()
    content = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
    return torch.from_numpy(content).view(tensor.dtype).view(tensor.shape)


def load_shards(zero: ZeroEngine, directory: Path) -> None:
    """Read what this rank needs from all shards in `directory`. Raises CheckpointError if some are missing or
    hold another model.
    """
    with ExitStack() as stack:
        try:
            shards = _Shards(directory, stack)
            _read_fragments(zero, shards)
            for name, buffer in persistent_buffers(zero.module, zero.layout):
                buffer.copy_(shards.tensor(f"buffer/{name}"))
            _restore_random_states(shards)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{directory}: {error}") from error
    publish_masters(zero)


@dataclass(frozen=True, slots=True)
class _Stretch:
    start: int
    count: int
    prefix: str
    file: Any


class _Shards:
    """All shards of a directory, read lazily."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        paths = sorted(directory.glob("rank-*-of-*.safetensors"))
        if not paths:
            raise CheckpointError(f"{directory}: no shards of a learner")
        files = [stack.enter_context(safe_open(path, framework="pt")) for path in paths]
        wanted = int(files[0].metadata()["world_size"])
        if len(files) != wanted or any(file.metadata()["format"] != FORMAT for file in files):
            raise CheckpointError(
                f"{directory}: got {len(files)} shards, expected {wanted} of format {FORMAT}"
            )
        self._directory = directory
        self._keys = {key: file for file in files for key in file.keys()}  # noqa: SIM118 - not a dict
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._stretches: dict[str, list[_Stretch]] = {}
        for file in files:
            for name, shape in json.loads(file.metadata()["shapes"]).items():
                self.shapes[name] = tuple(shape)
        for key, file in self._keys.items():
            prefix, _, state = key.rpartition("/")
            if state == MASTER:
                name, _, start = prefix.rpartition("@")
                count = file.get_slice(key).get_shape()[0]
                self._stretches.setdefault(name, []).append(_Stretch(int(start), count, prefix, file))

    def has(self, key: str) -> bool:
        return key in self._keys

    def tensor(self, key: str) -> Tensor:
        if key not in self._keys:
            raise CheckpointError(f"{self._directory}: {key} is missing")
        return self._keys[key].get_tensor(key)

    def states(self, name: str) -> list[str]:
        """What was saved of a parameter's optimizer state; nothing before the first step."""
        prefix = self._stretches[name][0].prefix
        return [
            key.rpartition("/")[2]
            for key in self._keys
            if key.startswith(f"{prefix}/") and not key.endswith(MASTER)
        ]

    def is_scalar(self, name: str, state: str) -> bool:
        first = self._stretches[name][0]
        return not first.file.get_slice(f"{first.prefix}/{state}").get_shape()

    def scalar(self, name: str, state: str) -> Tensor:
        return self.tensor(f"{self._stretches[name][0].prefix}/{state}")

    def copy(self, fragment: Fragment, state: str, into: Tensor) -> None:
        """Fill `into` [count] with the fragment's elements, from whichever stretches hold them."""
        arrived, end = 0, fragment.start + fragment.count
        for stretch in self._stretches[fragment.name]:
            first, last = max(fragment.start, stretch.start), min(end, stretch.start + stretch.count)
            if first < last:
                saved = stretch.file.get_slice(f"{stretch.prefix}/{state}")
                part = saved[first - stretch.start : last - stretch.start]
                into[first - fragment.start : last - fragment.start] = part.to(into)
                arrived += last - first
        if arrived != fragment.count:
            raise CheckpointError(
                f"{self._directory}: {fragment.name}/{state} has {arrived} of {fragment.count} elements"
            )


def _states(zero: ZeroEngine, fragment: Fragment) -> dict[str, Tensor]:
    states = {MASTER: fragment.stretch(fragment.flat)}
    for key, value in base_optimizer(zero).state.get(fragment.flat, {}).items():
        states[key] = fragment.stretch(value) if value.shape == fragment.flat.shape else value
    return states


@torch.no_grad()
def _read_fragments(zero: ZeroEngine, shards: _Shards) -> None:
    mine = fragments(zero)
    _check_same_model(mine, shards)
    optimizer = base_optimizer(zero)
    optimizer.state.clear()
    for fragment in mine:
        shards.copy(fragment, MASTER, fragment.stretch(fragment.flat))
        for state in shards.states(fragment.name):
            held = optimizer.state[fragment.flat]
            if shards.is_scalar(fragment.name, state):
                held[state] = shards.scalar(fragment.name, state).to(fragment.flat.device)
                continue
            if state not in held:
                held[state] = torch.zeros_like(fragment.flat, requires_grad=False)
            shards.copy(fragment, state, fragment.stretch(held[state]))


def _check_same_model(mine: Iterable[Fragment], shards: _Shards) -> None:
    for fragment in mine:
        saved = shards.shapes.get(fragment.name)
        if saved != fragment.shape:
            raise CheckpointError(
                f"{fragment.name}: the checkpoint has shape {saved}, the model {fragment.shape} "
                f"({math.prod(fragment.shape)} elements)"
            )


def _random_states() -> dict[str, Tensor]:
    rank = dist.get_rank()
    states = {f"rng/{rank}/cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states[f"rng/{rank}/cuda"] = torch.cuda.get_rng_state()
    return states


def _restore_random_states(shards: _Shards) -> None:
    """A rank that the saved group did not have keeps its own."""
    cpu, cuda = (f"rng/{dist.get_rank()}/{device}" for device in ("cpu", "cuda"))
    if shards.has(cpu):
        torch.set_rng_state(shards.tensor(cpu))
    if torch.cuda.is_available() and shards.has(cuda):
        torch.cuda.set_rng_state(shards.tensor(cuda))
