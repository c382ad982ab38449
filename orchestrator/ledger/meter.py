"""Tracks what a run has cost so far, event by event, for its progress line and its budget.

The cost of a lease depends only on its length, not on its spans (spans + idle + lost = lease). So the meter
only keeps the opening, the close and the last sign of life of each lease. The result covers the run's own
leases, and equals the run's report unless leases are shared between runs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

from orchestrator.ledger.booking import BookingPolicy, Ending, LeaseEvents, book_lease
from orchestrator.ledger.entries import Entry, lease_entries, stated_entries
from orchestrator.ledger.events import (
    Correction,
    Event,
    Heartbeat,
    LeaseClosed,
    LeaseOpened,
    SpanRecorded,
    UsageStated,
)
from orchestrator.ledger.pricing import Pricer


@dataclass(frozen=True, slots=True)
class Spent:
    """Money, in the pricer's currency, and accelerator-nanoseconds; both exact."""

    amount: Fraction
    ns: int

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.amount + other.amount, self.ns + other.ns)


def spent_on(entries: Iterable[Entry], pricer: Pricer) -> Spent:
    """The cost and time of entries. Raises UnknownPriceError."""
    total = Spent(Fraction(0), 0)
    for entry in entries:
        total += Spent(pricer.amount(entry), entry.ns)
    return total


class RunMeter:
    """Tracks the leases of one run.

    `corrected` becomes True with the first correction. From then on only the whole journal gives the answer
    (`Ledger.report`).
    """

    def __init__(self, run_id: str, policy: BookingPolicy) -> None:
        self._run_id, self._policy = run_id, policy
        self._leases: dict[str, LeaseEvents] = {}
        self._outside: dict[str, list[SpanRecorded]] = {}
        self._ended: dict[str, Spent] = {}
        self._stated = Spent(Fraction(0), 0)
        self.corrected = False

    def take(self, events: Iterable[Event], pricer: Pricer) -> None:
        """Process new events; events of other leases are ignored."""
        for event in events:
            if isinstance(event, Correction):
                self.corrected = True
            elif isinstance(event, UsageStated):
                if event.run_id == self._run_id:
                    self._stated += spent_on(stated_entries([event]), pricer)
            elif isinstance(event, LeaseOpened | LeaseClosed | Heartbeat | SpanRecorded):
                self._take(event)

    def _take(self, event: LeaseOpened | LeaseClosed | Heartbeat | SpanRecorded) -> None:
        lease = self._leases.setdefault(event.lease_id, LeaseEvents())
        self._ended.pop(event.lease_id, None)
        if isinstance(event, LeaseOpened):
            lease.openings.append(event)
            for span in self._outside.pop(event.lease_id, []):
                self._take_span(span, lease)
        elif isinstance(event, LeaseClosed):
            lease.closings.append(event)
        elif isinstance(event, Heartbeat):
            lease.alive_at(event.at_ns)
        else:
            self._take_span(event, lease)

    def _take_span(self, span: SpanRecorded, lease: LeaseEvents) -> None:
        """Treat a span as a sign of life, unless it starts before its lease, if the opening is known."""
        if any(span.start_ns >= opened.at_ns - self._policy.skew_ns for opened in lease.openings):
            lease.alive_at(span.end_ns)
        else:
            self._outside.setdefault(span.lease_id, []).append(span)

    def spent(self, as_of_ns: int, pricer: Pricer) -> Spent:
        """Money and time until `as_of_ns`. Raises UnknownPriceError."""
        total = self._stated
        for lease_id, lease in self._leases.items():
            known = self._ended.get(lease_id)
            if known is None:
                known = self._spent_on(lease_id, lease, as_of_ns, pricer)
            total += known
        return total

    def cost(self, as_of_ns: int, pricer: Pricer) -> Fraction:
        """Money until `as_of_ns`. Raises UnknownPriceError."""
        return self.spent(as_of_ns, pricer).amount

    def _spent_on(self, lease_id: str, lease: LeaseEvents, as_of_ns: int, pricer: Pricer) -> Spent:
        booked, _ = book_lease(lease, as_of_ns, self._policy)
        if booked is None or booked.opened.run_id != self._run_id:
            return Spent(Fraction(0), 0)
        found = spent_on(lease_entries([booked]), pricer)
        if booked.ending in (Ending.RELEASED, Ending.LOST):
            self._ended[lease_id] = found
        return found
