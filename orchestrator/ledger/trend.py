"""Trend of costs from month to month or day to day."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from orchestrator.ledger.report_by import Report, Value


@dataclass(frozen=True, slots=True)
class TrendRow:
    """One group in one period. `change` is relative to the group's previous period; None in its first."""

    period: str
    values: tuple[Value, ...]
    amount: Decimal | None
    change: Decimal | None


@dataclass(frozen=True, slots=True)
class Trend:
    """Rows by period, then group. `by` names the groups."""

    currency: str
    every: str
    by: tuple[str, ...]
    rows: tuple[TrendRow, ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "currency": self.currency,
            "every": self.every,
            "by": list(self.by),
            "rows": [
                {
                    self.every: row.period,
                    **dict(zip(self.by, row.values, strict=True)),
                    "amount": None if row.amount is None else f"{row.amount:f}",
                    "change": None if row.change is None else f"{row.change:f}",
                }
                for row in self.rows
            ],
        }


def trend(report: Report) -> Trend:
    """The trend in a report whose first dimension is a period (`month`, `posted` or `day`)."""
    before: dict[tuple[Value, ...], Decimal | None] = {}
    rows: list[TrendRow] = []
    for row in report.rows:
        period, *rest = row.values
        group = tuple(rest)
        last = before.get(group)
        change = None if last is None or row.amount is None else row.amount - last
        rows.append(TrendRow(str(period), group, row.amount, change))
        before[group] = row.amount
    return Trend(report.currency, report.by[0], report.by[1:], tuple(rows))
