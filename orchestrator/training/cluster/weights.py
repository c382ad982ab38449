"""Weights through Ray's object store, and which channel an actor is given."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
import ray
from numpy.typing import NDArray

from orchestrator.training.records import WeightVersion
from orchestrator.training.tensors.buckets import Bucket, new_bytes
from orchestrator.training.weights.channel import BucketSource, WeightChannel, new_identity, require_rising
from orchestrator.training.weights.collective import CollectiveChannel
from orchestrator.training.weights.config import WeightsConfig
from orchestrator.training.weights.shared_memory import SharedMemoryChannel


@dataclass(frozen=True, slots=True)
class ObjectStoreHandle:
    """What a version's buckets are read by."""

    identity: bytes
    buckets: tuple[ray.ObjectRef[Bucket], ...]


class ObjectStoreChannel:
    """A `WeightChannel` between any nodes of a cluster. The handle has the buckets' own handles: the store
    frees a version when nobody holds them any more, and all of them when the publisher's process ends.
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
        """See `WeightChannel.pull`; the next bucket is on its way while one is loaded. Raises Ray's
        ObjectLostError if the publisher is gone.
        """
        for index, ref in enumerate(handle.buckets):
            bucket = ray.get(ref)
            if index + 1 < len(handle.buckets):
                ray.wait([handle.buckets[index + 1]], timeout=0, fetch_local=True)
            yield bucket

    def close(self) -> None:
        """See `WeightChannel.close`. What was published goes with its handles."""


class _Scratch:
    """One bucket's memory, used again for each: the store has a copy before the next one is flattened."""

    def __init__(self) -> None:
        self._data: NDArray[np.uint8] = new_bytes(0)

    def allocate(self, size: int) -> NDArray[np.uint8]:
        if self._data.nbytes != size:
            self._data = new_bytes(size)
        return self._data


def make_channel(config: WeightsConfig) -> WeightChannel:
    """The channel of a settled config, in this process. Raises ConfigError for one that can't be had here,
    and ValueError where an `auto` is left.
    """
    if config.channel == "shared_memory":
        return SharedMemoryChannel()
    if config.channel == "object_store":
        return ObjectStoreChannel()
    if config.channel == "collective" and config.backend != "auto":
        return CollectiveChannel(ray.util.get_node_ip_address(), config.backend, config.timeout_seconds)
    if config.channel == "nixl":
        from orchestrator.training.cluster.nixl import NixlChannel

        return NixlChannel(config.timeout_seconds)
    raise ValueError(f"weights: {config.channel} over {config.backend} is not settled")
