"""`hf` with drawn lengths: all equal, or one in ten ten times as long."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from orchestrator.training.rollouts.engines import ENGINES, EngineFacts

if TYPE_CHECKING:
    import torch

    from orchestrator.training.models.config import ModelConfig
    from orchestrator.training.rollouts.config import RolloutConfig
    from orchestrator.training.rollouts.engine import Engine

FACTS = EngineFacts(repeatable_seeds=True, on_new_weights=frozenset({"finish", "continue", "recompute"}))
LONG_SHARE, TIMES = 0.1, 10
"""This share of the rollouts is this many times as long as the others."""


def length(kind: str, longest: int, seed: int, group_id: int, member: int) -> int:
    """The tokens of a rollout. Both kinds have the same mean."""
    short = longest // TIMES
    if kind == "equal":
        return round(short * (1 - LONG_SHARE) + longest * LONG_SHARE)
    return longest if random.Random(f"{seed}/{group_id}/{member}").random() < LONG_SHARE else short


def build(kind: str, model: ModelConfig, rollout: RolloutConfig, device: torch.device, seed: int) -> Engine:
    from benchmarks.drawn_lengths.sampler import DrawnLengths
    from orchestrator.training.models.build import build_model, build_tokenizer
    from orchestrator.training.rollouts.stepped import StepEngine

    tokenizer, rows = build_tokenizer(model), rollout.max_batch_rows
    return StepEngine(
        DrawnLengths(kind, build_model(model, seed), tokenizer, model.context, rows, device, False)
    )


@ENGINES.register("equal_lengths", FACTS)
def equal(model: ModelConfig, rollout: RolloutConfig, device: torch.device, seed: int) -> Engine:
    """See `EngineFactory`."""
    return build("equal", model, rollout, device, seed)


@ENGINES.register("heavy_tailed_lengths", FACTS)
def heavy_tailed(model: ModelConfig, rollout: RolloutConfig, device: torch.device, seed: int) -> Engine:
    """See `EngineFactory`."""
    return build("heavy_tailed", model, rollout, device, seed)
