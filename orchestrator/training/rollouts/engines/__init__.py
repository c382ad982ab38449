"""Engines by name: one file for each implementation of the `Engine` port.

    ENGINES.register("my_engine")(EngineSpec(build=my_engine, check=refuse_other_models))

A plain factory can be registered too; it then has the defaults of `EngineSpec`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from orchestrator.training.registry import Registry

if TYPE_CHECKING:
    import torch

    from orchestrator.training.models.config import ModelConfig
    from orchestrator.training.rollouts.config import RolloutConfig
    from orchestrator.training.rollouts.engine import Engine


class EngineFactory(Protocol):
    """Builds an engine."""

    def __call__(self, model: ModelConfig, rollout: RolloutConfig, device: torch.device, seed: int) -> Engine:
        """The engine, on `device`, with the model as version 0. `seed` is the run's: it decides a random
        start of the model. Raises ConfigError for a model or a setting that the engine can't serve.
        """
        ...


def accept_every_model(_model: ModelConfig) -> None:
    """The check of an engine that serves every model."""


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """An engine's factory and what others must know about the engine before anything starts."""

    build: EngineFactory
    check: Callable[[ModelConfig], None] = accept_every_model
    """Raises ConfigError for a model that the engine can't serve. It runs before anything starts, reads the
    model's configuration and tokenizer, and never its weights.
    """
    replays_solutions: bool = False
    """The engine plays back `prompt.solution` instead of sampling: every training prompt must have one."""

    def __call__(self, model: ModelConfig, rollout: RolloutConfig, device: torch.device, seed: int) -> Engine:
        """See `EngineFactory`."""
        return self.build(model, rollout, device, seed)


ENGINES: Registry[EngineFactory] = Registry("engine", package="orchestrator.training.rollouts.engines")


def engine_spec(name: str) -> EngineSpec:
    """The engine of that name. Raises ConfigError if there is none."""
    factory = ENGINES.get(name)
    return factory if isinstance(factory, EngineSpec) else EngineSpec(factory)
