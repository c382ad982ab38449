"""The `weights` group of the config."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from orchestrator.training.settings import Settings


class WeightsConfig(Settings):
    """How weights are transferred from the learner to the rollout workers."""

    channel: Literal["auto", "object_store", "shared_memory"]
    """`shared_memory`: the learner writes each version once, into memory that all processes of a host read;
    the learner and all rollout workers must be on one node. `object_store`: through Ray's object store,
    which sends a version once to each node. `auto`: shared memory if everything is on one node, otherwise
    the object store.
    """
    timeout_seconds: float = Field(gt=0)
    """How long learner ranks on one host wait for each other while they write a version together. The death
    of a rank is detected immediately.
    """
