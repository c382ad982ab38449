"""Turning rewards into training rows."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from orchestrator.training.learner.losses.objective import Objective
from orchestrator.training.learner.losses.policy import LOSSES, ClipRange
from orchestrator.training.learner.rows import AlgorithmSpec, computed_rows, minibatch_rows, rollout_rows
from orchestrator.training.records import BatchPart, Finish
from tests.fakes.rollout_batches import random_part


def _centred(rewards: Tensor) -> Tensor:
    return rewards - rewards.mean(dim=1, keepdim=True)


def _rule(kl_coefficient: float = 0.0, **changes: Any) -> AlgorithmSpec:
    rule = AlgorithmSpec(
        advantages=_centred,
        objective=Objective(LOSSES.get("clipped"), ClipRange(0.2, 0.2), None, kl_coefficient, "k3"),
        aggregation="token",
        drop_uninformative=True,
        temperature=1.0,
        max_new_tokens=16,
    )
    return dataclasses.replace(rule, **changes)


def _with_rewards(part: BatchPart, rewards: list[float]) -> BatchPart:
    return dataclasses.replace(part, scores=dataclasses.replace(part.scores, rewards=np.array(rewards)))


def test_a_row_is_its_prompt_and_its_response_with_its_own_advantage() -> None:
    part = _with_rewards(random_part(0, 2, 2), [1.0, 0.0, 1.0, 1.0])
    block = part.rollouts
    ((first, second, third, fourth),) = minibatch_rows([part], _rule(), 1)

    assert [first.advantage, second.advantage, third.advantage, fourth.advantage] == [0.5, -0.5, 0, 0]
    prompt = block.prompt_tokens[block.prompt_offsets[1] : block.prompt_offsets[2]]
    response = block.tokens[block.offsets[2] : block.offsets[3]]
    assert third.tokens.tolist() == [*prompt.tolist(), *response.tolist()]
    assert third.prompt_length == len(prompt)
    assert first.weight == pytest.approx(1 / len(block.tokens))


def test_only_the_groups_of_the_part_are_taken_in_their_order() -> None:
    part = random_part(1, 4, 2)
    (rows,) = minibatch_rows([dataclasses.replace(part, groups=(3, 1))], _rule(), 1)
    starts = [part.rollouts.prompt_offsets[group] for group in (3, 3, 1, 1)]
    assert [row.tokens[0] for row in rows] == [part.rollouts.prompt_tokens[start] for start in starts]


def test_dropped_rows_still_count_in_the_normaliser() -> None:
    part = _with_rewards(random_part(0, 2, 2), [1.0, 0.0, 1.0, 1.0])
    (rows,) = minibatch_rows([part], _rule(), 1)
    assert computed_rows(rows, _rule()) == rows[:2]
    assert rows[0].weight == pytest.approx(1 / sum(row.trained_tokens for row in rows))


def test_under_a_kl_penalty_every_row_is_computed() -> None:
    part = _with_rewards(random_part(0, 2, 2), [1.0, 1.0, 1.0, 1.0])
    rule = _rule(kl_coefficient=0.1)
    (rows,) = minibatch_rows([part], rule, 1)
    assert computed_rows(rows, rule) == rows
    assert computed_rows(rows, _rule()) == []


def test_rollouts_without_a_trainable_token_are_not_trained_on() -> None:
    part = random_part(0, 1, 2)
    part.rollouts.trainable[: part.rollouts.offsets[1]] = False
    (rows,) = minibatch_rows([_with_rewards(part, [0.0, 1.0])], _rule(), 1)
    assert rows[0].trained_tokens == 0
    assert computed_rows(rows, _rule()) == rows[1:]
    assert rows[1].weight == pytest.approx(1 / rows[1].trained_tokens)


def test_overlong_filtering_leaves_truncated_rollouts_out_of_the_loss_but_not_of_the_baseline() -> None:
    part = _with_rewards(random_part(0, 1, 3), [0.0, 0.0, 3.0])
    part.rollouts.finish[:] = [Finish.LENGTH, Finish.STOP, Finish.STOP]
    rule = _rule(overlong_filtering=True, aggregation="sequence")
    (rows,) = minibatch_rows([part], rule, 1)
    assert [row.advantage for row in rows] == [-1, -1, 2]
    assert [row.trained_tokens > 0 for row in rows] == [False, True, True]
    assert computed_rows(rows, rule) == rows[1:]
    # Of three rollouts each counts a third, the one that is left out too.
    assert rows[1].weight * rows[1].trained_tokens == pytest.approx(1 / 3)
    (rows,) = minibatch_rows([part], _rule(), 1)
    assert all(row.trained_tokens > 0 for row in rows)


def test_penalties_are_taken_off_the_rewards_in_the_order_of_the_rollouts() -> None:
    part = dataclasses.replace(_with_rewards(random_part(1, 2, 2), [1.0, 0.0, 4.0, 2.0]), groups=(1, 0))
    rows = rollout_rows([part])
    (plain,) = minibatch_rows([part], _rule(), 1)
    assert [row.tokens.tolist() for row in rows] == [row.tokens.tolist() for row in plain]
    (penalised,) = minibatch_rows([part], _rule(), 1, np.array([1.0, 0.0, 0.5, 0.0]))
    # Group 1: 4 - 1 and 2; group 0: 1 - 0.5 and 0.
    assert [row.advantage for row in penalised] == [0.5, -0.5, 0.25, -0.25]


def test_under_an_entropy_bonus_every_row_is_computed() -> None:
    part = _with_rewards(random_part(0, 2, 2), [1.0, 1.0, 1.0, 1.0])
    rule = _rule()
    rule = dataclasses.replace(rule, objective=dataclasses.replace(rule.objective, entropy_coefficient=0.01))
    (rows,) = minibatch_rows([part], rule, 1)
    assert computed_rows(rows, rule) == rows


def test_minibatches_split_groups_and_weigh_each_on_its_own() -> None:
    part = random_part(2, 3, 2)
    minibatches = minibatch_rows([part], _rule(), 2)
    assert [len(rows) for rows in minibatches] == [4, 2]
    for rows in minibatches:
        assert sum(row.weight * row.trained_tokens for row in rows) == pytest.approx(1)


def test_inconsistent_batches_are_rejected() -> None:
    with pytest.raises(ValueError, match=r"got 0 groups"):
        minibatch_rows([], _rule(), 1)
    with pytest.raises(ValueError, match=r"got 2 groups of sizes \[2, 3\], allowed: 1 or more of one size"):
        minibatch_rows([random_part(0, 1, 2), random_part(0, 1, 3)], _rule(), 1)
    with pytest.raises(ValueError, match=r"allowed: 3 or more"):
        minibatch_rows([random_part(0, 2, 2)], _rule(), 3)


def test_an_empty_prompt_is_refused_by_name() -> None:
    part = random_part(0, 1, 2)
    empty = dataclasses.replace(
        part.rollouts, prompt_tokens=part.rollouts.prompt_tokens[:0], prompt_offsets=np.zeros(2, np.int64)
    )
    with pytest.raises(ValueError, match=r"prompt random/train/0: got 0 tokens"):
        minibatch_rows([dataclasses.replace(part, rollouts=empty)], _rule(), 1)


def test_a_greedy_temperature_is_refused() -> None:
    with pytest.raises(ValueError, match="temperature: got 0, allowed: above 0"):
        _rule(temperature=0)
