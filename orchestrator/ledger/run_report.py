"""Reports what one run, or the runs of one pipeline, used and cost: by role, activity and resource, with
separate rows for idle and lost time.
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
    """One row. `amount` is None if there is no price (`RunReport.unpriced` says for what)."""

    role: str
    activity: str
    resource: str
    ns: int
    accelerator_hours: Decimal
    amount: Decimal | None


@dataclass(frozen=True, slots=True)
class RunReport:
    """`leased_ns` = `attributed_ns` + `unattributed_ns`, exactly. Unattributed time is idle or lost: no
    span covers it.

    `difference_ns` is the difference between the length of the leases and the sum of their rows. It is
    always 0, and is computed rather than assumed.
    """

    run_id: str
    currency: str
    leased_ns: int
    attributed_ns: int
    unattributed_ns: int
    difference_ns: int
    accelerator_hours: Decimal
    amount: Decimal
    rows: tuple[RunReportRow, ...]
    unpriced: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; hours and amounts are decimal strings. `idle_ns`, a name that scripts rely on, is all
        unattributed time.
        """
        return {
            "run_id": self.run_id,
            "currency": self.currency,
            "leased_ns": self.leased_ns,
            "attributed_ns": self.attributed_ns,
            "idle_ns": self.unattributed_ns,
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
    """The report of `runs`, under the name `name`.

    `extent_ns` is the total length of all leases that `entries` come from, plus the stated usage.
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
    unattributed = sum(ns for key, ns in quantities.items() if key[1] in (IDLE, LOST))
    return RunReport(
        run_id=name,
        currency=pricer.table.currency,
        leased_ns=leased,
        attributed_ns=sum(ns for key, ns in quantities.items() if key[1] not in (IDLE, LOST)),
        unattributed_ns=unattributed,
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
