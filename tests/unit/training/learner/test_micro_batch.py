"""Rows as tensors, in both batch formats."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from orchestrator.training.learner.batching import BatchFormat
from orchestrator.training.learner.micro_batch import collate
from orchestrator.training.learner.rows import TrainingRow


def _row(tokens: list[int], prompt_length: int, trainable: list[bool], advantage: float = 1.0) -> TrainingRow:
    return TrainingRow(
        tokens=np.array(tokens, dtype=np.int32),
        prompt_length=prompt_length,
        trainable=np.array(trainable),
        logprobs=-np.arange(1, len(trainable) + 1, dtype=np.float32),
        oldest_version=0,
        advantage=advantage,
        weight=0.5,
    )


_ROWS = (_row([1, 2, 3, 4, 5], 2, [True, False, True]), _row([6, 7, 8], 1, [True, True], -2.0))


def test_padded_rows_stand_side_by_side() -> None:
    batch = collate(_ROWS, "padded")
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5], [6, 7, 8, 0, 0]]
    assert batch.position_ids is None
    assert batch.real.tolist() == [True] * 8 + [False] * 2
    assert batch.predictors.tolist() == [1, 3, 5, 6]


def test_packed_rows_follow_each_other_and_restart_their_positions() -> None:
    batch = collate(_ROWS, "packed")
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8]]
    assert batch.position_ids is not None
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2]]
    assert batch.real.all()
    assert batch.predictors.tolist() == [1, 3, 5, 6]


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_columns_hold_the_trained_tokens_only(layout: BatchFormat) -> None:
    batch = collate(_ROWS, layout)
    assert batch.targets.tolist() == [3, 5, 7, 8]
    assert batch.sampled_logprobs.tolist() == [-1, -3, -1, -2]
    assert batch.advantages.tolist() == [1, 1, -2, -2]
    assert batch.weights.tolist() == [0.5] * 4
    assert (batch.token_rows.index.tolist(), batch.token_rows.count) == ([0, 0, 1, 1], 2)
    assert batch.tokens == 8
    following = batch.input_ids.flatten()[batch.predictors + 1]
    assert torch.equal(following, batch.targets)


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_an_empty_micro_batch_has_one_ignored_position(layout: BatchFormat) -> None:
    batch = collate([], layout)
    assert batch.input_ids.shape == (1, 1)
    assert not batch.real.any()
    assert batch.targets.numel() == batch.weights.numel() == batch.tokens == 0
