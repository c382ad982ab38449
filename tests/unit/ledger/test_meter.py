"""The cost of a run so far, computed without reading its events again."""

from decimal import Decimal

from orchestrator.ledger.booking import BookingPolicy
from orchestrator.ledger.calendar import HOUR_NS
from orchestrator.ledger.events import (
    Correction,
    Heartbeat,
    LeaseClosed,
    LeaseOpened,
    SpanRecorded,
    event_to_json,
)
from orchestrator.ledger.ledger import Ledger
from tests.fakes.random_ledgers import MIDNIGHT, price_book

POLICY = BookingPolicy(grace_ns=HOUR_NS, skew_ns=0)
BEFORE, AFTER = Decimal("8400000000002.333333"), Decimal("6600000000000")
"""Dollars per accelerator-hour of an h100, before and after midnight."""


def opened(lease: str, hour: int, run: str = "r") -> LeaseOpened:
    return LeaseOpened(f"o-{lease}", MIDNIGHT + hour * HOUR_NS, lease, run, 1, "gpu", "h100", "n", "pg", 0)


def closed(lease: str, hour: int, reason: str = "released") -> LeaseClosed:
    return LeaseClosed(f"c-{lease}", MIDNIGHT + hour * HOUR_NS, lease, reason)


def span(lease: str, first: int, last: int) -> SpanRecorded:
    start, end = MIDNIGHT + first * HOUR_NS, MIDNIGHT + last * HOUR_NS
    return SpanRecorded(f"s-{lease}-{first}", lease, "w", "rollout", "generate", start, end, 0, 0)


def ledger_at(hour: int) -> Ledger:
    return Ledger.in_memory(price_book(), POLICY, lambda: MIDNIGHT + hour * HOUR_NS)


def cost(ledger: Ledger, hour: int) -> Decimal:
    return ledger.cost_so_far("r", MIDNIGHT + hour * HOUR_NS)


def test_an_open_lease_costs_until_now_and_a_closed_one_until_its_close():
    ledger = ledger_at(100)
    ledger.book([opened("a", 1), Heartbeat("h", MIDNIGHT + 4 * HOUR_NS, "a")])
    assert cost(ledger, 3) == 2 * AFTER
    assert cost(ledger, 4) == 3 * AFTER
    ledger.book([closed("a", 6)])
    assert cost(ledger, 50) == 5 * AFTER


def test_a_lease_that_is_never_closed_costs_until_the_grace_period_ends():
    ledger = ledger_at(100)
    ledger.book([opened("a", 1), span("a", 1, 3)])
    assert cost(ledger, 99) == 3 * AFTER


def test_each_day_has_its_own_price():
    ledger = ledger_at(100)
    ledger.book([opened("a", -2), closed("a", 3)])
    assert abs(cost(ledger, 99) - (2 * BEFORE + 3 * AFTER)) < 1


def test_leases_of_other_runs_do_not_count():
    ledger = ledger_at(100)
    ledger.book([opened("a", 1), closed("a", 2), opened("b", 1, run="other"), closed("b", 9)])
    assert cost(ledger, 99) == AFTER


def test_a_span_before_its_lease_is_not_a_sign_of_life_in_any_order():
    for events in ([opened("a", 1), span("a", 0, 5)], [span("a", 0, 5), opened("a", 1)]):
        ledger = ledger_at(100)
        for event in events:
            ledger.book([event])
            ledger.cost_so_far("r")
        assert cost(ledger, 99) == AFTER


def test_after_a_correction_the_whole_journal_is_read():
    ledger = ledger_at(100)
    ledger.book([opened("a", 1), closed("a", 6)])
    assert cost(ledger, 99) == 5 * AFTER
    ledger.book([Correction("fix", MIDNIGHT, "c-a", "it ended earlier", event_to_json(closed("a", 3)))])
    assert cost(ledger, 99) == 2 * AFTER


def test_a_second_ledger_on_the_same_journal_sees_the_events_of_the_first():
    first = ledger_at(100)
    first.book([opened("a", 1)])
    second = first.priced_with(price_book())
    assert cost(second, 2) == AFTER
    first.book([closed("a", 4)])
    assert cost(second, 99) == 3 * AFTER
