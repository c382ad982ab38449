"""Closing months: when a month cannot be closed, what a closed month keeps, and how tampering is detected."""

from dataclasses import replace
from fractions import Fraction

import pytest

from orchestrator.ledger.accounts import Accounts
from orchestrator.ledger.archive import MemoryArchive, verify
from orchestrator.ledger.booking import BookingPolicy
from orchestrator.ledger.calendar import DAY_NS, HOUR_NS, month_bounds
from orchestrator.ledger.errors import LedgerError, LedgerStateError, UnknownPriceError
from orchestrator.ledger.events import Event, LeaseClosed, LeaseOpened, RunDeclared, UsageStated
from orchestrator.ledger.headline import headline
from orchestrator.ledger.journal import MemoryJournal
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.prices import PriceBook

JANUARY, FEBRUARY, MARCH = (month_bounds(month)[0] * DAY_NS for month in ("2026-01", "2026-02", "2026-03"))
POLICY = BookingPolicy(grace_ns=900 * 10**9, skew_ns=0)


def prices(amount: str, name: str = "t", sku: str = "h100") -> PriceBook:
    price = {
        "sku": sku,
        "resource": "gpu",
        "region": "x",
        "commitment": "on_demand",
        "amount": amount,
        "currency": "USD",
        "from": "2020-01-01",
        "to": None,
        "source": "a test",
        "retrieved": "2026-01-01",
    }
    return PriceBook.parse(
        {"name": name, "currency": "USD", "region": "x", "commitment": "on_demand", "prices": [price]}
    )


class Desk:
    """A ledger in memory with a clock that can be set."""

    def __init__(self, *events: Event) -> None:
        self.now = JANUARY
        self.journal, self.archive = MemoryJournal(lambda: self.now), MemoryArchive(lambda: self.now)
        self.ledger = Ledger(self.journal, self.archive, POLICY, lambda: self.now)
        self.ledger.prices.adopt(prices("2"))
        self.ledger.book(events)

    def amounts(self, *by: str, as_of: int | None = None) -> dict[tuple[object, ...], str]:
        report = self.ledger.report_by(by, as_of_ns=as_of, places=2)
        return {row.values: str(row.amount) for row in report.rows}


def lease(name: str, start: int, hours: int, sku: str = "h100") -> list[Event]:
    return [
        LeaseOpened(f"o-{name}", start, name, "r", 1, "gpu", sku, "n", "pg", 0),
        LeaseClosed(f"c-{name}", start + hours * HOUR_NS, name, "released"),
    ]


def declared(team: str, at: int = JANUARY, event_id: str = "d") -> RunDeclared:
    return RunDeclared(event_id, at, "r", 1, "grpo", "debug", "o", "c", team, "x", "p", "")


def test_a_month_closes_only_after_its_end_and_the_grace_and_in_order():
    desk = Desk()
    for moment in (JANUARY, FEBRUARY, FEBRUARY + POLICY.grace_ns - 1):
        desk.now = moment
        with pytest.raises(LedgerStateError, match="15 minutes after it ended"):
            desk.ledger.close("2026-01")
    desk.now = FEBRUARY + POLICY.grace_ns
    desk.ledger.close("2026-01")
    desk.now += 90 * DAY_NS
    with pytest.raises(LedgerStateError, match="2026-02 comes before 2026-03"):
        desk.ledger.close("2026-03")
    with pytest.raises(LedgerStateError, match="already closed"):
        desk.ledger.close("2026-01")
    with pytest.raises(LedgerError, match="YYYY-MM"):
        desk.ledger.close("January")


def test_a_month_with_unpriced_usage_cannot_be_closed():
    desk = Desk(*lease("a", JANUARY, 1), *lease("b", JANUARY, 1, sku="tpu"))
    desk.now = FEBRUARY + DAY_NS
    with pytest.raises(UnknownPriceError, match="tpu"):
        desk.ledger.close("2026-01")
    assert desk.ledger.closes() == [] and desk.ledger.verify() == 0
    desk.ledger.prices.adopt(prices("5", "more", "tpu"))
    assert desk.ledger.close("2026-01").postings == 2


def test_a_price_change_never_rewrites_a_closed_month():
    desk = Desk(*lease("a", JANUARY, 10), *lease("b", FEBRUARY, 10))
    desk.now = FEBRUARY + DAY_NS
    desk.ledger.close("2026-01")
    desk.ledger.prices.adopt(prices("3"))
    assert desk.amounts("month") == {("2026-01",): "20.00", ("2026-02",): "30.00"}
    desk.ledger.book(lease("late", JANUARY, 1))
    assert desk.amounts("posted", "kind") == {
        ("2026-01", "usage"): "20.00",
        ("2026-02", "adjustment"): "2.00",
        ("2026-02", "usage"): "30.00",
    }


def test_a_new_label_moves_a_closed_month_by_reversal_in_the_next():
    desk = Desk(declared("blue"), *lease("a", JANUARY, 10))
    desk.now = FEBRUARY + DAY_NS
    desk.ledger.close("2026-01")
    desk.ledger.book([declared("green", JANUARY + 1, "d2")])
    expected = {("2026-01", "blue"): "20.00", ("2026-02", "blue"): "-20.00", ("2026-02", "green"): "20.00"}
    assert desk.amounts("posted", "team") == expected
    desk.now = MARCH + DAY_NS
    desk.ledger.close("2026-02")
    assert desk.amounts("posted", "team") == expected
    assert desk.ledger.verify() == 3


def test_a_report_as_of_a_past_day_never_changes():
    desk = Desk(declared("blue"), *lease("a", JANUARY, 10))
    desk.now = JANUARY + 20 * DAY_NS
    then = desk.now
    first = desk.ledger.report_by(["team", "role"], as_of_ns=then).to_dict()
    desk.now += 1
    desk.ledger.book([*lease("b", JANUARY, 5), declared("green", JANUARY + 1, "d2")])
    desk.ledger.prices.adopt(prices("9"))
    desk.now = FEBRUARY + DAY_NS
    desk.ledger.close("2026-01")
    assert desk.ledger.report_by(["team", "role"], as_of_ns=then).to_dict() == first
    assert desk.ledger.report_by(["team", "role"]).to_dict() != first


def test_a_later_time_of_today_means_now_and_a_later_day_is_rejected():
    opened = lease("a", JANUARY, 10)[0]
    desk = Desk(declared("blue"), opened)
    desk.now = JANUARY + HOUR_NS // 10
    tonight, tomorrow = JANUARY + DAY_NS - 1, JANUARY + DAY_NS
    assert desk.ledger.report("r", tonight).to_dict() == desk.ledger.report("r").to_dict()
    assert desk.ledger.report("r", tonight).leased_ns == HOUR_NS // 10
    assert desk.ledger.report_by(["run"], as_of_ns=tonight).ns == HOUR_NS // 10
    assert headline(desk.ledger, "r", as_of_ns=tonight).to_dict() == headline(desk.ledger, "r").to_dict()
    for ask in (
        lambda: desk.ledger.report("r", tomorrow),
        lambda: desk.ledger.report_by(["team"], as_of_ns=tomorrow),
        lambda: headline(desk.ledger, "r", as_of_ns=tomorrow),
    ):
        with pytest.raises(LedgerError, match="the future is unknown"):
            ask()


def test_days_select_lines_and_adjustments_count_on_the_first_day():
    desk = Desk(*lease("a", JANUARY + 30 * DAY_NS, 48))
    day = month_bounds("2026-02")[0]
    desk.now = FEBRUARY + 3 * DAY_NS
    assert desk.ledger.report_by(["day"], day - 1, day).ns == 24 * HOUR_NS
    assert desk.ledger.report_by(["day"], day, day + 1).ns == 24 * HOUR_NS
    desk.ledger.close("2026-01")
    desk.ledger.book(lease("late", JANUARY, 1))
    report = desk.ledger.report_by(["day", "month", "kind"], day, day + 1)
    assert [(row.values, row.ns) for row in report.rows] == [
        (("2026-02-01", "2026-01", "adjustment"), HOUR_NS),
        (("2026-02-01", "2026-02", "usage"), 24 * HOUR_NS),
    ]


def test_stated_usage_is_spread_over_its_days_and_priced_as_stated():
    quantity = str(2_664_000 * HOUR_NS)
    line = UsageStated(
        "s", "r", "gpu", "h800", quantity, JANUARY, JANUARY + 3 * DAY_NS, "2", "USD", "a paper"
    )
    desk = Desk(line, UsageStated("n", "r", "gpu", "h800", "", JANUARY, JANUARY, "", "", "not published"))
    report = desk.ledger.report_by(["day"], places=2)
    assert [row.ns for row in report.rows] == [888_000 * HOUR_NS] * 3
    assert report.amount == Fraction(5_328_000)


def test_a_changed_posting_or_close_breaks_the_chain():
    desk = Desk(*lease("a", JANUARY, 1), *lease("b", JANUARY, 2), *lease("c", JANUARY, 3))
    desk.now = FEBRUARY + DAY_NS
    close = desk.ledger.close("2026-01")
    postings = list(desk.archive.postings(3))
    assert verify(postings, [close]) == 3
    for place in range(3):
        changed = [*postings[:place], postings[place]._replace(ns=1), *postings[place + 1 :]]
        with pytest.raises(LedgerStateError, match=f"posting {place + 1}"):
            verify(changed, [close])
        with pytest.raises(LedgerStateError):
            verify([*postings[:place], *postings[place + 1 :]], [close])
    with pytest.raises(LedgerStateError, match="close of 2026-01"):
        verify(postings, [replace(close, head="f" * 64)])


def test_two_processes_that_close_the_same_month_close_it_once():
    desk = Desk(*lease("a", JANUARY, 1))
    desk.now = FEBRUARY + DAY_NS
    one, two = (Accounts(desk.journal, desk.archive, POLICY) for _ in range(2))
    close = one.close("2026-01", desk.now)
    with pytest.raises(LedgerStateError, match="already closed"):
        two.close("2026-01", desk.now)
    with pytest.raises(LedgerStateError, match="another month was closed in the meantime"):
        desk.archive.post(replace(close, period="2026-02"), [])
