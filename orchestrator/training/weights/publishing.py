"""One rank's side of a publish. How the ranks work together depends on where they are and how the model
is partitioned:

- all on one host, weights in shared memory, and no tensor to be put together first: each writes its part;
- else rank 0 gathers, bucket by bucket, what its channel publishes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from orchestrator.training.records import WeightVersion
from orchestrator.training.tensors.buckets import Allocate, Bucket
from orchestrator.training.tensors.write_plan import WritePlan
from orchestrator.training.weights.channel import WeightChannel
from orchestrator.training.weights.shared_memory import SharedMemoryChannel
from orchestrator.training.weights.writers import PeerWriter, PeerWriters


class Rank(Protocol):
    """What a rank of the learner has to offer; see `Learner`."""

    def weights(self, allocate: Allocate = ...) -> Iterator[Bucket]:
        """See `Learner.weights`."""
        ...

    def write_plan(self) -> WritePlan | None:
        """See `Learner.write_plan`."""
        ...


@dataclass(frozen=True, slots=True)
class Rendezvous:
    """Where the ranks of one host find each other."""

    name: str
    """Nobody else's on the host."""
    ranks: int
    timeout_seconds: float
    """How long one waits for another."""


class WeightPublisher:
    """Rank 0's has to be there before another rank publishes."""

    def __init__(
        self, rank: int, learner: Rank, channel: WeightChannel, meeting: Rendezvous | None = None
    ) -> None:
        """`meeting` if all ranks are on one host. Raises OSError if its name is taken."""
        self._writers: PeerWriters | PeerWriter | None = None
        alone = meeting is None or meeting.ranks == 1
        shared = channel if isinstance(channel, SharedMemoryChannel) else None
        plan = None if alone or shared is None else learner.write_plan()
        if meeting is None or shared is None or plan is None:
            gather = partial(_help_to_gather, learner)
            self._publish = partial(channel.publish, source=learner.weights) if rank == 0 else gather
        elif rank == 0:
            self._writers = PeerWriters(meeting.name, meeting.ranks - 1, meeting.timeout_seconds)
            self._publish = partial(shared.publish_together, plan=plan, helpers=self._writers)
        else:
            self._writers = PeerWriter(meeting.name, meeting.timeout_seconds)
            self._publish = partial(self._writers.write, plan=plan)

    def publish(self, version: WeightVersion) -> Any:  # noqa: ANN401 - the channel's own handle
        """Every rank calls it. On rank 0 it returns the channel's handle, on others None.

        Raises what the channel raises. Where the ranks write together also ConnectionError if another rank is
        gone, WorkerLostError if it says nothing, PermissionError if it is another user's.
        """
        return self._publish(version)

    def close(self) -> None:
        """Let go of the other ranks; the channel is its owner's."""
        if self._writers is not None:
            self._writers.close()


def _help_to_gather(learner: Rank, version: WeightVersion) -> None:
    for _ in learner.weights():
        raise RuntimeError(f"weights of version {version}: a rank that is not rank 0 was given a bucket")
