import pytest

from orchestrator.clock import FakeClock
from orchestrator.training.stages import Span
from orchestrator.training.usage import Activity, MemorySink, Role, SpanRecorded
from orchestrator.training.usage_meter import UsageMeter


def meter_of(*leases: str) -> tuple[UsageMeter, MemorySink, FakeClock]:
    sink, clock = MemorySink(), FakeClock(100)
    return UsageMeter(sink, clock, leases, "rollout-0", Role.ROLLOUT), sink, clock


def spans(sink: MemorySink) -> list[SpanRecorded]:
    return [event for event in sink.events if isinstance(event, SpanRecorded)]


def test_a_span_is_emitted_when_it_closes() -> None:
    meter, sink, clock = meter_of("run/1/0.0")
    with meter.span(Activity.GENERATE, 7) as measure:
        clock.advance(30)
        measure.tokens = 512
        assert sink.events == []
    (event,) = spans(sink)
    assert (event.lease_id, event.actor, event.role) == ("run/1/0.0", "rollout-0", Role.ROLLOUT)
    assert (event.activity, event.step, event.tokens) == (Activity.GENERATE, 7, 512)
    assert (event.start_ns, event.end_ns) == (100, 130)


def test_a_span_that_ends_with_an_error_is_emitted() -> None:
    meter, sink, clock = meter_of("a")
    with pytest.raises(ValueError, match="boom"), meter.span(Activity.SCORE, 1):
        clock.advance(5)
        raise ValueError("boom")
    assert [(event.start_ns, event.end_ns, event.tokens) for event in spans(sink)] == [(100, 105, 0)]
    assert meter.take() == (Span(Activity.SCORE, 100, 105, Role.ROLLOUT, "rollout-0"),)


def test_nothing_is_measured_after_the_meter_was_closed() -> None:
    meter, sink, clock = meter_of("a")
    with meter.span(Activity.GENERATE, 1):
        clock.advance(5)
        meter.close()
        clock.advance(7)
    with meter.span(Activity.SYNC, 1):
        clock.advance(3)
    assert [(event.start_ns, event.end_ns) for event in spans(sink)] == [(100, 105)]


def test_an_actor_with_several_accelerators_uses_them_all() -> None:
    meter, sink, clock = meter_of("a", "b")
    with meter.span(Activity.UPDATE, 1):
        clock.advance(5)
    assert [event.lease_id for event in spans(sink)] == ["a", "b"]
    assert len({event.event_id for event in spans(sink)}) == 2
    assert len(meter.take()) == 1


def test_spans_are_returned_once_and_in_order() -> None:
    meter, _, clock = meter_of("a")
    for activity in (Activity.SYNC, Activity.GENERATE):
        with meter.span(activity, 1):
            clock.advance(10)
    assert meter.take() == (
        Span(Activity.SYNC, 100, 110, Role.ROLLOUT, "rollout-0"),
        Span(Activity.GENERATE, 110, 120, Role.ROLLOUT, "rollout-0"),
    )
    assert meter.take() == ()


def test_an_actor_without_a_lease_still_times_its_step() -> None:
    meter, sink, clock = meter_of()
    with meter.span(Activity.SCORE, 1):
        clock.advance(1)
    assert sink.events == []
    assert len(meter.take()) == 1
