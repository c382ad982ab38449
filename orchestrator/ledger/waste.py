"""What was paid for and served no result: idle and lost time, failed runs, restarts, work that was done
again, and rollouts that were generated and never trained on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any

from orchestrator.ledger.booking import BookedLease, Slice
from orchestrator.ledger.calendar import HOUR_NS, day_of
from orchestrator.ledger.events import IDLE, LOST
from orchestrator.ledger.labels import UNLABELLED, Labels
from orchestrator.ledger.money import AMOUNT_PLACES, HOUR_PLACES, hours, round_total
from orchestrator.ledger.pricing import Pricer

FAILED = "failed"
KINDS = {
    IDLE: "leased, and no actor did anything",
    LOST: "leased, and its holder was dead",
    FAILED: "work of runs whose purpose is `failed`",
    "superseded": "steps that a later attempt did again, because no checkpoint had them",
    "restart": "loading again in later attempts",
    "untrained": "rollouts generated and never trained on: stale, refused, or without a learning signal",
    "useful": "everything else",
}
"""Each nanosecond is of one kind: the first one that fits."""


@dataclass(frozen=True, slots=True)
class WasteRow:
    """One kind of waste, or what was useful."""

    kind: str
    ns: int
    accelerator_hours: Decimal
    amount: Decimal
    share: Decimal


@dataclass(frozen=True, slots=True)
class WasteReport:
    """The kinds, in the order of KINDS; they add up to the total."""

    currency: str
    rows: tuple[WasteRow, ...]
    ns: int
    accelerator_hours: Decimal
    amount: Decimal

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON; hours, amounts and shares are decimal strings."""
        return {
            "currency": self.currency,
            "rows": [
                {
                    "kind": row.kind,
                    "meaning": KINDS[row.kind],
                    "ns": row.ns,
                    "accelerator_hours": f"{row.accelerator_hours:f}",
                    "amount": f"{row.amount:f}",
                    "share": f"{row.share:f}",
                }
                for row in self.rows
            ],
            "total": {
                "ns": self.ns,
                "accelerator_hours": f"{self.accelerator_hours:f}",
                "amount": f"{self.amount:f}",
            },
        }


def waste_report(
    booked: Iterable[BookedLease], labels: Mapping[str, Labels], pricer: Pricer, places: int = AMOUNT_PLACES
) -> WasteReport:
    """The waste of some leases. Raises UnknownPriceError for a SKU without a price."""
    leases = list(booked)
    redone = first_redone_steps(leases)
    untrained = untrained_shares(leases)
    quantities = dict.fromkeys(KINDS, Fraction(0))
    amounts = dict.fromkeys(KINDS, Fraction(0))
    for lease in leases:
        for piece in lease.slices:
            day = day_of(piece.start_ns)
            price = pricer.per_hour(lease.opened.sku, lease.opened.region, lease.opened.commitment, day)
            kind = kind_of(piece, lease.opened.attempt, labels, redone)
            for share_kind, share in _split(kind, piece, untrained):
                quantities[share_kind] += share * piece.ns
                amounts[share_kind] += share * hours(piece.ns) * price
    return _report(quantities, amounts, pricer.table.currency, places)


def kind_of(
    piece: Slice, attempt: int, labels: Mapping[str, Labels], redone: Mapping[tuple[str, int], int]
) -> str:
    """The kind of a slice; `useful` for one that is none of the others."""
    if piece.activity in (IDLE, LOST):
        return piece.activity
    if labels.get(piece.run_id, UNLABELLED).purpose == FAILED:
        return FAILED
    if piece.activity != "load" and piece.step >= redone.get((piece.run_id, attempt), piece.step + 1):
        return "superseded"
    return "restart" if piece.activity == "load" and attempt > 1 else "useful"


def first_redone_steps(leases: Iterable[BookedLease]) -> dict[tuple[str, int], int]:
    """For each (run, attempt) with a later attempt: the first step that a later one did (again)."""
    firsts: dict[tuple[str, int], int] = {}
    for lease in leases:
        for piece in lease.slices:
            if piece.activity == "update":
                key = (piece.run_id, lease.opened.attempt)
                firsts[key] = min(piece.step, firsts.get(key, piece.step))
    redone: dict[tuple[str, int], int] = {}
    for run, attempt in {(lease.opened.run_id, lease.opened.attempt) for lease in leases}:
        later = [step for (other, number), step in firsts.items() if other == run and number > attempt]
        if later:
            redone[run, attempt] = min(later)
    return redone


def token_counts(leases: Iterable[BookedLease]) -> dict[tuple[str, str], int]:
    """Tokens by (run, activity). An actor that holds several leases says the same of each: it counts once."""
    seen: set[tuple[str, str, str, int]] = set()
    counts: dict[tuple[str, str], int] = {}
    for lease in leases:
        for piece in lease.slices:
            said = (piece.run_id, piece.actor, piece.activity, piece.start_ns)
            if piece.tokens and said not in seen:
                seen.add(said)
                key = (piece.run_id, piece.activity)
                counts[key] = counts.get(key, 0) + piece.tokens
    return counts


def untrained_shares(leases: Iterable[BookedLease]) -> dict[str, Fraction]:
    """For each run that generated and trained: the share of generated tokens that were not trained on."""
    counts = token_counts(leases)
    shares: dict[str, Fraction] = {}
    for (run, activity), generated in counts.items():
        trained = counts.get((run, "update"), 0)
        if activity == "generate" and trained:
            shares[run] = Fraction(max(generated - trained, 0), generated)
    return shares


def _split(kind: str, piece: Slice, untrained: Mapping[str, Fraction]) -> list[tuple[str, Fraction]]:
    share = untrained.get(piece.run_id, Fraction(0))
    if kind == "useful" and piece.activity == "generate" and share:
        return [("untrained", share), ("useful", 1 - share)]
    return [(kind, Fraction(1))]


def _report(
    quantities: Mapping[str, Fraction], amounts: Mapping[str, Fraction], currency: str, places: int
) -> WasteReport:
    ns_by_kind, ns = round_total(list(quantities.values()), 0)
    row_hours, total_hours = round_total([value / HOUR_NS for value in quantities.values()], HOUR_PLACES)
    row_amounts, total = round_total(list(amounts.values()), places)
    whole = sum(quantities.values(), Fraction(0)) or Fraction(1)
    shares, _ = round_total([value / whole for value in quantities.values()], 4)
    rows = zip(quantities, map(int, ns_by_kind), row_hours, row_amounts, shares, strict=True)
    return WasteReport(currency, tuple(WasteRow(*row) for row in rows), int(ns), total_hours, total)
