"""A copy of a rank's shard in host memory: what a step waits for, while the disk takes its time behind it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from orchestrator.training.learner.shards import Shard

_ALIGNMENT = 64


class HostMemory:
    """Holds one copy of a shard, and its memory for the next: only the first copy waits for the system to
    hand out pages. It comes from numpy, which asks for huge ones: six times faster to get than torch's.
    """

    def __init__(self) -> None:
        self._arena: NDArray[np.uint8] = np.empty(0, dtype=np.uint8)

    def copy(self, shard: Shard) -> Shard:
        """The shard as it is now, whatever training does next. The copy before it is overwritten."""
        needed = sum(_aligned(tensor) for tensor in shard.tensors.values())
        if len(self._arena) < needed:
            self._arena = np.empty(needed, dtype=np.uint8)
        return Shard(shard.file, self._copies(shard.tensors), shard.metadata)

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
