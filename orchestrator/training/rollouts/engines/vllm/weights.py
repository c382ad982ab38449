"""Stages a version of the weights in shared memory, from which vLLM's worker processes load it.

The weights arrive while the engine generates. Only when they are complete, the engine pauses between two
tokens and loads them. The memory is anonymous: it belongs to no file, and it is freed with the last process
that has it open, however that process ends.
"""

from __future__ import annotations

import math
import mmap
import os
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from orchestrator.training.tensors.buckets import ALIGNMENT, NamedTensor

GROWTH_BYTES = 64 << 20


class StagedTensor(NamedTuple):
    """A tensor at byte `offset` of staged memory. `dtype` is torch's name without the prefix."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int


class StagedWeights:
    """A version of the weights in anonymous shared memory."""

    def __init__(self) -> None:
        self._file = os.memfd_create("weights")
        self._size = self._end = 0
        self._map: mmap.mmap | None = None
        self.tensors: list[StagedTensor] = []

    @property
    def path(self) -> str:
        """A path under which other processes of this user on this host can open the memory."""
        return f"/proc/{os.getpid()}/fd/{self._file}"

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return self._end

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Copy a tensor, which may be on a GPU."""
        offset = -(-self._end // ALIGNMENT) * ALIGNMENT
        self._grow(offset + tensor.nbytes)
        assert self._map is not None
        room = np.frombuffer(self._map, dtype=np.uint8, count=tensor.nbytes, offset=offset)
        source = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        torch.from_numpy(room).copy_(source)
        dtype = str(tensor.dtype).removeprefix("torch.")
        self.tensors.append(StagedTensor(name, tuple(tensor.shape), dtype, offset))
        self._end = offset + tensor.nbytes

    def close(self) -> None:
        """Release the memory."""
        if self._map is not None:
            self._map.close()
        os.close(self._file)

    def _grow(self, size: int) -> None:
        if size <= self._size:
            return
        self._size = max(size, self._size + max(GROWTH_BYTES, self._size // 2))
        os.ftruncate(self._file, self._size)
        if self._map is None:
            self._map = mmap.mmap(self._file, self._size)
        else:
            self._map.resize(self._size)


def stage(tensors: Iterable[NamedTensor]) -> StagedWeights:
    """Copy all `tensors`, each of which is valid until the next one is requested, into shared memory. The
    caller closes it.
    """
    weights = StagedWeights()
    try:
        for name, tensor in tensors:
            weights.add(name, tensor)
    except BaseException:
        weights.close()
        raise
    return weights


def read_staged(path: str, size: int, tensors: Iterable[Any]) -> Iterator[NamedTensor]:
    """The tensors of `StagedWeights`, in another process, as views that must not be written to."""
    with open(path, "rb") as file:  # noqa: PTH123
        memory = mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        whole = torch.frombuffer(memory, dtype=torch.uint8)
    for name, shape, dtype, offset in tensors:
        kind: torch.dtype = getattr(torch, dtype)
        yield name, whole[offset : offset + math.prod(shape) * kind.itemsize].view(kind).view(tuple(shape))
