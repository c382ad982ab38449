"""Whole weights out of a checkpoint's shards: one process, no process group, no DeepSpeed.

    rank-0-of-2: lm_head.weight@0/master      [3296]  -+
    rank-1-of-2: lm_head.weight@3296/master   [3296]  -+->  ("lm_head.weight", float32 [103, 64])

`shards.py` says what is in a file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from orchestrator.errors import CheckpointError
from orchestrator.training.buckets import NamedTensor
from orchestrator.training.learner.shards import FORMAT, MASTER

BUFFER = "buffer/"


@dataclass(frozen=True, slots=True, order=True)
class _Stretch:
    start: int
    count: int
    file: int
    key: str


def read_weights(checkpoint: Path) -> Iterator[NamedTensor]:
    """Parameters (master weights, float32) and persistent buffers by their name in the model, one at a time;
    tied parameters come once.

    Raises CheckpointError if shards are missing, damaged or of another format, or if a parameter is not
    complete.
    """
    with ExitStack() as stack:
        try:
            files = _open_all(checkpoint, stack)
            for name, shape, stretches in _parameters(files):
                yield name, _whole(checkpoint, name, shape, stretches, files)
            for file in files:
                for key in file.keys():  # noqa: SIM118 - not a dict
                    if key.startswith(BUFFER):
                        yield key.removeprefix(BUFFER), file.get_tensor(key)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{checkpoint}: {error}") from error


def _open_all(checkpoint: Path, stack: ExitStack) -> list[Any]:
    paths = sorted(checkpoint.glob("rank-*-of-*.safetensors"))
    if not paths:
        raise CheckpointError(f"{checkpoint}: no shards of a learner")
    files = [stack.enter_context(safe_open(path, framework="pt")) for path in paths]
    for path, file in zip(paths, files, strict=True):
        found = file.metadata() or {}
        if found.get("format") != FORMAT:
            raise CheckpointError(f"{path}: got format {found.get('format')}, expected {FORMAT}")
        if found.get("world_size") != str(len(files)):
            raise CheckpointError(
                f"{checkpoint}: got {len(files)} shards, expected {found.get('world_size')}"
            )
    return files


def _parameters(files: list[Any]) -> Iterator[tuple[str, tuple[int, ...], list[_Stretch]]]:
    """Name, shape and stretches of every parameter."""
    stretches: dict[str, list[_Stretch]] = {}
    for index, file in enumerate(files):
        for key in file.keys():  # noqa: SIM118 - not a dict
            prefix, _, state = key.rpartition("/")
            if state == MASTER:
                name, _, start = prefix.rpartition("@")
                count = file.get_slice(key).get_shape()[0]
                stretches.setdefault(name, []).append(_Stretch(int(start), count, index, key))
    for file in files:
        for name, shape in json.loads(file.metadata()["shapes"]).items():
            if name in stretches:
                yield name, tuple(shape), sorted(stretches.pop(name))


def _whole(
    checkpoint: Path, name: str, shape: tuple[int, ...], stretches: list[_Stretch], files: list[Any]
) -> Tensor:
    whole = torch.empty(math.prod(shape), dtype=torch.float32)
    arrived = 0
    for stretch in stretches:
        end = stretch.start + stretch.count
        if stretch.start > arrived or end > len(whole):
            break
        whole[stretch.start : end] = files[stretch.file].get_tensor(stretch.key)
        arrived = max(arrived, end)
    if arrived != len(whole):
        raise CheckpointError(f"{checkpoint}: {name} has {arrived} of {len(whole)} elements")
    return whole.view(shape)
