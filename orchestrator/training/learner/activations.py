"""Activation checkpointing: each layer keeps only its input and is recomputed in the backward pass.

Chen et al., "Training deep nets with sublinear memory cost", https://arxiv.org/abs/1604.06174.
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from orchestrator.errors import ConfigError


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Recompute every layer of `model` in the backward pass. Gradients stay bit-identical. Raises ConfigError
    for families that do not support it.
    """
    if not model.supports_gradient_checkpointing:
        hint = f"transformers does not support activation checkpointing for {type(model).__name__}"
        raise ConfigError("learner.activation_checkpointing", "true", "false", hint)
    # transformers renamed it in 5.20. Not reentrant: the reentrant kind loses gradients of keyword arguments.
    enable: Any = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": False})
