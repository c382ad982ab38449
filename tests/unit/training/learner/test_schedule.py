"""The learning rate of each step."""

from __future__ import annotations

import pytest

from orchestrator.training.learner.schedule import Schedule, learning_rate


def _rates(steps: int, warmup_steps: int, schedule: Schedule, final: float = 0.1) -> list[float]:
    return [
        learning_rate(step, steps=steps, peak=1.0, final=final, warmup_steps=warmup_steps, schedule=schedule)
        for step in range(steps)
    ]


def test_warm_up_moves_at_the_first_step_and_arrives_at_the_peak() -> None:
    assert _rates(6, 4, "constant") == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_linear_falls_from_the_peak_to_the_final_rate_at_the_last_step() -> None:
    assert _rates(6, 2, "linear") == pytest.approx([0.5, 1.0, 1.0, 0.7, 0.4, 0.1])


def test_cosine_is_half_way_in_the_middle() -> None:
    rates = _rates(5, 0, "cosine")
    assert rates[0] == 1.0
    assert rates[2] == pytest.approx(0.55)
    assert rates[4] == pytest.approx(0.1)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_run_without_room_to_fall_ends_at_the_final_rate(schedule: Schedule) -> None:
    assert _rates(3, 2, schedule)[-1] == pytest.approx(0.1)
    beyond = learning_rate(9, steps=5, peak=1.0, final=0.1, warmup_steps=0, schedule=schedule)
    assert beyond == pytest.approx(0.1)
