"""The sampler of `hf` with rounded weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from orchestrator.training.records import WeightVersion
from orchestrator.training.rollouts.engine import NamedTensor
from orchestrator.training.rollouts.engines.hf.sampler import HFSampler


class RoundedWeights(HFSampler):
    """`HFSampler` whose matrices are rounded to integers of `bits` bits, with one scale for each tensor."""

    def __init__(self, bits: int, *arguments: Any) -> None:  # noqa: ANN401 - those of HFSampler
        super().__init__(*arguments)
        self._largest = 2 ** (bits - 1) - 1

    def load_weights(self, version: WeightVersion, tensors: Iterable[NamedTensor]) -> None:
        super().load_weights(version, ((name, self._rounded(tensor)) for name, tensor in tensors))

    def weight_storage(self, name: str) -> None:
        """None, so that all weights come through `load_weights`."""
        del name

    def _rounded(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dim() < 2 or not tensor.is_floating_point():
            return tensor
        scale = tensor.abs().max().clamp(min=1e-12) / self._largest
        return (tensor / scale).round() * scale
