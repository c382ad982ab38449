"""pass@k compared with all subsets, maj@k with its definition, and both over a block."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.training.records import RolloutBlock, ScoreBlock, ScoreStatus
from orchestrator.training.telemetry.sampled_answers import (
    majority,
    pass_at_k,
    prompt_values,
    sampled_answer_means,
    shown_ks,
)
from orchestrator.training.telemetry.summary import Mean
from tests.fakes.graded import rollout_block


@given(st.lists(st.booleans(), min_size=1, max_size=9), st.data())
def test_pass_at_k_is_the_mean_over_all_subsets(right: list[bool], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(right)))
    every = fmean(any(chosen) for chosen in combinations(right, k))
    assert pass_at_k(len(right), sum(right), k) == pytest.approx(every, abs=1e-12)


@pytest.mark.parametrize("k", [0, 5])
def test_k_must_not_exceed_the_number_of_answers(k: int) -> None:
    with pytest.raises(ValueError, match=f"k: got {k}, allowed: 1 to 4"):
        pass_at_k(4, 2, k)


@given(st.lists(st.sampled_from(["", "1", "2", "3"]), max_size=9))
def test_the_majority_has_the_most_votes_and_ties_go_to_the_first(answers: list[str]) -> None:
    winner = majority(answers)
    votes = {answer: answers.count(answer) for answer in answers if answer}
    if winner is None:
        assert votes == {}
        return
    best = [answer for answer, count in votes.items() if count == max(votes.values())]
    assert answers[winner] in best
    assert winner == min(answers.index(answer) for answer in best)


def test_the_reported_k_are_powers_of_two_and_the_number_of_samples() -> None:
    assert [shown_ks(samples) for samples in (1, 2, 3, 16)] == [[1], [1, 2], [1, 2, 3], [1, 2, 4, 8, 16]]


def test_the_module_docstrings_example() -> None:
    values = prompt_values(4, [False, True, False, True], ["7", "12", "", "12"])
    assert values == {
        "pass_at_1": 0.5,
        "pass_at_2": pytest.approx(5 / 6),
        "pass_at_4": 1.0,
        "maj_at_4": 1.0,
    }


def graded(right: list[float], answers: tuple[str, ...] | None) -> tuple[RolloutBlock, ScoreBlock]:
    """Two prompts with four answers each; NaN: not scored."""
    block = rollout_block(["x"] * 8, group_size=4)
    accuracy = np.array(right)
    grades = np.where(np.isnan(accuracy), ScoreStatus.TIMEOUT, ScoreStatus.OK).astype(np.uint8)
    scores = ScoreBlock(
        accuracy, {"accuracy": accuracy}, grades, ("",) * 8, np.zeros(8, dtype=np.bool_), answers
    )
    return block, scores


def test_all_prompts_have_equal_weight() -> None:
    answers = ("b", "a", "a", "b", "c", "c", "c", "d")
    block, scores = graded([0, 1, 1, 0, 0, 0, 0, 1], answers)
    assert sampled_answer_means(block, scores) == {
        "pass_at_1": Mean(0.5 + 0.25, 2),
        "pass_at_2": Mean(5 / 6 + 0.5, 2),
        "pass_at_4": Mean(2.0, 2),
        "maj_at_4": Mean(0.0, 2),  # two and two: the first wins, and is wrong
    }


def test_answers_without_a_score_are_neither_samples_nor_votes() -> None:
    nothing = float("nan")
    answers = ("b", "a", "b", "", "", "", "", "")
    block, scores = graded([nothing, 1, nothing, 0, 0, 0, 0, 0], answers)
    means = sampled_answer_means(block, scores)
    assert means["pass_at_1"] == Mean(0.5, 2)
    assert means["pass_at_2"] == Mean(1.0, 2)
    assert means["pass_at_4"] == Mean(0.0, 1)
    assert means["maj_at_4"] == Mean(1.0, 2)


def test_without_answers_there_is_no_vote_and_without_accuracy_no_metric() -> None:
    block, scores = graded([1.0] * 8, None)
    assert set(sampled_answer_means(block, scores)) == {"pass_at_1", "pass_at_2", "pass_at_4"}
    assert sampled_answer_means(block, replace(scores, components={})) == {}
