"""The buffer between rewards and learner. It decides which groups may be requested and which form a batch.

The buffer bounds staleness by construction instead of dropping groups that are too old. With P groups per
batch and a bound of S:

1. *Room.* Groups that were requested and not yet trained on (in flight, ready or claimed) never exceed
   (S + 1) * P. They are the *window*.
2. *Claim.* The batch of version v takes the ready groups that were requested at the oldest versions. It waits
   while that would leave, for the version s of any remaining group, more than (s + S - v) * P groups in the
   window that were requested at version s or earlier, because later batches could not take them in time.
3. *Loss.* A group whose rollouts were lost moves from the window to the *backlog*. When it is requested again
   under its old id, it enters the window again, at the learner's current version and under rule 1.

4. *Over-sampling.* With `over_sampled` E > 0, a batch does not wait for its slowest groups. If rule 2 would
   make it wait for at most E groups, it drops them, the oldest first, and those in flight before those that
   are ready. As long as the next batch is neither complete nor claimed, max(0, E - S * P) groups more than in
   rule 1 may be requested. For S > 0 the window holds more groups than a batch anyway.

Why no group exceeds the bound: a request at version s leaves, by rule 1, at most S * P groups in the window
after the batch of version s; rule 2 preserves this at every later claim, so at v = s + S no group requested
at s or earlier is left over. A token is never older than its group's request, so v - oldest_version <= S for
every token trained on. A loss only removes groups from the window, which decreases every count in rules 1 and
2; a group that is requested again counts as requested at the new version, and its tokens are new. S = 0 is
synchronous training: rule 1 only allows the next batch to be requested after the previous one was trained on
and its weights were published.

With rule 4, a claim leaves no more groups than rule 2 allows, because it drops the others, and no more than
S * P, because nothing is requested in excess once the batch is complete.

Why it never deadlocks: when all groups in the window are ready, rule 2 holds (no claim violated it, and no
group is in flight that could); if fewer than P groups are ready then, rule 1 leaves room to request more.

Each group is trained on exactly once: it must be requested before it is admitted, a second admission (after a
retry, if the worker that was considered lost has answered after all) is refused and counted, and every
checkpoint contains all outstanding groups, including the backlog.
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
    """A requested group: its prompt, and the learner's version at the time of the request."""

    group_id: int
    prompt: Prompt
    version: WeightVersion


class Buffer:
    """The window of groups between the producer and the learner, and the backlog of lost groups.

    It belongs to one event loop and needs no locks, because waits are conditions on that loop.
    """

    def __init__(self, groups_per_batch: int, max_staleness: int, over_sampled: int = 0) -> None:
        if groups_per_batch < 1 or max_staleness < 0 or over_sampled < 0:
            raise ValueError(
                f"got {groups_per_batch} groups, staleness {max_staleness}, {over_sampled} over-sampled; "
                "allowed: >= 1, >= 0, >= 0"
            )
        self.groups_per_batch = groups_per_batch
        self.max_staleness = max_staleness
        self._over_sampled = over_sampled
        self._excess = max(0, over_sampled - max_staleness * groups_per_batch)
        self.refused = 0
        """Admissions refused because the group was not in flight: duplicates after a retry, or dropped."""
        self._window: dict[int, PendingGroup] = {}
        self._in_flight: set[int] = set()
        self._ready: dict[int, GroupTicket] = {}
        self._by_age: list[tuple[WeightVersion, int]] = []
        """(version of the request, group id) of the ready groups, sorted."""
        self._unclaimed: Counter[WeightVersion] = Counter()
        """Number of groups that are in flight or ready, by the version of their request."""
        self._claimed: set[int] = set()
        self._backlog: dict[int, PendingGroup] = {}
        self._changed = asyncio.Event()

    @property
    def room(self) -> int:
        """Number of groups that may be requested now."""
        room = (self.max_staleness + 1) * self.groups_per_batch - len(self._window)
        is_complete = self._claimed or len(self._ready) >= self.groups_per_batch
        return max(0, room if is_complete else room + self._excess)

    def groups_for(self, steps: int) -> int:
        """Number of groups to request for so many more steps."""
        return steps * self.groups_per_batch + (self._excess if steps else 0)

    def request(self, groups: Sequence[PendingGroup]) -> None:
        """Register groups before their rollouts are requested. Raises ValueError if there is no room, or
        if an id is already outstanding.
        """
        if len(groups) > self.room:
            raise ValueError(f"cannot request {len(groups)} groups: there is room for {self.room}")
        for group in groups:
            if group.group_id in self._window or group.group_id in self._backlog:
                raise ValueError(f"group {group.group_id} is already outstanding")
            self._window[group.group_id] = group
            self._in_flight.add(group.group_id)
            self._unclaimed[group.version] += 1

    def request_again(self, count: int, version: WeightVersion) -> list[PendingGroup]:
        """Take up to `count` groups from the backlog, lowest id first, and register them as requested at
        `version`. Raises ValueError if there is no room for them.
        """
        ids = sorted(self._backlog)[: max(count, 0)]
        groups = [replace(self._backlog[group_id], version=version) for group_id in ids]
        if len(groups) > self.room:
            raise ValueError(f"cannot request {len(groups)} groups: there is room for {self.room}")
        for group_id in ids:
            del self._backlog[group_id]
        self.request(groups)
        return groups

    def admit(self, ticket: GroupTicket) -> bool:
        """Admit a scored group. Returns False, and counts it in `refused`, if it is not in flight."""
        if not self._arrived(ticket.group_id):
            return False
        self._ready[ticket.group_id] = ticket
        bisect.insort(self._by_age, (self._window[ticket.group_id].version, ticket.group_id))
        self.notify()
        return True

    def discard(self, group_id: int) -> bool:
        """Discard a scored group that will not be trained on (dynamic sampling), which makes room. Returns
        False, and counts it in `refused`, if it is not in flight.
        """
        if not self._arrived(group_id):
            return False
        self._unclaimed[self._window.pop(group_id).version] -= 1
        self.notify()
        return True

    def lose(self, group_ids: Iterable[int]) -> list[int]:
        """Move groups whose rollouts are gone to the backlog, if they are in flight or claimed. Returns their
        ids. Other groups (already ready, or requested before a restore) are ignored.
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
        """Whether `claim(version)` would succeed according to rules 2 and 4 of the module docstring."""
        oldest = self._by_age[: self.groups_per_batch]
        if len(oldest) < self.groups_per_batch:
            return False
        return self._too_many(oldest, version) <= self._over_sampled

    def claim(self, version: WeightVersion, *, is_last: bool = False) -> Batch:
        """Take the batch that is trained at `version`, and drop the groups that rule 4 names; if `is_last`,
        also those of the backlog that were requested in excess. Raises ValueError if it is not ready.
        """
        if not self.ready(version):
            raise ValueError(f"the batch of version {version} is not ready")
        oldest = self._by_age[: self.groups_per_batch]
        too_many = self._too_many(oldest, version)
        del self._by_age[: self.groups_per_batch]
        self._unclaimed -= Counter(requested for requested, _ in oldest)
        tickets = tuple(self._ready.pop(group_id) for _, group_id in oldest)
        dropped = self._drop_oldest(too_many)
        if is_last and self._excess:
            dropped += self._backlog
            self._backlog.clear()
        self._claimed.update(group_id for _, group_id in oldest)
        return Batch(version, tickets, tuple(sorted(dropped)))

    def release(self, batch: Batch) -> None:
        """Remove the groups of a batch that was trained on and whose weights were published. Raises
        KeyError if a group was not claimed.
        """
        for ticket in batch.tickets:
            self._claimed.remove(ticket.group_id)
            del self._window[ticket.group_id]
        self.notify()

    async def wait_for_room(self) -> int:
        """Wait until at least one group may be requested. Returns the number of groups that may be."""
        while self.room <= 0:
            await self.wait_for_change()
        return self.room

    async def wait_for_change(self) -> None:
        """Wait until a group is admitted, discarded, lost or released, or `notify` is called."""
        self._changed.clear()
        await self._changed.wait()

    def notify(self) -> None:
        """Wake all waiters so that they check their conditions again."""
        self._changed.set()

    def outstanding(self) -> list[PendingGroup]:
        """List the groups that were requested and not trained on, including lost ones, by id. This is the
        part of the buffer that a checkpoint saves.
        """
        groups = self._window | self._backlog
        return [groups[group_id] for group_id in sorted(groups)]

    def restore(self, groups: Iterable[PendingGroup]) -> None:
        """Reset the buffer, with `groups` (from a checkpoint) as its backlog. Rollouts that are still in
        flight will be refused when they arrive.
        """
        for ids_or_groups in (self._window, self._ready, self._in_flight, self._claimed, self._by_age):
            ids_or_groups.clear()
        self._unclaimed.clear()
        self._backlog = {group.group_id: group for group in groups}
        self.notify()

    def _too_many(self, claimed: Sequence[tuple[WeightVersion, int]], version: WeightVersion) -> int:
        """How many of the oldest groups a claim of these would have to drop, so that the remaining ones can
        be trained on in time.
        """
        left = self._unclaimed - Counter(requested for requested, _ in claimed)
        total = most = 0
        for requested in sorted(left):
            total += left[requested]
            most = max(most, total - (requested + self.max_staleness - version) * self.groups_per_batch)
        return most

    def _drop_oldest(self, count: int) -> list[int]:
        """Drop so many of the groups in flight or ready, oldest first."""
        unclaimed = [*self._in_flight, *self._ready]
        unclaimed.sort(key=lambda each: (self._window[each].version, each in self._ready, -each))
        for group_id in unclaimed[:count]:
            requested = self._window.pop(group_id).version
            self._unclaimed[requested] -= 1
            self._in_flight.discard(group_id)
            if self._ready.pop(group_id, None) is not None:
                self._by_age.remove((requested, group_id))
        return unclaimed[:count]

    def _arrived(self, group_id: int) -> bool:
        if group_id not in self._in_flight:
            self.refused += 1
            return False
        self._in_flight.remove(group_id)
        return True
