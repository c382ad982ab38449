"""What the learner waited for, and what one more worker would change: numbers computed by hand."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest

from orchestrator.runs.timeline.critical_path import critical_path
from orchestrator.runs.timeline.explanation import (
    Estimate,
    RunShape,
    StepAccount,
    account,
    estimate,
    sentence,
)
from orchestrator.runs.timeline.spans import ActorSpan
from orchestrator.runs.timeline.steps import StepWindow
from tests.fakes.timelines import SECOND, at, span, synchronous_step

SHAPE = RunShape(
    rollout_workers=2,
    reward_workers=1,
    accelerators=2,
    accelerators_per_rollout_worker=1,
    prompts_per_step=6,
    synchronous=True,
    price_per_hour=Decimal("3.6"),
    currency="USD",
)


def accounted(spans: list[ActorSpan], seconds: float, waited: float, step: int = 1) -> StepAccount:
    window = StepWindow(step, at(0), at(seconds), round(waited * SECOND))
    return account(window, critical_path(window, spans), spans)


def synchronous() -> StepAccount:
    return accounted(synchronous_step(), 10, 7.1)


def rollout_estimate(shape: RunShape) -> Estimate:
    guess = estimate(synchronous(), shape)
    assert guess is not None
    assert guess.role == "rollout"
    return guess


def in_seconds(amounts: object) -> dict[str, float]:
    assert isinstance(amounts, dict)
    return {str(name): float(ns) / SECOND for name, ns in amounts.items()}


def test_the_learner_waits_for_what_the_critical_path_does() -> None:
    found = synchronous()
    # The controller: 0.1 before sampling, 0.1 and 0.2 around scoring, 0.1 before the publish, 0.4 after it.
    assert in_seconds(found.waits_ns) == {"controller": 0.9, "generate": 6.0, "score": 0.8}
    assert in_seconds(found.path_ns) == {"controller": 0.9, "generate": 6.0, "score": 0.8, "learner": 2.3}
    assert found.waited_for["generate"] == "rollout-1"
    assert found.waited_for["controller"] == ""  # its longest stretch is at the end of the step


def test_work_of_the_learner_beside_the_path_is_no_wait() -> None:
    """The learner writes a checkpoint for two of the five seconds in which its batch is sampled."""
    spans = [
        span("learner-0", "checkpoint", 0, 2, 0),
        span("rollout-0", "generate", -1, 5, 0, 9),
        span("reward-0", "score", 5, 5.5, 0, 9),
        span("learner-0", "update", 5.5, 8, 0),
    ]
    found = accounted(spans, 8, 3.5)
    assert in_seconds(found.path_ns) == {"generate": 5.0, "score": 0.5, "learner": 2.5}
    assert in_seconds(found.waits_ns) == {"generate": 3.0, "score": 0.5}


def test_one_more_worker_divides_the_prompts_of_a_synchronous_step() -> None:
    # 6 prompts: 3 for one of two workers, 2 for one of three. 6 s of sampling become 4 s.
    # The step then takes 8 s on 3 accelerators instead of 10 s on 2, at 0.001 USD per second: 0.024 - 0.020.
    guess = rollout_estimate(SHAPE)
    assert (guess.saved_seconds, guess.cost) == (pytest.approx(2.0), Decimal("0.004"))
    assert sentence(synchronous(), SHAPE) == (
        "In step 1 the learner waited 60% of the time for the longest rollout (rollout-1), 6 s; one more"
        " rollout worker would save at most 2 s per step and add 0.0040 USD to its cost."
    )


def test_prompts_that_cannot_be_divided_further_save_nothing() -> None:
    shape = replace(SHAPE, prompts_per_step=4)  # 2 for one of two workers, 2 for one of three
    guess = rollout_estimate(shape)
    assert (guess.saved_seconds, guess.cost) == (0.0, Decimal("0.01"))
    assert sentence(synchronous(), shape).endswith(
        "one more rollout worker would save nothing, because one worker would still get 2 of the 4 prompts"
        " of a step."
    )


def test_asynchronous_workers_take_requests_one_after_another() -> None:
    shape = replace(SHAPE, synchronous=False, prompts_per_step=4)
    guess = rollout_estimate(shape)
    assert guess.saved_seconds == pytest.approx(2.0)  # a third of 6 s, however many prompts a step has


def test_no_more_is_saved_than_the_learner_waits() -> None:
    spans = [
        span("learner-0", "checkpoint", 0, 4.5, 0),
        span("rollout-0", "generate", 0, 5, 0, 9),
        span("learner-0", "update", 5.1, 8, 0),
        span("reward-0", "score", 5, 5.1, 0, 9),
    ]
    shape = replace(SHAPE, rollout_workers=1, prompts_per_step=8)
    guess = estimate(accounted(spans, 8, 0.6), shape)
    assert guess is not None
    assert guess.saved_seconds == pytest.approx(0.5)  # not the 2.5 s by which sampling becomes shorter


def test_more_accelerators_can_make_a_step_cheaper() -> None:
    shape = replace(SHAPE, accelerators=10)
    # 11 x 8 s instead of 10 x 10 s, at 0.001 USD per second.
    assert "and take 0.012 USD off its cost" in sentence(synchronous(), shape)


def test_without_a_price_no_cost_is_invented() -> None:
    shape = replace(SHAPE, price_per_hour=None)
    assert sentence(synchronous(), shape).endswith(
        "save at most 2 s per step; its cost is unknown, because the run has no prices."
    )


def scored() -> StepAccount:
    spans = [
        span("rollout-0", "generate", 0, 1, 0, 30),
        span("rollout-1", "generate", 0, 1, 0, 60),
        span("reward-0", "score", 1, 4, 0, 30),
        span("reward-0", "score", 4, 7, 0, 60),
        span("learner-0", "update", 7, 8, 0),
    ]
    return accounted(spans, 8, 7.0)


def test_one_more_reward_worker() -> None:
    # Two blocks on one worker, or one on each of two: half of the 6 s.
    assert sentence(scored(), SHAPE) == (
        "In step 1 the learner waited 75% of the time for the scoring of rollouts (reward-0), 6 s; one more"
        " reward worker would save at most 3 s per step."
    )
    assert sentence(scored(), replace(SHAPE, reward_workers=2)).endswith(
        "would save nothing, because one worker would still get 1 of the 2 blocks of a step."
    )


def test_a_busy_learner_is_the_bottleneck() -> None:
    spans = [span("learner-0", "update", 0.1, 9.8, 0), span("learner-0", "sync", 9.8, 10, 1)]
    assert sentence(accounted(spans, 10, 0.0), SHAPE) == (
        "In step 1 the learner worked 99% of the time: it is the bottleneck, and more rollout workers would"
        " save nothing."
    )


def test_time_between_the_work_of_actors_says_who_began_then() -> None:
    """A worker that is suspended before it begins has no span yet."""
    spans = [
        span("rollout-0", "generate", 0.1, 1, 0, 5),
        span("rollout-1", "generate", 8, 9, 0, 6),
        span("reward-0", "score", 9, 9.1, 0, 6),
        span("learner-0", "update", 9.1, 10, 0),
    ]
    assert sentence(accounted(spans, 10, 9.0), SHAPE) == (
        "In step 1 the learner waited 80% of the time for calls and the controller, between the work of"
        " actors (most of it before rollout-1 began), 8 s."
    )


def test_an_evaluation_is_named_and_no_worker_is_recommended() -> None:
    spans = [
        span("learner-0", "update", 0, 1, 0),
        span("rollout-0", "evaluate", 1, 4, 1, 20),
        span("reward-0", "score", 4, 4.5, 1, 20),
    ]
    found = accounted(spans, 5, 0.0)
    assert in_seconds(found.waits_ns) == {"evaluate": 3.5, "controller": 0.5}
    assert sentence(found, SHAPE) == (
        "In step 1 the learner waited 70% of the time for the evaluation of held-out prompts, 3.5 s."
    )


def test_several_steps_are_averaged() -> None:
    quick = [
        span("rollout-0", "generate", 0, 2, 1, 5),
        span("reward-0", "score", 2, 2.5, 1, 5),
        span("learner-0", "update", 2.5, 5, 1),
    ]
    both = synchronous() + accounted(quick, 5, 2.5, step=2)
    assert (both.steps, both.first, both.last, both.ns) == (2, 1, 2, 15 * SECOND)
    assert in_seconds(both.waits_ns) == {"controller": 0.9, "generate": 8.0, "score": 1.3}
    # 8 of 15 s, 4 s per step; by a third: 1.33 s. Two different workers: none is named.
    assert sentence(both, SHAPE).startswith(
        "Over steps 1 to 2 the learner waited 53% of the time for the longest rollout, 4 s per step; one more"
        " rollout worker would save at most 1.3 s per step"
    )
