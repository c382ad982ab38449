"""Between rewards and learner: which groups may be asked for, and which make the next batch.

The buffer bounds staleness by construction instead of dropping what got too old. With P groups a batch and a
bound of S:

1. *Room.* Groups that were asked for and not yet trained on (in flight, ready or claimed) never exceed (S +
   1) * P.
2. *Claim.* The batch of version v takes the ready groups that were requested at the oldest versions. It waits
   while that would leave, for any version s, more than (s + S - v) * P outstanding groups requested at
   version s or earlier: the later batches up to version s + S could not take them all.

Why nothing passes the bound: at a request at version s rule 1 leaves at most S * P outstanding groups after
the batch of version s; rule 2 keeps that promise at every later claim, so at v = s + S none requested at s or
earlier is left over. A token is never older than its group's request, so v - oldest_version <= S for every
token trained on. S = 0 is synchronous training: rule 1 lets the next batch be asked for only when the last
one was trained on and its weights published.

Each group is trained on exactly once: it must be asked for before it is admitted, a second admission (a retry
after a lost worker whose answer had arrived after all) is refused and counted, and what is outstanding at a
checkpoint is part of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.training.records import Batch, GroupTicket, Prompt, WeightVersion


@dataclass(frozen=True, slots=True)
class PendingGroup:
    """A group that was asked for: its prompt and the learner's version at that moment."""

    group_id: int
    prompt: Prompt
    version: WeightVersion


class Buffer:
    """The window of groups between the producer and the learner. One event loop, no locks; waits are
    conditions on it.
    """

    def __init__(self, groups_per_batch: int, max_staleness: int) -> None:
        if groups_per_batch < 1 or max_staleness < 0:
            raise ValueError(f"need 1 or more groups and 0 or more, got {groups_per_batch}, {max_staleness}")
        self.groups_per_batch = groups_per_batch
        self.max_staleness = max_staleness
        self.refused = 0
        """Admissions refused because the group was not outstanding: duplicates after a retry."""
        self._in_flight: dict[int, PendingGroup] = {}
        self._ready: dict[int, GroupTicket] = {}
        self._prompts: dict[int, PendingGroup] = {}
        self._claimed: dict[int, GroupTicket] = {}
        self._changed = asyncio.Event()

    @property
    def room(self) -> int:
        """How many groups may be asked for now."""
        active = len(self._in_flight) + len(self._ready) + len(self._claimed)
        return (self.max_staleness + 1) * self.groups_per_batch - active

    def request(self, groups: Sequence[PendingGroup]) -> None:
        """Register groups before their rollouts are asked for. Raises ValueError if there is no room or an id
        is active already.
        """
        if len(groups) > self.room:
            raise ValueError(f"asked for {len(groups)} groups, there is room for {self.room}")
        for group in groups:
            if group.group_id in self._prompts:
                raise ValueError(f"group {group.group_id} is active already")
            self._in_flight[group.group_id] = group
            self._prompts[group.group_id] = group

    def admit(self, ticket: GroupTicket) -> bool:
        """A scored group arrived. False, and counted in `refused`, if it is not in flight (any more)."""
        if self._in_flight.pop(ticket.group_id, None) is None:
            self.refused += 1
            return False
        self._ready[ticket.group_id] = ticket
        self.notify()
        return True

    def discard(self, group_id: int) -> bool:
        """A scored group that will not be trained on (dynamic sampling) makes room. False if it is not in
        flight.
        """
        if self._in_flight.pop(group_id, None) is None:
            self.refused += 1
            return False
        del self._prompts[group_id]
        self.notify()
        return True

    def ready(self, version: WeightVersion) -> bool:
        """Whether `claim(version)` would succeed: rule 2 of the module's docstring."""
        return self._choose(version) is not None

    def claim(self, version: WeightVersion) -> Batch:
        """Take the batch that is trained at `version`. Raises ValueError if it is not ready."""
        chosen = self._choose(version)
        if chosen is None:
            raise ValueError(f"the batch of version {version} is not ready")
        for ticket in chosen:
            self._claimed[ticket.group_id] = self._ready.pop(ticket.group_id)
        return Batch(step=version, tickets=tuple(chosen))

    def release(self, batch: Batch) -> None:
        """The batch was trained on and its weights were published: its groups are done. Raises KeyError if
        one was not claimed.
        """
        for ticket in batch.tickets:
            del self._claimed[ticket.group_id]
            del self._prompts[ticket.group_id]
        self.notify()

    async def wait_for_room(self) -> int:
        """Wait until at least one group may be asked for; how many."""
        while self.room <= 0:
            await self.wait_for_change()
        return self.room

    async def wait_for_change(self) -> None:
        """Wait until a group was admitted, discarded or released, or `notify` was called."""
        self._changed.clear()
        await self._changed.wait()

    def notify(self) -> None:
        """Let whoever waits look around."""
        self._changed.set()

    def outstanding(self) -> list[PendingGroup]:
        """Groups that were asked for and not trained on, in the order of their ids: what a checkpoint keeps
        of the buffer.
        """
        return [self._prompts[group_id] for group_id in sorted(self._prompts)]

    def clear(self) -> None:
        """Forget everything active (a restore): rollouts still under way will be refused when they arrive."""
        for groups in (self._in_flight, self._ready, self._claimed, self._prompts):
            groups.clear()
        self.notify()

    def _choose(self, version: WeightVersion) -> list[GroupTicket] | None:
        if len(self._ready) < self.groups_per_batch:
            return None
        by_age = sorted(
            self._ready.values(), key=lambda ticket: (self._prompts[ticket.group_id].version, ticket.group_id)
        )
        chosen, left = by_age[: self.groups_per_batch], by_age[self.groups_per_batch :]
        remaining = [self._prompts[ticket.group_id].version for ticket in left]
        remaining += [request.version for request in self._in_flight.values()]
        for count, requested in enumerate(sorted(remaining), start=1):
            if count > (requested + self.max_staleness - version) * self.groups_per_batch:
                return None
        return chosen
