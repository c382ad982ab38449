"""How weights travel."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from orchestrator.training.settings import Settings

Backend = Literal["gloo", "nccl"]
"""What a pair of the `collective` channel moves bytes over."""


class WeightsConfig(Settings):
    """The `weights` part of a config."""

    channel: Literal["auto", "collective", "nixl", "object_store", "shared_memory"]
    """`shared_memory`: written once, into memory that all processes of a host read; the learner and all
    rollout workers must be on one node. `object_store`: through Ray's, which moves a bucket once to each
    node. `collective`: over torch.distributed, from the learner to each worker by itself. `nixl`: by Ray
    Direct Transport, which needs the package nixl on every node. `auto`: shared memory where it is possible,
    else the object store.
    """
    backend: Literal["auto", "gloo", "nccl"]
    """What `collective` goes over. `nccl` needs a GPU on each side that the other does not use; `auto`: nccl
    where that is so, else gloo.
    """
    timeout_seconds: float = Field(gt=0)
    """`collective` and `nixl`: how long one side waits for the other to answer, or to move a bucket, before
    it takes it for lost. `shared_memory`: how long learner ranks that write together wait for each other. A
    side that dies is noticed at once.
    """
