"""The buffer by examples, and as a state machine under every order of events that the loop can produce."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from orchestrator.training.buffer import Buffer, PendingGroup
from orchestrator.training.records import Batch, BlockRef, GroupTicket, Prompt, ScoreRef
from orchestrator.training.simulation.virtual_time import DeadlockError, run_in_virtual_time


def requested(group_id: int, version: int = 0) -> PendingGroup:
    return PendingGroup(group_id, Prompt(f"p/{group_id}", "?", {}), version)


def ticket(group_id: int, version: int = 0) -> GroupTicket:
    handles = BlockRef(None), ScoreRef(None)
    return GroupTicket(group_id, f"p/{group_id}", version, 10, 0.5, True, 0, *handles)


def ids(batch: Batch) -> list[int]:
    return [ticket.group_id for ticket in batch.tickets]


def full(groups_per_batch: int, max_staleness: int) -> Buffer:
    """A buffer with as many groups of version 0 in flight as it accepts."""
    buffer = Buffer(groups_per_batch, max_staleness)
    buffer.request([requested(group_id) for group_id in range(buffer.room)])
    return buffer


@pytest.mark.parametrize(
    ("groups_per_batch", "max_staleness", "over_sampled"), [(0, 0, 0), (1, -1, 0), (1, 0, -1)]
)
def test_invalid_sizes_are_rejected(groups_per_batch: int, max_staleness: int, over_sampled: int) -> None:
    message = f"got {groups_per_batch} groups, staleness {max_staleness}, {over_sampled} over-sampled"
    with pytest.raises(ValueError, match=message):
        Buffer(groups_per_batch, max_staleness, over_sampled)


def test_room_is_one_batch_more_than_the_staleness_bound() -> None:
    assert Buffer(4, 0).room == 4
    assert Buffer(4, 2).room == 12


def test_requesting_more_groups_than_there_is_room_for_is_rejected() -> None:
    with pytest.raises(ValueError, match="cannot request 3 groups: there is room for 2"):
        Buffer(2, 0).request([requested(0), requested(1), requested(2)])


def test_requesting_an_outstanding_group_is_rejected() -> None:
    buffer = Buffer(2, 0)
    buffer.request([requested(7)])
    with pytest.raises(ValueError, match="group 7 is already outstanding"):
        buffer.request([requested(7)])


def test_a_group_that_was_not_requested_is_refused() -> None:
    buffer = full(2, 0)
    assert not buffer.admit(ticket(99))
    assert buffer.refused == 1


def test_a_group_is_admitted_once() -> None:
    buffer = full(2, 0)
    assert buffer.admit(ticket(0))
    assert not buffer.admit(ticket(0))
    assert not buffer.discard(0)
    assert buffer.refused == 2


def test_synchronous_training_has_room_only_after_release() -> None:
    buffer = full(2, 0)
    buffer.admit(ticket(1))
    assert not buffer.ready(0)
    with pytest.raises(ValueError, match="version 0 is not ready"):
        buffer.claim(0)
    buffer.admit(ticket(0))
    batch = buffer.claim(0)
    assert ids(batch) == [0, 1]
    assert buffer.room == 0
    buffer.release(batch)
    assert buffer.room == 2
    assert buffer.outstanding() == []


def test_a_batch_is_released_once() -> None:
    buffer = full(1, 0)
    buffer.admit(ticket(0))
    batch = buffer.claim(0)
    buffer.release(batch)
    with pytest.raises(KeyError):
        buffer.release(batch)


def test_the_oldest_groups_go_first() -> None:
    buffer = Buffer(2, 1)
    buffer.request([requested(5, 1), requested(6, 0), requested(7, 0), requested(8, 1)])
    for group_id in (8, 5, 7, 6):
        buffer.admit(ticket(group_id))
    assert ids(buffer.claim(1)) == [6, 7]


def test_a_batch_waits_for_a_late_group_that_no_later_batch_may_take() -> None:
    """P = 1, S = 1, groups 0 and 1 requested at version 0: version 0 may leave one of them to version
    1, and version 1 may leave none.
    """
    buffer = full(1, 1)
    buffer.admit(ticket(1))
    batch = buffer.claim(0)
    assert ids(batch) == [1]
    buffer.release(batch)
    buffer.request([requested(2, 1)])
    buffer.admit(ticket(2, 1))
    assert not buffer.ready(1)
    buffer.admit(ticket(0))
    assert ids(buffer.claim(1)) == [0]


def test_a_checkpoint_keeps_the_outstanding_groups() -> None:
    buffer = full(2, 1)
    for group_id in (0, 1, 2):
        buffer.admit(ticket(group_id))
    buffer.claim(0)
    assert [group.group_id for group in buffer.outstanding()] == [0, 1, 2, 3]


def test_a_restore_drops_groups_in_flight() -> None:
    buffer = full(2, 1)
    for group_id in (0, 1, 2):
        buffer.admit(ticket(group_id))
    buffer.claim(0)
    buffer.restore([requested(1), requested(9)])
    assert [group.group_id for group in buffer.outstanding()] == [1, 9]
    assert buffer.room == 4
    assert not buffer.admit(ticket(3))
    assert not buffer.ready(0)


def test_lost_groups_are_requested_again_under_their_ids_at_the_new_version() -> None:
    buffer = full(2, 1)
    for group_id in (0, 1):
        buffer.admit(ticket(group_id))
    batch = buffer.claim(0)
    assert buffer.lose([3, 0, 1, 99]) == [3, 0, 1]
    assert buffer.room == 3
    assert [group.group_id for group in buffer.outstanding()] == [0, 1, 2, 3]
    with pytest.raises(KeyError):
        buffer.release(batch)
    assert buffer.request_again(2, version=1) == [requested(0, 1), requested(1, 1)]
    with pytest.raises(ValueError, match="group 3 is already outstanding"):
        buffer.request([requested(3)])
    assert not buffer.admit(ticket(3))  # it has not been requested since it was lost
    assert [group.group_id for group in buffer.outstanding()] == [0, 1, 2, 3]


def test_ready_groups_are_not_lost() -> None:
    """Whether their block still exists becomes known when the learner reads it."""
    buffer = full(2, 0)
    buffer.admit(ticket(0))
    assert buffer.lose([0]) == []


def test_the_backlog_is_requested_within_the_room() -> None:
    buffer = full(2, 0)
    buffer.lose([0, 1])
    buffer.request([requested(2)])
    with pytest.raises(ValueError, match="cannot request 2 groups: there is room for 1"):
        buffer.request_again(2, version=0)
    assert [group.group_id for group in buffer.request_again(1, version=0)] == [0]


def test_waits_end_when_there_is_something_to_do() -> None:
    async def main() -> list[str]:
        buffer, seen = full(1, 0), list[str]()

        async def producer() -> None:
            seen.append(f"room {await buffer.wait_for_room()}")

        async def trainer() -> None:
            while not buffer.ready(0):
                await buffer.wait_for_change()
            batch = buffer.claim(0)
            seen.append("batch")
            await asyncio.sleep(1)
            buffer.release(batch)

        async def worker() -> None:
            await asyncio.sleep(1)
            buffer.admit(ticket(0))

        await asyncio.gather(producer(), trainer(), worker())
        return seen

    assert run_in_virtual_time(main()) == ["batch", "room 1"]


def test_a_discarded_group_makes_room() -> None:
    async def main() -> int:
        buffer = full(2, 0)
        waiting = asyncio.ensure_future(buffer.wait_for_room())
        await asyncio.sleep(1)
        buffer.discard(1)
        return await waiting

    assert run_in_virtual_time(main()) == 1


def test_waiters_are_not_woken_without_a_change() -> None:
    async def main() -> None:
        await full(2, 0).wait_for_room()

    with pytest.raises(DeadlockError):
        run_in_virtual_time(main())


def test_a_synchronous_batch_is_complete_without_the_groups_in_excess() -> None:
    buffer = Buffer(2, 0, over_sampled=2)
    buffer.request([requested(group_id) for group_id in range(buffer.room)])
    for group_id in (3, 1):
        buffer.admit(ticket(group_id))
    assert buffer.room == 0
    batch = buffer.claim(0)
    assert ids(batch) == [1, 3] and batch.dropped == (0, 2)
    assert buffer.room == 0
    assert not buffer.admit(ticket(0))
    buffer.release(batch)
    assert buffer.room == 4 and buffer.outstanding() == []


def test_groups_in_excess_that_are_ready_are_dropped_too() -> None:
    buffer = Buffer(1, 0, over_sampled=1)
    buffer.request([requested(0), requested(1)])
    for group_id in (1, 0):
        buffer.admit(ticket(group_id))
    batch = buffer.claim(0)
    assert ids(batch) == [0] and batch.dropped == (1,)


def test_only_groups_that_would_become_too_stale_are_dropped() -> None:
    """P = 2, S = 1: of groups 0 to 3, requested at version 0, version 0 leaves two, and version 1 none."""
    buffer = Buffer(2, 1, over_sampled=1)
    buffer.request([requested(group_id) for group_id in range(4)])
    assert buffer.room == 0
    for group_id in (2, 3):
        buffer.admit(ticket(group_id))
    batch = buffer.claim(0)
    assert batch.dropped == ()
    buffer.release(batch)
    buffer.request([requested(4, 1), requested(5, 1)])
    for group_id in (4, 5):
        buffer.admit(ticket(group_id, 1))
    assert not buffer.ready(1)  # it would have to drop two groups
    buffer.admit(ticket(1))
    batch = buffer.claim(1)
    assert ids(batch) == [1, 4] and batch.dropped == (0,)


def test_the_last_batch_drops_lost_groups_that_were_requested_in_excess() -> None:
    buffer = Buffer(1, 0, over_sampled=1)
    assert [buffer.groups_for(steps) for steps in (0, 1, 3)] == [0, 2, 4]
    buffer.request([requested(0), requested(1)])
    buffer.lose([0])
    buffer.admit(ticket(1))
    assert buffer.claim(0, is_last=True).dropped == (0,)
    assert [group.group_id for group in buffer.outstanding()] == [1]


class BufferMachine(RuleBasedStateMachine):
    """Performs the loop's actions in any order: requests at the learner's version, results out of order,
    duplicated or never requested, discards, losses in flight and of a claimed batch, claims, releases (which
    increase the version), restores.
    """

    def __init__(self) -> None:
        super().__init__()
        self.version, self.next_group = 0, 0
        self.versions: dict[int, int] = {}
        self.in_flight: list[int] = []
        self.admitted: set[int] = set()
        self.claimed: Batch | None = None
        self.backlog: set[int] = set()
        self.trained: Counter[int] = Counter()
        self.discarded: set[int] = set()
        self.refused = 0

    @initialize(
        groups_per_batch=st.integers(1, 5), max_staleness=st.integers(0, 3), over_sampled=st.integers(0, 5)
    )
    def size(self, groups_per_batch: int, max_staleness: int, over_sampled: int) -> None:
        self.groups_per_batch, self.max_staleness = groups_per_batch, max_staleness
        self.over_sampled = min(over_sampled, groups_per_batch)
        self.buffer = Buffer(groups_per_batch, max_staleness, self.over_sampled)

    @property
    def active(self) -> int:
        claimed = len(self.claimed.tickets) if self.claimed else 0
        return len(self.in_flight) + len(self.admitted) + claimed

    @precondition(lambda self: self.buffer.room > 0)
    @rule(data=st.data())
    def request(self, data: st.DataObject) -> None:
        count = data.draw(st.integers(1, self.buffer.room))
        groups = [requested(self.next_group + index, self.version) for index in range(count)]
        self.buffer.request(groups)
        for group in groups:
            self.versions[group.group_id] = self.version
            self.in_flight.append(group.group_id)
        self.next_group += count

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data())
    def admit(self, data: st.DataObject) -> None:
        group_id = data.draw(st.sampled_from(self.in_flight))
        self.in_flight.remove(group_id)
        self.admitted.add(group_id)
        # Its tokens may have any version since its request.
        oldest = data.draw(st.integers(self.versions[group_id], self.version))
        assert self.buffer.admit(ticket(group_id, oldest))

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data())
    def discard(self, data: st.DataObject) -> None:
        group_id = data.draw(st.sampled_from(self.in_flight))
        self.in_flight.remove(group_id)
        self.discarded.add(group_id)
        assert self.buffer.discard(group_id)

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        """The rollouts of some groups were lost with a node."""
        lost = data.draw(st.lists(st.sampled_from(self.in_flight), min_size=1, unique=True))
        assert self.buffer.lose(lost) == lost
        self.in_flight = [group_id for group_id in self.in_flight if group_id not in lost]
        self.backlog |= set(lost)

    @precondition(lambda self: self.claimed is not None)
    @rule()
    def lose_the_batch(self) -> None:
        """The learner found that the rollouts of its batch are gone."""
        assert self.claimed is not None
        lost = ids(self.claimed)
        assert self.buffer.lose(lost) == lost
        self.backlog |= set(lost)
        self.claimed = None

    @precondition(lambda self: self.backlog and self.buffer.room > 0)
    @rule(data=st.data())
    def request_again(self, data: st.DataObject) -> None:
        count = data.draw(st.integers(1, self.buffer.room))
        groups = self.buffer.request_again(count, self.version)
        found = [group.group_id for group in groups]
        assert found == sorted(self.backlog)[:count]
        assert all(group.version == self.version for group in groups)
        self.backlog -= set(found)
        self.in_flight += found
        self.versions.update(dict.fromkeys(found, self.version))

    @rule(group_id=st.integers(0, 60), discarded=st.booleans())
    def an_answer_that_is_not_awaited(self, group_id: int, discarded: bool) -> None:
        if group_id not in self.in_flight:
            answer = self.buffer.discard(group_id) if discarded else self.buffer.admit(ticket(group_id))
            assert not answer
            self.refused += 1

    @precondition(lambda self: self.claimed is None and self.buffer.ready(self.version))
    @rule()
    def claim(self) -> None:
        batch = self.buffer.claim(self.version)
        assert batch.step == self.version
        assert len(batch.tickets) == self.groups_per_batch
        assert self.version - batch.oldest_version <= self.max_staleness
        assert min(self.versions[group_id] for group_id in ids(batch)) >= self.version - self.max_staleness
        self.admitted -= set(ids(batch))
        assert len(batch.dropped) <= self.over_sampled
        assert set(batch.dropped) <= self.admitted | set(self.in_flight)
        self.admitted -= set(batch.dropped)
        self.in_flight = [group_id for group_id in self.in_flight if group_id not in batch.dropped]
        self.discarded |= set(batch.dropped)
        self.claimed = batch

    @precondition(lambda self: self.claimed is not None)
    @rule()
    def release(self) -> None:
        assert self.claimed is not None
        self.trained.update(ids(self.claimed))
        self.version += 1
        self.buffer.release(self.claimed)
        self.claimed = None

    @rule(sure=st.integers(0, 9))
    def restore(self, sure: int) -> None:
        """The learner was lost: the outstanding groups are in the backlog afterwards."""
        if sure == 0:
            again = self.buffer.outstanding()
            self.buffer.restore(again)
            self.claimed, self.in_flight, self.admitted = None, [], set()
            self.backlog = {group.group_id for group in again}

    @precondition(lambda self: self.claimed is None)
    @rule()
    def everything_in_flight_arrives(self) -> None:
        """There is never a deadlock: a batch can then be claimed, if the producer requests all
        groups that there is room for.
        """
        again = self.buffer.request_again(self.buffer.room, self.version)
        for group in again:
            self.backlog.remove(group.group_id)
            self.versions[group.group_id] = self.version
            self.in_flight.append(group.group_id)
        if self.buffer.room:
            groups = [requested(self.next_group + index, self.version) for index in range(self.buffer.room)]
            self.buffer.request(groups)
            self.next_group += len(groups)
            for group in groups:
                self.versions[group.group_id] = self.version
                self.in_flight.append(group.group_id)
        while self.in_flight:
            group_id = self.in_flight.pop()
            self.admitted.add(group_id)
            assert self.buffer.admit(ticket(group_id, self.versions[group_id]))
        assert self.buffer.ready(self.version)

    @invariant()
    def bounds(self) -> None:
        if not hasattr(self, "buffer"):
            return
        window = (self.max_staleness + 1) * self.groups_per_batch
        is_complete = self.claimed is not None or len(self.admitted) >= self.groups_per_batch
        in_excess = max(0, self.over_sampled - self.max_staleness * self.groups_per_batch)
        assert self.active <= window + (0 if self.claimed else in_excess)
        assert self.buffer.room == max(0, window - self.active + (0 if is_complete else in_excess))
        assert self.buffer.refused == self.refused

    @invariant()
    def every_group_is_accounted_for(self) -> None:
        if not hasattr(self, "buffer"):
            return
        assert all(count == 1 for count in self.trained.values())
        assert not set(self.trained) & self.discarded
        claimed = set(ids(self.claimed)) if self.claimed else set[int]()
        outstanding = {group.group_id for group in self.buffer.outstanding()}
        assert outstanding == set(self.in_flight) | self.admitted | claimed | self.backlog
        assert outstanding | set(self.trained) | self.discarded == set(range(self.next_group))


TestBufferMachine = BufferMachine.TestCase
TestBufferMachine.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
