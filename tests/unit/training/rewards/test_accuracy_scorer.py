from __future__ import annotations

import pytest

from orchestrator.training.rewards.scorers.accuracy import accuracy, last_answer
from tests.fakes.graded import completion


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>x</think><answer> 7 </answer>", "7"),
        ("<answer>3</answer> wait <answer>4</answer>", "4"),
        ("<answer>3</answer><answer>4", "3"),
        ("<answer>3<answer>4</answer>", "4"),
        ("<answer></answer>", ""),
        ("<answer>3", None),
        ("3</answer>", None),
        ("7", None),
        ("", None),
    ],
)
def test_the_last_complete_answer_counts(text: str, answer: str | None) -> None:
    assert last_answer(text) == answer


def test_right_wrong_and_none() -> None:
    reference = {"answer": 7}
    assert accuracy(completion("<answer>7.0</answer>", reference)) == 1.0
    assert accuracy(completion("<answer>8</answer>", reference)) == 0.0
    assert accuracy(completion("7", reference)) == 0.0


def test_partial_credit_of_a_task_counts_as_wrong() -> None:
    entry = {"question": "?", "answer": "21", "metadata": {"source_dataset": "chain_sum"}}
    reference = {"dataset": "chain_sum", "entry": entry}
    assert accuracy(completion("<answer>21</answer>", reference)) == 1.0
    assert accuracy(completion("<answer>21 or 22</answer>", reference)) == 0.0


def test_a_reference_that_nobody_judges() -> None:
    accuracy.prepare([{"colour": "red"}])
    with pytest.raises(ValueError, match=r"no judge for a reference with \['colour'\]"):
        accuracy(completion("<answer>7</answer>", {"colour": "red"}))
