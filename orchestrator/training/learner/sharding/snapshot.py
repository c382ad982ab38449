"""Copies a rank's shard to host memory. A training step only waits for this copy; the disk
is written afterwards.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from orchestrator.training.learner.sharding.shards import Shard

_ALIGNMENT = 64


class HostMemory:
    """Holds one copy of a shard and reuses its memory for the next one. Allocating pages takes several times
    longer than the copy itself, so `reserve` allocates them beforehand in a thread; otherwise the first copy
    does. The memory is allocated by numpy, which uses huge pages and is six times faster than torch here.
    """

    def __init__(self) -> None:
        self._arena: NDArray[np.uint8] = np.empty(0, dtype=np.uint8)
        self._reserving: threading.Thread | None = None

    @property
    def reserved(self) -> bool:
        """Whether the memory is allocated or being allocated."""
        return self._arena.nbytes > 0

    def reserve(self, shard: Shard) -> None:
        """Allocate the memory for a shard of this size in the background. Further calls have no effect."""
        self._grow(shard)
        # numpy releases the interpreter lock while it fills memory, so training continues.
        self._reserving = threading.Thread(target=self._arena.fill, args=(0,), daemon=True)
        self._reserving.start()

    def copy(self, shard: Shard) -> Shard:
        """Copy the shard, so that later training does not change it. Overwrites the previous copy."""
        if self._reserving is not None:
            self._reserving.join()
        self._grow(shard)
        return Shard(shard.file, self._copies(shard.tensors), shard.metadata)

    def _grow(self, shard: Shard) -> None:
        needed = sum(_aligned(tensor) for tensor in shard.tensors.values())
        if len(self._arena) < needed:
            self._arena = np.empty(needed, dtype=np.uint8)

    @torch.no_grad()
    def _copies(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        copies: dict[str, Tensor] = {}
        offset = 0
        for key, tensor in tensors.items():
            place = torch.from_numpy(self._arena[offset : offset + tensor.nbytes])
            copies[key] = place.view(tensor.dtype).view(tensor.shape).copy_(tensor)
            offset += _aligned(tensor)
        return copies


def _aligned(tensor: Tensor) -> int:
    return -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
