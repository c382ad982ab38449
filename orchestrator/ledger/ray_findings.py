"""Discrepancies between Ray's events and the ledger about an actor.

actor_not_leased    Ray ran an actor that holds an accelerator or is in a placement group, without a lease
actor_not_in_ray    the ledger has a lease or work of an actor that Ray does not know
leased_too_long     a lease began before its actor, or continues after its actors died
leased_too_short    an actor was alive while its lease was not open
work_outside_life   work of an actor is booked at a time when, according to Ray, it was not alive
death_differs       the ledger says released and Ray a crash; or lost, and Ray an intended end
node_differs        the lease is on a different node than the actor
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

SCHEMA = 1


class RayDiscrepancy(StrEnum):
    """Kinds of discrepancies between Ray and the ledger."""

    ACTOR_NOT_LEASED = "actor_not_leased"
    ACTOR_NOT_IN_RAY = "actor_not_in_ray"
    LEASED_TOO_LONG = "leased_too_long"
    LEASED_TOO_SHORT = "leased_too_short"
    WORK_OUTSIDE_LIFE = "work_outside_life"
    DEATH_DIFFERS = "death_differs"
    NODE_DIFFERS = "node_differs"


@dataclass(frozen=True, slots=True)
class RayFinding:
    """One discrepancy: the actor (name, id and life), node and lease.

    `ray_ns` and `ledger_ns` are the two times, None if one side has none. `ns` is the duration of the
    discrepancy, for one accelerator.
    """

    kind: RayDiscrepancy
    actor: str
    actor_id: str
    life: int
    node: str
    lease_id: str
    ray_ns: int | None
    ledger_ns: int | None
    ns: int
    detail: str


@dataclass(frozen=True, slots=True)
class RayReconciliation:
    """What was compared (lives with resources, leases, pieces of work), and the findings."""

    files: Mapping[str, str]
    first_ns: int
    until_ns: int
    precision_ns: int
    tolerance_ns: int
    as_of_ns: int
    lives: int
    leases: int
    spans: int
    findings: tuple[RayFinding, ...]

    @property
    def clean(self) -> bool:
        return not self.findings

    def to_dict(self) -> dict[str, Any]:
        found = Counter(finding.kind for finding in self.findings)
        counts = {kind.value: found[kind] for kind in RayDiscrepancy}
        return {"schema": SCHEMA, "clean": self.clean, "counts": counts, **asdict(self)}
