"""Shapes of the learner that are offered, and those that are refused with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from orchestrator.training.learner.config import LearnerConfig

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
    ],
)
def test_what_cannot_work_is_refused_by_name(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        LearnerConfig(**_values(**changes))
