"""Opens and checks all shards of a checkpoint together, and reads ranges of them on demand.

    rank-0-of-2: lm_head.weight@0/master      [3296]  -+
    rank-1-of-2: lm_head.weight@3296/master   [3296]  -+->  copy("lm_head.weight", 0, 6592, "master", into)

`shards.py` describes the content of a file.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from orchestrator.errors import CheckpointError

FORMAT = "1"
MASTER = "master"


@dataclass(frozen=True, slots=True)
class _SavedRange:
    """Elements [start, start + count) of a parameter, in one file under keys that begin with `prefix`."""

    start: int
    count: int
    prefix: str
    file: Any


class ShardFiles:
    """All shards of `directory`, open until `stack` is closed.

    Raises CheckpointError if some are missing, are not shards, or have another format. All methods may raise
    OSError and SafetensorError for a damaged file.
    """

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self._directory = directory
        self._files: dict[str, Any] = {}
        self._ranges: dict[str, list[_SavedRange]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        """Shapes of the whole parameters, by name."""
        for file, shapes in _opened(directory, stack):
            self.shapes |= shapes
            for key in file.keys():  # noqa: SIM118 - not a dict
                self._files[key] = file
                prefix, _, state = key.rpartition("/")
                if state == MASTER:
                    name, _, start = prefix.rpartition("@")
                    count = file.get_slice(key).get_shape()[0]
                    self._ranges.setdefault(name, []).append(_SavedRange(int(start), count, prefix, file))
        for ranges in self._ranges.values():
            ranges.sort(key=lambda saved_range: saved_range.start)

    def has(self, key: str) -> bool:
        """Whether any file has the tensor `key`."""
        return key in self._files

    def keys_under(self, prefix: str) -> list[str]:
        """Keys of all files that begin with `prefix`."""
        return [key for key in self._files if key.startswith(prefix)]

    def tensor(self, key: str) -> Tensor:
        """Read the tensor `key`. Raises CheckpointError if no file has it."""
        if key not in self._files:
            raise CheckpointError(f"{self._directory}: {key} is missing")
        return self._files[key].get_tensor(key)

    def states(self, name: str) -> list[str]:
        """Names of the saved optimizer states of a parameter; empty before the first step."""
        keys = self.keys_under(f"{self._ranges[name][0].prefix}/")
        return [key.rpartition("/")[2] for key in keys if not key.endswith(MASTER)]

    def is_scalar(self, name: str, state: str) -> bool:
        """Whether a state is a single number shared by all ranges of the parameter."""
        first = self._ranges[name][0]
        return not first.file.get_slice(f"{first.prefix}/{state}").get_shape()

    def scalar(self, name: str, state: str) -> Tensor:
        """Read a scalar state."""
        return self.tensor(f"{self._ranges[name][0].prefix}/{state}")

    def copy(self, name: str, start: int, count: int, state: str, into: Tensor) -> None:
        """Fill `into` [count] with elements [start, start + count) of a parameter from the ranges that
        contain them. Raises CheckpointError if some elements are in no range.
        """
        arrived, end = start, start + count
        for saved_range in self._ranges.get(name, ()):
            first, last = max(arrived, saved_range.start), min(end, saved_range.start + saved_range.count)
            if first > arrived:
                break
            if first < last:
                saved = saved_range.file.get_slice(f"{saved_range.prefix}/{state}")
                part = saved[first - saved_range.start : last - saved_range.start]
                into[first - start : last - start] = part.to(into)
                arrived = last
        if arrived != end:
            raise CheckpointError(
                f"{self._directory}: {name}/{state} has {arrived - start} of {count} elements"
            )


def _opened(directory: Path, stack: ExitStack) -> list[tuple[Any, dict[str, tuple[int, ...]]]]:
    """Open every file and read the shapes from its metadata."""
    paths = sorted(directory.glob("rank-*-of-*.safetensors"))
    if not paths:
        raise CheckpointError(f"{directory}: there are no shards of a learner")
    opened: list[tuple[Any, dict[str, tuple[int, ...]]]] = []
    for path in paths:
        file = stack.enter_context(safe_open(path, framework="pt"))
        metadata: dict[str, str] = file.metadata() or {}
        if metadata.get("format") != FORMAT:
            raise CheckpointError(f"{path}: got format {metadata.get('format')}, expected {FORMAT}")
        if metadata.get("world_size") != str(len(paths)):
            raise CheckpointError(
                f"{directory}: got {len(paths)} shards, expected {metadata.get('world_size')}"
            )
        opened.append((file, _shapes(path, metadata)))
    return opened


def _shapes(path: Path, metadata: dict[str, str]) -> dict[str, tuple[int, ...]]:
    try:
        return {name: tuple(shape) for name, shape in json.loads(metadata["shapes"]).items()}
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: its metadata names no shapes: {error!r}") from error
