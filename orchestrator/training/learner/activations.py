"""Activation checkpointing: a layer keeps its input only, and is computed again in the backward pass.

Chen et al., "Training deep nets with sublinear memory cost", https://arxiv.org/abs/1604.06174.
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from orchestrator.errors import ConfigError


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Let every layer of `model` be computed again. Gradients stay the same, bit for bit. Raises ConfigError
    for a family whose layers can't be.
    """
    if not model.supports_gradient_checkpointing:
        hint = f"{type(model).__name__} has no layers that transformers can compute again"
        raise ConfigError("learner.activation_checkpointing", "true", "false", hint)
    # transformers renamed it in 5.20. Not reentrant: the reentrant kind loses gradients of keyword arguments.
    enable: Any = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": False})
