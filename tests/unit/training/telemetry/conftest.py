"""The worked example of `orchestrator.training.records` as blocks."""

import numpy as np
import pytest

from orchestrator.training.records import BatchPart, Finish, Prompt, RolloutBlock, ScoreBlock, ScoreStatus


@pytest.fixture
def rollouts() -> RolloutBlock:
    lengths = np.array([2, 2, 2, 3])
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return RolloutBlock(
        group_ids=np.array([10, 11], dtype=np.int64),
        group_size=2,
        prompts=(
            Prompt("sums/train/0", "1+2=", {"answer": 3}),
            Prompt("sums/train/1", "5-5=", {"answer": 0}),
        ),
        prompt_tokens=np.arange(8, dtype=np.int32),
        prompt_offsets=np.array([0, 4, 8], dtype=np.int64),
        tokens=np.arange(9, dtype=np.int32),
        offsets=offsets,
        logprobs=np.zeros(9, dtype=np.float32),
        versions=np.array([7, 7, 7, 8, 8, 8, 9, 8, 9], dtype=np.int32),
        trainable=np.ones(9, dtype=np.bool_),
        finish=np.array([Finish.STOP, Finish.STOP, Finish.STOP, Finish.LENGTH], dtype=np.uint8),
        texts=("3.", "4.", "0.", "10."),
    )


@pytest.fixture
def scores() -> ScoreBlock:
    return ScoreBlock(
        rewards=np.array([1.0, 0.0, 1.0, 0.0]),
        components={"accuracy": np.array([1.0, 0.0, 1.0, 0.0]), "format": np.array([1.0, 1.0, 0.5, 0.5])},
        grades=np.array([ScoreStatus.OK] * 4, dtype=np.uint8),
        reasons=("", "", "", ""),
        reflected=np.array([True, False, False, False]),
    )


@pytest.fixture
def failed_scores(scores: ScoreBlock) -> ScoreBlock:
    """Rollout 3 hung: its reward is the failure reward, and its components are meaningless."""
    return ScoreBlock(
        rewards=np.array([1.0, 0.0, 1.0, -1.0]),
        components={"accuracy": np.array([1.0, 0.0, 1.0, np.nan]), "format": np.array([1.0, 1.0, 0.5, 0.0])},
        grades=np.array(
            [ScoreStatus.OK, ScoreStatus.OK, ScoreStatus.OK, ScoreStatus.TIMEOUT], dtype=np.uint8
        ),
        reasons=("", "", "", "no verdict after 2 s"),
        reflected=scores.reflected,
    )


@pytest.fixture
def part(rollouts: RolloutBlock, scores: ScoreBlock) -> BatchPart:
    return BatchPart(rollouts, scores, (0, 1))
