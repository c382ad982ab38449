"""Compares Ray's actor events with the ledger: for each life of an actor, what Ray reported and
what was booked.

Ray reports nothing about placement groups. So the lease of a group may begin before its first actor. If it
continues after its last actor, that is a finding, because nothing in Ray's events explains the time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from orchestrator.ledger.booking import (
    BookedLease,
    BookingPolicy,
    Ending,
    book_lease,
    group_by_lease,
    lease_facts,
)
from orchestrator.ledger.corrections import apply_corrections
from orchestrator.ledger.events import Event, LeaseOpened, SpanRecorded
from orchestrator.ledger.ray_events import Death, Life, Recording
from orchestrator.ledger.ray_findings import RayDiscrepancy, RayFinding, RayReconciliation
from orchestrator.ledger.ray_holders import SHARED, LeaseHolders

NODE_ID_LENGTH = 56
"""Length of a node id in hexadecimal. Anything else in a lease is a node's name, which Ray may not report."""


def reconcile_ray(
    events: Iterable[Event],
    recording: Recording,
    tolerance_ns: int,
    as_of_ns: int,
    policy: BookingPolicy,
    until_ns: int | None = None,
) -> RayReconciliation:
    """Compare both sides as of `as_of_ns`. Times at most `tolerance_ns` apart agree.

    `until_ns`: the time up to which Ray would have reported a death; by default that of its last event.
    """
    until = recording.last_ns if until_ns is None else until_ns
    comparison = _Comparison(recording, tolerance_ns, as_of_ns, until)
    leases = group_by_lease(apply_corrections(events)[0])
    for _, lease in sorted(leases.items()):
        booked, _ = book_lease(lease, as_of_ns, policy)
        facts, _ = lease_facts(lease, policy)
        if booked is not None and facts is not None:
            comparison.take(booked, facts.spans)
    findings = comparison.findings()
    return RayReconciliation(
        recording.files,
        recording.first_ns,
        until,
        recording.precision_ns,
        tolerance_ns,
        as_of_ns,
        sum(life.holds for life in recording.lives),
        comparison.leases,
        comparison.spans,
        tuple(findings),
    )


@dataclass(slots=True)
class _Extent:
    """The time during which the leases of a group are open."""

    start_ns: int
    end_ns: int
    lease_id: str


@dataclass(slots=True)
class _Comparison:
    """Compares leases one by one and collects discrepancies."""

    recording: Recording
    tolerance_ns: int
    as_of_ns: int
    until_ns: int
    leases: int = 0
    spans: int = 0
    _found: list[RayFinding] = field(default_factory=list[RayFinding])
    _leased: set[tuple[str, int]] = field(default_factory=set[tuple[str, int]])
    _groups: dict[str, _Extent] = field(default_factory=dict[str, _Extent])
    _holders: LeaseHolders = field(init=False)

    def __post_init__(self) -> None:
        self._holders = LeaseHolders(self.recording.lives)

    def take(self, booked: BookedLease, spans: Sequence[SpanRecorded]) -> None:
        """Compare one lease with the lives of its holders."""
        opened = booked.opened
        lives = self._holders.of_lease(opened)
        if not lives:
            if not opened.placement_group and booked.end_ns > self.recording.first_ns:
                detail = "not in Ray's events"
                self._add(
                    RayDiscrepancy.ACTOR_NOT_IN_RAY, opened, None, None, booked.start_ns, booked.ns, detail
                )
            return
        self.leases += 1
        by_actor: dict[str, list[SpanRecorded]] = {}
        for span in spans:
            by_actor.setdefault(span.actor, []).append(span)
        for actor, work in by_actor.items():
            users = self._holders.of_work(opened.lease_id, actor)
            self._compare_work(opened, actor, work, users)
            if opened.lease_id.endswith(SHARED):
                there = (life for life in users if life.overlaps(booked.start_ns, booked.end_ns))
                lives = [*lives, *(life for life in there if life not in lives)]
        self._leased.update((life.actor_id, life.number) for life in lives)
        if opened.placement_group:
            self._take_group(booked)
        else:
            self._compare_start(booked, lives[0])
            self._compare_node(opened, lives[0])
        self._compare_end(booked, lives)

    def findings(self) -> list[RayFinding]:
        """All discrepancies, in order of actor and time."""
        for life in self.recording.lives:
            if life.holds and life.start_ns is not None:
                self._compare_life(life, life.start_ns)
        return sorted(
            self._found,
            key=lambda one: (
                one.actor,
                one.life,
                one.kind,
                one.ledger_ns or 0,
                one.ray_ns or 0,
                one.lease_id,
            ),
        )

    def _take_group(self, booked: BookedLease) -> None:
        group = booked.opened.placement_group
        extent = self._groups.setdefault(
            group, _Extent(booked.start_ns, booked.end_ns, booked.opened.lease_id)
        )
        extent.start_ns = min(extent.start_ns, booked.start_ns)
        extent.end_ns = max(extent.end_ns, booked.end_ns)

    def _compare_work(
        self, opened: LeaseOpened, actor: str, work: Sequence[SpanRecorded], lives: Sequence[Life]
    ) -> None:
        self.spans += len(work)
        if not lives:
            seen = [span for span in work if span.end_ns > self.recording.first_ns]
            if seen:
                ns = sum(span.end_ns - span.start_ns for span in seen)
                detail = f"{len(seen)} pieces of work of {actor}, an actor that is not in Ray's events"
                first_ns = min(span.start_ns for span in seen)
                self._add(RayDiscrepancy.ACTOR_NOT_IN_RAY, opened, None, None, first_ns, ns, detail, actor)
            return
        if opened.placement_group:
            self._compare_node(opened, lives[-1])
        outside = [(span, ns) for span in work if (ns := self._outside(span, lives))]
        if outside:
            span, _ = max(outside, key=lambda pair: pair[1])
            life = max(lives, key=lambda life: _overlap(span, life, self.until_ns))
            after = life.end_ns is not None and span.end_ns > life.end_ns
            ray_ns, ledger_ns = (life.end_ns, span.end_ns) if after else (life.pending_ns, span.start_ns)
            where = "after its death" if after else "before its start"
            detail = f"{len(outside)} of {len(work)} pieces of work, the largest {where}"
            ns = sum(ns for _, ns in outside)
            self._add(RayDiscrepancy.WORK_OUTSIDE_LIFE, opened, life, ray_ns, ledger_ns, ns, detail)

    def _outside(self, span: SpanRecorded, lives: Sequence[Life]) -> int:
        """How long a span lies outside all of the lives; 0 if within the tolerance."""
        if not _uncovered(span, self._extents(lives, self.tolerance_ns)):
            return 0
        return _uncovered(span, self._extents(lives, 0))

    def _extents(self, lives: Sequence[Life], tolerance_ns: int) -> list[tuple[int, int]]:
        """The time during which each life may have worked."""
        return sorted(
            (
                life.pending_ns - tolerance_ns,
                self._latest_end(life) + tolerance_ns if life.end_ns is not None else 1 << 63,
            )
            for life in lives
        )

    def _compare_start(self, booked: BookedLease, life: Life) -> None:
        early = life.pending_ns - booked.start_ns
        if early > self.tolerance_ns:
            detail = "leased before the actor was requested"
            ledger_ns = booked.start_ns
            self._add(
                RayDiscrepancy.LEASED_TOO_LONG, booked.opened, life, life.pending_ns, ledger_ns, early, detail
            )
        if life.start_ns is not None:
            late = booked.start_ns - (life.start_ns + life.grain_ns - 1)
            if late > self.tolerance_ns:
                detail, ledger_ns = "the actor was alive before it was leased", booked.start_ns
                self._add(
                    RayDiscrepancy.LEASED_TOO_SHORT,
                    booked.opened,
                    life,
                    life.start_ns,
                    ledger_ns,
                    late,
                    detail,
                )

    def _compare_end(self, booked: BookedLease, lives: Sequence[Life]) -> None:
        """A lease must end when its last holder died."""
        alive = [life for life in lives if life.end_ns is None]
        last = max(alive or lives, key=lambda life: life.end_ns or 0)
        if alive or last.end_ns is None:
            early = self.until_ns - booked.end_ns
            if (
                early > self.tolerance_ns
                and booked.end_ns > last.pending_ns
                and not booked.opened.placement_group
            ):
                detail = "the actor is alive, but its lease has ended"
                self._add(
                    RayDiscrepancy.LEASED_TOO_SHORT,
                    booked.opened,
                    last,
                    self.until_ns,
                    booked.end_ns,
                    early,
                    detail,
                )
            return
        late = booked.end_ns - self._latest_end(last)
        if late > self.tolerance_ns:
            detail = (
                f"{_ENDINGS[booked.ending]} after {'its last actor' if len(lives) > 1 else 'the actor'} died"
            )
            self._add(
                RayDiscrepancy.LEASED_TOO_LONG, booked.opened, last, last.end_ns, booked.end_ns, late, detail
            )
        early = last.end_ns - booked.end_ns
        if early > self.tolerance_ns and not booked.opened.placement_group:
            detail = f"{_ENDINGS[booked.ending]} before the actor died"
            self._add(
                RayDiscrepancy.LEASED_TOO_SHORT,
                booked.opened,
                last,
                last.end_ns,
                booked.end_ns,
                early,
                detail,
            )
        self._compare_death(booked, last)

    def _compare_death(self, booked: BookedLease, last: Life) -> None:
        lost = booked.ending in (Ending.LOST, Ending.ABANDONED)
        crashed = last.death is Death.CRASHED
        # The holder of a group releases it, whatever happened to its actors.
        if lost and last.death is Death.INTENDED:
            said = "lost"
        elif booked.ending is Ending.RELEASED and crashed and not booked.opened.placement_group:
            said = "released"
        else:
            return
        ns = sum(piece.ns for piece in booked.slices if piece.activity == "lost")
        detail = f"booked as {said}; Ray: {last.cause}"
        self._add(RayDiscrepancy.DEATH_DIFFERS, booked.opened, last, last.end_ns, booked.end_ns, ns, detail)

    def _compare_node(self, opened: LeaseOpened, life: Life) -> None:
        known = {life.node, *self.recording.nodes.get(life.node, ())} - {""}
        judged = life.node in self.recording.nodes or len(opened.node) == NODE_ID_LENGTH
        if known and opened.node and judged and opened.node not in known:
            detail = f"leased on {opened.node}, ran on {', '.join(sorted(known))}"
            self._add(RayDiscrepancy.NODE_DIFFERS, opened, life, life.start_ns, opened.at_ns, 0, detail)

    def _compare_life(self, life: Life, start_ns: int) -> None:
        """Check that a life with resources is leased for all of its time."""
        end_ns = self.until_ns if life.end_ns is None else life.end_ns
        extent = self._groups.get(life.group) if life.group else None
        if extent is not None:
            late, early = extent.start_ns - self._latest(start_ns, life), end_ns - extent.end_ns
            for ns, ray_ns, ledger_ns, detail in (
                (
                    late,
                    start_ns,
                    extent.start_ns,
                    "the actor was alive before its placement group was leased",
                ),
                (
                    early,
                    end_ns,
                    extent.end_ns,
                    "the actor is alive after the lease of its placement group ended",
                ),
            ):
                if ns > self.tolerance_ns:
                    self._found.append(
                        _finding(
                            RayDiscrepancy.LEASED_TOO_SHORT,
                            life,
                            extent.lease_id,
                            ray_ns,
                            ledger_ns,
                            ns,
                            detail,
                        )
                    )
        elif (life.actor_id, life.number) not in self._leased and end_ns - start_ns > self.tolerance_ns:
            what = f"{life.gpus:g} GPUs" if life.gpus else f"{life.cpus:g} CPUs"
            where = f", in placement group {life.group}" if life.group else ""
            detail = f"{what}{where}: no lease"
            ns = end_ns - start_ns
            self._found.append(
                _finding(RayDiscrepancy.ACTOR_NOT_LEASED, life, "", start_ns, None, ns, detail)
            )

    def _latest_end(self, life: Life) -> int:
        return self._latest(life.end_ns or 0, life)

    def _latest(self, at_ns: int, life: Life) -> int:
        """The latest time that a time of Ray can mean: some of its events have whole seconds."""
        return at_ns + life.grain_ns - 1

    def _add(
        self,
        kind: RayDiscrepancy,
        opened: LeaseOpened,
        life: Life | None,
        ray_ns: int | None,
        ledger_ns: int | None,
        ns: int,
        detail: str,
        actor: str = "",
    ) -> None:
        if life is not None:
            self._found.append(
                _finding(kind, life, opened.lease_id, ray_ns, ledger_ns, ns, detail, opened.node)
            )
            return
        named = actor or opened.lease_id.split("/")[-2:][0]
        self._found.append(
            RayFinding(kind, named, "", 0, opened.node, opened.lease_id, ray_ns, ledger_ns, ns, detail)
        )


_ENDINGS = {
    Ending.OPEN: "still open",
    Ending.RELEASED: "released",
    Ending.LOST: "closed as lost",
    Ending.ABANDONED: "abandoned",
}


def _finding(
    kind: RayDiscrepancy,
    life: Life,
    lease_id: str,
    ray_ns: int | None,
    ledger_ns: int | None,
    ns: int,
    detail: str,
    node: str = "",
) -> RayFinding:
    return RayFinding(
        kind,
        life.name or life.class_name,
        life.actor_id,
        life.number,
        node or life.node,
        lease_id,
        ray_ns,
        ledger_ns,
        ns,
        detail,
    )


def _uncovered(span: SpanRecorded, extents: Iterable[tuple[int, int]]) -> int:
    """How much of a span lies in none of the extents, which are sorted by start."""
    outside, cursor = 0, span.start_ns
    for start, end in extents:
        if start >= span.end_ns:
            break
        outside += max(0, start - cursor)
        cursor = max(cursor, end)
    return outside + max(0, span.end_ns - cursor)


def _overlap(span: SpanRecorded, life: Life, until_ns: int) -> int:
    """How long a span and a life overlap; negative: the gap between them."""
    end_ns = until_ns if life.end_ns is None else life.end_ns
    return min(span.end_ns, end_ns) - max(span.start_ns, life.pending_ns)
