"""A weight publish through shared memory from tensors on the device, and back onto it."""

from __future__ import annotations

import statistics
import time
from contextlib import closing
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_parts.device import seconds_of, synchronize
from benchmarks.gpu_parts.models import Size, random_model
from orchestrator.training.tensors.buckets import flatten, unflatten
from orchestrator.training.weights.shared_memory import SharedMemoryChannel

WARM_UP = 2
"""The channel alternates between two segments, whose memory is new in the first two publishes."""


def publish(size: Size, device: torch.device) -> dict[str, Any]:
    """Bytes per second of a publish, of loading it into other tensors on the device, and of a plain copy of
    the same bytes to the host. Raises ValueError if a tensor arrives changed.
    """
    model = random_model(size, "dense", device)
    weights = {name: tensor.detach() for name, tensor in model.named_parameters()}
    loaded = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    total = sum(tensor.nbytes for tensor in weights.values())
    channel = SharedMemoryChannel()
    published: list[float] = []
    pulled: list[float] = []
    for version in range(WARM_UP + size.rounds):
        synchronize(device)
        start = time.perf_counter()
        handle = channel.publish(
            version, lambda allocate: flatten(weights.items(), size.bucket_bytes, allocate)
        )
        middle = time.perf_counter()
        with closing(channel.pull(handle)) as buckets:
            for name, tensor in unflatten(buckets):
                loaded[name].copy_(tensor)
        synchronize(device)
        published.append(middle - start)
        pulled.append(time.perf_counter() - middle)
    channel.close()
    if changed := [name for name, tensor in weights.items() if not torch.equal(tensor, loaded[name])]:
        raise ValueError(f"weights: {', '.join(changed)} arrived changed")
    plain = seconds_of(lambda: _copied(weights), device, size.rounds)
    return {
        "bytes": total,
        "tensors": len(weights),
        "publish_bytes_per_s": total / statistics.median(published[WARM_UP:]),
        "load_bytes_per_s": total / statistics.median(pulled[WARM_UP:]),
        "plain_copy_bytes_per_s": total / plain,
    }


def _copied(weights: dict[str, Tensor]) -> list[Tensor]:
    return [tensor.to("cpu", copy=True) for tensor in weights.values()]
