"""Hosts whose clocks differ: what contradicts an order of events is corrected, nothing else is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.runs.timeline.clocks import align
from orchestrator.runs.timeline.critical_path import critical_path
from orchestrator.runs.timeline.spans import ActorSpan
from orchestrator.runs.timeline.steps import StepWindow
from tests.fakes.timelines import SECOND, at, span, synchronous_step

LEARNER, WORKERS = "learner-host", "worker-host"


def two_steps() -> list[ActorSpan]:
    first = span("learner-0", "sync", -0.2, 0.05, 0)
    return [first, *synchronous_step(0, 0.0), *synchronous_step(1, 10.0)]


def windows() -> list[StepWindow]:
    return [StepWindow(1, at(0), at(10), round(7.1 * SECOND)), StepWindow(2, at(10), at(20), 0)]


def on_two_hosts(spans: list[ActorSpan], ahead: float) -> list[ActorSpan]:
    """The workers' clock is ahead of the learner's by that many seconds."""
    shift = round(ahead * SECOND)
    return [
        replace(each, node=LEARNER)
        if each.role == "learner"
        else replace(each, node=WORKERS, start_ns=each.start_ns + shift, end_ns=each.end_ns + shift)
        for each in spans
    ]


def test_clocks_that_agree_are_left_alone() -> None:
    spans = on_two_hosts(two_steps(), 0.0)
    aligned = align(spans, windows(), synchronous=True)
    assert aligned.shifts_ns == {}
    assert list(aligned.spans) == sorted(spans, key=lambda each: (each.start_ns, each.actor))
    assert list(aligned.windows) == windows()


@pytest.mark.parametrize("ahead", [-3.0, 2.5])
def test_a_clock_that_is_fast_or_slow_is_shifted_until_nothing_contradicts(ahead: float) -> None:
    spans = on_two_hosts(two_steps(), ahead)
    aligned = align(spans, windows(), synchronous=True)
    # The workers' first span starts 0.05 s after the first publish, and their last scoring ends 0.2 s before
    # the update, so that much of the difference cannot be seen.
    unseen = 0.2 if ahead > 0 else -0.05
    assert aligned.shifts_ns == {WORKERS: pytest.approx((unseen - ahead) * SECOND, abs=2)}
    path = critical_path(aligned.windows[0], aligned.spans)
    assert "rollout-1" in {part.actor for part in path}


def test_an_asynchronous_run_does_not_say_that_a_block_is_scored_before_its_steps_update() -> None:
    spans = on_two_hosts(two_steps(), 2.5)
    assert align(spans, windows(), synchronous=False).shifts_ns == {}


def test_a_third_host_is_corrected_through_the_second() -> None:
    spans = [
        replace(
            each, node="reward-host", start_ns=each.start_ns - 4 * SECOND, end_ns=each.end_ns - 4 * SECOND
        )
        if each.role == "reward"
        else each
        for each in on_two_hosts(two_steps(), 0.0)
    ]
    (shift,) = align(spans, windows(), synchronous=False).shifts_ns.values()
    assert shift == pytest.approx(3.9 * SECOND, abs=2)  # a block is scored 0.1 s after it was generated


def test_the_controllers_clock_belongs_to_the_step_windows() -> None:
    late = [replace(each, start_ns=each.start_ns + SECOND, end_ns=each.end_ns + SECOND) for each in windows()]
    spans = on_two_hosts(two_steps(), 0.0)
    assert align(spans, late, synchronous=True).shifts_ns == {}  # 7.2 s pass until the next update
    early = [
        replace(each, start_ns=each.start_ns - SECOND, end_ns=each.end_ns - SECOND) for each in windows()
    ]
    aligned = align(spans, early, synchronous=True)
    assert aligned.shifts_ns == {"controller": pytest.approx(0.6 * SECOND, abs=2)}
    assert aligned.windows[0].end_ns == pytest.approx(at(9.6), abs=2)


def test_orders_that_contradict_each_other_end_in_some_correction() -> None:
    spans = [
        *on_two_hosts(two_steps(), 3.0),
        replace(span("rollout-0", "generate", -9, -8, 1, 5), node=WORKERS),
    ]
    assert set(align(spans, windows(), synchronous=True).shifts_ns) == {WORKERS}


def test_a_publish_that_was_repeated_says_nothing() -> None:
    again = replace(span("learner-0", "sync", 8.0, 8.1, 0), node=LEARNER)
    spans = [*on_two_hosts(two_steps(), 0.0), again]
    assert align(spans, windows(), synchronous=True).shifts_ns == {}


def test_no_spans() -> None:
    assert align([], windows(), synchronous=True).spans == ()


def resumed(seconds_later: float) -> tuple[list[ActorSpan], list[StepWindow]]:
    """Attempt 1 did steps 1 to 3 and was killed in step 4; attempt 2 continued from the checkpoint of step 2.
    The windows of steps 3 and 4 are those of attempt 2.
    """
    spans = [span("learner-0", "sync", -0.2, 0.05, 0)]
    for step in range(4):
        spans += synchronous_step(step, 10.0 * step)
    del spans[-1]  # the publish of step 4
    spans.append(span("learner-0", "sync", seconds_later - 0.2, seconds_later - 0.1, 2, attempt=2))
    for step in (2, 3):
        start = seconds_later + 10.0 * (step - 2)
        spans += [replace(each, attempt=2) for each in synchronous_step(step, start)]
    starts = [0.0, 10.0, seconds_later, seconds_later + 10.0]
    steps = [StepWindow(step, at(start), at(start + 10), 0) for step, start in enumerate(starts, 1)]
    return [replace(each, node=LEARNER) for each in spans], steps


@pytest.mark.parametrize("seconds_later", [45.0, 5000.0])
def test_a_resumed_run_does_not_contradict_itself(seconds_later: float) -> None:
    spans, steps = resumed(seconds_later)
    assert align(spans, steps, synchronous=True).shifts_ns == {}
    assert align(spans, steps, synchronous=False).shifts_ns == {}


def test_a_run_resumed_with_fewer_ranks_does_not_contradict_itself() -> None:
    spans, steps = resumed(500.0)
    second = [
        replace(each, actor="learner-1") for each in spans if each.role == "learner" and each.attempt == 1
    ]
    assert align([*spans, *second], steps, synchronous=True).shifts_ns == {}


def test_the_newest_step_of_a_resumed_run_corrects_a_clock_that_differs() -> None:
    spans, steps = resumed(500.0)
    spans = on_two_hosts([replace(each, node="") for each in spans], -3.0)
    (shift,) = align(spans, steps, synchronous=True).shifts_ns.values()
    assert shift == pytest.approx(2.95 * SECOND, abs=2)
