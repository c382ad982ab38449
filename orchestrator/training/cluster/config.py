"""What the run holds of the cluster."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from orchestrator.training.settings import Settings


class Share(Settings):
    """What one actor of a role takes of its slot."""

    cpus: float = Field(ge=0)
    """0 lets an actor in without reserving a CPU."""
    gpus: float = Field(ge=0)
    """A fraction shares a GPU with other roles; whole GPUs are the actor's own."""


class ClusterConfig(Settings):
    """The `cluster` group. A run holds slots (placement-group bundles); each accelerator of a slot is one
    lease of the ledger.
    """

    address: str | None
    """null: start Ray on this machine; `auto` or `ray://...`: connect."""
    resource: Literal["cpu", "gpu"]
    """What a slot is made of, and what the ledger counts."""
    sku: str
    """What the price book calls one accelerator of a slot."""
    layout: Literal["colocated", "split"]
    """`colocated`: rollout worker i and learner rank i share slot i; `split`: each has a slot of its own.
    Reward workers sit on the slots of the rollout workers.
    """
    strategy: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"]
    """How Ray spreads the slots over nodes: on few, or on many; STRICT_ refuses to start otherwise."""
    slot_cpus: float = Field(ge=0)
    """CPUs of one slot, beside its GPUs."""
    rollout: Share
    reward: Share
    learner: Share
    object_store_bytes: int | None = Field(ge=1)
    """Only for a Ray started here; null leaves it to Ray."""
    startup_timeout_seconds: float = Field(gt=0)
    """How long to wait for the slots before the run fails with what was missing."""
    call_timeout_seconds: float = Field(gt=0)
    """How long one call to an actor may take before the actor counts as hung and is replaced."""
    heartbeat_seconds: float = Field(gt=0)
    """How often the run tells the ledger that it is alive; a killed controller's leases end at the last one.
    """
