"""What the device can do at most: published numbers where they are known, and two that are measured."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.gpu_parts.models import Size
from orchestrator.capacity.accelerators import accelerator_of

SKUS = {
    "NVIDIA H100 80GB HBM3": "p5.48xlarge",
    "NVIDIA H200": "p5e.48xlarge",
    "NVIDIA H800": "h800",
    "NVIDIA A100-SXM4-40GB": "p4d.24xlarge",
    "NVIDIA A100-SXM4-80GB": "p4de.24xlarge",
}
"""torch's name of a device -> the SKU under which orchestrator/capacity/accelerators.yaml lists it."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Peak bfloat16 FLOP/s and memory bandwidth: those of the datasheet if the device is listed, otherwise
    the measured ones.
    """

    flops: float
    bytes_per_second: float
    source: str


def limits_of(device: torch.device, size: Size) -> Limits:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    if name in SKUS:
        accelerator = accelerator_of(SKUS[name])
        return Limits(accelerator.flops["bfloat16"], accelerator.memory_bytes_per_second, "datasheet")
    return Limits(matmul_flops(device, size), copy_bandwidth(device, size), "measured")


def measure_device(device: torch.device, size: Size) -> dict[str, Any]:
    """The device's name and memory, and its measured bandwidth and matmul speed."""
    on_gpu = device.type == "cuda"
    limits = limits_of(device, size)
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else "cpu",
        "memory_bytes": torch.cuda.get_device_properties(device).total_memory if on_gpu else None,
        "cuda": torch.version.cuda,
        "copy_bytes_per_s": copy_bandwidth(device, size),
        "matmul_flops": matmul_flops(device, size),
        "limit_bytes_per_s": limits.bytes_per_second,
        "limit_flops": limits.flops,
        "limits_from": limits.source,
    }


def copy_bandwidth(device: torch.device, size: Size) -> float:
    """Bytes per second that a copy inside the device's memory reads and writes."""
    source = torch.ones(size.copy_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size.copy_bytes / seconds_of(lambda: target.copy_(source), device, rounds=5)


def matmul_flops(device: torch.device, size: Size) -> float:
    """FLOP/s of a product of two square bfloat16 matrices."""
    one = torch.randn(size.matmul, size.matmul, dtype=torch.bfloat16, device=device)
    product = torch.empty_like(one)
    return 2 * size.matmul**3 / seconds_of(lambda: torch.mm(one, one, out=product), device, rounds=5)


def seconds_of(work: Callable[[], object], device: torch.device, rounds: int) -> float:
    """The median time of `work`, after one call that does not count."""
    taken: list[float] = []
    for _ in range(rounds + 1):
        synchronize(device)
        start = time.perf_counter()
        work()
        synchronize(device)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])


def synchronize(device: torch.device) -> None:
    """Wait until all work that is queued on the device is complete."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int | None:
    """Bytes of the device's tensors at the peak since `reset_peak_memory`; None on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
