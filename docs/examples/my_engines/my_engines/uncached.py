"""Registers the engine `uncached`, which `uncached_engine.py` implements."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.training.rollouts.engines import ENGINES, EngineFacts

if TYPE_CHECKING:
    import torch

    from orchestrator.training.models.config import ModelConfig
    from orchestrator.training.rollouts.config import RolloutConfig
    from orchestrator.training.rollouts.engine import Engine


@ENGINES.register(
    "uncached",
    EngineFacts(
        logprobs="tempered",
        repeatable_seeds=True,
        on_new_weights=frozenset({"finish", "continue", "recompute"}),
        sampling=frozenset({"top_k", "min_p"}),
    ),
)
def uncached(model: ModelConfig, rollout: RolloutConfig, device: torch.device, seed: int) -> Engine:
    """See `EngineFactory`."""
    from my_engines.uncached_engine import UncachedSampler
    from orchestrator.training.models.build import build_model, build_tokenizer
    from orchestrator.training.rollouts.stepped import StepEngine

    return StepEngine(
        UncachedSampler(build_model(model, seed), build_tokenizer(model), model.context, device)
    )
