"""Compares spending with budgets, and forecasts spending at the end of the period."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from statistics import fmean
from typing import Any

from orchestrator.ledger.accounts import CountedLine
from orchestrator.ledger.budgets import Budget
from orchestrator.ledger.calendar import DAY_NS, date_of
from orchestrator.ledger.errors import LedgerError
from orchestrator.ledger.money import HOUR_PLACES, hours, rounded
from orchestrator.ledger.pricing import Pricer

RESAMPLES = 2_000
INTERVAL = 0.8
"""The share of resampled futures that lie within a forecast's interval."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """An expected amount with an interval that contains INTERVAL of the resampled futures."""

    low: Decimal
    expected: Decimal
    high: Decimal

    def to_dict(self) -> dict[str, str]:
        return {"low": f"{self.low:f}", "expected": f"{self.expected:f}", "high": f"{self.high:f}"}


@dataclass(frozen=True, slots=True)
class Variance:
    """A budget and what counts in its scope and days until now.

    `planned` is the limit's share of the elapsed days; `variance` = actual - planned. `forecast` is for the
    end of the budget's last day; None before the second day. `unpriced` are accelerator-hours in its scope
    without a price, by SKU; they are in no amount.
    """

    budget: Budget
    actual: Decimal
    planned: Decimal
    variance: Decimal
    forecast: Forecast | None
    unpriced: Mapping[str, Decimal]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; amounts are decimal strings."""
        return {
            "budget": self.budget.name,
            "scope": dict(self.budget.scope),
            "first": date_of(self.budget.first_day).isoformat(),
            "last": date_of(self.budget.end_day - 1).isoformat(),
            "currency": self.budget.currency,
            "limit": f"{self.budget.limit:f}",
            "actual": f"{self.actual:f}",
            "planned": f"{self.planned:f}",
            "variance": f"{self.variance:f}",
            "forecast": None if self.forecast is None else self.forecast.to_dict(),
            "unpriced": {sku: f"{held:f}" for sku, held in self.unpriced.items()},
        }


_FIELDS = {
    **{name: name for name in ("organisation", "cost_centre", "team", "project", "pipeline", "purpose")},
    "run": "run_id",
}
SCOPE_FIELDS = tuple(_FIELDS.values())
SCOPE_LABELS = tuple(_FIELDS)
"""The labels that a budget's scope may use."""


def labels_of_line(line: CountedLine) -> dict[str, str]:
    """A line's labels by the names used in scopes."""
    return {label: getattr(line.key, field) for label, field in _FIELDS.items()}


def variance(
    budget: Budget, counted: Iterable[CountedLine], pricer: Pricer, now_ns: int, places: int = 2
) -> Variance:
    """Compare a budget with the lines that count. Raises LedgerError if its currency is not the pricer's."""
    if pricer.table.currency != budget.currency:
        currency = pricer.table.currency
        raise LedgerError(
            f"currency of budget {budget.name}", budget.currency, currency, "the currency of reports"
        )
    daily, unpriced = daily_amounts(budget, counted, pricer)
    actual = sum(daily.values(), Fraction(0))
    days = budget.end_day - budget.first_day
    over = min(max(Fraction(now_ns, DAY_NS) - budget.first_day, Fraction(0)), Fraction(days))
    planned = Fraction(budget.limit) * over / days
    complete = range(budget.first_day, min(now_ns // DAY_NS, budget.end_day))
    expected = None
    if len(complete) >= 2:
        past = [float(daily.get(day, 0)) for day in complete]
        so_far = float(sum((daily.get(day, Fraction(0)) for day in complete), Fraction(0)))
        expected = forecast(so_far, past, budget.end_day - complete.stop, places)
    spent, due = rounded(actual, places), rounded(planned, places)
    without = {sku: rounded(hours(ns), HOUR_PLACES) for sku, ns in sorted(unpriced.items())}
    return Variance(
        budget, spent, due, spent - due, expected, without
    )  # computed from rounded figures, so that they add up


def daily_amounts(
    budget: Budget, counted: Iterable[CountedLine], pricer: Pricer
) -> tuple[dict[int, Fraction], dict[str, int]]:
    """What counts in the scope of a budget, by day, and the nanoseconds without a price, by SKU."""
    daily: dict[int, Fraction] = {}
    unpriced: dict[str, int] = {}
    for line in counted:
        if budget.covers(labels_of_line(line), line.day):
            try:
                amount = hours(line.ns) * pricer.unit_price(line.key)
            except LedgerError:
                unpriced[line.key.sku] = unpriced.get(line.key.sku, 0) + line.ns
                continue
            daily[line.day] = daily.get(line.day, Fraction(0)) + amount
    return daily, unpriced


def forecast(so_far: float, past: Sequence[float], remaining: int, places: int = 2) -> Forecast:
    """`so_far` plus `remaining` more periods (days, steps) like the `past` ones.

    The interval is a bootstrap (Efron 1979): RESAMPLES futures are drawn from the past with replacement,
    always with the same seed. A forecast is an estimate, so it uses floating point.
    """
    chance = random.Random(0)
    futures = sorted(so_far + sum(chance.choices(past, k=remaining)) for _ in range(RESAMPLES))
    edge = int(RESAMPLES * (1 - INTERVAL) / 2)
    values = (futures[edge], so_far + remaining * fmean(past), futures[-edge - 1])
    return Forecast(*(rounded(Fraction(value), places) for value in values))


def parse_scope(text: str) -> dict[str, str]:
    """Parse a scope such as `team=blue,project=x`. Raises LedgerError for an unknown label."""
    scope: dict[str, str] = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        if name not in SCOPE_LABELS or not value:
            raise LedgerError("scope", part, ", ".join(f"{label}=..." for label in SCOPE_LABELS))
        scope[name] = value
    return scope
