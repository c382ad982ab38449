"""The engine `hf`: samples from any causal language model of transformers. `sampler.py` implements it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.training.rollouts.engines import ENGINES, SAMPLING_OPTIONS, EngineFacts

if TYPE_CHECKING:
    import torch

    from orchestrator.training.models.config import ModelConfig
    from orchestrator.training.rollouts.config import RolloutConfig
    from orchestrator.training.rollouts.engine import Engine


def check(model: ModelConfig) -> None:
    """Raise ConfigError for a model that the engine can't serve."""
    from orchestrator.training.rollouts.engines.hf import attention

    attention.check(model)


@ENGINES.register(
    "hf",
    EngineFacts(
        check=check,
        logprobs="tempered",
        repeatable_seeds=True,
        records_routes=True,
        on_new_weights=frozenset({"finish", "continue", "recompute"}),
        sampling=frozenset(SAMPLING_OPTIONS),
    ),
)
def hf(model: ModelConfig, rollout: RolloutConfig, device: torch.device, seed: int) -> Engine:
    """See `EngineFactory`."""
    from orchestrator.training.rollouts.engines.hf import engine

    return engine.build(model, rollout, device, seed)
