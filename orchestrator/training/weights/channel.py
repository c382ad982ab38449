"""The weight channel: the learner publishes a version, rollout workers pull it. A version that was published
never changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from orchestrator.errors import OrchestratorError
from orchestrator.training.buckets import Bucket
from orchestrator.training.records import WeightVersion


class WeightsNotFoundError(OrchestratorError):
    """The channel does not hold that version: it was never published, or newer ones pushed it out."""

    def __init__(self, version: WeightVersion, held: tuple[WeightVersion, ...]) -> None:
        super().__init__(version, held)
        self.version, self.held = version, held

    def __str__(self) -> str:
        return f"weights of version {self.version} are not in the channel, which holds {list(self.held)}"


class WeightChannel(Protocol):
    """Where published weights are. A version becomes visible whole or not at all."""

    def publish(self, version: WeightVersion, buckets: Iterable[Bucket]) -> None:
        """Take all buckets, then make `version` the latest. Raises ValueError unless it is newer than the
        latest; if `buckets` raises, the channel is as it was.
        """
        ...

    def latest(self) -> WeightVersion | None:
        """The newest version; None before the first."""
        ...

    def pull(self, version: WeightVersion) -> Iterator[Bucket]:
        """The buckets of a version, in the order of publishing. Raises WeightsNotFoundError."""
        ...


class MemoryChannel:
    """Keeps the last `keep` versions in this process: the fake of the port, and the real thing where learner
    and workers share a process.
    """

    def __init__(self, keep: int = 2) -> None:
        if keep < 1:
            raise ValueError(f"keep: got {keep}, allowed: 1 or more")
        self._keep = keep
        self._versions: dict[WeightVersion, tuple[Bucket, ...]] = {}

    def publish(self, version: WeightVersion, buckets: Iterable[Bucket]) -> None:
        """See `WeightChannel.publish`."""
        latest = self.latest()
        if latest is not None and version <= latest:
            raise ValueError(f"weights: got version {version}, and {latest} is already published")
        self._versions[version] = tuple(buckets)
        for old in sorted(self._versions)[: -self._keep]:
            del self._versions[old]

    def latest(self) -> WeightVersion | None:
        """See `WeightChannel.latest`."""
        return max(self._versions, default=None)

    def pull(self, version: WeightVersion) -> Iterator[Bucket]:
        """See `WeightChannel.pull`."""
        if version not in self._versions:
            raise WeightsNotFoundError(version, tuple(sorted(self._versions)))
        return iter(self._versions[version])
