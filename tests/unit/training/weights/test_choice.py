"""Which channel a run uses."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from orchestrator.config.compose import compose
from orchestrator.errors import ConfigError
from orchestrator.training.weights.choice import choose_channel, require_nixl, resolve_auto
from orchestrator.training.weights.config import WeightsConfig


def _config(**values: Any) -> WeightsConfig:
    return WeightsConfig.model_validate(
        {"channel": "auto", "backend": "auto", "timeout_seconds": 60.0, **values}
    )


@pytest.mark.parametrize(
    ("channel", "nodes", "chosen"),
    [
        ("auto", ["a", "a", "a"], "shared_memory"),
        ("auto", ["a", "b"], "object_store"),
        ("object_store", ["a"], "object_store"),
        ("collective", ["a", "a"], "collective"),
        ("collective", ["a", "b"], "collective"),
        ("nixl", ["a", "b"], "nixl"),
        ("shared_memory", ["a", "a"], "shared_memory"),
    ],
)
def test_shared_memory_where_all_are_on_one_node(channel: str, nodes: list[str], chosen: str) -> None:
    assert choose_channel(_config(channel=channel), nodes) == chosen


def test_shared_memory_between_nodes_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"weights.channel: got shared_memory, .* are on 2 nodes"):
        choose_channel(_config(channel="shared_memory"), ["a", "b", "a"])


@pytest.mark.parametrize(
    ("backend", "own_gpus", "settled"),
    [("auto", False, "gloo"), ("auto", True, "nccl"), ("gloo", True, "gloo"), ("nccl", True, "nccl")],
)
def test_nccl_where_both_sides_have_a_gpu_of_their_own(backend: str, own_gpus: bool, settled: str) -> None:
    config = resolve_auto(_config(channel="collective", backend=backend), ["a", "b"], own_gpus)
    assert (config.channel, config.backend) == ("collective", settled)


@pytest.mark.parametrize(
    ("cluster", "own"),
    [
        (["laptop"], False),
        (["gpu"], False),
        (["gpu", "cluster.learner.gpus=1", "cluster.rollout.gpus=1"], True),
        (["gpu_split"], True),
        (["gpu_split", "cluster.rollout.gpus=0.5"], True),
        (["gpu_split", "cluster.rollout.gpus=0"], False),
    ],
)
def test_who_shares_a_gpu(cluster: list[str], own: bool) -> None:
    name, *overrides = cluster
    assert compose("grpo", [f"cluster={name}", *overrides]).cluster.own_gpus is own


def test_nixl_is_refused_where_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nixl", None)
    with pytest.raises(ConfigError, match=r"weights.channel: got nixl, .* pip install nixl"):
        require_nixl()
