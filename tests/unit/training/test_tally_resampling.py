"""Dynamic sampling ends: a solved task continues to train, a task that is too hard fails."""

from __future__ import annotations

import pytest

from orchestrator.clock import SystemClock
from orchestrator.errors import FailureBudgetExceededError
from orchestrator.training.records import BlockRef, GroupTicket, ScoreRef
from orchestrator.training.tally import StepBudgets, StepTally


def ticket(solved: bool) -> GroupTicket:
    """A group without a training signal."""
    return GroupTicket(
        group_id=0,
        prompt_id="task/train/0",
        oldest_version=0,
        tokens=8,
        reward_mean=float(solved),
        informative=False,
        row=0,
        block=BlockRef(None),
        scores=ScoreRef(None),
        solved=solved,
    )


def tally(budget: int) -> StepTally:
    return StepTally(StepBudgets(resampled_groups=budget, failed_grades=0.0), SystemClock())


def test_within_the_budget_groups_are_replaced() -> None:
    counted = tally(3)
    counted.resampled([ticket(solved=True)] * 2)
    assert not counted.trains_on_solved_groups


def test_beyond_the_budget_a_solved_task_trains_on_solved_groups() -> None:
    counted = tally(3)
    counted.resampled([ticket(solved=True)] * 3)
    assert counted.trains_on_solved_groups
    counted.resampled([ticket(solved=True), ticket(solved=False)])  # no error
    counted.forget()
    assert not counted.trains_on_solved_groups


def test_beyond_the_budget_a_task_that_is_too_hard_fails() -> None:
    counted = tally(3)
    counted.resampled([ticket(solved=False)] * 3)
    assert not counted.trains_on_solved_groups
    with pytest.raises(FailureBudgetExceededError, match="too hard"):
        counted.resampled([ticket(solved=True)])
