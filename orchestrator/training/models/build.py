"""Builds models and their tokenizers from a `ModelConfig`. All models are built here.

A model's class is imported when the model is built: a command that only reads its configuration or
tokenizer starts almost two seconds of CPU time earlier.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from orchestrator.errors import ConfigError
from orchestrator.training.models import deepseek_v3, folder, gguf_package
from orchestrator.training.models.config import ModelConfig

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast


def build_model(config: ModelConfig, seed: int, *, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """Build the model on the CPU, in evaluation mode, with its parameters in `dtype` (None: the config's).
    Buffers keep their own precision. Dropout is off, also in training mode.

    `seed` only affects random initialisation; torch's global generator is not touched. Two calls with the
    same config and seed give bit-equal weights. Raises ConfigError for a missing folder, package or file, and
    if `context` exceeds what the model supports.
    """
    if config.path is not None or config.family == "pretrained":
        model = folder.load_model(config)
    elif config.family == "deepseek_v3_from_scratch":
        model = deepseek_v3.random_start(config, seed)
    else:
        model = gguf_package.load_model(config)
    _require_context(config, model.config)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype or getattr(torch, config.dtype))
    model.config.dtype = dtype or getattr(torch, config.dtype)
    return model.eval()


def build_tokenizer(config: ModelConfig) -> PreTrainedTokenizerFast:
    """Build the model's tokenizer. Raises ConfigError for a missing folder, package or file."""
    if config.path is not None or config.family == "pretrained":
        return folder.load_tokenizer(config)
    if config.family == "deepseek_v3_from_scratch":
        return deepseek_v3.tokenizer(config)
    return gguf_package.load_tokenizer(config)


def read_architecture(config: ModelConfig) -> PreTrainedConfig | None:
    """Read the model's transformers config without its weights. Returns None for a GGUF file,
    whose header takes seconds to read.

    Raises ConfigError like `build_model`.
    """
    if config.path is not None or config.family == "pretrained":
        return folder.load_architecture(config)
    if config.family == "deepseek_v3_from_scratch":
        return deepseek_v3.architecture_config(config)
    return None


def check_model(config: ModelConfig) -> None:
    """Raise ConfigError if `build_model` would reject the model. Does not read the weights."""
    architecture = read_architecture(config)
    if architecture is None:
        gguf_package.locate(config)
        return
    _require_context(config, architecture)
    if config.path is not None:
        folder.require_weights(config)


def _require_context(config: ModelConfig, architecture: PreTrainedConfig) -> None:
    limit = getattr(architecture.get_text_config(), "max_position_embeddings", None)
    if limit is not None and config.context > limit:
        raise ConfigError(
            "model.context", str(config.context), f"at most {limit}", "the limit of the model's architecture"
        )
