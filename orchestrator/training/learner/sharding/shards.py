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
from orchestrator.training.learner.sharding.fragments import (
    StateRange,
    base_optimizer,
    fragments,
    publish_masters,
)
from orchestrator.training.learner.sharding.gather import persistent_buffers
from orchestrator.training.learner.sharding.shard_files import FORMAT, MASTER, ShardFiles
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
    owned = [fragment for fragment in fragments(zero) if fragment.saved_here]
    tensors = _random_states()
    for fragment in owned:
        for key, value in _states(zero, fragment).items():
            tensors[f"{fragment.name}@{fragment.start}/{key}"] = value
    if rank == 0:
        tensors |= {
            f"buffer/{name}": buffer for name, buffer in persistent_buffers(zero.module, zero.sharding)
        }
    metadata = {
        "format": FORMAT,
        "rank": str(rank),
        "world_size": str(world_size),
        "zero_stage": str(zero.stage),
        "shapes": json.dumps({fragment.name: fragment.shape for fragment in owned}),
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
            _read_fragments(zero, shards)
            for name, buffer in persistent_buffers(zero.module, zero.sharding):
                buffer.copy_(shards.tensor(f"buffer/{name}"))
            _restore_random_states(shards)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{directory}: {error}") from error
    publish_masters(zero)


def _states(zero: ZeroEngine, fragment: StateRange) -> dict[str, Tensor]:
    states = {MASTER: fragment.view_of(fragment.flat)}
    for key, value in base_optimizer(zero).state.get(fragment.flat, {}).items():
        states[key] = fragment.view_of(value) if value.shape == fragment.flat.shape else value
    return states


@torch.no_grad()
def _read_fragments(zero: ZeroEngine, shards: ShardFiles) -> None:
    mine = fragments(zero)
    _check_same_model(mine, shards)
    optimizer = base_optimizer(zero)
    optimizer.state.clear()
    for fragment in mine:
        _copy(shards, fragment, MASTER, fragment.flat)
        for state in shards.states(fragment.name):
            held = optimizer.state[fragment.flat]
            if shards.is_scalar(fragment.name, state):
                held[state] = shards.scalar(fragment.name, state).to(fragment.flat.device)
                continue
            if state not in held:
                held[state] = torch.zeros_like(fragment.flat, requires_grad=False)
            _copy(shards, fragment, state, held[state])


def _copy(shards: ShardFiles, fragment: StateRange, state: str, flat: Tensor) -> None:
    shards.copy(fragment.name, fragment.start, fragment.count, state, fragment.view_of(flat))


def _check_same_model(mine: Iterable[StateRange], shards: ShardFiles) -> None:
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


def _restore_random_states(shards: ShardFiles) -> None:
    """Restore the states of the random generators. A rank that the saved group did not have keeps its own."""
    cpu, cuda = (f"rng/{dist.get_rank()}/{device}" for device in ("cpu", "cuda"))
    if shards.has(cpu):
        torch.set_rng_state(shards.tensor(cpu))
    if torch.cuda.is_available() and shards.has(cuda):
        torch.cuda.set_rng_state(shards.tensor(cuda))
