"""Which channel a run uses."""

from __future__ import annotations

import pytest

from orchestrator.config import compose
from orchestrator.errors import ConfigError
from orchestrator.training.weights.choice import choose_channel
from orchestrator.training.weights.config import NOT_OFFERED, WeightsConfig


@pytest.mark.parametrize(
    ("channel", "nodes", "chosen"),
    [
        ("auto", ["a", "a", "a"], "shared_memory"),
        ("auto", ["a", "b"], "object_store"),
        ("object_store", ["a"], "object_store"),
        ("shared_memory", ["a", "a"], "shared_memory"),
    ],
)
def test_shared_memory_where_all_are_on_one_node(channel: str, nodes: list[str], chosen: str) -> None:
    assert choose_channel(WeightsConfig.model_validate({"channel": channel}), nodes) == chosen


def test_shared_memory_between_nodes_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"weights.channel: got shared_memory, .* are on 2 nodes"):
        choose_channel(WeightsConfig(channel="shared_memory"), ["a", "b", "a"])


@pytest.mark.parametrize("channel", NOT_OFFERED)
def test_what_is_not_offered_says_why(channel: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose("grpo", [f"weights.channel={channel}"])
    error = caught.value
    assert (error.key, error.value) == ("weights.channel", channel)
    assert error.hint == NOT_OFFERED[channel]
