"""A rank's checkpoint shard: named ranges of parameters in one safetensors file.

    rank-0-of-2.safetensors
        <parameter>@<start>/master     float32 [count]: master weights, from element <start> on
        <parameter>@<start>/<state>    float32 [count] (exp_avg, exp_avg_sq) or [] (step): optimizer state
        buffer/<name>                  the model's persistent buffers (router bias); rank 0 only
        reference/<name>               the reference model, where it changes during a run; rank 0 only
        rng/<rank>/<device>            uint8: torch's generators
        metadata: format, rank, world_size, zero_stage, shapes (JSON)

`shard_files.py` reads them. Ranges carry the names of their parameters, so that another number of
ranks at another ZeRO stage can read them. With the same number of ranks and the same stage, the state
is restored bit by bit.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from orchestrator.errors import CheckpointError
from orchestrator.training.learner.sharding.gather import persistent_buffers
from orchestrator.training.learner.sharding.shard_files import FORMAT, MASTER, ShardFiles
from orchestrator.training.learner.sharding.state_ranges import (
    StateRange,
    base_optimizer,
    publish_masters,
    state_ranges,
)
from orchestrator.training.learner.sharding.zero import ZeroEngine


@dataclass(frozen=True, slots=True)
class Shard:
    """The content of a rank's shard: `tensors` by their key in the file, and the file's metadata."""

    file: str
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]


def shard_of(zero: ZeroEngine) -> Shard:
    """This rank's shard. Its tensors are views of the live state, which training changes."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    owned = [state_range for state_range in state_ranges(zero) if state_range.saved_here]
    tensors = _random_states()
    for state_range in owned:
        for key, value in _states(zero, state_range).items():
            tensors[f"{state_range.name}@{state_range.start}/{key}"] = value
    if rank == 0:
        tensors |= {
            f"buffer/{name}": buffer for name, buffer in persistent_buffers(zero.module, zero.sharding)
        }
    metadata = {
        "format": FORMAT,
        "rank": str(rank),
        "world_size": str(world_size),
        "zero_stage": str(zero.stage),
        "shapes": json.dumps({state_range.name: state_range.shape for state_range in owned}),
    }
    return Shard(f"rank-{rank}-of-{world_size}.safetensors", tensors, metadata)


def write_shard(shard: Shard, directory: Path) -> Path:
    """Write a shard and sync it to disk. Returns the path of the file. Releases the interpreter lock during
    disk I/O. Raises CheckpointError if writing fails.
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
    """A tensor with its own storage object for the same bytes, because safetensors refuses to write
    several views of one tensor.
    """
    if tensor.ndim == 0:  # a step counter, which all ranges of a flat tensor share
        return tensor.detach().cpu().clone()
    content = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
    return torch.from_numpy(content).view(tensor.dtype).view(tensor.shape)


def load_shards(zero: ZeroEngine, directory: Path) -> None:
    """Restore this rank's state from the shards in `directory`. Raises CheckpointError if some are missing or
    belong to another model.
    """
    with ExitStack() as stack:
        try:
            shards = ShardFiles(directory, stack)
            _read_ranges(zero, shards)
            for name, buffer in persistent_buffers(zero.module, zero.sharding):
                buffer.copy_(shards.tensor(f"buffer/{name}"))
            _restore_random_states(shards)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{directory}: {error}") from error
    publish_masters(zero)


def _states(zero: ZeroEngine, state_range: StateRange) -> dict[str, Tensor]:
    states = {MASTER: state_range.view_of(state_range.flat)}
    for key, value in base_optimizer(zero).state.get(state_range.flat, {}).items():
        states[key] = state_range.view_of(value) if value.shape == state_range.flat.shape else value
    return states


@torch.no_grad()
def _read_ranges(zero: ZeroEngine, shards: ShardFiles) -> None:
    mine = state_ranges(zero)
    _check_same_model(mine, shards)
    optimizer = base_optimizer(zero)
    optimizer.state.clear()
    for state_range in mine:
        _copy(shards, state_range, MASTER, state_range.flat)
        for state in shards.states(state_range.name):
            held = optimizer.state[state_range.flat]
            if shards.is_scalar(state_range.name, state):
                held[state] = shards.scalar(state_range.name, state).to(state_range.flat.device)
                continue
            if state not in held:
                held[state] = torch.zeros_like(state_range.flat, requires_grad=False)
            _copy(shards, state_range, state, held[state])


def _copy(shards: ShardFiles, state_range: StateRange, state: str, flat: Tensor) -> None:
    shards.copy(state_range.name, state_range.start, state_range.count, state, state_range.view_of(flat))


def _check_same_model(mine: Iterable[StateRange], shards: ShardFiles) -> None:
    for state_range in mine:
        saved = shards.shapes.get(state_range.name)
        if saved != state_range.shape:
            raise CheckpointError(
                f"{state_range.name}: the checkpoint has shape {saved}, the model {state_range.shape} "
                f"({math.prod(state_range.shape)} elements)"
            )


def _random_states() -> dict[str, Tensor]:
    rank = dist.get_rank()
    states = {f"rng/{rank}/cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states[f"rng/{rank}/cuda"] = torch.cuda.get_rng_state()
    return states


def _restore_random_states(shards: ShardFiles) -> None:
    """Restore the states of the random generators. A rank that the saved group did not have keeps its own."""
    cpu, cuda = (f"rng/{dist.get_rank()}/{device}" for device in ("cpu", "cuda"))
    if shards.has(cpu):
        torch.set_rng_state(shards.tensor(cpu))
    if torch.cuda.is_available() and shards.has(cuda):
        torch.cuda.set_rng_state(shards.tensor(cuda))
