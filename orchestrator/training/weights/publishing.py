"""Publishes the weights of one rank. How the ranks cooperate depends on their hosts and on the sharding:

- If all ranks are on one host, weights go through shared memory, and no tensor has to be gathered first,
  each rank writes its own part.
- Otherwise rank 0 gathers the weights, bucket by bucket, and its channel publishes them.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, Protocol

from orchestrator.training.records import WeightVersion
from orchestrator.training.tensors.buckets import Allocate, Bucket
from orchestrator.training.tensors.write_plan import WritePlan
from orchestrator.training.weights.channel import WeightChannel
from orchestrator.training.weights.rendezvous import Rendezvous
from orchestrator.training.weights.shared_memory import SharedMemoryChannel
from orchestrator.training.weights.writers import PeerWriter, PeerWriters


class Rank(Protocol):
    """The part of the `Learner` interface that the publisher uses."""

    def weights(self, allocate: Allocate = ...) -> Iterator[Bucket]: ...

    def write_plan(self) -> WritePlan | None: ...


class WeightPublisher:
    """Publishes the weights of one rank. Rank 0's publisher must exist before another rank publishes."""

    def __init__(
        self, rank: int, learner: Rank, channel: WeightChannel, rendezvous: Rendezvous | None = None
    ) -> None:
        """`rendezvous` is given if all ranks are on one host. Raises OSError if its name is taken."""
        self._writers: PeerWriters | PeerWriter | None = None
        alone = rendezvous is None or rendezvous.ranks == 1
        shared = channel if isinstance(channel, SharedMemoryChannel) else None
        plan = None if alone or shared is None else learner.write_plan()
        if rendezvous is None or shared is None or plan is None:
            gather = partial(_help_to_gather, learner)
            self._publish = partial(channel.publish, source=learner.weights) if rank == 0 else gather
        elif rank == 0:
            self._writers = PeerWriters(rendezvous)
            self._publish = partial(shared.publish_together, plan=plan, peers=self._writers)
        else:
            self._writers = PeerWriter(rendezvous)
            self._publish = partial(self._writers.write, plan=plan)

    def publish(self, version: WeightVersion) -> Any:  # noqa: ANN401 - each channel has its own handle
        """Publish a version; every rank has to call it. Rank 0 returns the channel's handle,
        other ranks None.

        Raises what the channel raises; where ranks write together also ConnectionError if another rank is
        gone, WorkerLostError if it is silent, PermissionError if it belongs to another user.
        """
        return self._publish(version)

    def close(self) -> None:
        """Disconnect from the other ranks; the channel belongs to its owner."""
        if self._writers is not None:
            self._writers.close()


def _help_to_gather(learner: Rank, version: WeightVersion) -> None:
    for _ in learner.weights():
        raise RuntimeError(f"weights of version {version}: a rank other than 0 received a bucket")
