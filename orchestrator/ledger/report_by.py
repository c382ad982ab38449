"""Reports the cost of a period by any dimensions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any

from orchestrator.ledger.accounts import CountedLine
from orchestrator.ledger.calendar import date_of
from orchestrator.ledger.errors import LedgerError
from orchestrator.ledger.lines import DIMENSIONS
from orchestrator.ledger.money import AMOUNT_PLACES, HOUR_PLACES, hours, round_total
from orchestrator.ledger.pricing import Pricer

Value = str | int


@dataclass(frozen=True, slots=True)
class ReportRow:
    """One group. `amount` is None if something in it has no price (`Report.unpriced` says what)."""

    values: tuple[Value, ...]
    ns: int
    accelerator_hours: Decimal
    amount: Decimal | None


@dataclass(frozen=True, slots=True)
class Report:
    """Groups in order of their values, and their total; the printed rows add up to it."""

    currency: str
    by: tuple[str, ...]
    rows: tuple[ReportRow, ...]
    ns: int
    accelerator_hours: Decimal
    amount: Decimal
    unpriced: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; hours and amounts are decimal strings."""
        return {
            "currency": self.currency,
            "by": list(self.by),
            "rows": [
                {
                    **dict(zip(self.by, row.values, strict=True)),
                    "ns": row.ns,
                    "accelerator_hours": f"{row.accelerator_hours:f}",
                    "amount": None if row.amount is None else f"{row.amount:f}",
                }
                for row in self.rows
            ],
            "total": {
                "ns": self.ns,
                "accelerator_hours": f"{self.accelerator_hours:f}",
                "amount": f"{self.amount:f}",
            },
            **({"unpriced": list(self.unpriced)} if self.unpriced else {}),
        }


def require_dimensions(by: Sequence[str]) -> None:
    """Raise LedgerError for an unknown or repeated dimension."""
    for place, name in enumerate(by):
        if name not in DIMENSIONS or name in by[:place]:
            raise LedgerError("by", name, ", ".join(DIMENSIONS), "each once, separated by commas")


def value_of(line: CountedLine, dimension: str) -> Value:
    """The value of a dimension in a line."""
    match dimension:
        case "run" | "lease":
            return str(getattr(line.key, f"{dimension}_id"))
        case "day":
            return date_of(line.day).isoformat()
        case "month":
            return line.key.month
        case "posted" | "kind":
            return str(getattr(line, dimension))
        case _:
            return getattr(line.key, dimension)


def field_of(dimension: str) -> str:
    """The field of a line that contains a dimension."""
    return {"run": "run_id", "lease": "lease_id"}.get(dimension, dimension)


def report_by(
    counted: Iterable[CountedLine],
    by: Sequence[str],
    pricer: Pricer,
    first_day: int | None = None,
    end_day: int | None = None,
    places: int = AMOUNT_PLACES,
) -> Report:
    """Group and price the lines that count on the days [first_day, end_day).

    Raises LedgerError for an unknown dimension.
    """
    require_dimensions(by)
    quantities: dict[tuple[Value, ...], int] = {}
    by_price: dict[tuple[tuple[Value, ...], Fraction], int] = {}
    unpriced: dict[str, None] = {}
    incomplete: set[tuple[Value, ...]] = set()
    for line in counted:
        if (first_day is not None and line.day < first_day) or (end_day is not None and line.day >= end_day):
            continue
        group = tuple(value_of(line, dimension) for dimension in by)
        quantities[group] = quantities.get(group, 0) + line.ns
        try:
            priced = (group, pricer.unit_price(line.key))
        except LedgerError as error:
            incomplete.add(group)
            unpriced[str(error)] = None
        else:
            by_price[priced] = by_price.get(priced, 0) + line.ns
    amounts: dict[tuple[Value, ...], Fraction] = {}
    for (group, unit_price), ns in by_price.items():
        amounts[group] = amounts.get(group, Fraction(0)) + hours(ns) * unit_price
    return assemble(
        by, quantities, amounts, incomplete, tuple(sorted(unpriced)), pricer.table.currency, places
    )


def assemble(
    by: Sequence[str],
    quantities: dict[tuple[Value, ...], int],
    amounts: dict[tuple[Value, ...], Fraction],
    incomplete: set[tuple[Value, ...]],
    unpriced: tuple[str, ...],
    currency: str,
    places: int,
) -> Report:
    """Round the groups so that they add up, and sort them by their values."""
    groups = sorted(quantities)
    row_hours, total_hours = round_total([hours(quantities[group]) for group in groups], HOUR_PLACES)
    row_amounts, total = round_total([amounts.get(group, Fraction(0)) for group in groups], places)
    rows = [
        ReportRow(
            group, quantities[group], row_hours[place], None if group in incomplete else row_amounts[place]
        )
        for place, group in enumerate(groups)
    ]
    ns = sum(quantities.values())
    return Report(currency, tuple(by), tuple(rows), ns, total_hours, total, unpriced)
