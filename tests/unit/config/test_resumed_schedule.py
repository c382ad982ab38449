"""A run that is resumed with another number of steps keeps its learning-rate
schedule: the rate never jumps up.
"""

from __future__ import annotations

import pytest

from orchestrator.config.compose import compose, with_resume_overrides
from orchestrator.config.run_config import RunConfig
from orchestrator.errors import ConfigError
from orchestrator.training.learner.schedule import learning_rate


def run(schedule: str, final: float, steps: int = 3) -> RunConfig:
    overrides = [f"learner.schedule={schedule}", f"learner.final_learning_rate={final}", f"steps={steps}"]
    return compose("sft", ["learner.learning_rate=1e-3", *overrides])


def rates(config: RunConfig) -> list[float]:
    learner = config.learner
    return [
        learning_rate(
            step,
            steps=learner.schedule_steps or config.steps,
            peak=learner.learning_rate,
            final=learner.final_learning_rate,
            warmup_steps=learner.warmup_steps,
            schedule=learner.schedule,
        )
        for step in range(config.steps)
    ]


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_longer_run_continues_at_the_final_rate(schedule: str) -> None:
    begun = run(schedule, 1e-4)
    resumed = with_resume_overrides(begun, ["steps=6"])
    assert rates(resumed) == pytest.approx([*rates(begun), 1e-4, 1e-4, 1e-4])
    # Also when it is resumed once more, and when it is shortened.
    assert rates(with_resume_overrides(resumed, ["steps=5"])) == rates(resumed)[:5]
    assert rates(with_resume_overrides(begun, ["steps=2"])) == rates(begun)[:2]


def test_steps_at_a_rate_of_zero_are_refused() -> None:
    with pytest.raises(ConfigError) as refusal:
        with_resume_overrides(run("linear", 0.0), ["steps=6"])
    assert (refusal.value.key, refusal.value.value, refusal.value.allowed) == ("steps", "6", "3 or fewer")
    assert "learning rate 0" in refusal.value.hint


def test_a_constant_rate_allows_any_number_of_steps() -> None:
    resumed = with_resume_overrides(run("constant", 0.0), ["steps=6"])
    assert resumed.learner.schedule_steps is None
    assert rates(resumed) == [1e-3] * 6


def test_the_schedule_itself_is_fixed() -> None:
    with pytest.raises(ConfigError, match=r"learner\.schedule_steps"):
        with_resume_overrides(run("linear", 1e-4), ["learner.schedule_steps=10"])
