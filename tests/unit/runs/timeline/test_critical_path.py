"""Which chain of work determined how long a step took, from spans made by hand."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.runs.timeline.critical_path import Segment, critical_path
from orchestrator.runs.timeline.spans import ActorSpan
from orchestrator.runs.timeline.steps import StepWindow
from tests.fakes.timelines import SECOND, START_NS, at, span, synchronous_step


def window(start: float, end: float, waited: float | None = None, step: int = 1) -> StepWindow:
    return StepWindow(step, at(start), at(end), None if waited is None else round(waited * SECOND))


def drawn(path: Sequence[Segment]) -> list[tuple[str, str, float, float]]:
    return [
        (part.actor, part.activity, (part.start_ns - START_NS) / SECOND, (part.end_ns - START_NS) / SECOND)
        for part in path
    ]


def work(path: Sequence[Segment]) -> list[tuple[str, str, float, float]]:
    return [part for part in drawn(path) if part[0] != "controller"]


def test_a_synchronous_step_goes_through_the_longest_rollout() -> None:
    assert drawn(critical_path(window(0, 10, 7.1), synchronous_step())) == [
        ("controller", "wait", 0.0, 0.1),
        ("rollout-1", "generate", 0.1, 6.1),
        ("controller", "wait", 6.1, 6.2),
        ("reward-0", "score", 6.2, 7.0),
        ("controller", "wait", 7.0, 7.2),
        ("learner-0", "update", 7.2, 7.3),
        ("learner-0", "update", 7.3, 9.3),
        ("controller", "wait", 9.3, 9.4),
        ("learner-0", "sync", 9.4, 9.6),
        ("controller", "wait", 9.6, 10.0),
    ]


def test_a_block_that_queued_for_the_reward_worker_waited_for_the_one_before_it() -> None:
    spans = [
        span("rollout-0", "generate", 0, 4, 0, 30),
        span("rollout-1", "generate", 0, 5, 0, 60),
        span("reward-0", "score", 4, 7, 0, 30),
        span("reward-0", "score", 7, 8, 0, 60),
        span("learner-0", "update", 8, 9, 0),
    ]
    assert work(critical_path(window(0, 9, 8.0), spans)) == [
        ("rollout-0", "generate", 0, 4),
        ("reward-0", "score", 4, 7),
        ("reward-0", "score", 7, 8),
        ("learner-0", "update", 8, 9),
    ]


def test_blocks_are_matched_by_tokens_not_by_time() -> None:
    spans = [
        span("rollout-0", "generate", 0, 2, 0, 30),
        span("rollout-1", "generate", 1, 2.9, 0, 60),
        span("reward-0", "score", 3, 4, 0, 30),
        span("learner-0", "update", 4, 5, 0),
    ]
    assert ("rollout-0", "generate", 0, 2) in work(critical_path(window(0, 5, 4.0), spans))
    spans[2] = span("reward-0", "score", 3, 4, 0)  # without its tokens only the time is left
    assert ("rollout-1", "generate", 1, 2.9) in work(critical_path(window(0, 5, 4.0), spans))


def test_a_learner_that_never_waits_is_the_whole_path() -> None:
    """Asynchronous: a block is scored just before the update, but the trainer had its batch already."""
    spans = [
        span("learner-0", "sync", -1, 0.2, 4),
        span("rollout-0", "generate", -3, 0.25, 4, 30),
        span("reward-0", "score", 0.25, 0.35, 4, 30),
        span("learner-0", "update", 0.4, 4, 4),
        span("learner-0", "sync", 4, 4.2, 5),
    ]
    assert work(critical_path(window(0.2, 4.2, 0.0), spans)) == [
        ("learner-0", "update", 0.4, 4),
        ("learner-0", "sync", 4, 4.2),
    ]
    waited = critical_path(window(0.2, 4.2, 0.1), spans)
    assert work(waited)[0] == ("rollout-0", "generate", 0.2, 0.25)  # cut at the start of the step


def test_an_evaluation_is_part_of_the_trainers_chain() -> None:
    spans = [
        *synchronous_step(),
        span("rollout-0", "sync", 9.6, 9.7, 1),
        span("rollout-0", "evaluate", 9.7, 11.7, 1, 20),
        span("reward-0", "score", 11.8, 11.9, 1, 20),
    ]
    path = critical_path(window(0, 12, 7.1), spans)
    assert work(path)[-4:] == [
        ("learner-0", "sync", 9.4, 9.6),
        ("rollout-0", "sync", 9.6, 9.7),
        ("rollout-0", "evaluate", 9.7, 11.7),
        ("reward-0", "score", 11.8, 11.9),
    ]
    assert [part.evaluates for part in path if part.actor == "reward-0"] == [False, True]


def test_the_slowest_rank_is_on_the_path() -> None:
    spans = [
        span("learner-0", "update", 0, 4, 0),
        span("learner-1", "update", 0.1, 5, 0),
        span("learner-0", "sync", 5.1, 5.2, 1),
        span("learner-1", "sync", 5.1, 5.3, 1),
    ]
    assert work(critical_path(window(0, 5.3, 0.0), spans)) == [
        ("learner-1", "update", 0.1, 5),
        ("learner-1", "sync", 5.1, 5.3),
    ]


def test_with_dynamic_sampling_a_discarded_group_makes_room_for_the_next_request() -> None:
    spans = [
        span("rollout-0", "generate", 0, 2, 0, 30),
        span("reward-0", "score", 2, 3, 0, 30),
        span("rollout-0", "generate", 3, 5, 0, 31),
        span("reward-0", "score", 5, 6, 0, 31),
        span("learner-0", "update", 6, 7, 0),
    ]
    assert [part[0] for part in drawn(critical_path(window(0, 7, 6.0), spans, dynamic_sampling=True))] == [
        "rollout-0",
        "reward-0",
        "rollout-0",
        "reward-0",
        "learner-0",
    ]


def test_a_step_without_spans_belongs_to_the_controller() -> None:
    assert drawn(critical_path(window(0, 3), [])) == [("controller", "wait", 0, 3)]


def test_spans_of_unknown_actors_are_not_on_the_path() -> None:
    spans = [*synchronous_step(), span("judge-0", "serve", 6.9, 7.15, 0)]
    assert "judge-0" not in {part.actor for part in critical_path(window(0, 10, 7.1), spans)}


ACTORS = (
    ("rollout-0", ("generate", "evaluate", "sync")),
    ("rollout-1", ("generate", "evaluate", "sync")),
    ("reward-0", ("score",)),
    ("learner-0", ("update", "sync", "checkpoint")),
)


@st.composite
def any_spans(draw: st.DrawFn) -> list[ActorSpan]:
    spans: list[ActorSpan] = []
    for actor, activities in ACTORS:
        now = draw(st.floats(-2, 2))
        for _ in range(draw(st.integers(0, 6))):
            start = now + draw(st.floats(0, 1))
            now = start + draw(st.floats(0, 3))
            activity, step = draw(st.sampled_from(activities)), draw(st.integers(0, 2))
            spans.append(span(actor, activity, start, now, step, draw(st.integers(0, 2))))
    return spans


@given(any_spans(), st.sampled_from([None, 0.0, 1.0]), st.booleans())
def test_the_segments_add_up_to_the_step(
    spans: list[ActorSpan], waited: float | None, dynamic_sampling: bool
) -> None:
    step = window(0, 5, waited)
    path = critical_path(step, spans, dynamic_sampling)
    assert path[0].start_ns == step.start_ns
    assert path[-1].end_ns == step.end_ns
    for before, after in itertools.pairwise(path):
        assert before.end_ns == after.start_ns
    assert all(part.ns > 0 for part in path)


@pytest.mark.parametrize("late_ms", [0.4, -0.4])
def test_clocks_of_two_processes_may_differ_by_less_than_a_millisecond(late_ms: float) -> None:
    late = late_ms / 1000
    spans = [
        span("rollout-0", "generate", 0, 4 + late, 0, 30),
        span("reward-0", "score", 4, 5, 0, 30),
        span("learner-0", "update", 5, 6, 0),
    ]
    assert [part[0] for part in work(critical_path(window(0, 6, 5.0), spans))] == [
        "rollout-0",
        "reward-0",
        "learner-0",
    ]
