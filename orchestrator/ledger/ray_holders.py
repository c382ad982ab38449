"""Which lives of Ray's actors a lease was held for.

Two kinds of leases identify their holder. The leases of `cost watch` contain the id of the actor. The leases
of a placement group (of a run of this project, or watched) contain the id of the group, which Ray's actor
events also name. Work is attributed to an actor by the name it is booked under.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from orchestrator.ledger.events import LeaseOpened
from orchestrator.ledger.ray_events import Life, Recording

WATCHED = re.compile(r"[^/]+/[0-9a-f]{32}/\d+\.(\d+|shared)")
"""The id of a lease that `cost watch` created for an actor outside any placement group."""
SHARED = ".shared"
"""The end of the id of a lease shared by actors with fractions of a GPU."""


def leases_to_compare(recording: Recording, leases: Iterable[str]) -> list[str]:
    """The leases that belong to the cluster of the recording: those that name one of its actors or placement
    groups, and those that `cost watch` created for the same cluster.
    """
    groups = {life.group for life in recording.lives if life.group}
    known = {life.actor_id for life in recording.lives} | groups | {group[:12] for group in groups}
    named: list[str] = []
    others: list[str] = []
    for lease_id in leases:
        parts = lease_id.split("/")
        found = any(part in known or part.rpartition("-")[2] in known for part in parts)
        (named if found else others).append(lease_id)
    clusters = {lease_id.partition("/")[0] for lease_id in named if WATCHED.fullmatch(lease_id)}
    same = (name for name in others if WATCHED.fullmatch(name) and name.partition("/")[0] in clusters)
    return [*named, *same]


class LeaseHolders:
    """Finds the lives that leases and work belong to."""

    def __init__(self, lives: Iterable[Life]) -> None:
        self._by_actor: dict[str, list[Life]] = {}
        self._by_group: dict[str, list[Life]] = {}
        self._by_label: dict[str, list[Life]] = {}
        for life in lives:
            self._by_actor.setdefault(life.actor_id, []).append(life)
            if life.group:
                self._by_group.setdefault(life.group, []).append(life)
            for label in life.labels:
                self._by_label.setdefault(label, []).append(life)

    def of_lease(self, opened: LeaseOpened) -> list[Life]:
        """The lives of the actors that a lease is held for."""
        if opened.placement_group:
            return self._by_group.get(opened.placement_group, [])
        *_, actor_id, place = ("", *opened.lease_id.split("/"))
        number = place.partition(".")[0]
        lives = self._by_actor.get(actor_id, [])
        return [life for life in lives if str(life.number) == number]

    def of_work(self, lease_id: str, actor: str) -> list[Life]:
        """The lives of an actor whose work is booked as `actor` in a lease."""
        label = f"{lease_id.rpartition('/')[0]}/{actor}"
        return self._by_label.get(label) or self._by_label.get(actor, [])
