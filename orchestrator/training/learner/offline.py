"""Reads complete weights from a checkpoint's shards in one process, without a process group or DeepSpeed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors import SafetensorError

from orchestrator.errors import CheckpointError
from orchestrator.training.learner.sharding.shard_files import MASTER, ShardFiles
from orchestrator.training.learner.value_head import is_value_head
from orchestrator.training.tensors.buckets import NamedTensor

BUFFER = "buffer/"


def read_weights(checkpoint: Path) -> Iterator[NamedTensor]:
    """Yield parameters (master weights, float32) and persistent buffers by their name in the model, one at a
    time. Tied parameters are yielded once, and a value head not at all.

    Raises CheckpointError if shards are missing, damaged or of another format, or if a
    parameter is incomplete.
    """
    with ExitStack() as stack:
        try:
            shards = ShardFiles(checkpoint, stack)
            for name, shape in shards.shapes.items():
                if is_value_head(name):
                    continue
                whole = torch.empty(math.prod(shape), dtype=torch.float32)
                shards.copy(name, 0, len(whole), MASTER, whole)
                yield name, whole.view(shape)
            for key in shards.keys_under(BUFFER):
                yield key.removeprefix(BUFFER), shards.tensor(key)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{checkpoint}: {error}") from error
