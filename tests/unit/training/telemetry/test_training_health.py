"""Runs that do not learn are reported once, with the cause; runs that learn are not reported."""

from __future__ import annotations

import pytest

from orchestrator.training.events import TrainingWarning
from orchestrator.training.telemetry.training_health import (
    CHECKS,
    LATER_STEPS,
    START_STEPS,
    LearningSignal,
    TrainingHealth,
)

HEALTHY = {
    "reward/mean": 0.4,
    "reward/std": 0.5,
    "reward/failed_fraction": 0.0,
    "accuracy/train": 0.4,
    "rollout/truncated_fraction": 0.1,
    "rollout/answered_fraction": 0.9,
    "rollout/informative_fraction": 0.8,
    "policy/grad_norm": 0.3,
}
PROBLEMS = {
    "grades_failed": {"reward/failed_fraction": 1.0},
    "all_truncated": {"rollout/truncated_fraction": 1.0},
    "no_answers": {"rollout/answered_fraction": 0.0},
    "equal_rewards": {"reward/std": 0.0, "accuracy/train": 0.0},
    "no_informative_group": {"rollout/informative_fraction": 0.0},
    "no_gradient": {"policy/grad_norm": 0.0},
}
GRPO = LearningSignal(imitates=False, group_relative=True)
SFT = LearningSignal(imitates=True, group_relative=False)


def warnings(*steps: dict[str, float], signal: LearningSignal = GRPO) -> list[TrainingWarning]:
    health = TrainingHealth(signal, 100)
    seen = [health.observe(step, metrics) for step, metrics in enumerate(steps, start=1)]
    return [warning for warning in seen if warning is not None]


def test_every_problem_has_a_case() -> None:
    assert PROBLEMS.keys() == {check.problem for check in CHECKS}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_problem_from_the_start_is_reported_once(problem: str) -> None:
    found = warnings(*[HEALTHY | PROBLEMS[problem]] * 50)
    assert [(warning.problem, warning.step) for warning in found] == [(problem, START_STEPS)]
    assert found[0].message.endswith(".")


@pytest.mark.parametrize("steps", [1, 2])
def test_a_run_with_few_steps_is_also_warned(steps: int) -> None:
    health = TrainingHealth(GRPO, steps)
    found = [health.observe(step, HEALTHY | PROBLEMS["equal_rewards"]) for step in range(1, steps + 1)]
    assert [None if warning is None else warning.problem for warning in found] == [
        *[None] * (steps - 1),
        "equal_rewards",
    ]


def test_a_resumed_run_counts_its_earlier_steps_and_repeats_no_warning() -> None:
    equal = HEALTHY | PROBLEMS["equal_rewards"]
    health = TrainingHealth(GRPO, 100)
    health.restart([(1, equal), (2, equal)])
    warning = health.observe(3, equal)
    assert warning is not None and warning.problem == "equal_rewards"
    assert health.observe(4, equal) is None
    health.restart((step, equal) for step in range(1, 6))
    assert [health.observe(step, equal) for step in range(6, 30)] == [None] * 24


@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_later_problem_must_last_longer(problem: str) -> None:
    sick = HEALTHY | PROBLEMS[problem]
    assert warnings(HEALTHY, *[sick] * (LATER_STEPS - 1), HEALTHY, *[sick] * (LATER_STEPS - 1)) == []
    found = warnings(HEALTHY, *[sick] * LATER_STEPS)
    assert [(warning.problem, warning.step) for warning in found] == [(problem, 1 + LATER_STEPS)]


def test_a_run_that_learns_gets_no_warning() -> None:
    assert warnings(*[HEALTHY] * 100) == []


def test_the_cause_is_reported_and_not_its_consequences() -> None:
    everything: dict[str, float] = {}
    for changes in PROBLEMS.values():
        everything |= changes
    assert [warning.problem for warning in warnings(*[HEALTHY | everything] * 50)] == ["grades_failed"]


def test_a_consequence_that_outlasts_its_cause_is_reported() -> None:
    truncated = HEALTHY | PROBLEMS["all_truncated"] | PROBLEMS["equal_rewards"]
    equal = HEALTHY | PROBLEMS["equal_rewards"]
    found = warnings(*[truncated] * 5, *[equal] * 5)
    assert [(warning.problem, warning.step) for warning in found] == [
        ("all_truncated", 3),
        ("equal_rewards", 6),
    ]


def test_an_intermittent_cause_does_not_hide_a_lasting_problem() -> None:
    equal = HEALTHY | PROBLEMS["equal_rewards"]
    truncated = equal | PROBLEMS["all_truncated"]
    assert [warning.problem for warning in warnings(*[equal, truncated] * 2)] == ["equal_rewards"]


def test_equal_rewards_of_a_solved_task_are_success() -> None:
    solved = HEALTHY | {"reward/std": 0.0, "accuracy/train": 1.0, "policy/grad_norm": 0.0}
    assert warnings(HEALTHY, *[solved] * 100) == []
    assert [warning.problem for warning in warnings(*[solved] * 100)] == ["equal_rewards"]


def test_a_task_is_solved_over_several_steps_and_not_by_the_last_one() -> None:
    """Of 32 prompts one that is never solved comes by now and then, and no group is informative."""
    flat = HEALTHY | {"rollout/informative_fraction": 0.0, "policy/grad_norm": 0.0}
    right, one_wrong = flat | {"accuracy/train": 1.0}, flat | {"accuracy/train": 31 / 32}
    assert warnings(HEALTHY, *[*[right] * 4, one_wrong] * 20) == []
    assert warnings(HEALTHY, *[one_wrong] * 4, *[right] * 100) == []
    found = warnings(HEALTHY, *[one_wrong] * 100)
    assert [(warning.problem, warning.step) for warning in found] == [
        ("no_informative_group", LATER_STEPS + 1)
    ]


def test_a_resumed_run_may_have_been_solved_before() -> None:
    solved = HEALTHY | {"reward/std": 0.0, "accuracy/train": 1.0}
    health = TrainingHealth(GRPO, 100)
    assert [health.observe(step, solved) for step in range(81, 101)] == [None] * 20


def test_worked_solutions_have_equal_rewards_by_design() -> None:
    copied = HEALTHY | {"reward/std": 0.0, "rollout/informative_fraction": 0.0}
    assert warnings(*[copied] * 50, signal=SFT) == []
    blind = copied | {"rollout/answered_fraction": 0.0}
    assert [warning.problem for warning in warnings(*[blind] * 50, signal=SFT)] == ["no_answers"]


def test_estimators_that_compare_across_groups_need_no_spread_within_them() -> None:
    across = HEALTHY | {"rollout/informative_fraction": 0.0}
    assert warnings(*[across] * 50, signal=LearningSignal(imitates=False, group_relative=False)) == []


def test_missing_metrics_are_not_a_problem() -> None:
    assert warnings(*[{"reward/mean": 0.0}] * 50) == []


def test_an_evaluation_does_not_count_as_a_step() -> None:
    sick = HEALTHY | PROBLEMS["equal_rewards"]
    health = TrainingHealth(GRPO, 100)
    seen = [health.observe(0, {"accuracy/heldout": 0.0})]
    seen += [health.observe(step, sick) for step in range(1, START_STEPS + 1)]
    assert [None if warning is None else warning.step for warning in seen] == [None, None, None, START_STEPS]
