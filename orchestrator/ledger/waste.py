"""Waste: idle and lost time, failed runs, restarts, repeated work, and rollouts that were generated but
never trained on.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any

from orchestrator.ledger.booking import BookedLease, Slice
from orchestrator.ledger.calendar import DAY_NS, HOUR_NS, day_of
from orchestrator.ledger.events import IDLE, LOST
from orchestrator.ledger.labels import UNLABELLED, Labels
from orchestrator.ledger.money import AMOUNT_PLACES, HOUR_PLACES, hours, round_total
from orchestrator.ledger.pricing import Pricer

FAILED = "failed"
KINDS = {
    IDLE: "leased, but no actor did anything",
    LOST: "leased, but its holder was dead",
    FAILED: "work of runs whose purpose is `failed`",
    "superseded": "steps that were repeated because no checkpoint contained them",
    "restart": "loading again, in later attempts and after the loss of an actor",
    "untrained": "rollouts never trained on: stale, rejected, cancelled, or without a learning signal",
    "useful": "everything else",
}
"""Each nanosecond has exactly one kind: the first one that applies."""

LEARNER, LOAD = "learner", "load"
AFTER_THE_STEP = ("checkpoint", "evaluate")
"""These run after a step, so the step of their span is the number of completed steps."""

Life = tuple[str, int, int]
"""A run, an attempt, and the number of its learner: each learner that was lost ends a life."""


@dataclass(frozen=True, slots=True)
class WasteRow:
    """One kind of waste, or the useful rest."""

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
        """Plain JSON; hours, amounts and shares are decimal strings."""
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
    lives = Lives(leases)
    untrained = untrained_shares(leases)
    quantities = dict.fromkeys(KINDS, Fraction(0))
    amounts = dict.fromkeys(KINDS, Fraction(0))
    for lease in leases:
        for piece in lease.slices:
            day = day_of(piece.start_ns)
            price = pricer.per_hour(lease.opened.sku, lease.opened.region, lease.opened.commitment, day)
            kind = kind_of(piece, lease.opened.attempt, labels, lives)
            for share_kind, share in _split(kind, piece, untrained):
                quantities[share_kind] += share * piece.ns
                amounts[share_kind] += share * hours(piece.ns) * price
    return _report(quantities, amounts, pricer.table.currency, places)


def kind_of(piece: Slice, attempt: int, labels: Mapping[str, Labels], lives: Lives) -> str:
    """The kind of a slice; `useful` if no other kind applies."""
    if piece.activity in (IDLE, LOST):
        return piece.activity
    if labels.get(piece.run_id, UNLABELLED).purpose == FAILED:
        return FAILED
    if piece.activity == LOAD:
        return "restart" if lives.loads_again(piece, attempt) else "useful"
    return "superseded" if lives.does_again(piece, attempt) else "useful"


class Lives:
    """Determines what the attempts of runs did more than once.

    A new attempt continues from a checkpoint. So does an attempt whose learner was lost and rebuilt, which
    shows as a learner that loads after it has worked. In both cases later steps are repeated, along with
    their rollouts.
    """

    def __init__(self, leases: Iterable[BookedLease]) -> None:
        booked = list(leases)
        self._worked = _first_work(booked)
        self._rebuilt = _rebuilds(booked)
        self._redone = self._first_redone_steps(booked)

    def does_again(self, piece: Slice, attempt: int) -> bool:
        """Whether a later life repeated the step of a slice."""
        first = self._redone.get(self._life(piece, attempt))
        done = max(piece.step - 1, 0) if piece.activity in AFTER_THE_STEP else piece.step
        return first is not None and done >= first

    def loads_again(self, piece: Slice, attempt: int) -> bool:
        """Whether the actor of a slice, or an earlier attempt, had already been loaded and at work."""
        worked = self._worked.get((piece.run_id, attempt, piece.actor))
        return attempt > 1 or (worked is not None and piece.start_ns >= worked)

    def _life(self, piece: Slice, attempt: int) -> Life:
        rebuilt = self._rebuilt.get((piece.run_id, attempt), ())
        return piece.run_id, attempt, bisect_right(rebuilt, piece.start_ns)

    def _first_redone_steps(self, booked: Iterable[BookedLease]) -> dict[Life, int]:
        """For each life with a successor: the first step that a later life (re)did."""
        firsts: dict[Life, int] = {}
        lives: set[Life] = set()
        for lease in booked:
            for piece in lease.slices:
                life = self._life(piece, lease.opened.attempt)
                lives.add(life)
                if piece.activity == "update":
                    firsts[life] = min(piece.step, firsts.get(life, piece.step))
        redone: dict[Life, int] = {}
        lowest: dict[str, int] = {}
        for life in sorted(lives, reverse=True):
            run = life[0]
            if run in lowest:
                redone[life] = lowest[run]
            if life in firsts:
                lowest[run] = min(firsts[life], lowest.get(run, firsts[life]))
        return redone


def _first_work(booked: Iterable[BookedLease]) -> dict[tuple[str, int, str], int]:
    """When each actor of each attempt first did something other than loading."""
    first: dict[tuple[str, int, str], int] = {}
    for lease in booked:
        for piece in lease.slices:
            if piece.actor and piece.activity != LOAD:
                key = (piece.run_id, lease.opened.attempt, piece.actor)
                first[key] = min(piece.start_ns, first.get(key, piece.start_ns))
    return first


def _rebuilds(booked: Iterable[BookedLease]) -> dict[tuple[str, int], list[int]]:
    """When each attempt's learner began to load again, in chronological order; the loads of
    all ranks are one.
    """
    acts: dict[tuple[str, int], list[tuple[int, bool]]] = {}
    for lease in booked:
        for piece in lease.slices:
            if piece.role == LEARNER:
                key = (piece.run_id, lease.opened.attempt)
                acts.setdefault(key, []).append((piece.start_ns, piece.activity == LOAD))
    rebuilt: dict[tuple[str, int], list[int]] = {}
    for key, done in acts.items():
        worked = False
        for start_ns, loads in sorted(done):
            if loads and worked:
                rebuilt.setdefault(key, []).append(start_ns)
            worked = not loads
    return rebuilt


def token_counts(leases: Iterable[BookedLease]) -> dict[tuple[str, str], int]:
    """Tokens by (run, activity). An actor with several leases reports the same tokens for each;
    they count once.
    """
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
    share = untrained.get(piece.run_id)
    if kind != "useful" or piece.activity != "generate" or share is None:
        return [(kind, Fraction(1))]
    if piece.tokens == 0 and piece.start_ns % DAY_NS:  # the rest of a span after midnight has none either
        return [("untrained", Fraction(1))]  # rollouts that were cancelled, or lost with their worker
    return [("untrained", share), ("useful", 1 - share)] if share else [(kind, Fraction(1))]


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
