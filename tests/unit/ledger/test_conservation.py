"""No nanosecond and no cent is lost, whatever happened and in whatever order events arrive.

The properties compare the ledger with an independent account that counts single nanoseconds.
"""

import random
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.ledger.accounts import Accounts
from orchestrator.ledger.archive import MemoryArchive, verify
from orchestrator.ledger.booking import BookedLease, Ending, book
from orchestrator.ledger.calendar import DAY_NS, HOUR_NS, month_bounds
from orchestrator.ledger.corrections import apply_corrections
from orchestrator.ledger.derive import lines_from_events
from orchestrator.ledger.events import IDLE, LOST, Event, SpanRecorded
from orchestrator.ledger.journal import MemoryJournal
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.lines import Lines
from orchestrator.ledger.money import round_total
from orchestrator.ledger.report_by import report_by
from tests.fakes.random_ledgers import MIDNIGHT, POLICY, ledgers, moments, price_book

QUICK = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
LATER = MIDNIGHT + 40 * DAY_NS


def covered(lease: BookedLease, spans: list[SpanRecorded]) -> int:
    """Nanoseconds of the lease that lie in at least one of its spans, counted one by one."""
    return sum(
        any(span.start_ns <= moment < span.end_ns for span in spans)
        for moment in range(lease.start_ns, lease.end_ns)
    )


@pytest.mark.slow
@settings(QUICK, max_examples=700)
@given(ledgers(), moments)
def test_spans_idle_and_lost_time_add_up_to_the_lease(events: list[Event], as_of: int):
    booked, rejected = book(events, as_of, POLICY)
    refused = {row.event_id for row in rejected}
    counted, _ = apply_corrections(events)
    for lease in booked:
        spans = [
            event
            for event in counted
            if isinstance(event, SpanRecorded)
            and event.lease_id == lease.opened.lease_id
            and event.event_id not in refused
        ]
        assert sum(piece.ns for piece in lease.slices) == lease.ns >= 0
        assert all(piece.ns >= 0 for piece in lease.slices)
        used = sum(piece.ns for piece in lease.slices if piece.activity not in (IDLE, LOST))
        assert used == covered(lease, spans)
        for piece in lease.slices:
            assert lease.start_ns <= piece.start_ns < piece.end_ns <= lease.end_ns <= as_of
            assert piece.start_ns // DAY_NS == (piece.end_ns - 1) // DAY_NS
        if lease.ending is Ending.ABANDONED:
            assert sum(piece.ns for piece in lease.slices if piece.activity == LOST) == POLICY.grace_ns


@pytest.mark.slow
@settings(QUICK, max_examples=300)
@given(ledgers(), st.randoms(use_true_random=False))
def test_order_and_duplicates_of_events_do_not_matter(events: list[Event], chance: random.Random):
    again = [*events, *chance.sample(events, k=len(events) // 2)]
    chance.shuffle(again)
    assert lines_from_events(again, LATER, POLICY) == lines_from_events(events, LATER, POLICY)
    assert sorted(map(str, book(again, LATER, POLICY)[1])) == sorted(map(str, book(events, LATER, POLICY)[1]))


@pytest.mark.slow
@settings(QUICK, max_examples=300)
@given(ledgers(), st.lists(st.integers(0, 30), max_size=4), st.integers(0, 3))
def test_closing_months_preserves_totals_and_past_reports(
    events: list[Event], arrivals: list[int], closings: int
):
    clock = [MIDNIGHT + DAY_NS]
    journal, archive = MemoryJournal(lambda: clock[0]), MemoryArchive(lambda: clock[0])
    archive.adopt(price_book())
    accounts = Accounts(journal, archive, POLICY)
    months = ["2026-01", "2026-02", "2026-03"][:closings]
    answers: dict[int, Lines] = {}
    cuts = [0, *sorted(min(place, len(events)) for place in arrivals), len(events)]
    for first, last in pairwise(cuts):
        journal.append(events[first:last])
        answers[clock[0]] = by_kind(accounts, clock[0])
        if months:
            month = months.pop(0)
            clock[0] = max(clock[0], month_bounds(month)[1] * DAY_NS + POLICY.grace_ns)
            accounts.close(month, clock[0])
            answers[clock[0]] = by_kind(accounts, clock[0])
        clock[0] += 1
    assert by_kind(accounts, clock[0]) == without_price(lines_from_events(events, clock[0], POLICY))
    for moment, answer in answers.items():
        assert by_kind(accounts, moment) == answer
    closes = archive.closes()
    verify(archive.postings(closes[-1].last_posting if closes else 0), closes)


def by_kind(accounts: Accounts, moment: int) -> Lines:
    total: Lines = {}
    for line in accounts.counted(moment):
        key = line.key._replace(unit_price="", currency="")
        total[key] = total.get(key, 0) + line.ns
    return {key: ns for key, ns in total.items() if ns}


def without_price(lines: Lines) -> Lines:
    total: Lines = {}
    for key, ns in lines.items():
        plain = key._replace(unit_price="", currency="")
        total[plain] = total.get(plain, 0) + ns
    return {key: ns for key, ns in total.items() if ns}


@pytest.mark.slow
@settings(QUICK, max_examples=300)
@given(
    ledgers(),
    st.lists(st.sampled_from(("team", "role", "activity", "run", "day")), unique=True),
    st.integers(0, 9),
)
def test_printed_lines_add_up_to_the_printed_total(events: list[Event], by: list[str], places: int):
    ledger = Ledger.in_memory(price_book(), POLICY, lambda: LATER)
    ledger.book(events)
    report = ledger.report_by(by, places=places)
    exact = Fraction(0)
    pricer = ledger.prices.pricer()
    for key, ns in lines_from_events(events, LATER, POLICY).items():
        exact += Fraction(ns, HOUR_NS) * pricer.unit_price(key)
    assert report.unpriced == ()
    assert sum((Fraction(row.amount or 0) for row in report.rows), Fraction(0)) == Fraction(report.amount)
    hours = sum((Fraction(row.accelerator_hours) for row in report.rows), Fraction(0))
    assert hours == Fraction(report.accelerator_hours)
    assert abs(Fraction(report.amount) - exact) <= Fraction(1, 2 * 10**places)
    assert sum(row.ns for row in report.rows) == report.ns


@pytest.mark.slow
@settings(QUICK, max_examples=200)
@given(ledgers(corrected=False), moments)
def test_the_cost_so_far_equals_the_cost_of_the_leases(events: list[Event], as_of: int):
    ledger = Ledger.in_memory(price_book(), POLICY, lambda: LATER)
    half = len(events) // 2
    ledger.book(events[:half])
    ledger.cost_so_far("r0", as_of)
    ledger.book(events[half:])
    booked, _ = book(events, as_of, POLICY)
    pricer = ledger.prices.pricer()
    exact = Fraction(0)
    for lease in booked:
        if lease.opened.run_id == "r0":
            for piece in lease.slices:
                price = pricer.per_hour(lease.opened.sku, "", "", piece.start_ns // DAY_NS)
                exact += Fraction(piece.ns, HOUR_NS) * price
    for key, ns in lines_from_events(events, as_of, POLICY).items():
        if key.activity == "stated" and key.run_id == "r0":
            exact += Fraction(ns, HOUR_NS) * pricer.unit_price(key)
    assert abs(Fraction(ledger.cost_so_far("r0", as_of)) - exact) <= Fraction(1, 2 * 10**6)


@pytest.mark.slow
@settings(QUICK, max_examples=200)
@given(st.lists(st.fractions(-1000, 1000), max_size=12), st.integers(0, 6))
def test_largest_remainder_never_moves_a_line_by_a_unit_or_more(values: list[Fraction], places: int):
    rounded, total = round_total(values, places)
    assert sum(map(Fraction, rounded), Fraction(0)) == Fraction(total)
    assert abs(Fraction(total) - sum(values, Fraction(0))) <= Fraction(1, 2 * 10**places)
    for value, line in zip(values, rounded, strict=True):
        assert abs(Fraction(line) - value) < Fraction(1, 10**places)


def test_a_report_without_dimensions_is_one_line():
    assert report_by([], [], Ledger.in_memory(price_book()).prices.pricer()).rows == ()
