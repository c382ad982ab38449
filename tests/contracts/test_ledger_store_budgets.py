"""The contract of budget stores: in memory, on SQLite, on PostgreSQL; with 50
concurrent runs on one of them.
"""

import threading
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from orchestrator.clock import FakeClock
from orchestrator.ledger.budget_guard import BudgetGuard
from orchestrator.ledger.budgets import Budget, Budgets, BudgetStore
from orchestrator.ledger.calendar import DAY_NS, month_bounds
from orchestrator.ledger.errors import LedgerError, LedgerStateError, LedgerUnavailableError
from orchestrator.ledger.memory_budgets import MemoryBudgets
from orchestrator.ledger.sql.budgets import SqlBudgets
from orchestrator.ledger.sql.engine import open_engine
from orchestrator.ledger.sql.migrations import require_head
from tests.contracts.ledger_stores import fresh_database

FIRST, END = month_bounds("2026-02")
HOUR = 3_600_000_000_000
POSTGRESQL = pytest.param("postgresql", marks=pytest.mark.slow)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(FIRST * DAY_NS)


@pytest.fixture(params=["sqlite", POSTGRESQL])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/ledger.db"
    return fresh_database()


@pytest.fixture(params=["memory", "sqlite", POSTGRESQL])
def budgets(request: pytest.FixtureRequest, clock: FakeClock, tmp_path: Path) -> Iterator[Budgets]:
    if request.param == "memory":
        yield defined(MemoryBudgets(), clock)
        return
    address = f"sqlite:///{tmp_path}/ledger.db"
    if request.param == "postgresql":
        address = fresh_database()
    engine = open_engine(address)
    require_head(engine)
    yield defined(SqlBudgets(engine, clock.now_ns), clock)
    engine.dispose()


def defined(store: BudgetStore, clock: FakeClock) -> Budgets:
    made = Budgets(store, clock.now_ns)
    made.define(budget("blue", "100", team="blue"))
    made.define(budget("all", "150"))
    return made


def budget(name: str, limit: str, **scope: str) -> Budget:
    warn_at = (Decimal("0.5"), Decimal("0.9"))
    return Budget(name, scope, FIRST, END, Decimal(limit), "USD", warn_at)


def reserve(budgets: Budgets, reservation: str, amount: str, *names: str) -> str:
    """Make a reservation. Returns the reason if it was refused, otherwise an empty string."""
    refusal = budgets.reserve(names or ("blue",), reservation, "run", Decimal(amount), HOUR)
    return refusal.reason if refusal else ""


def balance(budgets: Budgets, name: str = "blue") -> tuple[Decimal, Decimal]:
    status = budgets.status(name)
    return status.pending, status.settled


def test_a_reservation_is_pending_until_it_is_settled_or_voided(budgets: Budgets):
    assert reserve(budgets, "a", "60") == ""
    assert balance(budgets) == (60, 0)
    budgets.settle("a", Decimal("45.50"))
    assert balance(budgets) == (0, Decimal("45.5"))
    assert reserve(budgets, "b", "54.5") == ""
    budgets.void("b")
    assert balance(budgets) == (0, Decimal("45.5"))


def test_a_reservation_beyond_the_budget_is_refused_with_the_amounts(budgets: Budgets):
    reserve(budgets, "a", "60")
    assert reserve(budgets, "b", "40.000001") == (
        "budget blue: 40.000001 USD requested, 40.000000 of 100.000000 available"
    )
    assert balance(budgets) == (60, 0)
    assert reserve(budgets, "c", "40") == ""


def test_a_reservation_is_made_in_all_budgets_or_in_none(budgets: Budgets):
    reserve(budgets, "a", "90", "all")
    assert "budget all" in reserve(budgets, "b", "70", "blue", "all")
    assert (balance(budgets, "blue"), balance(budgets, "all")) == ((0, 0), (90, 0))
    assert reserve(budgets, "c", "60", "blue", "all") == ""
    budgets.settle("c", Decimal(50))
    assert (balance(budgets, "blue"), balance(budgets, "all")) == ((0, 50), (90, 50))


def test_reservations_of_a_dead_run_expire_in_all_its_budgets(budgets: Budgets, clock: FakeClock):
    reserve(budgets, "a", "100", "blue", "all")
    clock.advance(HOUR - 1)
    assert reserve(budgets, "b", "1") != ""
    clock.advance(1)
    assert reserve(budgets, "c", "100") == ""
    assert balance(budgets, "all") == (0, 0)
    with pytest.raises(LedgerStateError, match=r"has already ended \(expire\)"):
        budgets.settle("a", Decimal(1))
    clock.advance(HOUR)
    assert budgets.expire() == ["c"]


def test_repeated_operations_have_no_further_effect(budgets: Budgets):
    for _ in range(2):
        assert reserve(budgets, "a", "60") == ""
    for _ in range(2):
        budgets.settle("a", Decimal(10))
    assert balance(budgets) == (0, 10)
    with pytest.raises(LedgerStateError, match=r"has already ended \(settle\)"):
        budgets.void("a")
    with pytest.raises(LedgerStateError, match="has already ended"):
        reserve(budgets, "a", "60")


def test_more_than_was_reserved_cannot_be_settled(budgets: Budgets):
    reserve(budgets, "a", "60")
    with pytest.raises(LedgerError, match="the amount reserved"):
        budgets.settle("a", Decimal("60.01"))
    with pytest.raises(LedgerStateError, match="Unknown reservation"):
        budgets.settle("nobody", Decimal(1))
    assert balance(budgets) == (60, 0)


def test_a_budget_only_applies_on_its_days(budgets: Budgets, clock: FakeClock):
    clock.advance((END - FIRST) * DAY_NS)
    assert reserve(budgets, "a", "1") == "budget blue applies from 2026-02-01 to 2026-02-28"


def test_a_budget_covers_usage_with_its_labels(budgets: Budgets):
    assert budgets.covering({"team": "blue", "project": "x"}) == ["all", "blue"]
    assert budgets.covering({"team": "green"}) == ["all"]
    assert budgets.covering({"team": "blue"}, END) == []


def test_a_limit_below_the_spent_amount_grants_no_reservations(budgets: Budgets):
    reserve(budgets, "a", "60")
    budgets.define(budget("blue", "50", team="blue"))
    assert budgets.status("blue").available == -10
    assert reserve(budgets, "b", "0.01") != ""


def test_a_threshold_is_reported_once(budgets: Budgets):
    reserve(budgets, "a", "49")
    assert budgets.warn_once("blue") == []
    reserve(budgets, "b", "1")
    assert budgets.warn_once("blue") == [Decimal("0.5")]
    reserve(budgets, "c", "45")
    assert budgets.warn_once("blue") == [Decimal("0.9")]
    assert budgets.warn_once("blue") == []
    assert budgets.status("blue").crossed == (Decimal("0.5"), Decimal("0.9"))


@pytest.mark.parametrize(
    "bad",
    [
        Budget("", {}, FIRST, END, Decimal(1), "USD", ()),
        Budget("b", {}, END, FIRST, Decimal(1), "USD", ()),
        Budget("b", {}, FIRST, END, Decimal(-1), "USD", ()),
        Budget("b", {}, FIRST, END, Decimal(1), "USD", (Decimal("0.9"), Decimal("0.5"))),
    ],
    ids=["no name", "no day", "negative limit", "thresholds out of order"],
)
def test_an_invalid_budget_is_rejected(budgets: Budgets, bad: Budget):
    with pytest.raises(LedgerError, match="budget"):
        budgets.define(bad)
    with pytest.raises(LedgerError, match="an existing budget"):
        budgets.status("nobody")


def test_a_guarded_run_stops_within_its_last_reservation(budgets: Budgets):
    budgets.define(budget("run", "10"))
    guard = BudgetGuard(budgets, lambda: ["run"], "r", 1, HOUR)
    assert guard.advance(Decimal(0), Decimal(4)) is None
    assert guard.advance(Decimal(3), Decimal(4)) is None
    assert balance(budgets, "run") == (4, 3)
    refusal = guard.advance(Decimal(6), Decimal(4))
    assert refusal is not None and refusal.status.available == 3
    guard.close(Decimal(7))
    assert balance(budgets, "run") == (0, 7)
    assert guard.uncovered == 0


def test_a_guarded_run_with_too_small_reservations_reports_the_uncovered_cost(budgets: Budgets):
    budgets.define(budget("run", "10"))
    guard = BudgetGuard(budgets, lambda: ["run"], "r", 1, HOUR)
    guard.advance(Decimal(0), Decimal(4))
    guard.advance(Decimal(5), Decimal(4))
    assert (balance(budgets, "run"), guard.uncovered) == ((4, 5), 0)
    guard.close(Decimal(20))
    assert (balance(budgets, "run"), guard.uncovered) == ((0, 9), 11)


def test_a_settlement_whose_response_was_lost_counts_once(budgets: Budgets, monkeypatch: pytest.MonkeyPatch):
    budgets.define(budget("run", "10"))
    guard = BudgetGuard(budgets, lambda: ["run"], "r", 1, HOUR)
    guard.advance(Decimal(0), Decimal(4))
    settle = budgets.settle

    def unanswered(reservation: str, amount: Decimal) -> None:
        settle(reservation, amount)
        raise LedgerUnavailableError("The connection was lost.")

    with monkeypatch.context() as patch:
        patch.setattr(budgets, "settle", unanswered)
        with pytest.raises(LedgerUnavailableError):
            guard.close(Decimal(3))
    assert balance(budgets, "run") == (0, 3)
    guard.close(Decimal("3.5"))
    assert (balance(budgets, "run"), guard.uncovered) == ((0, Decimal("3.5")), 0)


def test_a_guarded_run_settles_expired_reservations_again(budgets: Budgets, clock: FakeClock):
    budgets.define(budget("run", "10"))
    guard = BudgetGuard(budgets, lambda: ["run"], "r", 1, HOUR)
    guard.advance(Decimal(0), Decimal(4))
    clock.advance(2 * HOUR)
    budgets.expire()
    guard.close(Decimal(3))
    assert balance(budgets, "run") == (0, 3)


def test_an_unknown_reservation_is_an_error(budgets: Budgets):
    budgets.define(budget("run", "10"))
    guard = BudgetGuard(budgets, lambda: ["run"], "r", 1, HOUR)
    guard.advance(Decimal(0), Decimal(4))
    elsewhere = Budgets(MemoryBudgets(), lambda: FIRST * DAY_NS)
    elsewhere.define(budget("run", "10"))
    guard._budgets = elsewhere  # pyright: ignore[reportPrivateUsage]
    with pytest.raises(LedgerStateError, match="Unknown reservation r/1/1"):
        guard.close(Decimal(3))


@pytest.mark.slow
def test_fifty_concurrent_runs_never_settle_more_than_the_limit(url: str):
    """Each run has its own connection and continues until it is refused. The
    limit is not a multiple of a step.
    """
    engine = open_engine(url)
    require_head(engine)
    limit = Decimal("23.7")
    Budgets(SqlBudgets(engine, lambda: FIRST * DAY_NS), lambda: FIRST * DAY_NS).define(
        budget("shared", str(limit))
    )
    spent: dict[int, Decimal] = {}
    start = threading.Barrier(50)

    def run(number: int) -> None:
        own = open_engine(url)
        guard = BudgetGuard(
            Budgets(SqlBudgets(own, lambda: FIRST * DAY_NS), lambda: FIRST * DAY_NS),
            lambda: ["shared"],
            f"r{number}",
            1,
            HOUR,
        )
        start.wait()
        total = Decimal(0)
        while guard.advance(total, Decimal("0.8")) is None:
            total += Decimal("0.3")
        guard.close(total)
        spent[number] = total
        own.dispose()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    status = Budgets(SqlBudgets(engine, lambda: FIRST * DAY_NS), lambda: FIRST * DAY_NS).status("shared")
    engine.dispose()
    assert len(spent) == 50
    assert status.settled == sum(spent.values()) <= limit
    assert status.pending == 0
    assert status.settled > 0
