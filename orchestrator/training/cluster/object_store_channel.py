"""The weight channel through Ray's object store, and the choice of a process's end of the run's channel."""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import cast

import numpy as np
import ray
from numpy.typing import NDArray

from orchestrator.training.records import WeightVersion
from orchestrator.training.stages import PublishedWeights
from orchestrator.training.tensors.buckets import Bucket, new_bytes
from orchestrator.training.weights.channel import (
    BucketSource,
    WeightChannel,
    new_identity,
    require_rising,
)
from orchestrator.training.weights.config import WeightsConfig
from orchestrator.training.weights.segment_reader import SegmentHandle
from orchestrator.training.weights.shared_memory import SharedMemoryChannel


@dataclass(frozen=True, slots=True)
class ObjectStoreHandle:
    """References to the buckets of one published version."""

    identity: bytes
    buckets: tuple[ray.ObjectRef[Bucket], ...]


class ObjectStoreChannel:
    """A `WeightChannel` between any nodes of a cluster. The store frees a version when no handle of it is
    left, and all versions when the publisher's process ends.
    """

    def __init__(self) -> None:
        self._latest: WeightVersion | None = None

    def publish(self, version: WeightVersion, source: BucketSource) -> ObjectStoreHandle:
        """See `WeightChannel.publish`."""
        require_rising(version, self._latest)
        scratch = _Scratch()
        refs = tuple(ray.put(bucket) for bucket in source(scratch.allocate))
        self._latest = version
        return ObjectStoreHandle(new_identity(), refs)

    def pull(self, handle: ObjectStoreHandle) -> Generator[Bucket]:
        """See `WeightChannel.pull`. The next bucket is transferred while the current one is loaded.

        Raises Ray's ObjectLostError if the publisher is gone.
        """
        for index, ref in enumerate(handle.buckets):
            bucket = ray.get(ref)
            if index + 1 < len(handle.buckets):
                ray.wait([handle.buckets[index + 1]], timeout=0, fetch_local=True)
            yield bucket

    def close(self) -> None:
        """Does nothing: published versions are freed with their handles."""


class _Scratch:
    """One bucket's memory, reused for all: the store has copied a bucket before the next is flattened."""

    def __init__(self) -> None:
        self._data: NDArray[np.uint8] = new_bytes(0)

    def allocate(self, size: int) -> NDArray[np.uint8]:
        if self._data.nbytes != size:
            self._data = new_bytes(size)
        return self._data


class WeightReader:
    """Pulls weights through the channel that a handle belongs to. A learner that is rebuilt on other nodes
    may publish through another channel than before.
    """

    def __init__(self) -> None:
        self._shared_memory = SharedMemoryChannel()

    async def fetch(self, weights: PublishedWeights) -> Generator[Bucket]:
        """Bring the weights to this node's memory, while others use the event loop, and return their buckets
        (see `WeightChannel.pull`). A blocking `ray.get` would stop the event loop during the transfer. Raises
        Ray's ObjectLostError if the publisher is gone.
        """
        handle = cast("object", weights.handle)
        if isinstance(handle, SegmentHandle):
            return self._shared_memory.pull(handle)
        if isinstance(handle, ObjectStoreHandle):
            return _each(await asyncio.gather(*handle.buckets))
        raise ValueError(f"weights: unknown handle {type(handle).__name__}")


def _each(buckets: Iterable[Bucket]) -> Generator[Bucket]:
    yield from buckets


def make_channel(config: WeightsConfig) -> WeightChannel:
    """The publisher's end of the run's weight channel. Raises ValueError if `auto` was not resolved."""
    if config.channel == "shared_memory":
        return SharedMemoryChannel()
    if config.channel == "object_store":
        return ObjectStoreChannel()
    raise ValueError(f"weights.channel: {config.channel} must be resolved before actors start")
