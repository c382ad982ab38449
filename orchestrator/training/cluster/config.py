"""What the run holds of the cluster."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from orchestrator.training.settings import Settings


class Share(Settings):
    """What one actor of a role takes of its slot."""

    cpus: float = Field(ge=0)
    gpus: float = Field(ge=0)
    """A fraction shares a GPU with other roles; 1 or more are whole GPUs."""


class ClusterConfig(Settings):
    """The `cluster` group. A run holds `slots` slots (placement-group bundles), one accelerator each; every slot is one lease of the ledger."""

    address: str | None
    """null: start Ray on this machine; `auto` or `ray://...`: connect."""
    resource: Literal["cpu", "gpu"]
    """Which resource a slot is, and the ledger counts."""
    sku: str
    """What the price book calls a slot."""
    layout: Literal["colocated", "split"]
    """`colocated`: roles share slots (rollout i, learner i and reward i on slot i); `split`: each rollout worker and learner rank has slots of its own."""
    strategy: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"]
    slot_cpus: float = Field(ge=0)
    """CPUs of one slot (the accelerator itself is added where `resource` is gpu)."""
    rollout: Share
    reward: Share
    learner: Share
    object_store_bytes: int | None
    """Only for a Ray started here; null leaves it to Ray."""
    startup_timeout_seconds: float = Field(gt=0)
    """How long to wait for the slots before the run fails with what was missing."""
    call_timeout_seconds: float = Field(gt=0)
    """How long one call to an actor may take before the actor counts as hung and is replaced."""
