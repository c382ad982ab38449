"""Between rewards and learner: which groups may be requested, and which make the next batch.

The buffer bounds staleness by construction instead of dropping what got too old. With P groups a batch
and a bound of S:

1. *Room.* Groups that were requested and not yet trained on (in flight, ready or claimed) never exceed
   (S + 1) * P. They are the *window*.
2. *Claim.* The batch of version v takes the ready groups that were requested at the oldest versions. It waits
   while that would leave, for the version s of any group that is left, more than (s + S - v) * P groups in
   the window that were requested at version s or earlier, which later batches could not take in time.
3. *Loss.* A group whose rollouts were lost leaves the window for the *backlog*. It enters the window again
   under its old id when it is requested again, at the learner's version of that moment and under rule 1.

Why nothing passes the bound: a request at version s leaves, by rule 1, at most S * P groups in the window
after the batch of version s; rule 2 keeps that promise at every later claim, so at v = s + S none requested
at s or earlier is left over. A token is never older than its group's request, so v - oldest_version <= S
for every token trained on. A loss only takes groups out of the window, which makes every count in rules 1
and 2 smaller; what is requested again counts as requested at the new version, and its tokens are new. S = 0
is synchronous training: rule 1 lets the next batch be requested only when the last one was trained on and
its weights published.

Why it never deadlocks: when everything in the window is ready, rule 2 holds (no claim broke it, and nothing
is in flight that could); if fewer than P groups are ready then, rule 1 leaves room to request more.

Each group is trained on exactly once: it must be requested before it is admitted, a second admission (a retry
after a lost worker whose answer had arrived after all) is refused and counted, and what is outstanding, the
backlog included, is part of every checkpoint.
"""

from __future__ import annotations

import asyncio
import bisect
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from orchestrator.training.records import Batch, GroupTicket, Prompt, WeightVersion


@dataclass(frozen=True, slots=True)
class PendingGroup:
    """A requested group: its prompt, and the learner's version when it was requested."""

    group_id: int
    prompt: Prompt
    version: WeightVersion


class Buffer:
    """The window of groups between the producer and the learner, and the backlog of lost ones.

    It belongs to one event loop and needs no locks: waits are conditions on the loop.
    """

    def __init__(self, groups_per_batch: int, max_staleness: int) -> None:
        if groups_per_batch < 1 or max_staleness < 0:
            raise ValueError(f"need 1 or more groups and 0 or more, got {groups_per_batch}, {max_staleness}")
        self.groups_per_batch = groups_per_batch
        self.max_staleness = max_staleness
        self.refused = 0
        """Admissions refused because the group was not in flight: duplicates after a retry."""
        self._window: dict[int, PendingGroup] = {}
        self._in_flight: set[int] = set()
        self._ready: dict[int, GroupTicket] = {}
        self._by_age: list[tuple[WeightVersion, int]] = []
        """(version of the request, group id) of the ready groups, in order."""
        self._unclaimed: Counter[WeightVersion] = Counter()
        """How many groups in flight or ready were requested at each version."""
        self._claimed: set[int] = set()
        self._backlog: dict[int, PendingGroup] = {}
        self._changed = asyncio.Event()

    @property
    def room(self) -> int:
        """How many groups may be requested now."""
        return (self.max_staleness + 1) * self.groups_per_batch - len(self._window)

    def request(self, groups: Sequence[PendingGroup]) -> None:
        """Register groups before their rollouts are requested. Raises ValueError if there is no room, or if
        an id is outstanding already.
        """
        if len(groups) > self.room:
            raise ValueError(f"asked for {len(groups)} groups, there is room for {self.room}")
        for group in groups:
            if group.group_id in self._window or group.group_id in self._backlog:
                raise ValueError(f"group {group.group_id} is outstanding already")
            self._window[group.group_id] = group
            self._in_flight.add(group.group_id)
            self._unclaimed[group.version] += 1

    def request_again(self, count: int, version: WeightVersion) -> list[PendingGroup]:
        """Take up to `count` groups out of the backlog, oldest id first, and register them as requested at
        `version`. Raises ValueError if there is no room for them.
        """
        ids = sorted(self._backlog)[: max(count, 0)]
        groups = [replace(self._backlog[group_id], version=version) for group_id in ids]
        if len(groups) > self.room:
            raise ValueError(f"asked for {len(groups)} groups, there is room for {self.room}")
        for group_id in ids:
            del self._backlog[group_id]
        self.request(groups)
        return groups

    def admit(self, ticket: GroupTicket) -> bool:
        """A scored group arrived. False, and counted in `refused`, if it is not in flight (any more)."""
        if not self._arrived(ticket.group_id):
            return False
        self._ready[ticket.group_id] = ticket
        bisect.insort(self._by_age, (self._window[ticket.group_id].version, ticket.group_id))
        self.notify()
        return True

    def discard(self, group_id: int) -> bool:
        """A scored group that will not be trained on (dynamic sampling) makes room. False, and counted in
        `refused`, if it is not in flight.
        """
        if not self._arrived(group_id):
            return False
        self._unclaimed[self._window.pop(group_id).version] -= 1
        self.notify()
        return True

    def lose(self, group_ids: Iterable[int]) -> list[int]:
        """The rollouts of these groups are gone: those in flight or claimed go to the backlog. Returns their
        ids; others (already ready, or from before a restore) are left alone.
        """
        lost: list[int] = []
        for group_id in group_ids:
            if group_id in self._in_flight:
                self._in_flight.remove(group_id)
                self._unclaimed[self._window[group_id].version] -= 1
            elif group_id in self._claimed:
                self._claimed.remove(group_id)
            else:
                continue
            self._backlog[group_id] = self._window.pop(group_id)
            lost.append(group_id)
        self.notify()
        return lost

    def ready(self, version: WeightVersion) -> bool:
        """Whether `claim(version)` would succeed: rule 2 of the module's docstring."""
        oldest = self._by_age[: self.groups_per_batch]
        if len(oldest) < self.groups_per_batch:
            return False
        left = self._unclaimed - Counter(requested for requested, _ in oldest)
        total = 0
        for requested in sorted(left):
            total += left[requested]
            if total > (requested + self.max_staleness - version) * self.groups_per_batch:
                return False
        return True

    def claim(self, version: WeightVersion) -> Batch:
        """Take the batch that is trained at `version`. Raises ValueError if it is not ready."""
        if not self.ready(version):
            raise ValueError(f"the batch of version {version} is not ready")
        oldest = self._by_age[: self.groups_per_batch]
        del self._by_age[: self.groups_per_batch]
        self._unclaimed -= Counter(requested for requested, _ in oldest)
        self._claimed.update(group_id for _, group_id in oldest)
        return Batch(step=version, tickets=tuple(self._ready.pop(group_id) for _, group_id in oldest))

    def release(self, batch: Batch) -> None:
        """The batch was trained on and its weights were published: its groups are done. Raises KeyError if
        one was not claimed.
        """
        for ticket in batch.tickets:
            self._claimed.remove(ticket.group_id)
            del self._window[ticket.group_id]
        self.notify()

    async def wait_for_room(self) -> int:
        """Wait until at least one group may be requested; how many."""
        while self.room <= 0:
            await self.wait_for_change()
        return self.room

    async def wait_for_change(self) -> None:
        """Wait until a group was admitted, discarded, lost or released, or `notify` was called."""
        self._changed.clear()
        await self._changed.wait()

    def notify(self) -> None:
        """Wake all waiters so that they check their conditions again."""
        self._changed.set()

    def outstanding(self) -> list[PendingGroup]:
        """Groups that were requested and not trained on, lost ones included, in the order of their ids:
        what a checkpoint keeps of the buffer.
        """
        groups = self._window | self._backlog
        return [groups[group_id] for group_id in sorted(groups)]

    def restore(self, groups: Iterable[PendingGroup]) -> None:
        """Forget everything, and put `groups` (what a checkpoint kept) into the backlog. Rollouts still under
        way will be refused when they arrive.
        """
        for ids_or_groups in (self._window, self._ready, self._in_flight, self._claimed, self._by_age):
            ids_or_groups.clear()
        self._unclaimed.clear()
        self._backlog = {group.group_id: group for group in groups}
        self.notify()

    def _arrived(self, group_id: int) -> bool:
        if group_id not in self._in_flight:
            self.refused += 1
            return False
        self._in_flight.remove(group_id)
        return True
