"""Valid configurations of the learner, and invalid ones with their reasons."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pydantic import ValidationError

from orchestrator.training.learner.config import LearnerConfig
from orchestrator.training.learner.sharding.zero import deepspeed_config
from tests.support.moe_families import build

_CONF = Path(__file__).parents[4] / "conf" / "learner"


def _values(**changes: Any) -> dict[str, Any]:
    return yaml.safe_load((_CONF / "deepspeed.yaml").read_text()) | changes


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
@pytest.mark.parametrize("world_size", [1, 2])
def test_every_zero_stage_is_offered(zero_stage: int, world_size: int) -> None:
    assert LearnerConfig(**_values(zero_stage=zero_stage, world_size=world_size)).zero_stage == zero_stage


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"zero_stage": 4}, "zero_stage"),
        ({"micro_batch_tokens": 0}, "micro_batch_tokens"),
        ({"bucket_bytes": 10}, "bucket_bytes"),
        ({"final_learning_rate": 1.0, "schedule": "linear"}, "final_learning_rate"),
        ({"adam_betas": [0.9, 1.0]}, "adam_betas"),
        ({"offload": "optimizer", "zero_stage": 0}, "offload: got optimizer, allowed: none, or zero_stage 1"),
        ({"offload": "disk"}, "offload"),
        (
            {"expert_parallel_size": 2, "lora": {"rank": 4, "alpha": 8, "target_modules": ["q_proj"]}},
            "expert_parallel_size: got 2, allowed: 1 with lora.rank > 0",
        ),
        ({"lora": {"rank": 4, "alpha": 8, "target_modules": []}}, "target_modules"),
    ],
)
def test_impossible_configs_are_rejected_with_the_key(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        LearnerConfig(**_values(**changes))


@pytest.mark.parametrize(("device", "pinned"), [("cpu", False), ("cuda", True)])
def test_the_optimizer_is_offloaded_if_requested(device: str, pinned: bool) -> None:
    model = build("mixtral")
    for offload in ("none", "optimizer"):
        config = LearnerConfig(**_values(offload=offload))
        zero = deepspeed_config(config, model, torch.device(device))["zero_optimization"]
        expected = {"device": "cpu", "pin_memory": pinned} if offload == "optimizer" else None
        assert zero.get("offload_optimizer") == expected
