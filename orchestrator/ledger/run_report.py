"""What one run, or the runs of one pipeline, used and cost: by role, activity and resource, with idle and
lost time as lines of their own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any

from orchestrator.ledger.entries import Entry
from orchestrator.ledger.errors import LedgerError
from orchestrator.ledger.events import IDLE, LOST
from orchestrator.ledger.money import AMOUNT_PLACES, HOUR_PLACES, hours, round_total
from orchestrator.ledger.pricing import Pricer


@dataclass(frozen=True, slots=True)
class RunReportRow:
    """One line. `amount` is None where there is no price (`RunReport.unpriced` says which)."""

    role: str
    activity: str
    resource: str
    ns: int
    accelerator_hours: Decimal
    amount: Decimal | None


@dataclass(frozen=True, slots=True)
class RunReport:
    """`leased_ns` = `attributed_ns` + `idle_ns`, exactly; `lost` time is part of `idle_ns`: no actor did
    anything with it.

    `difference_ns` is what the leases' extents and their lines disagree by: always 0, and computed rather
    than assumed.
    """

    run_id: str
    currency: str
    leased_ns: int
    attributed_ns: int
    idle_ns: int
    difference_ns: int
    accelerator_hours: Decimal
    amount: Decimal
    rows: tuple[RunReportRow, ...]
    unpriced: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON; hours and amounts are decimal strings."""
        return {
            "run_id": self.run_id,
            "currency": self.currency,
            "leased_ns": self.leased_ns,
            "attributed_ns": self.attributed_ns,
            "idle_ns": self.idle_ns,
            "difference_ns": self.difference_ns,
            "accelerator_hours": f"{self.accelerator_hours:f}",
            "amount": f"{self.amount:f}",
            "rows": [
                {
                    "role": row.role,
                    "activity": row.activity,
                    "resource": row.resource,
                    "ns": row.ns,
                    "accelerator_hours": f"{row.accelerator_hours:f}",
                    "amount": None if row.amount is None else f"{row.amount:f}",
                }
                for row in self.rows
            ],
            **({"unpriced": list(self.unpriced)} if self.unpriced else {}),
        }


def run_report(
    name: str,
    runs: Collection[str],
    entries: Iterable[Entry],
    extent_ns: int,
    pricer: Pricer,
    places: int = AMOUNT_PLACES,
) -> RunReport:
    """The report of `runs` under the name `name`.

    `extent_ns`: of all leases that any of `entries` came from, plus what was stated.
    """
    quantities: dict[tuple[str, str, str], int] = {}
    amounts: dict[tuple[str, str, str], Fraction] = {}
    unpriced: dict[str, None] = {}
    without_price: set[tuple[str, str, str]] = set()
    counted = 0
    for entry in entries:
        counted += entry.ns
        if entry.run_id not in runs:
            continue
        key = (entry.role, entry.activity, entry.resource)
        quantities[key] = quantities.get(key, 0) + entry.ns
        try:
            amounts[key] = amounts.get(key, Fraction(0)) + pricer.amount(entry)
        except LedgerError as error:
            without_price.add(key)
            unpriced[str(error)] = None
    keys = sorted(quantities, key=lambda key: (key[1] in (IDLE, LOST), key))
    row_hours, total_hours = round_total([hours(quantities[key]) for key in keys], HOUR_PLACES)
    row_amounts, total = round_total([amounts.get(key, Fraction(0)) for key in keys], places)
    leased = sum(quantities.values())
    idle = sum(ns for key, ns in quantities.items() if key[1] in (IDLE, LOST))
    return RunReport(
        run_id=name,
        currency=pricer.table.currency,
        leased_ns=leased,
        attributed_ns=sum(ns for key, ns in quantities.items() if key[1] not in (IDLE, LOST)),
        idle_ns=idle,
        difference_ns=extent_ns - counted,
        accelerator_hours=total_hours,
        amount=total,
        rows=tuple(
            RunReportRow(
                *key, quantities[key], row_hours[index], None if key in without_price else row_amounts[index]
            )
            for index, key in enumerate(keys)
        ),
        unpriced=tuple(unpriced),
    )
