"""The weight channel: rank 0 of the learner publishes a version, rollout workers in other processes pull it.

    rank 0    handle = channel.publish(version, learner.weights)     handle: small, travels with each request
    worker    channel.pull(handle) -> buckets, in order              one bucket at a time

A published version never changes. Neither side holds a second copy of the model: the channel keeps published
versions in its own storage, and each side needs at most one bucket of extra memory.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from orchestrator.errors import OrchestratorError
from orchestrator.training.records import WeightVersion
from orchestrator.training.tensors.buckets import Allocate, Bucket, new_bytes

BucketSource = Callable[[Allocate], Iterator[Bucket]]
"""Produces the buckets in memory that the channel provides: `learner.weights`."""


def new_identity() -> bytes:
    """A random id, unique to one publish in any process."""
    return secrets.token_bytes(16)


class WeightHandle(Protocol):
    """The common interface of the handles of all channels."""

    @property
    def identity(self) -> bytes:
        """Unique to this publish: a restored learner publishes the same version again, with other weights.
        Unlike the handle, the identity keeps no weights alive.
        """
        ...


class WeightsNotFoundError(OrchestratorError):
    """The channel no longer has that version: its publisher is gone, or newer versions replaced it."""

    def __init__(self, version: WeightVersion, reason: str) -> None:
        super().__init__(version, reason)
        self.version, self.reason = version, reason

    def __str__(self) -> str:
        return f"weights of version {self.version} are gone: {self.reason}"


class WeightChannel(Protocol):
    """Transports published weights. A version becomes visible as a whole or not at all."""

    def publish(self, version: WeightVersion, source: BucketSource) -> Any:  # noqa: ANN401 - each channel's own
        """Publish all buckets of `source` and return a small, picklable `WeightHandle` to pull them with.

        If `source` raises, nothing is published. The previous version stays available until the next publish
        has finished. Raises ValueError for an older version than the last one.
        """
        ...

    def pull(self, handle: Any) -> Generator[Bucket]:  # noqa: ANN401
        """The buckets in the order of publishing; each is valid until the next one is requested. Close the
        generator if it is not read to its end (`contextlib.closing`).

        Raises WeightsNotFoundError, before the first bucket, if the version is gone.
        """
        ...

    def close(self) -> None:
        """Release everything that was published."""
        ...


def require_rising(version: WeightVersion, latest: WeightVersion | None) -> None:
    """Raises ValueError if `version` is older than `latest`. Weights that were lost are published again under
    the same version.
    """
    if latest is not None and version < latest:
        raise ValueError(f"weights: cannot publish version {version}: version {latest} is already published")


@dataclass(frozen=True, slots=True)
class MemoryHandle:
    """A version in this process."""

    version: WeightVersion
    identity: bytes


class MemoryChannel:
    """Keeps the last `keep` versions in this process. The fake of the port, and the real channel where
    learner and workers share a process.
    """

    def __init__(self, keep: int = 2) -> None:
        if keep < 1:
            raise ValueError(f"keep: got {keep}, allowed: 1 or more")
        self._keep = keep
        self._versions: dict[WeightVersion, tuple[Bucket, ...]] = {}

    def publish(self, version: WeightVersion, source: BucketSource) -> MemoryHandle:
        """See `WeightChannel.publish`."""
        require_rising(version, max(self._versions, default=None))
        self._versions[version] = tuple(source(new_bytes))
        for old in sorted(self._versions)[: -self._keep]:
            del self._versions[old]
        return MemoryHandle(version, new_identity())

    def pull(self, handle: MemoryHandle) -> Generator[Bucket]:
        """See `WeightChannel.pull`."""
        if handle.version not in self._versions:
            raise WeightsNotFoundError(handle.version, f"the channel holds {sorted(self._versions)}")
        yield from self._versions[handle.version]

    def close(self) -> None:
        """See `WeightChannel.close`."""
        self._versions.clear()
