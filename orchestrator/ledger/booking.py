"""Books leases: every nanosecond of a lease goes to a span, to `idle` or to `lost`, exactly.

Booking is a pure function of the set of events. Their order, duplicates and arrival times do not
matter. For each lease

    sum of the slices' ns = end - start

- A closed lease ends when it was closed. A lease that nobody closed ends `grace` after its last sign of life
  (opening, heartbeat, end of a span), and the time after that sign is `lost`, so nothing is billed forever.
  Until then it is open, and is booked up to `as_of`.
- For a lease closed as `lost`, the time between its last sign of life and its observed death is `lost`. All
  other time without a span is `idle`.
- Where spans overlap, each stretch of time is split equally among the actors, and then among the spans of an
  actor, in whole nanoseconds. The remainder goes to the first ones in order of (actor, event id).
- A span that extends beyond its lease by at most `skew` (the clocks of two nodes differ) is truncated. A
  span that extends further is rejected as a whole, and its time is idle.
- Slices are cut at midnight UTC, so that each has one price and belongs to one month.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from typing import NamedTuple

from orchestrator.ledger.calendar import DAY_NS, cut_at_midnight
from orchestrator.ledger.corrections import Rejection, apply_corrections
from orchestrator.ledger.events import (
    IDLE,
    LOST,
    NO_ROLE,
    Event,
    Heartbeat,
    LeaseClosed,
    LeaseOpened,
    SpanRecorded,
)
from orchestrator.ledger.money import split_evenly


@dataclass(frozen=True, slots=True)
class BookingPolicy:
    """`grace_ns`: how long a lease that was not closed counts after its last sign of life.

    `skew_ns`: how much clocks may differ.
    """

    grace_ns: int
    skew_ns: int


STANDARD_POLICY = BookingPolicy(grace_ns=15 * 60 * 1_000_000_000, skew_ns=1_000_000_000)


class Ending(StrEnum):
    """How a lease ended: OPEN (still held at `as_of`), RELEASED, LOST (its holder died) or ABANDONED (no sign
    of life for longer than the grace period).
    """

    OPEN = "open"
    RELEASED = "released"
    LOST = "lost"
    ABANDONED = "abandoned"


class Slice(NamedTuple):
    """`ns` of the time of a lease within [start_ns, end_ns), on one day.

    `run_id` is the run that used it. `actor`, `step` and `tokens` come from the span; a span that is cut at
    midnight has all its tokens in its first slice. `idle` and `lost` slices have none of the three.
    """

    start_ns: int
    end_ns: int
    ns: int
    role: str
    activity: str
    run_id: str
    actor: str = ""
    step: int = 0
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class BookedLease:
    """A lease with its start and end and its slices in chronological order."""

    opened: LeaseOpened
    start_ns: int
    end_ns: int
    ending: Ending
    slices: tuple[Slice, ...]

    @property
    def ns(self) -> int:
        return self.end_ns - self.start_ns


@dataclass(slots=True)
class LeaseEvents:
    """The events of one lease, in any order."""

    openings: list[LeaseOpened] = field(default_factory=list[LeaseOpened])
    closings: list[LeaseClosed] = field(default_factory=list[LeaseClosed])
    spans: list[SpanRecorded] = field(default_factory=list[SpanRecorded])
    last_heartbeat_ns: int | None = None

    def alive_at(self, at_ns: int) -> None:
        """Record a sign of life."""
        if self.last_heartbeat_ns is None or at_ns > self.last_heartbeat_ns:
            self.last_heartbeat_ns = at_ns


def group_by_lease(events: Iterable[Event]) -> dict[str, LeaseEvents]:
    """Group the events of leases by lease id; other events are ignored."""
    leases: dict[str, LeaseEvents] = {}
    for event in events:
        if not isinstance(event, LeaseOpened | LeaseClosed | Heartbeat | SpanRecorded):
            continue
        lease = leases.get(event.lease_id)
        if lease is None:
            lease = leases[event.lease_id] = LeaseEvents()
        if isinstance(event, SpanRecorded):
            lease.spans.append(event)
        elif isinstance(event, Heartbeat):
            lease.alive_at(event.at_ns)
        elif isinstance(event, LeaseOpened):
            lease.openings.append(event)
        else:
            lease.closings.append(event)
    return leases


def book(
    events: Iterable[Event], as_of_ns: int, policy: BookingPolicy = STANDARD_POLICY
) -> tuple[list[BookedLease], list[Rejection]]:
    """Book all leases in `events` as of `as_of_ns`. Returns them by lease id, and the rejected events."""
    counted, rejected = apply_corrections(events)
    booked: list[BookedLease] = []
    for _, lease in sorted(group_by_lease(counted).items()):
        result, more = book_lease(lease, as_of_ns, policy)
        rejected.extend(more)
        if result is not None:
            booked.append(result)
    return booked, rejected


def book_lease(
    lease: LeaseEvents, as_of_ns: int, policy: BookingPolicy
) -> tuple[BookedLease | None, list[Rejection]]:
    """Book one lease as of `as_of_ns`. Returns None for a lease that was not open yet, and
    the rejected events.
    """
    facts, rejected = lease_facts(lease, policy)
    if facts is None or facts.opened.at_ns >= as_of_ns:
        return None, rejected
    end, lost_from, ending = _extent(facts, as_of_ns, policy.grace_ns)
    lost_from = min(lost_from, end)
    slices = _slices(facts.spans, facts.opened, lost_from)
    slices.extend(unattributed(lost_from, end, LOST, facts.opened.run_id))
    return BookedLease(facts.opened, facts.opened.at_ns, end, ending, tuple(slices)), rejected


@dataclass(frozen=True, slots=True)
class LeaseFacts:
    """The events of a lease, resolved: the opening and the close that count, the spans within the lease, and
    the last sign of life.
    """

    opened: LeaseOpened
    closed: LeaseClosed | None
    spans: list[SpanRecorded]
    last_sign_ns: int


def lease_facts(lease: LeaseEvents, policy: BookingPolicy) -> tuple[LeaseFacts | None, list[Rejection]]:
    """Resolve the events of a lease. Returns None for a lease that was never opened, and
    the rejected events.
    """
    if not lease.openings:
        orphans = (*lease.closings, *lease.spans)
        reason = "was never opened"
        return None, [Rejection(event.event_id, f"lease {event.lease_id} {reason}") for event in orphans]
    opened, *more = sorted(lease.openings, key=lambda event: (event.at_ns, event.event_id))
    closed, not_closings = _closing(lease, opened)
    spans, outside = _inside(lease.spans, opened, closed, policy.skew_ns)
    rejected = [Rejection(event.event_id, f"lease {event.lease_id} was already open") for event in more]
    rejected += [*not_closings, *outside]
    signs = [opened.at_ns, *(span.end_ns for span in spans)]
    if lease.last_heartbeat_ns is not None:
        signs.append(lease.last_heartbeat_ns)
    return LeaseFacts(opened, closed, spans, max(signs)), rejected


def tail(run_id: str, last_sign_ns: int, as_of_ns: int, policy: BookingPolicy) -> list[Slice]:
    """The slices of a lease that nobody closed, from its last sign of life to `as_of_ns`, which must
    not be earlier.
    """
    end = min(as_of_ns, last_sign_ns + policy.grace_ns)
    activity = LOST if as_of_ns > end else IDLE
    return unattributed(last_sign_ns, end, activity, run_id)


def _closing(lease: LeaseEvents, opened: LeaseOpened) -> tuple[LeaseClosed | None, list[Rejection]]:
    """The close that counts, and the rejected ones."""
    closed: LeaseClosed | None = None
    rejected: list[Rejection] = []
    for event in sorted(lease.closings, key=lambda event: (event.at_ns, event.event_id)):
        if event.at_ns < opened.at_ns:
            rejected.append(Rejection(event.event_id, f"lease {event.lease_id} would end before it began"))
        elif closed is not None:
            rejected.append(Rejection(event.event_id, f"lease {event.lease_id} was already closed"))
        else:
            closed = event
    return closed, rejected


def _extent(facts: LeaseFacts, as_of_ns: int, grace_ns: int) -> tuple[int, int, Ending]:
    """The end of a lease as of `as_of_ns`, the start of its `lost` time (else its end), and how it ended."""
    closed, last_sign = facts.closed, facts.last_sign_ns
    if closed is not None and closed.at_ns <= as_of_ns:
        if closed.reason == "lost":
            return closed.at_ns, last_sign, Ending.LOST
        return closed.at_ns, closed.at_ns, Ending.RELEASED
    if as_of_ns > last_sign + grace_ns and closed is None:
        return last_sign + grace_ns, last_sign, Ending.ABANDONED
    return as_of_ns, as_of_ns, Ending.OPEN


def _inside(
    spans: Sequence[SpanRecorded], opened: LeaseOpened, closed: LeaseClosed | None, skew_ns: int
) -> tuple[list[SpanRecorded], list[Rejection]]:
    """The spans within the lease, allowing for clock skew, and the rejected ones."""
    first = opened.at_ns - skew_ns
    last = None if closed is None else closed.at_ns + skew_ns
    inside: list[SpanRecorded] = []
    rejected: list[Rejection] = []
    for span in spans:
        if span.start_ns < first or (last is not None and span.end_ns > last):
            extent = f"{opened.at_ns}..{'' if closed is None else closed.at_ns}"
            reason = f"span {span.start_ns}..{span.end_ns} lies outside lease {span.lease_id} ({extent})"
            rejected.append(Rejection(span.event_id, reason))
        else:
            inside.append(span)
    return inside, rejected


def _slices(spans: list[SpanRecorded], opened: LeaseOpened, end_ns: int) -> list[Slice]:
    """The slices of [opened, end): those of each cluster of overlapping spans, and `idle`
    between the clusters.
    """
    spans.sort(key=lambda span: (span.start_ns, span.end_ns, span.actor, span.event_id))
    slices: list[Slice] = []
    cursor, index, run_id = opened.at_ns, 0, opened.run_id
    while index < len(spans):
        start = max(spans[index].start_ns, cursor)
        cluster_end = min(spans[index].end_ns, end_ns)
        first = index
        index += 1
        while index < len(spans) and spans[index].start_ns < cluster_end:
            cluster_end = min(max(cluster_end, spans[index].end_ns), end_ns)
            index += 1
        if cluster_end <= start:
            continue
        slices.extend(unattributed(cursor, start, IDLE, run_id))
        if index == first + 1:
            slices.extend(_alone(spans[first], start, cluster_end, run_id))
        else:
            slices.extend(_shared(spans[first:index], start, cluster_end, run_id))
        cursor = cluster_end
    slices.extend(unattributed(cursor, end_ns, IDLE, run_id))
    return slices


def unattributed(start_ns: int, end_ns: int, activity: str, run_id: str) -> list[Slice]:
    """The time of a lease that no span covers, cut by day."""
    if start_ns < end_ns and start_ns // DAY_NS == (end_ns - 1) // DAY_NS:
        return [Slice(start_ns, end_ns, end_ns - start_ns, NO_ROLE, activity, run_id)]
    return [
        Slice(start, end, end - start, NO_ROLE, activity, run_id)
        for start, end in cut_at_midnight(start_ns, end_ns)
    ]


def _alone(span: SpanRecorded, start_ns: int, end_ns: int, holder: str) -> list[Slice]:
    if start_ns // DAY_NS == (end_ns - 1) // DAY_NS:
        return [_slice(span, start_ns, end_ns, end_ns - start_ns, holder, True)]
    return [
        _slice(span, start, end, end - start, holder, start == start_ns)
        for start, end in cut_at_midnight(start_ns, end_ns)
    ]


def _slice(span: SpanRecorded, start_ns: int, end_ns: int, ns: int, holder: str, first: bool) -> Slice:
    return Slice(
        start_ns,
        end_ns,
        ns,
        span.role,
        span.activity,
        span.run_id or holder,
        span.actor,
        span.step,
        span.tokens if first else 0,
    )


def _shared(spans: Sequence[SpanRecorded], start_ns: int, end_ns: int, holder: str) -> list[Slice]:
    """One slice per span and day of a cluster: its share of every stretch in which the set of active spans
    does not change.
    """
    bounds = {start_ns, end_ns}
    bounds.update(second for _, second in cut_at_midnight(start_ns, end_ns))
    for span in spans:
        bounds.add(min(max(span.start_ns, start_ns), end_ns))
        bounds.add(min(max(span.end_ns, start_ns), end_ns))
    marks = sorted(bounds)
    shares: dict[tuple[int, str], int] = {}
    by_id = {span.event_id: span for span in spans}
    waiting = sorted(spans, key=lambda span: span.start_ns, reverse=True)
    active: dict[str, SpanRecorded] = {}
    for start, end in pairwise(marks):
        while waiting and waiting[-1].start_ns <= start:
            span = waiting.pop()
            active[span.event_id] = span
        active = {event_id: span for event_id, span in active.items() if span.end_ns > start}
        for event_id, ns in _split(active, end - start):
            key = (start // DAY_NS, event_id)
            shares[key] = shares.get(key, 0) + ns
    pieces: list[tuple[Slice, str]] = []
    begun: set[str] = set()
    for (day, event_id), ns in shares.items():
        if ns:
            span = by_id[event_id]
            first = max(span.start_ns, start_ns, day * DAY_NS)
            last = min(span.end_ns, end_ns, (day + 1) * DAY_NS)
            pieces.append((_slice(span, first, last, ns, holder, event_id not in begun), event_id))
            begun.add(event_id)
    pieces.sort(key=lambda piece: (piece[0].start_ns, piece[0].end_ns, piece[0].actor, piece[1]))
    return [piece for piece, _ in pieces]


def _split(active: Mapping[str, SpanRecorded], ns: int) -> list[tuple[str, int]]:
    """Each active span's share of a stretch: equal among actors, then among the spans of an actor."""
    if len(active) == 1:
        return [(event_id, ns) for event_id in active]
    actors: dict[str, list[str]] = {}
    for span in active.values():
        actors.setdefault(span.actor, []).append(span.event_id)
    shares: list[tuple[str, int]] = []
    for actor, share in zip(sorted(actors), split_evenly(ns, len(actors)), strict=True):
        shares.extend(zip(sorted(actors[actor]), split_evenly(share, len(actors[actor])), strict=True))
    return shares
