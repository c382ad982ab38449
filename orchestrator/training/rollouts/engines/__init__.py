"""Rollout engines by name: one package for each implementation of the `Engine` port.

The package's `__init__` registers the engine with its facts and imports nothing heavy; the implementation is
imported when the engine is built. Configs and plans can therefore ask for facts in milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pydantic import BaseModel

from orchestrator.training.registry import Registry
from orchestrator.training.rollouts.config import OnNewWeights

if TYPE_CHECKING:
    import torch

    from orchestrator.training.models.config import ModelConfig
    from orchestrator.training.rollouts.config import RolloutConfig
    from orchestrator.training.rollouts.engine import Engine


class EngineFactory(Protocol):
    """Builds an engine."""

    def __call__(self, model: ModelConfig, rollout: RolloutConfig, device: torch.device, seed: int) -> Engine:
        """The engine, on `device`, with the model as version 0. `seed` is the run's: it decides a random
        start of the model. Raises ConfigError for a model or a setting that the engine cannot serve.
        """
        ...


SamplingOption = Literal[
    "top_k",
    "min_p",
    "repetition_penalty",
    "stop",
    "stop_token_ids",
    "min_new_tokens",
    "thinking_token_budget",
]
"""A field of `SamplingParams` that an engine may support. Every engine that samples supports the others."""

SAMPLING_OPTIONS: dict[SamplingOption, object] = {
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "stop": (),
    "stop_token_ids": (),
    "min_new_tokens": 0,
    "thinking_token_budget": None,
}
"""The values that turn these parameters off."""


@dataclass(frozen=True, slots=True)
class EngineEnvironment:
    """The Python environment of an engine whose dependencies conflict with those of the learner."""

    name: str
    """`make engines` creates it in `.venv-<name>`."""
    modules: tuple[str, ...]
    """Modules that the engine imports there."""
    requires: tuple[str, ...] = ()
    """Versions that the engine works with, such as `vllm>=0.32`. Of several distributions that provide the
    same module, those that are not installed do not matter.
    """
    remedy: str = "`make engines` creates it"
    """How to create it."""


def accept_every_model(_model: ModelConfig) -> None:
    """The check of an engine that serves every model."""


def one_accelerator(_options: Mapping[str, Any]) -> int:
    """The number of accelerators of an engine that is not distributed."""
    return 1


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts:
    """What configs and planners need to know about an engine before anything starts."""

    check: Callable[[ModelConfig], None] = accept_every_model
    """Raises ConfigError for a model that the engine can't serve. It runs before anything starts, reads the
    model's configuration and tokenizer, and never its weights.
    """
    replays_solutions: bool = False
    """Plays back `prompt.solution` instead of sampling: every training prompt must have one."""
    logprobs: Literal["tempered", "processed", "raw", "none"] = "tempered"
    """Which distribution the reported log-probs belong to: after temperature and before
    truncation and penalties (`tempered`, what the learner computes), after all of them (`processed`), before
    all of them (`raw`), or no distribution at all (`none`).
    """
    repeatable_seeds: bool = False
    """The same prompts, weights and seed give the same tokens, whichever worker samples and whatever else it
    samples at the same time.
    """
    records_routes: bool = False
    """Can note which experts each token was sent to (`rollout.record_routes`)."""
    on_new_weights: frozenset[OnNewWeights] = frozenset({"finish"})
    """The values of `rollout.on_new_weights` that the engine supports."""
    options: type[BaseModel] | None = None
    """What `rollout.engine_options` may hold: a model that rejects unknown keys. None: nothing."""
    accelerators: Callable[[Mapping[str, Any]], int] = one_accelerator
    """How many accelerators one engine uses, from its `rollout.engine_options`."""
    environment: EngineEnvironment | None = None
    """The engine's own Python environment; None: it runs in that of the learner."""
    sampling: frozenset[SamplingOption] = frozenset()
    """The optional sampling parameters that the engine supports, in addition to temperature, top-p,
    `max_new_tokens` and the seed. A config that sets another one is refused.
    """


ENGINES: Registry[EngineFactory, EngineFacts] = Registry(
    "engine", "orchestrator.training.rollouts.engines", EngineFacts, key="rollout.engine"
)
