"""The engine `worked_solutions`: plays back the task's worked solutions (a cold
start). `engine.py` implements it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.training.rollouts.engines import ENGINES, EngineFacts

if TYPE_CHECKING:
    import torch

    from orchestrator.training.models.config import ModelConfig
    from orchestrator.training.rollouts.config import RolloutConfig
    from orchestrator.training.rollouts.engine import Engine


@ENGINES.register(
    "worked_solutions",
    EngineFacts(
        logprobs="none",
        repeatable_seeds=True,
        replays_solutions=True,
        on_new_weights=frozenset({"finish", "continue", "recompute"}),
    ),
)
def worked_solutions(model: ModelConfig, rollout: RolloutConfig, device: torch.device, seed: int) -> Engine:
    """See `EngineFactory`."""
    from orchestrator.training.rollouts.engines.worked_solutions.engine import build

    return build(model, rollout, device, seed)
