"""Turns rows into the tensors of one forward pass, padded or packed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from orchestrator.training.learner.batching import BatchFormat
from orchestrator.training.learner.losses.token_rows import TokenRows
from orchestrator.training.learner.rows import TrainingRow


@dataclass(frozen=True, slots=True)
class ValueTargets:
    """What the value head learns at each trained token, without gradient."""

    old: Tensor  # [T] float32, the values at the beginning of the step
    returns: Tensor  # [T] float32


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """B rows of S positions (`padded`), or 1 row of S positions (`packed`). T of these tokens are trained on;
    their columns are ordered row by row.

    A trained token at position p is predicted from the hidden state at p - 1. `predictors` are indices of
    these positions among all B x S flattened positions.
    """

    input_ids: Tensor  # [B, S] int64
    position_ids: Tensor | None  # [1, S] int64, restarting at each row; None where rows are padded
    real: Tensor  # [B * S] bool: False on padding
    rows: Tensor  # [B * S] int64: which row a position belongs to, from 0
    predictors: Tensor  # [T] int64
    targets: Tensor  # [T] int64, the trained tokens
    sampled_logprobs: Tensor  # [T] float32
    advantages: Tensor  # [T] float32
    weights: Tensor  # [T] float32
    token_rows: TokenRows  # which row each trained token belongs to
    tokens: int
    """Number of prompt and response tokens, without padding."""
    routes: Tensor | None = None  # [B * S, R, k] int16
    """Experts that the sampler's routers chose; -1 where unknown; None if no routes were recorded."""
    value_targets: ValueTargets | None = None
    """None without a value head, and until the advantages of the step are known."""

    def to(self, device: torch.device) -> MicroBatch:
        """Copy all tensors to `device`."""
        if device.type == "cpu":
            return self
        return MicroBatch(
            self.input_ids.to(device),
            None if self.position_ids is None else self.position_ids.to(device),
            self.real.to(device),
            self.rows.to(device),
            self.predictors.to(device),
            self.targets.to(device),
            self.sampled_logprobs.to(device),
            self.advantages.to(device),
            self.weights.to(device),
            TokenRows(self.token_rows.index.to(device), self.token_rows.count),
            self.tokens,
            None if self.routes is None else self.routes.to(device),
        )


def collate(rows: Sequence[TrainingRow], layout: BatchFormat) -> MicroBatch:
    """Combine rows into a micro-batch. Without rows, the result has one position and no trained token, for a
    rank that has no work left while others still compute.
    """
    lengths = [len(row) for row in rows]
    if not rows:
        input_ids, real, starts = np.zeros((1, 1), dtype=np.int64), np.zeros((1, 1), dtype=np.bool_), []
    elif layout == "packed":
        input_ids = np.concatenate([row.tokens for row in rows]).astype(np.int64)[None]
        real = np.ones_like(input_ids, dtype=np.bool_)
        starts = np.cumsum([0, *lengths[:-1]]).tolist()
    else:
        width = max(lengths)
        input_ids = np.zeros((len(rows), width), dtype=np.int64)
        for index, row in enumerate(rows):
            input_ids[index, : len(row)] = row.tokens
        real = np.arange(width) < np.asarray(lengths)[:, None]
        starts = [index * width for index in range(len(rows))]
    counts = [row.trained_tokens for row in rows]
    predictors = [
        start + row.prompt_length - 1 + np.flatnonzero(row.trainable)
        for start, row in zip(starts, rows, strict=True)
    ]
    return MicroBatch(
        input_ids=torch.from_numpy(input_ids),
        position_ids=_restarting_positions(lengths) if layout == "packed" and rows else None,
        real=torch.from_numpy(real.ravel()),
        rows=torch.from_numpy(np.repeat(np.arange(max(1, len(rows))), _widths(lengths, input_ids.shape))),
        predictors=_column(predictors, np.int64),
        targets=_column([row.tokens[row.prompt_length :][row.trainable] for row in rows], np.int64),
        sampled_logprobs=_column([row.logprobs[row.trainable] for row in rows], np.float32),
        advantages=_repeated([row.advantage for row in rows], counts),
        weights=_repeated([row.weight for row in rows], counts),
        token_rows=TokenRows(torch.from_numpy(np.repeat(np.arange(len(rows)), counts)), len(rows)),
        tokens=sum(lengths),
        routes=_routes(rows, starts, input_ids.size),
    )


def _widths(lengths: Sequence[int], shape: tuple[int, ...]) -> Sequence[int]:
    """Number of positions of each row, including padding."""
    return lengths if shape[0] == 1 and len(lengths) > 1 else [shape[1]] * shape[0]


def _routes(rows: Sequence[TrainingRow], starts: Sequence[int], positions: int) -> Tensor | None:
    known = [(start, row.routes) for start, row in zip(starts, rows, strict=True) if row.routes is not None]
    if not known:
        return None
    routes = np.full((positions, *known[0][1].shape[1:]), -1, dtype=np.int16)
    for start, taken in known:
        routes[start : start + len(taken)] = taken
    return torch.from_numpy(routes)


def _restarting_positions(lengths: Sequence[int]) -> Tensor:
    return torch.from_numpy(np.concatenate([np.arange(length) for length in lengths])[None])


def _column(parts: Sequence[np.ndarray], dtype: type[np.generic]) -> Tensor:
    return torch.from_numpy(np.concatenate([np.zeros(0, dtype), *parts]).astype(dtype))


def _repeated(values: Sequence[float], counts: Sequence[int]) -> Tensor:
    return torch.from_numpy(
        np.repeat(np.asarray(values, dtype=np.float32), np.asarray(counts, dtype=np.int64))
    )
