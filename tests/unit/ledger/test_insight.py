"""Waste, unit costs, forecasts, variance and trend, by hand-computed examples."""

from decimal import Decimal
from fractions import Fraction

import pytest

from orchestrator.ledger.booking import BookingPolicy
from orchestrator.ledger.budgets import Budget
from orchestrator.ledger.calendar import DAY_NS, HOUR_NS, month_bounds
from orchestrator.ledger.errors import LedgerError
from orchestrator.ledger.events import (
    Event,
    LeaseClosed,
    LeaseOpened,
    PurposeSet,
    RunDeclared,
    SpanRecorded,
    UsageStated,
)
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.trend import trend
from orchestrator.ledger.variance import forecast, parse_scope, variance

FIRST, END = month_bounds("2026-03")
START = FIRST * DAY_NS
PRICE = {
    "sku": "h100",
    "resource": "gpu",
    "region": "x",
    "commitment": "on_demand",
    "amount": "2",
    "currency": "USD",
    "from": "2020-01-01",
    "to": None,
    "source": "a test",
    "retrieved": "2026-01-01",
}
BOOK = {"name": "t", "currency": "USD", "region": "x", "commitment": "on_demand", "prices": [PRICE]}


def ledger(*events: Event, now_hours: int = 24 * 40) -> Ledger:
    made = Ledger.in_memory(BOOK, BookingPolicy(HOUR_NS, 0), lambda: START + now_hours * HOUR_NS)
    made.book(events)
    return made


def declared(run: str = "r", team: str = "blue") -> RunDeclared:
    return RunDeclared(f"d-{run}", START, run, 1, "grpo", "debug", "o", "c", team, "x", "p", "")


def lease(
    name: str, first: int, last: int, run: str = "r", attempt: int = 1, reason: str = "released"
) -> list[Event]:
    start, end = START + first * HOUR_NS, START + last * HOUR_NS
    return [
        LeaseOpened(f"o-{name}", start, name, run, attempt, "gpu", "h100", "n", "pg", 0),
        LeaseClosed(f"c-{name}", end, name, reason),
    ]


def span(name: str, activity: str, first: int, last: int, step: int = 0, tokens: int = 0) -> SpanRecorded:
    start, end = START + first * HOUR_NS, START + last * HOUR_NS
    return SpanRecorded(
        f"{name}-{activity}-{first}", name, "w", "learner", activity, start, end, step, tokens
    )


def kinds(made: Ledger, name: str = "r") -> dict[str, Decimal]:
    report = made.waste(name)
    assert sum(row.amount for row in report.rows) == report.amount
    assert sum(row.ns for row in report.rows) == report.ns
    return {row.kind: row.accelerator_hours for row in report.rows if row.ns}


def test_each_hour_has_exactly_one_kind():
    made = ledger(
        declared(),
        *lease("a", 0, 10, reason="lost"),
        span("a", "load", 0, 1),
        span("a", "update", 1, 3, step=0),
        span("a", "update", 3, 6, step=1),
        *lease("b", 10, 20, attempt=2),
        span("b", "load", 10, 12),
        span("b", "update", 12, 15, step=1),
        span("b", "update", 15, 18, step=2),
    )
    # attempt 1: 1 h of load, step 0 (2 h), step 1 (3 h) that attempt 2 did again, then 4 h dead
    # attempt 2: 2 h of load again, steps 1 and 2 (6 h), 2 h idle
    assert kinds(made) == {"idle": 2, "lost": 4, "superseded": 3, "restart": 2, "useful": 9}


def test_steps_repeated_by_a_rebuilt_learner_are_superseded():
    made = ledger(
        declared(),
        *lease("a", 0, 24),
        span("a", "load", 0, 1),
        span("a", "update", 1, 2, step=0),
        span("a", "evaluate", 2, 3, step=1),
        span("a", "checkpoint", 3, 4, step=1),
        span("a", "update", 4, 6, step=1),
        span("a", "checkpoint", 6, 7, step=2),
        # died; the checkpoint of one step was the last whole one
        span("a", "load", 8, 10),
        span("a", "load", 10, 11),
        span("a", "update", 11, 13, step=1),
        span("a", "update", 13, 15, step=2),
        # died again, and lost only step 2
        span("a", "load", 16, 17),
        span("a", "update", 17, 19, step=2),
        span("a", "checkpoint", 19, 20, step=3),
    )
    # once: load 1, step 0, evaluation and checkpoint of it 3, steps 1 and 2 (the last time) 4, checkpoint 1
    # again: step 1 and the checkpoint after it 3, step 2 2; reloads 3 + 1
    assert kinds(made) == {"idle": 6, "superseded": 5, "restart": 4, "useful": 9}


def test_only_rollouts_lost_with_the_learner_are_superseded():
    made = ledger(
        declared(),
        *lease("a", 0, 10),
        *lease("g", 0, 10),
        span("a", "load", 0, 1),
        span("a", "sync", 1, 2, step=0),
        span("a", "update", 2, 3, step=0),
        span("a", "load", 5, 6),
        span("a", "update", 6, 7, step=1),
        *(rollout("g", activity, at, step) for activity, at, step in WORKER),
    )
    assert kinds(made) == {"idle": 8, "superseded": 2, "restart": 2, "useful": 8}


def test_first_loads_of_ranks_and_late_workers_are_not_restarts():
    made = ledger(
        declared(),
        *lease("a", 0, 10),
        *lease("b", 0, 10),
        *lease("g", 0, 10),
        *(rank("a", "learner-0", activity, at, 0) for activity, at in (("load", 0), ("update", 3))),
        *(rank("b", "learner-1", activity, at, 0) for activity, at in (("load", 1), ("update", 3))),
        rollout("g", "load", 5, 0),
        rollout("g", "generate", 6, 1),
    )
    assert kinds(made) == {"idle": 24, "useful": 6}


WORKER = (
    ("load", 0, 0),
    ("generate", 1, 0),
    ("generate", 3, 1),  # for the step that the learner died in
    ("score", 4, 1),
    ("generate", 5, 1),  # sampled again: begun with the learner's load, or after it
    ("load", 7, 0),  # lost and replaced
    ("generate", 8, 2),
)


def rollout(lease: str, activity: str, at: int, step: int) -> SpanRecorded:
    return _span(lease, "rollout-0", "rollout", activity, at, step)


def rank(lease: str, actor: str, activity: str, at: int, step: int) -> SpanRecorded:
    return _span(lease, actor, "learner", activity, at, step)


def _span(lease: str, actor: str, role: str, activity: str, at: int, step: int) -> SpanRecorded:
    start = START + at * HOUR_NS
    return SpanRecorded(f"{lease}-{at}", lease, actor, role, activity, start, start + HOUR_NS, step, 0)


def test_the_time_of_rollouts_that_were_cancelled_is_waste():
    """A span without tokens: none of its rollouts was completed."""
    made = ledger(
        declared(),
        *lease("a", 0, 10),
        span("a", "generate", 0, 4, tokens=4_000_000),
        span("a", "generate", 4, 7),
        span("a", "update", 7, 10, tokens=4_000_000),
    )
    assert kinds(made) == {"untrained": 3, "useful": 7}


def test_the_rest_of_a_span_after_midnight_is_not_waste():
    made = ledger(
        declared(),
        *lease("a", 0, 40),
        span("a", "generate", 0, 30, tokens=4_000_000),
        span("a", "update", 30, 40, tokens=4_000_000),
    )
    assert kinds(made) == {"useful": 40}


def test_generated_tokens_that_were_never_trained_on_are_waste():
    made = ledger(
        declared(),
        *lease("a", 0, 10),
        span("a", "generate", 0, 8, tokens=4_000_000),
        span("a", "update", 8, 10, tokens=3_000_000),
    )
    assert kinds(made) == {"untrained": 2, "useful": 8}
    found = {
        one.unit: one.amount for one in made.unit_costs("r", {"point": Fraction(5), "never": Fraction(0)})
    }
    assert found == {
        "million generated tokens": Decimal("5.000000"),
        "million trained tokens": Decimal("6.666667"),
        "point": Decimal("4.000000"),
        "never": None,
    }


def test_tokens_of_an_actor_with_two_leases_count_once():
    made = ledger(
        declared(),
        *(event for name in ("a", "b") for event in lease(name, 0, 1)),
        span("a", "generate", 0, 1, tokens=10**6),
        span("b", "generate", 0, 1, tokens=10**6),
    )
    assert made.unit_costs("r", {})[0].count == 1


def test_the_work_of_a_failed_run_is_waste():
    made = ledger(
        declared(), *lease("a", 0, 4), span("a", "update", 0, 3), PurposeSet("f", START, "r", "failed")
    )
    assert kinds(made) == {"failed": 3, "idle": 1}


def test_a_forecast_extrapolates_the_last_attempt():
    made = ledger(
        declared(),
        LeaseOpened("o", START, "a", "r", 1, "gpu", "h100", "n", "pg", 0),
        *(span("a", "update", step, step + 1, step=step) for step in range(4)),
        now_hours=4,
    )
    found = made.completion("r", steps=10)
    # 4 hours at $2 are spent; 6 steps of an hour are left, and all were alike
    assert (found.done, found.amount.low, found.amount.expected, found.amount.high) == (4, 20, 20, 20)
    assert found.seconds.expected == 6 * 3600
    assert made.completion("r", steps=3).amount.expected == 8
    with pytest.raises(LedgerError, match="allowed: 2 or more"):
        ledger(declared(), *lease("a", 0, 4), span("a", "update", 0, 1)).completion("r", 5)


def test_a_forecast_has_an_interval_that_is_the_same_every_time():
    found = forecast(100.0, [1.0, 3.0], 10)
    assert found.expected == 120
    assert 110 <= found.low < found.expected < found.high <= 130
    assert forecast(100.0, [1.0, 3.0], 10) == found
    assert forecast(100.0, [2.0], 0) == forecast(100.0, [9.0], 0)


def test_a_budget_is_compared_with_what_counts_in_its_scope():
    made = ledger(
        declared(),
        declared("other", "green"),
        *(event for day in range(4) for event in lease(f"a{day}", 24 * day, 24 * day + 10)),
        *lease("g", 0, 30, run="other"),
        now_hours=24 * 4,
    )
    made.budgets.define(Budget("b", {"team": "blue"}, FIRST, END, Decimal(310), "USD", ()))
    (found,) = made.variances()
    assert (found.actual, found.planned, found.variance) == (80, 40, 40)
    assert found.forecast is not None and found.forecast.expected == 80 + 27 * 20
    made.budgets.define(Budget("b", {}, FIRST, END, Decimal(310), "EUR", ()))
    with pytest.raises(LedgerError, match="currency of budget b"):
        made.variances()


def test_before_the_second_day_there_is_no_forecast():
    made = ledger(declared(), *lease("a", 0, 10), now_hours=30)
    made.budgets.define(Budget("b", {}, FIRST, END, Decimal(310), "USD", ()))
    assert made.variances()[0].forecast is None


def test_usage_without_a_price_is_named_beside_the_variance():
    hours = str(5 * HOUR_NS // 2)
    made = ledger(
        declared(), UsageStated("u", "r", "gpu", "b300", hours, START, START + 1, "", "", "typed in")
    )
    made.budgets.define(Budget("b", {"team": "blue"}, FIRST, END, Decimal(310), "USD", ()))
    (found,) = made.variances()
    assert (found.actual, found.unpriced) == (0, {"b300": Decimal("2.5")})
    assert found.to_dict()["unpriced"] == {"b300": "2.500000"}
    made.budgets.define(Budget("b", {"team": "green"}, FIRST, END, Decimal(310), "USD", ()))
    assert made.variances()[0].unpriced == {}


def test_a_scope_names_labels():
    assert parse_scope("team=blue,run=r1") == {"team": "blue", "run": "r1"}
    assert parse_scope("") == {}
    for bad in ("colour=blue", "team", "team="):
        with pytest.raises(LedgerError, match="scope"):
            parse_scope(bad)


def test_a_trend_shows_the_change_of_each_group():
    made = ledger(
        declared(),
        declared("other", "green"),
        *lease("a", 0, 10),
        *lease("b", 24, 39),
        *lease("g", 24, 25, run="other"),
    )
    rows = [
        (row.period, row.values, row.amount, row.change)
        for row in trend(made.report_by(["day", "team"])).rows
    ]
    assert rows == [
        ("2026-03-01", ("blue",), 20, None),
        ("2026-03-02", ("blue",), 30, 10),
        ("2026-03-02", ("green",), 2, None),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("limit", ["1", "10", "7.77", "99.99"])
def test_the_printed_figures_of_a_variance_add_up(limit: str):
    book = {"name": "b", "currency": "USD", "region": "x", "commitment": "on_demand", "prices": []}
    ledger = Ledger.in_memory(book, now_ns=lambda: 7 * DAY_NS)
    ledger.book([UsageStated("u", "r", "gpu", "s", str(HOUR_NS), 0, HOUR_NS, "0.3357", "USD", "typed in")])
    budget = Budget("b", {}, 0, 7, Decimal(limit), "USD", ())
    for hour in range(1, 7 * 24):
        found = variance(budget, ledger.counted(), ledger.prices.pricer(), hour * HOUR_NS)
        assert found.actual == Decimal("0.34")
        assert found.actual - found.planned == found.variance
