"""The choice of a run's weight channel."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.errors import ConfigError
from orchestrator.training.weights.choice import resolve_channel
from orchestrator.training.weights.config import WeightsConfig


def _config(channel: Any) -> WeightsConfig:
    return WeightsConfig(channel=channel, timeout_seconds=60.0)


@pytest.mark.parametrize(
    ("channel", "nodes", "chosen"),
    [
        ("auto", ["a", "a", "a"], "shared_memory"),
        ("auto", ["a", "b"], "object_store"),
        ("object_store", ["a"], "object_store"),
        ("shared_memory", ["a", "a"], "shared_memory"),
    ],
)
def test_auto_chooses_shared_memory_on_one_node_and_the_object_store_on_several(
    channel: str, nodes: list[str], chosen: str
) -> None:
    assert resolve_channel(_config(channel), nodes).channel == chosen


def test_auto_chooses_the_object_store_if_workers_may_join_on_other_nodes() -> None:
    assert resolve_channel(_config("auto"), ["a", "a"], may_spread=True).channel == "object_store"
    assert resolve_channel(_config("shared_memory"), ["a"], may_spread=True).channel == "shared_memory"


def test_shared_memory_between_nodes_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"weights.channel: got shared_memory, .* are on 2 nodes"):
        resolve_channel(_config("shared_memory"), ["a", "b", "a"])
