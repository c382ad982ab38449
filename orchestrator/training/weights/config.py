"""How weights travel."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import model_validator
from pydantic_core import PydanticCustomError

from orchestrator.training.settings import Settings

NOT_OFFERED = {
    "collective": "a broadcast needs every rollout worker at the same moment, and workers take weights with"
    " their next request; object_store moves a bucket once to each node",
    "nixl": "Ray Direct Transport over NIXL is not proven here; object_store works between nodes",
}
"""Channels that a reader of the field would look for, and why they are refused."""


class WeightsConfig(Settings):
    """The `weights` part of a config."""

    channel: Literal["auto", "object_store", "shared_memory"]
    """`shared_memory`: written once, into memory that all processes of a host read; the learner and all
    rollout workers must be on one node. `object_store`: through Ray's, which moves a bucket once to each
    node. `auto`: shared memory where it is possible.
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
                    "allowed": "auto, object_store, shared_memory",
                    "hint": NOT_OFFERED[channel],
                },
            )
        return values
