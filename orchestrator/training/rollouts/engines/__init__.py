"""Engines by name: one file for each implementation of the `Engine` port."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from orchestrator.training.registry import Registry

if TYPE_CHECKING:
    import torch

    from orchestrator.training.models.config import ModelConfig
    from orchestrator.training.rollouts.config import RolloutConfig
    from orchestrator.training.rollouts.engine import Engine


class EngineFactory(Protocol):
    """Makes an engine. `seed` is the run's: it decides a random start of the model, and the model starts as
    version 0.
    """

    def __call__(self, model: ModelConfig, rollout: RolloutConfig, device: torch.device, seed: int) -> Engine:
        """The engine, on `device`. Raises ConfigError for a model or a setting that it can't serve."""
        ...


ENGINES: Registry[EngineFactory] = Registry("engine", package="orchestrator.training.rollouts.engines")
