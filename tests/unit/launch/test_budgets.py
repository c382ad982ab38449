"""A run within its own budget and those of the ledger, in virtual time, at 1 USD per second."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

import pytest

from orchestrator.clock import FakeClock
from orchestrator.config.run_config import BudgetConfig
from orchestrator.launch.budgets import OWN, BudgetSubject, BudgetWarning, RunBudgets, StepTimer
from orchestrator.ledger.budgets import Budget, TransferKind
from orchestrator.ledger.calendar import DAY_NS, month_bounds
from orchestrator.ledger.events import LeaseClosed, LeaseOpened
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.prices import PriceBook

FIRST, END = month_bounds("2026-02")
SECOND = 1_000_000_000
BOOK: dict[str, Any] = {
    "name": "b",
    "currency": "USD",
    "region": "x",
    "commitment": "on_demand",
    "prices": [
        {
            "sku": "s",
            "resource": "gpu",
            "region": "x",
            "commitment": "on_demand",
            "amount": "1800",
            "currency": "USD",
            "from": "2020-01-01",
            "to": None,
            "source": "test",
            "retrieved": "2026-01-01",
        }
    ],
    "rates": [],
}


def config(limit: str | None = None) -> BudgetConfig:
    return BudgetConfig(
        limit=None if limit is None else Decimal(limit),
        warn_at=(0.5, 0.9),
        currency="USD",
        webhook=None,
        stop_seconds=10.0,
        cancel_seconds=3.0,
        reserve_seconds=20.0,
        expire_seconds=600.0,
    )


class Run:
    """A run of two accelerators whose costs are checked every second."""

    def __init__(
        self, ledger: Ledger, clock: FakeClock, name: str = "run", attempt: int = 1, own: str | None = None
    ) -> None:
        self.ledger, self.clock, self.name, self.attempt = ledger, clock, name, attempt
        self.pace = StepTimer(lambda: clock.now_ns() / 1e9)
        labels = {"team": "blue", "run": name}
        spender = BudgetSubject(name, attempt, labels, accelerators=2, sku="s")
        self.budgets = RunBudgets(spender, config(own), PriceBook.parse(BOOK), self.pace, 1.0, clock.now_ns)
        self.warned: list[BudgetWarning] = []
        self.away = False

    def hold(self) -> None:
        for slot in range(2):
            lease = f"{self.name}/{self.attempt}/{slot}"
            opened = LeaseOpened(lease, self.clock.now_ns(), lease, self.name, 1, "gpu", "s", "n", "pg", slot)
            self.ledger.book([opened])

    def give_back(self) -> None:
        for slot in range(2):
            lease = f"{self.name}/{self.attempt}/{slot}"
            self.ledger.book([LeaseClosed(f"{lease}-end", self.clock.now_ns(), lease, "released")])

    def cost(self) -> Decimal:
        return self.ledger.cost_so_far(self.name)

    def look(self) -> None:
        if self.away:
            self.warned += self.budgets.round(None, None)
        else:
            self.warned += self.budgets.round(self.ledger, self.cost())

    def until_refused(self, step: int = 5, at_most: int = 1000) -> int:
        """Run steps until one of them ends with an obeyed refusal. Returns the number of steps."""
        self.look()
        self.pace.step_began()
        for number in range(at_most):
            if self.budgets.refusal:
                return number
            for _ in range(step):
                self.clock.advance(SECOND)
                self.look()
            self.pace.step_ended()
        return at_most

    def stop(self, seconds: int = 8) -> None:
        """Write a checkpoint, then release the slots."""
        self.clock.advance(seconds * SECOND)
        self.give_back()
        self.budgets.close(self.ledger, self.cost())


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(FIRST * DAY_NS)


@pytest.fixture
def ledger(clock: FakeClock) -> Ledger:
    return Ledger.in_memory(BOOK, now_ns=clock.now_ns)


def define(ledger: Ledger, name: str, limit: str, currency: str = "USD", **scope: str) -> None:
    shares = (Decimal("0.5"), Decimal("0.9"))
    ledger.budgets.define(Budget(name, scope, FIRST, END, Decimal(limit), currency, shares))


def test_a_team_budget_stops_a_run_before_its_limit_and_settles_the_cost(ledger: Ledger, clock: FakeClock):
    define(ledger, "blue", "200", team="blue")
    define(ledger, "green", "1", team="green")
    run = Run(ledger, clock)
    run.hold()
    steps = run.until_refused()
    assert 20 <= steps <= 36
    assert "budget blue" in run.budgets.refusal
    run.stop()
    status = ledger.budgets.status("blue")
    assert status.settled == run.cost() <= 200
    assert status.pending == 0
    assert ledger.budgets.status("green").settled == 0


def test_a_budget_stop_reports_the_remaining_and_the_required_amount(ledger: Ledger, clock: FakeClock):
    define(ledger, "blue", "200", team="blue")
    run = Run(ledger, clock)
    run.hold()
    run.until_refused()
    left, step, stop = re.findall(
        r"reserved, ([\d.]+) USD is left. The next step \(.* 5\.0 s\) would cost ([\d.]+),"
        r" the checkpoint and the shutdown \(budget.stop_seconds, [\d.]+ s\) ([\d.]+);",
        run.budgets.refusal,
    )[0]
    rate = Decimal(step) / 5
    assert Decimal(stop) == rate * Decimal(str(config(None).stop_seconds))
    assert Decimal(stop) <= Decimal(left)


def test_a_first_step_of_unknown_length_is_covered(ledger: Ledger, clock: FakeClock):
    define(ledger, "blue", "200", team="blue")
    run = Run(ledger, clock)
    run.hold()
    assert run.until_refused(step=70) == 1
    run.stop()
    assert ledger.budgets.status("blue").settled == run.cost() <= 200


def test_a_run_that_cannot_reserve_anything_is_rejected_immediately(ledger: Ledger, clock: FakeClock):
    define(ledger, "blue", "5", team="blue")
    run = Run(ledger, clock)
    run.look()
    assert run.budgets.refusal.startswith("budget blue: ")
    run.budgets.close(ledger, Decimal(0))
    assert ledger.budgets.status("blue").settled == 0


def test_the_runs_own_limit_holds_and_counts_earlier_attempts(ledger: Ledger, clock: FakeClock):
    first = Run(ledger, clock, own="100")
    first.hold()
    first.until_refused()
    assert OWN in first.budgets.refusal
    first.stop()
    assert 60 <= first.cost() <= 100
    again = Run(ledger, clock, attempt=2, own="100")
    again.hold()
    again.until_refused(step=1)
    again.stop()
    assert first.cost() <= 100
    nothing = Run(ledger, clock, attempt=3, own="50")
    nothing.look()
    assert OWN in nothing.budgets.refusal


def test_each_threshold_is_reported_once_over_all_runs(ledger: Ledger, clock: FakeClock):
    define(ledger, "blue", "200", team="blue")
    one, other = Run(ledger, clock, "one"), Run(ledger, clock, "other")
    one.hold()
    other.look()
    one.until_refused()
    other.look()
    said = [(warned.status.budget.name, warned.threshold) for warned in (*one.warned, *other.warned)]
    assert sorted(said) == [("blue", Decimal("0.5")), ("blue", Decimal("0.9"))]
    message = one.warned[0].to_json()
    assert message["text"].startswith("budget blue: ") and message["threshold"] == "0.5"
    assert (message["limit"], message["currency"]) == ("200.000000", "USD")


def test_an_unavailable_ledger_does_not_stop_a_run_and_spending_is_settled_later(
    ledger: Ledger, clock: FakeClock
):
    define(ledger, "blue", "1000", team="blue")
    run = Run(ledger, clock)
    run.hold()
    run.look()
    run.away = True
    assert run.until_refused(at_most=20) == 20
    run.away = False
    run.look()
    status = ledger.budgets.status("blue")
    assert (run.budgets.refusal, status.settled) == ("", 100)
    run.stop()
    assert ledger.budgets.status("blue").settled == run.cost()


def test_a_reservation_that_expired_during_an_outage_is_settled_again(ledger: Ledger, clock: FakeClock):
    define(ledger, "blue", "5000", team="blue")
    run = Run(ledger, clock)
    run.hold()
    run.look()
    run.away = True
    run.until_refused(at_most=150)
    ledger.budgets.expire()
    run.away = False
    run.look()
    assert ledger.budgets.status("blue").settled == 750


def test_overspending_during_an_outage_stops_the_run(ledger: Ledger, clock: FakeClock):
    define(ledger, "blue", "60", team="blue")
    run = Run(ledger, clock)
    run.hold()
    run.look()
    run.away = True
    run.until_refused(at_most=20)
    run.away = False
    run.look()
    assert "budget blue" in run.budgets.refusal
    run.stop()
    assert ledger.budgets.status("blue").settled <= 60


def test_the_runs_own_limit_is_enforced_by_an_estimate_during_an_outage(ledger: Ledger, clock: FakeClock):
    run = Run(ledger, clock, own="100")
    run.away = True
    run.hold()
    assert run.until_refused() < 20
    run.stop()
    assert 60 <= run.cost() <= 100


def test_the_cost_of_a_killed_attempt_is_settled_by_the_next(ledger: Ledger, clock: FakeClock):
    define(ledger, "blue", "1000", team="blue")
    killed = Run(ledger, clock)
    killed.hold()
    killed.until_refused(at_most=7)
    killed.give_back()  # the cost of 35 s is in the journal; the guard was never closed
    assert ledger.budgets.status("blue").settled < 35
    clock.advance(100 * SECOND)
    following = Run(ledger, clock, attempt=2)
    following.look()
    assert ledger.budgets.status("blue").settled == 35
    following.hold()
    following.until_refused(at_most=2)
    following.stop()
    status = ledger.budgets.status("blue")
    assert (status.settled, status.pending) == (following.cost(), 0)


def test_the_cost_of_a_killed_attempt_is_settled_after_its_reservation_expired(
    ledger: Ledger, clock: FakeClock
):
    define(ledger, "blue", "1000", team="blue")
    killed = Run(ledger, clock)
    killed.hold()
    killed.until_refused(at_most=3)
    killed.give_back()
    clock.advance(1000 * SECOND)
    assert ledger.budgets.expire() != []
    following = Run(ledger, clock, attempt=2)
    following.look()
    assert ledger.budgets.status("blue").settled == 15


def test_a_budget_defined_during_a_run_only_covers_later_spending(ledger: Ledger, clock: FakeClock):
    run = Run(ledger, clock)
    run.hold()
    run.until_refused(at_most=4)
    define(ledger, "blue", "1000", team="blue")
    run.until_refused(at_most=2)
    run.stop()
    assert 17 <= ledger.budgets.status("blue").settled <= 19 < run.cost()


def test_a_budget_in_another_currency_rejects_the_run(ledger: Ledger, clock: FakeClock):
    define(ledger, "blue", "1000", currency="EUR", team="blue")
    run = Run(ledger, clock)
    run.look()
    assert run.budgets.refusal == "budget blue is in EUR, the run counts in USD"


def test_a_limit_in_another_currency_than_the_ledgers_is_rejected(clock: FakeClock):
    prices = [{**BOOK["prices"][0], "currency": "EUR"}]
    euros = Ledger.in_memory({**BOOK, "currency": "EUR", "prices": prices}, now_ns=clock.now_ns)
    run = Run(euros, clock, own="100")
    run.hold()
    run.look()
    assert run.budgets.refusal.startswith("the ledger counts in EUR, the run in USD: ")


def test_a_price_that_differs_from_the_ledgers_is_reported_once(
    clock: FakeClock, caplog: pytest.LogCaptureFixture
):
    dearer = {**BOOK, "prices": [{**BOOK["prices"][0], "amount": "3600"}]}
    run = Run(Ledger.in_memory(dearer, now_ns=clock.now_ns), clock)
    run.hold()
    for _ in range(2):
        run.look()
    assert caplog.text.count("the ledger has a different price for s") == 1


def test_each_reservation_ends_once(ledger: Ledger, clock: FakeClock):
    define(ledger, "blue", "200", team="blue")
    run = Run(ledger, clock)
    run.hold()
    run.until_refused()
    run.stop()
    with ledger.budgets._store.transaction() as book:  # pyright: ignore[reportPrivateUsage]
        lines = book.of_run("run")
    reserved = [line.reservation for line in lines if line.kind is TransferKind.RESERVE]
    settled = [line.reservation for line in lines if line.kind is TransferKind.SETTLE]
    assert sorted(reserved) == sorted(settled) and len(set(settled)) == len(settled) > 3


@pytest.mark.parametrize(("own", "limit"), [(None, 200), ("90", 90)])
def test_an_endless_step_is_cancelled_before_the_limit_is_exceeded(
    own: str | None, limit: int, ledger: Ledger, clock: FakeClock
):
    """Steps of 5 s, then one that never ends."""
    if own is None:
        define(ledger, "blue", str(limit), team="blue")
    run = Run(ledger, clock, own=own)
    run.hold()
    run.until_refused(at_most=8)
    assert not run.budgets.refusal
    refused_at = None
    while not run.budgets.exhausted:
        clock.advance(SECOND)
        run.look()
        refused_at = refused_at or (run.cost() if run.budgets.refusal else None)
        assert run.cost() <= limit
    assert refused_at is not None and run.cost() - refused_at >= 5, "broken off as late as can be"
    assert "remains of the reservation in budget" in run.budgets.exhausted
    run.stop(seconds=3)
    assert limit / 2 <= run.cost() <= limit
    if own is None:
        assert ledger.budgets.status("blue").settled == run.cost()


def test_a_step_of_up_to_twice_the_longest_is_not_cancelled(ledger: Ledger, clock: FakeClock):
    run = Run(ledger, clock, own="100")
    run.hold()
    run.until_refused(step=5, at_most=4)
    while not run.budgets.refusal:
        run.until_refused(step=10, at_most=1)
    clock.advance(8 * SECOND)  # a checkpoint, during which the books are looked at too
    run.look()
    assert not run.budgets.exhausted
    run.stop(seconds=1)
    assert run.cost() <= 100


def test_a_run_with_a_used_up_reservation_still_writes_its_checkpoint_after_an_outage(
    ledger: Ledger, clock: FakeClock
):
    define(ledger, "blue", "60", team="blue")
    run = Run(ledger, clock)
    run.hold()
    run.look()
    run.away = True
    run.until_refused(at_most=20)
    run.away = False
    for _ in range(5):
        run.look()
        clock.advance(SECOND)
    assert run.budgets.refusal and not run.budgets.exhausted
