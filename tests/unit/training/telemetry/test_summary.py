import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.training.records import RolloutBlock, ScoreBlock
from orchestrator.training.telemetry.summary import BlockSummary, Mean, rows_of, summarise


def test_the_worked_example(rollouts: RolloutBlock, scores: ScoreBlock) -> None:
    assert summarise(rollouts, scores).metrics() == {
        "reward/mean": 0.5,
        "reward/std": 0.5,
        "reward/failed_fraction": 0.0,
        "reward/accuracy": 0.5,
        "reward/format": 0.75,
        "accuracy/train": 0.5,
        "accuracy/train_n": 4.0,
        "rollout/count": 4.0,
        "rollout/tokens": 9.0,
        "rollout/length_mean": 2.25,
        "rollout/truncated_fraction": 0.25,
        "rollout/truncated_n": pytest.approx(3.0),
        "rollout/reflection_fraction": 0.25,
        "rollout/reflection_n": pytest.approx(3.0),
    }


def test_only_some_groups(rollouts: RolloutBlock, scores: ScoreBlock) -> None:
    second = summarise(rollouts, scores, groups=[1])
    assert (second.rollouts, second.tokens) == (2, 5)
    assert (second.truncated.total, second.reflected.total) == (1, 0)
    assert second.metrics()["reward/format"] == 0.5


def test_summaries_of_parts_add_up(rollouts: RolloutBlock, failed_scores: ScoreBlock) -> None:
    parts = [summarise(rollouts, failed_scores, groups=[group]) for group in (0, 1)]
    assert sum(parts, BlockSummary()) == summarise(rollouts, failed_scores)


def test_a_failed_score_counts_in_the_reward_but_not_in_the_components(
    rollouts: RolloutBlock, failed_scores: ScoreBlock
) -> None:
    metrics = summarise(rollouts, failed_scores).metrics()
    assert metrics["reward/mean"] == 0.25
    assert metrics["reward/failed_fraction"] == 0.25
    assert metrics["accuracy/train"] == pytest.approx(2 / 3)
    assert metrics["reward/format"] == pytest.approx(2.5 / 3)
    assert metrics["accuracy/train_n"] <= 3


def test_the_share_of_rollouts_with_an_answer(rollouts: RolloutBlock, scores: ScoreBlock) -> None:
    answered = replace(scores, answers=("3", "", "0", ""))
    assert summarise(rollouts, answered).metrics()["rollout/answered_fraction"] == 0.5
    assert "rollout/answered_fraction" not in summarise(rollouts, scores).metrics()


def test_metrics_without_values_are_omitted(rollouts: RolloutBlock, scores: ScoreBlock) -> None:
    assert BlockSummary().metrics() == {"rollout/count": 0.0, "rollout/tokens": 0.0}
    without_accuracy = ScoreBlock(scores.rewards, {}, scores.grades, scores.reasons, scores.reflected)
    assert "accuracy/train" not in summarise(rollouts, without_accuracy).metrics()


def test_components_of_both_sides_survive_a_merge() -> None:
    left = BlockSummary(rollouts=1, components={"accuracy": Mean(1.0, 1)})
    right = BlockSummary(rollouts=1, components={"format": Mean(0.5, 1)})
    assert (left + right).components == {"accuracy": Mean(1.0, 1), "format": Mean(0.5, 1)}


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=40), st.data())
def test_mean_and_deviation_do_not_depend_on_the_blocks(rewards: list[float], data: st.DataObject) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(rewards)), max_size=4))
    edges = [0, *sorted(cuts), len(rewards)]
    blocks = [rewards[a:b] for a, b in pairwise(edges)]
    total = sum((_of(block) for block in blocks), BlockSummary())
    assert total.reward_mean == pytest.approx(np.mean(rewards), abs=1e-9)
    assert total.reward_std == pytest.approx(np.std(rewards), abs=1e-6)


def _of(rewards: list[float]) -> BlockSummary:
    squares = math.fsum(reward * reward for reward in rewards)
    return BlockSummary(rollouts=len(rewards), reward_total=sum(rewards), reward_square_total=squares)


def test_no_groups_have_no_rows() -> None:
    assert rows_of([], group_size=4).tolist() == []
