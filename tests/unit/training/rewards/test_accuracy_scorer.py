from __future__ import annotations

import pytest

from orchestrator.training.rewards.scorers.accuracy import accuracy
from tests.fakes.graded import completion


def test_correct_wrong_and_missing_answers() -> None:
    reference = {"answer": 7}
    assert accuracy(completion("<answer>7.0</answer>", reference)) == 1.0
    assert accuracy(completion("<answer>8</answer>", reference)) == 0.0
    assert accuracy(completion("7", reference)) == 0.0


def test_partial_credit_of_a_task_counts_as_wrong() -> None:
    entry = {"question": "?", "answer": "21", "metadata": {"source_dataset": "chain_sum"}}
    reference = {"dataset": "chain_sum", "entry": entry}
    assert accuracy(completion("<answer>21</answer>", reference)) == 1.0
    assert accuracy(completion("<answer>21 or 22</answer>", reference)) == 0.0


def test_a_reference_without_a_checker_is_an_error() -> None:
    accuracy.prepare([{"colour": "red"}])
    with pytest.raises(ValueError, match=r"no checker for a reference with \['colour'\]"):
        accuracy(completion("<answer>7</answer>", {"colour": "red"}))


def test_answers_are_found_by_the_configured_formats() -> None:
    reference = {"answer": "The answer is #### 42"}
    boxed = completion(r"so \boxed{42}", reference, answer_formats=("tags", "boxed"))
    assert accuracy(boxed) == 1.0
    assert accuracy(completion(r"so \boxed{42}", reference)) == 0.0


def test_an_answer_inside_an_unfinished_thought_does_not_count() -> None:
    assert accuracy(completion("<think>maybe <answer>7</answer>", {"answer": 7})) == 0.0
    assert accuracy(completion("maybe <answer>7</answer>", {"answer": 7}, prefill="<think>\n")) == 0.0
