"""Joins a rank to the process group and sets its device and threads. Needs no launcher,
environment variables or MPI.
"""

from __future__ import annotations

import datetime
import os
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore, Store

GROUP_TIMEOUT = datetime.timedelta(minutes=10)
"""How long a collective waits for the other ranks before it raises."""


@dataclass(frozen=True, slots=True)
class DistributedInit:
    """Describes one rank of the process group. `device` is "cpu", "cuda" (the first device that the process
    sees) or "cuda:<index>".
    """

    rank: int
    world_size: int
    backend: Literal["auto", "gloo", "nccl"]
    device: str
    store: Store | None = None
    """The store through which the ranks exchange their addresses; not needed for a single rank."""

    @property
    def resolved_backend(self) -> str:
        """`auto`: nccl on GPUs, gloo on CPUs."""
        if self.backend != "auto":
            return self.backend
        return "nccl" if self.device.startswith("cuda") else "gloo"


def join(init: DistributedInit, threads: int) -> torch.device:
    """Join the ranks' process group; returns this rank's device. Blocks until all ranks have joined.

    `threads` CPU threads compute (0: torch's choice). A process stays the same rank for its whole life,
    because DeepSpeed keeps groups in module globals: joining again as the same rank reuses the group. Raises
    ValueError for another rank or number of ranks.
    """
    if threads > 0:
        torch.set_num_threads(threads)
    device = torch.device(init.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # DeepSpeed reads the type and index of its device from these variables when it is imported.
    os.environ["DS_ACCELERATOR"] = device.type
    os.environ["LOCAL_RANK"] = str(device.index or 0)
    if dist.is_initialized():
        joined = (dist.get_rank(), dist.get_world_size())
        if joined != (init.rank, init.world_size):
            wanted = (init.rank, init.world_size)
            raise ValueError(
                f"this process has joined as rank and world size {joined} and cannot join as {wanted}"
            )
        return device
    if init.store is None and init.world_size > 1:
        raise ValueError(f"{init.world_size} ranks need a store to find each other")
    dist.init_process_group(
        init.resolved_backend,
        store=init.store or HashStore(),
        rank=init.rank,
        world_size=init.world_size,
        timeout=GROUP_TIMEOUT,
    )
    return device
