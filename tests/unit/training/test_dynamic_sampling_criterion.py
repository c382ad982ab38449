"""The criterion of dynamic sampling: whether the rollouts of a group are correct, or their rewards."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from orchestrator.training.group_facts import Criterion, GroupFacts, group_facts
from tests.fakes.rollout_batches import random_part

SIZE = 8


def facts(accuracy: list[float], rewards: list[float], criterion: Criterion) -> GroupFacts:
    part = random_part(0, 1, SIZE)
    scores = dataclasses.replace(
        part.scores, rewards=np.array(rewards), components={"accuracy": np.array(accuracy)}
    )
    (found,) = group_facts(part.rollouts, scores, criterion)
    return found


WRONG_WITH_ONE_IN_FORMAT = ([0.0] * SIZE, [0.1] + [0.0] * 7)
RIGHT_WITH_ONE_TOO_LONG = ([1.0] * SIZE, [0.5] + [1.0] * 7)


@pytest.mark.parametrize("group", [WRONG_WITH_ONE_IN_FORMAT, RIGHT_WITH_ONE_TOO_LONG])
def test_by_accuracy_a_group_needs_correct_and_wrong_rollouts(group: tuple[list[float], list[float]]) -> None:
    assert not facts(*group, "accuracy").informative
    assert facts(*group, "reward").informative


def test_a_group_with_one_correct_rollout_is_informative() -> None:
    found = facts([1.0] + [0.0] * 7, [1.0] + [0.0] * 7, "accuracy")
    assert (found.informative, found.solved) == (True, False)


def test_a_rollout_that_could_not_be_scored_counts_as_wrong() -> None:
    assert not facts([np.nan] + [0.0] * 7, [0.0] * SIZE, "accuracy").informative
    assert facts([np.nan] + [1.0] * 7, [0.0] + [1.0] * 7, "accuracy").informative


@pytest.mark.parametrize(("accuracy", "solved"), [([1.0] * SIZE, True), ([0.0] * SIZE, False)])
def test_a_group_is_solved_if_every_rollout_is_correct(accuracy: list[float], solved: bool) -> None:
    assert facts(accuracy, accuracy, "accuracy").solved is solved


def test_without_an_accuracy_the_rewards_are_compared_and_nothing_is_solved() -> None:
    part = random_part(0, 1, SIZE)
    scores = dataclasses.replace(part.scores, rewards=np.ones(SIZE), components={})
    (found,) = group_facts(part.rollouts, scores, "reward")
    assert (found.informative, found.solved, found.reward_mean) == (False, False, 1.0)
    assert found.tokens == len(part.rollouts.tokens)
