"""Which channel a run uses, once it is known where its processes are."""

from __future__ import annotations

import importlib
from collections.abc import Collection
from typing import Literal

from orchestrator.errors import ConfigError
from orchestrator.training.weights.config import WeightsConfig

ChannelName = Literal["collective", "nixl", "object_store", "shared_memory"]


def choose_channel(config: WeightsConfig, nodes: Collection[str]) -> ChannelName:
    """The channel for a learner and rollout workers on these nodes (ids, repeated or not). Raises ConfigError
    if shared memory is asked for and they are on several.
    """
    if config.channel not in ("auto", "shared_memory"):
        return config.channel
    found = len(set(nodes))
    if found == 1:
        return "shared_memory"
    if config.channel == "shared_memory":
        hint = f"learner and rollout workers are on {found} nodes; cluster.strategy STRICT_PACK wants one"
        raise ConfigError("weights.channel", "shared_memory", "auto, collective, nixl, object_store", hint)
    return "object_store"


def resolve_auto(config: WeightsConfig, nodes: Collection[str], own_gpus: bool) -> WeightsConfig:
    """`config` without an `auto`. `own_gpus`: the learner's first rank and each rollout worker have a GPU
    that the other does not use; NCCL refuses two ranks on one. Raises ConfigError.
    """
    backend = config.backend
    if backend == "auto":
        backend = "nccl" if own_gpus else "gloo"
    return config.model_copy(update={"channel": choose_channel(config, nodes), "backend": backend})


def require_nixl() -> None:
    """Raises ConfigError, saying why, unless NIXL can be imported in this process."""
    try:
        importlib.import_module("nixl._api")
    except ImportError as error:
        hint = f"NIXL can't be imported here ({error}); it has to be on every node: pip install nixl"
        allowed = "auto, collective, object_store, shared_memory"
        raise ConfigError("weights.channel", "nixl", allowed, hint) from error
