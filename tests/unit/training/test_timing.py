import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.clock import FakeClock
from orchestrator.training.stages import Span
from orchestrator.training.timing import STAGE_ACTIVITY, StepTimes, covered_ns, step_timing
from orchestrator.training.usage import Activity, Role

SPANS = st.lists(
    st.builds(
        lambda activity, start, length: Span(activity, start, start + length),
        st.sampled_from(list(Activity)),
        st.integers(-10, 40),
        st.integers(0, 20),
    ),
    max_size=8,
)


def covered_one_by_one(spans: list[Span], start_ns: int, end_ns: int) -> int:
    return sum(any(span.start_ns <= ns < span.end_ns for span in spans) for ns in range(start_ns, end_ns))


@given(SPANS, st.integers(0, 10), st.integers(0, 30))
def test_covered_time_is_the_union(spans: list[Span], start_ns: int, length: int) -> None:
    end_ns = start_ns + length
    assert covered_ns(spans, start_ns, end_ns) == covered_one_by_one(spans, start_ns, end_ns)


@given(SPANS, st.integers(1, 30))
def test_the_times_of_a_step(spans: list[Span], length: int) -> None:
    timing = step_timing(spans, 0, length)
    assert timing["time/step"] == length / 1e9
    for stage, activity in STAGE_ACTIVITY.items():
        own = [span for span in spans if span.activity is activity]
        assert timing[f"time/{stage}"] == covered_one_by_one(own, 0, length) / 1e9
    uncovered = length - covered_one_by_one(spans, 0, length)
    assert timing["time/orchestration"] == uncovered / 1e9
    assert timing["time/orchestration_fraction"] == pytest.approx(uncovered / length)


def test_utilisation_is_the_mean_busy_share_of_the_actors_of_a_role() -> None:
    clock = FakeClock()
    times = StepTimes(clock)
    times.add([Span(Activity.GENERATE, 0, 4, Role.ROLLOUT, "rollout-0")])
    times.add([Span(Activity.SYNC, 2, 6, Role.ROLLOUT, "rollout-0")])
    times.add([Span(Activity.GENERATE, 0, 8, Role.ROLLOUT, "rollout-1")])
    times.add([Span(Activity.UPDATE, 8, 10, Role.LEARNER, "learner-0")])
    clock.advance(10)
    first = times.take()
    assert (first["utilisation/rollout"], first["utilisation/learner"]) == (0.7, 0.2)
    times.add([Span(Activity.UPDATE, 10, 20, Role.LEARNER, "learner-0")])
    clock.advance(10)
    second = times.take()
    assert (second["utilisation/rollout"], second["utilisation/learner"]) == (0.0, 1.0)
    assert "utilisation/reward" not in second


def test_a_wait_is_split_between_the_steps_that_it_overlaps() -> None:
    clock = FakeClock()
    times = StepTimes(clock)
    with times.waiting("room"):
        with times.waiting("batch"):
            clock.advance(2_000_000_000)
        clock.advance(1_000_000_000)
        first = times.take()
        clock.advance(500_000_000)
    second = times.take()
    assert (first["time/wait_batch"], first["time/wait_room"]) == (2.0, 3.0)
    assert (second["time/wait_batch"], second["time/wait_room"]) == (0.0, 0.5)


def test_a_step_of_no_length() -> None:
    assert step_timing([], 5, 5)["time/orchestration_fraction"] == 0.0


def test_every_stage_of_the_flow_is_timed() -> None:
    assert set(Activity) - set(STAGE_ACTIVITY.values()) == {Activity.LOAD}
