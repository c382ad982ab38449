"""Forecasts what a run will have cost when it is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any

from orchestrator.ledger.booking import BookedLease, Ending
from orchestrator.ledger.calendar import HOUR_NS, day_of
from orchestrator.ledger.errors import LedgerError
from orchestrator.ledger.money import AMOUNT_PLACES
from orchestrator.ledger.pricing import Pricer
from orchestrator.ledger.variance import Forecast, forecast


@dataclass(frozen=True, slots=True)
class Completion:
    """The cost at the last of `steps` steps, and the time until then in seconds."""

    run_id: str
    currency: str
    done: int
    steps: int
    amount: Forecast
    seconds: Forecast

    def to_dict(self) -> dict[str, Any]:
        return {
            "run_id": self.run_id,
            "currency": self.currency,
            "done": self.done,
            "steps": self.steps,
            "amount": self.amount.to_dict(),
            "seconds_left": self.seconds.to_dict(),
        }


def completion(
    run_id: str, booked: Sequence[BookedLease], spent: Fraction, steps: int, pricer: Pricer
) -> Completion:
    """Extrapolate the last attempt: the durations of its steps, at the price of the slots it holds
    (or held last).

    Raises LedgerError before the second step is done.
    """
    attempt = max((lease.opened.attempt for lease in booked), default=0)
    latest = [lease for lease in booked if lease.opened.attempt == attempt]
    ends = step_ends(latest)
    if len(ends) < 2:
        raise LedgerError(
            f"steps of {run_id}", str(len(ends)), "2 or more", "a forecast needs the duration of a step"
        )
    durations = [float(after - before) for before, after in pairwise(ends)]
    left = max(steps - len(ends), 0)
    rate = sum((_per_ns(lease, pricer) for lease in _held(latest)), Fraction(0))
    costs = [duration * float(rate) for duration in durations]
    amount = forecast(float(spent), costs, left, AMOUNT_PLACES)
    seconds = forecast(0.0, [duration / 1e9 for duration in durations], left, 0)
    return Completion(run_id, pricer.table.currency, len(ends), steps, amount, seconds)


def step_ends(leases: Sequence[BookedLease]) -> list[int]:
    """When the update of each step ended, in chronological order."""
    ends: dict[int, int] = {}
    for lease in leases:
        for piece in lease.slices:
            if piece.activity == "update":
                ends[piece.step] = max(piece.end_ns, ends.get(piece.step, 0))
    return sorted(ends.values())


def _held(leases: Sequence[BookedLease]) -> list[BookedLease]:
    return [lease for lease in leases if lease.ending is Ending.OPEN] or list(leases)


def _per_ns(lease: BookedLease, pricer: Pricer) -> Fraction:
    opened = lease.opened
    price = pricer.per_hour(opened.sku, opened.region, opened.commitment, day_of(lease.end_ns))
    return price / HOUR_NS
