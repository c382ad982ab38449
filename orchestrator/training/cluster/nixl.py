"""Weights by Ray Direct Transport over NIXL: a worker reads a bucket out of the publisher's memory, by RDMA
where there is a network for it, else over TCP.

    rank 0    each bucket stays where it was flattened; its registration travels with a Ray object reference
    worker    reads one after the other into the same memory, which is registered once

The bytes do not pass through the object store, and the publisher's code takes no part in a read. A version
lives as long as somebody holds its handle.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TypeAlias

import ray
import torch
from ray.exceptions import GetTimeoutError, ObjectLostError, RayDirectTransportError
from ray.experimental import deregister_nixl_memory, register_nixl_memory, set_target_for_ref
from torch import Tensor

from orchestrator.training.records import WeightVersion
from orchestrator.training.tensors.buckets import Bucket, Piece, new_bytes
from orchestrator.training.weights.channel import (
    BucketSource,
    WeightsNotFoundError,
    new_identity,
    require_rising,
)
from orchestrator.training.weights.choice import require_nixl

BucketRef: TypeAlias = "ray.ObjectRef[tuple[tuple[Piece, ...], Tensor]]"


@dataclass(frozen=True, slots=True)
class NixlHandle:
    """What a version's buckets are read by: of each its size in bytes and its reference."""

    version: WeightVersion
    identity: bytes
    buckets: tuple[tuple[int, BucketRef], ...]


class NixlChannel:
    """A `WeightChannel` between nodes that have NIXL. A worker waits no longer than
    `timeout_seconds` for a bucket.

    Raises ConfigError if NIXL can't be used in this process.
    """

    def __init__(self, timeout_seconds: float) -> None:
        require_nixl()
        self._timeout_seconds = timeout_seconds
        self._latest: WeightVersion | None = None
        self._scratch = torch.empty(0, dtype=torch.uint8)

    def publish(self, version: WeightVersion, source: BucketSource) -> NixlHandle:
        """See `WeightChannel.publish`. Buckets are in fresh memory: the older ones may be read from at any
        time, and nobody asks first.
        """
        require_rising(version, self._latest)
        buckets = tuple((bucket.data.nbytes, _put(bucket)) for bucket in source(new_bytes))
        self._latest = version
        return NixlHandle(version, new_identity(), buckets)

    def pull(self, handle: NixlHandle) -> Generator[Bucket]:
        """See `WeightChannel.pull`. Raises WeightsNotFoundError between two buckets too, if the
        publisher is lost there.
        """
        self._make_room(max((size for size, _ in handle.buckets), default=0))
        for size, ref in handle.buckets:
            target = self._scratch[:size]
            # Without it each bucket would come in memory of its own, which is given back late.
            set_target_for_ref(ref, [target])
            try:
                pieces, data = ray.get(ref, timeout=self._timeout_seconds)
            except (GetTimeoutError, ObjectLostError, RayDirectTransportError) as error:
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise WeightsNotFoundError(handle.version, f"its publisher is lost: {reason}") from error
            yield Bucket(pieces, data.numpy())

    def close(self) -> None:
        """See `WeightChannel.close`. What was published goes with its handles."""
        self._make_room(0)

    def _make_room(self, size: int) -> None:
        """Memory for the largest bucket, registered; none for size 0."""
        if 0 < size <= self._scratch.nbytes:
            return
        if self._scratch.nbytes:
            deregister_nixl_memory(self._scratch)
        self._scratch = torch.empty(size, dtype=torch.uint8)
        if size:
            register_nixl_memory(self._scratch)


def _put(bucket: Bucket) -> BucketRef:
    """The pieces go to the object store; the bytes stay where they are, until nobody refers to them."""
    return ray.put((bucket.pieces, torch.from_numpy(bucket.data)), _tensor_transport="nixl")
