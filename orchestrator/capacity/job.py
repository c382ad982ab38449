"""A run's config as the planner reads it: the model's shape, and the number of tokens per step."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.capacity.accelerators import Range
from orchestrator.capacity.shape import ModelShape, read_shape
from orchestrator.config.run_config import RunConfig
from orchestrator.errors import ConfigError
from orchestrator.training.advantages import ADVANTAGES
from orchestrator.training.models.config import ModelConfig
from orchestrator.training.rollouts.engines import ENGINES

CHARACTERS = 103
"""Vocabulary size of the character tokenizer of models from scratch."""
RESPONSE_SHARES = (0.25, 0.5, 1.0)
"""Low, expected and high mean length of responses as shares of `rollout.max_new_tokens`, if no length is
given. The actual length is unknown before the model has answered.
"""
CHARACTERS_PER_TOKEN, TEMPLATE_TOKENS = 4, 32
"""Rough estimates for English text and common tokenizers. `--prompt-tokens` replaces them."""
BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True, slots=True)
class Lengths:
    """Lengths of prompts and responses, in tokens."""

    prompt: float
    """Mean length of a prompt; step time follows from it."""
    longest_prompt: float
    """Length of the longest prompt; memory follows from it."""
    response: Range
    """Mean length of a response."""


@dataclass(frozen=True, slots=True)
class Job:
    """One training run: its config, the shape of its model and the lengths of its sequences."""

    config: RunConfig
    shape: ModelShape
    lengths: Lengths

    @property
    def element_bytes(self) -> int:
        """Bytes per weight."""
        return BYTES[self.config.model.dtype]

    @property
    def rollouts(self) -> int:
        """Rollouts per step."""
        return self.config.rollout.prompts_per_step * self.config.rollout.group_size

    @property
    def samples(self) -> bool:
        """Whether rollouts are sampled from the model, not played back."""
        return samples_from_the_model(self.config)

    @property
    def has_reference(self) -> bool:
        """Whether each rank holds a frozen copy of the model, for the KL penalty."""
        return self.config.algorithm.kl.coefficient > 0

    @property
    def has_values(self) -> bool:
        """Whether the learner has a value head, whose values take a forward pass of their own."""
        return ADVANTAGES.facts(self.config.algorithm.advantage).needs_values

    @property
    def longest(self) -> int:
        """Length of the longest possible row, in tokens."""
        return self.config.model.context


def samples_from_the_model(config: RunConfig) -> bool:
    """Whether the run's rollouts are sampled from its model, not played back from worked solutions."""
    return not ENGINES.facts(config.rollout.engine).replays_solutions


def read_job(config: RunConfig, prompts: tuple[float, float], response_tokens: float | None) -> Job:
    """Read the job from `config`. `prompts` are the mean and maximum number of tokens of a prompt, which is
    never longer than the context. Without `response_tokens`, RESPONSE_SHARES applies.

    Raises ConfigError for a model whose shape is not known.
    """
    most = config.rollout.max_new_tokens
    response = Range(*(most * share for share in RESPONSE_SHARES))
    if response_tokens is not None:
        response = Range(response_tokens, response_tokens, response_tokens)
    mean, longest = (min(tokens, config.model.context) for tokens in prompts)
    return Job(config, model_shape(config.model), Lengths(mean, longest, response))


def tokens_of(characters: float, model: ModelConfig) -> float:
    """Approximate number of tokens of a prompt: one per character for models from scratch, else one for four
    and the frame of a chat template.
    """
    if model.family == "deepseek_v3_from_scratch":
        return characters
    return characters / CHARACTERS_PER_TOKEN + TEMPLATE_TOKENS


def model_shape(model: ModelConfig) -> ModelShape:
    """The shape of a configured model, from its folder or, if that is not on this machine,
    from `model.architecture`.

    Raises ConfigError.
    """
    if model.path is not None and (file := Path(model.path) / "config.json").is_file():
        return read_shape(_read(file))
    if not model.architecture:
        hint = "a folder with a config.json, or the numbers of one under model.architecture"
        raise ConfigError("model.path", str(model.path), hint, "the planner needs the model's shape")
    if model.family != "deepseek_v3_from_scratch":
        return read_shape(model.architecture)
    derived = {
        "model_type": "deepseek_v3",
        "vocab_size": CHARACTERS,
        "max_position_embeddings": model.context,
    }
    return read_shape({**model.architecture, **derived})


def _read(file: Path) -> Mapping[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError("model.path", str(file), "a config.json") from error
