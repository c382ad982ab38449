"""`hf` with weights rounded to integers of a few bits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.training.rollouts.engines import ENGINES, EngineFacts

if TYPE_CHECKING:
    import torch

    from orchestrator.training.models.config import ModelConfig
    from orchestrator.training.rollouts.config import RolloutConfig
    from orchestrator.training.rollouts.engine import Engine

FACTS = EngineFacts(repeatable_seeds=True, on_new_weights=frozenset({"finish"}))


def build(bits: int, model: ModelConfig, rollout: RolloutConfig, device: torch.device, seed: int) -> Engine:
    from benchmarks.rounded_weights.sampler import RoundedWeights
    from orchestrator.training.models.build import build_model, build_tokenizer
    from orchestrator.training.rollouts.stepped import StepEngine

    tokenizer, rows = build_tokenizer(model), rollout.max_batch_rows
    return StepEngine(
        RoundedWeights(bits, build_model(model, seed), tokenizer, model.context, rows, device, False)
    )


@ENGINES.register("int4_weights", FACTS)
def int4(model: ModelConfig, rollout: RolloutConfig, device: torch.device, seed: int) -> Engine:
    """See `EngineFactory`."""
    return build(4, model, rollout, device, seed)
