"""How weights travel."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from orchestrator.training.settings import Settings

Backend = Literal["gloo", "nccl"]
"""What a pair of the `collective` channel moves bytes over."""

NOT_OFFERED = {
    "nixl": "Ray Direct Transport over NIXL is not proven here; collective and object_store do it",
}
"""Channels that a reader of the field would look for, and why they are refused."""


class WeightsConfig(Settings):
    """The `weights` part of a config."""

    channel: Literal["auto", "collective", "object_store", "shared_memory"]
    """`shared_memory`: written once, into memory that all processes of a host read; the learner and all
    rollout workers must be on one node. `object_store`: through Ray's, which moves a bucket once to each
    node. `collective`: over torch.distributed, from the learner to each worker by itself. `auto`: shared
    memory where it is possible, else the object store.
    """
    backend: Literal["auto", "gloo", "nccl"]
    """What `collective` goes over. `nccl` needs a GPU on each side that the other does not use; `auto`: nccl
    where that is so, else gloo.
    """
    timeout_seconds: float = Field(gt=0)
    """`collective`: how long one side waits for the other to answer, or to move a bucket, before it takes it
    for lost. A side that dies is noticed at once.
    """

    @model_validator(mode="before")
    @classmethod
    def _is_offered(cls, values: Any) -> Any:  # noqa: ANN401 - whatever was written there
        channel = values.get("channel") if isinstance(values, dict) else None
        if channel in NOT_OFFERED:
            raise PydanticCustomError(
                "refused",
                "{key}: got {value}, allowed: {allowed} ({hint})",
                {
                    "key": "channel",
                    "value": channel,
                    "allowed": "auto, collective, object_store, shared_memory",
                    "hint": NOT_OFFERED[channel],
                },
            )
        return values
