"""Unit costs: the cost of a million tokens, an accepted sample, a point of held-out accuracy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any

from orchestrator.ledger.booking import BookedLease
from orchestrator.ledger.money import AMOUNT_PLACES, rounded
from orchestrator.ledger.waste import token_counts


@dataclass(frozen=True, slots=True)
class UnitCost:
    """The whole cost divided by `count` units; `amount` is None if there were none."""

    unit: str
    count: Fraction
    amount: Decimal | None

    def to_dict(self) -> dict[str, Any]:
        count = f"{rounded(self.count, AMOUNT_PLACES):f}"
        return {
            "unit": self.unit,
            "count": count,
            "amount": None if self.amount is None else f"{self.amount:f}",
        }


def token_units(leases: Iterable[BookedLease]) -> dict[str, Fraction]:
    """Millions of tokens generated and trained on, by all runs of the leases."""
    counts = token_counts(leases)
    return {
        f"million {what} tokens": Fraction(
            sum(tokens for (_, activity), tokens in counts.items() if activity == activity_of), 10**6
        )
        for what, activity_of in (("generated", "generate"), ("trained", "update"))
    }


def unit_costs(
    amount: Fraction, counts: Mapping[str, Fraction], places: int = AMOUNT_PLACES
) -> tuple[UnitCost, ...]:
    """Divide all of `amount`, including idle time, by each count."""
    return tuple(
        UnitCost(unit, count, rounded(amount / count, places) if count > 0 else None)
        for unit, count in counts.items()
    )
