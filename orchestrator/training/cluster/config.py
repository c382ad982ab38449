"""The configuration of the cluster."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from orchestrator.training.settings import Settings


class Share(Settings):
    """The share of its slot that one actor of a role uses."""

    cpus: float = Field(ge=0)
    """With 0, the actor runs without reserving a CPU."""
    gpus: float = Field(ge=0)
    """With a fraction, the actor shares a GPU with other roles; whole GPUs are not shared."""


class EnvironmentsConfig(Settings):
    """The Python environments in which the actors of each role run."""

    rollout: str | None
    """Path of a Python interpreter, on every node; null: the Python that starts the run, or, for an engine
    with an environment of its own, the one that `make engines` creates (`.venv-<engine>` beside the
    environment of that Python).
    """
    reward: str | None
    """Path of a Python interpreter, on every node; null: the Python that starts the run."""
    learner: str | None
    """Path of a Python interpreter, on every node; null: the Python that starts the run."""


class ClusterConfig(Settings):
    """The `cluster` group. A run holds slots (placement-group bundles); each accelerator of a slot is one
    lease of the ledger.
    """

    address: str | None
    """null: start Ray on this machine; `auto`, `HOST:PORT` or `ray://...`: connect to a cluster."""
    resource: Literal["cpu", "gpu"]
    """The kind of accelerator that slots consist of and that the ledger counts."""
    sku: str
    """The name of the accelerators in the price book."""
    layout: Literal["colocated", "split"]
    """`colocated`: rollout worker i and learner rank i share slot i; `split`: each has its own slot. Reward
    workers use the slots of the rollout workers.
    """
    strategy: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"]
    """Ray's placement strategy: PACK slots on few nodes or SPREAD them over many. With STRICT_ the run
    does not start otherwise.
    """
    slot_cpus: float = Field(ge=0)
    """CPUs of one slot, in addition to its GPUs."""
    rollout: Share
    reward: Share
    learner: Share
    environments: EnvironmentsConfig
    object_store_bytes: int | None = Field(ge=1)
    """Size of the object store if Ray is started on this machine; null: Ray's default."""
    startup_timeout_seconds: float = Field(gt=0)
    """How long to wait for free slots before the run fails with a message that says what is missing."""
    call_timeout_seconds: float = Field(gt=0)
    """How long one call to an actor may take before the actor is considered hung and is replaced."""
    heartbeat_seconds: float = Field(gt=0)
    """Seconds between heartbeats to the ledger. The leases of a killed controller
    end at its last heartbeat.
    """
