"""Chooses the weight channel of a run once its processes are placed on nodes."""

from __future__ import annotations

from collections.abc import Collection

from orchestrator.errors import ConfigError
from orchestrator.training.weights.config import WeightsConfig


def resolve_channel(
    config: WeightsConfig, nodes: Collection[str], *, may_spread: bool = False
) -> WeightsConfig:
    """Replace `auto` by the channel to use. `nodes` are the node ids of the learner's first rank and of all
    permanent rollout workers; ids may repeat. `may_spread`: other rollout workers may be on other nodes.

    Raises ConfigError if shared memory is requested but the processes are on several nodes.
    """
    found = len(set(nodes))
    if config.channel == "auto":
        channel = "shared_memory" if found == 1 and not may_spread else "object_store"
        return config.model_copy(update={"channel": channel})
    if config.channel == "shared_memory" and found > 1:
        hint = (
            f"the learner and the rollout workers are on {found} nodes;"
            " cluster.strategy=STRICT_PACK keeps them on one"
        )
        raise ConfigError("weights.channel", "shared_memory", "auto, object_store", hint)
    return config
