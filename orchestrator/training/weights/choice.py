"""Which channel a run uses, once it is known where its processes are."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from orchestrator.errors import ConfigError
from orchestrator.training.weights.config import WeightsConfig

ChannelName = Literal["object_store", "shared_memory"]


def choose_channel(config: WeightsConfig, nodes: Collection[str]) -> ChannelName:
    """The channel for a learner and rollout workers on these nodes (ids, repeated or not). Raises ConfigError
    if shared memory is asked for and they are on several.
    """
    if config.channel == "object_store":
        return "object_store"
    found = len(set(nodes))
    if found == 1:
        return "shared_memory"
    if config.channel == "shared_memory":
        hint = f"learner and rollout workers are on {found} nodes; cluster.strategy STRICT_PACK wants one"
        raise ConfigError("weights.channel", "shared_memory", "auto, object_store", hint)
    return "object_store"
