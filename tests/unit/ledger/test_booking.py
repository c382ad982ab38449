"""Booking by hand-computed examples. Times are in nanoseconds unless stated otherwise."""

import pytest

from orchestrator.ledger.booking import BookedLease, BookingPolicy, Ending, book
from orchestrator.ledger.calendar import DAY_NS
from orchestrator.ledger.corrections import Rejection
from orchestrator.ledger.events import (
    Correction,
    Event,
    Heartbeat,
    LeaseClosed,
    LeaseOpened,
    SpanRecorded,
    event_to_json,
)

POLICY = BookingPolicy(grace_ns=50, skew_ns=5)


def opened(at: int = 0, lease: str = "a", run: str = "r", event_id: str = "open") -> LeaseOpened:
    return LeaseOpened(f"{event_id}-{lease}", at, lease, run, 1, "gpu", "h100", "node", "pg", 0)


def closed(at: int, lease: str = "a", reason: str = "released", event_id: str = "close") -> LeaseClosed:
    return LeaseClosed(f"{event_id}-{lease}", at, lease, reason)


def span(
    start: int,
    end: int,
    actor: str = "w0",
    activity: str = "generate",
    lease: str = "a",
    event_id: str = "",
    run: str = "",
) -> SpanRecorded:
    name = event_id or f"{actor}-{activity}-{start}-{end}"
    return SpanRecorded(name, lease, actor, "rollout", activity, start, end, 0, 0, run)


def lines(booked: BookedLease) -> list[tuple[str, str, int, int, int]]:
    return [(piece.activity, piece.actor, piece.start_ns, piece.end_ns, piece.ns) for piece in booked.slices]


def book_one(*events: Event, as_of: int = 10**18) -> tuple[BookedLease, list[Rejection]]:
    booked, rejected = book(events, as_of, POLICY)
    assert all(sum(piece.ns for piece in lease.slices) == lease.ns for lease in booked)
    return booked[0], rejected


def test_time_without_a_span_is_idle():
    lease, rejected = book_one(opened(), span(10, 40), span(40, 60, activity="sync"), closed(100))
    assert lines(lease) == [
        ("idle", "", 0, 10, 10),
        ("generate", "w0", 10, 40, 30),
        ("sync", "w0", 40, 60, 20),
        ("idle", "", 60, 100, 40),
    ]
    assert lease.ending is Ending.RELEASED and rejected == []


def test_an_overlap_is_split_equally_and_the_odd_nanosecond_goes_to_the_first_actor():
    lease, _ = book_one(opened(), span(0, 10, "w0"), span(5, 20, "w1"), span(5, 10, "w2"), closed(20))
    # 0..5 is w0's alone; 5..10 belongs to three (2, 2, 1); 10..20 is w1's alone
    assert lines(lease) == [
        ("generate", "w0", 0, 10, 7),
        ("generate", "w2", 5, 10, 1),
        ("generate", "w1", 5, 20, 12),
    ]


def test_two_spans_of_one_actor_share_the_time_of_that_actor():
    lease, _ = book_one(
        opened(), span(0, 100, "w0"), span(0, 100, "w1"), span(0, 100, "w1", "checkpoint"), closed(100)
    )
    assert {(piece.actor, piece.activity): piece.ns for piece in lease.slices} == {
        ("w0", "generate"): 50,
        ("w1", "generate"): 25,
        ("w1", "checkpoint"): 25,
    }


def test_time_after_the_death_of_the_holder_is_lost():
    lease, _ = book_one(opened(), span(10, 40), Heartbeat("h", 60, "a"), closed(100, reason="lost"))
    assert lines(lease) == [
        ("idle", "", 0, 10, 10),
        ("generate", "w0", 10, 40, 30),
        ("idle", "", 40, 60, 20),
        ("lost", "", 60, 100, 40),
    ]


def test_without_heartbeats_the_last_sign_of_life_is_the_end_of_the_last_span():
    lease, _ = book_one(opened(), span(10, 40), closed(100, reason="lost"))
    assert lines(lease)[-1] == ("lost", "", 40, 100, 60)


def test_a_lease_that_is_never_closed_ends_after_the_grace_period():
    lease, _ = book_one(opened(), span(10, 40), as_of=10**15)
    assert (lease.end_ns, lease.ending) == (40 + POLICY.grace_ns, Ending.ABANDONED)
    assert lines(lease)[-1] == ("lost", "", 40, 90, 50)


def test_an_open_lease_is_booked_until_now():
    lease, _ = book_one(opened(), span(10, 40), as_of=80)
    assert (lease.end_ns, lease.ending) == (80, Ending.OPEN)
    assert lines(lease)[-1] == ("idle", "", 40, 80, 40)


def test_a_span_beyond_as_of_counts_until_then():
    lease, _ = book_one(opened(), span(10, 40), closed(100), as_of=25)
    assert lines(lease) == [("idle", "", 0, 10, 10), ("generate", "w0", 10, 25, 15)]


def test_a_close_long_after_the_last_sign_of_life_counts():
    lease, _ = book_one(opened(), closed(10**6))
    assert lease.ns == 10**6


@pytest.mark.parametrize(
    "bad", [span(-20, 5), span(90, 120), span(200, 210)], ids=["before", "over", "after"]
)
def test_a_span_outside_its_lease_is_quarantined_without_other_effects(bad: SpanRecorded):
    lease, rejected = book_one(opened(), span(10, 40), bad, closed(100))
    assert [row.event_id for row in rejected] == [bad.event_id]
    assert "outside lease a" in rejected[0].reason
    assert lines(lease) == [
        ("idle", "", 0, 10, 10),
        ("generate", "w0", 10, 40, 30),
        ("idle", "", 40, 100, 60),
    ]


def test_a_span_that_extends_beyond_its_lease_by_the_clock_skew_is_truncated():
    lease, rejected = book_one(opened(), span(-5, 40), span(60, 105), closed(100))
    assert rejected == []
    assert lines(lease) == [
        ("generate", "w0", 0, 40, 40),
        ("idle", "", 40, 60, 20),
        ("generate", "w0", 60, 100, 40),
    ]


def test_a_slice_never_crosses_midnight():
    lease, _ = book_one(opened(), span(DAY_NS - 10, DAY_NS + 20), closed(DAY_NS + 30))
    assert lines(lease) == [
        ("idle", "", 0, DAY_NS - 10, DAY_NS - 10),
        ("generate", "w0", DAY_NS - 10, DAY_NS, 10),
        ("generate", "w0", DAY_NS, DAY_NS + 20, 20),
        ("idle", "", DAY_NS + 20, DAY_NS + 30, 10),
    ]


def test_shared_spans_are_cut_at_midnight_too():
    lease, _ = book_one(
        opened(DAY_NS - 10),
        span(DAY_NS - 10, DAY_NS + 10, "w0"),
        span(DAY_NS - 5, DAY_NS + 10, "w1"),
        closed(DAY_NS + 10),
    )
    assert [(piece.actor, piece.start_ns // DAY_NS, piece.ns) for piece in lease.slices] == [
        ("w0", 0, 8),
        ("w1", 0, 2),
        ("w0", 1, 5),
        ("w1", 1, 5),
    ]


def test_contradicting_events_are_quarantined_and_the_first_one_counts():
    events = [
        opened(),
        opened(3, event_id="again"),
        closed(100),
        closed(120, event_id="late"),
        closed(-7, event_id="early"),
        span(0, 1, lease="unknown"),
        closed(5, lease="unknown"),
    ]
    lease, rejected = book_one(*events)
    assert (lease.start_ns, lease.end_ns) == (0, 100)
    assert {row.event_id for row in rejected} == {
        "again-a",
        "late-a",
        "early-a",
        "w0-generate-0-1",
        "close-unknown",
    }


def test_a_correction_replaces_or_removes_an_event():
    wrong, extra = span(10, 40, event_id="wrong"), span(50, 60, event_id="extra")
    right = event_to_json(span(10, 30, event_id="right"))
    fixes = [
        Correction("c1", 1, "wrong", "clock was off", right),
        Correction("c2", 2, "extra", "counted elsewhere"),
    ]
    lease, rejected = book_one(opened(), wrong, extra, closed(100), *fixes)
    assert lines(lease) == [
        ("idle", "", 0, 10, 10),
        ("generate", "w0", 10, 30, 20),
        ("idle", "", 30, 100, 70),
    ]
    assert rejected == []


def test_a_corrected_correction_restores_the_original_event():
    wrong = span(10, 40, event_id="wrong")
    voided = Correction("c1", 1, "wrong", "a mistake")
    restored = Correction("c2", 2, "c1", "it was right after all")
    lease, _ = book_one(opened(), wrong, voided, restored, closed(100))
    assert ("generate", "w0", 10, 40, 30) in lines(lease)


def test_a_correction_of_an_unknown_event_is_quarantined():
    _, rejected = book_one(opened(), closed(10), Correction("c", 1, "nobody", "?"))
    assert [row.event_id for row in rejected] == ["c"]


def test_a_span_can_be_attributed_to_another_run():
    lease, _ = book_one(opened(run="judge"), span(0, 60, run="r1"), span(60, 80, run="r2"), closed(100))
    assert [(piece.run_id, piece.ns) for piece in lease.slices] == [("r1", 60), ("r2", 20), ("judge", 20)]
