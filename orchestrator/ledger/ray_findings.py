"""How Ray's events and the ledger can disagree about an actor.

actor_not_leased    Ray ran an actor that holds an accelerator or sits in a placement group; no lease does
actor_not_in_ray    the ledger has a lease, or work, of an actor that Ray never had
leased_too_long     a lease began before its actor, or goes on though its actors are dead
leased_too_short    an actor lived while its lease was not open
work_outside_life   an actor's work was booked at a time when Ray says that it did not live
death_differs       the ledger says released and Ray a crash; or lost, and Ray that it was wanted
node_differs        the ledger has the lease on another node than Ray the actor
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

SCHEMA = 1


class Kind(StrEnum):
    """How Ray and the ledger can disagree about an actor."""

    ACTOR_NOT_LEASED = "actor_not_leased"
    ACTOR_NOT_IN_RAY = "actor_not_in_ray"
    LEASED_TOO_LONG = "leased_too_long"
    LEASED_TOO_SHORT = "leased_too_short"
    WORK_OUTSIDE_LIFE = "work_outside_life"
    DEATH_DIFFERS = "death_differs"
    NODE_DIFFERS = "node_differs"


@dataclass(frozen=True, slots=True)
class RayFinding:
    """One disagreement: about which actor (its name, id and life), on which node, in which lease.

    `ray_ns` and `ledger_ns` are the two moments, None where one side has none; `ns` is for how long the two
    disagree, of one accelerator.
    """

    kind: Kind
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
    """What was compared (lives that hold something, leases, pieces of work) and what was found."""

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
        """Whether Ray and the ledger agree."""
        return not self.findings

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        found = Counter(finding.kind for finding in self.findings)
        counts = {kind.value: found[kind] for kind in Kind}
        return {"schema": SCHEMA, "clean": self.clean, "counts": counts, **asdict(self)}
