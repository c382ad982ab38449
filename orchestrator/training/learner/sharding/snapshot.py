"""A copy of a rank's shard in host memory: what a step waits for, while the disk takes its time behind it."""

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
    """Holds one copy of a shard, and its memory for the next. To get pages from the system takes several
    times what the copy does, so `reserve` gets them beforehand, in a thread; without it the first copy does.
    The memory is numpy's, which asks for huge pages: six times faster to get than torch's.
    """

    def __init__(self) -> None:
        self._arena: NDArray[np.uint8] = np.empty(0, dtype=np.uint8)
        self._reserving: threading.Thread | None = None

    @property
    def reserved(self) -> bool:
        """Whether the memory is there, or on its way."""
        return self._arena.nbytes > 0

    def reserve(self, shard: Shard) -> None:
        """Get the memory for a shard of this size, behind the caller's back; once."""
        self._grow(shard)
        # numpy holds no interpreter lock while it fills: training goes on.
        self._reserving = threading.Thread(target=self._arena.fill, args=(0,), daemon=True)
        self._reserving.start()

    def copy(self, shard: Shard) -> Shard:
        """The shard as it is now, whatever training does next. The copy before it is overwritten."""
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
