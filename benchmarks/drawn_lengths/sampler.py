"""The sampler of `hf` with a limit for each rollout, and without tokens that end one."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.drawn_lengths.engines import length
from orchestrator.training.rollouts.engines.hf.sampler import HFSampler


class DrawnLengths(HFSampler):
    """`HFSampler` with drawn lengths of `kind`. The longest are `rollout.max_new_tokens` long."""

    def __init__(self, kind: str, *arguments: Any) -> None:  # noqa: ANN401 - those of HFSampler
        super().__init__(*arguments)
        self._kind = kind
        self._stops = frozenset[int]()

    def _start(self, waiting: Any) -> torch.Tensor:  # noqa: ANN401
        rows = super()._start(waiting)
        request, table = waiting.group.request, self._table
        for row, member in zip(rows.tolist(), waiting.members, strict=True):
            longest, seed = request.sampling.max_new_tokens, request.sampling.seed
            table.limits[row] = length(self._kind, longest, seed, request.group_id, member)
        return rows
