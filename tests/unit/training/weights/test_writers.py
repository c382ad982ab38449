"""Ranks of one host that write a version together."""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Generator, Iterator
from contextlib import closing
from multiprocessing.connection import Connection

import pytest
import torch

from orchestrator.errors import WorkerLostError
from orchestrator.training.tensors.buckets import Allocate, Bucket, TensorPart, flatten, new_bytes, unflatten
from orchestrator.training.tensors.write_plan import WritePlan
from orchestrator.training.weights.channel import MemoryChannel
from orchestrator.training.weights.publishing import WeightPublisher
from orchestrator.training.weights.rendezvous import Rendezvous
from orchestrator.training.weights.shared_memory import SegmentHandle, SharedMemoryChannel
from orchestrator.training.weights.writers import PeerWriters
from tests.contracts.weight_channel_contract import BUCKET_BYTES, pulled, same, tensors
from tests.fakes.side_process import SideProcess

LONG, SHORT = 300.0, 0.2
"""Timeouts in seconds for messages that arrive, and for messages that do not."""
_NAMES = itertools.count()


class Rank:
    """Has every tensor and writes every second one: `tensors(value)`, whose value can be set."""

    def __init__(self, rank: int, ranks: int = 2, plans: bool = True) -> None:
        self.values = tensors(0.0)
        self._rank, self._ranks, self._plans = rank, ranks, plans

    def become(self, value: float) -> None:
        for (_, held), (_, wanted) in zip(self.values, tensors(value), strict=True):
            held.copy_(wanted)

    def weights(self, allocate: Allocate = new_bytes) -> Iterator[Bucket]:
        return flatten(self.values, BUCKET_BYTES, allocate) if self._rank == 0 else iter(())

    def write_plan(self) -> WritePlan | None:
        if not self._plans:
            return None
        parts = [
            TensorPart(
                name,
                tuple(tensor.shape),
                0,
                tensor if index % self._ranks == self._rank else torch.empty_like(tensor, device="meta"),
            )
            for index, (name, tensor) in enumerate(self.values)
        ]
        return WritePlan(parts, BUCKET_BYTES)


def _help(pipe: Connection, rank: int, meeting: Rendezvous) -> None:
    """Publish each requested version, using its number as the value. Replies with None or the error."""
    learner = Rank(rank, meeting.ranks)
    publisher = WeightPublisher(rank, learner, SharedMemoryChannel(), meeting)
    while True:
        version: int = pipe.recv()
        learner.become(float(version))
        try:
            pipe.send(publisher.publish(version))
        except OSError as error:
            pipe.send(error)


def _meeting(ranks: int = 2, timeout_seconds: float = LONG) -> Rendezvous:
    return Rendezvous(f"test-{os.getpid()}-{next(_NAMES)}", ranks, timeout_seconds, b"the run's secret")


class Group:
    """Rank 0 in this process, the others in child processes."""

    def __init__(self, channel: SharedMemoryChannel, ranks: int = 2) -> None:
        meeting = _meeting(ranks)
        self._learner = Rank(0, ranks)
        self._publisher = WeightPublisher(0, self._learner, channel, meeting)
        self.helpers = [SideProcess(_help, rank, meeting) for rank in range(1, ranks)]

    def publish(self, version: int) -> SegmentHandle:
        self._learner.become(float(version))
        for helper in self.helpers:
            helper.tell(version)
        handle = self._publisher.publish(version)
        assert [helper.answer() for helper in self.helpers] == [None] * len(self.helpers)
        return handle

    def publish_alone(self, version: int) -> SegmentHandle:
        """Publish without telling the other ranks."""
        return self._publisher.publish(version)

    def close(self) -> None:
        self._publisher.close()
        for helper in self.helpers:
            helper.close()


@pytest.fixture
def channel() -> Generator[SharedMemoryChannel]:
    channel = SharedMemoryChannel()
    yield channel
    channel.close()


@pytest.mark.parametrize("ranks", [2, 3])
def test_every_rank_writes_its_part_of_every_version(channel: SharedMemoryChannel, ranks: int) -> None:
    with closing(Group(channel, ranks)) as group:
        for version in range(5):
            assert same(pulled(channel, group.publish(version)), version)


def test_a_version_that_is_being_read_is_not_written_over(channel: SharedMemoryChannel) -> None:
    """The ranks continue in other memory, and find it."""
    with closing(Group(channel)) as group, closing(channel.pull(group.publish(0))) as slow:
        reading = unflatten(slow)
        read = [(name, tensor.clone()) for name, tensor in itertools.islice(reading, 1)]
        for version in range(1, 8):
            assert same(pulled(channel, group.publish(version)), version)
        read += [(name, tensor.clone()) for name, tensor in reading]
    assert same(dict(read), 0.0)


def test_a_dead_rank_is_detected_and_the_previous_version_stays(channel: SharedMemoryChannel) -> None:
    with closing(Group(channel)) as group:
        handle = group.publish(0)
        group.helpers[0].kill()
        with pytest.raises(ConnectionError):
            group.publish_alone(1)
        assert same(pulled(channel, handle), 0.0)


def test_ranks_with_different_versions_get_errors(channel: SharedMemoryChannel) -> None:
    """Both fail immediately, although their timeouts are five minutes."""
    with closing(Group(channel)) as group:
        group.publish(0)
        group.helpers[0].tell(4)
        with pytest.raises(ConnectionError, match="another rank of the learner is gone"):
            group.publish_alone(1)
        assert "rank 0 publishes version 1, this rank 4" in str(group.helpers[0].answer())


def test_a_process_of_another_user_is_rejected_and_the_wait_continues(
    channel: SharedMemoryChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise any local user could make a publish fail by connecting."""
    meeting, plan = _meeting(timeout_seconds=SHORT), Rank(0).write_plan()
    assert plan is not None
    with closing(PeerWriters(meeting)) as writers, _connected(meeting) as stranger:
        stranger.send(meeting.secret)
        monkeypatch.setattr(os, "getuid", lambda: 4711)
        with pytest.raises(WorkerLostError, match=r"0 of 1 connected"):
            channel.publish_together(0, plan, writers)
        assert _is_closed(stranger)


@pytest.mark.parametrize("sent", [b"the secret of another run", b"the run's secret and more", b"", None])
def test_a_process_without_the_secret_is_rejected_and_the_ranks_write(
    channel: SharedMemoryChannel, sent: bytes | None
) -> None:
    meeting = _meeting()
    learner = Rank(0)
    publisher = WeightPublisher(0, learner, channel, meeting)
    with closing(publisher), _connected(meeting) as stranger:
        if sent is None:
            stranger.close()
        else:
            stranger.send(sent)
        with closing(SideProcess(_help, 1, meeting)) as helper:
            helper.tell(3)
            learner.become(3.0)
            assert same(pulled(channel, publisher.publish(3)), 3.0)
            assert helper.answer() is None
        assert sent is None or _is_closed(stranger)


def test_rank_0_of_another_user_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    meeting = _meeting()
    with closing(PeerWriters(meeting)):
        publisher = WeightPublisher(1, Rank(1), SharedMemoryChannel(), meeting)
        monkeypatch.setattr(os, "getuid", lambda: 4711)
        with closing(publisher), pytest.raises(PermissionError, match="is not rank 0 of this learner"):
            publisher.publish(0)


def _connected(meeting: Rendezvous) -> socket.socket:
    stranger = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    stranger.settimeout(LONG)
    stranger.connect(f"\0orchestrator-weights-{meeting.name}")
    return stranger


def _is_closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


def test_a_silent_rank_times_out(channel: SharedMemoryChannel) -> None:
    meeting, plan = _meeting(), Rank(0).write_plan()
    assert plan is not None
    with (
        closing(PeerWriters(meeting)) as helpers,
        closing(SideProcess(_help, 1, meeting)) as helper,
    ):
        helper.tell(0)
        channel.publish_together(0, plan, helpers)
        helpers.timeout_seconds = SHORT
        with pytest.raises(WorkerLostError, match=r"no message for 0\.2 s while publishing"):
            channel.publish_together(1, plan, helpers)
        with pytest.raises(ConnectionError, match="peers were disconnected after a failed publish"):
            channel.publish_together(2, plan, helpers)
        handle = channel.publish(3, Rank(0).weights)
        helper.tell(
            1
        )  # the order for version 1 is still in its socket; the segment may be another one by now
        assert isinstance(helper.answer(), (OSError, type(None)))
        assert same(pulled(channel, handle), 0.0)


def test_a_rank_that_never_connects_times_out(channel: SharedMemoryChannel) -> None:
    publisher = WeightPublisher(0, Rank(0), channel, _meeting(timeout_seconds=SHORT))
    with closing(publisher), pytest.raises(WorkerLostError, match=r"0 of 1 connected within 0\.2 s"):
        publisher.publish(0)


def test_a_rank_without_rank_0_gets_an_error(channel: SharedMemoryChannel) -> None:
    publisher = WeightPublisher(1, Rank(1), channel, _meeting())
    with closing(publisher), pytest.raises(ConnectionError):
        publisher.publish(0)


def test_peers_are_disconnected_when_rank_0_fails_before_writing(channel: SharedMemoryChannel) -> None:
    with closing(Group(channel)) as group:
        group.publish(1)
        group.helpers[0].tell(2)
        with pytest.raises(ValueError, match="cannot publish version 0: version 1 is already published"):
            group.publish_alone(0)
        assert isinstance(group.helpers[0].answer(), ConnectionError)
        group.helpers[0].tell(3)
        assert isinstance(group.helpers[0].answer(), ConnectionError)


def test_a_name_that_is_taken_is_refused(channel: SharedMemoryChannel) -> None:
    meeting = _meeting()
    with closing(PeerWriters(meeting)), pytest.raises(OSError, match="in use"):
        WeightPublisher(0, Rank(0), channel, meeting)


@pytest.mark.parametrize(
    ("together", "plans", "ranks"), [(False, True, 2), (True, False, 2), (True, True, 1)]
)
def test_rank_0_publishes_everything_if_ranks_cannot_write_together(
    channel: SharedMemoryChannel, together: bool, plans: bool, ranks: int
) -> None:
    meeting = _meeting(ranks) if together else None
    publishers = [WeightPublisher(rank, Rank(rank, ranks, plans), channel, meeting) for rank in range(ranks)]
    handle, *nothing = [publisher.publish(3) for publisher in publishers]
    assert same(pulled(channel, handle), 0.0)
    assert nothing == [None] * (ranks - 1)


def test_rank_0_publishes_to_other_channels() -> None:
    memory = MemoryChannel()
    assert same(pulled(memory, WeightPublisher(0, Rank(0), memory, _meeting()).publish(0)), 0.0)
