"""Chooses the weight channel of a run once its processes are placed on nodes."""

from __future__ import annotations

from collections.abc import Collection

from orchestrator.errors import ConfigError
from orchestrator.training.weights.config import WeightsConfig


def resolve_channel(config: WeightsConfig, nodes: Collection[str]) -> WeightsConfig:
    """Replace `auto` by the channel to use. `nodes` are the node ids of the learner's first rank and of all
    rollout workers; ids may repeat.

    Raises ConfigError if shared memory is requested but the processes are on several nodes.
    """
    found = len(set(nodes))
    if config.channel == "auto":
        channel = "shared_memory" if found == 1 else "object_store"
        return config.model_copy(update={"channel": channel})
    if config.channel == "shared_memory" and found > 1:
        hint = (
            f"the learner and the rollout workers are on {found} nodes;"
            " cluster.strategy=STRICT_PACK keeps them on one"
        )
        raise ConfigError("weights.channel", "shared_memory", "auto, object_store", hint)
    return config
