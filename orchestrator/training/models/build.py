"""From a `ModelConfig` to a model and its tokenizer: the only way models come into being."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from orchestrator.errors import ConfigError
from orchestrator.training.models import deepseek_v3, folder, gguf_package
from orchestrator.training.models.config import ModelConfig


def build_model(config: ModelConfig, seed: int, *, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The model on the CPU, in evaluation mode, parameters in `dtype` (None: the config's). Buffers keep
    their own precision.

    `seed` decides a random start and nothing else; torch's global generator is not touched. Two calls with
    one config and seed give bit-equal weights. Raises ConfigError for a missing folder, package or file and
    for a context that the model can't hold.
    """
    if config.path is not None or config.family == "pretrained":
        model = folder.load_model(config)
    elif config.family == "deepseek_v3_from_scratch":
        model = deepseek_v3.random_start(config, seed)
    else:
        model = gguf_package.load_model(config)
    _check_context(config, model)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype or getattr(torch, config.dtype))
    model.config.dtype = dtype or getattr(torch, config.dtype)
    return model.eval()


def build_tokenizer(config: ModelConfig) -> PreTrainedTokenizerFast:
    """The tokenizer of that model. Raises ConfigError for a missing folder, package or file."""
    if config.path is not None or config.family == "pretrained":
        return folder.load_tokenizer(config)
    if config.family == "deepseek_v3_from_scratch":
        return deepseek_v3.tokenizer(config)
    return gguf_package.load_tokenizer(config)


def _check_context(config: ModelConfig, model: PreTrainedModel) -> None:
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is not None and config.context > limit:
        raise ConfigError(
            "model.context", str(config.context), f"at most {limit}", "what the model was built for"
        )
